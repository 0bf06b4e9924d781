"""Signed receipts: an in-toto statement about surgeon.json in a DSSE envelope, signed with ed25519.

The receipt holds the hashes of every tensor, header and side file, so that one signature over it covers them all.
https://github.com/secure-systems-lab/dsse, https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from surgeon.engine.receipt import NAME
from surgeon.errors import CheckpointError, RefusedError
from surgeon.measuring.receipt_file import ReceiptFacts
from surgeon.measuring.verdict import Finding, mismatch
from surgeon.store.json_files import parse_object, read_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Where the envelope lies in an output.
ENVELOPE = "surgeon/receipt.dsse.json"

_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PROVENANCE = "https://slsa.dev/provenance/v1"
_OURS = "pkg:pypi/model-surgeon"
_PEM = "a PEM file: openssl genpkey -algorithm ed25519 -out KEY.pem; openssl pkey -in KEY.pem -pubout -out PUB.pem"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Signature(_Part):
    keyid: str = ""
    sig: str


class _Envelope(_Part):
    payloadType: str
    payload: str
    signatures: list[_Signature]


def statement(receipt: ReceiptFacts, raw: bytes) -> bytes:
    """The in-toto statement that the receipt of these bytes was made by surgeon from its recipe and inputs."""
    content = {
        "_type": _STATEMENT,
        "subject": [{"name": NAME, "digest": {"sha256": hashlib.sha256(raw).hexdigest()}}],
        "predicateType": _PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"{_OURS}#apply",
                "externalParameters": {"recipe": receipt.recipe.resolved},
                "resolvedDependencies": [
                    {"name": facts.name, "uri": facts.ref}
                    | ({"digest": {"gitCommit": facts.revision}} if facts.revision else {})
                    for facts in receipt.inputs
                ],
            },
            "runDetails": {"builder": {"id": f"{_OURS}@{receipt.made_with.get('model-surgeon', '')}"}},
        },
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def signed(payload: bytes, key: Ed25519PrivateKey, former: bytes | None = None) -> bytes:
    """The envelope of a payload; signatures of a former one of the same payload stay, but for this key's."""
    own = key_id(key.public_key())
    kept: list[dict[str, str]] = []
    if former is not None:
        envelope = _read(parse_object(former, ENVELOPE))
        if envelope.payloadType == _PAYLOAD and _decoded(envelope.payload) == payload:
            kept = [one.model_dump() for one in envelope.signatures if one.keyid != own]
    signature = {"keyid": own, "sig": base64.b64encode(key.sign(_encoded(_PAYLOAD, payload))).decode()}
    content = {
        "payloadType": _PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [*kept, signature],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def check_signature(folder: Path, key: Ed25519PublicKey) -> Iterator[Finding]:
    """What is wrong with the signature of a folder's receipt by a key; nothing where it holds."""
    path = folder / ENVELOPE
    if not path.is_file():
        yield mismatch(ENVELOPE, "the receipt is not signed", "surgeon sign OUT --key KEY.pem, by who made it")
        return
    try:
        envelope = _read(read_object(path))
        payload = _decoded(envelope.payload)
        subjects = parse_object(payload, f"{ENVELOPE} (payload)").get("subject")
    except CheckpointError as error:
        yield mismatch(ENVELOPE, f"is no signed statement: {error.message}")
        return
    if envelope.payloadType != _PAYLOAD or not any(
        _verifies(one, envelope, payload, key) for one in envelope.signatures
    ):
        yield mismatch(ENVELOPE, f"holds no valid signature by the key {key_id(key):.16}…")
        return
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    if {"name": NAME, "digest": {"sha256": digest}} not in (subjects if isinstance(subjects, list) else []):
        yield mismatch(NAME, "is not the receipt that was signed")


def private_key(path: Path, password: str | None = None) -> Ed25519PrivateKey:
    """The ed25519 key in a PEM file. RefusedError for any other, and for a wrong password."""
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(_bytes(path), password.encode() if password else None)
    except (ValueError, TypeError) as error:
        raise RefusedError(f"{path} is no private key that can be read: {error}", hint=_PEM) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise RefusedError(f"{path} is no ed25519 key", hint=_PEM)
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The ed25519 public key in a PEM file. RefusedError for any other."""
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(_bytes(path))
    except ValueError as error:
        raise RefusedError(f"{path} is no public key that can be read: {error}", hint=_PEM) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise RefusedError(f"{path} is no ed25519 key", hint=_PEM)
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """What a key is called in an envelope: the sha256 of its DER."""
    serialization, _ = _cryptography()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        hint = "pip install 'model-surgeon[sign]'"
        raise RefusedError("signatures need the package cryptography", hint=hint) from None
    return serialization, ed25519


def _encoded(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %b %d %b" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _verifies(one: _Signature, envelope: _Envelope, payload: bytes, key: Ed25519PublicKey) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(_decoded(one.sig), _encoded(envelope.payloadType, payload))
    except (InvalidSignature, CheckpointError):
        return False
    return True


def _read(content: dict[str, Any]) -> _Envelope:
    try:
        return _Envelope.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CheckpointError("no base64") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror or error}", hint=_PEM) from None
