"""The shapes of directions and of the steps that edit or reshape, as pydantic models, one a fitter and one an edit."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, create_model

from surgeon.anatomy.family import Part
from surgeon.errors import RefusedError, nearest
from surgeon.recipe.document import kind
from surgeon.recipe.part_settings import part_type
from surgeon.recipe.setting_types import Strict, Wrong, class_name, path, pattern, setting_field, single_type
from surgeon.space.fitter import SETS
from surgeon.space.registry import edits, fitters, reshapes

_BLOCK = r"block\.(?:0|[1-9][0-9]{0,5})(?:\.mid)?"
_POINT = re.compile(rf"embed|own(?:\.mid)?|{_BLOCK}")
_LAYERS = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")
_POSITION = r"^(last|response|mean|first(:[1-9][0-9]*)?)$"
_WRITERS = [part.value for part in Part]


def _point(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and _POINT.fullmatch(value)):
        return value
    hint = "embed, block.14 (after block 14), block.14.mid (after its attention), or own (each block its own)"
    hint = f"did you mean block.{value}?" if isinstance(value, int) and not isinstance(value, bool) else hint
    raise Wrong(f"at is a residual point, not {kind(value)}", hint)


def _layers(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    found = _LAYERS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        colon = isinstance(value, str) and re.fullmatch(r"[0-9]+:[0-9]+", value)
        hint = f"write {value.replace(':', '..')}; YAML 1.1 reads a colon between digits as base 60" if colon else ""
        raise Wrong(f"layers is a range such as 8..24, not {kind(value)}", hint or "8..24 is blocks 8 to 23")
    first, end = int(found[1]), int(found[2])
    if first >= end:
        hint = f"the end is not part of it: {first}..{first + 1} is block {first}"
        raise Wrong(f"layers {value} holds no block", hint)
    return first, end


def _writers(value: Any) -> tuple[str, ...]:
    """The parts named; none for all."""
    if value is None or value == "all":
        return ()
    words = value if isinstance(value, list) else [value]
    if not words:
        raise Wrong("an empty list of writers", "all is every writer")
    for index, word in enumerate(words):
        place = (index,) if isinstance(value, list) else ()
        if word == "all":
            raise Wrong("all is every writer; it stands alone", "writers: all", *place)
        if word not in _WRITERS:
            hint = nearest(word, [*_WRITERS, "all"]) if isinstance(word, str) else ""
            raise Wrong(f"there are no writers {kind(word)}", hint or ", ".join([*_WRITERS, "all"]), *place)
        if word in words[:index]:
            raise Wrong(f"{word!r} is listed twice", "", *place)
    return tuple(words)


def _names(names: list[str]) -> list[str]:
    if not names:
        raise Wrong("an empty list of directions", "name one: directions: [NAME]")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise Wrong(f"{name!r} is listed twice", "", index)
    return names


def _position(text: str) -> str:
    from surgeon.directions.positions import Position

    try:
        Position.read(text)
    except RefusedError as error:
        raise Wrong(error.message, error.hint) from None
    return text


_PATH = Annotated[str, AfterValidator(path)]
_AT = Annotated[
    Any,
    PlainValidator(_point),
    WithJsonSchema({"anyOf": [{"enum": ["own", "own.mid", "embed"]}, {"type": "string", "pattern": f"^{_BLOCK}$"}]}),
]
_WORDS = {"enum": _WRITERS}
_RANGE = Annotated[Any, PlainValidator(_layers), WithJsonSchema({"type": "string", "pattern": r"^[0-9]+\.\.[0-9]+$"})]
#: What every edit can be told: keys of its step that are no settings of its own.
_SCOPE: dict[str, Any] = {
    "layers": (_RANGE, Field(None, description="Blocks to edit, half-open: 8..24 is blocks 8 to 23.")),
    "writers": (
        Annotated[
            Any,
            PlainValidator(_writers),
            WithJsonSchema(
                {"anyOf": [{"enum": [*_WRITERS, "all"]}, {"type": "array", "items": _WORDS, "minItems": 1}]}
            ),
        ],
        Field(None, description="Which parts are edited; all unless said otherwise."),
    ),
    "tied": (
        Literal["untie", "both", "skip"] | None,
        Field(None, description="A tied embedding: give the head its own copy (untie), edit both, or neither (skip)."),
    ),
    "allow_partial": (
        bool | None,
        Field(None, description="Edit the known writers where the model has tensors that may be others."),
    ),
}


class PartEntry(Strict):
    """One part of a reshape of several models."""

    of: str = Field(description="A model or step.")
    layers: _RANGE = Field(
        None, description="The blocks taken of it, half-open: 8..24 is blocks 8 to 23; all where it is left out."
    )
    targets: Annotated[str, AfterValidator(pattern)] | None = Field(
        None, description="A pattern over tensor names: the tensors taken of it; all where it is left out."
    )


#: The keys of a reshape's step that name what it is made of: the field's name, its type, what it says.
_OPERANDS: dict[str, tuple[str, Any, Any]] = {
    "of": ("of", str, Field(description="The model or step that is reshaped.")),
    "with": ("with_", list[str] | None, Field(None, alias="with", description="Further models or steps it draws on.")),
    "parts": (
        "parts",
        list[PartEntry],
        Field(min_length=1, description="Models or steps it is made of, in order."),
    ),
}


class FileEntry(Strict):
    """A direction measured earlier, and where it is used."""

    file: _PATH = Field(description="A direction file, such as find writes.")
    at: _AT = Field(None, description="The residual point it is used at, instead of the one its file says.")


def fit_entry(name: str) -> type[Strict]:
    """The model of a direction that is measured with this fitter."""
    fitter = fitters()[name]
    fields: dict[str, Any] = {
        "fit": (Literal[name], Field(description=fitter.summary)),
        "model": (str, Field(description="The model or step it is measured on; on a step, the plan has stages.")),
        "positive": (_PATH, Field(description="JSON lines that show it.")),
        "negative": (_PATH, Field(description="JSON lines that do not.")),
        "at": (_AT, Field(None, description="The residual point it is measured at; own: one for each block.")),
    }
    types: dict[str, Any] = {
        "position": Annotated[str, AfterValidator(_position), WithJsonSchema({"type": "string", "pattern": _POSITION})]
    } | dict.fromkeys(SETS, _PATH)
    for parameter in fitter.parameters.values():
        fields[parameter.name] = setting_field(parameter, types.get(parameter.name) or single_type(parameter))
    return create_model(f"{class_name(name)}Fit", __base__=Strict, __doc__=fitter.summary, **fields)


def edit_step(name: str) -> type[Strict]:
    """The model of a step with this edit."""
    method = edits()[name]
    fields: dict[str, Any] = {
        "edit": (Literal[name], Field(description=method.summary)),
        "of": (str, Field(description="The model or step that is edited.")),
    }
    if method.needs_directions:
        text = "Names of directions; several act as one subspace."
        fields["directions"] = (
            Annotated[list[str], AfterValidator(_names)],
            Field(description=text, json_schema_extra={"minItems": 1}),
        )
    fields |= _SCOPE
    fields |= {parameter.name: setting_field(parameter) for parameter in method.parameters.values()}
    return create_model(f"{class_name(name)}Edit", __base__=Strict, __doc__=method.summary, **fields)


def reshape_step(name: str) -> type[Strict]:
    """The model of a step with this reshape."""
    reshaping = reshapes()[name]
    fields: dict[str, Any] = {"reshape": (Literal[name], ...)}
    fields |= {_OPERANDS[key][0]: _OPERANDS[key][1:] for key in reshaping.operands}
    for parameter in reshaping.parameters.values():
        fields[parameter.name] = setting_field(parameter, part_type(parameter))
    word = class_name(name)
    return create_model(f"{word}Reshape", __base__=Strict, __doc__=inspect.getdoc(reshaping), **fields)
