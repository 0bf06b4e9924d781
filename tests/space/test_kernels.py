"""Noise, selections and sums: the pieces that same bytes rest on, against plain definitions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.space.coefficient import Coefficient, decimal
from surgeon.space.kernels import kernel_named, register_kernels
from surgeon.space.magnitude import kth_magnitude
from surgeon.space.method import merge_method
from surgeon.space.noise import Noise
from surgeon.space.numeric import chunk_sums, sign_of, total, tree_sum
from surgeon.space.parameters import Models, TaskVectors
from surgeon.space.schedule import Layers
from surgeon.space.statistics import inner_products

few = settings(max_examples=60, deadline=None)


# -- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_a_function_of_seed_tensor_model_and_index():
    like = torch.zeros(2, 10_000)
    whole = Noise(1, "w", ("b", "c")).uniform(like)
    for start, stop in ((0, 1), (4096, 8192), (9_999, 10_000)):
        assert torch.equal(Noise(1, "w", ("b", "c"), start).uniform(like[:, start:stop]), whole[:, start:stop])
    assert torch.equal(Noise(1, "w", ("c", "b")).uniform(like), whole.flip(0))
    for other in (Noise(2, "w", ("b", "c")), Noise(1, "v", ("b", "c")), Noise(1, "w", ("d", "e"))):
        assert (other.uniform(like) == whole).float().mean() < 0.001
    assert not torch.equal(whole[0], whole[1])


def test_noise_is_uniform_and_beyond_32_bits_of_index_new():
    drawn = Noise(7, "w", ("a",)).uniform(torch.zeros(1, 1 << 18))[0]
    assert 0 <= float(drawn.min()) < 1e-4
    assert 1 - 1e-4 < float(drawn.max()) < 1
    counts = torch.histc(drawn, 64, 0, 1)
    assert float(((counts - 4096) ** 2 / 4096).sum()) < 120  # χ² of 63 degrees: 120 is beyond one in 10⁵
    assert abs(float(torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]))[0, 1])) < 0.01
    far = Noise(7, "w", ("a",), start=1 << 32).uniform(torch.zeros(1, 1 << 18))[0]
    assert (far == drawn).float().mean() < 0.001


# -- selection --------------------------------------------------------------------------------------------------------


def kept_by_definition(row: np.ndarray, density: float) -> np.ndarray:
    """The k largest magnitudes; of equal ones the first."""
    count = len(row) if density >= 1 else max(1, int(density * len(row)))
    order = np.lexsort((np.arange(len(row)), -np.abs(row)))
    mask = np.zeros(len(row), bool)
    mask[order[:count]] = True
    return mask


@few
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 0.50390625, 1.0, -2.0, 1e-40, 3e38]), min_size=1),
    density=st.sampled_from([0.01, 0.3, 0.5, 0.97, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_cut_is_the_k_largest_magnitudes_first_come(values, density, dtype):
    tensor = torch.tensor([values], dtype=dtype)
    cut = kth_magnitude("density").of(tensor, {"density": (density,)})
    mask = kept_by_definition(tensor[0].float().numpy(), density)
    assert torch.equal(cut.trim(tensor)[0], torch.where(torch.from_numpy(mask), tensor[0], 0))


@pytest.mark.parametrize("block", [4096, 1 << 20, 1_300_000])
def test_the_cut_in_blocks_is_the_cut_of_the_whole(block: int):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, (1 << 20) + 77_777, generator=generator).mul(4).round().div(4)
    statistic, choice = kth_magnitude("density"), {"density": (0.2, 0.9)}
    known = statistic.begin(2, values.shape[1], choice)
    starts = range(0, values.shape[1], block)
    for _ in range(statistic.rounds):
        partials: dict = {}
        for start in reversed(starts):
            place = (0, start)
            wanted = statistic.wanted(known, place, min(block, values.shape[1] - start))
            if wanted:
                seen = statistic.observe(known, values[:, start : start + wanted], place)
                statistic.collect(known, partials, place, seen)
        known = statistic.conclude(known, partials)
    pieces = [statistic.at(known, (0, start)).trim(values[:, start : start + block]) for start in starts]
    whole = statistic.of(values, choice).trim(values)
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    for row, density, kept in zip(values, (0.2, 0.9), whole, strict=True):
        mask = torch.from_numpy(kept_by_definition(row.numpy(), density))
        assert torch.equal(kept, torch.where(mask, row, 0))


# -- sums -------------------------------------------------------------------------------------------------------------


@few
@given(count=st.integers(1, 20_000), chunks=st.integers(1, 4))
def test_sums_by_a_fixed_tree_do_not_depend_on_the_blocks(count: int, chunks: int):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    size = 4096 * chunks
    blocks = torch.cat([chunk_sums(values[start : start + size]) for start in range(0, count, size)])
    assert torch.equal(blocks, chunk_sums(values))
    assert tree_sum(blocks) == pytest.approx(float(values.sum()), rel=1e-9, abs=1e-9)


def test_inner_products_and_small_helpers():
    values = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0))
    products = inner_products().of(values, {})
    flat = values.reshape(3, -1).double()
    assert np.allclose(products, (flat @ flat.T).numpy(), rtol=1e-12)
    assert torch.equal(total(values), values[0] + values[1] + values[2])
    assert sign_of(torch.tensor([0.0, -0.0, 2.0, -1e-30])).tolist() == [1, 1, 1, -1]


def test_a_sum_over_models_owns_its_memory():
    """A kernel's caller may change the result in place."""
    one = torch.ones(1, 4)
    total(one).add_(1)
    assert torch.equal(one, torch.ones(1, 4))


