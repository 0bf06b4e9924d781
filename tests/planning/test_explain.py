"""What a plan says of edits: the claim, what is untied, what is measured first, and which config keys change."""

import json
import re
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.direction import bank, direction
from surgeon.planning.plan import build
from surgeon.space.editing_api import edit
from surgeon.space.expr import Fit
from surgeon.space.output import Recipe
from surgeon.testing.toys import llama_shapes, random_tensors, toy_llama, write_checkpoint

WRITERS = 7  # the embedding, and two in each of three blocks
ROWS = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
ONE = direction(ROWS, at="block.1", name="hedging")
BANK = bank({f"block.{i}{mid}": ROWS for i in range(3) for mid in ("", ".mid")} | {"embed": ROWS}, name="bank")


@pytest.fixture
def llama(tmp_path: Path):
    return surgeon.open(toy_llama(tmp_path / "toy"))


@pytest.fixture
def tied(tmp_path: Path):
    return surgeon.open(toy_llama(tmp_path / "tied", tie_word_embeddings=True))


def claim(expr):
    """What the plan's data say of its only edit."""
    (told,) = surgeon.plan(expr).to_dict()["edits"]
    return told


def test_all_writers_along_one_direction_is_everywhere(llama):
    told = claim(edit("ablate", llama, directions=ONE, name="final"))
    assert (told["claim"], told["scope"]) == ("everywhere", "everywhere")
    assert (told["edited"], told["held"]) == (WRITERS, WRITERS)
    assert told["directions"] == [{"name": "hedging", "at": "block.1"}]
    assert told["settings"] == {"strength": 1.0}


@pytest.mark.parametrize(
    ("scope", "edited"),
    [
        ({"directions": ONE, "layers": (1, 3)}, 4),
        ({"directions": ONE, "writers": "attention"}, 3),
        ({"directions": ONE, "writers": ("attention", "mlp")}, 6),
        ({"directions": BANK}, WRITERS),
        ({"directions": [ONE, BANK]}, WRITERS),
    ],
)
def test_some_writers_or_own_directions_claim_these_tensors_alone(llama, scope, edited):
    told = claim(edit("ablate", llama, **scope))
    assert (told["claim"], told["edited"], told["held"]) == ("own", edited, edited)


def test_a_tied_embedding_left_out_is_not_everywhere(tied):
    assert claim(edit("ablate", tied, directions=ONE))["claim"] == "everywhere"
    both = claim(edit("ablate", tied, directions=ONE, tied="both"))
    assert both["claim"] == "everywhere"
    assert "the tied head changes" in both["words"]
    assert claim(edit("ablate", tied, directions=ONE, tied="skip"))["claim"] == "own"


def test_unknown_tensors_leave_no_claim_on_the_whole_stream(tmp_path):
    shapes = {**llama_shapes(), "model.layers.1.adapter.weight": (32, 4)}
    model = surgeon.open(write_checkpoint(tmp_path / "toy", random_tensors(shapes, 0)))
    assert claim(edit("ablate", model, directions=ONE, allow_partial=True))["claim"] == "own"


@pytest.mark.parametrize(
    ("strength", "told"),
    [
        (2, "a reflection: what is written along it changes its sign, none of it is removed"),
        (0.5, "weakened, 0.5 times as large"),
        (-1, "strengthened, 2 times as large"),
        (3.25, "reflected, 2.25 times as large"),
        (0, "nothing changes"),
    ],
)
def test_other_strengths_claim_nothing_and_say_what_they_do(llama, strength, told):
    found = claim(edit("ablate", llama, directions=ONE, strength=strength))
    assert (found["claim"], found["scope"], found["held"]) == (None, "everywhere", 0)
    assert told in found["words"]


def test_a_strength_that_varies_claims_those_tensors_where_it_is_one(llama):
    found = claim(edit("ablate", llama, directions=ONE, strength=[1.0, 0.0]))
    assert (found["claim"], found["held"], found["left"]) == (None, 3, None)
    assert "3 of these tensors are promised" in found["words"]


def test_an_edit_that_a_later_step_touches_claims_nothing(llama, tmp_path):
    other = surgeon.open(toy_llama(tmp_path / "other", 1))
    plan = surgeon.plan(0.5 * edit("ablate", llama, directions=ONE, name="first") + 0.5 * other)
    (found,) = plan.to_dict()["edits"]
    assert (found["claim"], found["held"]) == (None, 0)
    assert "a later step changes these tensors again" in found["words"]
    assert "warning: 7 tensors are changed by combine after ablate" in plan.explain()


