"""A low-rank update is never held as a whole: what a worker holds does not grow with the tensor it changes."""

import json

import pytest
import torch
from safetensors.torch import save_file

import surgeon
from surgeon.planning.dryrun import live_bytes
from surgeon.space.kernels import LowRank
from surgeon.space.registry import merge_methods
from surgeon.testing.toys import read_checkpoint

RANK, WIDTH = 4, 1024
KINDS = {"embedding": ("model.embed_tokens", "lora_embedding_A", "lora_embedding_B"),
         "linear": ("model.layers.0.mlp.up_proj", "lora_A.weight", "lora_B.weight")}  # fmt: skip


def sparse(path, shapes):
    """A float32 file of zeros that takes no room on disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        stop = offset + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def adapter_folder(folder):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors"


def factor_shapes(kind, rows):
    """Shapes of A and B of a [rows, WIDTH] tensor; an embedding's are those of its transpose."""
    module, a, b = KINDS[kind]
    ins, outs = (rows, WIDTH) if kind == "embedding" else (WIDTH, rows)
    return {f"base_model.model.{module}.{a}": (RANK, ins), f"base_model.model.{module}.{b}": (outs, RANK)}


def giant(root, kind, rows):
    """The plan of a base with a single tensor and its adapter."""
    root.mkdir()
    sparse(root / "base.safetensors", {f"{KINDS[kind][0]}.weight": (rows, WIDTH)})
    sparse(adapter_folder(root / "adapter"), factor_shapes(kind, rows))
    expr = surgeon.open(root / "base.safetensors") + 0.5 * surgeon.open(root / "adapter")
    return surgeon.plan(expr, threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_by_the_factors_alone(tmp_path, kind):
    small, large = (giant(tmp_path / str(rows), kind, rows) for rows in (50_000, 1_000_000))
    held = [live_bytes(plan.steps, plan.targets[0], plan.options.block_elements) for plan in (small, large)]
    factors = [4 * RANK * (rows + WIDTH) for rows in (50_000, 1_000_000)]
    assert held[1] - held[0] <= 2 * (factors[1] - factors[0])
    assert large.targets[0].spec.nbytes > 4e9 and held[1] < 100e6


@pytest.mark.parametrize("kind", KINDS)
def test_only_bands_of_the_product_are_made(tmp_path, kind, monkeypatch):
    rows, made = 3000, []
    product = LowRank.__call__

    def counted(self, *arguments):
        part = product(self, *arguments)
        made.append(part.numel())
        return part

    monkeypatch.setattr(LowRank, "__call__", counted)
    base = tmp_path / "base"
    base.mkdir()
    weight = torch.randn(rows, WIDTH)
    save_file({f"{KINDS[kind][0]}.weight": weight}, base / "model.safetensors", metadata={"format": "pt"})
    a, b = (torch.randn(shape) for shape in factor_shapes(kind, rows).values())
    save_file(dict(zip(factor_shapes(kind, rows), (a, b), strict=True)), adapter_folder(tmp_path / "adapter"))
    expr = surgeon.open(base) + surgeon.open(tmp_path / "adapter")
    surgeon.apply(expr, tmp_path / "out", threads=1, block=1 << 18)
    update = 2 * (b @ a)
    (found,) = read_checkpoint(tmp_path / "out").values()
    torch.testing.assert_close(found, weight + (update.T if kind == "embedding" else update), rtol=1e-6, atol=1e-5)
    assert max(made) <= rows * WIDTH // 10
    assert rows * WIDTH <= sum(made) <= rows * WIDTH * 1.2  # once, and a band of zeros in the dry run


@pytest.mark.parametrize("name", [name for name, method in merge_methods().items() if method.equivariant])
def test_merging_adapters_holds_their_factors_alone(tmp_path, name):
    held = []
    for rows in (50_000, 400_000):
        root = tmp_path / str(rows)
        root.mkdir()
        sparse(root / "base.safetensors", {"model.layers.0.mlp.up_proj.weight": (rows, WIDTH)})
        for adapter in "ab":
            sparse(adapter_folder(root / adapter), factor_shapes("linear", rows))
        base, a, b = (surgeon.open(root / part) for part in ("base.safetensors", "a", "b"))
        plan = surgeon.plan(surgeon.merge(name, [a, b], base_model=base), threads=1)
        held.append(live_bytes(plan.steps, plan.targets[0], plan.options.block_elements))
    assert held[1] - held[0] <= 16 * 2 * 4 * RANK * (400_000 - 50_000)
    assert held[1] < 200e6  # the tensor itself has 1.6 GB
