"""Options that several verbs share, each written once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write; it must not exist.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and no progress.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="K=V", help="Replace a value of the recipe: --set output.dtype=float16. May be repeated."
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps or xpu.")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory to stay within, kept or refused beforehand: 400MB, 4GiB."),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Worker threads.", show_default="one a core")]
Dtype = Annotated[
    str | None, typer.Option(metavar="DTYPE", help="Write floating tensors as float16, bfloat16, float32 or float64.")
]
ShardSize = Annotated[str | None, typer.Option(metavar="SIZE", help="Largest size of one shard: 5GB.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new folder is complete.")]


def overrides(pairs: Iterable[str] | None) -> dict[str, str]:
    """`["output.dtype=float16"]` → `{"output.dtype": "float16"}`."""
    parted = [pair.partition("=") for pair in pairs or ()]
    for key, equals, value in parted:
        if not key or not equals:
            raise typer.BadParameter(f"{key + equals + value!r} is not KEY=VALUE", param_hint="--set")
    return {key: value for key, _, value in parted}
