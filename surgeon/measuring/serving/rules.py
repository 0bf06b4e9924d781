"""Which files of a folder each server reads: one declared entry a server, and what follows from it for a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from surgeon.measuring.serving.folder import INDEX, SINGLE, Folder
from surgeon.store.formats import listed

_ANY = "*.safetensors"
_CONSOLIDATED = "consolidated*.safetensors"
_SHARDS = "model*.safetensors"


@dataclass(frozen=True)
class Rules:
    """How one server picks its weights.

    `order`: what it looks for (a glob, or the index for the files named there); the first that is there is all it
    reads. `index`: what an index beside a glob does: nothing, keep the files it names, or must agree with them exactly.
    `skips`: words in a file's name at which the file is left out. `strangers`: whether a tensor that the model lacks
    ends the load. `twice`: whether one tensor in two files does; otherwise the last file counts.
    """

    server: str
    order: tuple[str, ...]
    index: str = "ignored"
    skips: tuple[str, ...] = ()
    strangers: bool = False
    twice: bool = False
    needs_metadata: bool = False
    follows_adapter: bool = False
    fills: bool = False


#: As read in or tried with transformers 5.23, vLLM 0.32, SGLang 0.5, TGI 3, TensorRT-LLM, LMDeploy, llama.cpp, mlx-lm.
SERVERS = (
    Rules("transformers", (SINGLE, INDEX), needs_metadata=True, follows_adapter=True, fills=True),
    Rules("vLLM", (_CONSOLIDATED, _ANY), index="filters", strangers=True),
    Rules("SGLang", (_ANY,), index="filters"),
    Rules("TGI", (_ANY,), skips=("arguments", "args", "training"), twice=True),
    Rules("TensorRT-LLM", (_ANY,), skips=("consolidated",)),
    Rules("LMDeploy (pytorch)", (SINGLE, INDEX)),
    Rules("LMDeploy (turbomind)", (INDEX, _SHARDS)),
    Rules("llama.cpp convert", (_SHARDS,), index="exact", strangers=True),
    Rules("MLX", (_SHARDS,), strangers=True),
)


@dataclass(frozen=True)
class Reading:
    """What one server does with a folder: the files it reads, why it refuses (''), or how it goes wrong ('')."""

    server: str
    files: tuple[str, ...]
    refusal: str = ""
    wrong: str = ""

    @property
    def verdict(self) -> str:
        """``loads``, ``refuses`` or ``other weights``."""
        return "refuses" if self.refusal else "other weights" if self.wrong else "loads"

    @property
    def detail(self) -> str:
        """The reason, or the files."""
        return self.refusal or self.wrong or listed(self.files, 4)


def rules_of(server: str) -> Rules:
    """The entry of a server by its name in the table."""
    return next(rules for rules in SERVERS if rules.server == server)


def read_by(rules: Rules, folder: Folder) -> Reading:
    """What a server does with a folder."""
    files = _files(rules, folder)
    refusal = next(_refusals(rules, folder, files), "")
    wrong = "" if refusal else next(_wrongs(rules, folder, files), "")
    return Reading(rules.server, files, refusal, wrong)


def _files(rules: Rules, folder: Folder) -> tuple[str, ...]:
    """The weight files it opens, in the order it opens them."""
    index = folder.index
    for looked in rules.order:
        if looked == INDEX:
            if index is not None:
                return index.files
            continue
        found = [name for name in sorted(folder.names) if fnmatchcase(name, looked)]
        found = [name for name in found if not any(word in name for word in rules.skips)]
        if rules.index == "filters" and looked != _CONSOLIDATED and index is not None and not index.fault:
            found = [name for name in found if name in index.files]
        if found:
            return tuple(found)
    return ()


def _refusals(rules: Rules, folder: Folder, files: tuple[str, ...]) -> Iterator[str]:
    """Why it would not load the folder, the first reason first."""
    index, by_index = folder.index, rules.index != "ignored" or (INDEX in rules.order and SINGLE not in files)
    if index is not None and by_index and index.fault:
        yield f"{INDEX} {index.fault}"
    if not files:
        yield f"finds no weights: it looks for {', '.join(rules.order)}"
    if index is not None and by_index and not index.has_metadata and rules.needs_metadata:
        yield f"{INDEX} has no key metadata"
    if index is not None and by_index and (lost := [name for name in index.files if name not in folder.names]):
        yield f"{INDEX} names files that are missing: {listed(lost, 3)}"
    for name in (name for name in files if name in folder.damaged):
        yield folder.damaged[name]
    held = folder.holding(files)
    if index is not None and rules.index == "exact" and held.keys() != index.weight_map.keys():
        other = sorted(held.keys() ^ index.weight_map.keys())
        yield f"{INDEX} and the files disagree on {listed(other, 3)}"
    if rules.twice and (twice := _twice(folder, files)):
        yield f"holds {twice[0]} in several files"
    strangers = sorted(n for n, file in held.items() if n not in folder.meant and file not in folder.files)
    if strangers and rules.strangers and not _alone(folder, files):
        yield f"{held[strangers[0]]} holds tensors that the model has not: {listed(strangers, 3)}"


def _alone(folder: Folder, files: tuple[str, ...]) -> bool:
    """Whether it reads a whole set of weights of its own kind, whose names say nothing of a stray file."""
    return not set(files) & set(folder.files)


def _wrongs(rules: Rules, folder: Folder, files: tuple[str, ...]) -> Iterator[str]:
    """How what it loads differs from what is meant."""
    if rules.follows_adapter and "adapter_config.json" in folder.names:
        yield "loads the base that adapter_config.json names instead, and the adapter on it"
    if _alone(folder, files):
        yield f"reads {listed(files, 3)} instead"
    held = folder.holding(files)
    if lost := sorted(folder.meant.keys() - held.keys()):
        yield f"does not find {listed(lost, 3)}" + (": fills it with random numbers and warns" if rules.fills else "")
    if moved := sorted(name for name, file in folder.meant.items() if held[name] != file):
        yield f"takes {len(moved)} tensor(s) from {held[moved[0]]}, not from {folder.meant[moved[0]]}"


def _twice(folder: Folder, files: tuple[str, ...]) -> list[str]:
    count: dict[str, int] = {}
    for name in (name for file in files if file in folder.headers for name in folder.headers[file].tensors):
        count[name] = count.get(name, 0) + 1
    return sorted(name for name, times in count.items() if times > 1)
