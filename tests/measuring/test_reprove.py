"""An output proved again from its receipt; whatever is changed afterwards is noticed."""

import json
import shutil

import pytest
import torch
from blake3 import blake3
from measuring_toys import edit_json, llama
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.testing.toys import write_checkpoint

TOUCHED = "model.layers.0.self_attn.q_proj.weight"
UNTOUCHED = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="session")
def made(toy16, tmp_path_factory):
    """Inputs in a folder of their own, and what was made of them, in three shards."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(toy16.base, root / "base")
    shutil.copytree(toy16.adapter, root / "style")
    surgeon.apply(surgeon.open(root / "base") + 1 * surgeon.open(root / "style"), root / "out", shard_size="100kB")
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy to spoil; the recipe in it still names the first one's inputs."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def out(root):
    return root / "out"


def wrong(out, code=3, **options):
    verdict = surgeon.verify(out, **options)
    assert verdict.exit_code == code, verdict.explain()
    kind = "mismatch" if code == 3 else "unknown"
    return {finding.subject for finding in verdict.findings if finding.kind == kind}


def shard_of(out, tensor):
    return out / json.loads((out / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def flip(out, tensor, byte=10):
    """Flip one bit of a tensor in its file."""
    path = shard_of(out, tensor)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length + json.loads(file.read(length))[tensor]["data_offsets"][0]
    data = bytearray(path.read_bytes())
    data[start + byte] ^= 1
    path.write_bytes(data)


def forge(out, change):
    """Rewrite the receipt."""
    receipt = json.loads((out / "surgeon.json").read_text())
    change(receipt)
    (out / "surgeon.json").write_text(json.dumps(receipt))


def forge_hash(out, tensor):
    """Make the receipt's hash of a tensor that of what is there now."""
    with safe_open(shard_of(out, tensor), "pt") as file:
        data = file.get_tensor(tensor).view(torch.uint8).numpy().tobytes()
    forge(out, lambda receipt: receipt["tensors"][tensor].update(blake3=blake3(data).hexdigest()))


@pytest.mark.parametrize("full", [False, True])
def test_a_fresh_output_is_proven(made, full):
    verdict = surgeon.verify(made / "out", full=full)
    assert verdict.exit_code == 0, verdict.explain()
    assert not verdict.findings
    assert verdict.explain().count("\n") == 0
    assert verdict.explain().startswith("Proven: ")
    assert "21 of them byte copies" in verdict.explain()
    assert verdict.checked["inputs"] == verdict.checked["inputs_unchanged"] == 30 + 18
    assert json.loads(json.dumps(verdict.to_dict()))["verdict"] == "proven"


@pytest.mark.parametrize("method", ["ties", "slerp"])
def test_methods_that_need_statistics(made, tmp_path, method):
    llama(seed=4).save_pretrained(tmp_path / "other")
    settings = {"ties": {"weight": 0.5, "density": 0.3}, "slerp": {"t": 0.4}}[method]
    expr = surgeon.merge(method, [surgeon.open(tmp_path / "other")], base_model=surgeon.open(made / "base"), **settings)
    surgeon.apply(expr, tmp_path / "out")
    assert wrong(tmp_path / "out", code=0) == set()
    with (tmp_path / "out" / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x01")
    assert len(wrong(tmp_path / "out")) == 1


@pytest.mark.parametrize("tensor", [TOUCHED, UNTOUCHED])
def test_a_flipped_bit(out, tensor):
    flip(out, tensor)
    assert wrong(out) == {tensor}


@pytest.mark.parametrize("tensor", [TOUCHED, UNTOUCHED])
def test_a_flipped_bit_with_the_hash_forged(out, tensor):
    """A hash in a receipt proves nothing by itself: the inputs do."""
    flip(out, tensor)
    forge_hash(out, tensor)
    assert wrong(out, full=True) == {tensor}


def test_a_sample_does_not_look_at_everything_and_full_does(made, tmp_path):
    llama(seed=4, vocab_size=9000).save_pretrained(tmp_path / "a")
    llama(seed=5, vocab_size=9000).save_pretrained(tmp_path / "b")
    surgeon.apply(0.5 * surgeon.open(tmp_path / "a") + 0.5 * surgeon.open(tmp_path / "b"), tmp_path / "out")
    share = surgeon.verify(tmp_path / "out").checked["recomputed_share"]
    assert 0 < share < 1
    assert share == surgeon.verify(tmp_path / "out").checked["recomputed_share"]
    assert surgeon.verify(tmp_path / "out", full=True).checked["recomputed_share"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: receipt["tensors"][TOUCHED].update(action="copy"),
        lambda receipt: receipt["tensors"][TOUCHED].update(shape=[1, 4096]),
        lambda receipt: receipt["tensors"][TOUCHED].update(blake3="0" * 64),
        lambda receipt: receipt["tensors"][TOUCHED].update(inputs={}),
        lambda receipt: receipt["tensors"].pop(TOUCHED),
        lambda receipt: receipt["inputs"].pop(),
        lambda receipt: receipt["recipe"].update(resolved="surgeon: 1\n"),
        lambda receipt: receipt["files"]["model-00001-of-00003.safetensors"].update(size=3),
        lambda receipt: receipt["files"]["model-00001-of-00003.safetensors"].update(header="0" * 64),
        lambda receipt: receipt["side_files"]["blake3"].pop("config.json"),
        lambda receipt: receipt.update(tier="A"),
        lambda receipt: receipt.update(dropped=["lm_head.weight"]),
        lambda receipt: receipt.update(version=2),
        lambda receipt: receipt.pop("tensors"),
        lambda receipt: receipt.update(signed=True),
    ],
)
def test_a_forged_receipt(out, change):
    forge(out, change)
    assert wrong(out)


