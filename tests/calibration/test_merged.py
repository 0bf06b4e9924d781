"""Behind a prefix merged of equal models each model reads what it reads alone; in front of all blocks, always."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.gram import Gram, MergedGram
from surgeon.errors import RefusedError

TINY = Path(__file__).parents[1] / "data/tiny"
WORDS = "tree sun moon house car river".split()


def merged(out: Path, first: surgeon.Expr, second: surgeon.Expr, prompts: Path, **given) -> dict[str, MergedGram]:
    """The Grams that a merge of two models measured, by file name."""
    fits = [surgeon.DataFit("merged_gram", str(prompts)) for _ in range(2)]
    base = surgeon.open(TINY / "model")
    surgeon.apply(surgeon.merge("regmean_pp", [first, second], base_model=base, gram=fits, **given), out)
    return {file.stem: MergedGram.load(file) for file in (out / "surgeon").glob("*.safetensors")}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = (json.dumps({"prompt": f"Repeat the word {word}.", "response": f"[{word}]"}) + "\n" for word in WORDS)
    (tmp_path / "p.jsonl").write_text("".join(lines))
    return tmp_path / "p.jsonl"


def test_equal_models_read_what_each_reads_alone(prompts: Path, tmp_path: Path):
    model = surgeon.open(TINY / "model") + surgeon.open(TINY / "adapters/list")
    again = surgeon.open(TINY / "model") + surgeon.open(shutil.copytree(TINY / "adapters/list", tmp_path / "again"))
    found = merged(tmp_path / "out", model, again, prompts, guard=0)
    surgeon.measure_gram(model, tmp_path / "alone.safetensors", prompts=prompts)
    alone = Gram.load(tmp_path / "alone.safetensors")
    for gram in found.values():
        assert gram.places == alone.places
        for name, value in alone.tensors.items():
            torch.testing.assert_close(gram.tensors[name], value, rtol=1e-3, atol=1e-5)


def test_later_blocks_read_the_merged_prefix(prompts: Path, tmp_path: Path):
    one, other = (surgeon.open(TINY / "adapters" / name) for name in ("list", "initials"))
    found = merged(tmp_path / "out", one, other, prompts)
    assert found.keys() == {"list.gram", "initials.gram", "base_gram"}
    surgeon.measure_gram(
        TINY / "model", tmp_path / "alone.safetensors", adapter=TINY / "adapters/list", prompts=prompts
    )
    alone, gram = Gram.load(tmp_path / "alone.safetensors"), found["list.gram"]
    for block in range(3):
        name = gram.places[f"model.layers.{block}.self_attn.q_proj.weight"].entry
        near = torch.allclose(gram.tensors[name], alone.tensors[name], rtol=1e-3, atol=1e-5)
        assert near is (block == 0)
    # What the second block reads is what the written merge gives it.
    surgeon.measure_gram(tmp_path / "out", tmp_path / "made.safetensors", prompts=prompts)
    made = Gram.load(tmp_path / "made.safetensors")
    name = gram.places["model.layers.2.self_attn.q_proj.weight"].entry
    assert torch.allclose(gram.tensors[name], made.tensors[name], rtol=0.05, atol=0.01)


def test_grams_of_the_other_kind_are_refused(prompts: Path, tmp_path: Path):
    base, adapter = surgeon.open(TINY / "model"), surgeon.open(TINY / "adapters/list")
    surgeon.measure_gram(TINY / "model", tmp_path / "g.safetensors", prompts=prompts)
    with pytest.raises(surgeon.CheckpointError, match="holds 'gram', not 'merged_gram'"):
        surgeon.plan(surgeon.merge("regmean_pp", [adapter], base_model=base, gram=tmp_path / "g.safetensors", guard=0))
    fit = surgeon.DataFit("gram", str(prompts))
    with pytest.raises(RefusedError, match="takes a merged_gram, not fit: gram"):
        surgeon.plan(surgeon.merge("regmean_pp", [adapter], base_model=base, gram=fit))
