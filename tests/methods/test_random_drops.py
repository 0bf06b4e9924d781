"""What is dropped at random: the right share, unbiased, with the variance that theory has, over 200 seeds."""

import math

import pytest
import torch

import surgeon
from surgeon.errors import RefusedError
from surgeon.methods.dare_linear import dare_linear
from surgeon.methods.della_linear import della_linear
from surgeon.space.noise import Noise
from surgeon.testing.toys import read_checkpoint, write_checkpoint

SEEDS = 200
VECTOR = torch.linspace(-1, 1, 64).reshape(1, 4, 16) + 0.01


def over_seeds(method, **settings) -> torch.Tensor:
    """Results [seed, …]."""
    return torch.stack([method(VECTOR, Noise(seed, "w", ("a",)), **settings) for seed in range(SEEDS)])


def chances(density: float, half: float) -> torch.Tensor:
    """What DELLA keeps each entry with, its chances from density - half to density + half."""
    ranks = VECTOR[0].abs().argsort(dim=-1).argsort(dim=-1)
    return density - half + 2 * half * ranks / (VECTOR.shape[-1] - 1)


@pytest.mark.parametrize(
    ("method", "settings", "kept"),
    [
        (dare_linear, {"density": (0.3,)}, torch.full((4, 16), 0.3)),
        (dare_linear, {"density": (0.8,)}, torch.full((4, 16), 0.8)),
        (della_linear, {"density": (0.6,), "epsilon": (0.4,)}, chances(0.6, 0.2)),
        (della_linear, {"density": (0.5,), "epsilon": (0.2,), "window": "either_side"}, chances(0.5, 0.2)),
    ],
)
def test_share_mean_and_variance(method, settings, kept):
    results = over_seeds(method, **settings)
    vector = VECTOR[0]
    count = results.numel()
    share = (results != 0).float().mean()
    assert abs(share - kept.mean()) < 5 * math.sqrt(0.25 / count)
    spread = vector.abs() * ((1 - kept) / kept).sqrt()
    scores = (results.mean(0) - vector) / spread * math.sqrt(SEEDS)
    assert scores.abs().max() < 5, "biased"
    assert abs(scores.mean()) < 5 / math.sqrt(vector.numel())
    ratio = results.var(0) / spread.square()
    assert abs(ratio.mean() - 1) < 0.1


@pytest.mark.parametrize("method", [dare_linear, della_linear])
def test_by_norm_every_tensor_keeps_its_norm(method):
    """What mergekit does: not unbiased, but the L1 norm is that of the whole, whatever was dropped."""
    results = over_seeds(method, density=(0.4,), rescale_by="norm")
    norms = results.abs().sum(dim=(1, 2))
    torch.testing.assert_close(norms, VECTOR.abs().sum().expand(SEEDS), rtol=1e-5, atol=0)
    shares = (results != 0).float().mean(dim=(1, 2))
    assert abs(shares.mean() - 0.4) < 0.02
    assert shares.std() > 0.02


def test_unscaled_entries_are_themselves():
    results = over_seeds(dare_linear, density=(0.4,), rescale=False)
    assert torch.equal(results, (results != 0) * VECTOR[0])


def written(tmp_path, count=3):
    shapes = {"w": (70, 33), "v": (9,), "big": (300_000,)}
    paths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        paths.append(write_checkpoint(tmp_path / f"m{number}", tensors))
    return [surgeon.open(path) for path in paths]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_through_the_engine_as_on_tensors_and_other_by_seed(method, tmp_path):
    """Also a vector longer than a tile, which DELLA ranks as one row."""
    base, *models = written(tmp_path)
    for rescale_by in ("norm", "chance" if "della" in method else "density"):
        settings = {"density": 0.4, "rescale_by": rescale_by}
        out = tmp_path / f"{rescale_by}"
        surgeon.apply(surgeon.merge(method, models, base_model=base, seed=7, **settings), out)
        tensors = [read_checkpoint(tmp_path / f"m{number}") for number in range(3)]
        function = surgeon.space.registry.merge_methods()[method]
        for name, found in read_checkpoint(out).items():
            vectors = torch.stack([one[name] - tensors[0][name] for one in tensors[1:]])
            noise = Noise(7, name, ("m1", "m2"))
            expected = function(vectors, noise, density=(0.4, 0.4), rescale_by=rescale_by) + tensors[0][name]
            assert torch.equal(found, expected), name
    surgeon.apply(surgeon.merge(method, models, base_model=base, seed=8, **settings), tmp_path / "other")
    assert not torch.equal(read_checkpoint(tmp_path / "other")["w"], read_checkpoint(out)["w"])


def test_two_models_of_one_name_draw_different_numbers(tmp_path):
    base, model, _ = written(tmp_path)
    (tmp_path / "again").mkdir()
    (tmp_path / "m1").rename(tmp_path / "again" / "m1")
    twin = surgeon.open(write_checkpoint(tmp_path / "m1", read_checkpoint(tmp_path / "again" / "m1")))
    model = surgeon.open(tmp_path / "again" / "m1")
    surgeon.apply(
        surgeon.merge("dare_linear", [model, twin], base_model=base, density=0.5, rescale=False), tmp_path / "out"
    )
    moved = read_checkpoint(tmp_path / "out")["w"] - read_checkpoint(tmp_path / "m0")["w"]
    whole = read_checkpoint(tmp_path / "m1")["w"] - read_checkpoint(tmp_path / "m0")["w"]
    once = torch.isclose(moved, whole, rtol=1e-3).float().mean()
    assert 0.4 < once < 0.6, "both kept and dropped the same entries"


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("della", {"density": 0.9, "epsilon": 0.3}, "chances from 0.75 to 1.05"),
        ("della_linear", {"density": 0.1, "epsilon": 0.1, "window": "either_side"}, "chances from 0 to 0.2"),
        ("consensus", {"k": 4}, "k is 4, but there are 2 models"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_plan(method, settings, words, tmp_path):
    base, *models = written(tmp_path)
    with pytest.raises(RefusedError, match=words):
        surgeon.plan(surgeon.merge(method, models, base_model=base, **settings))


def test_one_model_has_no_variance_to_select_by(tmp_path):
    base, model, _ = written(tmp_path)
    with pytest.raises(RefusedError, match="select_topk below 1 selects by the variance between models; there is one"):
        surgeon.plan(surgeon.merge("sce", [model], base_model=base, select_topk=0.5))
    surgeon.plan(surgeon.merge("sce", [model], base_model=base))
