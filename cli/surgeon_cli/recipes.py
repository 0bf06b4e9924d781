"""`surgeon recipes`: working recipes to read, copy and own."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def command(ctx: typer.Context, as_json: options.Json = False) -> None:
    """List the recipes shipped, or copy one to start from.

    Examples:

      surgeon recipes

      surgeon recipes copy NAME
    """
    if ctx.invoked_subcommand is None:
        output.show(surgeon.list_recipes(), as_json=as_json)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `surgeon recipes` lists.")],
    destination: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where to put it.", show_default="here")
    ] = Path(),
) -> None:
    """Copy a recipe, and the adapters it names, into a folder.

    Example:

      surgeon recipes copy NAME my-merge/
    """
    for path in surgeon.copy_recipe(name, destination):
        print(path)