def test_two_edits_are_told_apart(llama):
    first = edit("ablate", llama, directions=ONE, writers="attention", name="first")
    second = edit("ablate", first, directions=direction(ROWS[:1], at="block.0"), writers="mlp", name="second")
    found = surgeon.plan(second).to_dict()["edits"]
    assert [(one["step"], one["edited"], one["held"], one["claim"]) for one in found] == [
        ("first", 3, 3, "own"),
        ("second", 3, 3, "own"),
    ]


def test_an_edit_after_another_has_the_promise(llama):
    first = edit("ablate", llama, directions=ONE, name="first")
    second = edit("ablate", first, directions=direction(ROWS[:1] + 1, at="block.0"), writers="mlp", name="second")
    found = surgeon.plan(second).to_dict()["edits"]
    assert [(one["held"], one["claim"]) for one in found] == [(4, None), (3, "own")]


def test_edited_tensors_carry_their_promise(llama):
    plan = surgeon.plan(edit("ablate", llama, directions=ONE, writers="mlp"))
    promised = {t["name"]: t["promise"] for t in plan.to_dict()["tensors"] if "promise" in t}
    assert set(promised) == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)}
    assert set(map(json.dumps, promised.values())) == {
        json.dumps({"zero": "QᵀW", "edit": "ablate", "points": ["block.1"], "gains": []})
    }
    assert re.search(r"mlp.down_proj.weight +3 × .* ablate \(.*; promise: RᵀW = 0\)", plan.explain())


def test_an_output_norm_is_part_of_the_promise(tmp_path):
    names = {"model.embed_tokens.weight": (9, 32), "model.layers.0.self_attn.o_proj.weight": (32, 8)}
    names["model.layers.0.post_attention_layernorm.weight"] = (32,)
    config = {"model_type": "gemma2", "hidden_size": 32, "tie_word_embeddings": False}
    model = surgeon.open(write_checkpoint(tmp_path / "g", random_tensors(names, 0), config))
    plan = surgeon.plan(edit("ablate", model, directions=ONE))
    assert re.search(r"o_proj.weight .*promise: QᵀW = 0, Q = gain ⊙ R", plan.explain())
    assert re.search(r"embed_tokens.weight .*promise: RᵀW = 0", plan.explain())


def test_untie_and_the_config_it_changes_are_shown(tied):
    plan = surgeon.plan(edit("ablate", tied, directions=ONE, name="final"))
    told = plan.explain()
    assert re.search(r"reshapes:\n  untie of .*, in front of final: Writes the head", told)
    assert "config.json: tie_word_embeddings: true → false" in told
    assert plan.to_dict()["config"] == {"tie_word_embeddings": False}
    assert [one["reshape"] for one in plan.to_dict()["reshapes"]] == ["untie"]


def test_without_edits_nothing_of_them_is_said(llama):
    told = surgeon.plan(0.5 * llama + 0.5 * llama).explain()
    assert not [word for word in ("edits:", "reshapes:", "first measured:", "config.json:") if word in told]


def test_fits_are_told_with_the_disk_they_need(llama, tmp_path):
    other = surgeon.open(toy_llama(tmp_path / "other", 1, dtype=torch.bfloat16))
    merged = surgeon.merge("linear", [other, llama], weight=0.5, name="merged")
    on_step = Fit("mean_difference", merged, "p.jsonl", "n.jsonl", at="block.1", name="hedging")
    on_input = Fit("mean_difference", llama, "p.jsonl", "n.jsonl", at="own", name="tone")
    plan = build(Recipe(edit("ablate", merged, directions=[on_step, on_input], name="final")))
    size = 4 * sum(tensor.numel() for tensor in random_tensors(llama_shapes(), 0).values())
    data = plan.to_dict()
    assert [(fit["name"], fit["model"], fit["temporary_disk"]) for fit in data["fits"]] == [
        ("hedging", "merged", size),
        ("tone", str(llama), 0),
    ]
    assert data["stages"] == 2
    assert data["edits"][0]["claim"] == "own"
    told = plan.explain()
    assert "hedging: mean_difference at block.1, p.jsonl against n.jsonl, on merged (written in fp32 first:" in told
    assert re.search(r"tone: mean_difference at own, .* \(an input\)", told)
    assert "2 stages" in told


def test_edits_of_a_model_that_is_only_measured_claim_nothing_of_the_result(llama):
    measured = edit("ablate", llama, directions=ONE, name="measured")
    fit = Fit("mean_difference", measured, "p.jsonl", "n.jsonl", at="block.1", name="tone")
    told = build(Recipe(edit("ablate", llama, directions=fit, name="final"))).to_dict()
    assert [one["step"] for one in told["edits"]] == ["final"]
    assert told["stages"] == 2
