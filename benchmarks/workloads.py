"""What is compared: each workload in surgeon's words and in mergekit's, the right values, and what is demanded."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from make_models import ALPHA, MODELS, RANK, direction

READER, WRITER = "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj"
WEIGHTS = {"base": 0.5, "math": 0.3, "code": 0.2}
TIES = {"math": {"weight": 0.6, "density": 0.3}, "code": {"weight": 0.4, "density": 0.3}}
SCALE = 0.5

Config = dict[str, object]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Workload:
    """One thing to do, told to each program in its own words, and what is demanded of surgeon."""

    name: str
    inputs: tuple[str, ...]
    steps: Config = field(default_factory=dict)
    """Of surgeon's recipe; without them surgeon is given mergekit's."""
    expected: Callable[[Tensors], torch.Tensor] | None = None
    """The right values of the sample; without them the result is held against mergekit's."""
    peer: Callable[[Path], Config] | None = None
    copy_floor: float | None = None
    """Surgeon may take this many times the copy loop."""
    peer_floor: float | None = None
    """Surgeon must be this many times as fast as mergekit."""
    beside: str | None = None
    """Another workload that surgeon runs right before this one, or `bare_svds.py` with these words, and how many times
    its time this one may take."""
    beside_floor: float | None = None
    output: Config = field(default_factory=dict)
    """How the recipe wants its result written."""
    sample: str = READER
    """The layer whose weight is checked."""
    roundings: int = 1
    """How many roundings to bfloat16 the right value may be away."""
    random: bool = False
    """Whether entries are drawn: then only the size of the change is held against mergekit's."""
    family: str = ""
    """What the folders of its models begin with."""

    @property
    def slug(self) -> str:
        """The name, fit for a file."""
        return re.sub(r"\W+", "-", self.name)

    @property
    def edits(self) -> bool:
        """Whether a direction is removed."""
        return self.sample == WRITER


def expected_linear(tensors: Tensors) -> torch.Tensor:
    """The weighted average, in double precision."""
    return torch.stack([weight * tensors[name].double() for name, weight in WEIGHTS.items()]).sum(0)


def expected_adapter(tensors: Tensors) -> torch.Tensor:
    """The base plus the scaled product of the adapter's factors."""
    return tensors["base"].double() + SCALE * ALPHA / RANK * product(tensors, "adapter")


def product(tensors: Tensors, adapter: str) -> torch.Tensor:
    """B A of an adapter, in double precision."""
    return tensors[f"{adapter} lora_B"].double() @ tensors[f"{adapter} lora_A"].double()


def trimmed(change: torch.Tensor, density: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries of greatest magnitude, and where a trim may choose among entries of one magnitude."""
    size = change.abs()
    least, next_least = size.flatten().topk(int(density * size.numel()) + 1).values[-2:]
    return change * (size >= least), (size == least) | (size == next_least)


def expected_ties(tensors: Tensors) -> torch.Tensor:
    """TIES as its paper has it, trimmed per tensor; NaN where equal magnitudes or a tied election leave a choice."""
    base = tensors["base"].double()
    parts = [trimmed(tensors[name].double() - base, settings["density"]) for name, settings in TIES.items()]
    weights = torch.tensor([settings["weight"] for settings in TIES.values()], dtype=torch.float64).reshape(-1, 1, 1)
    changes = weights * torch.stack([part for part, _ in parts])
    total = changes.sum(0)
    tied = total.abs() < 1e-6 * changes.abs().sum(0)
    agree = (changes.sign() == total.sign()) & (changes != 0)
    merged = base + (changes * agree).sum(0) / (weights * agree).sum(0).clamp_min(1e-12)
    return merged.masked_fill(tied | parts[0][1] | parts[1][1], torch.nan)


def peer_linear(models: Path) -> Config:
    """The average in mergekit's YAML."""
    members = [{"model": str(models / name), "parameters": {"weight": weight}} for name, weight in WEIGHTS.items()]
    return {"merge_method": "linear", "dtype": "bfloat16", "models": members}


def peer_ties(models: Path) -> Config:
    """TIES in mergekit's YAML."""
    members = [{"model": str(models / name), "parameters": settings} for name, settings in TIES.items()]
    settings = {"base_model": str(models / "base"), "parameters": {"normalize": True}}
    return {"merge_method": "ties", "dtype": "bfloat16", "models": members, **settings}


def linear_step() -> Config:
    """The average as a step of a recipe."""
    return {"merge": "linear", "models": {name: {"weight": weight} for name, weight in WEIGHTS.items()}}


def ties_step() -> Config:
    """TIES as a step of a recipe, its votes weighed as mergekit weighs them."""
    return {"merge": "ties", "elect": "weighted", "base_model": "base", "models": TIES}


def ablated(weight: torch.Tensor) -> torch.Tensor:
    """A writer of the residual stream without what it writes along the direction."""
    row = direction().double()
    return weight - torch.outer(row, row @ weight) / (row @ row)


def expected_ablated(tensors: Tensors) -> torch.Tensor:
    """The base, ablated."""
    return ablated(tensors["base"].double())


def expected_merged_and_ablated(tensors: Tensors) -> torch.Tensor:
    """TIES plus the adapter, ablated; a column in which TIES leaves a choice is NaN."""
    change = expected_adapter(tensors) - tensors["base"].double()
    return ablated(expected_ties(tensors) + change)


def ablate_step(of: str) -> Config:
    """The ablation of every writer as a step of a recipe."""
    return {"edit": "ablate", "of": of, "directions": ["removed"]}


ALONE = (
    Workload("linear", MODELS, {"out": linear_step()}, expected_linear, peer_linear, copy_floor=1.3, peer_floor=10),
    Workload("ties", MODELS, {"out": ties_step()}, expected_ties, peer_ties, peer_floor=15),
    Workload(
        "base + 0.5*adapter",
        ("base", "adapter"),
        {"out": {"combine": f"base + {SCALE}*adapter"}},
        expected_adapter,
        copy_floor=1.3,
    ),
    Workload("ablate", ("base",), {"out": ablate_step("base")}, expected_ablated, copy_floor=1.3, sample=WRITER),
    Workload(
        "ablate, compensated",
        ("base",),
        {"out": ablate_step("base")},
        expected_ablated,
        beside="ablate",
        beside_floor=2,
        output={"rounding": "compensated"},
        sample=WRITER,
        roundings=2,
    ),
    Workload(
        "ties + adapter, ablated",
        (*MODELS, "adapter"),
        {
            "merged": ties_step(),
            "styled": {"combine": f"merged + {SCALE}*adapter"},
            "out": ablate_step("styled"),
        },
        expected_merged_and_ablated,
        beside="ties",
        beside_floor=1.5,
        sample=WRITER,
    ),
)
"""Arithmetic, TIES, edits; the other merges are in `merge_workloads`."""
