"""A shard in which nothing changes is copied as one file."""

from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.store.writer import FolderWriter
from surgeon.testing.toys import read_checkpoint, toy_llama, write_checkpoint


def test_an_untouched_shard_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = toy_llama(tmp_path / "base", shards=3, dtype=torch.bfloat16)
    changed = read_checkpoint(base)
    changed["lm_head.weight"] = changed["lm_head.weight"] + 1
    write_checkpoint(tmp_path / "tuned", changed, shards=3)
    whole: list[str] = []
    copy_file = FolderWriter.copy_file

    def noted(self: FolderWriter, shard, source: Path) -> None:
        whole.append(shard.name)
        copy_file(self, shard, source)

    def refused(self: FolderWriter, tensor: str, source) -> None:
        raise AssertionError(f"{tensor} was copied on its own")

    monkeypatch.setattr(FolderWriter, "copy_file", noted)
    monkeypatch.setattr(FolderWriter, "copy", refused)
    surgeon.apply(surgeon.open(base), tmp_path / "same")
    assert sorted(whole) == sorted(path.name for path in base.glob("*.safetensors"))
    for path in base.glob("*.safetensors"):
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    assert surgeon.verify(tmp_path / "same").exit_code == 0
