"""`surgeon convert`: mergekit's YAML as a native recipe."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe of mergekit's.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write it there; nothing is overwritten.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print mergekit's recipe as a native one.

    It gives the same bytes. What mergekit does otherwise or ignores is told in comments.

    Examples:

      surgeon convert mergekit.yml

      surgeon convert mergekit.yml -o recipe.yaml
    """
    converted = surgeon.convert(recipe, out)
    if out is None:
        output.show(converted, as_json=as_json)
    else:
        print(out)
