"""`surgeon find`: a direction measured between contrast sets, and the recipe that edits along it."""

from pathlib import Path
from typing import Annotated, Any

import typer

import surgeon
from surgeon_cli import options, output, progress


def command(
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model, as recipes name it: ./folder or a Hub id.")],
    positive: Annotated[Path, typer.Option(metavar="P.jsonl", help="Prompts that show the manner, a JSON line each.")],
    negative: Annotated[Path, typer.Option(metavar="N.jsonl", help="The same prompts without what asks for it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOUND", help="The folder to write what is found to.")],
    held_positive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Confirm on these, and measure on all of P.", show_default=False)
    ] = None,
    held_negative: Annotated[
        Path | None, typer.Option(metavar="FILE", help="As --held-positive, for N.", show_default=False)
    ] = None,
    fit: Annotated[
        str, typer.Option(metavar="NAME", help="A fitter that `surgeon methods` lists.")
    ] = "mean_difference",
    position: Annotated[
        str, typer.Option(metavar="WHERE", help="Which tokens are measured: last, response, first:N or mean.")
    ] = "last",
    neutral: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Neutral chats and text.", show_default="those of surgeon")
    ] = None,
    shows: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="An answer shows the manner where this fits.", show_default="by its answers"
        ),
    ] = None,
    budget: Annotated[float, typer.Option(min=0.0, metavar="NATS", help="Highest cost, KL in nats a token.")] = 0.05,
    name: Annotated[str, typer.Option(metavar="NAME", help="What it is called.", show_default="FOUND's name")] = "",
    device: options.Device = "auto",
    dtype: options.RunDtype = "float32",
    set_: options.FitterSet = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over what find wrote there before.")] = False,
    as_json: options.Json = False,
) -> None:
    """Find the smallest edit that takes a manner of a model away.

    Measures a direction between two contrast sets, tries by effect where and how strongly to edit, and confirms the
    choice on held-out prompts. FOUND gets direction.safetensors, recipe.yaml (ready for `surgeon apply`), report.json
    and report.html. A negative strength in the recipe strengthens the manner.

    Examples:

      surgeon find --model ./base --positive p.jsonl --negative n.jsonl -o found

      surgeon find … --shows '^(Great|Sure)' --budget 0.01 --set components=8

      surgeon apply found/recipe.yaml -o out/
    """
    if (held_positive is None) != (held_negative is None):
        raise typer.BadParameter("both sets are held out, or neither", param_hint="--held-positive, --held-negative")
    asked: dict[str, Any] = {
        "model": model, "positive": positive, "negative": negative, "out": out, "fit": fit, "position": position,
        "held_out": None if held_positive is None else (held_positive, held_negative), "neutral": neutral,
        "shows": shows, "budget": budget, "name": name, "device": device, "dtype": dtype, "overwrite": overwrite,
    }  # fmt: skip
    settings = options.settings(set_, taken={*asked, "on_event"})
    with progress.drawn(quiet=as_json) as on_event:
        found = surgeon.find(**asked, on_event=on_event, **settings)
    output.summarise(found, as_json=as_json)
