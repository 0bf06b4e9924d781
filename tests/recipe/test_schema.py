"""The JSON Schema: fresh, and knowing what the loader knows."""

import json
from pathlib import Path

from surgeon.recipe import json_schema
from surgeon.space.registry import edits, fitters, merge_methods, reshapes
from surgeon.tensors import FLOATS

COMMITTED = Path(__file__).parents[2] / "recipes" / "recipe.schema.json"


def test_the_committed_schema_is_fresh():
    """If this fails: surgeon schema > recipes/recipe.schema.json"""
    assert json.loads(COMMITTED.read_text()) == json.loads(json.dumps(json_schema()))


def test_every_method_and_setting_is_in_it():
    definitions = json_schema()["definitions"]
    steps = {d["properties"]["merge"]["const"]: d for d in definitions.values() if "merge" in d.get("properties", {})}
    assert set(steps) == set(merge_methods())
    for name, method in merge_methods().items():
        properties, required = steps[name]["properties"], steps[name]["required"]
        assert set(method.parameters) <= set(properties)
        assert ("base_model" in required) == method.needs_base
        assert all(p.name in required for p in method.parameters.values() if p.required and not p.per_model)
        assert steps[name]["additionalProperties"] is False


def test_every_edit_fitter_and_reshape_is_in_it():
    definitions = json_schema()["definitions"]
    for word, registered in (("edit", edits()), ("fit", fitters()), ("reshape", reshapes())):
        found = {d["properties"][word]["const"]: d for d in definitions.values() if word in d.get("properties", {})}
        measured = {"gram", "merged_gram", "fisher"} if word == "fit" else set()
        assert set(found) == set(registered) | measured
        for name, one in registered.items():
            assert set(getattr(one, "parameters", {})) <= set(found[name]["properties"])
            assert found[name]["additionalProperties"] is False
    scope = {"of", "directions", "layers", "writers", "tied", "allow_partial"}
    edit = definitions["AblateEdit"]["properties"]
    assert scope <= set(edit)
    assert edit["directions"]["minItems"] == 1
    assert edit["layers"]["pattern"] == r"^[0-9]+\.\.[0-9]+$"
    assert edit["writers"]["anyOf"][0]["enum"] == ["embed", "attention", "mlp", "all"]
    assert {"file", "at"} == set(definitions["FileEntry"]["properties"])
    assert {"model", "positive", "negative", "neutral", "at"} <= set(definitions["MeanDifferenceFit"]["properties"])


def test_choices_and_dtypes_are_listed():
    text = json.dumps(json_schema())
    assert all(f'"{dtype}"' in text for dtype in FLOATS.values())
    assert '["trimmed", "weighted"]' in text


def test_it_is_draft_7():
    schema = json_schema()
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    text = json.dumps(schema)
    assert "$defs" not in text
    assert "prefixItems" not in text


def test_every_reference_in_it_resolves():
    schema = json_schema()

    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if "$ref" in node else []
            node = list(node.values())
        for inner in node if isinstance(node, list) else ():
            yield from references(inner)

    found = set(references(schema))
    assert found
    assert all(ref.removeprefix("#/definitions/") in schema["definitions"] for ref in found)
