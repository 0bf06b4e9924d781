"""`surgeon show`: what a checkpoint or adapter holds."""

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a .safetensors file or a Hub id[@revision].")
    ],
    as_json: options.Json = False,
) -> None:
    """Show the tensors of MODEL by layer and pattern.

    Parameters, dtypes and bytes, from headers only.

    Examples:

      surgeon show ./out

      surgeon show ./adapters/style

      surgeon show org/model@main --json
    """
    output.show(surgeon.show(model), as_json=as_json)
