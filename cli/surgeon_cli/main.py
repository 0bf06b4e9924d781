"""The command `surgeon`: its verbs, and how errors and interruptions end it."""

import gc
import os
import sys
from typing import Annotated

import typer

import surgeon
from surgeon_cli import (
    apply,
    check,
    convert,
    diff,
    doctor,
    export,
    failures,
    find,
    import_gguf,
    installation,
    measure,
    methods,
    output,
    patch,
    plan,
    publish,
    push_weights,
    recipes,
    reproduce,
    schema,
    show,
    sign,
    tune,
    verify,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("apply")(apply.command)
app.command("plan")(plan.command)
app.command("verify")(verify.command)
app.command("check")(check.command)
app.command("push-weights")(push_weights.command)
app.command("reproduce")(reproduce.command)
app.command("sign")(sign.command)
app.command("publish")(publish.command)
app.command("find")(find.command)
app.command("tune")(tune.command)
app.command("diff")(diff.command)
app.command("show")(show.command)
app.command("convert")(convert.command)
app.command("import")(import_gguf.command)
app.command("methods")(methods.command)
app.command("schema")(schema.command)
app.command("doctor")(doctor.command)
app.add_typer(export.app, name="export")
app.add_typer(measure.app, name="measure")
app.add_typer(patch.app, name="patch")
app.add_typer(recipes.app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surgeon {surgeon.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Merge, combine and edit model checkpoints from a recipe, and prove what changed.

    Examples:

      surgeon plan recipe.yaml

      surgeon apply recipe.yaml -o out/

      surgeon verify out/

      surgeon find --model ./base --positive p.jsonl --negative n.jsonl -o found
    """


def run() -> None:
    """Run the command line and exit; what both installed commands call."""
    output.fit_streams()
    # The objects of a plan of 20 000 tensors all stay: looking for garbage among them takes a quarter of its time.
    gc.set_threshold(1_000_000)
    try:
        installation.check()
        app(prog_name="surgeon")
    except SystemExit as end:
        if end.code == failures.INTERRUPTED:
            failures.report_interruption(resumes=sys.argv[1:2] == ["apply"])
        raise
    except surgeon.SurgeonError as error:
        failures.report(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("SURGEON_DEBUG"):
            raise
        failures.report_unexpected(error)
        sys.exit(1)
