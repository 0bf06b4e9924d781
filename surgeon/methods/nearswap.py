"""NearSwap: a model where it is near the base, and a bounded change where it is far."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.parameters import TaskVectors


@merge_method(
    blocks="elements",
    models=(1, 1),
    ranges={"t": "[0, inf)"},
    breaks={"one_model": "t bounds every change", "scaling": "t is a distance between entries"},
)
def nearswap(task_vectors: TaskVectors, t: float) -> Tensor:
    """Take the model's entry where it is within `t` of the base's, else the base's moved by `t` towards it.

    Formula: θ = θ₀ + min(1, t / |θ₁ − θ₀|) · (θ₁ − θ₀), entry by entry: a task vector cut off at ±t.

    Use it to tint a base with another model at a bounded change of every entry; skills that rest on large changes are
    lost.

    Paper: none; by alchemonaut, for QuartetAnemoi.
    """
    return task_vectors[0].clamp(-t, t)
