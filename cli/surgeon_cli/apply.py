"""`surgeon apply`: build what a recipe says."""

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress


def command(
    recipe: options.Recipe,
    out: options.Out,
    dtype: options.Dtype = None,
    dequantize: options.Dequantize = False,
    shard_size: options.ShardSize = None,
    device: options.Device = "auto",
    memory: options.Memory = None,
    threads: options.Threads = None,
    set_: options.Set = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Go on with an interrupted build, or start over.",
            show_default="resume where one fits",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    allow_nan: Annotated[bool, typer.Option("--allow-nan", help="Go on where an input holds NaN or Inf.")] = False,
    any_model: options.AnyModel = False,
    as_json: options.Json = False,
) -> None:
    """Build what RECIPE says, with a receipt of what changed.

    OUT appears complete or not at all; an interrupted build goes on when the command is run again.

    Examples:

      surgeon apply recipe.yaml -o out/

      surgeon apply recipe.yaml -o out/ --dtype bfloat16 --memory 4GB

      surgeon apply recipe.yaml -o out/ --set steps.merged.weight=0.7 --overwrite
    """
    with progress.drawn(quiet=as_json) as on_event:
        receipt = surgeon.apply(
            recipe,
            out,
            dtype=dtype,
            dequantize=dequantize,
            shard_size=shard_size,
            device=device,
            memory=memory,
            threads=threads,
            overrides=options.overrides(set_),
            resume=resume,
            overwrite=overwrite,
            allow_nan=allow_nan,
            any_model=any_model,
            on_event=on_event,
        )
    output.summarise(receipt, as_json=as_json)
