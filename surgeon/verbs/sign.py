"""`surgeon sign`: a signature over an output's receipt, and so over every byte the receipt speaks of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import VerificationError

#: The environment's variable with the password of an encrypted key.
PASSWORD = "SURGEON_KEY_PASSWORD"


@dataclass(frozen=True)
class Signed:
    """Where the signature lies and the id of the key: the sha256 of its DER."""

    path: Path
    keyid: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"path": str(self.path), "keyid": self.keyid}

    def summary(self) -> str:
        """One sentence for the terminal."""
        return f"signed: {self.path} by the key {self.keyid}; check it: surgeon verify OUT --key PUB.pem"


def sign(out: str | Path, key: str | Path, *, password: str | None = None) -> Signed:
    """Sign the receipt of OUT with an ed25519 key, a PEM file, and put the envelope into OUT/surgeon/.

    The password of an encrypted key is taken from SURGEON_KEY_PASSWORD where none is given. Further keys add their
    signatures. What lies in OUT is held against the receipt by its headers and side files first; `surgeon verify`
    proves every byte. VerificationError where they do not fit, RefusedError for a folder without receipt.
    """
    from surgeon.engine.receipt import NAME
    from surgeon.measuring.files_check import check_files
    from surgeon.measuring.receipt_file import read_receipt
    from surgeon.measuring.signature import ENVELOPE, key_id, private_key, signed, statement
    from surgeon.store.files import disk_errors

    folder = Path(out).expanduser()
    held = private_key(Path(key).expanduser(), password if password is not None else os.environ.get(PASSWORD))
    receipt = read_receipt(folder)
    findings, _ = check_files(folder, receipt)
    if findings:
        first = findings[0]
        raise VerificationError(f"{folder} is not what its receipt says: {first.subject}: {first.message}")
    path = folder / ENVELOPE
    payload = statement(receipt, (folder / NAME).read_bytes())
    envelope = signed(payload, held, path.read_bytes() if path.is_file() else None)
    partial = path.with_suffix(".partial")
    with disk_errors("writing the signature", path):
        partial.write_bytes(envelope)
        partial.replace(path)
    return Signed(path, key_id(held.public_key()))
