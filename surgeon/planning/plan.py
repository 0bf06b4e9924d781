"""A plan: every output tensor accounted for, where it goes, what it costs; built from headers alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from surgeon.artifacts.per_tensor import PerTensor
from surgeon.errors import MismatchError, RefusedError
from surgeon.planning.editing import check_models
from surgeon.planning.edits import Reshaped
from surgeon.planning.graph import Graph
from surgeon.planning.kinds import Kinds
from surgeon.planning.measured import Measuring, artifacts, check_measured, measurings, spelled
from surgeon.planning.options import Options
from surgeon.planning.patterns import check_patterns
from surgeon.planning.prepare import fits, untied
from surgeon.planning.promises import Promise, changed_gains, promise_of, standing, undone
from surgeon.planning.quantising import (
    check_quantised,
    copied,
    full_config,
    full_files,
    is_activation_scale,
    packed_as,
    refuse,
    refuse_scale,
    requantised,
)
from surgeon.planning.resolve import Node, Resolver, check_mass
from surgeon.planning.side_files import config_changes, file_changes, files_model
from surgeon.planning.sources import Sources, open_sources
from surgeon.planning.spanning import check_spanning
from surgeon.planning.step import Input, Key, Steps, Target
from surgeon.planning.tokens import other_tokens
from surgeon.space.expr import Fit, Model
from surgeon.space.output import Output, Recipe
from surgeon.space.select import matches
from surgeon.space.sides import Content
from surgeon.store.adapter import Adapter
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.layout import Layout, lay_out
from surgeon.tensors import TensorSpec

#: What the engine reads tensors from.
Readable = Checkpoint | Adapter | PerTensor


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be read, computed and written. `explain()` says it in words; nothing has been read.

    `config` and `files` are what is not as in `files_from`: keys of config.json; whole files, None for those left out;
    `left_out` are the keys that config.json has no more.
    """

    recipe: Recipe
    options: Options
    sources: Sources
    steps: Steps
    targets: tuple[Target, ...]
    dropped: tuple[str, ...]
    layout: Layout
    files_from: Checkpoint
    workers: int
    peak: int
    warnings: tuple[str, ...]
    config: Mapping[str, Any]
    files: Mapping[str, Content | None]
    fits: tuple[Fit | Measuring, ...]
    artifacts: tuple[PerTensor, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def written_config(self) -> dict[str, Any]:
        """The result's config.json, but for the dtype it names."""
        return {k: v for k, v in {**self.files_from.config, **self.config}.items() if k not in self.left_out}

    @property
    def inputs(self) -> tuple[tuple[str, Readable], ...]:
        """All that tensors are read from, with what it is called: models in the order of the recipe, then artifacts."""
        models = tuple((str(model), source) for model, source in self.sources.items())
        return (*models, *((one.file.stem, one) for one in self.artifacts if one.file is not None))

    @property
    def tier(self) -> str:
        """A: the same bytes on any CPU of one architecture; B: on the same torch build and CPU capability."""
        products = {"low_rank", "dora"}
        kernels = {step.kernel for step in self.steps.values()}
        return "B" if kernels & products or any(_is_whole(kernel) for kernel in kernels) else "A"

    def explain(self) -> str:
        """The plan in words, in the manner of terraform: a legend, what changes, a sentence of totals."""
        from surgeon.planning.explain import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        from surgeon.planning.explain import as_dict

        return as_dict(self)


def _is_whole(kernel: str) -> bool:
    from surgeon.space.kernels import kernel_named

    return kernel not in ("load", "same") and kernel_named(kernel).blocks != "elements"


def build(recipe: Recipe, options: Options | None = None) -> Plan:
    """Plan a recipe: open its models' headers, check that everything fits, decide how each tensor is made."""
    with _no_collection():
        return _build(recipe, options or Options())


@contextmanager
def _no_collection() -> Iterator[None]:
    """A plan of 20 000 tensors makes a million objects that all stay: looking for garbage among them takes a third."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _build(recipe: Recipe, options: Options) -> Plan:
    from surgeon.planning.memory import fit

    files_from = recipe.output.files_from
    sources = open_sources(recipe.expr, *([files_from] if files_from is not None else []))
    resolver = Resolver(sources)
    recipe = replace(recipe, expr=spelled(untied(recipe.expr, resolver)))
    root = resolver(recipe.expr)
    check_mass(root, wanted=(1,), origin=recipe.expr.origin)
    giver = files_model(recipe, sources)
    graph = Graph(_dtypes(root, giver, recipe.output), recipe.output.dtype)
    kinds = Kinds(graph.steps)
    unfitting = check_patterns(recipe.expr, root, resolver)
    if not options.any_model:
        check_models(recipe.expr, sources)
        check_measured(recipe.expr, sources)
    dropped = _dropped(recipe, root, giver)
    making = _Making(root, graph, kinds, recipe.output, giver, sources)
    targets = tuple(target for name in root.table if name not in dropped for target in making.targets(name))
    check_quantised(targets, sources, recipe.output)
    _refuse_packed(targets, kinds)
    if recipe.output.rounding == "compensated" and not any(target.promise for target in targets):
        raise RefusedError("rounding: compensated needs an edit that promises a zero", origin=recipe.output.origin)
    if any(target.action == "compute" and kinds.of(target.key).spans for target in targets):
        check_spanning(graph.steps, targets)
    source_map = giver.shard_of if recipe.output.shard_size is None else None
    layout = lay_out({target.name: target.spec for target in targets}, source_map, recipe.output.shard_size)
    targets, workers, peak = fit(kinds, targets, options)
    full, left_out = full_config(giver.config, recipe.output)
    return Plan(
        recipe,
        options,
        sources,
        graph.steps,
        targets,
        dropped,
        layout,
        giver,
        workers,
        peak,
        (
            *unfitting,
            *_notes(resolver),
            *_warnings(targets, sources, recipe.output.dtype, giver),
            *other_tokens(resolver),
            *undone(graph.steps, (target.key for target in targets)),
            *changed_gains(graph, root, targets),
        ),
        {**full, **config_changes(root, recipe, resolver)},
        {**full_files(root.sides, recipe.output), **file_changes(root, recipe, resolver)},
        (*fits(recipe.expr), *measurings(recipe.expr, sources)),
        artifacts(recipe.expr),
        left_out,
    )


def _dtypes(root: Node, giver: Checkpoint, output: Output) -> dict[str, str]:
    """The dtype each tensor is written in: the output's, else that of the model that gives the side files."""
    found = {}
    for name, spec in root.table.items():
        given = output.files_from is not None and name in giver.table
        kept = giver.table[name].dtype if given else spec.dtype
        found[name] = TensorSpec(kept if spec.is_float else spec.dtype, spec.shape).cast(output.dtype).dtype
    return found


@dataclass(frozen=True, eq=False)
class _Making:
    """How the tensors of a node become those of the output."""

    root: Node
    graph: Graph
    kinds: Kinds
    output: Output
    giver: Checkpoint
    sources: Sources

    def targets(self, name: str) -> tuple[Target, ...]:
        """The target of a tensor; of a quantised weight, those of its parts."""
        key = self.graph.key(self.root, name)
        assert key is not None
        packed = packed_as(name, key, self.graph, self.giver, self.output)
        if packed is None:
            return (self._target(name, key),)
        if copies := copied(name, packed, key, self.graph):
            return copies
        if self.giver.quantised is not None and self.giver.quantised.once:
            model = next(model for model, source in self.sources.items() if source is self.giver)
            raise refuse(name, str(model), self.giver, model.origin)
        return requantised(self.root, name, key, packed, self.graph, self.kinds, self._promise(name, key))

    def _target(self, name: str, key: Key) -> Target:
        step, graph = self.graph.steps[key], self.graph
        spec = TensorSpec(graph.dtypes[name], step.spec.shape)
        if step.kernel == "same":
            first, *others = (graph.steps[need.key].stored for need in step.inputs)
            assert first is not None
            equal = tuple(other for other in others if other is not None)
            reads = first.spec.nbytes * (1 + len(equal))
            return Target(name, first.spec, key, "copy", "equal in all", first, equal, reads=reads)
        if step.kernel == "load" and step.stored is not None and step.stored.spec.dtype == spec.dtype:
            return Target(name, spec, key, "copy", "unchanged", step.stored, reads=spec.nbytes)
        if not spec.count:
            empty = next(s.stored for s in graph.steps.below(key) if s.stored is not None and not s.spec.count)
            return Target(name, spec, key, "copy", "empty", empty)
        if step.kernel != "load" and is_activation_scale(name, self.giver):
            raise refuse_scale(name)
        promise = self._promise(name, key)
        if promise is not None and self.output.rounding == "compensated" and spec.dtype in ("BF16", "F16"):
            layout = "@last" if promise.axis == -1 else ""
            inputs = Input(key), Input(promise.frame, whole=True)
            key = graph.add(self.root, name, f"round:{spec.dtype}{layout}", inputs, part="rounded")
        kind = self.kinds.of(key)
        reason = "cast" if step.kernel == "load" else kind.reason
        return Target(name, spec, key, "compute", reason, reads=kind.input_bytes * kind.looks, promise=promise)

    def _promise(self, name: str, key: Key) -> Promise | None:
        promise = promise_of(self.graph.steps, key)
        return promise and standing(promise, name, self.graph, self.root)


def _dropped(recipe: Recipe, root: Node, giver: Checkpoint) -> tuple[str, ...]:
    """What the recipe drops, and in a result in full what scales activations for quantised weights."""
    output = recipe.output
    for pattern in output.drop:
        if not any(matches(pattern, name) for name in root.table):
            raise RefusedError(f"drop: {pattern!r} matches no tensor", origin=output.origin)
    return tuple(
        name
        for name in root.table
        if any(matches(pattern, name) for pattern in output.drop)
        or (output.dequantize and is_activation_scale(name, giver))
    )


def _refuse_packed(targets: tuple[Target, ...], kinds: Kinds) -> None:
    for target in targets:
        if target.action == "compute" and kinds.of(target.key).packed:
            below = kinds.of(target.key).below
            found = next(step for step in below if step.stored is not None and not step.stored.spec.is_float)
            raise MismatchError(
                f"arithmetic needs F16, BF16, F32 or F64 tensors; {target.name} would be made from {found.spec}",
                hint="dequantise it first",
            )


def _notes(resolver: Resolver) -> tuple[str, ...]:
    """What reshapes on the way say, each once."""
    return tuple(
        dict.fromkeys(note for node in resolver.done.values() if isinstance(node, Reshaped) for note in node.notes)
    )


def _warnings(targets: tuple[Target, ...], sources: Sources, dtype: str | None, giver: Checkpoint) -> tuple[str, ...]:
    found = []
    if sources and all(
        target.action == "copy" and target.stored == giver.tensors.get(target.name) for target in targets
    ):
        found.append("nothing changes: every tensor is a copy")
    kept = [target for target in targets if dtype and target.spec.dtype.startswith(("F8", "F6", "F4"))]
    if kept:
        found.append(f"dtype does not reach {len(kept)} quantised tensors, such as {kept[0].name} {kept[0].spec}")
    configs = {
        str(model): source.config.get("model_type")
        for model, source in sources.items()
        if isinstance(source, Checkpoint) and isinstance(model, Model) and source.config
    }
    if len(set(configs.values())) > 1:
        found.append("the models' configs name different types: " + ", ".join(f"{k}: {v}" for k, v in configs.items()))
    return tuple(found)
