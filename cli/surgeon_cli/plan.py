"""`surgeon plan`: what a recipe would do."""

import surgeon
from surgeon_cli import options, output


def command(
    recipe: options.Recipe,
    dtype: options.Dtype = None,
    dequantize: options.Dequantize = False,
    shard_size: options.ShardSize = None,
    device: options.Device = "auto",
    memory: options.Memory = None,
    threads: options.Threads = None,
    set_: options.Set = None,
    any_model: options.AnyModel = False,
    as_json: options.Json = False,
) -> None:
    """Show what RECIPE would change, read, write and need.

    Reads headers only, never a tensor; shows the peak memory and refuses what `apply` would refuse.

    Examples:

      surgeon plan recipe.yaml

      surgeon plan recipe.yaml --memory 400MB --json
    """
    report = surgeon.plan(
        recipe,
        dtype=dtype,
        dequantize=dequantize,
        shard_size=shard_size,
        device=device,
        memory=memory,
        threads=threads,
        any_model=any_model,
        overrides=options.overrides(set_),
    )
    output.show(report, as_json=as_json)
