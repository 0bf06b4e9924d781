"""What a verification found, and what that amounts to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["mismatch", "unknown", "note"]

_HEADINGS: Mapping[Kind, str] = {"mismatch": "wrong", "unknown": "cannot tell", "note": "note"}
_SHOWN = 6


@dataclass(frozen=True)
class Finding:
    """One thing found: of a tensor or file (`subject`), what it is, and what to do about it."""

    kind: Kind
    subject: str
    message: str
    hint: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.subject} ({self.detail})" if self.detail else self.subject


@dataclass(frozen=True)
class Verdict:
    """What a folder was found to be; `claim` and `proof` are words that follow "is" and the folder's name."""

    folder: str
    claim: str
    proof: str
    findings: tuple[Finding, ...] = ()
    checked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 proven, 3 mismatch, 4 cannot tell (3 wins over 4)."""
        kinds = {finding.kind for finding in self.findings}
        return 3 if "mismatch" in kinds else 4 if "unknown" in kinds else 0

    @property
    def verdict(self) -> str:
        """The exit code in words."""
        return {0: "proven", 3: "mismatch", 4: "cannot tell"}[self.exit_code]

    def explain(self) -> str:
        """The findings, equal ones together, then one sentence that says what is proven and what is not."""
        lines = [line for kind in _HEADINGS for line in self._lines(kind)]
        return "\n".join([*lines, *([""] if lines else []), self._sentence()])

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready data."""
        return {
            "folder": self.folder,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "sentence": self._sentence(),
            "checked": dict(self.checked),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _sentence(self) -> str:
        if self.exit_code == 0:
            return f"Proven: {self.folder} {self.proof}."
        kind = "mismatch" if self.exit_code == 3 else "unknown"
        count = len({finding.subject for finding in self.findings if finding.kind == kind})
        if self.exit_code == 3:
            return f"Mismatch: {self.folder} is not {self.claim}; {count} tensor(s) or file(s) are wrong."
        return (
            f"Cannot tell: nothing contradicts that {self.folder} is {self.claim}, but {count} point(s) cannot be "
            f"proven; what is proven: it {self.proof}."
        )

    def _lines(self, kind: Kind) -> Iterator[str]:
        groups: dict[tuple[str, str], list[str]] = {}
        for finding in self.findings:
            if finding.kind == kind:
                groups.setdefault((finding.message, finding.hint), []).append(str(finding))
        for (message, hint), subjects in groups.items():
            count = f"{len(subjects)} × " if len(subjects) > 1 else ""
            more = f" and {len(subjects) - _SHOWN} more" if len(subjects) > _SHOWN else ""
            yield f"{_HEADINGS[kind]}: {count}{message}: {', '.join(subjects[:_SHOWN])}{more}"
            if hint:
                yield f"  next: {hint}"


def mismatch(subject: str, message: str, hint: str = "", detail: str = "") -> Finding:
    """A finding that contradicts the claim."""
    return Finding("mismatch", subject, message, hint, detail)


def unknown(subject: str, message: str, hint: str = "") -> Finding:
    """A finding that leaves the claim open."""
    return Finding("unknown", subject, message, hint)


def note(subject: str, message: str) -> Finding:
    """A finding without consequence."""
    return Finding("note", subject, message)
