"""What merges take of data: which artifact each member has, which are measured first, and on what.

An artifact that will be measured is stood in for, so that shapes and memory are known before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from surgeon.anatomy.describe import Anatomy, describe
from surgeon.anatomy.family import Role
from surgeon.artifacts.per_tensor import PerTensor, Place
from surgeon.errors import MismatchError, Origin, RefusedError, nearest
from surgeon.planning.prepare import rebuilt
from surgeon.planning.resolve import Resolver
from surgeon.planning.sources import Sources
from surgeon.space.expr import ONE, DataFit, Expr, Member, Merge, MergeSettings, Model, combination, settings, walk
from surgeon.space.method import MergeMethod
from surgeon.space.parameters import OnBase, Parameter
from surgeon.space.registry import merge_method_named
from surgeon.store.adapter import Adapter
from surgeon.store.fingerprint import fingerprint
from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec


@dataclass(frozen=True)
class Measuring:
    """One artifact to be measured: what kind, on which model, over which prompts (empty: the neutral text).

    `joint` is the merge that it is measured in, where all its models are measured together.
    """

    kind: str
    model: Expr
    prompts: str
    joint: Merge | None = None
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)

    @property
    def rests_on(self) -> tuple[Expr, ...]:
        """The models that must be there first."""
        if self.joint is None:
            return (self.model,)
        base = () if self.joint.base_model is None else (self.joint.base_model,)
        return (*base, *(member.of for member in self.joint.members))


class Use(NamedTuple):
    """An artifact as a merge uses it: a setting's value, of the member at `index` (None: the base's own)."""

    parameter: Parameter
    index: int | None
    value: str | DataFit | None


def spelled(expr: Expr) -> Expr:
    """The expression with every fit written out where it belongs.

    What a method measures on the base by default is a setting; what a step measures for all its models, each one's.
    """
    made: dict[Expr, Expr] = {}
    for node in walk(expr):
        again = rebuilt(node, made)
        made[node] = _spelled(again) if isinstance(again, Merge) else again
    return made[expr]


def _spelled(merge: Merge) -> Merge:
    given, members = dict(merge.settings), merge.members
    method = merge_method_named(merge.method)
    for parameter in method.per_tensor:
        name, default = parameter.name, parameter.default
        if isinstance(default, OnBase) and name not in given and _wanted(method, default, given):
            given[name] = DataFit(parameter.type.kind, origin=merge.origin)
        if parameter.per_model and isinstance(given.get(name), DataFit):
            shared = {name: given.pop(name)}
            members = tuple(Member(one.of, settings(shared | dict(one.settings))) for one in members)
    return replace(merge, members=members, settings=settings(given))


def _wanted(method: MergeMethod[...], default: OnBase, given: Mapping[str, object]) -> bool:
    """Whether what is measured on the base would count at all."""
    return given.get(default.weight, method.parameters[default.weight].default) != 0


def uses(merge: Merge) -> Iterator[Use]:
    """Every artifact with an entry for each tensor that a merge takes."""
    shared = dict(merge.settings)
    for parameter in merge_method_named(merge.method).per_tensor:
        levels: list[tuple[int | None, MergeSettings]] = [(None, ())]
        if parameter.per_model:
            levels = [(index, member.settings) for index, member in enumerate(merge.members)]
        for index, own in levels:
            value = dict(own).get(parameter.name, shared.get(parameter.name))
            yield Use(parameter, index, value if isinstance(value, str | DataFit) else None)


def measuring(merge: Merge, use: Use, sources: Sources) -> Measuring | None:
    """What has to be measured for a use; None where that is a file or nothing."""
    fit = use.value
    if not isinstance(fit, DataFit):
        return None
    if fit.fit != use.parameter.type.kind:
        message = f"{use.parameter.name} takes a {use.parameter.type.kind}, not fit: {fit.fit}"
        raise RefusedError(message, origin=fit.origin or merge.origin, hint=nearest(fit.fit, [use.parameter.type.kind]))
    model, label = fit.model or standing(merge, use.index, sources), f"{use.parameter.name}"
    if use.index is not None:
        label = f"{merge.members[use.index].of}.{label}"
    joint = merge if use.parameter.type.joint else None
    return Measuring(fit.fit, model, fit.prompts, joint, label, fit.origin or merge.origin)


def standing(merge: Merge, index: int | None, sources: Sources) -> Expr:
    """The model that a member of a merge is, the base and it where it is an adapter; without an index the base."""
    base = merge.base_model
    if index is None:
        if base is None:
            raise RefusedError(f"{merge} has no base_model to measure on", origin=merge.origin)
        return base
    member = merge.members[index].of
    if isinstance(member, Model) and isinstance(sources[member], Adapter) and base is not None:
        return combination([(base, ONE), (member, ONE)])
    return member


def measurings(expr: Expr, sources: Sources) -> tuple[Measuring, ...]:
    """All that an expression's merges measure, each once, in the order in which it can be."""
    found = (measuring(node, use, sources) for node in walk(expr) if isinstance(node, Merge) for use in uses(node))
    return tuple(dict.fromkeys(one for one in found if one is not None))


