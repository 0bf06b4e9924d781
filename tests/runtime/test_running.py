"""Loading, states, scores and continuations of toy models, against transformers itself."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.utils import logging

from surgeon.errors import CheckpointError, MismatchError, RefusedError
from surgeon.runtime.generate import continuation_ids, continuations
from surgeon.runtime.load import load
from surgeon.runtime.points import capture
from surgeon.runtime.scores import distributions, kl, log_probabilities
from surgeon.runtime.text import Encoded
from surgeon.testing.toys import read_checkpoint, toy_llama
from tests.support.family_toys import TOKENS, TOYS, loaded, toy
from tests.support.tokens import write_tokenizer

PROMPTS = [TOKENS.flatten()[start : start + length].tolist() for start, length in ((0, 3), (5, 7), (11, 11), (2, 25))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load(write_tokenizer(toy_llama(tmp_path_factory.mktemp("toy") / "model")), device="cpu")


def rewrite(folder, **tensors):
    """Replace tensors of a toy; None takes one away."""
    kept = {**read_checkpoint(folder), **tensors}
    save_file({n: v for n, v in kept.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_loading_is_quiet_and_leaves_transformers_as_it_was(device_map, tmp_path, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    folder = write_tokenizer(toy_llama(tmp_path / "toy", dtype=torch.bfloat16))
    model = load(folder, device="cpu", device_map=device_map)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert not model.model.training
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(model.model(TOKENS).logits, expected(TOKENS).logits)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm.weight", None, "model.norm.weight is missing"),
        ("lm_head.weight", None, "lm_head.weight is missing"),
        ("model.norm.weight", torch.ones(31), "model.norm.weight is [31], not [32]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name, value, message, tmp_path):
    with pytest.raises(CheckpointError) as error:
        load(rewrite(toy_llama(tmp_path / "toy"), **{name: value}), device="cpu")
    assert message in str(error.value)


def test_what_cannot_be_loaded_is_refused(tmp_path):
    folder = toy_llama(tmp_path / "toy")
    with pytest.raises(RefusedError, match="'int8' is no dtype"):
        load(folder, dtype="int8")
    with pytest.raises(RefusedError, match="'abacus' is not a device"):
        load(folder, device="abacus")
    with pytest.raises(RefusedError, match="there is no cuda:99"):
        load(folder, device="cuda:99")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    with pytest.raises(MismatchError, match=r"'lama'\n  next: did you mean 'llama'"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(MismatchError, match="is quantised"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is needed"):
        load(folder)
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", TOYS)
def test_states_are_those_transformers_reports(name, tmp_path):
    model = loaded(toy(tmp_path / "toy", name))
    with capture(model, ["embed", "block.0", "block.0.mid"]) as states:
        reported = model.model(TOKENS, output_hidden_states=True).hidden_states
        assert states.keys() == {"embed", "block.0", "block.0.mid"}
        assert torch.equal(states["embed"], reported[0])
        assert torch.equal(states["block.0"], reported[1])
        model.model(TOKENS[:1])
        torch.testing.assert_close(states["block.0"], reported[1][:1], rtol=1e-5, atol=1e-5)


def test_hooks_are_removed_whatever_happens(llama):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules())

    with pytest.raises(ZeroDivisionError), capture(llama, llama.anatomy.points()):
        assert hooks() == 7
        raise ZeroDivisionError
    with pytest.raises(RefusedError, match=r"'block\.9'"), capture(llama, ["embed", "block.0", "block.9"]):
        pass
    assert hooks() == 0


@pytest.mark.parametrize("name", TOYS)
def test_padded_batches_continue_as_each_alone(name, tmp_path):
    """Also as transformers' own greedy search does, beyond a sliding window of eight."""
    model = loaded(toy(tmp_path / "toy", name))
    found = continuation_ids(model, PROMPTS, 8)
    assert len({token for ids in found for token in ids}) > 3
    assert found == [continuation_ids(model, [prompt], 8)[0] for prompt in PROMPTS]
    for prompt, ids in zip(PROMPTS, found, strict=True):
        given = torch.tensor([prompt])
        out = model.model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=8)
        assert out[0, len(prompt) :].tolist()[: len(ids)] == ids


def test_choices_too_close_to_call_are_made_alone(llama, monkeypatch):
    """Rows whose best tokens padding could swap do not come from the batch."""
    from surgeon.runtime import generate

    sizes, greedy = [], generate._greedy
    monkeypatch.setattr(
        generate, "_greedy", lambda m, prompts, count: sizes.append(len(prompts)) or greedy(m, prompts, count)
    )
    monkeypatch.setattr(generate, "_CLOSE", 1e-5)
    expected = continuation_ids(llama, PROMPTS, 4)
    assert sizes == [4]
    monkeypatch.setattr(generate, "_CLOSE", 10.0)
    assert continuation_ids(llama, PROMPTS, 4) == expected
    assert sizes == [4, 4, 1, 1, 1, 1]


def test_continuations_end_at_the_end_token(llama):
    ids = continuation_ids(llama, PROMPTS, 6)[0]
    llama.model.generation_config.eos_token_id = [ids[2], 63]
    try:
        assert continuation_ids(llama, PROMPTS, 6)[0] == ids[: ids.index(ids[2])]
    finally:
        llama.model.generation_config.eos_token_id = 2
    with pytest.raises(RefusedError, match="25 tokens and 40 new ones do not fit the context of 64"):
        continuation_ids(llama, PROMPTS, 40)
    texts = continuations(llama, [{"prompt": "one"}, {"text": "one two"}], 5)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_log_probabilities_are_the_models(name, tmp_path):
    model = loaded(toy(tmp_path / "toy", name))
    ids = TOKENS[0].tolist()
    whole = model.model(TOKENS[:1]).logits[0].log_softmax(-1)
    expected = torch.stack([whole[at - 1, ids[at]] for at in range(9, 12)])
    torch.testing.assert_close(log_probabilities(model, Encoded(ids, 9)), expected)
    torch.testing.assert_close(distributions(model, Encoded(ids, 9)), whole[1:])
    assert log_probabilities(model, Encoded(ids, 12)).shape == (0,)
    assert distributions(model, Encoded(ids[:1], 1)).shape == (0, 64)


def test_kl_is_in_nats_a_token():
    before, after = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    expected = (
        0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log() + torch.tensor(2.0).log()
    ) / 2
    assert kl(before, after) == pytest.approx(expected.item())
    assert kl(before, before) == 0.0
