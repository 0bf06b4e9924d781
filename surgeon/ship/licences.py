"""Which licence a result of several models may carry, and what does not fit: plain rules, and no lawyer.

Licences are called as the Hub calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: May be part of a work under any other licence, with the notices kept.
PERMISSIVE = frozenset(
    "0bsd afl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 isc mit ms-pl ncsa odc-by pddl postgresql "
    "unlicense wtfpl zlib".split()
)

#: What may be passed on unchanged only.
_UNCHANGED = ("cc-by-nd", "cc-by-nc-nd")


@dataclass(frozen=True)
class Licence:
    """The licence a result carries (None where that cannot be said), what does not fit, and what to know of it."""

    name: str | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def joined(licences: Mapping[str, str | None]) -> Licence:
    """The licence of what is made of these models: the one that is not permissive, if there is at most one such.

    Two different ones that each bind the whole result do not fit; what names no licence gives no leave to publish.
    """
    problems = [
        f"{model} names no licence, so nothing says that it may be passed on"
        for model, one in licences.items()
        if not one
    ]
    problems += [
        f"{model} is under {one}, which forbids passing on changed versions"
        for model, one in licences.items()
        if one and one.startswith(_UNCHANGED)
    ]
    named = {model: one for model, one in licences.items() if one}
    binding = sorted({one for one in named.values() if one not in PERMISSIVE})
    listed = ", ".join(f"{model}: {one}" for model, one in named.items())
    if len(binding) > 1:
        problems.append(f"licences that do not fit: {' and '.join(binding)} each bind the whole result ({listed})")
    if problems:
        return Licence(None, tuple(problems))
    kinds = sorted(set(named.values()))
    if binding:
        only = (f"{binding[0]} binds the whole result ({listed})",) if len(kinds) > 1 else ()
        return Licence(binding[0], notes=only)
    if len(kinds) > 1:
        # Among permissive ones the first model's stands, and the notices of the others have to be kept.
        first = next(iter(named.values()))
        return Licence(first, notes=(f"the notices of all of these have to be kept: {listed}",))
    return Licence(kinds[0] if kinds else None)
