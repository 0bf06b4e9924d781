"""What every fitter keeps to, and what `@fitter` reads from a signature."""

import functools
import subprocess
import sys
from typing import Literal

import pytest
import torch

import surgeon.space.registry as registry
from surgeon.directions.fitters.mean_difference import mean_difference
from surgeon.errors import RefusedError
from surgeon.space.fitter import MEASURING, Moments, fitter

FITTERS = registry.fitters()


def sets(seed=0, n=50, d=12):
    generator = torch.Generator().manual_seed(seed)
    positive, negative, neutral = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    return positive + torch.linspace(0, 2, d), negative, neutral + 1


def spans(left, right):
    """Whether two sets of rows span the same, by their projections."""
    bases = [torch.linalg.qr(rows.reshape(-1, rows.shape[-1]).T.double())[0] for rows in (left, right)]
    return torch.allclose(bases[0] @ bases[0].T, bases[1] @ bases[1].T, atol=1e-9)


@pytest.mark.parametrize("found", FITTERS.values(), ids=list(FITTERS))
class TestLaws:
    def fitted(self, found, *states):
        return found.rows(*(Moments.of(one, found.second_moments) for one in states), {})

    def test_exchanging_the_sets_turns_it_around(self, found):
        positive, negative, neutral = sets()
        torch.testing.assert_close(
            self.fitted(found, positive, negative, neutral), -self.fitted(found, negative, positive, neutral)
        )

    def test_the_size_of_the_states_does_not_matter(self, found):
        torch.testing.assert_close(self.fitted(found, *sets()), self.fitted(found, *(3.0 * one for one in sets())))

    def test_turning_the_stream_turns_it_along(self, found):
        turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
        assert spans(self.fitted(found, *(one @ turn for one in sets())), self.fitted(found, *sets()) @ turn)

    def test_unit_rows(self, found):
        rows = self.fitted(found, *sets())
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=torch.float64))


def test_mean_difference_on_tensors():
    positive, negative, neutral = sets()
    expected = torch.nn.functional.normalize(positive.mean(0) - negative.mean(0), dim=0)
    torch.testing.assert_close(mean_difference(positive, negative, None), expected)
    off = mean_difference(positive, negative, neutral, project="neutral")
    assert abs(off @ neutral.mean(0)) < 1e-15
    assert off @ expected > 0
    with pytest.raises(RefusedError, match="needs a neutral set"):
        mean_difference(positive, negative, None, project="neutral")


def test_every_fitter_has_the_settings_of_measuring():
    assert {parameter.name for parameter in MEASURING} < FITTERS["mean_difference"].parameters.keys()
    assert FITTERS["mean_difference"].parameters["project"].choices == ("none", "neutral")
    assert FITTERS["mean_difference"].summary.startswith("Mean of the positive states")


def test_what_a_signature_says():
    @fitter(second_moments=True, ranges={"floor": "[0, inf)"})
    def whitened(
        positive: Moments, negative: Moments, neutral: Moments, floor: float = 0.1, how: Literal["a", "b"] = "a"
    ):
        """One line."""
        return torch.linalg.solve(negative.covariance + floor * torch.eye(12), positive.mean - negative.mean)

    assert whitened.needs_neutral
    assert whitened.sets == ("positive", "negative", "neutral")
    assert {"floor", "how"} < whitened.parameters.keys()
    assert whitened.parameters["floor"].range.text == "[0, inf)"
    assert whitened(*sets(), floor=0.5).shape == (12,)


def refused(function):
    with pytest.raises(TypeError) as caught:
        fitter(function)
    return str(caught.value)


def test_signatures_that_are_refused():
    def one_set(positive: Moments): ...
    def no_moments(positive: torch.Tensor, negative: torch.Tensor): ...
    def takes_guard(positive: Moments, negative: Moments, guard: bool = True): ...
    def takes_at(positive: Moments, negative: Moments, at: str = ""): ...
    def takes_tensor(positive: Moments, negative: Moments, other: torch.Tensor): ...

    assert "ask for positive" in refused(one_set)
    assert "ask for positive" in refused(no_moments)
    assert "every fitter has the setting guard" in refused(takes_guard)
    assert "collides with a key of the recipe" in refused(takes_at)
    assert "has type" in refused(takes_tensor)


NEWCOMER = '''"""A fitter of our own."""

from torch import Tensor

from surgeon.space.fitter import Moments, fitter


@fitter(second_moments=True)
def spread(positive: Moments, negative: Moments, rank: int = 2) -> Tensor:
    """The directions in which the positive states spread most, the means aside."""
    import torch

    return torch.linalg.eigh(positive.covariance - negative.covariance)[1][:, -rank:].T
'''


def test_a_newcomer_is_one_file(tmp_path, monkeypatch, loaded, contrast):
    from surgeon.directions.fit import fit

    (tmp_path / "own_fitters.py").write_text(NEWCOMER)
    folder = tmp_path / "own_fitters-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-fitters\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[surgeon.fitters]\nspread = own_fitters\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "fitters", functools.cache(registry.fitters.__wrapped__))
    assert len(NEWCOMER.splitlines()) <= 30
    assert {"mean_difference", "own-fitters/spread"} <= registry.fitters().keys()
    found = fit(loaded, "own-fitters/spread", contrast, at="block.1", settings={"rank": 3, "components": 4})
    assert found.rows("block.1").shape == (3, loaded.anatomy.width)


def test_looking_fitters_up_loads_no_model_library():
    code = "import sys, surgeon.space.registry as r; r.fitters(); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
