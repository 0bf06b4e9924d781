"""SCE: select what varies between the models, calculate their weights, erase the minority sign."""

from fractions import Fraction

import torch
from torch import Tensor

from surgeon.space.magnitude import Cut
from surgeon.space.method import merge_method
from surgeon.space.numeric import column, sign_of, total
from surgeon.space.parameters import TaskVectors
from surgeon.space.selection import nonzero_share
from surgeon.space.statistics import Table, means

_TINY = 1e-30


def variance(task_vectors: Tensor) -> Tensor:
    """The population variance of every entry over the models."""
    mean = total(task_vectors).div_(len(task_vectors))
    return total(torch.sub(task_vectors, mean).square_()).div_(len(task_vectors))


def selected(task_vectors: Tensor, select_topk: float, salient: Cut) -> Tensor:
    """The task vectors where their variance is among the largest, else zero."""
    if select_topk >= 1:
        return task_vectors
    return salient.trim(variance(task_vectors).unsqueeze(0)).sign_() * task_vectors


def energies(task_vectors: Tensor, select_topk: float, salient: Cut) -> Tensor:
    """Squares of what is selected."""
    return selected(task_vectors, select_topk, salient).square()


def _enough(select_topk: float, models: int) -> str | None:
    if models == 1 and select_topk < 1:
        return "select_topk below 1 selects by the variance between models; there is one"
    return None


@merge_method(
    blocks="elements",
    ranges={"select_topk": "(0, 1]", "floor": "[0, inf)", "least": "[0, inf)"},
    check=_enough,
    breaks={"one_model": "one model alone has no variance to select by"},
    mergekit={
        "floor": (
            Fraction(1, 10**6),
            "models whose mean squares sum to less than 1e-6, as those of most fine-tunes, weigh the same",
        ),
        "least": (
            Fraction(0),
            "a tensor whose select_topk comes to no entry loses its change; here it keeps one",
        ),
    },
)
def sce(
    task_vectors: TaskVectors,
    select_topk: float = 1.0,
    floor: float = 0.0,
    least: int = 1,
    salient: Cut = nonzero_share(variance, "select_topk"),
    energy: Table = means(energies),
) -> Tensor:
    """Keep the entries that vary most between models, weigh models by their mean square, average what agrees in sign.

    Formula: θ = θ₀ + Σ sᵢaᵢτ̂ᵢ / Σ sᵢaᵢ entry by entry, τ̂ᵢ = τᵢ where the variance over models is among the
    `select_topk` largest and 0 elsewhere, sᵢ = mean(τ̂ᵢ²) / Σⱼ mean(τ̂ⱼ²) a tensor, aᵢ = [sign τ̂ᵢ = sign Σ τ̂ⱼ].

    `select_topk` is the share, of the entries that vary at all, that is kept, at `least` so many. The sign of a zero
    sum is +. Mean squares, and weights that agree, which sum to less than `floor` do not count: 0 here, 1e-6 in
    mergekit, which makes models with small changes weigh the same.

    Use it for models of different strength when you do not want to choose weights; the largest task vector counts most,
    so that a skill of small changes may be lost.

    Paper: https://arxiv.org/abs/2408.07990
    """
    kept = selected(task_vectors, select_topk, salient)
    sum_of = sum(energy)
    enough = sum_of > 0 and sum_of >= floor
    share = column([one / sum_of if enough else 1 / len(energy) for one in energy], kept)
    elected = sign_of(total(kept))
    agreeing = (kept * elected).relu_()
    mass = total(torch.sign(agreeing).mul_(share)).clamp_min_(max(floor, _TINY))
    return total(agreeing.mul_(share)).mul_(elected).div_(mass)
