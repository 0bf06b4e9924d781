"""How each tool merges the same experts, with the result's weights in a judge's model: surgeon, mergekit, PEFT."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from merging_data import DATA, Folders
from merging_grid import Entry, Settings
from merging_judge import Judge
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import surgeon
from surgeon.measuring.trial import edited
from surgeon.planning.options import Options

PER_MODEL = ("weight", "density", "gamma", "epsilon")
"""mergekit's settings that are written at each model."""


@dataclass
class Bench:
    """Where the models are, and the judge that holds one."""

    model: Path
    adapters: Path
    work: Path
    mergekit: Path | None
    threads: int
    judge: Judge

    @property
    def all_folders(self) -> Folders:
        """Of the base model, of the adapters, and to work in."""
        return self.model, self.adapters, self.work

    def folders(self, experts: Sequence[str]) -> list[Path]:
        """The experts' adapters."""
        return [self.adapters / expert for expert in experts]


@contextmanager
def by_surgeon(bench: Bench, experts: Sequence[str], entry: Entry, settings: Settings) -> Iterator[float]:
    """Merged in memory, tensors that differ from the base alone; the seconds count planning and reading too.

    What data-using methods measure before is measured once, and its seconds are counted each time.
    """
    before = 0.0
    if entry.data:
        settings, before = DATA[entry.data](bench.all_folders, experts, settings)
    begun = time.monotonic()
    expr = expression(bench, experts, entry, settings)
    with edited(bench.judge.loaded, expr, Options(device="cpu", threads=bench.threads)):
        yield before + time.monotonic() - begun


def expression(bench: Bench, experts: Sequence[str], entry: Entry, settings: Settings) -> surgeon.Expr:
    """The merge as surgeon's API has it, or as a recipe."""
    if "recipe" in settings:
        return surgeon.load_recipe(settings["recipe"]).expr
    base = surgeon.open(bench.model)
    adapters = [surgeon.open(folder) for folder in bench.folders(experts)]
    if entry.points:
        return surgeon.merge(entry.method, [base + adapter for adapter in adapters], **settings)
    return surgeon.merge(entry.method, adapters, base_model=base, **settings)


@contextmanager
def by_mergekit(bench: Bench, experts: Sequence[str], entry: Entry, settings: Settings) -> Iterator[float]:
    """The command, from start to exit, on checkpoints with the adapters merged in; everything in float32."""
    out, config = bench.work / "mergekit-out", bench.work / "mergekit.yaml"
    shutil.rmtree(out, ignore_errors=True)
    config.write_text(json.dumps(mergekit_config(bench, experts, entry, settings)))
    command = [str(bench.mergekit), str(config), str(out), "--lazy-unpickle", "--quiet", "--random-seed", "1"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.monotonic() - begun
    if done.returncode:
        raise RuntimeError(f"mergekit {entry.method}: {done.stderr[-600:]}")
    found = [load_file(path) for path in sorted(out.glob("*.safetensors"))]
    with bench.judge.having({name: tensor for one in found for name, tensor in one.items()}):
        yield took
    shutil.rmtree(out)


def mergekit_config(bench: Bench, experts: Sequence[str], entry: Entry, settings: Settings) -> dict[str, Any]:
    """mergekit's recipe; it is JSON, which is YAML. A base model would be averaged in with points."""
    own = {name: value for name, value in settings.items() if name in PER_MODEL}
    shared = {name: value for name, value in settings.items() if name not in PER_MODEL}
    models = [{"model": str(checkpoint(bench, expert)), "parameters": own} for expert in experts]
    config = {"merge_method": entry.method, "dtype": "float32", "models": models, "parameters": shared}
    return config if entry.points else config | {"base_model": str(checkpoint(bench, None))}


def checkpoint(bench: Bench, expert: str | None) -> Path:
    """A float32 checkpoint of the base, or of it with an expert's adapter merged in by PEFT; made once."""
    folder = bench.work / "checkpoints" / (expert or "base")
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in bench.model.iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, folder)
        weights = load_file(bench.model / "model.safetensors")
        merged = {name: tensor.float() for name, tensor in weights.items()}
        if expert:
            merged |= with_adapter(bench, bench.adapters / expert)
        save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_adapter(bench: Bench, adapter: Path) -> dict[str, Tensor]:
    """The weights that an adapter changes, merged in by PEFT, in float32."""
    with _peft(bench, [adapter]) as peft:
        return _merged(peft, adapter.name)


@contextmanager
def by_peft(bench: Bench, experts: Sequence[str], entry: Entry, settings: Settings) -> Iterator[float]:
    """`add_weighted_adapter` with loaded adapters, and the new adapter merged into the weights; loading not counted."""
    shared = {name: value for name, value in settings.items() if name != "weight"}
    with _peft(bench, bench.folders(experts)) as peft:
        torch.manual_seed(0)
        begun = time.monotonic()
        weights = [settings["weight"]] * len(experts)
        if entry.method.endswith("svd"):
            # Room for all, in the reduced form: the default keeps one adapter's rank, and takes minutes.
            configs: Any = peft.peft_config
            ranks = sum(configs[expert].r for expert in experts)
            shared |= {"svd_rank": ranks, "svd_full_matrices": False}
        tuner: Any = peft.base_model
        tuner.add_weighted_adapter(list(experts), weights, "merged", entry.method, **shared)
        found = _merged(peft, "merged")
        took = time.monotonic() - begun
    with bench.judge.having(found):
        yield took


@contextmanager
def _peft(bench: Bench, folders: Sequence[Path]) -> Iterator[PeftModel]:
    """The judge's model inside PEFT, with adapters; taken out again."""
    first, *others = folders
    peft = PeftModel.from_pretrained(bench.judge.loaded.model, str(first), adapter_name=first.name)
    try:
        for folder in others:
            peft.load_adapter(str(folder), adapter_name=folder.name)
        yield peft
    finally:
        peft.unload()


@torch.no_grad()
def _merged(peft: PeftModel, name: str) -> dict[str, Tensor]:
    """The changed weights as the base model names them."""
    found = {}
    model: Any = peft.get_base_model()
    for path, layer in model.named_modules():
        if name in getattr(layer, "lora_A", {}):
            found[f"{path}.weight"] = layer.base_layer.weight + layer.get_delta_weight(name)
    return found


TOOLS: Mapping[str, Callable[..., Any]] = {"surgeon": by_surgeon, "mergekit": by_mergekit, "peft": by_peft}
