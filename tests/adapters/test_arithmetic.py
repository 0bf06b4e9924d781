"""Adapters as differences: scaled, subtracted, added to each other, members of a merge; against plain tensors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.methods.slerp import slerp
from surgeon.methods.task_arithmetic import task_arithmetic
from surgeon.methods.ties import ties
from surgeon.testing.toys import read_checkpoint
from tests.support.peft_toys import CONV1D, gpt2, llama, make

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "RuntimeWarning")]

FIRST = {"target_modules": ["q_proj", "o_proj", "embed_tokens"], "r": 4, "lora_alpha": 10}
SECOND = {"target_modules": ["q_proj", "down_proj"], "r": 2, "lora_alpha": 3, "modules_to_save": ["model.norm"]}
FIRST_SCALE, SECOND_SCALE = 2.5, 1.5


def factors(adapter, scale):
    """What an adapter says of each tensor of the toy Llama: the low-rank updates as wholes, and replacements."""
    stored = load_file(adapter / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}
    updates, replaced = {}, {}
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            other = tensors[name.replace("lora_A", "lora_B")]
            updates[name.replace(".lora_A", "")] = (other @ tensor) * scale
        elif name.endswith("lora_embedding_A"):
            other = tensors[name.replace("embedding_A", "embedding_B")]
            updates[name.replace("lora_embedding_A", "weight")] = (other @ tensor).T * scale
        elif "lora" not in name:
            replaced[name.replace(".base_layer", "")] = tensor
    return updates, replaced


def delta(adapter, scale, start):
    """The difference an adapter is, standing on the tensors of `start`; only what it touches."""
    updates, replaced = factors(adapter, scale)
    changes = {name: tensor - start[name] for name, tensor in replaced.items()}
    return changes | {name: update + changes.get(name, 0) for name, update in updates.items()}


class Toys:
    """A base, a fine-tune of it, two adapters, and what they hold."""

    def __init__(self, root):
        model = llama()
        self.base_dir = make(root / "1", model, **FIRST).base
        self.one_dir = root / "1" / "adapter"
        self.two_dir = make(root / "2", llama(), seed=5, **SECOND).adapter
        tuned = llama()
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        tuned.save_pretrained(root / "tuned")
        self.tuned_dir = root / "tuned"
        self.base, self.one, self.two, self.tuned = map(
            surgeon.open, (self.base_dir, self.one_dir, self.two_dir, self.tuned_dir)
        )
        self.start, self.moved = read_checkpoint(self.base_dir), read_checkpoint(self.tuned_dir)
        self.first = delta(self.one_dir, FIRST_SCALE, self.start)
        self.second = delta(self.two_dir, SECOND_SCALE, self.start)
        assert len(self.first) == 5 and len(self.second) == 5


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return Toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def apply(tmp_path):
    def run(expr):
        surgeon.apply(expr, tmp_path / "out", threads=1, overwrite=True)
        return read_checkpoint(tmp_path / "out")

    return run


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        size = tensor.abs().max().item()
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=5e-7 * size, msg=lambda m, n=name: f"{n}: {m}")


def added(start, *terms):
    """start + Σ c·difference."""
    return {n: t + sum(c * difference[n] for difference, c in terms if n in difference) for n, t in start.items()}


def test_scaled_subtracted_and_summed(toys, apply):
    close(apply(toys.base + 0.5 * toys.one), added(toys.start, (toys.first, 0.5)))
    close(apply(toys.base - toys.one), added(toys.start, (toys.first, -1)))
    close(apply(toys.base + 0.5 * toys.two), added(toys.start, (toys.second, 0.5)))
    close(apply(toys.base - toys.two), added(toys.start, (toys.second, -1)))
    both = added(toys.start, (toys.first, 0.75), (toys.second, -2))
    close(apply(toys.base + 0.75 * toys.one - 2 * toys.two), both)
    close(apply(toys.base + (toys.two - toys.one) / 4), added(toys.start, (toys.second, 0.25), (toys.first, -0.25)))


def test_what_cancels_gives_the_base_byte_for_byte(toys, tmp_path):
    for number, expr in enumerate([toys.base + toys.one - toys.one, toys.base + 0 * toys.two]):
        surgeon.apply(expr, tmp_path / str(number))
        (file,) = (tmp_path / str(number)).glob("*.safetensors")
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, toys.start[name])


def test_added_to_another_model_than_the_first(toys, apply):
    """Low-rank updates are differences of their own; replaced tensors are so from the first model of the sum."""
    mixed = {n: t + 0.5 * (toys.moved[n] - t) for n, t in toys.start.items()}
    close(apply(0.5 * toys.base + 0.5 * toys.tuned + toys.two), added(mixed, (toys.second, 1)))
    own = delta(toys.two_dir, SECOND_SCALE, toys.moved)
    close(apply(0.5 * toys.tuned + 0.5 * toys.base + toys.two), added(mixed, (own, 1)))
    close(apply(toys.tuned + 0.5 * toys.two), added(toys.moved, (own, 0.5)))


def test_replaced_tensors_are_differences_from_the_adapters_own_base(toys, apply):
    stated = surgeon.open(toys.two_dir, base_model=toys.base)
    close(apply(toys.tuned + 0.5 * stated), added(toys.moved, (toys.second, 0.5)))
    own = delta(toys.two_dir, SECOND_SCALE, toys.moved)
    assert not torch.allclose(own["model.norm.weight"], toys.second["model.norm.weight"])


RECIPE = """\
surgeon: 1
models:
  base: {base}
  tuned: {tuned}
  style: {{model: {adapter}, base_model: base}}
