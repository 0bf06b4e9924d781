"""The folder writer: any order, any thread, the bytes safetensors would write; clear words when the disk fails."""

import errno
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from surgeon.errors import OutputError, RunError
from surgeon.store.files import Files
from surgeon.store.header import Stored, read_header
from surgeon.store.layout import Layout, lay_out
from surgeon.store.writer import FolderWriter
from surgeon.tensors import TensorSpec
from tests.support import disks


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (300, 64), "a.weight": (64, 64), "a.bias": (64,), "scalar": (), "empty": (0, 3)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return made | {"half": torch.randn(33, 7, generator=generator).bfloat16(), "ids": torch.arange(5)}


DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


def specs(made: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in made.items()}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def stored(folder: Path, layout: Layout, name: str) -> bytes:
    place = layout.tensors[name]
    return (folder / place.file).read_bytes()[place.offset : place.offset + place.spec.nbytes]


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.fixture(params=[None, 20_000], ids=["one file", "shards"])
def laid(request: pytest.FixtureRequest) -> Layout:
    return lay_out(specs(tensors()), None, request.param)


def test_blocks_in_any_order_from_many_threads_make_the_reference_file(tmp_path: Path, laid: Layout):
    made = tensors()
    blocks = [
        (name, at, raw(made[name])[at : at + 1000]) for name in made for at in range(0, len(raw(made[name])), 1000)
    ]
    writer = FolderWriter(tmp_path / "out", laid)
    writer.create()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda block: writer.write(*block), reversed(blocks)))
    writer.sync(file.name for file in laid.files)
    writer.finish([], {})
    writer.close()
    assert_equal(loaded(tmp_path / "out"), made)
    save_file(made, tmp_path / "reference", {"format": "pt"})
    if len(laid.files) == 1:
        assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "reference").read_bytes()
    index = tmp_path / "out/model.safetensors.index.json"
    assert (index.read_bytes() if index.exists() else None) == laid.index


def test_a_memoryview_of_wider_elements_is_written_as_bytes(tmp_path: Path):
    made = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    writer = FolderWriter(tmp_path, lay_out(specs(made), None, None))
    writer.create()
    writer.write("a", 0, made["a"].numpy().data)
    writer.close()
    assert_equal(loaded(tmp_path), made)


@pytest.mark.parametrize("failure", [None, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, "zero", "short"])
def test_a_copy_is_the_source_s_bytes_whatever_the_kernel_does(
    tmp_path: Path, laid: Layout, failure: int | str | None, monkeypatch: pytest.MonkeyPatch
):
    made = tensors()
    save_file(made, tmp_path / "source.safetensors", {"kept": "out"})
    real = os.copy_file_range

    def kernel(source: int, target: int, count: int, *offsets: int) -> int:
        if isinstance(failure, int):
            raise OSError(failure, os.strerror(failure))
        return real(
            source, target, 0 if failure == "zero" else min(count, 777) if failure == "short" else count, *offsets
        )

    monkeypatch.setattr(os, "copy_file_range", kernel)
    writer = FolderWriter(tmp_path / "out", laid)
    writer.create()
    for name, source in read_header(tmp_path / "source.safetensors").tensors.items():
        writer.copy(name, source)
    writer.close()
    assert_equal(loaded(tmp_path / "out"), made)


def test_short_reads_and_writes_are_looped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = tensors()
    layout = lay_out(specs(made), None, None)
    writer = FolderWriter(tmp_path, layout)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:501], at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:333]], at))
    writer.create()
    for name, tensor in made.items():
        writer.write(name, 0, raw(tensor))
        place, read = layout.tensors[name], bytearray(len(raw(tensor)))
        Files().fill(Stored(tmp_path / place.file, place.offset, place.spec), 0, memoryview(read))
        assert read == raw(tensor)
    writer.close()
    assert_equal(loaded(tmp_path), made)


def test_a_whole_file_is_copied(tmp_path: Path):
    made = tensors()
    save_file(made, tmp_path / "source", {"format": "pt"})
    layout = lay_out(specs(made), None, None)
    writer = FolderWriter(tmp_path / "out", layout)
    writer.create()
    writer.copy_file(layout.files[0], tmp_path / "source")
    writer.close()
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_source_that_ends_early_is_named(tmp_path: Path):
    (tmp_path / "source").write_bytes(b"x" * 10)
    spec = TensorSpec("F32", (4,))
    writer = FolderWriter(tmp_path / "out", lay_out({"a": spec}, None, None))
    writer.create()
    with pytest.raises(RunError, match=r"source ended 6 B early while copying a"):
        writer.copy("a", Stored(tmp_path / "source", 0, spec))
    with pytest.raises(RunError, match="gone"):
        writer.copy("a", Stored(tmp_path / "gone", 0, spec))
    writer.close()


def test_bytes_outside_a_tensor_are_never_written(tmp_path: Path):
    writer = FolderWriter(tmp_path, lay_out({"a": TensorSpec("F32", (4,)), "b": TensorSpec("F32", (4,))}, None, None))
    writer.create()
    for start, data in [(-1, b"xx"), (15, b"xx"), (16, b"x")]:
        with pytest.raises(ValueError, match="of 16"):
            writer.write("a", start, data)
    with pytest.raises(ValueError, match="a copy"):
        writer.copy("a", Stored(tmp_path / "model.safetensors", 0, TensorSpec("F32", (3,))))
    writer.close()


