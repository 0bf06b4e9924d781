"""Golden numbers of the methods that thin out task vectors or elect signs, by hand, on one small example."""

import itertools

import pytest
import torch

from surgeon.methods.breadcrumbs import breadcrumbs
from surgeon.methods.breadcrumbs_ties import breadcrumbs_ties
from surgeon.methods.consensus import consensus, tall_masks
from surgeon.methods.dare_linear import dare_linear
from surgeon.methods.dare_ties import dare_ties
from surgeon.methods.della import della
from surgeon.methods.della_linear import della_linear
from surgeon.methods.emr import emr
from surgeon.methods.pcb import pcb
from surgeon.methods.ram import ram
from surgeon.methods.ramplus_tl import ramplus_tl
from surgeon.methods.sce import energies, sce, variance
from surgeon.methods.ties import ties
from surgeon.space.numeric import exponential
from surgeon.space.sparsify import chances_by_rank, row_ranks

TAU = torch.tensor([[0.5, -0.1, 0.3, 0.0], [0.4, 0.2, -0.9, 0.05], [-0.6, 0.05, 0.2, -0.3]])
EVERY = [
    ties, dare_ties, dare_linear, della, della_linear, breadcrumbs, breadcrumbs_ties,
]  # fmt: skip


def close(found: torch.Tensor, expected: list, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), atol=atol, rtol=1e-5)


def test_ties():
    close(ties(TAU, density=(0.5,) * 3), [0.45, 0, -0.9, -0.3])


def test_ties_rescaled_keeps_each_norm():
    """Trimmed to half, 0.8 of 0.9, 1.3 of 1.55 and 0.9 of 1.15 are left."""
    ratios = torch.tensor([0.9 / 0.8, 1.55 / 1.3, 1.15 / 0.9])[:, None]
    trimmed = torch.tensor([[0.5, 0, 0.3, 0], [0.4, 0, -0.9, 0], [-0.6, 0, 0, -0.3]]) * ratios
    found = ties(TAU, density=(0.5,) * 3, rescale=True, normalize=False)
    close(found, [float(trimmed[0, 0] + trimmed[1, 0]), 0, float(trimmed[1, 2]), float(trimmed[2, 3])])


@pytest.mark.parametrize("method", EVERY)
def test_nothing_thinned_out_and_equal_signs_is_the_mean_or_the_sum(method):
    vectors = torch.tensor([[0.2, -0.4], [0.6, -0.2]])
    close(method(vectors, normalize=True), [0.4, -0.3])
    close(method(vectors, normalize=False, lambda_=0.5), [0.4, -0.3])


def test_the_vote_is_weighed_where_asked():
    vectors = torch.tensor([[0.5], [-0.4]])
    for method, word in ((ties, "trimmed"), (dare_ties, "thinned"), (della, "thinned"), (breadcrumbs_ties, "trimmed")):
        close(method(vectors, weight=(0.1, 1.0), elect=word), [0.5])
        close(method(vectors, weight=(0.1, 1.0), elect="weighted"), [-0.4])


def test_breadcrumbs_leaves_out_both_ends():
    """Of ten, gamma 0.2 leaves out the two largest and density 0.5 keeps the next five."""
    vector = torch.tensor([[5.0, -1, 9, 2, -8, 3, 7, -4, 6, 10]])
    close(breadcrumbs(vector, density=(0.5,), gamma=(0.2,)), [5.0, 0, 0, 0, -8, 0, 7, -4, 6, 0])
    close(breadcrumbs(vector, density=(0.5,), gamma=(0.0,)), [0.0, 0, 9, 0, -8, 0, 7, 0, 6, 10])
    close(breadcrumbs(vector, density=(0.9,), gamma=(0.5,)), [5.0, -1, 9, 2, -8, 3, 7, -4, 6, 0])


def test_breadcrumbs_without_outliers_is_trimming():
    vectors = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    density = (0.3, 0.6)
    assert torch.equal(
        breadcrumbs_ties(vectors, density=density, gamma=(0.0, 0.0)), ties(vectors, density=density)
    )  # fmt: skip


def test_sce():
    cut = sce.signature.statistics[0][1].of(variance(TAU)[None], {"select_topk": 0.5, "least": 1}, 3)
    squares = energies(TAU, 0.5, cut).sum(dim=1)
    close(squares / squares.sum(), [0.19883, 0.567251, 0.233918])
    close(sce(TAU, select_topk=0.5), [0.425954, 0, -0.9, 0])