steps:
  styled: {{combine: tuned + 0.5 * style}}
"""


def test_the_adapters_own_base_in_a_recipe(toys, apply, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=toys.base_dir, tuned=toys.tuned_dir, adapter=toys.two_dir))
    found = apply(recipe)
    close(found, added(toys.moved, (toys.second, 0.5)))
    python = apply(toys.tuned + 0.5 * surgeon.open(toys.two_dir, base_model=toys.base))
    assert all(torch.equal(found[name], tensor) for name, tensor in python.items())


def test_dora_is_computed_against_the_adapters_own_base(toys, apply, tmp_path):
    made = make(tmp_path / "dora", llama(), use_dora=True, **FIRST)
    change = {n: made.state[n] - t for n, t in toys.start.items() if not torch.equal(made.state[n], t)}
    assert len(change) == 5
    expected = added(toys.moved, (change, 0.5))
    close(apply(toys.tuned + 0.5 * surgeon.open(made.adapter, base_model=toys.base)), expected)
    elsewhere = apply(toys.tuned + 0.5 * surgeon.open(made.adapter))
    assert not torch.allclose(elsewhere["model.embed_tokens.weight"], expected["model.embed_tokens.weight"], atol=1e-4)


def test_an_adapted_tensor_that_is_also_replaced_is_adapted_after(toys, apply, tmp_path):
    """PEFT stores an embedding that it adapts whole as well; the factors stand on what it stored."""
    value = torch.randn(20, 16)

    def store_whole(folder):
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path) | {"base_model.model.model.embed_tokens.base_layer.weight": value}, path)

    config = {"target_modules": ["embed_tokens"], "r": 3, "lora_alpha": 5}
    plain = make(tmp_path / "plain", llama(), store_whole, **config)
    update = factors(plain.adapter, 5 / 3)[0]["model.embed_tokens.weight"]
    expected = toys.start | {"model.embed_tokens.weight": value + update}
    close(apply(toys.base + surgeon.open(plain.adapter)), expected)

    dora = make(tmp_path / "dora", llama(), store_whole, use_dora=True, **config)
    tensors = load_file(dora.adapter / "adapter_model.safetensors")
    magnitude = next(t for n, t in tensors.items() if "magnitude" in n)
    moved = value + factors(dora.adapter, 5 / 3)[0]["model.embed_tokens.weight"]
    expected = toys.start | {"model.embed_tokens.weight": magnitude * moved / moved.norm(dim=0)}
    close(apply(toys.base + surgeon.open(dora.adapter)), expected)


def merged_by_hand(toys, kernel):
    """The kernel on the task vectors of the fine-tune and of the second adapter, tensor by tensor."""
    found = {}
    for name, tensor in toys.start.items():
        vectors = torch.stack([toys.moved[name] - tensor, toys.second.get(name, torch.zeros_like(tensor))])
        found[name] = tensor + kernel(vectors)
    return found


METHODS = {
    "task_arithmetic": (task_arithmetic, {"weight": (0.6, 0.5)}),
    "ties": (ties, {"weight": (0.6, 0.5), "density": (0.5, 0.3)}),
}


@pytest.mark.parametrize("method", METHODS)
def test_member_of_a_merge_stands_for_the_base_and_it(toys, apply, method):
    kernel, settings = METHODS[method]
    found = apply(surgeon.merge(method, [toys.tuned, toys.two], base_model=toys.base, **settings))
    close(found, merged_by_hand(toys, lambda vectors: kernel(vectors, **settings)))
    summed = apply(surgeon.merge(method, [toys.tuned, toys.base + toys.two], base_model=toys.base, **settings))
    close(found, summed)


def test_member_of_a_merge_may_be_a_sum_of_adapters(toys, apply):
    sum_ = 0.5 * toys.one + 0.5 * toys.two
    found = apply(surgeon.merge("task_arithmetic", [sum_], base_model=toys.base, weight=2))
    close(found, added(toys.start, (toys.first, 1), (toys.second, 1)))


def test_slerp_towards_an_adapter(toys, apply):
    found = apply(surgeon.merge("slerp", [toys.two], base_model=toys.base, t=0.25))
    target = added(toys.start, (toys.second, 1))
    close(found, {n: slerp(t, target[n][None], t=0.25) for n, t in toys.start.items()})


def test_standing_on_a_merge(toys, apply):
    """What an adapter replaces is then a difference from the merge."""
    merge = surgeon.merge("task_arithmetic", [toys.tuned], base_model=toys.base, weight=0.5)
    merged = {n: t + 0.5 * (toys.moved[n] - t) for n, t in toys.start.items()}
    own = delta(toys.two_dir, SECOND_SCALE, merged)
    close(apply(merge + 0.5 * toys.two), added(merged, (own, 0.5)))


def test_two_adapters_on_conv1d(tmp_path):
    config = {"target_modules": CONV1D, "fan_in_fan_out": True, "r": 4}
    one = make(tmp_path / "1", gpt2(), **config)
    two = make(tmp_path / "2", gpt2(), seed=7, **config)
    start, first, second = read_checkpoint(one.base), one.state, two.state
    expr = surgeon.open(one.base) + 0.5 * surgeon.open(one.adapter) - surgeon.open(two.adapter)
    surgeon.apply(expr, tmp_path / "out", threads=1)
    expected = {n: t + 0.5 * (first[n] - t) - (second[n] - t) for n, t in start.items()}
    close(read_checkpoint(tmp_path / "out"), expected)
