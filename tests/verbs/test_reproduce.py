"""An output built again from its receipt: identical, or the tensors that differ and why."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.testing.toys import toy_llama

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def root(tmp_path):
    """A base, a fine-tune of it, and their mean with a direction taken out, in two shards."""
    base = toy_llama(tmp_path / "base", 0, dtype=torch.bfloat16)
    tuned = toy_llama(tmp_path / "tuned", 1, base=base, dtype=torch.bfloat16)
    mean = 0.5 * surgeon.open(base) + 0.5 * surgeon.open(tuned)
    rows = direction(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), at="block.0")
    surgeon.apply(surgeon.edit("ablate", mean, directions=rows), tmp_path / "out", shard_size="20kB")
    return tmp_path


def changed(folder, name=NAME):
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_the_same_inputs_give_the_same_bytes(root):
    before = {path.name for path in root.iterdir()}
    verdict = surgeon.reproduce(root / "out")
    assert verdict.exit_code == 0, verdict.explain()
    assert verdict.explain().startswith("Proven: ")
    assert not verdict.findings
    assert {path.name for path in root.iterdir()} == before


def test_what_is_built_again_can_be_kept(root):
    assert surgeon.reproduce(root / "out", root / "again", threads=1).exit_code == 0
    files = [path.name for path in (root / "out").iterdir() if path.suffix == ".safetensors"]
    assert len(files) > 1
    for name in (*files, "config.json"):
        assert (root / "again" / name).read_bytes() == (root / "out" / name).read_bytes()


def test_a_changed_input_is_named_with_what_it_changes(root):
    changed(root / "tuned")
    verdict = surgeon.reproduce(root / "out")
    assert verdict.exit_code == 3
    assert {finding.subject for finding in verdict.findings if finding.kind == "mismatch"} == {NAME}
    assert [finding.subject.rpartition("/")[2] for finding in verdict.findings if finding.kind == "note"] == [NAME]


def test_a_changed_output_is_not_what_its_inputs_give(root):
    shard = json.loads((root / "out/model.safetensors.index.json").read_text())["weight_map"][NAME]
    data = bytearray((root / "out" / shard).read_bytes())
    data[-1] ^= 1
    (root / "out" / shard).write_bytes(data)
    verdict = surgeon.reproduce(root / "out")
    assert verdict.exit_code == 3
    assert len(verdict.findings) == 1


def test_a_changed_side_file_is_found(root):
    (root / "base/config.json").write_text((root / "base/config.json").read_text() + " ")
    verdict = surgeon.reproduce(root / "out")
    assert {finding.subject for finding in verdict.findings} == {"config.json"}


def test_from_the_receipt_alone_with_inputs_elsewhere(root, tmp_path):
    mean = 0.5 * surgeon.open(root / "base") + 0.5 * surgeon.open(root / "tuned")
    surgeon.apply(mean, root / "mean")
    (tmp_path / "mail").mkdir()
    receipt = shutil.copy(root / "mean/surgeon.json", tmp_path / "mail/receipt.json")
    (root / "base").rename(root / "elsewhere")
    with pytest.raises(surgeon.CheckpointError, match="no such file"):
        surgeon.reproduce(receipt)
    assert surgeon.reproduce(receipt, overrides={"models.base": str(root / "elsewhere")}).exit_code == 0


def test_a_receipt_without_its_directions_says_so(root, tmp_path):
    receipt = shutil.copy(root / "out/surgeon.json", tmp_path / "receipt.json")
    with pytest.raises(surgeon.RefusedError, match=r"made with direction\.safetensors"):
        surgeon.reproduce(receipt)


def test_the_hubs_inputs_are_taken_at_their_commit(root):
    """A receipt with a revision asks for that revision, also where the recipe names none."""
    receipt = json.loads((root / "out/surgeon.json").read_text())
    receipt["recipe"]["resolved"] = "surgeon: 1\nmodels: {base: org/base}\nsteps: {result: {combine: base}}\n"
    receipt["inputs"] = [{**receipt["inputs"][0], "ref": "org/base", "revision": "c0ffee"}]
    (root / "receipt.json").write_text(json.dumps(receipt | {"artifacts": {}}))
    with pytest.raises(surgeon.CheckpointError, match="org/base@c0ffee"):
        surgeon.reproduce(root / "receipt.json")


def test_no_receipt_is_refused(root):
    with pytest.raises(surgeon.RefusedError, match=r"holds no surgeon\.json"):
        surgeon.reproduce(root / "base")
