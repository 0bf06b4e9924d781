"""Models that are combined row by row though a row is another token in each: said, since no shape shows it."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.anatomy.vocabulary import vocabulary_tensors
from surgeon.planning.nodes import Mix, Sum
from surgeon.planning.resolve import Node, Resolver


def other_tokens(resolver: Resolver) -> tuple[str, ...]:
    """A warning for each pair of models whose tokenizers give a row to different tokens."""
    pairs = dict.fromkeys(pair for node in resolver.done.values() for pair in _pairs(node))
    return tuple(said for pair in pairs if (said := _differing(*pair)))


def _pairs(node: Node) -> Iterator[tuple[Node, Node]]:
    """The first model of what combines several, with each of the others."""
    members = (node.base, *(member for member, _ in node.members)) if isinstance(node, Mix) else ()
    points = tuple(point for point, _ in node.points) if isinstance(node, Sum) else members
    first, *others = [point for point in points if point is not None and point.mass.is_number(1)] or (None,)
    if first is not None and vocabulary_tensors(first.table):
        yield from ((first, other) for other in others)


def _differing(first: Node, second: Node) -> str:
    held = [node.sides.files.get("tokenizer.json") for node in (first, second)]
    if None in held or held[0] == held[1]:
        return ""
    texts = [content if isinstance(content, bytes) else content.read_bytes() for content in held if content is not None]
    if texts[0] == texts[1]:
        return ""
    one, other = ({row: token for token, row in node.sides.tokenizer.ids.items()} for node in (first, second))
    rows = sorted(row for row in one.keys() & other.keys() if one[row] != other[row])
    if not rows:
        return ""
    return (
        f"{len(rows)} rows are other tokens in {second.label} than in {first.label}, which is combined with it: row "
        f"{rows[0]} is {other[rows[0]]!r} and {one[rows[0]]!r}; reshape: vocab brings both to one vocabulary"
    )