# -- numbers ----------------------------------------------------------------------------------------------------------


@few
@given(st.fractions())
def test_a_decimal_is_the_number(number: Fraction):
    assert Fraction(decimal(number)) == number


@few
@given(st.lists(st.fractions(0, 1, max_denominator=20), min_size=2, max_size=5), st.fractions(max_denominator=9))
def test_coefficients_are_a_module(values: list[Fraction], number: Fraction):
    schedule = Coefficient.of(Layers(tuple(values)))
    one = Coefficient(Fraction(1))
    assert (one + -schedule + schedule).is_number(1)
    assert (schedule + -schedule).is_zero
    doubled = schedule * Coefficient(number) + schedule * Coefficient(1 - number)
    assert doubled == schedule
    assert hash(doubled) == hash(schedule)


# -- methods and kernels ----------------------------------------------------------------------------------------------


def test_a_method_asks_for_models_once_and_for_known_things():
    with pytest.raises(TypeError, match="one of TaskVectors, Models and Vectors"):

        @merge_method
        def both(task_vectors: TaskVectors, models: Models):
            return models[0]

    with pytest.raises(TypeError, match="collides with a key of the recipe"):

        @merge_method
        def reserved(models: Models, base_model: str = ""):
            return models[0]

    with pytest.raises(TypeError, match="has type"):

        @merge_method
        def odd(models: Models, things: dict | None = None):
            return models[0]

    with pytest.raises(TypeError, match="which is no setting"):

        @merge_method(ranges={"wieght": "[0, 1]"})
        def misspelt(models: Models, weight: float = 1.0):
            return models[0]


def test_noise_need_not_be_given_by_hand():
    @merge_method(blocks="elements")
    def shaken(models: Models, noise: Noise, size: float = 0.1):
        return models[0] + size * noise.uniform(models)[0]

    values = torch.zeros(1, 5)
    assert torch.equal(shaken(values), shaken(values, Noise()))
    assert not torch.equal(shaken(values), shaken(values, Noise(1)))
    with pytest.raises(TypeError):
        shaken()


def test_further_kinds_of_kernels_are_found_by_their_own(monkeypatch: pytest.MonkeyPatch):
    import surgeon.space.kernels as kernels

    monkeypatch.setattr(kernels, "_KINDS", dict(kernels._KINDS))
    combine = kernel_named("combine")
    register_kernels("edit", lambda name: combine if name == "keep" else kernel_named(name))
    assert kernel_named("edit:keep") is combine
    assert kernel_named("merge:ties").blocks == "elements"
