"""What `verify` refuses before it looks at anything."""

import pytest

import surgeon


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(surgeon.RefusedError, match="no such file or folder"):
        surgeon.verify(tmp_path / "nothing")


def test_a_folder_without_a_receipt(tmp_path):
    with pytest.raises(surgeon.RefusedError, match="--recipe"):
        surgeon.verify(tmp_path)


def test_a_single_file_without_a_recipe(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(surgeon.RefusedError, match="--recipe"):
        surgeon.verify(tmp_path / "model.safetensors")
