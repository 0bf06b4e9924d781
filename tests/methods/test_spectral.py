"""Theorems of the spectral merge methods, and numbers worked out by hand or by plain SVDs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import surgeon
from surgeon.methods.iso_c import iso_c
from surgeon.methods.iso_cts import iso_cts
from surgeon.methods.knots import knots
from surgeon.methods.svc import svc
from surgeon.methods.task_arithmetic import task_arithmetic
from surgeon.methods.ties import ties
from surgeon.methods.tsv_m import tsv_m
from surgeon.methods.wudi import wudi
from surgeon.planning.dryrun import live_bytes
from surgeon.space.noise import Noise
from surgeon.space.registry import merge_methods
from surgeon.space.spectral import decompose, polar, signed
from surgeon.testing.toys import toy_llama, write_checkpoint

SPECTRAL = ["tsv_m", "iso_c", "iso_cts", "wudi", "svc", "knots"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(models, rows, columns, rank, seed=0):
    return drawn(models, rows, rank, seed=seed) @ drawn(models, rank, columns, seed=seed + 1)


def values(matrix):
    return torch.linalg.svdvals(matrix.double())


def close(found, expected, tolerance=1e-5):
    return torch.dist(found.double(), expected.double()) <= tolerance * expected.double().norm()


# --- the linear algebra


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 6), (6, 1)])
def test_decompose_is_the_svd(shape):
    matrix = drawn(*shape)
    found = decompose(matrix)
    assert close(found.matrix, matrix, 1e-12)
    assert torch.allclose(found.s, values(matrix), rtol=1e-12)
    for side in (found.u.T @ found.u, found.vh @ found.vh.T):
        assert torch.allclose(side, torch.eye(min(shape), dtype=torch.float64), atol=1e-12)


def test_directions_without_meaning_are_zero():
    found = decompose(low_rank(1, 30, 20, 4)[0])
    assert found.rank == 4
    assert not found.u[:, 4:].any() and not found.vh[4:].any() and not found.s[4:].any()


def test_polar_is_the_nearest_orthonormal_matrix():
    columns = drawn(12, 5).double()
    u, _, vh = torch.linalg.svd(columns, full_matrices=False)
    assert close(polar(columns), u @ vh, 1e-12)
    twice = polar(torch.cat([u, u], 1))
    assert close(twice, torch.cat([u, u], 1) / 2**0.5, 1e-9)


def test_signs_are_pinned():
    matrix = drawn(6, 9)
    one, other = (signed(decompose(q @ matrix)) for q in (torch.eye(6), torch.linalg.qr(drawn(6, 6)).Q))
    assert close(one.matrix, matrix, 1e-6)
    assert (one.vh.max(1).values == one.vh.abs().max(1).values).all()
    assert close(other.vh, one.vh, 1e-4)


# --- TSV-M


@pytest.mark.parametrize("rows, columns, models", [(24, 40, 3), (40, 24, 4), (20, 20, 7)])
def test_tsv_m_has_the_kept_singular_values_of_every_model(rows, columns, models):
    vectors = drawn(models, rows, columns)
    kept = min(rows, columns) // models
    expected = torch.cat([values(vector)[:kept] for vector in vectors]).sort(descending=True).values
    found = values(tsv_m(vectors))
    assert torch.allclose(found[: len(expected)], expected, rtol=1e-5)
    assert (found[len(expected) :] < 1e-5 * found[0]).all()


def test_tsv_m_is_the_formula_of_the_paper():
    vectors = drawn(3, 24, 30)
    parts = [torch.linalg.svd(vector.double(), full_matrices=False) for vector in vectors]
    u = torch.cat([part[0][:, :8] for part in parts], 1)
    v = torch.cat([part[2][:8] for part in parts]).T
    s = torch.cat([part[1][:8] for part in parts])
    left, right = ((lambda u, _, vh: u @ vh)(*torch.linalg.svd(one, full_matrices=False)) for one in (u, v))
    assert close(tsv_m(vectors, lambda_=0.8), 0.8 * (left * s) @ right.T)


def test_tsv_m_keeps_all_of_adapters_that_fit():
    vectors = low_rank(4, 48, 64, 5)
    expected = torch.cat([values(vector)[:5] for vector in vectors]).sort(descending=True).values
    assert torch.allclose(values(tsv_m(vectors))[:20], expected, rtol=1e-4)
    half = values(tsv_m(vectors, rank_fraction=(0.6,) * 4))
    assert (half[12:] < 1e-5 * half[0]).all() and half[11] > 0.01 * half[0]


def test_tsv_m_of_equal_models_and_of_more_models_than_rows():
    vector = low_rank(1, 20, 30, 6)[0]
    assert close(tsv_m(torch.stack([vector, vector])), vector)
    narrow = drawn(3, 1, 8)
    assert torch.isfinite(tsv_m(narrow)).all() and tsv_m(narrow).norm() > 0


# --- Iso-C and Iso-CTS


@given(st.integers(1, 4), st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_iso_c_is_even_keeps_the_nuclear_norm_and_is_idempotent(models, rows, columns):
    vectors = drawn(models, rows, columns, seed=models)
    total, found = vectors.sum(0), iso_c(vectors)
    assert torch.allclose(values(found), values(total).mean().expand(min(rows, columns)), rtol=1e-4)
    assert close(iso_c(found.unsqueeze(0)), found)
    assert found.norm() <= total.norm() * 1.00001


def test_iso_c_leaves_the_null_space_of_a_low_rank_sum_alone():
    vectors = low_rank(3, 40, 50, 4)
    found, total = iso_c(vectors, lambda_=3.0), vectors.sum(0)
    assert torch.allclose(values(found)[:12], 3 * values(total)[:12].mean().expand(12), rtol=1e-4)
    assert (values(found)[12:] < 1e-5 * values(found)[0]).all()
    u = torch.linalg.svd(total.double()).U[:, :12]
    assert close(u @ (u.T @ found.double()), found)


def test_iso_c_golden():
    """diag(3, 1) and diag(1, −1): the sum is diag(4, 0), of rank 1."""
    vectors = torch.stack([torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, -1.0]))])
    assert close(iso_c(vectors), torch.diag(torch.tensor([4.0, 0.0])))
    assert close(iso_c(vectors, weight=(1.0, 0.0)), torch.diag(torch.tensor([2.0, 2.0])))


def test_iso_cts_with_all_common_is_iso_c():
    for vectors in (drawn(3, 18, 25), low_rank(3, 40, 30, 4)):
        assert close(iso_cts(vectors, common_fraction=1.0), iso_c(vectors))


@pytest.mark.parametrize("vectors", [drawn(3, 20, 26), low_rank(3, 40, 50, 5)])
def test_iso_cts_is_even_and_holds_the_common_and_the_own_directions(vectors):
    found = iso_cts(vectors, common_fraction=0.6)
    rank = int((values(vectors.sum(0)) > 1e-4 * values(vectors.sum(0))[0]).sum())
    spectrum = values(found)
    assert torch.allclose(spectrum[:rank], spectrum[0].expand(rank), rtol=1e-3)
    own = (rank - int(0.6 * rank)) // 3
    u = torch.linalg.svd(vectors.sum(0).double()).U[:, : rank - 3 * own]
    kept = [values(vectors.sum(0))[: rank - 3 * own]]
    kept += [values(vector.double() - u @ (u.T @ vector.double()))[:own] for vector in vectors]
    assert torch.allclose(spectrum[0], torch.cat(kept).mean(), rtol=1e-4)
    # Own directions lie across the common ones, so that whitening leaves those in the span.
    span = torch.linalg.svd(found.double()).U[:, :rank]
    assert close(span @ (span.T @ u), u, 1e-4)


# --- WUDI


def loss(merged, vectors):
    return sum(((merged - v) @ v.T).double().square().sum() / v.double().square().sum() for v in vectors)


def test_wudi_is_the_sum_where_the_models_read_different_inputs():
    vectors = torch.zeros(3, 8, 12)
    for index in range(3):
        vectors[index, :, 4 * index : 4 * index + 4] = drawn(8, 4, seed=index)
    total = vectors.sum(0)
    assert loss(total, vectors) < 1e-9
    for solver in ("closed", "descent"):
        assert close(wudi(vectors, solver=solver), total)


def test_wudi_closed_is_the_minimum():
    vectors = drawn(4, 12, 20).double()
    closed = wudi(vectors, solver="closed")
    variable = closed.clone().requires_grad_()
    loss(variable, vectors).backward()
    assert variable.grad.norm() < 1e-9 * loss(closed, vectors)
    others = [wudi(vectors, steps=n) for n in (0, 10, 300)]
    losses = [loss(one, vectors) for one in (*others, closed)]
    assert close(others[0], vectors.sum(0), 1e-9)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < loss(vectors.mean(0), vectors) < losses[0]


def test_wudi_descent_is_gradient_descent():
    vectors = drawn(3, 6, 9).double()
    scale = [v / v.norm() for v in vectors]
    hessian = sum(v.T @ v for v in scale)
    goal = sum(v @ (u.T @ u) for v, u in zip(vectors, scale, strict=True))
    merged = vectors.sum(0)
    for _ in range(25):
        merged = merged - (merged @ hessian - goal) / torch.linalg.eigvalsh(hessian)[-1]
    assert close(wudi(vectors, steps=25), merged, 1e-10)


# --- singular value calibration


def test_svc_takes_back_what_was_counted_twice():
    vector = low_rank(1, 10, 14, 3)[0]
    assert close(svc(torch.stack([2 * vector, vector, vector])), vector)
    # Two models that write to different outputs: one hears itself alone, and nothing is over-counted.
    orthogonal = torch.stack([torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))])
    assert close(svc(torch.stack([orthogonal.sum(0), *orthogonal])), orthogonal.sum(0))


def test_svc_golden():
    """Merge diag(3, 1) of diag(2, 0) and diag(1, 1): s = (1.5, 0) and (3, 1), so γ = 2/4.5 and, at alpha ½, 2/1.5."""
    parts = [torch.diag(torch.tensor(d)) for d in ([3.0, 1.0], [2.0, 0.0], [1.0, 1.0])]
    assert close(svc(torch.stack(parts)), torch.diag(torch.tensor([3 * 2 / 4.5, 1.0])))
    assert close(svc(torch.stack(parts), alpha=0.5), torch.diag(torch.tensor([3 * 2 / 4.5, 2 / 1.5])))


# --- KnOTS


def test_knots_sums_and_is_equal_to_the_plain_method_where_that_is_linear():
    vectors = drawn(3, 10, 14)
    weight = (0.5, 0.3, 1.0)
    found = knots(vectors, weight=weight, inner="task_arithmetic")
    assert close(found, task_arithmetic(vectors, weight=weight))


def test_knots_ties_is_ties_of_the_right_factors():
    vectors = low_rank(3, 16, 24, 3)
    u, s, vh = torch.linalg.svd(torch.cat(list(vectors), 1).double(), full_matrices=False)
    aligned = torch.stack(vh[:9].split(24, 1)).float()
    density = (0.5, 0.25, 1.0)
    plain = ties(aligned, weight=(1.0, 0.7, 0.4), density=density, normalize=True)
    found = knots(vectors, weight=(1.0, 0.7, 0.4), density=density)
    assert close(found, (u[:, :9] * s[:9]) @ plain.double(), 1e-4)


def test_knots_dare_is_unbiased():
    vectors = low_rank(2, 6, 8, 2)
    found = [knots(vectors, noise=Noise(seed), density=(0.5, 0.5), inner="dare_linear") for seed in range(400)]
    assert torch.dist(torch.stack(found).mean(0), vectors.sum(0)) < 0.15 * vectors.sum(0).norm()


# --- all of them


@pytest.mark.parametrize("name", SPECTRAL)
def test_stacks_of_experts_are_merged_matrix_by_matrix(name):
    method = merge_methods()[name]
    stack = drawn(3, 4, 9, 7)
    found = method(stack)
    for index in range(4) if name != "knots" else ():
        assert torch.equal(found[index], method(stack[:, index]))
    assert found.shape == (4, 9, 7)


@pytest.mark.parametrize("name", SPECTRAL)
def test_norms_and_biases_get_the_mean(name):
    vectors = drawn(3, 9)
    expected = vectors[0] if name == "svc" else vectors.sum(0) / 3
    assert torch.allclose(merge_methods()[name](vectors), expected, atol=1e-6)


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
def test_the_smallest_matrices(name, shape):
    assert torch.isfinite(merge_methods()[name](drawn(3, *shape))).all()


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_same_bytes_whatever_the_blocks_and_threads(tmp_path, name):
    base = toy_llama(tmp_path / "base")
    models = [surgeon.open(toy_llama(tmp_path / str(i), i, base=base)) for i in (1, 2, 3)]
    expr = surgeon.merge(name, models, base_model=surgeon.open(base))
    assert surgeon.plan(expr).tier == "B"
    written = set()
    for number, options in enumerate(({"threads": 1}, {"threads": 2, "block": 4096}, {"threads": 2})):
        surgeon.apply(expr, tmp_path / f"out{number}", **options)
        written.add((tmp_path / f"out{number}" / "model.safetensors").read_bytes())
    assert len(written) == 1


def test_the_dry_run_counts_the_workspace_of_the_eigenvalue_solver(tmp_path):
    paths = [write_checkpoint(tmp_path / n, {"w": drawn(96, 128, seed=i)}, None) for i, n in enumerate("abc")]
    base, *models = map(surgeon.open, paths)
    plan = surgeon.plan(surgeon.merge("iso_c", models, base_model=base))
    # Three float32 inputs; the Gram matrix, its eigenvectors and LAPACK's 2n² in float64.
    assert live_bytes(plan.steps, plan.targets[0], 1 << 20) >= 3 * 4 * 96 * 128 + 4 * 8 * 96 * 96


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize("place", [0, 2])
def test_nan_in_one_model_is_seen_in_the_result(method, place):
    """A model that cannot be decomposed is not left out: the engine refuses what is not finite, by name."""
    task_vectors = drawn(3, 48, 32)
    task_vectors[place, 3, 4] = float("nan")
    try:
        merged = merge_methods()[method](task_vectors)
    except torch.linalg.LinAlgError:
        return
    assert not merged.isfinite().all()
