"""A recipe in a loaded model, wherever its parameters are: what the written file gives, and the old bits afterwards."""

import hashlib
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.accelerate import load_offloaded_parameter

import surgeon
from surgeon.artifacts.direction import direction
from tests.support.family_toys import TOKENS, WIDTH, toy

ROWS = direction(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)), at="block.0")
KINDS = [("llama", False), ("llama", True), ("gemma2", True), ("gpt2", True), ("mixtral", False), ("qwen3_moe", False)]
BLOCKS = {"gpt2": "transformer.h"}


def model_of(folder, **given):
    return AutoModelForCausalLM.from_pretrained(folder, **given).eval()


def spread(folder, name):
    """The second block, and with it whatever is tied to nothing, on the disk; the rest in memory."""
    blocks = BLOCKS.get(name, "model.layers")
    trunk = blocks.rpartition(".")[0]
    names = [child for child, _ in model_of(folder).get_submodule(trunk).named_children()]
    places = {f"{trunk}.{child}": "cpu" for child in names if f"{trunk}.{child}" != blocks}
    return places | {f"{blocks}.0": "cpu", f"{blocks}.1": "disk", "lm_head": "cpu"}


def plain(folder, name, room):
    return model_of(folder)


def on_disk(folder, name, room):
    """Offloaded by from_pretrained: the index names the checkpoint's own files where no tensor is converted."""
    return model_of(folder, device_map=spread(folder, name), offload_folder=room)


def all_on_disk(folder, name, room):
    """Everything offloaded, the embedding and the head tied to it too, in files with one parameter each."""
    from accelerate import disk_offload

    model = model_of(folder)
    disk_offload(model, room, execution_device="cpu")
    return model


def in_memory(folder, name, room):
    from accelerate import cpu_offload

    model = model_of(folder)
    cpu_offload(model, execution_device="cpu")
    return model


PLACES = [plain, on_disk, all_on_disk, in_memory]


