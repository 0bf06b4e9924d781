"""`surgeon measure`: what an edit did to a model, what a merge has to expect, and what it takes of data."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a Hub id[@revision].")]
File = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.", show_default=False)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Prompts, a JSON line each, at will with responses.", show_default="neutral text"
    ),
]
Adapter = Annotated[str | None, typer.Option(metavar="ADAPTER", help="A LoRA adapter to put on the model first.")]
Answer = Annotated[int, typer.Option(min=0, metavar="N", help="Tokens the model answers where no response is given.")]


@app.callback()
def command() -> None:
    """Measure an edit, a merge to come, or data for one.

    Examples:

      surgeon measure merge ./math ./code --base ./base

      surgeon measure residual out/ --direction found/direction.safetensors

      surgeon measure gram ./base --adapter ./adapters/json --prompts json.jsonl -o json.gram.safetensors
    """


@app.command()
def residual(
    model: Model,
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


@app.command()
def gram(
    model: Model,
    out: File,
    prompts: Prompts = None,
    adapter: Adapter = None,
    layers: Annotated[int, typer.Option(min=1, metavar="N", help="Blocks whose Grams are held at once.")] = 1,
    answer: Answer = 64,
    device: options.Device = "auto",
    dtype: options.RunDtype = "float32",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure what every linear layer reads, for merge: regmean.

    One forward pass over prompts and answers; a file of the layers' second moments, for any number of merges.

    Examples:

      surgeon measure gram ./math --prompts math.jsonl -o math.gram.safetensors

      surgeon measure gram ./base -o base.gram.safetensors
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.measure_gram(
            model, out, prompts=prompts, adapter=adapter, layers=layers, answer=answer, device=device, dtype=dtype,
            overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)


@app.command()
def fisher(
    model: Model,
    out: File,
    prompts: Prompts = None,
    adapter: Adapter = None,
    layers: Annotated[int, typer.Option(min=0, metavar="N", help="Blocks that are held at once; 0 is all.")] = 0,
    answer: Answer = 64,
    device: options.Device = "auto",
    dtype: options.RunDtype = "float32",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure how much each weight matters to what the model says, for merge: fisher.

    The diagonal Fisher information over the tokens of the answers, one file, for any number of merges.

    Example:

      surgeon measure fisher ./math --prompts math.jsonl -o math.fisher.safetensors
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.measure_fisher(
            model, out, prompts=prompts, adapter=adapter, layers=layers, answer=answer, device=device, dtype=dtype,
            overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)
