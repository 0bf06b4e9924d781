"""A file written tensor by tensor reads back, and bears its name only when it is whole."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from surgeon.store.tensor_file import TensorFile
from surgeon.tensors import TensorSpec

SPECS = {"b": TensorSpec("F32", (2, 3)), "a": TensorSpec("F32", (4,)), "c": TensorSpec("F64", (1,))}
VALUES = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4), "c": torch.tensor([7.0]).double()}


def test_tensors_in_any_order(tmp_path: Path):
    with TensorFile(tmp_path / "new" / "f.safetensors", SPECS, {"surgeon": "{}"}) as file:
        for name in ("c", "a", "b"):
            file.write(name, memoryview(VALUES[name].numpy()))
        assert not (tmp_path / "new/f.safetensors").exists()
        with pytest.raises(ValueError, match="16 bytes of 24"):
            file.write("b", memoryview(VALUES["a"].numpy()))
    with safe_open(tmp_path / "new/f.safetensors", framework="pt") as found:
        assert found.metadata() == {"surgeon": "{}"}
        assert all(torch.equal(found.get_tensor(name), value) for name, value in VALUES.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f.safetensors"]


def test_an_error_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "f.safetensors").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="stopped"), TensorFile(tmp_path / "f.safetensors", SPECS, {}):
        raise RuntimeError("stopped")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f.safetensors", b"before")]
