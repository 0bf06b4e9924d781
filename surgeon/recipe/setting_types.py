"""The pydantic types of settings: a number, word or flag, a list over the layers, or rules."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    create_model,
)

from surgeon.artifacts.artifact import Artifact
from surgeon.errors import nearest
from surgeon.recipe.document import kind
from surgeon.recipe.names import absolute
from surgeon.recipe.scalars import fraction
from surgeon.space.parameters import Parameter
from surgeon.space.schedule import Layers, Rule, Rules, Scalar, Schedule, Setting
from surgeon.space.select import check_pattern

RULE = ("targets", "value")
_TUNING = ("search", "kl", "learn")
_SEARCH = {
    "type": "object",
    "description": "A number that `surgeon tune` searches for: {search: [LOW, HIGH]}.",
    "properties": {"search": {"type": "array", "minItems": 2}, "choices": {"type": "boolean"}},
    "required": ["search"],
    "additionalProperties": False,
}
_RATIO = {"type": "string", "pattern": "^[-+]?[0-9]+/[0-9]+$"}
_SCALARS: Mapping[type, dict[str, Any]] = {
    float: {"anyOf": [{"type": "number"}, _RATIO, _SEARCH]},
    int: {"anyOf": [{"type": "integer"}, _SEARCH]},
    bool: {"type": "boolean"},
    str: {"type": "string"},
}
#: What the JSON Schema writes once and refers to.
NUMBERS: Mapping[str, dict[str, Any]] = {"Number": _SCALARS[float], "WholeNumber": _SCALARS[int]}


class Strict(BaseModel):
    """Base of all parts: nothing is converted, nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Wrong(ValueError):
    """What is wrong with a value, and at which place inside it."""

    def __init__(self, message: str, hint: str = "", *path: int) -> None:
        super().__init__(message)
        self.hint, self.path = hint, path


def pattern(text: str) -> str:
    """A pattern over tensor names that compiles, itself."""
    try:
        return check_pattern(text)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Wrong(str(error)) from None


def class_name(name: str) -> str:
    """The name of what is registered as that of a class; definitions of the JSON Schema are called by it."""
    return "".join(part.title() for part in name.replace("/", "_").split("_"))


def path(text: str) -> str:
    """A path that can be meant, itself."""
    try:
        absolute(text, Path())
    except ValueError as error:
        raise Wrong(str(error)) from None
    if not text:
        raise Wrong("a path is missing here")
    return text


def setting_field(parameter: Parameter, type_: Any = None) -> Any:
    """The field of a parameter in a part of a recipe; the type is that of its setting unless another is given."""
    limits = f" in {parameter.range.text}" if parameter.range else ""
    each = " of each model" if parameter.per_model else ""
    needed = parameter.required and not parameter.per_model
    kind_of = getattr(parameter.type, "spelled", parameter.type.__name__)
    described = Field(description=f"{kind_of}{limits}{each}")
    return Annotated[type_ or setting_type(parameter), described], (... if needed else None)


def setting_type(parameter: Parameter) -> Any:
    """The type of a parameter's setting; of an artifact, the path as written."""
    if parameter.per_tensor:
        file: Any = Annotated[str, AfterValidator(path), Tag("<file>")]
        return Annotated[file | Annotated[_measured(parameter.type.kind), Tag("<fit>")], Discriminator(_file_or_fit)]
    if issubclass(parameter.type, Artifact):
        return Annotated[str, AfterValidator(path)]
    scalar: Any = Annotated[Any, PlainValidator(partial(_scalar, parameter))]
    layers: Any = Annotated[list[scalar], AfterValidator(_layers)]
    one: Any = Annotated[scalar, Tag("<value>")]
    forms: Any = one | Annotated[layers, Tag("<list>")]
    value: Any = Annotated[forms, Discriminator(_form)]
    targets: Any = Annotated[str | None, AfterValidator(_targets)]
    rule: Any = create_model("Rule", __base__=Strict, targets=(targets, None), value=(value, ...))
    rules: Any = Annotated[list[rule], AfterValidator(_rules), Tag("<rules>")]
    return Annotated[forms | rules, Discriminator(_form), WithJsonSchema(_json_schema(parameter))]


