"""What a server answers, held against transformers: tokens, log-probabilities, prompts, and where it stops."""

from dataclasses import replace

import pytest
import torch

import surgeon
from surgeon.ship.servers import serve
from surgeon.ship.servers.comparison import Reference
from surgeon.ship.servers.engines import ENGINES, Engine, Prompt, Served
from tests.support.tokenizer_toys import bpe, with_tokenizer

COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = with_tokenizer(tmp_path_factory.mktemp("toy") / "model", bpe(), eos_token_id=None)
    (folder / "model.safetensors").chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="module")
def honest(reference):
    """What a server that is transformers answers."""
    tokenizer, model = reference.tokenizer, reference.model
    prompt = Prompt("the cat", tuple(tokenizer("the cat").input_ids))
    ids, logprobs = list(prompt.ids), []
    with torch.no_grad():
        for _ in range(COUNT):
            row = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            logprobs.append(float(row.max()))
            ids.append(int(row.argmax()))
    answer = ids[len(prompt.ids) :]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    return Served(prompt, tuple(answer), tuple(logprobs), text, len(prompt.ids), False)


def judged(reference, served, tolerance=0.02):
    return reference.compare([served], COUNT, tolerance)[0]


def test_what_transformers_answers_is_the_same(reference, honest):
    found = judged(reference, honest)
    assert found.wrong == "" and found.tokens == COUNT and found.apart < 1e-4
    text_alone = judged(reference, replace(honest, ids=None, logprobs=None))
    assert text_alone.wrong == "" and text_alone.apart is None


def test_another_token_is_named_with_what_transformers_prefers(reference, honest):
    table = reference._table(honest)
    worst = int(table[2].argmin())
    ids = (*honest.ids[:2], worst)
    found = judged(reference, replace(honest, ids=ids, logprobs=None))
    assert "token 3 is" in found.wrong and "transformers prefers" in found.wrong


def test_a_tie_is_no_difference(reference, honest):
    table = reference._table(honest)
    second = int(table[0].topk(2).indices[1])
    lead = float(table[0].max() - table[0, second])
    served = replace(honest, ids=(second,), logprobs=(float(table[0, second]),))
    assert judged(reference, served, tolerance=lead).wrong == ""
    assert "prefers" in judged(reference, served, tolerance=lead / 4).wrong


@pytest.mark.parametrize("shift", [0.03, float("nan")])
def test_other_log_probabilities(reference, honest, shift):
    found = judged(reference, replace(honest, logprobs=(honest.logprobs[0] + shift, *honest.logprobs[1:])))
    assert "log-probabilities differ" in found.wrong


def test_another_reading_of_the_prompt(reference, honest):
    assert "reads the prompt as 99 tokens" in judged(reference, replace(honest, read=99)).wrong


def test_an_answer_that_stops_early(reference, honest):
    short = replace(honest, ids=honest.ids[:2], logprobs=honest.logprobs[:2], ended=True)
    assert "stops after 2 tokens" in judged(reference, short).wrong
    assert judged(reference, replace(honest, ids=(), logprobs=(), ended=True)).wrong == "says nothing"


def test_another_text(reference, honest):
    assert "transformers" in judged(reference, replace(honest, ids=None, text="no")).wrong


def test_a_folder_without_a_tokenizer_cannot_be_asked(tmp_path):
    from surgeon.testing.toys import toy_llama

    with pytest.raises(surgeon.CheckpointError, match="no tokenizer"):
        Reference(toy_llama(tmp_path / "bare"))


def test_the_noise_of_16_bit_is_measured(folder, honest):
    wide, narrow = Reference(folder), Reference(folder, "bfloat16")
    assert wide.tolerance([honest]) == 0.02
    own = narrow._noise(honest)
    assert 1e-4 < own < 0.05 and narrow.tolerance([honest]) == max(0.05, 3 * own)
    assert Reference(folder, "Q8_0").tolerance([honest]) == 0.05


def told(engine, honest, shift):
    """An engine that needs no server: it answers as transformers would, its log-probabilities shifted."""

    def answer(server, model, prompt, count):
        return replace(honest, logprobs=tuple(one + shift for one in honest.logprobs))

    return Engine(engine.name, (), engine.install, engine.command, answer, casts=True)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_check_tells_the_table_and_the_verdict(folder, honest, shift, monkeypatch):
    from contextlib import nullcontext

    engine = told(ENGINES[1], honest, shift)
    monkeypatch.setattr(serve, "engine_named", lambda name: engine)
    monkeypatch.setattr(serve, "running", lambda *given: nullcontext())
    report = surgeon.check(folder, serve="vllm", tokens=COUNT)
    assert report.exit_code == (3 if shift else 0), report.explain()
    assert ("vllm does not answer" if shift else "vllm answers as transformers does") in report.explain()
    assert report.to_dict()["served"]["same"] is not bool(shift)


def test_refusals_come_before_a_server_is_started(folder, tmp_path):
    for settings, told in [
        ({"serve": "llamacpp", "gguf": folder}, "--gguf FILE"),
        ({"serve": "vllm", "dtype": "int8"}, "is no dtype to serve in"),
        ({"serve": "vllm", "adapter": tmp_path}, "--base MODEL"),
        ({"serve": "vllm", "tokens": 0}, "none to compare"),
        ({"serve": "llamacpp", "gguf": tmp_path / "no.gguf"}, "no such file"),
    ]:
        with pytest.raises(surgeon.RefusedError, match=told):
            surgeon.check(folder, **settings)
