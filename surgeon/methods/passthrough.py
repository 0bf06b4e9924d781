"""One model as it is."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column
from surgeon.space.parameters import Models, PerModel, each


@merge_method(blocks="elements", models=(1, 1), unchanged={"scale": 1})
def passthrough(models: Models, scale: PerModel[float] = each(1.0)) -> Tensor:
    """Copy a model's tensors, those with a `scale` other than 1 multiplied by it.

    Formula: θ = s θ₁, s the `scale`.

    Use it to put a model together of layers of others, or to switch tensors off by scale; nothing is merged, and layers
    that were not trained in their place usually need training.

    Paper: none.
    """
    return (models * column(scale, models))[0]
