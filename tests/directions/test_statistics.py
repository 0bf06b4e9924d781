"""Streamed statistics are those of all states at once, without the first token, one forward pass an example."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from surgeon.directions.examples import Example, neutral_examples
from surgeon.directions.neutral import measure_neutral
from surgeon.directions.positions import Position
from surgeon.directions.statistics import clamped, measure, states
from surgeon.errors import Origin, RefusedError, RunError
from surgeon.runtime.generate import continuation_ids
from surgeon.runtime.text import encode
from surgeon.space.fitter import Moments

EXAMPLES = [
    Example({"text": "The sun is warm and the tree is tall."}),
    Example({"prompt": "Repeat: moon"}),
    Example({"messages": [{"role": "user", "content": "Repeat: river stone"}], "response": "river stone"}),
    Example({"text": "one two three four five six seven"}),
]


@torch.no_grad()
def hidden(loaded, ids):
    """What transformers itself says the stream holds after the embedding and after each block but the last."""
    found = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    names = ["embed", *(f"block.{block}" for block in range(loaded.anatomy.blocks - 1))]
    return {name: state[0].double().numpy() for name, state in zip(names, found, strict=False)}


def by_hand(loaded, examples, choose):
    """{point: [n, d]} of the mean over the tokens that `choose` takes of each example."""
    rows = []
    for example in examples:
        encoded = encode(loaded, example)
        rows.append({name: state[choose(encoded)].mean(0) for name, state in hidden(loaded, encoded.ids).items()})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


CHOICES = {
    "last": lambda encoded: slice(encoded.prompt - 1, encoded.prompt),
    "mean": lambda encoded: slice(1, None),
}


@pytest.mark.parametrize("position", CHOICES)
def test_streaming_is_numpy_on_all_states(loaded, position):
    expected = by_hand(loaded, EXAMPLES, CHOICES[position])
    found = measure(loaded, EXAMPLES, list(expected), position, needs_second=True)
    for name, rows in expected.items():
        scale = np.abs(rows).max()
        assert found[name].count == len(EXAMPLES)
        np.testing.assert_allclose(found[name].mean.numpy(), rows.mean(0), atol=1e-5 * scale)
        np.testing.assert_allclose(found[name].second.numpy(), rows.T @ rows / len(rows), atol=1e-5 * scale**2)
        covariance = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(found[name].covariance.numpy(), covariance, atol=1e-5 * scale**2)


def test_sums_are_float64(loaded):
    points = loaded.anatomy.points()
    kept = states(loaded, EXAMPLES * 8, points)
    for point, found in measure(loaded, EXAMPLES * 8, points).items():
        exact = kept[point].double().sum(0)
        assert found.total.dtype == torch.float64
        torch.testing.assert_close(found.total, exact, rtol=1e-13, atol=1e-13 * exact.abs().max().item())


def test_order_is_irrelevant_and_parts_add_up(loaded):
    points = loaded.anatomy.points()
    whole = measure(loaded, EXAMPLES, points, "mean", needs_second=True)
    turned = measure(loaded, EXAMPLES[::-1], points, "mean", needs_second=True)
    halves = [measure(loaded, part, points, "mean", needs_second=True) for part in (EXAMPLES[:1], EXAMPLES[1:])]
    for point in points:
        for other in (turned[point], halves[0][point] + halves[1][point]):
            assert other.count == whole[point].count
            torch.testing.assert_close(other.mean, whole[point].mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(other.second, whole[point].second, rtol=1e-11, atol=1e-11)


def test_the_first_token_is_in_no_mean(loaded):
    """The embedding of a text is known without running it: the mean is that of all ids but the first."""
    ids = encode(loaded, EXAMPLES[0]).ids
    table = loaded.model.get_input_embeddings().weight.detach()[ids]
    torch.testing.assert_close(
        measure(loaded, EXAMPLES[:1], ["embed"], "mean")["embed"].mean, table[1:].double().mean(0)
    )
    found = measure_neutral(loaded, EXAMPLES[:1], "mean")
    torch.testing.assert_close(found.moments["embed"].mean, table[1:].double().mean(0))
    torch.testing.assert_close(found.first["embed"], table[0].double())


def test_one_forward_pass_an_example_for_all_points(loaded):
    passes = []
    hook = loaded.trunk.register_forward_hook(lambda *_: passes.append(1))
    try:
        measure(loaded, EXAMPLES, loaded.anatomy.points(), needs_second=True)
        assert len(passes) == len(EXAMPLES)
        measure_neutral(loaded, EXAMPLES, needs_second=True)
        assert len(passes) == 2 * len(EXAMPLES)
    finally:
        hook.remove()


def test_pooled_products_weigh_every_point_and_token_alike(loaded):
    found = measure_neutral(loaded, EXAMPLES)
    tokens = sum(len(encode(loaded, example).ids) - 1 for example in EXAMPLES)
    expected = tokens * len(loaded.anatomy.points()) * loaded.anatomy.width
    assert found.products.trace().item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(found.products, found.products.T)


def test_neutral_moments_are_those_of_measure(loaded):
    points = loaded.anatomy.points()
    found, expected = measure_neutral(loaded, EXAMPLES, "last", True), measure(loaded, EXAMPLES, points, "last", True)
    for point in points:
        torch.testing.assert_close(found.moments[point].second, expected[point].second)
        torch.testing.assert_close(found.moments[point].mean, expected[point].mean)


def test_response_positions(loaded):
    example = EXAMPLES[2]
    encoded = encode(loaded, example)
    state = hidden(loaded, encoded.ids)["block.1"]
    for position, tokens in {
        "response": state[encoded.prompt :],
        "first": state[encoded.prompt : encoded.prompt + 1],
        "first:2": state[encoded.prompt : encoded.prompt + 2],
    }.items():
        found = measure(loaded, [example], ["block.1"], position)["block.1"].mean.numpy()
        np.testing.assert_allclose(found, tokens.mean(0), atol=1e-5 * np.abs(tokens).max())


def test_a_response_that_is_not_given_is_generated(loaded):
    prompt = Example({"prompt": "Repeat: moon tree"})
    ids = encode(loaded, prompt).ids
    answer = loaded.tokenizer.decode(continuation_ids(loaded, [ids])[0])
    given = Example({"prompt": "Repeat: moon tree", "response": answer})
    assert encode(loaded, given).ids == [*ids, *continuation_ids(loaded, [ids])[0]]
    for position in ("response", "first:2"):
        left, right = (measure(loaded, [one], ["block.2"], position)["block.2"].mean for one in (prompt, given))
        torch.testing.assert_close(left, right)


def test_winsorising_clamps_each_state(loaded):
    plain = states(loaded, EXAMPLES, ["block.1"])["block.1"]
    found = measure(loaded, EXAMPLES, ["block.1"], winsorise=0.9)["block.1"].mean
    limit = np.quantile(plain.abs().numpy(), 0.9, axis=1, method="inverted_cdf")[:, None]
    expected = np.clip(plain.double().numpy(), -limit, limit).mean(0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert not np.allclose(expected, plain.mean(0).numpy())
    assert torch.equal(clamped(plain, 1.0), plain)


def test_progress_is_told(loaded):
    told = []
    measure(loaded, EXAMPLES, ["embed"], listener=lambda *done: told.append(done))
    assert told == [(number, len(EXAMPLES)) for number in range(1, len(EXAMPLES) + 1)]


@pytest.mark.parametrize("word", ["", "middle", "first:0", "last:2", "first:", "mean:3"])
def test_a_word_that_is_no_position(word):
    with pytest.raises(RefusedError, match="no position"):
        Position.read(word)


def test_nothing_at_a_position(loaded):
    with pytest.raises(RefusedError, match="single token"):
        measure(loaded, [Example({"text": "a"})], ["embed"], "mean")
    with pytest.raises(RefusedError, match="single token"):
        measure(loaded, [Example({"text": "a"})], ["embed"], "last")
    with pytest.raises(RefusedError, match="no residual point"):
        measure(loaded, EXAMPLES, ["block.99"])


def test_no_template_and_too_long(loaded):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(RefusedError, match="chat template"):
        measure(dataclasses.replace(loaded, tokenizer=tokenizer), [EXAMPLES[1]], ["embed"])
    with pytest.raises(RefusedError, match=r"^set\.jsonl:7: .*context is 512"):
        measure(loaded, [Example({"text": "moon " * 600}, Origin("set.jsonl", 7))], ["embed"])


def test_states_that_are_not_finite(loaded):
    hook = loaded.blocks[0].register_forward_hook(lambda module, args, output: _spoiled(output))
    try:
        with pytest.raises(RunError, match="not finite"):
            measure(loaded, EXAMPLES, ["block.1"])
    finally:
        hook.remove()


def _spoiled(output):
    return (output[0] * float("nan"), *output[1:]) if isinstance(output, tuple) else output * float("nan")


def test_the_neutral_set_that_comes_along(loaded):
    examples = neutral_examples()
    assert len(examples) == 48
    assert len({example.content for example in examples}) == 48
    assert {example.is_chat for example in examples} == {True, False}


def test_an_empty_neutral_set(loaded):
    with pytest.raises(RefusedError, match="neutral set is empty"):
        measure_neutral(loaded, [])


def test_moments_without_products_say_so():
    with pytest.raises(TypeError, match="second_moments"):
        _ = Moments.of(torch.randn(3, 2)).second
