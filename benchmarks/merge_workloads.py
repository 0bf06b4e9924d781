"""More merges to compare: mergekit's methods on its own YAML, spectral ones beside bare decompositions, adapters."""

from functools import partial
from pathlib import Path

import torch
from make_models import ADAPTERS, ALPHA, MODELS, RANK, SHORT
from workloads import Config, Tensors, Workload, product

HALF = {"weight": 0.5}
EACH, SUM = "bare_svds.py --of each", "bare_svds.py --of sum"
"""What TSV-M decomposes at least, and Iso-C."""

Matrices = list[torch.Tensor]


def peer(method: str, own: Config, shared: Config, models: Path, *, points: int = 0) -> Config:
    """mergekit's YAML: the fine-tunes over the base, or with `points` so many models by themselves."""
    names = MODELS[:points] or MODELS[1:]
    members = [{"model": str(models / name), "parameters": own} for name in names]
    config: Config = {"merge_method": method, "dtype": "bfloat16", "models": members, "parameters": shared}
    return config if points == len(MODELS) else config | {"base_model": str(models / "base")}


def task_vectors(tensors: Tensors) -> Matrices:
    """Of the fine-tunes, in double precision."""
    return [tensors[name].double() - tensors["base"].double() for name in MODELS[1:]]


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def expected_tsv_m(tensors: Tensors) -> torch.Tensor:
    """TSV-M as its paper has it, in double precision."""
    vectors = task_vectors(tensors)
    kept = min(vectors[0].shape) // len(vectors)
    parts = [torch.linalg.svd(vector, full_matrices=False) for vector in vectors]
    u = polar(torch.cat([part.U[:, :kept] for part in parts], 1))
    v = polar(torch.cat([part.Vh[:kept] for part in parts]).T)
    return tensors["base"].double() + (u * torch.cat([part.S[:kept] for part in parts])) @ v.T


def expected_iso_c(tensors: Tensors) -> torch.Tensor:
    """Iso-C as its paper has it, in double precision."""
    u, s, vh = torch.linalg.svd(sum(task_vectors(tensors)), full_matrices=False)
    return tensors["base"].double() + s.mean() * (u @ vh)


def expected_model_stock(tensors: Tensors) -> torch.Tensor:
    """Model Stock in double precision; the cosine that mergekit finds here is its rounding to bfloat16."""
    one, other = task_vectors(tensors)
    cosine = (one * other).sum() / (one.norm() * other.norm())
    return tensors["base"].double() + 2 * cosine / (1 + cosine) * (one + other) / 2


def expected_adapters(tensors: Tensors) -> torch.Tensor:
    """The base plus half of each adapter."""
    change = sum(product(tensors, adapter) for adapter in ADAPTERS)
    return tensors["base"].double() + HALF["weight"] * ALPHA / RANK * change


def over_base(method: str, settings: Config) -> Config:
    """A step: the fine-tunes over the base."""
    return {"merge": method, "base_model": "base", "models": list(MODELS[1:])} | settings


MERGES = (
    Workload("slerp", MODELS[:2], peer=partial(peer, "slerp", {}, {"t": 0.4}, points=2), peer_floor=5),
    Workload("karcher", MODELS, peer=partial(peer, "karcher", {}, {}, points=3), peer_floor=5),
    Workload("model_stock", MODELS, {}, expected_model_stock, partial(peer, "model_stock", {}, {}), peer_floor=5),
    Workload(
        "breadcrumbs_ties",
        MODELS,
        peer=partial(peer, "breadcrumbs_ties", HALF | {"density": 0.5, "gamma": 0.01}, {}),
        peer_floor=5,
    ),
    Workload(
        "dare_ties", MODELS, peer=partial(peer, "dare_ties", HALF | {"density": 0.5}, {}), peer_floor=5, random=True
    ),
    Workload("sce", MODELS, peer=partial(peer, "sce", {}, {"select_topk": 0.5}), peer_floor=5),
    Workload(
        "tsv_m, 2 blocks",
        MODELS,
        {"out": over_base("tsv_m", {})},
        expected_tsv_m,
        beside=EACH,
        beside_floor=4,
        family=SHORT,
    ),
    Workload(
        "iso_c, 2 blocks",
        MODELS,
        {"out": over_base("iso_c", {})},
        expected_iso_c,
        beside=SUM,
        beside_floor=4,
        family=SHORT,
    ),
    Workload(
        "two adapters",
        ("base", *ADAPTERS),
        {
            "out": {
                "merge": "task_arithmetic",
                "base_model": "base",
                "models": dict.fromkeys(ADAPTERS, HALF),
            }
        },
        expected_adapters,
        copy_floor=1.3,
    ),
)
