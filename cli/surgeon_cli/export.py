"""`surgeon export`: a result in another form than a whole checkpoint."""

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def command() -> None:
    """Write a result in another form than a whole checkpoint.

    Example:

      surgeon export adapter out/ --base ./base --rank 16 -o adapter/
    """


@app.command()
def adapter(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A recipe (.yaml), a checkpoint or an adapter.")],
    out: options.Out,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What the adapter stands on.", show_default="what the recipe builds on"),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="Largest rank of a tensor.")] = None,
    error: Annotated[
        float | None, typer.Option(metavar="E", help="Largest ‖D − BA‖/‖D‖ of a tensor, such as 0.05.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out changes of these tensors. May be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Write the factors as this.")] = "float32",
    overrides: options.Set = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the difference between a model and its base as a PEFT LoRA adapter.

    Arithmetic of adapters stays in factors, exactly; anything else is cut
    to a rank or an error, which is printed for every tensor.

    Examples:

      surgeon export adapter recipe.yaml -o adapter/

      surgeon export adapter ./fine-tune --base ./base --error 0.1 -o adapter/
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.export_adapter(
            what, out, base=base, rank=rank, error=error, drop=drop or (), dtype=dtype, device=device,
            overrides=options.overrides(overrides), overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)
