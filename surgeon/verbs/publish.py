"""`surgeon publish`: an output on the Hub, by one commit that sends what is new only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError, VerificationError
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.measuring.receipt_file import ReceiptFacts
    from surgeon.measuring.verdict import Verdict
    from surgeon.ship.hub import Hub
    from surgeon.ship.licences import Licence
    from surgeon.ship.publication import Publication


@dataclass(frozen=True)
class Published:
    """What was, or (without `url`) would be published; `notes` are of licences and of what readers will see."""

    publication: Publication
    licence: str | None
    notes: tuple[str, ...]
    url: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "repo": self.publication.repo,
            "url": self.url,
            "upload_bytes": self.publication.wire,
            "sent": {one.name: one.size for one in self.publication.sent},
            "copied": {one.name: f"{one.repo}@{one.revision}/{one.source}" for one in self.publication.copied},
            "licence": self.licence,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """What is sent and copied, file by file where it counts, and the whole."""
        lines = [f"  send  {human_bytes(one.size):>9}  {one.name}" for one in self.publication.sent if one.is_large]
        lines += [
            f"  copy  {human_bytes(one.size):>9}  {one.name} on the Hub, from {one.repo}"
            for one in self.publication.copied
        ]
        small = [one for one in self.publication.sent if not one.is_large]
        lines.append(f"  send  {human_bytes(sum(one.size for one in small)):>9}  {len(small)} small files")
        lines += [f"note: {note}" for note in self.notes]
        done = f"published {self.url}" if self.url else f"would publish {self.publication.repo}"
        return "\n".join([*lines, f"{done}: {self.publication.wire} bytes to upload, licence {self.licence}"])


def publish(
    out: str | Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    licence: str | None = None,
    base_models: Sequence[str] = (),
    copies: bool = True,
    message: str = "Upload by surgeon",
    token: str | None = None,
    on_event: Listener | None = None,
) -> Published:
    """Publish OUT as the Hub model `repo`, in one commit.

    OUT is proven first. Shards that are byte for byte those of an input on the Hub are copied there (`copies`); all
    else is uploaded, and `dry_run` tells the bytes before. The model card gets what was proven and the licence, that of
    the inputs where they fit together; else `licence` must say it. `base_models` name the models on the Hub that
    local inputs are. A run that was interrupted sends only the rest when it is repeated. The token is
    huggingface_hub's unless one is given.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from surgeon.measuring.receipt_file import read_receipt
    from surgeon.ship.hub import Hub
    from surgeon.ship.publication import publication
    from surgeon.verbs.verify import verify

    folder = Path(out).expanduser()
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RefusedError(f"{repo!r} names no model on the Hub: {error}", hint="write org/name") from None
    receipt = read_receipt(folder)
    hub = Hub(token)
    found = _licence(receipt, hub, licence)
    verdict = verify(folder, on_event=on_event)
    if verdict.exit_code == VerificationError.exit_code:
        raise VerificationError(f"{folder} is not what its receipt says, and is not published:\n{verdict.explain()}")
    card = _card(folder, verdict, found.name, base_models)
    planned = publication(folder, receipt.model_dump(by_alias=True), repo, card, copies=copies)
    url = None if dry_run else hub.publish(planned, private=private, message=message, listener=on_event)
    return Published(planned, found.name, (*found.notes, *_local(receipt), *_open(verdict)), url)


def _licence(receipt: ReceiptFacts, hub: Hub, given: str | None) -> Licence:
    """The licence to publish under. RefusedError, plainly, where the inputs' do not fit and none is given."""
    from surgeon.ship.licences import Licence, joined

    models = [facts for facts in receipt.inputs if facts.kind in ("model", "adapter")]
    named = {
        facts.name: hub.licence(facts.ref.partition("@")[0], facts.revision) if facts.revision else _written(facts.ref)
        for facts in models
    }
    found = joined(named)
    if given is not None:
        return Licence(given, notes=(*found.problems, *found.notes))
    if found.problems:
        listed = "\n    ".join(found.problems)
        raise RefusedError(
            f"the licences of the inputs leave open whether this may be published:\n    {listed}",
            hint="settle it with the authors, then say under which it goes: --licence NAME",
        )
    return found


def _written(ref: str) -> str | None:
    """The licence in the card of a local folder."""
    from surgeon.engine.card import card_metadata

    about = card_metadata(Path(ref).expanduser())
    return about.get("license_name") if about.get("license") == "other" else about.get("license")


def _card(folder: Path, verdict: Verdict, licence: str | None, base_models: Sequence[str]) -> bytes:
    """The card as `apply` wrote it, with the licence, base models and what was proven."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        raise RefusedError(
            f"{folder} has no README.md, which a model is published with", hint="write one, or apply again"
        )
    card = ModelCard.load(path, ignore_metadata_errors=True)
    about: Any = card.data
    about.license = licence
    if base_models:
        about.base_model = list(base_models)
        about.base_model_relation = "merge" if len(base_models) > 1 else "finetune"
    text = card.text.strip()
    return f"---\n{about.to_yaml().strip()}\n---\n\n{text}\n\n{_table(verdict)}".encode()


def _table(verdict: Verdict) -> str:
    checked: Mapping[str, Any] = verdict.checked
    zeros = checked.get("zeros", {})
    rows = {
        "Verdict": verdict.verdict,
        "Tensors": checked["tensors"],
        "Byte copies of the inputs": checked.get("copied"),
        "Computed": checked.get("computed"),
        "Entries of these recomputed": f"{checked['recomputed_share']:.0%}" if "recomputed_share" in checked else None,
        "Tensors with a direction removed": len(zeros) or None,
        "Largest ‖RᵀW'‖/‖RᵀW‖ in their bytes": f"{max(zeros.values()):.1e}" if zeros else None,
        "Receipts of inputs that hold": checked.get("receipts") or None,
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["## Verification", "", "| `surgeon verify` | |", "|---|---|", *lines, ""])


def _local(receipt: ReceiptFacts) -> tuple[str, ...]:
    names = [facts.ref for facts in receipt.inputs if facts.revision is None]
    return (f"the receipt and the recipe name local inputs for all to read: {', '.join(names)}",) if names else ()


def _open(verdict: Verdict) -> tuple[str, ...]:
    return tuple(f"not proven: {one.subject}: {one.message}" for one in verdict.findings if one.kind == "unknown")
