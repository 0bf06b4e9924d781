"""Receipts name those of their inputs, and `verify` follows them."""

import json

import pytest
from blake3 import blake3
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.testing.toys import toy_llama

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def root(tmp_path):
    """base, tuned → first → second → third: each made from the one before and the base."""
    base = toy_llama(tmp_path / "base", 0)
    toy_llama(tmp_path / "tuned", 1, base=base)
    before = "tuned"
    for name in ("first", "second", "third"):
        surgeon.apply(0.5 * surgeon.open(base) + 0.5 * surgeon.open(tmp_path / before), tmp_path / name)
        before = name
    return tmp_path


def receipt(folder):
    return json.loads((folder / "surgeon.json").read_text())


def change(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_an_input_with_a_receipt_is_named_by_its_hash(root):
    held = {one["name"]: one["receipt"] for one in receipt(root / "second")["inputs"]}
    assert sorted(held.values(), key=str) == sorted(
        [None, blake3((root / "first/surgeon.json").read_bytes()).hexdigest()], key=str
    )


def test_the_whole_chain_is_followed(root):
    verdict = surgeon.verify(root / "third")
    assert verdict.exit_code == 0, verdict.explain()
    assert verdict.checked["receipts"] == 2
    assert "2 receipt(s) behind it hold" in verdict.explain()


def test_another_receipt_is_noticed(root):
    path = root / "second/surgeon.json"
    path.write_text(json.dumps(receipt(root / "second")))
    verdict = surgeon.verify(root / "third")
    assert verdict.exit_code == 4
    assert "own receipt is not the one it had" in verdict.explain()
    path.unlink()
    assert "own receipt is gone" in surgeon.verify(root / "third").explain()


def test_another_receipt_further_down_is_noticed(root):
    (root / "first/surgeon.json").write_text(json.dumps(receipt(root / "first")))
    verdict = surgeon.verify(root / "third")
    assert verdict.exit_code == 4
    assert "›" in verdict.explain()
    assert verdict.checked["receipts"] == 1


def test_where_the_chain_ends_is_said(root):
    (root / "tuned").rename(root / "gone")
    (root / "first").rename(root / "gone too")
    verdict = surgeon.verify(root / "third")
    assert verdict.exit_code == 0, verdict.explain()
    assert "what it was made from is not here" in verdict.explain()


def test_an_input_changed_after_its_receipt(root):
    """Its own receipt tells that what was read of it is not what was made."""
    change(root / "first")
    surgeon.apply(0.5 * surgeon.open(root / "base") + 0.5 * surgeon.open(root / "first"), root / "fourth")
    verdict = surgeon.verify(root / "fourth")
    assert verdict.exit_code == 4
    assert [finding.subject.partition("/")[2] for finding in verdict.findings] == [NAME]


def test_a_receipt_of_before_chains_is_still_read(root):
    content = receipt(root / "first")
    for one in content["inputs"]:
        del one["receipt"]
    (root / "first/surgeon.json").write_text(json.dumps(content))
    assert surgeon.verify(root / "first").exit_code == 0
