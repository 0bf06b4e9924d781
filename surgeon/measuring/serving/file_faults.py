"""What lies in a folder that one server or another takes for something else: weights, indexes, adapters, modes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase

from surgeon.measuring.files_check import stray_weights
from surgeon.measuring.serving.folder import INDEX, SINGLE, Folder
from surgeon.measuring.verdict import Finding, mismatch
from surgeon.store.formats import listed
from surgeon.store.side_files import is_side_file

_READABLE = stat.S_IRGRP | stat.S_IROTH


def file_faults(folder: Folder) -> Iterator[Finding]:
    """Every fault of the files at the root, by file."""
    yield from (mismatch(name, message) for name, message in folder.damaged.items())
    yield from _second_sets(folder)
    yield from _strays(folder)
    yield from _index(folder)
    yield from _modes(folder)


def _second_sets(folder: Folder) -> Iterator[Finding]:
    """Weights twice: a consolidated file, a single file beside shards."""
    for name in _matching(folder, "consolidated*"):
        hint = "remove it: vLLM reads such files and nothing else"
        yield mismatch(name, "a second set of weights, in the layout of another library", hint)
    if SINGLE in folder.names and _shards(folder):
        hint = f"remove {SINGLE}, or the shards and their index"
        yield mismatch(SINGLE, f"lies beside {listed(_shards(folder), 3)}: servers disagree on which counts", hint)
    if SINGLE not in folder.names and INDEX not in folder.names:
        yield mismatch(INDEX, "is missing: of shards without an index some servers load nothing", "write it again")


def _strays(folder: Folder) -> Iterator[Finding]:
    for name in _matching(folder, "adapter_config.json", "adapter_model.*"):
        hint = "move the adapter into a folder of its own"
        yield mismatch(name, "an adapter beside a model's weights: transformers loads the adapter's base instead", hint)
    explained = {*folder.files, *_shards(folder), *_matching(folder, "consolidated*", "adapter_model.*"), SINGLE}
    for name in stray_weights(folder.root, explained):
        yield mismatch(name, "a weight file that is no part of the model", "remove it, or move it into a subfolder")


def _index(folder: Folder) -> Iterator[Finding]:
    index = folder.index
    if index is None:
        return
    if index.fault:
        yield mismatch(INDEX, index.fault, "write it again from the shards")
        return
    if not index.has_metadata:
        yield mismatch(INDEX, "has no key metadata, without which transformers fails", "add a metadata with total_size")
    if lost := [name for name in index.files if name not in folder.names]:
        yield mismatch(INDEX, f"names files that are not there: {listed(lost, 4)}", "fetch them, or write it again")
    gone = [name for name, file in folder.meant.items() if file in folder.headers and folder.stored(name) is None]
    if gone:
        found = f"names {len(gone)} tensor(s) that their files do not hold: {listed(sorted(gone), 4)}"
        yield mismatch(INDEX, found, "write it again from the shards, or build the shards again")
    if more := sorted(folder.holding(index.files).keys() - index.weight_map.keys()):
        yield mismatch(INDEX, f"lacks {len(more)} tensor(s) of its files: {listed(more, 4)}", "write it again")


def _modes(folder: Folder) -> Iterator[Finding]:
    """Files that a server under another user cannot open."""
    needed = sorted({*folder.names.intersection(folder.files), *filter(is_side_file, folder.names), INDEX})
    for path in (folder.root / name for name in needed if (folder.root / name).exists()):
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & _READABLE:
            found = f"may be read by its owner alone (mode {mode:04o}): a server in a container cannot"
            yield mismatch(path.name, found, f"chmod 644 {path}")


def _shards(folder: Folder) -> list[str]:
    """Parts of a set of several files, by the index or by their names."""
    named = folder.index.files if folder.index is not None else ()
    return sorted({*_matching(folder, "model-*-of-*.safetensors"), *folder.names.intersection(named)} - {SINGLE})


def _matching(folder: Folder, *patterns: str) -> list[str]:
    return [name for name in sorted(folder.names) if any(fnmatchcase(name, pattern) for pattern in patterns)]
