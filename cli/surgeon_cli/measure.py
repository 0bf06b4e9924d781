"""`surgeon measure`: what an edit did to a model, seen by running it; what a merge has to expect."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def command() -> None:
    """Measure what an edit did to a model, or what a merge has to expect.

    Examples:

      surgeon measure merge ./math ./code --base ./base

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


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoints or adapters: folders, Hub ids.")],
    base: Annotated[str, typer.Option(metavar="BASE", help="The model they were made from.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", metavar="NAME=FILE", help="Examples of a model's skill. May be repeated."),
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Show how task vectors lie to each other, and what a merge has to expect.

    Norms, cosines, sign conflict, subspace alignment and interference by
    layer; with prompts, what their sum keeps of each model's answers.

    Examples:

      surgeon measure merge ./math ./code --base ./base

      surgeon measure merge ./math ./code --base ./base --prompts math=math.jsonl
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.measure_merge(
            models, base, prompts=options.overrides(prompts), device=device, on_event=on_event
        )
    output.summarise(report, as_json=as_json)
