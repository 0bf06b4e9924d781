"""`surgeon sign`: a signature over an output's receipt."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to sign.", show_default=False)],
    key: Annotated[
        Path, typer.Option(metavar="KEY.pem", help="The ed25519 private key, as openssl writes it.", show_default=False)
    ],
    as_json: options.Json = False,
) -> None:
    """Sign the receipt of OUT, and with it every byte of it.

    The signature, an in-toto statement in a DSSE envelope, goes into
    OUT/surgeon/. An encrypted key's password is read from the environment,
    SURGEON_KEY_PASSWORD.

    Examples:

      openssl genpkey -algorithm ed25519 -out KEY.pem

      surgeon sign out/ --key KEY.pem
    """
    output.summarise(surgeon.sign(out, key), as_json=as_json)