def with_files(expr: Expr, files: Mapping[Measuring, str], sources: Sources) -> Expr:
    """The expression with what has been measured named by its file."""
    made: dict[Expr, Expr] = {}
    for node in walk(expr):
        again = rebuilt(node, made)
        if isinstance(node, Merge) and isinstance(again, Merge):
            for use in uses(node):
                wanted = measuring(node, use, sources)
                if wanted is not None and wanted in files:
                    again = _named(again, use, files[wanted])
        made[node] = again
    return made[expr]


def _named(merge: Merge, use: Use, file: str) -> Merge:
    """The merge with one use's value replaced."""
    if use.index is None:
        return replace(merge, settings=settings(dict(merge.settings) | {use.parameter.name: file}))
    members = list(merge.members)
    member = members[use.index]
    members[use.index] = Member(member.of, settings(dict(member.settings) | {use.parameter.name: file}))
    return replace(merge, members=tuple(members))


def opened(
    merge: Merge, resolver: Resolver, table: Mapping[str, TensorSpec]
) -> dict[str, tuple[PerTensor | None, ...]]:
    """The artifacts of a merge by argument, headers only; stand-ins for what is still to be measured."""
    per_tensor = merge_method_named(merge.method).per_tensor
    found: dict[str, tuple[PerTensor | None, ...]] = {parameter.argument: () for parameter in per_tensor}
    for use in uses(merge):
        wanted = measuring(merge, use, resolver.sources)
        if wanted is not None:
            artifact: PerTensor | None = _stand_in(use.parameter.type, wanted, table, resolver)
        else:
            artifact = use.parameter.type.load(Path(str(use.value)).expanduser()) if use.value else None
        found[use.parameter.argument] += (artifact,)
    return found


def artifacts(expr: Expr) -> tuple[PerTensor, ...]:
    """The files of artifacts that an expression's merges read, each once."""
    found: dict[Path, PerTensor] = {}
    for node in walk(expr):
        for use in uses(node) if isinstance(node, Merge) else ():
            if isinstance(use.value, str):
                path = Path(use.value).expanduser()
                found.setdefault(path, use.parameter.type.load(path))
    return tuple(found.values())


def check_measured(expr: Expr, sources: Sources) -> None:
    """MismatchError for an artifact that was measured on another model than the one it is given for."""
    marks: dict[Model, str] = {}
    merges = [node for node in walk(expr) if isinstance(node, Merge)]
    named = [(node, use) for node in merges for use in uses(node) if isinstance(use.value, str)]
    for merge, use in named:
        artifact = use.parameter.type.load(Path(str(use.value)).expanduser())
        on = standing(merge, use.index, sources)
        models = [one for one in walk(on) if isinstance(one, Model)]
        marks |= {model: fingerprint(sources[model]) for model in models if model not in marks}
        if artifact.models != {marks[model] for model in models}:
            name = artifact.about.get("model_ref", "an unknown model")
            raise MismatchError(
                f"{merge}: {artifact.ref} was measured on another model ({name}) than {on}",
                origin=merge.origin,
                hint=f"measure it on {on} (surgeon measure {artifact.kind}), or insist with --any-model",
            )


def _stand_in(
    kind: type[PerTensor], wanted: Measuring, table: Mapping[str, TensorSpec], resolver: Resolver
) -> PerTensor:
    """An artifact with the entries that measuring will give, by the family's table."""
    anatomy = describe(resolver.on(None)(wanted.model).config, table, str(wanted.model))
    entries = {name: place for name in table if (place := _entry(kind, anatomy, table, name)) is not None}
    nowhere = Path(f"{wanted.name} (to be measured)")
    stored = {name: Stored(nowhere, number, spec) for number, (name, (_, spec)) in enumerate(entries.items())}
    about = {"tensors": {name: [place.entry, place.axis] for name, (place, _) in entries.items()}}
    return kind({}, about, None, stored)


def _entry(
    kind: type[PerTensor], anatomy: Anatomy, table: Mapping[str, TensorSpec], name: str
) -> tuple[Place, TensorSpec] | None:
    spec, place = table[name], anatomy.places.get(name)
    if kind.aligned:
        return (Place(name), TensorSpec("F32", spec.shape)) if spec.is_float else None
    if len(spec.shape) != 2 or place is None or name == anatomy.embed or place.role is Role.INSIDE:
        return None
    axis = place.axis if place.role is not Role.WRITES_RESIDUAL else -3 - place.axis
    return Place(name, axis), TensorSpec("F32", (spec.shape[axis],) * 2)
