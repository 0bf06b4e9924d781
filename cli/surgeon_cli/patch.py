"""`surgeon patch`: a patch applied, or taken back."""

from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

_Patch = Annotated[
    str, typer.Argument(metavar="PATCH", help="The folder that `surgeon export patch` wrote.", show_default=False)
]


@app.callback()
def command() -> None:
    """Apply a patch to its base, or take it back, bit for bit.

    Example:

      surgeon patch apply ./base patch/ -o out/
    """


@app.command()
def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint the patch was made of.")],
    patch: _Patch,
    out: options.Out,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the patch's result from its base: the bytes that were there when the patch was made.

    A base that is another is refused by name, and leaves nothing behind.

    Example:

      surgeon patch apply ./base patch/ -o out/
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.apply_patch(base, patch, out, threads=threads, overwrite=overwrite, on_event=on_event)
    output.summarise(report, as_json=as_json)


@app.command()
def revert(
    result: Annotated[str, typer.Argument(metavar="OUT", help="What the patch gave.")],
    patch: _Patch,
    out: options.Out,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the patch's base from its result, likewise.

    Example:

      surgeon patch revert out/ patch/ -o back/
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.revert_patch(result, patch, out, threads=threads, overwrite=overwrite, on_event=on_event)
    output.summarise(report, as_json=as_json)
