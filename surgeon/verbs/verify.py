"""`surgeon verify`: prove what a folder holds, by its receipt or by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError
from surgeon.verbs.plan import plan

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from surgeon.engine.events import Listener
    from surgeon.measuring.verdict import Verdict
    from surgeon.space.expr import Expr
    from surgeon.space.output import Recipe


def verify(
    out: str | Path,
    *,
    recipe: Expr | Recipe | str | Path | None = None,
    full: bool = False,
    key: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
    on_event: Listener | None = None,
) -> Verdict:
    """Prove a folder from its files; no model is loaded.

    Without `recipe`, OUT's receipt is proved again: files, hashes, untouched tensors against the inputs, and changed
    tensors computed again on a sample of blocks (`full`: on all of them). With `recipe` any folder is judged, whatever
    wrote it, in full. With `key`, the PEM file of an ed25519 public key, the receipt must be signed by it too. The
    receipts of inputs that have one are followed. The verdict's exit code is 0 proven, 3 mismatch, 4 cannot tell.
    """
    folder = Path(out).expanduser()
    if not folder.exists():
        raise RefusedError(f"{folder}: no such file or folder", hint="give the folder to prove")
    if recipe is not None:
        if key is not None:
            raise RefusedError(
                "a signature is one of the receipt, and judging by a recipe reads none", hint="drop --recipe"
            )
        from surgeon.measuring.foreign import judge_folder
        from surgeon.planning.prepare import fits

        planned = plan(recipe, device="cpu", overrides=overrides)
        for fit in fits(planned.recipe.expr):
            raise RefusedError(
                f"{fit.name or 'a direction'} is measured by the recipe, and verifying runs no model",
                origin=fit.origin,
                hint="judge by what was measured: --recipe OUT/surgeon/recipe.yaml, or name the direction's file",
            )
        return judge_folder(folder, planned, on_event)
    if not folder.is_dir():
        raise RefusedError(
            f"{folder} is a single file, which has no receipt", hint="judge it by a recipe: --recipe RECIPE"
        )
    from surgeon.measuring.reprove import reprove

    trusted = None if key is None else _key(Path(key).expanduser())
    verdict = reprove(folder, full=full, overrides=overrides or {}, listener=on_event)
    return verdict if trusted is None else _signed(verdict, folder, trusted)


def _key(path: Path) -> Ed25519PublicKey:
    from surgeon.measuring.signature import public_key

    return public_key(path)


def _signed(verdict: Verdict, folder: Path, key: Ed25519PublicKey) -> Verdict:
    """The verdict with what is found of the signature."""
    from surgeon.measuring.signature import check_signature, key_id

    findings = tuple(check_signature(folder, key))
    proof = verdict.proof if findings else f"{verdict.proof}; its receipt is signed by the key {key_id(key):.16}…"
    return replace(
        verdict,
        claim=f"{verdict.claim}, signed by that key",
        proof=proof,
        findings=(*verdict.findings, *findings),
        checked={**verdict.checked, "signed": not findings},
    )