def bits(model):
    state = model.state_dict()
    found = {n: load_offloaded_parameter(model, n) if v.device.type == "meta" else v for n, v in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def differing(one, two):
    assert one.keys() == two.keys()
    return {name for name in one if one[name].dtype != two[name].dtype or not torch.equal(one[name], two[name])}


def files(*folders):
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def ablated(folder, **given):
    return surgeon.edit("ablate", surgeon.open(folder), directions=ROWS, **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Toys and their edits as written, each made once."""
    root, done = tmp_path_factory.mktemp("made"), {}

    def give(name, tied):
        if (name, tied) not in done:
            folder = toy(root / f"{name} {tied}", name, tied=tied)
            surgeon.apply(ablated(folder), root / f"{name} {tied} edited")
            done[name, tied] = folder, model_of(root / f"{name} {tied} edited")
        return done[name, tied]

    return give


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "tied"), KINDS)
def test_it_is_the_written_file_and_then_what_it_was(name, tied, place, made, tmp_path):
    folder, expected = made(name, tied)
    (tmp_path / "room").mkdir()
    model = place(folder, name, tmp_path / "room")
    before, on_the_disk, first = bits(model), files(folder, tmp_path), logits(model)
    assert any(value.device.type == "meta" for value in model.state_dict().values()) is (place is not plain)
    with surgeon.apply_to(model, ablated(folder)) as applied:
        assert differing(bits(model), bits(expected)) == set()
        assert torch.equal(logits(model), logits(expected))
        assert model.config.tie_word_embeddings is False
        assert files(folder) == {path: held for path, held in on_the_disk.items() if path.is_relative_to(folder)}
    assert applied.config == ({"tie_word_embeddings": False} if tied else {})
    assert differing(bits(model), before) == set()
    assert torch.equal(logits(model), first)
    assert model.config.tie_word_embeddings is tied
    assert files(folder, tmp_path) == on_the_disk


@pytest.mark.parametrize("place", PLACES)
def test_a_tied_pair_is_edited_as_one(place, made, tmp_path):
    folder, _ = made("llama", True)
    expr = ablated(folder, tied="both")
    surgeon.apply(expr, tmp_path / "out")
    (tmp_path / "room").mkdir()
    model = place(folder, "llama", tmp_path / "room")
    first = logits(model)
    with surgeon.apply_to(model, expr):
        assert torch.equal(logits(model), logits(model_of(tmp_path / "out")))
    assert torch.equal(logits(model), first)


@pytest.mark.parametrize("place", PLACES)
def test_in_place_the_last_recipe_counts(place, made, tmp_path):
    """A tensor that only the first recipe changes is taken back by the second, which copies it."""
    folder, _ = made("llama", False)
    (tmp_path / "room").mkdir()
    model = place(folder, "llama", tmp_path / "room")
    surgeon.apply_to(model, ablated(folder, writers="attention"))
    surgeon.apply_to(model, ablated(folder, writers="mlp"))
    surgeon.apply(ablated(folder, writers="mlp"), tmp_path / "out")
    assert differing(bits(model), bits(model_of(tmp_path / "out"))) == set()


def test_a_recipe_file_over_a_model_that_was_trained_since(made, tmp_path):
    folder, expected = made("llama", False)
    ROWS.save(tmp_path / "rows.safetensors")
    (tmp_path / "recipe.yaml").write_text(
        f"surgeon: 1\nmodels: {{base: {folder.as_posix()!r}}}\ndirections: {{rows: ./rows.safetensors}}\n"
        "steps:\n  edited: {edit: ablate, of: base, directions: [rows]}\n"
    )
    model = model_of(folder)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    trained = bits(model)
    with surgeon.apply_to(model, tmp_path / "recipe.yaml"):
        assert differing(bits(model), bits(expected)) == set()
    assert differing(bits(model), trained) == set()


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
@pytest.mark.parametrize(("name", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_under_an_adapter(name, targets, saved, made, tmp_path):
    peft = pytest.importorskip("peft")
    folder, _ = made(name, False)
    config = {"r": 2, "target_modules": targets, "modules_to_save": saved, "init_lora_weights": False}

    def wrapped(model):
        torch.manual_seed(2)
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))

    surgeon.apply(ablated(folder), tmp_path / "out")
    model, expected = wrapped(model_of(folder)), wrapped(model_of(tmp_path / "out"))
    before, first = bits(model), logits(model)
    with surgeon.apply_to(model, ablated(folder)):
        found, wanted = bits(model), bits(expected)
        own = {key for key in found if ".modules_to_save." in key}
        assert differing(found, wanted) - own == set()
        assert torch.equal(logits(model), logits(expected)) or own
        with model.disable_adapter(), expected.disable_adapter():
            assert torch.equal(logits(model), logits(expected))
    assert differing(bits(model), before) == set()
    assert torch.equal(logits(model), first)


def test_a_merged_adapter_is_refused(made):
    peft = pytest.importorskip("peft")
    folder, _ = made("llama", False)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model_of(folder), config)
    model.merge_adapter()
    before = bits(model)
    with pytest.raises(surgeon.RefusedError, match="unmerge_adapter"):
        surgeon.apply_to(model, ablated(folder))
    assert differing(bits(model), before) == set()


def test_an_adapter_with_its_own_head_is_told(made):
    peft = pytest.importorskip("peft")
    folder, _ = made("llama", False)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = peft.get_peft_model(model_of(folder), config)
    applied = surgeon.apply_to(model, ablated(folder))
    assert any("own copy of model.embed_tokens.weight" in note for note in applied.notes)


def test_the_models_own_dtype_counts_and_a_loss_is_said(made, tmp_path):
    folder, _ = made("llama", False)
    surgeon.apply(ablated(folder), tmp_path / "out")
    model = model_of(folder, dtype=torch.bfloat16)
    before = bits(model)
    with (
        pytest.warns(UserWarning, match="written as float32 and held as bfloat16"),
        surgeon.apply_to(model, ablated(folder)) as applied,
    ):
        assert differing(bits(model), bits(model_of(tmp_path / "out", dtype=torch.bfloat16))) == set()
    assert any("rounded to bfloat16" in note for note in applied.notes)
    assert differing(bits(model), before) == set()


def test_numbers_of_the_file_in_a_wider_model(made, tmp_path):
    """A model in float32 gets what is written in bfloat16, unless float32 is asked for."""
    folder, expected = made("llama", False)
    surgeon.apply(ablated(folder), tmp_path / "out", dtype="bfloat16")
    model = model_of(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        applied = surgeon.apply_to(model, ablated(folder), dtype="bfloat16")
    assert any("written as bfloat16 and held as float32" in note for note in applied.notes)
    assert differing(bits(model), bits(model_of(tmp_path / "out", dtype=torch.float32))) == set()
    surgeon.apply_to(model, ablated(folder), dtype="float32")
    assert differing(bits(model), bits(expected)) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one, two: surgeon.reshape("stack", (one, (0, 2)), (one, (1, 2))), "num_hidden_layers"),
        (lambda one, two: two, r"on disk and .* in memory"),
    ],
)
def test_another_model_is_refused_before_anything_is_changed(change, message, made, tmp_path):
    folder, _ = made("llama", False)
    other = toy(tmp_path / "other", "llama with biases")
    config = (other / "config.json").read_text().replace('"vocab_size": 64', '"vocab_size": 72')
    disk = load_file(other / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        disk[name] = torch.zeros(72, WIDTH)
    save_file(disk, other / "model.safetensors", {"format": "pt"})
    (other / "config.json").write_text(config)
    model = model_of(folder)
    before = bits(model)
    with pytest.raises(surgeon.MismatchError, match=message) as refused:
        surgeon.apply_to(model, change(surgeon.open(folder), surgeon.open(other)))
    assert "surgeon.load" in str(refused.value)
    assert differing(bits(model), before) == set()


def test_a_parameter_that_the_recipe_does_not_give_is_named(made, tmp_path):
    folder, _ = made("llama", False)
    model = model_of(toy(tmp_path / "biased", "llama with biases"))
    with pytest.raises(surgeon.MismatchError, match=r"gives no model\.layers\.0\.\S+bias"):
        surgeon.apply_to(model, ablated(folder))


def test_what_fails_on_the_way_leaves_the_model_as_it_was(made, tmp_path):
    folder, _ = made("llama", False)
    other = shutil.copytree(folder, tmp_path / "other")
    disk = load_file(other / "model.safetensors")
    disk["model.layers.0.input_layernorm.weight"][3] = torch.nan
    save_file(disk, other / "model.safetensors", {"format": "pt"})
    model = model_of(folder)
    before = bits(model)
    with pytest.raises(surgeon.RunError, match=r"input_layernorm\.weight .*NaN"):
        surgeon.apply_to(model, 0.5 * surgeon.open(folder) + 0.5 * surgeon.open(other), threads=1)
    assert differing(bits(model), before) == set()


def test_load_gives_a_model_of_an_output_or_a_recipe(made, tmp_path):
    folder, expected = made("gemma2", True)
    surgeon.apply(ablated(folder), tmp_path / "out")
    (tmp_path / "room").mkdir()
    places = spread(folder, "gemma2")
    ways = [
        surgeon.load(tmp_path / "out"),
        surgeon.load(ablated(folder)),
        surgeon.load(tmp_path / "out/surgeon/recipe.yaml"),
        surgeon.load(tmp_path / "out/surgeon/recipe.yaml", overrides={"models.gemma2_True": str(folder)}),
        surgeon.load(ablated(folder), device_map=places, offload_folder=tmp_path / "room"),
    ]
    for model in ways:
        assert torch.equal(logits(model), logits(expected))


def test_load_gives_a_model_of_another_shape(made, tmp_path):
    folder, _ = made("llama", False)
    stacked = surgeon.reshape("stack", (surgeon.open(folder), (0, 2)), (surgeon.open(folder), (1, 2)))
    surgeon.apply(stacked, tmp_path / "out")
    model = surgeon.load(stacked)
    assert len(model.model.layers) == 3
    assert torch.equal(logits(model), logits(model_of(tmp_path / "out")))


def test_load_takes_the_dtype_of_the_output_or_what_is_asked(made, tmp_path):
    from surgeon.space.output import Output, Recipe

    folder, _ = made("llama", False)
    recipe = Recipe(ablated(folder), Output(dtype="BF16"))
    surgeon.apply(recipe, tmp_path / "out")
    expected = model_of(tmp_path / "out")
    assert expected.dtype == torch.bfloat16
    assert differing(bits(surgeon.load(recipe)), bits(expected)) == set()
    assert surgeon.load(recipe, dtype="float32").dtype == torch.float32


def test_an_adapter_is_no_model(made, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(surgeon.RefusedError, match="is an adapter"):
        surgeon.load(tmp_path)
