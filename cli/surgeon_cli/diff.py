"""`surgeon diff`: how two checkpoints differ."""

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint: a folder, a file or a Hub id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The checkpoint compared with it.")],
    as_json: options.Json = False,
) -> None:
    """Show how B differs from A, by tensor and layer.

    How much, of what rank, and by how many ulps.

    Examples:

      surgeon diff base/ out/

      surgeon diff org/base org/fine-tune --json
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.diff(a, b, on_event=on_event)
    output.show(report, as_json=as_json)
