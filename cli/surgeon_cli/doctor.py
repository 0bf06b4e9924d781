"""`surgeon doctor`: whether this installation can work."""

import typer

import surgeon
from surgeon_cli import options, output


def command(as_json: options.Json = False) -> None:
    """Report whether this installation can work.

    Versions, devices, disk space, the model cache, and packages that claim the same import name.
    Ends with 2 where something must be mended first.

    Example:

      surgeon doctor
    """
    report = surgeon.doctor()
    output.show(report, as_json=as_json)
    raise typer.Exit(report.exit_code)
