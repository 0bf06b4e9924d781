"""What a merge has to expect: told from task vectors, and from prompts, of checkpoints and adapters alike."""

import json
from pathlib import Path

import pytest

import surgeon
from surgeon.testing.toys import read_checkpoint, toy_llama, write_checkpoint

TINY = Path(__file__).parents[1] / "data/tiny"
LIST, INITIALS = TINY / "adapters/list", TINY / "adapters/initials"


def test_adapters_and_the_models_they_make_are_the_same_task_vectors(tmp_path):
    base = surgeon.open(TINY / "model")
    for adapter in (LIST, INITIALS):
        surgeon.apply(base + surgeon.open(adapter), tmp_path / adapter.name, dtype="float32")
    one = surgeon.measure_merge([LIST, INITIALS], TINY / "model")
    other = surgeon.measure_merge([tmp_path / "list", tmp_path / "initials"], TINY / "model")
    assert one.models == other.models == ("list", "initials")
    assert other.whole.norms == pytest.approx(one.whole.norms, rel=1e-4)
    assert other.whole.interference == pytest.approx(one.whole.interference, rel=1e-3)
    assert set(one.layers) <= {"0", "1", "2", "before", "after"}


def test_a_path_that_exists_needs_no_dot(tmp_path, monkeypatch):
    base = toy_llama(tmp_path / "base", 1)
    for seed, name in enumerate("ab", 2):
        toy_llama(tmp_path / name, seed, base=base)
    monkeypatch.chdir(tmp_path)
    assert surgeon.measure_merge(["a", "./b"], "base").models == ("a", "b")
    with pytest.raises(surgeon.RefusedError, match="named twice"):
        surgeon.measure_merge(["a", "./a"], "base")
    with pytest.raises(surgeon.MismatchError, match="an adapter carries matrices"):  # found, and read
        surgeon.export_adapter("a", tmp_path / "adapter", base="base", rank=2)


def test_models_that_do_not_fit_and_nan_are_refused_by_name(tmp_path):
    base = toy_llama(tmp_path / "base", 1)
    a = toy_llama(tmp_path / "a", 2, base=base)
    wide = toy_llama(tmp_path / "wide", 3, vocab_size=80)
    with pytest.raises(surgeon.MismatchError, match=r"lm_head.weight: F32\[64, 32\] in base, F32\[80, 32\] in wide"):
        surgeon.measure_merge([a, wide], base)
    tensors = read_checkpoint(a)
    tensors["model.norm.weight"][3] = float("nan")
    broken = write_checkpoint(tmp_path / "broken", tensors)
    with pytest.raises(surgeon.RunError, match=r"model.norm.weight of broken holds NaN"):
        surgeon.measure_merge([a, broken], base)


def test_prompts_tell_what_a_sum_keeps(tmp_path):
    prompts = tmp_path / "list.jsonl"
    asked = ("List: sun and moon", "List: cat and dog")
    prompts.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    report = surgeon.measure_merge([LIST, INITIALS], TINY / "model", prompts={"list": prompts})
    (kept,) = report.kept.values()
    assert kept.expert > kept.base
    assert kept.shares[-1] > kept.shares[0]
    assert "On the prompts a plain sum is best at weight" in report.advice()
    assert report.to_dict()["path"]["list"]["shares"] == list(kept.shares)


def test_orthogonal_task_vectors_are_said_to_give_the_base_with_model_stock(tmp_path):
    report = surgeon.measure_merge([LIST, INITIALS], TINY / "model")
    assert report.stock < 0.2
    assert "model_stock would return almost the base" in report.advice()


def test_models_that_move_together_are_averaged(tmp_path):
    base = toy_llama(tmp_path / "base", 1)
    tensors, moved = read_checkpoint(base), read_checkpoint(toy_llama(tmp_path / "moved", 2, base=base))
    for name, much in (("one", 1), ("two", 1.1)):
        write_checkpoint(tmp_path / name, {n: v + much * (moved[n] - v) for n, v in tensors.items()})
    report = surgeon.measure_merge([tmp_path / "one", tmp_path / "two"], base)
    assert report.whole.cosine == pytest.approx(1, abs=1e-3)
    assert "Try linear first" in report.advice() and "model_stock" not in report.advice()


@pytest.mark.parametrize(
    ("models", "prompts", "says"),
    [
        ([LIST], None, "1 model"),
        ([LIST, LIST], None, "named twice"),
        ([LIST, INITIALS], {"lists": LIST}, "did you mean 'list'"),
        ([TINY / "model", LIST], None, None),
    ],
)
def test_bad_input(models, prompts, says):
    if says is None:
        assert surgeon.measure_merge(models, TINY / "model").whole.norms[0] == 0
        return
    with pytest.raises(surgeon.RefusedError, match=says):
        surgeon.measure_merge(models, TINY / "model", prompts=prompts)


def test_configs_and_tokenizers_are_compared(tmp_path):
    for name in ("base", "one", "two"):
        toy_llama(tmp_path / name, len(name) + ord(name[0]), rms_norm_eps=1e-6 if name == "one" else 1e-5)
    report = surgeon.measure_merge([tmp_path / "one", tmp_path / "two"], tmp_path / "base")
    assert any("one: config rms_norm_eps" in line for line in report.differences)
