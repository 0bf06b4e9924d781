"""Bad input by the whole road: one clear message that names file and line or tensor, the right exit code, no OUT."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgeon.testing.toys import CONFIG, random_tensors, toy_llama, write_checkpoint
from surgeon_cli import installation, main

PLAIN = """\
surgeon: 1
models:
  base: ./base
  math: ./math
steps:
  merged:
    combine: base + 0.5*(math - base)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    toy_llama(folder / "base", num_hidden_layers=1)
    toy_llama(folder / "math", 1, base=folder / "base", num_hidden_layers=1)
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    """A folder of its own with both models (links to them; a test that breaks one writes it anew)."""
    for name in ("base", "math"):
        (tmp_path / name).symlink_to(models / name)
    return tmp_path


@pytest.fixture
def surgeon_says(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs `surgeon apply` on a recipe's text: exit code and what it says; OUT and its hidden sibling must not stay."""

    def run(text: str | bytes, *options: str, verb: str = "apply") -> tuple[int, str]:
        (place / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        out = ["-o", str(place / "out")] if verb == "apply" else []
        monkeypatch.setattr(sys, "argv", ["surgeon", verb, str(place / "recipe.yaml"), *out, *options])
        monkeypatch.setattr(installation, "check", lambda: None)
        with pytest.raises(SystemExit) as end:
            main.run()
        told = capfd.readouterr().err
        code = int(end.value.code or 0)
        if code:
            assert not (place / "out").exists()
            assert not (place / ".out.surgeon").exists()
            assert "Traceback" not in told
            assert "bug in surgeon" not in told
            assert "error: " in told
            assert "next: " in told
        return code, told

    return run


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: safetensors({"a": entry(0, 400)}, bytes(100)), "a"),
    "cut in the header": (lambda: safetensors({"a": entry(0, 4)})[:20], "truncated"),
    "header bomb": (lambda: safetensors(b"{}", length=1 << 62), "header"),
    "deep header": (lambda: safetensors(b'{"a":' + b"[" * 100_000), "header"),
    "overlapping": (lambda: safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "b"),
    "hole": (lambda: safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "b"),
    "out of range": (lambda: safetensors({"a": entry(0, 4), "b": entry(4, 1 << 40)}, bytes(8)), "b"),
    "negative": (lambda: safetensors({"a": entry(-4, 0, [1])}, bytes(4)), "a"),
    "size and shape differ": (lambda: safetensors({"a": entry(0, 8, [3])}, bytes(8)), "a"),
    "unknown dtype": (lambda: safetensors({"a": entry(0, 4, [1], "F33")}, bytes(4)), "F33"),
    "duplicate keys": (lambda: safetensors(b'{"a":' + b",".join([json.dumps(entry(0, 4)).encode() + b',"a":' +
                       json.dumps(entry(0, 4)).encode()]) + b"}", bytes(4)), "a"),
    "not JSON": (lambda: safetensors(b"{'a': 1}"), "header"),
    "NaN in JSON": (lambda: safetensors(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'), ""),
    "pickle": (lambda: pickle.dumps({"a": [1.0]}), "pickle"),
    "zip of torch.save": (lambda: b"PK\x03\x04" + bytes(100), "pickle"),
    "empty": (lambda: b"", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_broken_weight_file(place: Path, surgeon_says, kind: str):
    data, words = FILES[kind]
    (place / "math").unlink()
    (place / "math").mkdir()
    (place / "math" / "model.safetensors").write_bytes(data())
    code, told = surgeon_says(PLAIN)
    assert code == 2
    assert str(place / "math" / "model.safetensors") in told
    assert words in told
    assert f"{place / 'recipe.yaml'}:4" in told


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../base/model.safetensors"}, "../base"),
        ({"a": "/etc/passwd"}, "/etc/passwd"),
        ({"a": "missing.safetensors"}, "missing.safetensors"),
        ({"a": "model-1.safetensors", "b": "model-1.safetensors"}, "b"),
        ({"a": 5}, "a"),
    ],
)
def test_a_broken_index(place: Path, surgeon_says, weight_map: dict, words: str):
    (place / "math").unlink()
    (place / "math").mkdir()
    save_file({"a": torch.zeros(3)}, place / "math" / "model-1.safetensors")
    (place / "math" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    code, told = surgeon_says(PLAIN)
    assert code == 2
    assert words in told


def test_a_pickle_is_refused_with_the_command_that_converts_it(place: Path, surgeon_says):
    (place / "math").unlink()
    (place / "math").mkdir()
    torch.save({"a": torch.zeros(3)}, place / "math" / "pytorch_model.bin")
    code, told = surgeon_says(PLAIN)
    assert code == 2
    assert "pytorch_model.bin" in told
    assert "safetensors" in told


def test_a_missing_model_and_a_missing_recipe(place: Path, surgeon_says):
    code, told = surgeon_says(PLAIN.replace("./math", "./maths"))
    assert code == 2
    assert "maths" in told
    code, told = surgeon_says(PLAIN, "--set", "models.math=./nowhere")
    assert code == 2
    assert "nowhere" in told


def test_models_that_do_not_fit_list_every_tensor(place: Path, surgeon_says):
    (place / "math").unlink()
    held = random_tensors({"model.norm.weight": (5,), "extra.weight": (2, 2)}, 0)
    write_checkpoint(place / "math", held, CONFIG)
    code, told = surgeon_says(PLAIN)
    assert code == 2
    assert "model.norm.weight: F32[32] in base, F32[5] in math" in told
    assert "extra.weight: only in math" in told
    assert "model.layers.0.mlp.up_proj.weight: only in base" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "step",
    [
        "combine: base + 0.5*(math - base)",
        "{merge: ties, base_model: base, models: [math], density: 0.5}",
        "{merge: ties, base_model: base, models: [math], density: 0.5, over: model}",
        "{merge: slerp, base_model: base, models: [math], t: 0.5}",
        "{merge: linear, models: [base, math], weight: 1}",
    ],
)
def test_nan_or_infinity_in_an_input_is_named(place: Path, models: Path, surgeon_says, value: float, step: str):
    from surgeon.testing.toys import read_checkpoint

    held = read_checkpoint(models / "math")
    held["model.layers.0.mlp.up_proj.weight"][7, 3] = value
    (place / "math").unlink()
    write_checkpoint(place / "math", held)
    text = PLAIN.replace("\n    combine: base + 0.5*(math - base)", f"\n    {step}" if step[0] == "c" else f" {step}")
    code, told = surgeon_says(text)
    assert code == 1
    assert f"model.layers.0.mlp.up_proj.weight in {place / 'math'}" in told
    assert "--allow-nan" in told
    assert surgeon_says(text, "--allow-nan")[0] == 0


RECIPES = {
    "unknown key": (PLAIN + "ouput: {}\n", 8, "output"),
    "unknown key in a step": (PLAIN + "    wieght: 1\n", 8, "wieght"),
    "unknown name": (PLAIN.replace("(math", "(maths"), 7, "did you mean 'math'"),
    "unknown method": (PLAIN.replace("combine: base + 0.5*(math - base)", "merge: tie\n    models: [math]"), 7, "ties"),
    "unused model": (PLAIN.replace("0.5*(math - base)", "0*base"), 4, "math"),
    "mass": (PLAIN.replace("(math - base)", "math"), 7, "sum to 1.5"),
    "a call": (PLAIN.replace("base +", "open(base) +"), 7, ""),
    "an attribute": (PLAIN.replace("base +", "base.__class__ +"), 7, ""),
    "a subscript": (PLAIN.replace("base +", "base[0] +"), 7, ""),
    "a power": (PLAIN.replace("0.5*", "9**9**9*"), 7, ""),
    "a product of models": (PLAIN.replace("0.5*", "math*"), 7, ""),
    "a huge number": (PLAIN.replace("0.5", "1e999999999"), 7, ""),
    "a python tag": (PLAIN + "output: !!python/object/apply:os.system ['touch pwned']\n", 8, "tag"),
    "duplicate keys": (PLAIN + "models: {}\n", 8, "models"),
    "not a mapping": ("- 1\n- 2\n", 1, "mapping"),
    "no YAML": (PLAIN + "  : : [\n", 8, ""),
    "bombs": ("surgeon: 1\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)), 2, ""),
    "out of range": (PLAIN.replace("combine: base + 0.5*(math - base)",
                                   "{merge: ties, base_model: base, models: {math: {density: 1.5}}}").replace(
                                       "merged:\n    {", "merged: {"), 6, "density must lie in (0, 1]"),
    "no version": (PLAIN.replace("surgeon: 1\n", ""), 1, "surgeon"),
    "a later version": (PLAIN.replace("surgeon: 1", "surgeon: 2"), 1, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("verb", ["apply", "plan"])
def test_a_broken_recipe(place: Path, surgeon_says, kind: str, verb: str):
    text, line, words = RECIPES[kind]
    code, told = surgeon_says(text, verb=verb)
    assert code == 2
    assert f"{place / 'recipe.yaml'}:{line}: " in told
    assert words in told
    assert len(told) < 3000
    assert not (place / "pwned").exists()


def test_bytes_that_are_no_text(surgeon_says):
    assert surgeon_says(b"\xff\xfe\x00s")[0] == 2


def test_several_faults_are_told_at_once(surgeon_says):
    code, told = surgeon_says(PLAIN.replace("base + 0.5", "bse + 0.5") + "output: {dtype: float8, shard_size: big}\n")
    assert code == 2
    assert "bse" in told
    assert "float8" in told
    assert "shard_size" in told


@pytest.mark.parametrize(
    ("module", "rows", "words"),
    [
        ("model.layers.9.mlp.up_proj", 48, "model.layers.9.mlp.up_proj"),
        ("model.layers.0.mlp.up_proj", 47, "model.layers.0.mlp.up_proj"),
        ("transformer.h.0.attn.c_attn", 48, "transformer.h.0.attn.c_attn"),
    ],
)
def test_an_adapter_for_another_base(place: Path, surgeon_says, module: str, rows: int, words: str):
    (place / "lora").mkdir()
    held = {
        f"base_model.model.{module}.lora_A.weight": torch.zeros(2, 32),
        f"base_model.model.{module}.lora_B.weight": torch.zeros(rows, 2),
    }
    save_file(held, place / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [module]}
    (place / "lora" / "adapter_config.json").write_text(json.dumps(config))
    text = PLAIN.replace("math: ./math", "lora: ./lora").replace("(math - base)", "lora")
    code, told = surgeon_says(text)
    assert code == 2
    assert words in told


def test_options_that_make_no_sense(surgeon_says):
    for options in (["--memory", "lots"], ["--device", "abacus"], ["--dtype", "float7"], ["--shard-size", "-1"]):
        code, told = surgeon_says(PLAIN, *options)
        assert code == 2
        assert options[1] in told
        assert surgeon_says(PLAIN, *options, verb="plan") == (code, told)
    assert surgeon_says(PLAIN, "--memory", "1MB")[0] == 2
    assert surgeon_says(PLAIN)[0] == 0


def test_all_models_that_are_not_there_are_told_at_once(surgeon_says):
    code, told = surgeon_says(PLAIN.replace("./math", "./gone").replace("./base", "./lost"))
    assert code == 2
    assert "2 models cannot be opened" in told
    assert "/lost: no such file" in told
    assert "/gone: no such file" in told
