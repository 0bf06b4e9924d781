"""The honest floor of a spectral merge: the decompositions that its formula names, and nothing else.

    python benchmarks/bare_svds.py BASE MODEL [MODEL ...] --of each|sum [--threads 2]

Every matrix of every model, minus the base's, or the sum of these differences, is decomposed by `torch.linalg.svd` in
float32 with reduced matrices; nothing is written.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open


def matrices(base: Path, models: list[Path]) -> Iterator[torch.Tensor]:
    """The differences of one matrix after another, float32 [model, m, n]."""
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            others = [safe_open(model / file.name, "pt") for model in models]
            for name in stream.keys():  # noqa: SIM118
                own = stream.get_tensor(name)
                if own.ndim == 2:
                    yield torch.stack([other.get_tensor(name).float() - own.float() for other in others])


def main() -> None:
    """Decompose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--of", choices=["each", "sum"], required=True)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    total = 0.0
    for found in matrices(asked.base, asked.models):
        for matrix in found if asked.of == "each" else [found.sum(0)]:
            total += float(torch.linalg.svd(matrix, full_matrices=False).S.sum())
    print(f"the singular values sum to {total:g}")


if __name__ == "__main__":
    main()
