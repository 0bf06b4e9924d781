"""The running average of a series of checkpoints."""

from torch import Tensor

from surgeon.methods.linear import linear
from surgeon.space.method import merge_method
from surgeon.space.parameters import Models


@merge_method(
    blocks="elements",
    ranges={"decay": "[0, 1]"},
    breaks={"model_order": "the models are a series, the last the newest"},
)
def ema(models: Models, decay: float = 1.0, warmup: bool = True) -> Tensor:
    """Average checkpoints in the order of training: each is taken in as m ← d m + (1 − d) x, the last one last.

    Formula: m₁ = θ₁, mₙ₊₁ = d mₙ + (1 − d) θₙ₊₁, with d = min(`decay`, n / (n + 1)), or `decay` itself without
    `warmup`.

    With `warmup` the first does not weigh as if it were many; `decay: 1`, the default, then is the plain mean,
    stochastic weight averaging. Without `warmup` a decay of 1 keeps the first.

    Use it for checkpoints of one training run, in their order; of unrelated fine-tunes it is an uneven average.

    Paper: https://arxiv.org/abs/1803.05407
    """
    shares = [1.0]
    for taken in range(1, len(models)):
        kept = min(decay, taken / (taken + 1)) if warmup else decay
        shares = [*(share * kept for share in shares), 1 - kept]
    return linear.function(models, shares)
