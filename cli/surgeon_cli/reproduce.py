"""`surgeon reproduce`: build an output again and compare."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress


def command(
    what: Annotated[
        Path, typer.Argument(metavar="OUT|RECEIPT", help="A folder, or its surgeon.json.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="AGAIN", help="Keep what is built here.", show_default="a temporary folder"
        ),
    ] = None,
    set_: options.Set = None,
    device: options.Device = "auto",
    memory: options.Memory = None,
    threads: options.Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace AGAIN once it is complete.")] = False,
    as_json: options.Json = False,
) -> None:
    """Build OUT again from its inputs and compare every byte.

    Ends with 0 when all is identical, 3 when something differs: the tensors
    are named, and the inputs that changed.

    Examples:

      surgeon reproduce out/

      surgeon reproduce surgeon.json --set models.base=./base -o again/
    """
    with progress.drawn(quiet=as_json) as on_event:
        verdict = surgeon.reproduce(
            what, out, device=device, memory=memory, threads=threads, overrides=options.overrides(set_),
            overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.show(verdict, as_json=as_json)
    raise typer.Exit(verdict.exit_code)
