"""GGUF exports of the real SmolLM2 in llama.cpp: the tokens of transformers, and their log-probabilities within 0.02.

Needs xllamacpp, in the environment that SURGEON_LLAMACPP_PYTHON names or in this one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import surgeon
from surgeon.artifacts.direction import direction

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::UserWarning")]

PROMPTS = ["The capital of France is", "Once upon a time, there was", "1, 2, 3, 4,", "  Two  spaces, and ünïcode"]
TOKENS = 12


def answers(model: Path, adapter: Path | None = None) -> list[dict]:
    python = os.environ.get("SURGEON_LLAMACPP_PYTHON") or sys.executable
    command = [python, str(Path(__file__).with_name("llamacpp_answers.py")), str(model)]
    command += [] if adapter is None else [str(adapter)]
    asked = json.dumps({"prompts": PROMPTS, "tokens": TOKENS})
    ended = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(ended.stdout.strip().splitlines()[-1])


def check(folder: Path, found: list[dict]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert answer["prompt_tokens"] == ids.shape[1], prompt
        with torch.no_grad():
            logits = model(torch.cat([ids, torch.tensor([answer["ids"]])], dim=1)).logits[0, ids.shape[1] - 1 : -1]
        assert logits.argmax(-1).tolist() == answer["ids"], prompt
        expected = logits.log_softmax(-1).gather(1, torch.tensor(answer["ids"])[:, None])[:, 0]
        assert (expected - torch.tensor(answer["logprobs"])).abs().max() < 0.02, prompt


def test_a_model_an_edit_and_its_adapter(smollm2, tmp_path):
    rows = direction(torch.randn(1, 576, generator=torch.Generator().manual_seed(5)), at="block.14")
    edited = surgeon.edit("ablate", surgeon.open(smollm2), directions=rows, writers=("attention", "mlp"), strength=1.5)
    surgeon.export_gguf(smollm2, tmp_path / "base.gguf", dtype="float32")
    check(smollm2, answers(tmp_path / "base.gguf"))
    surgeon.apply(edited, tmp_path / "out", dtype="float32")
    surgeon.export_gguf(tmp_path / "out", tmp_path / "out.gguf", dtype="float32")
    check(tmp_path / "out", answers(tmp_path / "out.gguf"))
    surgeon.export_gguf_adapter(edited, tmp_path / "edit.gguf")
    check(tmp_path / "out", answers(tmp_path / "base.gguf", tmp_path / "edit.gguf"))
