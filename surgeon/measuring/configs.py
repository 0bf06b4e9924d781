"""Config, tokenizer and the other files beside the weights, compared by what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.measuring.config_defaults import as_class_reads
from surgeon.measuring.verdict import Finding, mismatch, note
from surgeon.space.sides import Content, Sides
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.json_files import read_object
from surgeon.tensors import FLOATS

#: Keys of a config without influence on what the model computes; its dtype is compared with the weights instead.
_NEUTRAL = frozenset({
    "transformers_version", "_name_or_path", "name_or_path", "_attn_implementation_autoset", "use_cache", "auto_map",
    "_commit_hash", "_from_model_config", "architectures_version", "dtype", "torch_dtype",
})  # fmt: skip

#: What matters of a file that libraries rewrite: parts of tokenizer.json, special tokens and template elsewhere.
_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def check_side_files(
    source: Checkpoint, result: Checkpoint, config: Mapping[str, Any], files: Mapping[str, Content | None]
) -> Iterator[Finding]:
    """What differs, in substance, between the files a result should carry and those it has.

    `config` is what config.json should hold, `files` what is made of other files.
    """
    if result.single_file or source.single_file:
        yield note("config.json", "not compared: one side is a single file of weights")
        return
    sides = Sides.of(source).changed(files)
    for name, content in sides.files.items():
        other = result.root / name
        try:
            if name == "config.json":
                yield from _config(source, result, config)
            elif not other.is_file():
                yield from () if name in _TEMPLATES else (note(name, "is not there; what reads it must take another"),)
            elif other.read_bytes() != _bytes(content) and name not in _TEMPLATES:
                yield _compared(name, sides, other)
        except CheckpointError as error:
            yield mismatch(name, error.message)
    yield from _templates(sides, result.root)


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _config(source: Checkpoint, result: Checkpoint, expected: Mapping[str, Any]) -> Iterator[Finding]:
    found = result.config
    if not found:
        yield mismatch("config.json", "is missing, so that no library can load the weights")
        return
    yield from _dtype(source, result)
    plain = wrong = dict(differences(expected, found))
    one, other = as_class_reads(expected), as_class_reads(found)
    if one is not None and other is not None:
        said = set(_leaves(one))
        wrong = {path: pair for path, pair in plain.items() if any(set(_leaves(v, path)) - said for v in pair)}
        wrong = dict(differences(one, other)) or wrong
    for path, (was, now) in wrong.items():
        yield mismatch("config.json", f"{path} is {_short(now)}, not {_short(was)}")
    if harmless := [path for path in plain if path not in wrong]:
        yield note("config.json", f"written in another way, to the same effect: {', '.join(harmless)}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a config with the last part of its path; null says nothing.

    A value that its class reads anyway says nothing new, wherever it stands. A key that this class ignores and an
    older library heeds (a second `rope_theta`) must not say something else.
    """
    name = path.rpartition(".")[2]
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, str(key))
    elif value is not None:
        yield "rope_type" if name == "type" else name, repr(float(value) if type(value) is int else value)


def differences(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(path, (expected, found)) of what differs; an absent key and null are one, neutral keys are left out."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys((*expected, *found)):
            if key not in _NEUTRAL:
                inner = f"{path}.{key}" if path else str(key)
                yield from differences(expected.get(key), found.get(key), inner)
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        yield path, (expected, found)


def _dtype(source: Checkpoint, result: Checkpoint) -> Iterator[Finding]:
    """A config names the dtype of its weights; loaders that ask for it would cast to another."""
    was, named = (str(c.config.get("dtype", c.config.get("torch_dtype", ""))) for c in (source, result))
    stored = {FLOATS[s.spec.dtype] for s in result.tensors.values() if s.spec.is_float}
    if named and stored and named.removeprefix("torch.") not in stored:
        message = f"dtype is {named}, the weights are {', '.join(sorted(stored))}: loaders cast them"
        yield note("config.json", message) if named == was else mismatch("config.json", message)


def _compared(name: str, sides: Sides, other: Path) -> Finding:
    """Files of one name whose bytes differ."""
    if not name.endswith(".json"):
        return mismatch(name, "differs from the source's")
    expected, found = sides.json(name), read_object(other)
    shared = [key for key in expected if key in found]
    keys = {
        "tokenizer.json": _TOKENIZER,
        # Newer libraries leave out of these what tokenizer.json or the model says.
        "tokenizer_config.json": [key for key in _SPECIAL if key in shared],
        "special_tokens_map.json": [key for key in _SPECIAL if key in shared],
        "generation_config.json": list(expected),
    }.get(name, [*expected, *found])
    one, two = ({key: _meant(key, value.get(key)) for key in keys} for value in (expected, found))
    if changed := [where for where, _ in differences(one, two)]:
        return mismatch(name, f"differs from the source's in {', '.join(changed[:6])}")
    return note(name, "written in another way, to the same effect")


def _meant(key: str, value: Any) -> Any:
    """A special token by its text, however it is written; anything else as it stands."""
    return value.get("content", value) if key in _SPECIAL and isinstance(value, Mapping) else value


def _templates(sides: Sides, result: Path) -> Iterator[Finding]:
    """A chat template may stand in a file of its own or in tokenizer_config.json."""
    expected, found = _template(sides), _template(_beside(result))
    if expected and found and expected != found:
        yield mismatch("chat template", "differs from the source's")
    if expected and not found and (result / "tokenizer_config.json").is_file():
        yield mismatch("chat template", "is missing")


def _beside(folder: Path) -> Sides:
    """The files of a folder that may hold a template."""
    return Sides(
        "", {name: folder / name for name in (*_TEMPLATES, "tokenizer_config.json") if (folder / name).is_file()}
    )


def _template(sides: Sides) -> str:
    try:
        return (sides.chat_template or "").strip()
    except (CheckpointError, UnicodeDecodeError):
        # A damaged file is told where the files are compared.
        return ""


def _short(value: Any) -> str:
    text = "(absent)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
