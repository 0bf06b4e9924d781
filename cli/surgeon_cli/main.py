"""The command `surgeon`: its verbs, and how errors and interruptions end it."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

import surgeon
from surgeon_cli import (
    apply,
    diff,
    doctor,
    failures,
    import_gguf,
    installation,
    methods,
    output,
    plan,
    recipes,
    show,
    verify,
)
from surgeon_cli import schema as schema_

HELP = """Merge, combine and edit model checkpoints from a recipe, and prove what changed.

Examples:

  surgeon plan recipe.yaml

  surgeon apply recipe.yaml -o out/

  surgeon verify out/
"""


class Verbs(TyperGroup):
    """The group of verbs; an interruption says how to go on."""

    def invoke(self, ctx: typer.Context) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the verb; Ctrl-C ends it with 130 (typer would turn it into a silent exit)."""
        try:
            return super().invoke(ctx)  # pyright: ignore[reportArgumentType]
        except KeyboardInterrupt:
            failures.report_interruption(ctx.invoked_subcommand or "")
            raise typer.Exit(failures.INTERRUPTED) from None


app = typer.Typer(
    name="surgeon",
    cls=Verbs,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, verb in {
    "apply": apply.command,
    "plan": plan.command,
    "verify": verify.command,
    "diff": diff.command,
    "show": show.command,
    "import": import_gguf.command,
    "methods": methods.command,
    "schema": schema_.command,
    "doctor": doctor.command,
}.items():
    app.command(name)(verb)
app.add_typer(recipes.app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surgeon {surgeon.__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the verb."""


def run() -> None:
    """Run the command line and exit; what both installed commands call."""
    output.fit_streams()
    # The objects of a plan of 20 000 tensors all stay: looking for garbage among them takes a quarter of its time.
    gc.set_threshold(1_000_000)
    try:
        installation.check()
        app(prog_name="surgeon")
    except surgeon.SurgeonError as error:
        failures.report(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("SURGEON_DEBUG"):
            raise
        failures.report_unexpected(error)
        sys.exit(1)
