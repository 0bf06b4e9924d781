"""`surgeon publish`: an output on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output, progress


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to publish.", show_default=False)],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model on the Hub.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent, to the byte.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[
        str | None, typer.Option(metavar="NAME", help="Publish under this licence.", show_default="the inputs'")
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG/NAME", help="What a local input is on the Hub. May be repeated."),
    ] = None,
    copies: Annotated[
        bool, typer.Option("--copies/--no-copies", help="Let the Hub copy unchanged shards from the inputs there.")
    ] = True,
    message: Annotated[str, typer.Option(metavar="TEXT", help="The commit's message.")] = "Upload by surgeon",
    as_json: options.Json = False,
) -> None:
    """Publish OUT on the Hub, sending only what changed.

    OUT is proven first; its card gets the licence of the inputs, checked,
    and what was proven. Interrupted, it goes on when it is run again. The
    token is the one of `hf auth login`, or HF_TOKEN.

    Examples:

      surgeon publish out/ org/name --dry-run

      surgeon publish out/ org/name --private
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.publish(
            out, repo, dry_run=dry_run, private=private, licence=licence, base_models=base_model or (), copies=copies,
            message=message, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)
