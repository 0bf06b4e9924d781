"""Which licences fit together, and what is said of those that do not."""

import pytest

from surgeon.ship.licences import joined


@pytest.mark.parametrize(
    ("licences", "name"),
    [
        (["apache-2.0"], "apache-2.0"),
        (["apache-2.0", "apache-2.0"], "apache-2.0"),
        (["mit", "apache-2.0"], "mit"),
        (["mit", "gpl-3.0"], "gpl-3.0"),
        (["llama3.1", "apache-2.0", "llama3.1"], "llama3.1"),
        (["cc-by-nc-4.0", "mit"], "cc-by-nc-4.0"),
        ([], None),
    ],
)
def test_those_that_fit(licences, name):
    found = joined({f"m{number}": one for number, one in enumerate(licences)})
    assert found.name == name
    assert not found.problems
    assert bool(found.notes) is (len(set(licences)) > 1)


@pytest.mark.parametrize(
    ("licences", "says"),
    [
        (["llama3.1", "gemma"], "gemma and llama3.1 each bind the whole result"),
        (["gpl-3.0", "cc-by-nc-4.0"], "do not fit"),
        (["apache-2.0", None], "m1 names no licence"),
        (["cc-by-nc-nd-4.0", "mit"], "forbids passing on changed versions"),
    ],
)
def test_those_that_do_not(licences, says):
    found = joined({f"m{number}": one for number, one in enumerate(licences)})
    assert found.name is None
    assert says in "\n".join(found.problems)