def test_a_receipt_that_is_no_json(out):
    (out / "surgeon.json").write_text("{")
    assert wrong(out) == {"surgeon.json"}


def test_no_receipt_is_refused(out):
    (out / "surgeon.json").unlink()
    with pytest.raises(surgeon.RefusedError, match="--recipe"):
        surgeon.verify(out)


def test_a_recipe_changed_in_both_places(out):
    """Then the files agree with one another, but not with what the recipe gives."""
    path = out / "surgeon" / "recipe.yaml"
    text = path.read_text().replace("base + style", "base + 1.1*style")
    assert text != path.read_text()
    path.write_text(text)
    assert "surgeon/recipe.yaml" in wrong(out)
    forge(out, lambda receipt: receipt["recipe"].update(resolved=text))
    assert TOUCHED in wrong(out)


def test_stray_and_missing_files(out):
    shutil.copy(out / "model-00001-of-00003.safetensors", out / "consolidated.safetensors")
    (out / "pytorch_model.bin").write_bytes(b"x")
    (out / "tokenizer_config.json").write_text("{}")
    (out / "generation_config.json").unlink()
    assert wrong(out) == {
        "consolidated.safetensors", "pytorch_model.bin", "tokenizer_config.json", "generation_config.json",
    }  # fmt: skip


def test_a_changed_config_index_and_metadata(out):
    edit_json(out / "config.json", rms_norm_eps=1.0)
    edit_json(out / "model.safetensors.index.json", metadata={"total_size": 5})
    path = out / "model-00002-of-00003.safetensors"
    save_file(load_file(path), path)
    assert {"config.json", "model.safetensors.index.json", path.name} <= wrong(out)


def test_a_truncated_and_a_missing_shard(out):
    path = out / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert path.name in wrong(out)
    path.unlink()
    assert path.name in wrong(out)


def test_inputs_that_are_gone_cannot_be_told(root, made, monkeypatch):
    text = (root / "out" / "surgeon" / "recipe.yaml").read_text().replace(str(made), str(root))
    (root / "out" / "surgeon" / "recipe.yaml").write_text(text)
    forge(root / "out", lambda receipt: receipt["recipe"].update(resolved=text))
    assert wrong(root / "out", code=0) == set()
    (root / "base").rename(root / "moved")
    verdict = surgeon.verify(root / "out")
    assert verdict.exit_code == 4
    assert "--set models.NAME=PATH" in verdict.explain()
    assert "30 tensors with the hashes in its receipt" in verdict.explain()
    found = surgeon.verify(root / "out", overrides={"models.base": str(root / "moved")})
    assert found.exit_code == 0, found.explain()
    flip(root / "out", UNTOUCHED)
    assert wrong(root / "out") == {UNTOUCHED}


@pytest.mark.parametrize("changed", ["base", "style"])
def test_an_input_that_changed_is_named(root, changed):
    path = next((root / changed).glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = wrong(root / "out", code=4, overrides={f"models.{changed}": str(root / changed)})
    assert len(found) == 1
    assert next(iter(found)).startswith(f"{changed}/")


def test_made_in_another_environment(out):
    forge(out, lambda receipt: receipt["made_with"].update(torch="1.0"))
    verdict = surgeon.verify(out)
    assert verdict.exit_code == 0, verdict.explain()
    assert "within one rounding" in verdict.explain()
    flip(out, TOUCHED, byte=10)
    flip(out, TOUCHED, byte=12)
    forge_hash(out, TOUCHED)
    assert wrong(out) == {TOUCHED}


def test_an_override_that_fits_nothing_is_the_users_mistake(made):
    with pytest.raises(surgeon.RecipeError):
        surgeon.verify(made / "out", overrides={"models.nobody": "./x"})


def test_progress_is_told(made):
    seen = []
    surgeon.verify(made / "out", on_event=seen.append)
    assert seen
    assert all(event.stage == "verify" and 0 < event.done <= event.total for event in seen)


@pytest.mark.parametrize(("method", "settings"), [("slerp", {"t": 0.3}), ("ties", {"density": 0.5})])
def test_empty_tensors_lie_where_the_next_one_begins(tmp_path, method, settings):
    """And are proven by the receipt, under their own names, and by the recipe."""

    def odd(seed):
        torch.manual_seed(seed)
        return {"full": torch.randn(4, 5), "empty": torch.zeros(0, 5), "one": torch.randn(()), "none": torch.zeros(0)}

    a, b = (surgeon.open(write_checkpoint(tmp_path / name, odd(i), None)) for i, name in enumerate("ab"))
    merged = surgeon.merge(method, [b], base_model=a, **settings)
    receipt = surgeon.apply(merged, tmp_path / "out").to_dict()
    assert list(receipt["tensors"]["empty"]["inputs"]) == ["a/empty"]
    assert sorted(receipt["tensors"]["full"]["inputs"]) == ["a/full", "b/full"]
    assert surgeon.verify(tmp_path / "out").exit_code == 0
    assert surgeon.verify(tmp_path / "out", recipe=merged).exit_code == 0
