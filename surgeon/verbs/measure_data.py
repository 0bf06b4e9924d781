"""`surgeon measure gram` and `measure fisher`: what merges take of data, measured once and kept in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import OutputError, RefusedError
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.artifacts.per_tensor import PerTensor
    from surgeon.engine.events import Listener
    from surgeon.planning.options import Options
    from surgeon.planning.plan import Plan
    from surgeon.runtime.load import Loaded
    from surgeon.runtime.text import Encoded, Example
    from surgeon.space.expr import Expr


@dataclass(frozen=True)
class DataReport:
    """What was measured, and where it lies."""

    path: Path
    kind: str
    about: dict[str, Any]
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        about = {key: value for key, value in self.about.items() if key != "tensors"}
        count = len(self.about.get("tensors", ()))
        return {"file": str(self.path), "kind": self.kind, "bytes": self.nbytes, "tensors": count} | about

    def summary(self) -> str:
        """Two lines for the terminal."""
        told = self.to_dict()
        return (
            f"wrote {self.path}: the {self.kind} of {told['tensors']} tensors over {told['tokens']} tokens of "
            f"{told['examples']} examples, {human_bytes(self.nbytes)}\n"
            f"  use it: merge: {'regmean' if self.kind == 'gram' else self.kind}, "
            f"models: {{NAME: {{{self.kind}: {self.path}}}}}"
        )


def measure_gram(
    model: str | Path | Expr,
    out: str | Path,
    *,
    prompts: str | Path | None = None,
    adapter: str | Path | None = None,
    layers: int = 1,
    answer: int = 64,
    dtype: str = "float32",
    device: str = "auto",
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> DataReport:
    """Measure the Gram of every linear layer of a model (with an adapter on it, if one is named) and write it to OUT.

    `prompts` is a file of examples, a JSON line each (prompt, messages or text, at will with a response); without one
    the neutral text that comes with surgeon is used. A prompt without a response gets the model's own greedy answer, of
    at most `answer` tokens. `layers` is how many blocks' Grams are held at once. OUT is a file for `merge: regmean`.
    """
    return _measured(
        "gram", model, out, prompts, adapter, {"layers": layers}, answer, dtype, device, overwrite, on_event
    )


def measure_fisher(
    model: str | Path | Expr,
    out: str | Path,
    *,
    prompts: str | Path | None = None,
    adapter: str | Path | None = None,
    layers: int = 0,
    answer: int = 64,
    dtype: str = "float32",
    device: str = "auto",
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> DataReport:
    """Measure the diagonal Fisher information of a model's weights and write it to OUT, a file for `merge: fisher`.

    It is the mean square of ∂ log p / ∂θ over the tokens the model answers with. `layers` blocks are held at once
    (0: all), each lot taking passes of its own. All else is as for `measure_gram`.
    """
    return _measured(
        "fisher", model, out, prompts, adapter, {"layers": layers}, answer, dtype, device, overwrite, on_event
    )


def _measured(
    kind: str, model: str | Path | Expr, out: str | Path, prompts: str | Path | None, adapter: str | Path | None,
    settings: dict[str, Any], answer: int, dtype: str, device: str, overwrite: bool, on_event: Listener | None,
) -> DataReport:  # fmt: skip
    from surgeon.planning.options import Options

    path = Path(out).expanduser()
    if path.is_dir() or (path.exists() and not overwrite):
        raise OutputError(f"{path} exists", hint="choose another file, or --overwrite" * path.is_file())
    if settings["layers"] < (kind == "gram") or answer < 0:
        raise RefusedError("layers must be 1 or more (0 is all, for fisher alone), and answer 0 or more")
    expr = _expression(model, adapter)
    with running(expr, Options(device=device), dtype=dtype) as (loaded, planned):
        measured(kind, loaded, planned, str(prompts or ""), path, answer=answer, listener=on_event, **settings)
    artifact = kind_named(kind).load(path)
    return DataReport(path, kind, dict(artifact.about), path.stat().st_size)


def kind_named(kind: str) -> type[PerTensor]:
    """The artifact of this kind."""
    from surgeon.artifacts.fisher import Fisher
    from surgeon.artifacts.gram import Gram

    return {"gram": Gram, "fisher": Fisher}[kind]


@contextmanager
def running(expr: Expr, options: Options, dtype: str = "float32") -> Iterator[tuple[Loaded, Plan]]:
    """The model that an expression makes, loaded; what differs from the checkpoint whose files it has is put in."""
    from surgeon.engine.run import run
    from surgeon.errors import MismatchError
    from surgeon.measuring.trial import changes_only
    from surgeon.planning.plan import build
    from surgeon.runtime.load import has_tokenizer, load
    from surgeon.runtime.module_sink import ModuleSink
    from surgeon.space.output import Output, Recipe

    planned = build(Recipe(expr, Output(dtype="F32", dequantize=True)), options)
    root = planned.files_from.root
    if not has_tokenizer(root):
        raise MismatchError(f"{expr} has no tokenizer", hint=f"put its tokenizer.json into {root}")
    loaded = load(root, dtype=dtype, device=options.device)
    changed = changes_only(planned, loaded)
    with ModuleSink(loaded, {target.name: target.spec for target in changed.targets}) as sink:
        if changed.targets:
            run(changed, sink)
        yield loaded, planned


def read_prompts(loaded: Loaded, prompts: str) -> tuple[Example, ...]:
    """The examples of a file, or the neutral ones."""
    from surgeon.directions.examples import neutral_examples, read_examples

    return read_examples(Path(prompts).expanduser(), mixed=True) if prompts else neutral_examples(loaded.has_chats)


def about_data(planned: Plan, prompts: str, examples: Sequence[Example]) -> dict[str, Any]:
    """What an artifact says of where it comes from: the models' fingerprints, the prompts and their hash."""
    from blake3 import blake3

    from surgeon.store.fingerprint import fingerprint

    data = blake3(repr([dict(one) for one in examples]).encode()).hexdigest()
    models = sorted({fingerprint(source) for source in planned.sources.values()})
    return {
        "models": models, "model_ref": str(planned.recipe.expr), "data": data,
        "prompts": Path(prompts).name if prompts else "neutral text",
    }  # fmt: skip


def measured(
    kind: str,
    loaded: Loaded,
    planned: Plan,
    prompts: str,
    path: Path,
    *,
    answer: int = 64,
    listener: Listener | None = None,
    name: str = "",
    **settings: Any,
) -> None:
    """Measure what merges take of data on a model that runs, into a file."""
    from surgeon.calibration.samples import samples
    from surgeon.engine.events import Progress

    def tell(done: int, total: int) -> None:
        if listener is not None:
            listener(Progress(f"measure {name or kind}", done, total, "steps"))

    examples = read_prompts(loaded, prompts)
    encoded: list[Encoded] = samples(loaded, examples, answer)
    about = about_data(planned, prompts, examples)
    if kind == "gram":
        from surgeon.calibration.gram import measure_grams

        measure_grams(loaded, encoded, path, listener=tell, **settings, **about)
    else:
        from surgeon.calibration.fisher import measure_fisher as diagonal

        diagonal(loaded, encoded, path, listener=tell, **settings, **about)


def _expression(model: str | Path | Expr, adapter: str | Path | None) -> Expr:
    """The model, with the adapter on it."""
    from surgeon.space.expr import Expr, Model

    def named(ref: str | Path) -> Expr:
        return Model(str(ref), probe=True, name=Path(str(ref).partition("@")[0]).name)

    base = model if isinstance(model, Expr) else named(model)
    return base if adapter is None else base + named(adapter)
