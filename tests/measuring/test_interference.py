"""How task vectors lie to each other: what theory says of vectors that share nothing, everything, or a rotation."""

import pytest
import torch

from surgeon.measuring.interference import interference, together


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(seed: int) -> torch.Tensor:
    return drawn(24, 2, seed=seed) @ drawn(2, 30, seed=seed + 1)


def test_task_vectors_of_other_inputs_do_not_interfere():
    one, other = drawn(24, 30), drawn(24, 30, seed=1)
    one[:, :15], other[:, 15:] = 0, 0
    found = interference(torch.stack([one, other]))
    assert found.interference == (0, 0) and found.conflict == 0


def test_the_same_task_vector_thrice_answers_twice_as_loudly_as_itself():
    one = low_rank(3)
    found = interference(torch.stack([one, one, one]))
    assert found.interference == pytest.approx((2, 2, 2)) and found.cosine == pytest.approx(1)
    assert found.conflict == pytest.approx(0, abs=1e-6) and found.aligned == pytest.approx((1, 1, 1))


def test_opposite_task_vectors_cancel():
    one = low_rank(5)
    found = interference(torch.stack([one, -one]))
    assert found.conflict == pytest.approx(1) and found.cosine == pytest.approx(-1)


def test_interference_is_told_where_the_cosine_is_zero():
    """Same inputs, other outputs: orthogonal as vectors, and yet each answers to all that the other answers to."""
    inputs = drawn(2, 30, seed=8)
    left, _ = torch.linalg.qr(drawn(24, 4, seed=9))
    found = interference(torch.stack([left[:, :2] @ inputs, left[:, 2:] @ inputs]))
    assert found.cosine == pytest.approx(0, abs=1e-6)
    assert found.interference == pytest.approx((1, 1), rel=0.2)


def test_a_rotation_of_inputs_or_outputs_changes_nothing_but_conflict():
    vectors = torch.stack([low_rank(1), low_rank(4), low_rank(7)])
    left, right = torch.linalg.qr(drawn(24, 24, seed=2))[0], torch.linalg.qr(drawn(30, 30, seed=3))[0]
    found, turned = interference(vectors), interference(vectors @ right)
    assert turned.interference == pytest.approx(found.interference, rel=1e-4)
    for numbers in ("norms", "aligned"):
        assert getattr(interference(left @ vectors @ right), numbers) == pytest.approx(
            getattr(found, numbers), rel=1e-4
        )


def test_tensors_taken_together_weigh_by_their_energy():
    small, large = (
        interference(torch.stack([low_rank(1), low_rank(2)])),
        interference(1e3 * torch.stack([low_rank(3)] * 2)),
    )
    assert together([small, large]).interference == pytest.approx((1, 1), rel=1e-3)
    assert together([small, large]).cosine == pytest.approx(1, rel=1e-3)


def test_vectors_have_no_subspaces_and_experts_are_taken_one_by_one():
    flat = interference(torch.stack([drawn(7), drawn(7, seed=1)]))
    assert flat.interference == (0, 0) and flat.norms[0] == pytest.approx(float(drawn(7).norm()))
    stacked = torch.stack([torch.stack([low_rank(s), low_rank(s + 1)]) for s in (1, 5)])
    parts = [interference(stacked[:, expert]) for expert in (0, 1)]
    assert interference(stacked).interference == pytest.approx(together(parts).interference)
