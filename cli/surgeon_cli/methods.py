"""`surgeon methods`: the merge methods, edits, reshapes and fitters a recipe can name."""

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, in full.")] = None,
    as_json: options.Json = False,
) -> None:
    """List merge methods, edits, reshapes and fitters, or show one.

    What it does, its settings, its paper, and the laws it does not keep.

    Examples:

      surgeon methods

      surgeon methods ties

      surgeon methods ablate --json
    """
    output.show(surgeon.list_methods(name), as_json=as_json)
