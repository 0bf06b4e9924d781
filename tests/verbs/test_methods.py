"""`list_methods`: every kind of registered thing, in sections and in full."""

import json

import pytest

import surgeon
from surgeon.space import registry

KINDS = {
    "methods": registry.merge_methods, "edits": registry.edits, "reshapes": registry.reshapes,
    "fitters": registry.fitters,
}  # fmt: skip


def test_every_registered_name_is_listed_in_its_section():
    listed = surgeon.list_methods()
    sections = listed.explain().split("\n\n")
    assert len(sections) == len(KINDS)
    for section, (kind, registered) in zip(sections, KINDS.items(), strict=True):
        names = list(registered())
        assert names
        assert [line.split()[0] for line in section.splitlines()[1:]] == names
        assert list(listed.to_dict()[kind]) == names
    assert json.loads(json.dumps(listed.to_dict())) == listed.to_dict()


def test_all_settings_are_told_with_type_range_and_default():
    for kind, registered in KINDS.items():
        for name, one in registered().items():
            told = surgeon.list_methods(name)
            described = told.to_dict()[kind][name]
            lines = told.explain().splitlines()
            for setting, parameter in getattr(one, "parameters", {}).items():
                (line,) = (line for line in lines if line.startswith(f"  {setting} "))
                assert "required" in line if parameter.required else "default" in line
                assert parameter.range is None or f"in {parameter.range.text}" in line
                assert all(choice in line for choice in parameter.choices)
                assert described["settings"][setting]["type"] == getattr(
                    parameter.type, "spelled", parameter.type.__name__
                )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ties", ["base_model: required", "models: 1 or more", "density    float in (0, 1], one a model  default 1.0"]),
        ("slerp", ["models: 1"]),
        ("ablate", ["directions: required", "removes all of the directions: at strength 1", "changes nothing: at"]),
        ("untie", ["recipe: reshape: untie", "no settings"]),
        ("mean_difference", ["neutral (optional)", "components  int in [0, inf)  default 16", "measured: mean,"]),
    ],
)
def test_one_in_full(name, told):
    text = surgeon.list_methods(name).explain()
    assert [part for part in told if part not in text] == []


def test_papers_and_broken_laws_are_told():
    told = surgeon.list_methods("ties").to_dict()["methods"]["ties"]
    assert told["papers"] == ["https://arxiv.org/abs/2306.01708"]
    broken = {
        name: one.breaks for registered in KINDS.values() for name, one in registered().items()
        if getattr(one, "breaks", {})
    }  # fmt: skip
    assert broken
    for name, breaks in broken.items():
        text = surgeon.list_methods(name).explain()
        assert all(f"  {law}: {reason}" in text for law, reason in breaks.items())


def test_an_unknown_name_gets_the_nearest_of_all_kinds():
    with pytest.raises(surgeon.RefusedError, match="did you mean 'ablate'"):
        surgeon.list_methods("ablation")
    with pytest.raises(surgeon.RefusedError, match="did you mean 'mean_difference'"):
        surgeon.list_methods("mean_diference")