def test_sce_weighs_models_by_energy_however_small_they_are():
    """The floor of mergekit makes them weigh the same; their weights here are 1/5 and 4/5."""
    vectors = torch.stack([torch.full((16,), 3e-4), torch.full((16,), 6e-4)])
    close(sce(vectors) * 1e4, [5.4] * 16)
    close(sce(vectors, floor=1e-6) * 1e4, [4.5] * 16)


def test_emr():
    close(emr(TAU), [0.5, 0.2, -0.9, -0.3])
    assert torch.equal(emr(TAU[:1]), TAU[0])


def test_tall_masks_and_consensus():
    close(tall_masks(TAU, TAU.sum(0), (0.4,) * 3), [[1.0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 1]])
    close(consensus(TAU, k=2), [0.3, 0.15, -0.4, 0])
    close(consensus(TAU, k=0), [0.3, 0.15, -0.4, -0.25])
    close(consensus(TAU, k=3, lambda_=2.0), [0.6, 0.3, 0, 0])


def test_ram():
    vectors = torch.tensor([[1.0, 2, 0, 4, 1e-6], [3.0, 0, 0, -2, 0]])
    close(ram(vectors), [2.0, 2, 0, 1, 0])


def test_ramplus():
    """The first model shares two entries and has two alone, the second shares two and has none."""
    vectors = torch.tensor([[1.0, 2, 0, 4, 3], [3.0, 0, 0, -2, 0]])
    close(ramplus_tl(vectors, r=0.5, alpha=0.4), [2.0, 2 * 1.2, 0, 1, 3 * 1.2])
    close(ramplus_tl(vectors, r=0.5, alpha=5.0), [2.0, 2 * 1.5, 0, 1, 3 * 1.5])


def plain_pcb(vectors: torch.Tensor, density: float) -> torch.Tensor:
    """The formula as the paper writes it, in float64, with a sort."""
    wide = vectors.double()

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.min()) / (x.max() - x.min())

    intra = [torch.softmax(len(wide) * norm(one * one), 0) for one in wide]
    inter = [sum(torch.softmax(norm(one * other), 0) for other in wide) for one in wide]
    balance = torch.stack([a * b for a, b in zip(intra, inter, strict=True)])
    for row in balance:
        row[row.argsort(descending=True)[int(density * len(row)) :]] = 0
    return (balance * wide).sum(0) / balance.sum(0).clamp_min(1e-30)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_pcb(density):
    vectors = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    found = pcb(vectors, density=(density,) * 3)
    torch.testing.assert_close(found, plain_pcb(vectors, density).float(), atol=1e-5, rtol=1e-4)


def test_exponential():
    for bound in (0.2, 1, 3, 20):
        values = torch.linspace(0, bound, 1001)
        torch.testing.assert_close(exponential(values.clone(), bound), values.exp(), rtol=2e-5, atol=0)


def test_della_chances_by_rank():
    vector = torch.tensor([[3.0, -1, 2, -5, 4]])
    close(row_ranks(vector), [[2.0, 0, 1, 4, 3]])
    close(chances_by_rank(vector, (0.6,), (0.2,), "width"), [[0.6, 0.5, 0.55, 0.7, 0.65]])
    close(chances_by_rank(vector, (0.6,), (0.2,), "either_side"), [[0.6, 0.4, 0.5, 0.8, 0.7]])
    close(chances_by_rank(vector, (1.0,), (0.2,), "width"), [[1.0] * 5])


def test_della_ranks_within_rows_and_takes_a_vector_as_one():
    rows = torch.tensor([[[1.0, 2, 3], [6, 5, 4]], [[1, 1, 1], [0, 2, 0]]])
    close(row_ranks(rows), [[[0.0, 1, 2], [2, 1, 0]], [[0, 1, 2], [0, 2, 1]]])
    for shape, density in itertools.product([(1, 6), (1, 2, 3), (1, 4, 1)], [0.3, 0.5]):
        chances = chances_by_rank(torch.randn(shape), (density,), (0.2,), "width")
        torch.testing.assert_close(chances.mean(-1), torch.full(shape[:-1], density))
