"""What configs say of layers goes along with them, or the config is refused."""

import pytest
import transformers

from surgeon.anatomy.depth import depth_of, fixed, per_layer, with_layers
from surgeon.anatomy.stacks import STACKS
from surgeon.errors import MismatchError

LLAMA = next(stack for stack in STACKS if stack.prefix == "model.layers.")


@pytest.mark.parametrize(
    ("kind", "settings", "key", "read"),
    [
        ("Gemma2Config", {}, "layer_types", lambda config: config.layer_types),
        ("Gemma3TextConfig", {}, "layer_types", lambda config: config.layer_types),
        ("Gemma3TextConfig", {"sliding_window_pattern": 3}, "layer_types", lambda config: config.layer_types),
        ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 3}, "layer_types", lambda c: c.layer_types),
        ("Qwen3Config", {"use_sliding_window": True, "max_window_layers": 2}, "layer_types", lambda c: c.layer_types),
        ("SmolLM3Config", {}, "no_rope_layers", lambda config: config.no_rope_layers),
        ("Cohere2Config", {}, "layer_types", lambda config: config.layer_types),
    ],
)
def test_what_is_not_listed_is_what_transformers_makes_of_it(kind, settings, key, read):
    layers = 8
    made = getattr(transformers, kind)(num_hidden_layers=layers, **settings)
    section = {"model_type": made.model_type, "num_hidden_layers": layers, "sliding_window": 16, **settings}
    assert list(per_layer(section, layers)[key]) == list(read(made))


@pytest.mark.parametrize(
    ("section", "order", "changes"),
    [
        ({"layer_types": list("abcd")}, [3, 0, 0], {"layer_types": list("daa")}),
        ({"no_rope_layers": [1, 1, 1, 0]}, [3, 2], {"no_rope_layers": [0, 1]}),
        ({"num_key_value_heads": [1, 2, 4, 8]}, [1, 2, 1], {"num_key_value_heads": [2, 4, 2]}),
        ({"first_k_dense_replace": 2}, [0, 1, 1, 2], {"first_k_dense_replace": 3}),
        ({"mlp_only_layers": [0]}, [0, 1, 0], {"mlp_only_layers": [0, 2], "decoder_sparse_step": 1}),
        ({"moe_layers": [1, 3]}, [3, 1, 0], {"moe_layers": [0, 1]}),
        ({"max_window_layers": 4}, [0, 1], {"max_window_layers": 2}),
        ({"eos_token_id": [1, 2, 3, 4]}, [0], {}),
    ],
)
def test_it_goes_along(section, order, changes):
    said = {key: [values[number] for number in order] for key, values in per_layer(section, 4).items()}
    assert with_layers(section, said, len(order)) == changes


def test_what_a_config_cannot_say_is_refused():
    with pytest.raises(MismatchError, match="first_k_dense_replace cannot say"):
        with_layers({"first_k_dense_replace": 1}, {"first_k_dense_replace": [False, True]}, 2)


def test_rules_by_number_that_are_not_written_anew():
    assert fixed({"attn_layer_period": 8, "num_nextn_predict_layers": 0, "moe_layer_freq": 2}) == (
        "attn_layer_period",
        "moe_layer_freq",
    )
    assert fixed({"moe_layer_freq": 1, "attn_layer_period": None}) == ()


def test_the_section_of_a_multimodal_config():
    depth = depth_of({"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 9}}, LLAMA)
    assert (depth.key, depth.layers) == ("text_config", 3)
    assert depth_of({}, LLAMA).layers is None
