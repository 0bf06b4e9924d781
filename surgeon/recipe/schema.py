"""The shape of a recipe as pydantic models, one a merge method, and the JSON Schema made of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
    create_model,
)

from surgeon.artifacts.artifact import Artifact
from surgeon.recipe.names import IDENTIFIER
from surgeon.space.method import MergeMethod
from surgeon.space.parameters import Parameter
from surgeon.space.registry import merge_methods
from surgeon.tensors import FLOATS

Name = Annotated[str, StringConstraints(pattern=f"^{IDENTIFIER.pattern}$")]
_NUMBERS = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[-+]?[0-9]+/[0-9]+$"}]}
_SCALARS: Mapping[type, dict[str, Any]] = {
    float: _NUMBERS, int: {"type": "integer"}, bool: {"type": "boolean"}, str: {"type": "string"},
}  # fmt: skip
_VERSION = Annotated[int, Field(ge=1, le=1), WithJsonSchema({"const": 1})]
_SIZE = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]})
_DTYPE = WithJsonSchema({"enum": [*FLOATS.values()]})


class Strict(BaseModel):
    """Base of all parts: nothing is converted, nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ModelEntry(Strict):
    """A model with more to say than where it is."""

    model: str = Field(description="A path (./ ../ / ~) or a Hub id, org/name or org/name@revision.")
    base_model: str | None = Field(None, description="What an adapter's replaced tensors are differences from.")


class OutputSection(Strict):
    """How the result is written."""

    dtype: Annotated[Any, _DTYPE] = Field(None, description="Cast floating tensors to this.")
    shard_size: Annotated[Any, _SIZE] = Field(None, description="Largest shard: 5GB, 400MB.")
    files_from: str | None = Field(None, description="The model or step whose config and tokenizer the result carries.")
    rounding: Literal["nearest", "compensated"] | None = Field(None, description="How values are rounded to the dtype.")
    drop: list[str] | None = Field(None, description="Patterns of tensors that the result leaves out.")


def _setting_schema(parameter: Parameter) -> dict[str, Any]:
    """The JSON Schema of a setting: a scalar, a list over the layers, or rules."""
    scalar = {"enum": list(parameter.choices)} if parameter.choices else _SCALARS[parameter.type]
    value = {"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1}]}
    targets = {"type": "string", "description": "A glob over tensor names, or re: and a regular expression."}
    rule = {
        "type": "object",
        "properties": {"targets": targets, "value": value},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"anyOf": [*value["anyOf"], {"type": "array", "items": rule, "minItems": 1}]}


_SCHEDULE = WithJsonSchema(_setting_schema(Parameter("", "", float, False, None)))


class CombineStep(Strict):
    """Linear arithmetic over models, adapters and steps."""

    combine: Annotated[Any, WithJsonSchema({"type": ["string", "number"]})] = Field(
        description="Numbers, names, + - * / and ( ): base + 0.6*(math - base)."
    )
    schedules: dict[Name, Annotated[Any, _SCHEDULE]] | None = Field(
        None, description="Names that the arithmetic uses for numbers varying over the layers or by rule."
    )


def _field(parameter: Parameter) -> Any:
    limits = f" in {parameter.range.text}" if parameter.range else ""
    each = " of each model" if parameter.per_model else ""
    text = f"{parameter.type.__name__}{limits}{each}"
    kind = {"type": "string"} if issubclass(parameter.type, Artifact) else _setting_schema(parameter)
    needed = parameter.required and not parameter.per_model
    return Annotated[Any, WithJsonSchema(kind), Field(description=text)], (... if needed else None)


def _form(value: Any) -> str | None:
    """Which alternative of a union a value is meant as; tags in <>, so that no key is mistaken for one."""
    return {dict: "<mapping>", list: "<list>", str: "<text>"}.get(type(value))


@functools.cache
def merge_step(name: str) -> type[Strict]:
    """The model of a merge step with this method."""
    method: MergeMethod = merge_methods()[name]
    word = "".join(part.title() for part in name.replace("/", "_").split("_"))
    fields: dict[str, Any] = {
        "merge": (Literal[name], ...),
        "models": (_members(word, method), Field(description="Names of models and steps, with their own settings.")),
        "semantics": (Literal["paper", "mergekit"] | None, Field(None, description="Whose reading of the method.")),
    }
    if method.needs_base:
        text = "What task vectors are differences from; not one of the models."
        fields["base_model"] = (str, Field(description=text))
    fields |= {parameter.name: _field(parameter) for parameter in method.parameters.values()}
    return create_model(f"{word}Step", __base__=Strict, __doc__=method.summary, **fields)


def _members(word: str, method: MergeMethod) -> Any:
    """The type of a merge's models: names with the settings that each may have of its own, or a list of names."""
    own: dict[str, Any] = {p.name: _field(p) for p in method.parameters.values() if p.per_model}
    text = f"What {method.name} takes of one model."
    member: Any = create_model(f"{word}Model", __base__=Strict, __doc__=text, **own)
    forms: Any = Annotated[dict[Name, member | None], Tag("<mapping>")]
    return Annotated[forms | Annotated[list[str], Tag("<list>")], Discriminator(_form)]


def step_form(value: Any) -> str | None:
    """The tag of a step: its method's, or combine's."""
    if not isinstance(value, Mapping):
        return None
    if "merge" in value:
        return f"<{value['merge']}>"
    return "<combine>" if "combine" in value else None


@functools.cache
def recipe_model() -> type[Strict]:
    """The model of a whole recipe, for the methods registered."""
    forms: Any = Annotated[CombineStep, Tag("<combine>")]
    for name in merge_methods():
        forms |= Annotated[merge_step(name), Tag(f"<{name}>")]
    step: Any = Annotated[forms, Discriminator(step_form)]
    text: Any = Annotated[str, Tag("<text>")]
    entry: Any = Annotated[text | Annotated[ModelEntry, Tag("<mapping>")], Discriminator(_form)]
    fields: dict[str, Any] = {
        "surgeon": (_VERSION, Field(description="The version of the recipe language.")),
        "models": (dict[Name, entry], Field(description="Checkpoints and adapters by the names used below.")),
        "steps": (dict[Name, step], Field(description="The result is the step that no other step uses.")),
        "output": (OutputSection | None, Field(None, description="How the result is written.")),
    }
    return create_model("Recipe", __base__=Strict, __doc__="What is made of which checkpoints.", **fields)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of a native recipe, with the settings of every registered method."""
    schema = recipe_model().model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
