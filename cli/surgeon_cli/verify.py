"""`surgeon verify`: prove what a folder holds."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to prove.", show_default=False)],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Judge any folder by this recipe, whatever wrote it."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Recompute every block, not a sample.")] = False,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUB.pem", help="The receipt must be signed by this ed25519 key.", show_default=False),
    ] = None,
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Prove OUT from its files, by its receipt or by a recipe.

    No model is loaded. Ends with 0 when proven, 3 when the files differ, 4 when nothing contradicts and something
    cannot be proven.

    Examples:

      surgeon verify out/

      surgeon verify out/ --key PUB.pem

      surgeon verify someone-elses-merge/ --recipe recipe.yaml --full
    """
    with progress.drawn(quiet=as_json) as on_event:
        verdict = surgeon.verify(
            out, recipe=recipe, full=full, key=key, overrides=options.overrides(set_), on_event=on_event
        )
    output.show(verdict, as_json=as_json)
    raise typer.Exit(verdict.exit_code)
