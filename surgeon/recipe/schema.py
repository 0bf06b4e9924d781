"""The shape of a recipe as pydantic models, one a method, edit or fitter, and the JSON Schema made of them.

A further kind of step is one more model in `recipe_model`, and one more entry of `steps.STEP_KINDS`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainValidator,
    StringConstraints,
    Tag,
    WithJsonSchema,
    create_model,
)

from surgeon.anatomy.chat_templates import AUTO, TEMPLATES, check_template
from surgeon.errors import RefusedError, nearest
from surgeon.recipe.document import kind
from surgeon.recipe.names import IDENTIFIER
from surgeon.recipe.schema_edits import FileEntry, edit_step, fit_entry, reshape_step
from surgeon.recipe.schema_tune import TuneSection
from surgeon.recipe.setting_types import NUMBERS, Strict, Wrong, class_name, path, pattern, schedule_type, setting_field
from surgeon.space.method import MergeMethod
from surgeon.space.registry import edits, fitters, merge_methods, reshapes
from surgeon.tensors import FLOATS, parse_bytes, stored_dtype

Name = Annotated[str, StringConstraints(pattern=f"^{IDENTIFIER.pattern}$")]
_VERSION = Annotated[int, Field(ge=1, le=1), WithJsonSchema({"const": 1})]


def _dtype(value: Any) -> str:
    try:
        return stored_dtype(value)
    except ValueError:
        known = FLOATS.values()
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise Wrong(f"dtype is {', '.join(known)}, not {kind(value)}", hint) from None


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    try:
        return parse_bytes(value if isinstance(value, str) else "")
    except (ValueError, OverflowError):
        raise Wrong(f"shard_size is a size such as 5GB or 400MB, not {kind(value)}") from None


class ModelEntry(Strict):
    """A model with more to say than where it is."""

    model: str = Field(description="A path (./ ../ / ~) or a Hub id, org/name or org/name@revision.")
    base_model: str | None = Field(None, description="What an adapter's replaced tensors are differences from.")


def _chat_template(text: str) -> str:
    try:
        return check_template(text)
    except RefusedError as error:
        raise Wrong(error.message, error.hint) from None


class OutputSection(Strict):
    """How the result is written."""

    dtype: Annotated[Any, PlainValidator(_dtype), WithJsonSchema({"enum": [*FLOATS.values()]})] = Field(
        None, description="Cast floating tensors to this."
    )
    shard_size: Annotated[
        Any, PlainValidator(_size), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]})
    ] = Field(None, description="Largest shard: 5GB, 400MB.")
    files_from: str | None = Field(None, description="The model or step whose config and tokenizer the result carries.")
    rounding: Literal["nearest", "compensated"] | None = Field(
        None, description="How values are rounded to the dtype; compensated keeps an edit's zero in 16 bit."
    )
    drop: list[Annotated[str, AfterValidator(pattern)]] | None = Field(
        None, description="Patterns of tensors that the result leaves out."
    )
    chat_template: Annotated[str, AfterValidator(_chat_template)] | None = Field(
        None, description=f"The result's chat template: {', '.join((AUTO, *TEMPLATES))}, or one in jinja."
    )
    dequantize: bool | None = Field(
        None, description="Write quantised weights in full, in the dtype the model computes in (or `dtype`)."
    )


class CombineStep(Strict):
    """Linear arithmetic over models, adapters and steps."""

    combine: Annotated[Any, WithJsonSchema({"type": ["string", "number"]})] = Field(
        description="Numbers, names, + - * / and ( ): base + 0.6*(math - base)."
    )
    schedules: dict[Name, schedule_type()] | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        None, description="Names that the arithmetic uses for numbers varying over the layers or by rule."
    )


def _form(value: Any) -> str | None:
    """Which alternative of a union a value is meant as; tags in <>, so that no key is mistaken for one."""
    return {dict: "<mapping>", list: "<list>", str: "<text>"}.get(type(value))


@functools.cache
def merge_step(name: str) -> type[Strict]:
    """The model of a merge step with this method."""
    method: MergeMethod = merge_methods()[name]
    word = class_name(name)
    fields: dict[str, Any] = {
        "merge": (Literal[name], ...),
        "models": (_members(word, method), Field(description="Names of models and steps, with their own settings.")),
        "semantics": (Literal["paper", "mergekit"] | None, Field(None, description="Whose reading of the method.")),
    }
    text = "What task vectors are differences from; not one of the models."
    if method.needs_base:
        fields["base_model"] = (str, Field(description=text))
    elif method.takes_base:
        fields["base_model"] = (str | None, Field(None, description=f"{text} Without one, the models are merged."))
    fields |= {parameter.name: setting_field(parameter) for parameter in method.parameters.values()}
    return create_model(f"{word}Step", __base__=Strict, __doc__=method.summary, **fields)


def _members(word: str, method: MergeMethod) -> Any:
    """The type of a merge's models: names with the settings that each may have of its own, or a list of names."""
    own: dict[str, Any] = {p.name: setting_field(p) for p in method.parameters.values() if p.per_model}
    text = f"What {method.name} takes of one model."
    member: Any = create_model(f"{word}Model", __base__=Strict, __doc__=text, **own)
    forms: Any = Annotated[dict[Name, member | None], Tag("<mapping>")]
    return Annotated[forms | Annotated[list[str], Tag("<list>")], Discriminator(_form)]


