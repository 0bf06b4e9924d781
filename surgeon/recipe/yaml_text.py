"""YAML text → nodes with places. A safe subset: no tags, anchors, aliases, merge keys, directives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

from ruamel.yaml import YAML, events
from ruamel.yaml.error import YAMLError

from surgeon.errors import Fault, Origin, RecipeError
from surgeon.recipe.document import Node
from surgeon.recipe.scalars import resolve

LARGEST, DEEPEST = 1_000_000, 24
"""Bounds on a recipe: characters, and nesting."""


def read_documents(text: str, file: str) -> tuple[Node, ...]:
    """The trees of all YAML documents, at least one. RecipeError at the first thing that is not plain data."""
    return _Reader(text, lambda line, column: Origin(file, line + 1, column + 1)).documents()


def read_value(text: str, origin: Origin) -> Node:
    """The tree of a value typed outside a file: all of it stands at `origin`."""
    first, *others = _Reader(text, lambda line, column: origin).documents()
    if others:
        raise RecipeError([Fault("a value is one YAML document", origin)])
    return first


class _Reader:
    """Builds nodes from the parser's events, which it looks through one by one."""

    def __init__(self, text: str, place: Callable[[int, int], Origin]) -> None:
        self.place = place
        if len(text) > LARGEST:
            raise RecipeError([Fault(f"a recipe has at most {LARGEST} characters; this has {len(text)}", place(0, 0))])
        self.events = self._checked(text)

    def documents(self) -> tuple[Node, ...]:
        """The documents' trees; one that is null where the text holds none."""
        roots = [self._node(event, None, 0) for event in self.events if isinstance(event, events.NodeEvent)]
        return tuple(roots) or (Node(None, self.place(0, 0)),)

    def _checked(self, text: str) -> Iterator[events.Event]:
        """The events, refused at the first that is not plain data."""
        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                if isinstance(event, events.DocumentStartEvent) and (event.version or event.tags):
                    self._refuse("YAML directives are not read", event)
                if isinstance(event, events.AliasEvent) or getattr(event, "anchor", None):
                    self._refuse("anchors and aliases are not read; write the value out", event)
                if tag := getattr(event, "tag", None):
                    self._refuse(f"YAML tags are not read: {tag}", event)
                yield event
        except (YAMLError, ValueError, OverflowError) as error:
            raise RecipeError([self._not_yaml(error)]) from None

    def _not_yaml(self, error: Exception) -> Fault:
        said = vars(error)
        mark = said.get("problem_mark") or said.get("context_mark")
        reason = said.get("problem") or said.get("context") or str(error).strip().partition("\n")[0]
        return Fault(f"this is not YAML: {reason}", self.place(mark.line, mark.column) if mark else self.place(0, 0))

    def _refuse(self, message: str, event: events.Event) -> NoReturn:
        raise RecipeError([Fault(message, self._origin(event))])

    def _origin(self, event: events.Event) -> Origin:
        return self.place(event.start_mark.line, event.start_mark.column)

    def _node(self, event: events.Event, key: Origin | None, depth: int) -> Node:
        if depth > DEEPEST:
            self._refuse(f"nested deeper than {DEEPEST} levels", event)
        if isinstance(event, events.MappingStartEvent):
            return Node(self._mapping(depth), self._origin(event), key)
        if isinstance(event, events.SequenceStartEvent):
            return Node(tuple(self._sequence(depth)), self._origin(event), key)
        assert isinstance(event, events.ScalarEvent)
        return self._scalar(event, key)

    def _sequence(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self.events), events.SequenceEndEvent):
            yield self._node(event, None, depth + 1)

    def _mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := next(self.events), events.MappingEndEvent):
            name = self._scalar(event, None).value if isinstance(event, events.ScalarEvent) else None
            if not isinstance(name, str):
                self._refuse("a key must be a word (quote it if it looks like a number or a flag)", event)
            if name == "<<":
                self._refuse("merge keys (<<) are not read; write the entries out", event)
            if name in found:
                self._refuse(f"{name!r} is given twice; first at {found[name].key}", event)
            found[name] = self._node(next(self.events), self._origin(event), depth + 1)
        return found

    def _scalar(self, event: events.ScalarEvent, key: Origin | None) -> Node:
        start, end = event.start_mark, event.end_mark
        at, one_line = self._origin(event), start.line == end.line
        if not event.implicit[0]:
            verbatim = one_line and end.column - start.column == len(event.value) + 2
            return Node(event.value, self.place(start.line, start.column + verbatim), key, verbatim)
        try:
            return Node(resolve(event.value), at, key, one_line)
        except ValueError as error:
            raise RecipeError([Fault(str(error), at)]) from None
