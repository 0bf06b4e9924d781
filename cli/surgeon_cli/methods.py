"""`surgeon methods`: the merge methods a recipe can name."""

from __future__ import annotations

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, in full.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the merge methods, or show one in full.

    What it does, its settings, its paper.

    Examples:

      surgeon methods

      surgeon methods ties
    """
    output.show(surgeon.list_methods(name), as_json=as_json)
