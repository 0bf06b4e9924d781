"""Patches: the result from the base and the base from the result, file by file, whatever was edited."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.space.output import Output, Recipe
from surgeon.testing.toys import read_checkpoint, toy_llama, write_checkpoint
from surgeon_cli import installation, main

WEIGHTS = "model.safetensors"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ablated(base: Path, rank: int = 1, **settings):
    rows = torch.randn(rank, 32, generator=torch.Generator().manual_seed(5))
    return surgeon.edit("ablate", surgeon.open(base), directions=direction(rows, at="block.1", name="tone"), **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("settings", [{}, {"rank": 3, "strength": 0.7}, {"strength": -2, "writers": "mlp"}])
@pytest.mark.parametrize("tied", [False, True])
def test_an_edit_there_and_back(tmp_path, dtype, settings, tied):
    base = toy_llama(tmp_path / "base", 1, dtype=dtype, shards=1 if tied else 3, tie_word_embeddings=tied)
    surgeon.apply(ablated(base, **settings), tmp_path / "out")
    report = surgeon.export_patch(tmp_path / "out", tmp_path / "patch")
    assert report.replaced == 0 and report.reverts
    surgeon.apply_patch(base, tmp_path / "patch", tmp_path / "again", threads=2)
    assert files(tmp_path / "again") == files(tmp_path / "out")
    surgeon.revert_patch(tmp_path / "again", tmp_path / "patch", tmp_path / "back", threads=2)
    assert files(tmp_path / "back") == files(base)


def test_compensated_rounding_and_two_edits_are_factors_too(tmp_path):
    base = toy_llama(tmp_path / "base", 1, dtype=torch.bfloat16)
    other = direction(torch.randn(1, 32, generator=torch.Generator().manual_seed(8)), at="block.0", name="other")
    twice = surgeon.edit("ablate", ablated(base, strength=0.5), directions=other)
    surgeon.apply(Recipe(twice, Output(rounding="compensated")), tmp_path / "out")
    report = surgeon.export_patch(tmp_path / "out", tmp_path / "patch")
    assert report.replaced == 0 and report.corrections > 0
    surgeon.apply_patch(base, tmp_path / "patch", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "out")
    surgeon.revert_patch(tmp_path / "out", tmp_path / "patch", tmp_path / "back")
    assert files(tmp_path / "back") == files(base)


def test_a_recipe_is_exported_without_its_result(tmp_path):
    base = toy_llama(tmp_path / "base", 1, dtype=torch.bfloat16)
    surgeon.export_patch(ablated(base), tmp_path / "patch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "patch"]
    surgeon.apply(ablated(base), tmp_path / "out")
    surgeon.apply_patch(base, tmp_path / "patch", tmp_path / "again")
    assert read_checkpoint(tmp_path / "again").keys() == read_checkpoint(tmp_path / "out").keys()
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "out" / WEIGHTS).read_bytes()


def test_factors_are_small(tmp_path):
    base = toy_llama(
        tmp_path / "base", 1, dtype=torch.bfloat16, hidden_size=512, head_dim=128, intermediate_size=2048,
        num_hidden_layers=1, vocab_size=2000,
    )  # fmt: skip
    rows = direction(torch.randn(1, 512, generator=torch.Generator().manual_seed(1)), at="block.0")
    surgeon.apply(surgeon.edit("ablate", surgeon.open(base), directions=rows), tmp_path / "out")
    report = surgeon.export_patch(tmp_path / "out", tmp_path / "patch")
    held = (tmp_path / "patch/surgeon/factors.safetensors").stat().st_size
    edited = 2 * (2000 * 512 + 512 * 512 + 512 * 2048)
    assert held < edited / 40 and report.size < edited / 10


def fine_tune(base: Path, folder: Path) -> Path:
    tensors = read_checkpoint(base)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        tensors[name] = tensors[name] + torch.ones_like(tensors[name])
    return write_checkpoint(folder, tensors, json.loads((base / "config.json").read_text()) | {"new": 1})


def test_two_folders_give_a_dense_patch_that_is_a_checkpoint_of_what_changed(tmp_path):
    base = toy_llama(tmp_path / "base", 1, shards=2)
    tuned = fine_tune(base, tmp_path / "tuned")
    report = surgeon.export_patch(tuned, tmp_path / "patch", base=base)
    changed = {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}
    assert read_checkpoint(tmp_path / "patch").keys() == changed and report.replaced == 2
    assert [path.name for path in (tmp_path / "patch").glob("*.safetensors")] == [WEIGHTS]
    assert read_checkpoint(tmp_path / "patch/undo").keys() == changed
    surgeon.apply_patch(base, tmp_path / "patch", tmp_path / "again")
    assert files(tmp_path / "again") == files(tuned)
    surgeon.revert_patch(tuned, tmp_path / "patch", tmp_path / "back")
    assert files(tmp_path / "back") == files(base)


def test_dense_on_request_and_one_way(tmp_path):
    base = toy_llama(tmp_path / "base", 1)
    surgeon.apply(ablated(base), tmp_path / "out")
    report = surgeon.export_patch(tmp_path / "out", tmp_path / "patch", dense=True, undo=False)
    assert report.factors == 0 and report.replaced == 7
    surgeon.apply_patch(base, tmp_path / "patch", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "out")
    with pytest.raises(surgeon.RefusedError, match="--no-undo"):
        surgeon.revert_patch(tmp_path / "out", tmp_path / "patch", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def flipped(folder: Path, copy: Path, tensor: str, at: int) -> Path:
    """A copy of a checkpoint with one bit of a tensor turned."""
    from surgeon.store.checkpoint import open_checkpoint

    shutil.copytree(folder, copy)
    stored = open_checkpoint(copy, "copy").tensors[tensor]
    data = bytearray(stored.file.read_bytes())
    data[stored.offset + at] ^= 1
    stored.file.write_bytes(data)
    return copy


@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.layers.0.mlp.down_proj.weight"])
def test_another_base_is_refused_by_the_tensor_and_leaves_nothing(tmp_path, tensor):
    base = toy_llama(tmp_path / "base", 1, dtype=torch.bfloat16)
    surgeon.export_patch(ablated(base), tmp_path / "patch")
    here = sorted(tmp_path.iterdir())
    for at, says in ((0, "other bytes"), (201, f"{tensor} holds other bytes")):  # the first is among those sampled
        other = flipped(base, tmp_path / "other", tensor, at)
        with pytest.raises(surgeon.MismatchError, match=f"is not the base this patch was made of.*{says}"):
            surgeon.apply_patch(other, tmp_path / "patch", tmp_path / "again")
        shutil.rmtree(other)
        assert sorted(tmp_path.iterdir()) == here


def test_a_base_is_another_too_where_a_tensor_differs_that_is_replaced(tmp_path):
    base = toy_llama(tmp_path / "base", 1)
    surgeon.export_patch(fine_tune(base, tmp_path / "tuned"), tmp_path / "patch", base=base)
    other = flipped(base, tmp_path / "other", "model.layers.1.mlp.up_proj.weight", 201)
    with pytest.raises(surgeon.MismatchError, match=r"up_proj\.weight holds other bytes"):
        surgeon.apply_patch(other, tmp_path / "patch", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_does_not_fit_is_said(tmp_path):
    base = toy_llama(tmp_path / "base", 1, dtype=torch.bfloat16)
    surgeon.apply(ablated(base), tmp_path / "out")
    surgeon.export_patch(tmp_path / "out", tmp_path / "patch")
    with pytest.raises(surgeon.MismatchError, match="it is the result already"):
        surgeon.apply_patch(tmp_path / "out", tmp_path / "patch", tmp_path / "again")
    smaller = toy_llama(tmp_path / "smaller", 1, vocab_size=63)
    with pytest.raises(surgeon.MismatchError, match=r"tensors are there in one only or have other shapes"):
        surgeon.apply_patch(smaller, tmp_path / "patch", tmp_path / "again")
    with pytest.raises(surgeon.RefusedError, match="there is nothing a patch could hold"):
        surgeon.export_patch(base, tmp_path / "none", base=base)
    with pytest.raises(surgeon.RefusedError, match="name the base: --base"):
        surgeon.export_patch(base, tmp_path / "none")
    with pytest.raises(surgeon.CheckpointError, match=r"no patch\.json"):
        surgeon.apply_patch(base, base, tmp_path / "again")
    assert not (tmp_path / "none").exists() and not (tmp_path / "again").exists()


def damage(patch: Path, how: str) -> None:
    manifest = json.loads((patch / "patch.json").read_text())
    if how == "a name that leads elsewhere":
        manifest["result"]["files"]["../../x.safetensors"] = manifest["result"]["files"].pop(WEIGHTS)
    elif how == "another result":
        name = "model.embed_tokens.weight"
        manifest["result"]["tensors"][name]["blake3"] = 64 * "0"
    elif how == "an unknown key":
        manifest["run"] = "this"
    else:
        factors = patch / "surgeon/factors.safetensors"
        data = bytearray(factors.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start : start + 100] = bytes(100)
        factors.write_bytes(data if how == "zeros" else data[:-1])
    (patch / "patch.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "how", ["a name that leads elsewhere", "another result", "an unknown key", "zeros", "cut short"]
)
def test_a_damaged_patch_is_an_error_and_leaves_nothing(tmp_path, how):
    base = toy_llama(tmp_path / "base", 1, dtype=torch.bfloat16)
    surgeon.export_patch(ablated(base), tmp_path / "patch")
    damage(tmp_path / "patch", how)
    with pytest.raises(surgeon.CheckpointError):
        surgeon.apply_patch(base, tmp_path / "patch", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "patch"]


def run(monkeypatch, capfd, *arguments) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["surgeon", *map(str, arguments)])
    monkeypatch.setattr(installation, "check", lambda: None)
    with pytest.raises(SystemExit) as end:
        main.run()
    said = capfd.readouterr()
    return int(end.value.code or 0), said.out + said.err


def test_on_the_command_line(tmp_path, monkeypatch, capfd):
    base, out = toy_llama(tmp_path / "base", 1, dtype=torch.bfloat16), tmp_path / "out"
    surgeon.apply(ablated(base), out)
    assert run(monkeypatch, capfd, "export", "patch", out, "-o", tmp_path / "patch")[0] == 0
    code, said = run(monkeypatch, capfd, "patch", "apply", base, tmp_path / "patch", "-o", tmp_path / "again", "--json")
    assert code == 0 and json.loads(said)["is"] == "result" and files(tmp_path / "again") == files(out)
    code, said = run(monkeypatch, capfd, "patch", "revert", out, tmp_path / "patch", "-o", tmp_path / "back")
    assert code == 0 and "bit for bit the base" in said and files(tmp_path / "back") == files(base)
    code, said = run(monkeypatch, capfd, "patch", "apply", out, tmp_path / "patch", "-o", tmp_path / "no")
    assert code == 2 and "is not the base this patch was made of" in said and not (tmp_path / "no").exists()
