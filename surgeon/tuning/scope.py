"""Where to edit and how strongly: writers ranked by causal effect, a few scopes tried, one chosen by effect per cost.

What separates two sets of states best says little about which weights act on it; editing one writer at a time and
looking at what the model then says does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from surgeon.anatomy.describe import Anatomy
from surgeon.anatomy.family import Part
from surgeon.artifacts.direction import OWN, OWN_MID, Direction
from surgeon.space.expr import DirectionRef, Edit, Expr, settings
from surgeon.space.schedule import exact

#: A writer counts where its effect is at least this share of the largest one's.
SHARES = (0.5, 0.25, 0.1, 0.05)
#: Strengths tried, upwards from 1 (which removes) while the cost allows, downwards where it does not.
STRENGTHS, WEAKER = (1.0, 1.5, 2.0, 3.0, 4.0), (0.75, 0.5)


#: Nats a token that showing never rather than always is worth, once it shows rarely.
_WORTH = 0.02


@dataclass(frozen=True)
class Scope:
    """The part of an edit that says where: blocks, parts, and which point's direction each writer uses."""

    layers: tuple[int, int] | None
    writers: tuple[str, ...]
    at: str

    def edit(self, of: Expr, direction: Direction | str, strength: float, name: str = "direction") -> Edit:
        """The ablation of this scope."""
        use = DirectionRef(direction, self.at, name)
        chosen = settings({"strength": exact(strength)})
        return Edit("ablate", of, (use,), chosen, self.layers, self.writers)

    def __str__(self) -> str:
        parts = " and ".join(self.writers) or "all writers"
        where = f"blocks {self.layers[0]}..{self.layers[1]}" if self.layers else "every block and the embedding"
        along = "each block's own direction" if self.at in (OWN, OWN_MID) else f"the direction at {self.at}"
        return f"{parts} of {where}, along {along}"

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        layers = f"{self.layers[0]}..{self.layers[1]}" if self.layers else None
        return {"layers": layers, "writers": list(self.writers) or "all", "at": self.at, "words": str(self)}


@dataclass(frozen=True)
class Effect:
    """What one writer's edit takes from the manner, in nats of log-probability."""

    block: int
    part: Part
    nats: float


@dataclass(frozen=True)
class Tried:
    """A scope at a strength: the manner's loss in nats, the cost in nats a token, how often it shows (once counted)."""

    scope: Scope
    strength: float
    nats: float
    kl: float
    rate: float | None = None

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**self.scope.to_dict(), "strength": self.strength, "nats": self.nats, "kl": self.kl, "rate": self.rate}


def single_writers(anatomy: Anatomy) -> Iterator[tuple[int, Part, Scope]]:
    """The scope of each block's attention and MLP by itself, along its own direction."""
    for block in range(anatomy.blocks):
        for part in (Part.ATTENTION, Part.MLP):
            yield block, part, Scope((block, block + 1), (part.value,), OWN)


def scopes(effects: Sequence[Effect], blocks: int) -> tuple[Scope, ...]:
    """Scopes worth trying: runs of blocks that hold the effective writers, and the best block's own everywhere.

    Attention, MLP, or both; a run that begins early is tried without the first third of the model as well, where an
    edit costs most.
    """
    found: dict[Scope, None] = {}
    for parts in ((Part.ATTENTION,), (Part.MLP,), (Part.ATTENTION, Part.MLP)):
        known = [effect for effect in effects if effect.part in parts]
        top = max((effect.nats for effect in known), default=0.0)
        for share in SHARES if Part.ATTENTION in parts else SHARES[:1]:
            held = [effect.block for effect in known if effect.nats >= share * top > 0]
            if held:
                writers, end = tuple(part.value for part in parts), max(held) + 1
                for first in dict.fromkeys((min(held), max(min(held), min(blocks // 3, end - 1)))):
                    found[Scope((first, end), writers, OWN)] = None
    best = max(effects, key=lambda effect: effect.nats)
    found[Scope(None, (), f"block.{best.block}")] = None
    return tuple(found)


def choose(tried: Sequence[Tried], before: float, budget: float) -> Tried:
    """The cheapest of those that leave (almost) nothing, within the budget or else beyond it.

    `before` is the rate unedited. What shows once in ten times or less is weighed against the cost: a few dozen answers
    tell no more. Where none leaves little, the largest loss of rate per cost.
    """
    counted = [(one.rate, one) for one in tried if one.rate is not None]
    within = [(rate, one) for rate, one in counted if one.kl <= budget]
    for offered in (within, counted):
        least = min((rate for rate, _ in offered), default=1.0)
        if least <= 0.25 * before:
            good = [(rate, one) for rate, one in offered if rate <= max(least + 0.03, 0.1 * before)]
            return min(good, key=lambda pair: pair[1].kl + _WORTH * pair[0])[1]
    return max(within or counted, key=lambda pair: (before - pair[0]) / (pair[1].kl + 0.01))[1]


def search(candidates: Sequence[Scope], measure: Callable[[Scope, float], Tried], budget: float) -> list[Tried]:
    """Try every scope at growing strength as long as the cost allows, or at less than 1 where it does not."""
    found = []
    for scope in candidates:
        found.append(measure(scope, STRENGTHS[0]))
        if found[-1].kl > budget:
            found += [measure(scope, strength) for strength in WEAKER]
            continue
        for strength in STRENGTHS[1:]:
            found.append(measure(scope, strength))
            if found[-1].kl > budget:
                break
    return found
