"""Signatures: the statement, the envelope as others read it, and every way it may not hold."""

import base64
import hashlib
import json

import pytest

import surgeon
from surgeon.testing.toys import toy_llama

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
from cryptography.hazmat.primitives import serialization  # noqa: E402

ENVELOPE = "surgeon/receipt.dsse.json"


def pem(folder, name, key, password=None):
    scheme = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, scheme)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(secret)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture
def keys(tmp_path):
    """Two pairs of files; the keys are those of RFC 8032's tests 1 and 2."""
    seeds = (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    )
    made = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)) for seed in seeds]
    return [pem(tmp_path, f"key{number}", key) for number, key in enumerate(made)]


@pytest.fixture
def out(tmp_path):
    base = toy_llama(tmp_path / "base", 0)
    tuned = toy_llama(tmp_path / "tuned", 1, base=base)
    surgeon.apply(0.5 * surgeon.open(base) + 0.5 * surgeon.open(tuned), tmp_path / "out")
    return tmp_path / "out"


def verdict(out, key):
    return surgeon.verify(out, key=key)


def wrong(out, key):
    found = verdict(out, key)
    assert found.exit_code == 3, found.explain()
    return {finding.subject for finding in found.findings}


def edit(out, change):
    envelope = json.loads((out / ENVELOPE).read_text())
    change(envelope)
    (out / ENVELOPE).write_text(json.dumps(envelope))


def test_what_is_signed_verifies(out, keys):
    secret, public = keys[0]
    signed = surgeon.sign(out, secret)
    assert signed.path == out / ENVELOPE
    found = verdict(out, public)
    assert found.exit_code == 0, found.explain()
    assert f"signed by the key {signed.keyid[:16]}" in found.explain()
    assert surgeon.verify(out).exit_code == 0


def test_the_envelope_is_dsse_and_the_statement_in_totos(out, keys):
    """Read without any code of surgeon's: DSSE's encoding is written down here once more."""
    surgeon.sign(out, keys[0][0])
    envelope = json.loads((out / ENVELOPE).read_text())
    payload = base64.b64decode(envelope["payload"])
    kind = "application/vnd.in-toto+json"
    assert envelope["payloadType"] == kind
    message = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload])
    public = serialization.load_pem_public_key(keys[0][1].read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)
    statement = json.loads(payload)
    digest = hashlib.sha256((out / "surgeon.json").read_bytes()).hexdigest()
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "surgeon.json", "digest": {"sha256": digest}}]
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    inputs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert inputs == [{"name": name, "uri": str(out.parent / name)} for name in ("base", "tuned")]


def test_the_encoding_is_that_of_the_protocol():
    """The example of DSSE's own protocol page."""
    from surgeon.measuring.signature import _encoded

    assert _encoded("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_two_keys_sign_one_receipt(out, keys):
    for secret, _ in (*keys, keys[0]):
        surgeon.sign(out, secret)
    assert len(json.loads((out / ENVELOPE).read_text())["signatures"]) == 2
    assert all(verdict(out, public).exit_code == 0 for _, public in keys)


def test_another_key_is_not_this_one(out, keys):
    assert wrong(out, keys[0][1]) == {ENVELOPE}
    surgeon.sign(out, keys[0][0])
    assert wrong(out, keys[1][1]) == {ENVELOPE}


@pytest.mark.parametrize(
    "change",
    [
        lambda envelope: envelope.update(payload=base64.b64encode(b"{}").decode()),
        lambda envelope: envelope.update(payload="no base64!"),
        lambda envelope: envelope.update(payloadType="text/plain"),
        lambda envelope: envelope.update(signatures=[]),
        lambda envelope: envelope["signatures"][0].update(sig=base64.b64encode(b"0" * 64).decode()),
        lambda envelope: envelope["signatures"][0].update(sig=3),
        lambda envelope: envelope.pop("signatures"),
    ],
)
def test_a_changed_envelope(out, keys, change):
    surgeon.sign(out, keys[0][0])
    edit(out, change)
    assert wrong(out, keys[0][1]) == {ENVELOPE}


def test_another_receipt_than_the_signed_one(out, keys):
    """The receipt is as good as before, but for a word: it is not the one that was signed."""
    surgeon.sign(out, keys[0][0])
    receipt = json.loads((out / "surgeon.json").read_text())
    (out / "surgeon.json").write_text(json.dumps(receipt))
    assert surgeon.verify(out).exit_code == 0
    assert wrong(out, keys[0][1]) == {"surgeon.json"}
    surgeon.sign(out, keys[0][0])
    assert verdict(out, keys[0][1]).exit_code == 0


def test_a_folder_that_is_not_what_its_receipt_says_is_not_signed(out, keys):
    (out / "config.json").write_text("{}")
    with pytest.raises(surgeon.VerificationError, match=r"config\.json"):
        surgeon.sign(out, keys[0][0])
    assert not (out / ENVELOPE).exists()


def test_an_encrypted_key(out, keys, tmp_path, monkeypatch):
    key = ed25519.Ed25519PrivateKey.generate()
    secret, public = pem(tmp_path, "locked", key, b"word")
    with pytest.raises(surgeon.RefusedError, match="no private key that can be read"):
        surgeon.sign(out, secret)
    with pytest.raises(surgeon.RefusedError, match="no private key that can be read"):
        surgeon.sign(out, secret, password="other")
    monkeypatch.setenv("SURGEON_KEY_PASSWORD", "word")
    surgeon.sign(out, secret)
    assert verdict(out, public).exit_code == 0


def test_keys_of_other_kinds_are_refused(out, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec

    secret, public = pem(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(surgeon.RefusedError, match="no ed25519 key"):
        surgeon.sign(out, secret)
    with pytest.raises(surgeon.RefusedError, match="no ed25519 key"):
        surgeon.verify(out, key=public)
    with pytest.raises(surgeon.RefusedError, match="no public key"):
        surgeon.verify(out, key=secret)
    with pytest.raises(surgeon.RefusedError, match="No such file"):
        surgeon.verify(out, key=tmp_path / "none.pem")


def test_a_signature_is_not_checked_against_a_recipe(out, keys):
    with pytest.raises(surgeon.RefusedError, match="recipe"):
        surgeon.verify(out, key=keys[0][1], recipe=out / "surgeon/recipe.yaml")
