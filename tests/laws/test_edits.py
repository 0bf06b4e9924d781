"""Every registered edit keeps every law, or says why not; and every law catches an edit that breaks it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surgeon.space.edit import EditMethod, coordinates, edit
from surgeon.space.parameters import Subspace, Weight
from surgeon.space.registry import edits
from surgeon.testing.edit_laws import LAWS, applies, check

EDITS = edits()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", EDITS)
def test_law(name: str, law: str) -> None:
    if applies(law, EDITS[name]):
        LAWS[law](EDITS[name])


@pytest.mark.parametrize("name", EDITS)
def test_a_declared_break_is_one(name: str) -> None:
    for law, reason in EDITS[name].breaks.items():
        assert law in LAWS
        assert reason
        with pytest.raises(AssertionError):
            LAWS[law](EDITS[name])


# -- edits that keep the laws in other ways than ablation --------------------------------------------------------------


@edit(linear=True)
def whole(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    """W + s R RᵀW, of whole tensors."""
    return weight + strength * (direction @ (direction.T @ weight))


@edit(blocks="rows", linear=True, unchanged={"strength": 0})
def shrunk(weight: Weight, strength: float = 1.0) -> Tensor:
    """W − sW/2, along no direction."""
    return weight - strength * 0.5 * weight


@pytest.mark.parametrize("method", [whole, shrunk], ids=lambda method: method.name)
def test_edits_of_whole_tensors_and_without_directions_are_judged_too(method: EditMethod) -> None:
    check(method)


# -- edits that break one ----------------------------------------------------------------------------------------------


def projected(weight: Tensor, direction: Tensor, strength: float = 1.0) -> Tensor:
    return weight - strength * (direction @ (direction.T @ weight))


def plain(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight, direction, strength)


def another_shape(weight: Weight, direction: Subspace) -> Tensor:
    return weight[1:]


def turned_over(weight: Weight, direction: Subspace) -> Tensor:
    return weight.T


def looks_at_data(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight, direction, strength) if float(weight.abs().max()) > 0 else weight


def in_place(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return weight.sub_(strength * (direction @ (direction.T @ weight)))


def spoils_direction(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    changed = projected(weight, direction, strength)
    direction.mul_(2)
    return changed


def at_zero_too(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight, direction, strength) * (1 + 1e-6)


def norm_kept(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    changed = projected(weight, direction, strength)
    return changed * (weight.norm() / changed.norm())


def squared_strength(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight, direction, strength**2)


def almost_removed(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight, direction, 0.999 * strength)


def first_direction_only(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight, direction[:, :1], strength)


def moved_each_time(weight: Weight, direction: Subspace, strength: float = 1.0) -> Tensor:
    return projected(weight * (1 + strength), direction, 1.0)


def one_coordinate(weight: Weight, direction: Subspace) -> Tensor:
    return torch.cat([weight[:1] * 0.5, weight[1:]])


INSIDE = coordinates()


def own_coordinates(weight: Weight, direction: Subspace, strength: float = 1.0, inside: Tensor = INSIDE) -> Tensor:
    return weight - strength * (direction @ (direction.T @ weight))


def mean_of_band(weight: Weight, direction: Subspace) -> Tensor:
    return weight - weight.mean(0)


PROMISES = {"unchanged": {"strength": 0}, "removes": {"strength": 1}}
BROKEN = [
    ("shape_kept", edit(another_shape)),
    ("shape_kept", edit(turned_over)),
    ("runs_on_meta", edit(looks_at_data)),
    ("inputs_untouched", edit(in_place)),
    ("inputs_untouched", edit(spoils_direction)),
    ("unchanged", edit(unchanged={"strength": 0})(at_zero_too)),
    ("linear", edit(linear=True)(norm_kept)),
    ("linear_in_strength", edit(squared_strength)),
    ("removes", edit(removes={"strength": 1})(almost_removed)),
    ("removes", edit(removes={"strength": 1})(first_direction_only)),
    ("idempotent", edit(removes={"strength": 1})(moved_each_time)),
    ("rotation", edit(one_coordinate)),
    ("blockwise", edit(blocks="rows", linear=True)(own_coordinates)),
    ("blockwise", edit(blocks="rows")(mean_of_band)),
]


def test_every_law_has_an_edit_that_breaks_it() -> None:
    assert {law for law, _ in BROKEN} == set(LAWS)
    check(edit(linear=True, **PROMISES)(plain))


@pytest.mark.parametrize(("law", "method"), BROKEN, ids=lambda value: getattr(value, "name", value))
def test_a_law_catches_an_edit_that_breaks_it(law: str, method: EditMethod) -> None:
    with pytest.raises(AssertionError, match=rf"breaks the law '{law}': .+ .+"):
        check(replace(method, breaks={other: "another law" for other in LAWS if other != law}))
    check(replace(method, breaks=dict.fromkeys(LAWS, "declared")))


def test_a_break_of_an_unknown_law_is_an_error() -> None:
    with pytest.raises(ValueError, match="rotatoin"):
        check(replace(whole, breaks={"rotatoin": "misspelt"}))
