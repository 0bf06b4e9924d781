"""Edits that another tool made: right ones pass, and what such tools get wrong is found and named."""

import shutil

import pytest
import torch
from measuring_toys import edit_json
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.anatomy.describe import describe
from surgeon.artifacts.direction import direction
from surgeon.space.output import Output, Recipe
from surgeon.store.checkpoint import open_checkpoint
from tests.support.family_toys import WIDTH, toy

FAMILIES = ["llama with biases", "gemma3", "gpt2", "mixtral", "mixtral fused"]
DOWN = "model.layers.1.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
GAIN = "ablate: the gain of the output norm behind it is left out, W' = (I − RRᵀ)W"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def rows(k=1):
    return torch.randn(k, WIDTH, generator=torch.Generator().manual_seed(k))


def ablated(of, k=1, **given):
    return surgeon.edit("ablate", of, directions=direction(rows(k), at="block.0"), **given)


def anatomy_of(folder):
    checkpoint = open_checkpoint(folder, str(folder))
    return describe(checkpoint.config, {name: stored.spec for name, stored in checkpoint.tensors.items()})


def by_hand(base, folder, k=1, *, dtype=torch.float32, gains=True, strength=1.0, skip=(), changed=lambda tensors: None):
    """The everywhere ablation as one would write it in float32, in a copy of the base."""
    anatomy, tensors = anatomy_of(base), load_file(base / "model.safetensors")
    changed(tensors)
    written = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, place in anatomy.writers().items():
        columns = rows(k).T
        for norm in place.norms if gains else ():
            columns = (tensors[norm].to(dtype).float() + anatomy.family.gain)[:, None] * columns
        basis = torch.linalg.qr(columns).Q
        weight = tensors[name].float()
        turned = weight.mT if place.axis == -1 and weight.ndim > 1 else weight
        change = strength * (basis @ (basis.T @ turned))
        if name not in skip:
            written[name] = (weight - (change.mT if turned is not weight else change)).to(dtype).contiguous()
    shutil.copytree(base, folder)
    if anatomy.tied:
        written[anatomy.unembed] = tensors[anatomy.embed].to(dtype).clone()
        edit_json(folder / "config.json", tie_word_embeddings=False)
    edit_json(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
    save_file(written, folder / "model.safetensors", {"format": "pt"})
    return folder


def verdict_of(folder, expr, code, dtype=torch.float32, rounding="nearest"):
    verdict = surgeon.verify(folder, recipe=Recipe(expr, Output(DTYPES[dtype], rounding=rounding)))
    assert verdict.exit_code == code, verdict.explain()
    return verdict


def subjects(verdict):
    return {finding.subject for finding in verdict.findings if finding.kind == "mismatch"}


def writers(base):
    return set(anatomy_of(base).writers())


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Toys by name and tying, each made once."""
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def base(name="llama", tied=False):
        if (name, tied) not in made:
            made[name, tied] = toy(folder / f"{name} {tied}", name, tied)
        return made[name, tied]

    return base


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_right_edit_by_hand_is_proven(name, k, dtype, bases, tmp_path):
    base = bases(name)
    verdict = verdict_of(by_hand(base, tmp_path / "hand", k, dtype=dtype), ablated(surgeon.open(base), k), 0, dtype)
    assert len(writers(base)) == verdict.checked.get("exact", 0) + verdict.checked.get("rounding", 0)


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0, -1.0])
def test_at_every_strength_and_no_other(strength, bases, tmp_path):
    base, expr = bases("gemma3"), surgeon.open(bases("gemma3"))
    verdict_of(by_hand(base, tmp_path / "right", strength=strength), ablated(expr, strength=strength), 0)
    wrong = verdict_of(by_hand(base, tmp_path / "off", strength=1.02 * strength), ablated(expr, strength=strength), 3)
    assert subjects(wrong) == writers(base)
    assert "ablate: the strength is off by +2.0%" in wrong.explain()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_the_usual_formula_behind_output_norms_is_named(name, dtype, bases, tmp_path):
    base = bases(name)
    usual = by_hand(base, tmp_path / "usual", dtype=dtype, gains=False)
    verdict = verdict_of(usual, ablated(surgeon.open(base)), 3, dtype)
    assert subjects(verdict) == writers(base) - {EMBED}
    assert GAIN in verdict.explain()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skipped", [DOWN, EMBED])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_skipped_writer_is_named(name, skipped, dtype, bases, tmp_path):
    base = bases(name)
    folder = by_hand(base, tmp_path / "hand", dtype=dtype, skip=[skipped])
    verdict = verdict_of(folder, ablated(surgeon.open(base)), 3, dtype)
    assert subjects(verdict) == {skipped}
    assert f"skipped{' in layer(s) 1' * (skipped == DOWN)}: not applied here" in verdict.explain()


def test_an_edit_that_was_not_applied_is_named(bases):
    verdict = verdict_of(bases(), ablated(surgeon.open(bases())), 3)
    assert subjects(verdict) == writers(bases())
    assert "not applied: equals what the recipe starts from" in verdict.explain()


def test_a_tied_model_is_untied(bases, tmp_path):
    base = bases("gemma3", True)
    expr = ablated(surgeon.open(base))
    folder = by_hand(base, tmp_path / "hand")
    verdict_of(folder, expr, 0)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert subjects(verdict_of(folder, expr, 3)) == {"config.json"}


@pytest.mark.parametrize("tied", ["both", "skip"])
def test_a_tied_model_that_stays_tied(tied, bases, tmp_path):
    expr = ablated(surgeon.open(bases("gemma3", True)), tied=tied)
    surgeon.apply(expr, tmp_path / "out")
    verdict_of(tmp_path / "out", expr, 0)
    other = ablated(surgeon.open(bases("gemma3", True)), tied="skip" if tied == "both" else "both")
    assert EMBED in subjects(verdict_of(tmp_path / "out", other, 3))


def test_an_edit_after_a_merge_with_the_merged_gains(bases, tmp_path):
    base = bases("gemma3")
    other = toy(tmp_path / "other", "gemma3", seed=1)
    mix = surgeon.open(base) + 0.4 * (surgeon.open(other) - surgeon.open(base))
    theirs = load_file(other / "model.safetensors")

    def merge(tensors):
        for name in tensors:
            tensors[name] += 0.4 * (theirs[name] - tensors[name])

    verdict_of(by_hand(base, tmp_path / "right", 3, changed=merge), ablated(mix, 3), 0)
    usual = verdict_of(by_hand(base, tmp_path / "usual", 3, changed=merge, gains=False), ablated(mix, 3), 3)
    assert GAIN in usual.explain()
    unedited = by_hand(base, tmp_path / "merged", 3, changed=merge, skip=writers(base))
    found = verdict_of(unedited, ablated(mix, 3), 3)
    assert subjects(found) == writers(base)


def test_compensated_rounding_is_not_rounding_to_nearest(bases, tmp_path):
    base = bases("gemma3")
    expr = ablated(surgeon.open(base))
    surgeon.apply(Recipe(expr, Output("BF16", rounding="compensated")), tmp_path / "out")
    verdict_of(tmp_path / "out", expr, 0, torch.bfloat16, "compensated")
    nearest = by_hand(base, tmp_path / "nearest", dtype=torch.bfloat16)
    verdict = verdict_of(nearest, expr, 3, torch.bfloat16, "compensated")
    assert subjects(verdict) == writers(base)
    assert "is rounded to nearest; the recipe asks for compensated rounding" in verdict.explain()
    skipped = by_hand(base, tmp_path / "skipped", dtype=torch.bfloat16, skip=writers(base))
    verdict = verdict_of(skipped, expr, 3, torch.bfloat16, "compensated")
    assert "not applied: equals what the recipe starts from" in verdict.explain()


def test_own_output_is_bit_for_bit(bases, tmp_path):
    expr = ablated(surgeon.open(bases("gemma3", True)), 3)
    surgeon.apply(expr, tmp_path / "out")
    verdict = verdict_of(tmp_path / "out", expr, 0)
    assert verdict.checked["exact"] == len(writers(bases("gemma3", True)))


def test_one_entry_of_an_edited_tensor(bases, tmp_path):
    folder = by_hand(bases(), tmp_path / "hand")
    tensors = load_file(folder / "model.safetensors")
    tensors[DOWN][7, 7] *= 1.02
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert subjects(verdict_of(folder, ablated(surgeon.open(bases())), 3)) == {DOWN}


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_the_zero_of_a_direction_that_is_nearly_one_coordinate_is_proven(dtype, bases, tmp_path):
    """What is stored along that coordinate is small beside what was removed, and the arithmetic's error is not."""
    outlier = 1e-4 * rows()
    outlier[0, 3] = 1.0
    held = direction(outlier, at="block.0")
    expr = surgeon.edit("ablate", surgeon.open(bases("gemma3")), directions=held)
    surgeon.apply(Recipe(expr, Output(dtype)), tmp_path / "out")
    verdict = surgeon.verify(tmp_path / "out")
    assert verdict.exit_code == 0, verdict.explain()
    assert verdict.checked["zeros"].keys() == writers(bases("gemma3"))


def test_a_recipe_that_still_measures_is_refused(bases, tmp_path):
    """A stand-in of the direction must not be taken for it."""
    base = surgeon.open(shutil.copytree(bases(), tmp_path / "base"))
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    for side in ("positive", "negative"):
        (tmp_path / side).write_text(f'{{"text": "{side}"}}\n')
    files = (str(tmp_path / "positive"), str(tmp_path / "negative"))
    fit = surgeon.Fit("mean_difference", base, *files, at="block.0", name="tone")
    expr = surgeon.edit("ablate", base, directions=fit)
    with pytest.raises(surgeon.RefusedError, match="tone is measured by the recipe") as error:
        surgeon.verify(bases(), recipe=expr)
    assert "surgeon/recipe.yaml" in error.value.hint