def _measured(kind: str) -> type[Strict]:
    """The model of an artifact that is measured when the recipe runs."""
    fields: dict[str, Any] = {
        "fit": (Literal[kind], Field(description="What is measured.")),
        "prompts": (
            Annotated[str | None, AfterValidator(lambda text: text and path(text))],
            Field(None, description="Prompts, JSON lines; without them the neutral text that comes with surgeon."),
        ),
        "model": (str | None, Field(None, description="The model or step it is measured on, instead of its own.")),
    }
    return create_model(f"{class_name(kind)}Fit", __base__=Strict, __doc__=f"A {kind} measured here.", **fields)


def _file_or_fit(value: Any) -> str:
    return "<fit>" if isinstance(value, Mapping) else "<file>"


def single_type(parameter: Parameter) -> Any:
    """The type of a setting that is one value, the same for all layers; of an artifact, the path as written."""
    if issubclass(parameter.type, Artifact):
        return Annotated[str, AfterValidator(path)]
    return Annotated[Any, PlainValidator(partial(_single, parameter)), WithJsonSchema(_scalar_schema(parameter))]


def schedule_type() -> Any:
    """The type of a schedule that a combine step declares: a list over the layers or rules, of numbers."""
    parameter = Parameter("a schedule", "", float, False, None)
    return Annotated[setting_type(parameter), AfterValidator(_schedule), WithJsonSchema(_json_schema(parameter))]


def _scalar_schema(parameter: Parameter) -> dict[str, Any]:
    return {"enum": list(parameter.choices)} if parameter.choices else _SCALARS[parameter.type]


def _json_schema(parameter: Parameter) -> dict[str, Any]:
    scalar = _scalar_schema(parameter)
    value = {"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1}]}
    targets = {"type": "string", "description": "A glob over tensor names, or re: and a regular expression."}
    rule = {
        "type": "object",
        "properties": {"targets": targets, "value": value},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"anyOf": [*value["anyOf"], {"type": "array", "items": rule, "minItems": 1}]}


def _form(value: Any) -> str:
    if not isinstance(value, list):
        return "<value>"
    return "<rules>" if value and all(isinstance(item, Mapping) for item in value) else "<list>"


def _scalar(parameter: Parameter, value: Any) -> Scalar:
    """One value, numbers exact, checked as every way into the parameter checks it."""
    name = parameter.name
    if isinstance(value, Mapping) and (word := next((word for word in _TUNING if word in value), None)):
        if word == "search":
            raise Wrong(f"{name} is to be searched", "run `surgeon tune RECIPE`: it writes a recipe with a number here")
        raise Wrong(
            f"{{{word}: …}} is not in this version", "write a number, or {search: [LOW, HIGH]} for `surgeon tune`"
        )
    if isinstance(value, Mapping):
        hint = "rules are a list: [{targets: PATTERN, value: VALUE}, …]"
        raise Wrong(f"{name} takes a value, a list of them or rules, not a mapping", hint)
    if isinstance(value, str) and parameter.type in (float, int):
        exact = fraction(value)
        value = value if exact is None else exact
    if isinstance(value, int) and not isinstance(value, bool):
        value = Fraction(value)
    if not isinstance(value, Fraction | str | bool):
        raise Wrong(f"{name} takes a value or a list of them, not {kind(value)} inside")
    if reason := parameter.fault(value):
        raise Wrong(reason, nearest(value, parameter.choices) if isinstance(value, str) else "")
    return value


def _single(parameter: Parameter, value: Any) -> Scalar:
    if isinstance(value, list):
        raise Wrong(f"{parameter.name} is one value; a direction is measured before an edit chooses layers")
    return _scalar(parameter, value)


def _layers(values: list[Scalar]) -> Layers:
    if not values:
        raise Wrong("an empty list; a list holds the values from first to last layer")
    return Layers(tuple(values))


def _targets(text: str | None) -> str | None:
    if text is None:
        return None
    if text.startswith("role:"):
        raise Wrong("roles as targets are not in this version; write a glob or a re: pattern")
    return pattern(text)


def _rules(rules: list[Any]) -> Rules:
    for index, rule in enumerate(rules[:-1]):
        if rule.targets is None:
            raise Wrong("a rule without targets fits every tensor; the rules after it are never reached", "", index)
    return Rules(tuple(Rule(rule.targets, rule.value) for rule in rules))


def _schedule(setting: Setting) -> Schedule:
    if isinstance(setting, Layers | Rules):
        return setting
    raise Wrong("this is one number; write it into the expression, or give a list over the layers")
