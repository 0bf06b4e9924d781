"""RAM: changes of one model are kept whole, shared ones averaged."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import total
from surgeon.space.overlap import changed, contributors
from surgeon.space.parameters import TaskVectors


@merge_method(
    blocks="elements",
    ranges={"epsilon": "[0, inf)"},
    breaks={
        "one_model": "changes of at most epsilon are left out",
        "scaling": "a change counts by its size, and epsilon is a fixed one",
    },
)
def ram(task_vectors: TaskVectors, epsilon: float = 1e-5) -> Tensor:
    """Keep what only one model changes as it is, average what several change over those that do.

    Formula: θ = θ₀ + Σ aᵢτᵢ / max(1, Σ aᵢ) entry by entry, aᵢ = [|τᵢ| > `epsilon`].

    Use it for fine-tunes with sparse changes, as by reinforcement learning; adapters change every entry, and then it is
    the plain mean, which loses most of each skill.

    Paper: https://arxiv.org/abs/2601.13572
    """
    changes = changed(task_vectors, epsilon)
    return total(changes).div_(contributors(changes).clamp_min_(1))