def step_form(value: Any) -> str | None:
    """The tag of a step: its kind and what is named there, or combine."""
    if not isinstance(value, Mapping):
        return None
    word = next((word for word in ("merge", "edit", "reshape") if word in value), None)
    if word is not None:
        return f"<{word} {value[word]}>"
    return "<combine>" if "combine" in value else None


def direction_form(value: Any) -> str | None:
    """The tag of a direction: its path, a file with a point, or its fitter's."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, Mapping):
        return None
    return f"<fit {value['fit']}>" if "fit" in value else "<file>" if "file" in value else None


@functools.cache
def recipe_model() -> type[Strict]:
    """The model of a whole recipe, for the methods, edits and fitters registered."""
    text: Any = Annotated[str, Tag("<text>")]
    entry: Any = Annotated[text | Annotated[ModelEntry, Tag("<mapping>")], Discriminator(_form)]
    fields: dict[str, Any] = {
        "surgeon": (_VERSION, Field(description="The version of the recipe language.")),
        "models": (dict[Name, entry], Field(description="Checkpoints and adapters by the names used below.")),
        "directions": (
            dict[Name, _directions()] | None,
            Field(None, description="Directions, measured here or earlier, by the names that edits use."),
        ),
        "steps": (dict[Name, _steps()], Field(description="The result is the step that no other step uses.")),
        "tune": (TuneSection | None, Field(None, description="What `surgeon tune` reads.")),
        "output": (OutputSection | None, Field(None, description="How the result is written.")),
    }
    return create_model("Recipe", __base__=Strict, __doc__="What is made of which checkpoints.", **fields)


def _steps() -> Any:
    forms: Any = Annotated[CombineStep, Tag("<combine>")]
    for name in merge_methods():
        forms |= Annotated[merge_step(name), Tag(f"<merge {name}>")]
    for name in edits():
        forms |= Annotated[edit_step(name), Tag(f"<edit {name}>")]
    for name in reshapes():
        forms |= Annotated[reshape_step(name), Tag(f"<reshape {name}>")]
    return Annotated[forms, Discriminator(step_form)]


def _directions() -> Any:
    forms: Any = Annotated[str, AfterValidator(path), Tag("<text>")] | Annotated[FileEntry, Tag("<file>")]
    for name in fitters():
        forms |= Annotated[fit_entry(name), Tag(f"<fit {name}>")]
    return Annotated[forms, Discriminator(direction_form)]


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of a native recipe, with the settings of every registered method."""
    schema = recipe_model().model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    schema = _shared(schema)
    schema["definitions"] |= NUMBERS
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _shared(part: Any) -> Any:
    """A part of the schema with a reference in the place of every number."""
    for name, number in NUMBERS.items():
        if part == number:
            return {"$ref": f"#/definitions/{name}"}
    if isinstance(part, dict):
        return {key: _shared(value) for key, value in part.items()}
    return [_shared(item) for item in part] if isinstance(part, list) else part
