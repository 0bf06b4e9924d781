"""From a contrast to a direction file, on a model that was trained."""

import copy
import dataclasses
from fractions import Fraction

import pytest
import torch

from surgeon.artifacts.direction import Direction
from surgeon.directions.contrast import Contrast
from surgeon.directions.examples import Example, neutral_examples
from surgeon.directions.fit import fit, held_out, measurement
from surgeon.directions.guard import guard_basis
from surgeon.directions.neutral import measure_neutral
from surgeon.directions.statistics import measure
from surgeon.errors import RecipeError, RefusedError

FEW = neutral_examples()[:4] + neutral_examples()[-4:]
GUARD = {"components": 4}


def unguarded(loaded, contrast, point):
    positive, negative = (measure(loaded, side, [point])[point] for side in (contrast.positive, contrast.negative))
    return torch.nn.functional.normalize(positive.mean - negative.mean, dim=0)


def test_a_plain_difference_of_means(loaded, contrast):
    found = fit(loaded, "mean_difference", contrast, at="block.1", settings={"guard": False})
    torch.testing.assert_close(found.rows("block.1")[0], unguarded(loaded, contrast, "block.1").float())
    assert found.at == "block.1"
    assert "guard" not in found.about


def test_the_guard_is_on_by_default_and_told(loaded, contrast):
    found = fit(loaded, "mean_difference", contrast, at="block.1", neutral=FEW, settings=GUARD, model="tiny")
    neutral = measure_neutral(loaded, FEW)
    basis = guard_basis(neutral.first, neutral.products, 4).basis.float()
    row = found.rows("block.1")[0]
    assert (basis @ row).abs().max() < 1e-6
    plain = unguarded(loaded, contrast, "block.1").float()
    assert found.about["guard"]["removed"]["block.1"] == pytest.approx((basis @ plain).square().sum().item(), rel=1e-4)
    assert found.about["guard"]["sink"]["block.1"] == pytest.approx((basis[0] @ plain).square().item(), rel=1e-3)
    assert found.about["guard"]["components"] == 4
    assert {
        "model": "tiny",
        "fitter": "mean_difference",
        "position": "last",
        "at": "block.1",
    }.items() <= found.about.items()
    assert found.about["data"] == contrast.data_hash


def test_a_bank_has_all_points_where_the_sets_differ(loaded, contrast, tmp_path):
    """The last token of a chat prompt is the template's: its embedding is the same in both sets, and no direction."""
    found = fit(loaded, "mean_difference", contrast, neutral=FEW, settings=GUARD, fingerprint="f")
    assert found.at == "own"
    assert set(found.tensors) == set(loaded.anatomy.points()) - {"embed"}
    found.save(tmp_path / "bank.safetensors")
    again = Direction.load(tmp_path / "bank.safetensors")
    assert again == found
    assert again.about == found.about
    turned = Contrast(contrast.positive[::-1], contrast.negative[::-1])
    other = fit(loaded, "mean_difference", turned, neutral=FEW, settings=GUARD)
    for point in found.tensors:
        torch.testing.assert_close(other.rows(point), found.rows(point))


def test_what_is_fitted_separates_what_was_held_out(loaded, contrast):
    words = "cat snow fish key ship cloud".split()
    texts = ("Repeat the word {}.", "Say {} to me, please")
    held = Contrast(*(tuple(Example({"prompt": text.format(word)}) for word in words) for text in texts))
    measured = measurement(loaded, "mean_difference", contrast, neutral=FEW, settings=GUARD)
    direction = measured.direction()
    found = held_out(loaded, measured, direction, held)
    assert [one.point for one in found] == list(direction.tensors)
    assert max(one.auroc for one in found) > 0.95
    assert all(len(one.shuffled) == 4 for one in found)


def test_settings_may_be_exact_numbers(loaded, contrast):
    exact = {"winsorise": Fraction(9, 10), "components": Fraction(4), "guard": True}
    plain = {"winsorise": 0.9, "components": 4, "guard": True}
    left, right = (
        fit(loaded, "mean_difference", contrast, at="block.0", neutral=FEW, settings=s) for s in (exact, plain)
    )
    assert left == right
    assert left.about == right.about
    assert left != fit(loaded, "mean_difference", contrast, at="block.0", neutral=FEW, settings=GUARD)


def test_a_model_without_a_chat_template_reads_the_neutral_chats_as_texts(loaded):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = None
    base = dataclasses.replace(loaded, tokenizer=tokenizer)
    texts = ["the tree and the sun", "the moon and the house"], ["a car by the river", "a stone in the wind"]
    contrast = Contrast(*(tuple(Example({"text": text}) for text in side) for side in texts))
    assert len(fit(base, "mean_difference", contrast, settings=GUARD).tensors) == len(loaded.anatomy.points())


def test_progress_counts_both_sets(loaded, contrast):
    told = []
    fit(
        loaded, "mean_difference", contrast, at="block.0", settings={"guard": False}, listener=lambda *d: told.append(d)
    )
    total = len(contrast.positive) + len(contrast.negative)
    assert told == [(number, total) for number in range(1, total + 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fitter_name": "mean_diference"}, "did you mean 'mean_difference'"),
        ({"at": "block.7"}, "no residual point 'block.7'"),
        ({"at": "embed"}, "do not differ at embed, position last"),
        ({"position": "middle"}, "no position"),
        ({"settings": {"gaurd": True}}, "no setting 'gaurd'\n.*did you mean 'guard'"),
        ({"settings": {"winsorise": 2}}, r"winsorise must lie in \(0, 1\]"),
        ({"settings": {"components": 2.5}}, "components must be a whole number"),
        ({"settings": {"project": "negative"}}, "project must be one of none, neutral"),
        ({"settings": {"winsorise": float("nan")}}, "winsorise|nan"),
        ({"settings": {"components": 400}}, "would leave nothing of a direction"),
    ],
)
def test_what_is_refused(loaded, contrast, given, message):
    with pytest.raises(RefusedError, match=message):
        fit(**{"loaded": loaded, "fitter_name": "mean_difference", "contrast": contrast, "neutral": FEW} | given)


def test_all_faults_of_the_settings_are_told_at_once(loaded, contrast):
    with pytest.raises(RecipeError) as caught:
        fit(loaded, "mean_difference", contrast, settings={"gaurd": True, "winsorise": [0.5, 0.9]})
    assert len(caught.value.faults) == 2
