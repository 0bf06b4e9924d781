"""`surgeon measure`: what an edit did to a model, seen by running it."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def command() -> None:
    """Run a model and measure what an edit did to it.

    Example:

      surgeon measure residual out/ --direction found/direction.safetensors
    """


@app.command()
def residual(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a Hub id[@revision].")],
    direction: Annotated[Path, typer.Option(metavar="FILE", help="The direction, a .safetensors file.")],
    at: Annotated[
        str,
        typer.Option(metavar="POINT", help="Whose rows: block.14, or own, each point its own.", show_default="FILE's"),
    ] = "",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts, a JSON line each.", show_default="those of surgeon")
    ] = None,
    device: options.Device = "auto",
    dtype: options.RunDtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Show what is left of a direction at every residual point.

    Largest coordinate along the direction over the largest of the state, over all tokens of the prompts.

    Examples:

      surgeon measure residual out/ --direction found/direction.safetensors

      surgeon measure residual out/ --direction d.safetensors --at block.14
    """
    report = surgeon.measure_residual(model, direction, at=at, prompts=prompts, device=device, dtype=dtype)
    output.summarise(report, as_json=as_json)
