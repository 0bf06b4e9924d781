"""Tensors of several models in one, chosen by name."""

import pytest
import torch

import surgeon
from surgeon.testing.toys import read_checkpoint, toy_llama


@pytest.fixture
def models(tmp_path):
    return [toy_llama(tmp_path / str(seed), seed) for seed in (0, 1)]


def test_the_last_part_whose_targets_fit_is_taken(tmp_path, models):
    a, b = map(surgeon.open, models)
    joined = surgeon.reshape("join", a, (b, "*.mlp.*"), (a, "*.0.mlp.*"))
    surgeon.apply(joined, tmp_path / "out")
    result, first, second = map(read_checkpoint, (tmp_path / "out", *models))
    assert sorted(result) == sorted(first)
    for name, tensor in result.items():
        taken = second if ".mlp." in name and ".0." not in name else first
        assert torch.equal(tensor, taken[name]), name


@pytest.mark.parametrize(
    ("part", "told"),
    [("*.mpl.*", "'\\*.mpl.\\*' fits no tensor"), ((0, 1), "targets, not layers")],
)
def test_what_is_refused(models, part, told):
    a, b = map(surgeon.open, models)
    with pytest.raises(surgeon.RefusedError, match=told):
        surgeon.plan(surgeon.reshape("join", a, (b, part)))


def test_tensors_of_the_first_part_that_no_targets_fit_are_a_warning(models):
    a, b = map(surgeon.open, models)
    whole, half = (
        surgeon.plan(surgeon.reshape("join", part, (b, "*.mlp.*"))).warnings for part in (a, (a, "*.norm.*"))
    )
    assert not any("leaves out" in told for told in whole)
    assert any("leaves out 20 tensors" in told for told in half), half


def test_tensors_that_do_not_fit_are_listed(tmp_path, models):
    wide = surgeon.open(toy_llama(tmp_path / "wide", intermediate_size=64))
    with pytest.raises(
        surgeon.MismatchError, match=r"model\.layers\.0\.mlp\.down_proj\.weight: .*\[32, 48\].*\[32, 64\]"
    ):
        surgeon.plan(surgeon.reshape("join", surgeon.open(models[0]), (wide, "*.mlp.*")))
