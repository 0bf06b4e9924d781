"""What arithmetic of adapters alone does to each tensor of a base, its factors left apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from surgeon.planning.graph import Graph
from surgeon.planning.nodes import Delta
from surgeon.planning.resolve import Resolver
from surgeon.planning.sources import open_sources
from surgeon.space.expr import ONE, Combination, Expr, Model
from surgeon.store.adapter import LowRank


@dataclass(frozen=True)
class Term:
    """coefficient · (B A) of one adapter."""

    coefficient: float
    update: LowRank


def adapter_terms(difference: Expr, base: Model) -> Mapping[str, tuple[Term, ...]]:
    """Tensor → the low-rank terms a difference is the sum of, for tensors where it is such a sum and nothing else."""
    sources = open_sources(base, difference)
    resolver = Resolver(sources, Resolver(sources)(base))
    parts = difference.terms if isinstance(difference, Combination) else ((difference, ONE),)
    nodes = [(resolver(term), c) for term, c in parts if resolver.is_adapter(term)]
    if not nodes or len(nodes) < len(parts):
        return {}
    table = nodes[0][0].table
    graph = Graph()
    found: dict[str, tuple[Term, ...]] = {}
    for name in table:
        updates = [(update, c) for node, c in nodes if isinstance(node, Delta) for update in node.updates.get(name, ())]
        if all(isinstance(update, LowRank) and update.magnitude is None for update, _ in updates):
            numbers = [(float(graph.number(c, nodes[0][0], name)), update) for update, c in updates]
            terms = (Term(number, update) for number, update in numbers if isinstance(update, LowRank))
            found[name] = tuple(term for term in terms if term.coefficient)
    return found
