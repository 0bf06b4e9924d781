"""The step contract carries what edits will need: another tensor's merged value, and a statistic of the whole tensor.

An edit defined here, outside the product, takes the direction r out of what a layer behind an output norm writes: the
gain of that norm is folded in, q ∝ gain ⊙ r, and W' = W − q (qᵀW). It needs the gain as merged, and qᵀW of all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgeon
import surgeon.planning.resolve as resolving
import surgeon.space.expr as expressions
from surgeon.engine.run import run
from surgeon.errors import Origin
from surgeon.planning.graph import Graph
from surgeon.planning.options import Options
from surgeon.planning.plan import build
from surgeon.planning.step import Input, Key
from surgeon.space.expr import Expr
from surgeon.space.kernels import Kernel, kernel_named, register_kernels
from surgeon.space.output import Recipe
from surgeon.space.statistics import Statistic
from surgeon.store.layout import lay_out
from surgeon.store.writer import FolderWriter
from surgeon.testing.toys import random_tensors, read_checkpoint, write_checkpoint

ROWS, COLUMNS = 700, 1201
WRITER, GAIN = "model.layers.0.mlp.down_proj.weight", "model.layers.0.post_norm.weight"
DIRECTION = tuple(torch.randn(ROWS, generator=torch.Generator().manual_seed(5)).tolist())


@dataclass(frozen=True)
class Ablate(Expr):
    """What a layer writes, without a direction."""

    of: Expr
    origin: Origin | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"ablate({self.of})"


@dataclass(frozen=True, eq=False)
class Ablated:
    """The node of `Ablate`: one tensor edited, the others those of its operand."""

    inner: Any

    @property
    def label(self) -> str:
        return f"ablate({self.inner.label})"

    @property
    def table(self) -> Mapping[str, Any]:
        return self.inner.table

    @property
    def mass(self) -> Any:
        return self.inner.mass

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        key = graph.key(self.inner, tensor)
        if tensor != WRITER:
            return key
        gain = graph.key(self.inner, GAIN)
        assert key is not None
        assert gain is not None
        settings = {"direction": DIRECTION, "columns": COLUMNS}
        return graph.add(self, tensor, "edit:ablate", (Input(key), Input(gain, whole=True)), settings)


@dataclass(frozen=True)
class ColumnSums(Statistic):
    """Σ over rows, in float64, tile by tile."""

    @property
    def rounds(self) -> int:
        return 1

    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Tensor:
        return torch.zeros(settings["columns"], dtype=torch.float64)

    def observe(self, known: Tensor, values: Tensor, place: tuple[int, int]) -> Tensor:
        return values.double().reshape(-1, len(known)).sum(0)

    def conclude(self, known: Tensor, partials: Mapping[Any, Tensor]) -> Tensor:
        return torch.stack([partials[place] for place in sorted(partials)]).sum(0)

    def at(self, known: Tensor, place: tuple[int, int]) -> Tensor:
        return known


class AblateKernel(Kernel):
    """W − q (qᵀW)."""

    blocks = "rows"

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        return {"projection": ColumnSums()}

    def observed(self, stack, call) -> Tensor:
        return stack * self._unit(call.wholes, call.settings)[call.block.rows, None].to(stack.device)

    def __call__(self, stack, call) -> Tensor:
        unit = self._unit(call.wholes, call.settings)[call.block.rows, None].to(stack.device)
        return stack[0] - unit * call.known["projection"].to(stack.dtype).to(stack.device)

    @staticmethod
    def _unit(wholes, settings) -> Tensor:
        folded = wholes[0] * torch.tensor(settings["direction"], device=wholes[0].device)
        return folded / torch.linalg.vector_norm(folded)


@resolving.resolve.register
def _ablate(expr: Ablate, resolver: resolving.Resolver) -> Ablated:
    return Ablated(resolver(expr.of))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch):
    import surgeon.space.kernels as kernels

    monkeypatch.setattr(kernels, "_KINDS", dict(kernels._KINDS))
    register_kernels("edit", {"ablate": AblateKernel()}.__getitem__)


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Expr:
    shapes = {WRITER: (ROWS, COLUMNS), GAIN: (ROWS,), "model.norm.weight": (8,)}
    paths = [write_checkpoint(tmp_path / name, random_tensors(shapes, seed)) for seed, name in enumerate("abc")]
    a, b, c = map(surgeon.open, paths)
    children = expressions.children
    for module in (expressions, __import__("surgeon.planning.side_files", fromlist=["children"])):
        monkeypatch.setattr(module, "children", lambda e: (e.of,) if isinstance(e, Ablate) else children(e))
    return surgeon.merge("ties", [b, c], base_model=a, weight=[0.6, 0.4], density=0.4)


def write(expr: Expr, folder: Path, **options: Any) -> dict[str, Tensor]:
    """The tensors of an expression, as written by the engine."""
    plan = build(Recipe(expr), Options(**options))
    layout = lay_out({target.name: target.spec for target in plan.targets}, None, None)
    writer = FolderWriter(folder, layout)
    writer.create()
    run(plan, writer)
    writer.close()
    return read_checkpoint(folder)


@pytest.mark.parametrize("over", ["tensor", "model"])
def test_an_edit_of_a_merge_sees_the_merged_gain_and_the_whole_tensor(merged: Expr, tmp_path: Path, over: str):
    import dataclasses

    merged = dataclasses.replace(merged, settings=(*merged.settings, ("over", over)))  # pyright: ignore
    plain = write(merged, tmp_path / "plain")
    edited = write(Ablate(merged), tmp_path / "edited")
    gain, direction = edited[GAIN].double(), torch.tensor(DIRECTION).double()
    assert torch.equal(edited[GAIN], plain[GAIN])
    assert torch.equal(edited["model.norm.weight"], plain["model.norm.weight"])

    def seen(weight: Tensor) -> float:
        through = direction @ (gain[:, None] * weight.double())
        return float(through.abs().max() / (torch.linalg.vector_norm(direction) * weight.abs().max()))

    assert seen(plain[WRITER]) > 0.1
    assert seen(edited[WRITER]) < 1e-5
    unit = (gain * direction) / torch.linalg.vector_norm(gain * direction)
    weight = plain[WRITER].double()
    exact = weight - unit[:, None] * (unit @ weight)
    assert torch.allclose(edited[WRITER].double(), exact, rtol=0, atol=1e-6)


def test_its_bytes_do_not_depend_on_blocks_memory_or_threads(
    merged: Expr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = write(Ablate(merged), tmp_path / "usual")[WRITER]
    settings = [{"block": 1 << 16}, {"block": 64_000_000, "threads": 2}, {"block": 77_777, "threads": 4}]
    for number, options in enumerate(settings):
        if number:
            monkeypatch.setattr("surgeon.planning.memory.USUAL_BUDGET", 0)
        assert torch.equal(write(Ablate(merged), tmp_path / str(number), **options)[WRITER], expected)


def test_the_gain_counts_once_in_a_threshold_over_the_model(merged: Expr):
    """The edited tensor needs the gain too; the model's statistic must not look at it twice."""
    import dataclasses

    from surgeon.planning.spanning import spanning

    over = dataclasses.replace(merged, settings=(*merged.settings, ("over", "model")))  # pyright: ignore
    plan = build(Recipe(Ablate(over)))
    ((members),) = spanning(plan.steps, plan.targets).values()
    assert sorted(step.key.tensor for _, step, _ in members) == sorted(plan.targets[i].name for i in range(3))
    assert len({step.number for _, step, _ in members}) == 3


def test_the_plan_names_the_edit_counts_its_reads_and_its_tier(merged: Expr):
    plan = build(Recipe(Ablate(merged)))
    target = next(target for target in plan.targets if target.name == WRITER)
    assert target.reason.startswith("ties → ablate")
    assert plan.tier == "B"
    streamed = build(Recipe(Ablate(merged)), Options(memory=plan.peak, threads=1))
    assert streamed.peak <= plan.peak


def test_a_kernel_of_an_unknown_kind_is_not_found():
    with pytest.raises(KeyError):
        kernel_named("reshape:stack")
