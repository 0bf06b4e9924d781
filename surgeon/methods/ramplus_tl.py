"""RAM+: changes of one model are kept and made larger the more it shares with others, shared ones averaged."""

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.overlap import alone, changed, contributors
from surgeon.space.parameters import TaskVectors
from surgeon.space.statistics import Table, means


def shared_and_unique(task_vectors: Tensor, epsilon: float) -> Tensor:
    """1 where a model changes an entry that others change too, and 1 where it alone does: [2, model, …]."""
    changes = torch.sign(changed(task_vectors, epsilon)).abs_()
    unique = changes * alone(contributors(changes))
    return torch.stack([changes.sub_(unique), unique])


@merge_method(
    blocks="elements",
    ranges={"r": "[0, inf)", "alpha": "[0, inf)", "epsilon": "[0, inf)"},
    breaks={
        "one_model": "changes of at most epsilon are left out",
        "scaling": "a change counts by its size, and epsilon is a fixed one",
    },
)
def ramplus_tl(
    task_vectors: TaskVectors,
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
    overlap: Table = means(shared_and_unique, 2, 0),
) -> Tensor:
    """Average shared changes as `ram` does, and enlarge a model's own by 1 + r min(shared/unique, alpha).

    Formula: θ = θ₀ + Σ kᵢaᵢτᵢ / max(1, c) entry by entry, aᵢ = [|τᵢ| > `epsilon`], c = Σ aᵢ, kᵢ = 1 + r min(sᵢ/oᵢ, α)
    where c = 1, else 1.

    sᵢ and oᵢ are the numbers of a model's changes in the tensor that others make too, and that it makes alone; α is
    `alpha`.

    Use it as `ram`, when averaging what is shared leaves skills too weak; of adapters, which change every entry, it is
    the plain mean too.

    Paper: https://arxiv.org/abs/2601.13572
    """
    changes = changed(task_vectors, epsilon)
    count = contributors(changes)
    more = [r * (min(both / own, alpha) if own else alpha * (both > 0)) for both, own in zip(*overlap, strict=True)]
    enlarged = total(column(more, changes) * changes).mul_(alone(count))
    return total(changes).add_(enlarged).div_(count.clamp_min_(1))