def test_create_again_keeps_what_is_written_and_remakes_what_is_broken(tmp_path: Path):
    made = tensors()
    layout = lay_out(specs(made), None, 16_500)
    first = FolderWriter(tmp_path, layout)
    first.create()
    for name, tensor in made.items():
        first.write(name, 0, raw(tensor))
    first.close()
    short, torn, kept = (tmp_path / layout.files[i].name for i in (0, 1, 2))
    os.truncate(short, 30)
    with torn.open("r+b") as file:
        file.write(b"\0" * 20)
    again = FolderWriter(tmp_path, layout)
    again.create()
    for file in layout.files:
        assert (tmp_path / file.name).stat().st_size == file.size
        assert (tmp_path / file.name).read_bytes().startswith(file.header)
        for name in file.tensors:
            redone = (tmp_path / file.name) in (short, torn)
            assert stored(tmp_path, layout, name) == (bytes(made[name].nbytes) if redone else raw(made[name]))
    assert kept.exists()
    again.close()


def test_modes_do_not_depend_on_the_umask_and_side_files_are_copied_as_they_are(tmp_path: Path, laid: Layout):
    source = tmp_path / "config.json"
    source.write_bytes(b'{"a": 1}\r\n\xff')
    source.chmod(0o600)
    (tmp_path / "link.json").symlink_to(source)
    before = os.umask(0o077)
    try:
        writer = FolderWriter(tmp_path / "out", laid)
        writer.create()
        side = [(source, "config.json"), (tmp_path / "link.json", "chat/link.json"), (source, "patched.json")]
        writer.finish(side, {"surgeon/recipe.yaml": b"surgeon: 1\n", "patched.json": b"{}"})
        writer.close()
    finally:
        os.umask(before)
    out = tmp_path / "out"
    assert (out / "config.json").read_bytes() == (out / "chat/link.json").read_bytes() == source.read_bytes()
    assert not (out / "chat/link.json").is_symlink()
    assert (out / "patched.json").read_bytes() == b"{}"
    assert (out / "surgeon/recipe.yaml").read_bytes() == b"surgeon: 1\n"
    for path in [out, *out.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "model.safetensors"])
def test_a_side_file_never_leaves_the_folder_or_replaces_weights(tmp_path: Path, name: str):
    (tmp_path / "source").write_text("x")
    writer = FolderWriter(tmp_path / "out", lay_out({"a": TensorSpec("F32", (4,))}, None, None))
    writer.create()
    with pytest.raises(OutputError, match="side file"):
        writer.finish([(tmp_path / "source", name)], {})
    writer.close()
    assert {path.name for path in tmp_path.rglob("*")} == {"source", "out", "model.safetensors"}


def test_all_files_and_folders_are_synced_after_their_last_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.add(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    writer = FolderWriter(tmp_path, lay_out(specs(tensors()), None, 20_000))
    writer.create()
    writer.finish([], {"surgeon/recipe.yaml": b"x"})
    writer.close()
    assert synced == {str(path) for path in [tmp_path, *tmp_path.rglob("*")]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MB."""
    with disks.small_disk(tmp_path / "disk", "2m") as disk:
        yield disk


def test_a_full_disk_shows_before_any_tensor_is_written_and_is_not_kept_full(small_disk: Path):
    layout = lay_out({"a": TensorSpec("U8", (1_500_000,)), "b": TensorSpec("U8", (1_500_000,))}, None, 1_500_000)
    writer = FolderWriter(small_disk / "data", layout)
    with pytest.raises(RunError, match=r"disk.* is full(.|\n)*free 9\d\d\.\d kB \(9\d{5} bytes\).*again to resume"):
        writer.create()
    writer.close()
    assert list((small_disk / "data").iterdir()) == []


def test_a_disk_that_fills_up_later_is_told_too(small_disk: Path):
    writer = FolderWriter(small_disk, lay_out({"a": TensorSpec("U8", (1000,))}, None, None))
    writer.create()
    with pytest.raises(RunError, match="is full"):
        writer.finish([], {"big": b"x" * 3_000_000})
    writer.close()


def test_a_read_only_disk_is_refused_by_name(small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    writer = FolderWriter(small_disk / "data", lay_out({"a": TensorSpec("U8", (1000,))}, None, None))
    with pytest.raises(OutputError, match=r"disk/data cannot be used(.|\n)*Read-only"):
        writer.create()
    writer.close()


def test_one_descriptor_a_file_however_many_threads(tmp_path: Path, laid: Layout, monkeypatch: pytest.MonkeyPatch):
    writer = FolderWriter(tmp_path, laid)
    writer.create()
    slow = os.open
    monkeypatch.setattr(os, "open", lambda *arguments: (time.sleep(0.01), slow(*arguments))[1])
    before = len(os.listdir("/proc/self/fd"))
    start = threading.Barrier(8)

    def touch(_: int) -> None:
        start.wait()
        for name in laid.tensors:
            writer.write(name, 0, b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(touch, range(8)))
    assert len(os.listdir("/proc/self/fd")) == before + len(laid.files)
    writer.close()
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before
