"""How a result is written: dtype, shards, whose side files, rounding, what is dropped."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgeon.errors import Origin
from surgeon.space.expr import Expr


@dataclass(frozen=True)
class Output:
    """A recipe's `output:`. `dtype` is spelled as safetensors does (BF16); `shard_size` is in bytes.

    `chat_template` is ``auto``, a name, or jinja. `dequantize` writes quantised weights in full.
    """

    dtype: str | None = None
    shard_size: int | None = None
    files_from: Expr | None = None
    rounding: str = "nearest"
    drop: tuple[str, ...] = ()
    chat_template: str | None = None
    dequantize: bool = False
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Recipe:
    """What is to be made: an expression, and how it is written."""

    expr: Expr
    output: Output = field(default_factory=Output)
