"""Every registered merge method keeps every law, or says why not."""

import pytest

from surgeon.space.registry import merge_methods
from surgeon.testing.laws import LAWS, applies

METHODS = merge_methods()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", METHODS)
def test_law(name: str, law: str) -> None:
    method = METHODS[name]
    if applies(law, method):
        LAWS[law](method)


@pytest.mark.parametrize("name", METHODS)
def test_a_declared_break_is_one(name: str) -> None:
    for law, reason in METHODS[name].breaks.items():
        assert law in LAWS
        assert reason
        with pytest.raises((AssertionError, ValueError, IndexError)):
            LAWS[law](METHODS[name])
