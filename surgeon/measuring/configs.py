"""Config, tokenizer and the other files beside the weights, compared by what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.measuring.config_defaults import as_class_reads
from surgeon.measuring.verdict import Finding, mismatch, note
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.json_files import read_object
from surgeon.store.side_files import side_files
from surgeon.tensors import FLOATS

#: Keys of a config without influence on what the model computes.
NEUTRAL = frozenset({
    "transformers_version", "_name_or_path", "name_or_path", "_attn_implementation_autoset", "use_cache", "auto_map",
    "_commit_hash", "_from_model_config", "architectures_version",
})  # fmt: skip
_DTYPES = ("dtype", "torch_dtype")

#: Parts of tokenizer.json that say how text becomes tokens.
_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "add_bos_token", "add_eos_token")
_ABSENT = "(absent)"


def check_side_files(source: Checkpoint, result: Checkpoint) -> list[Finding]:
    """What differs, in substance, between the files a result should carry and those it has."""
    if result.single_file or source.single_file:
        return [note("config.json", "not compared: one side is a single file of weights")]
    expected = {path.relative_to(source.root).as_posix(): path for path in side_files(source)}
    findings = list(_config(source, result)) if "config.json" in expected else []
    for name, path in expected.items():
        other = result.root / name
        if name == "config.json" or (other.is_file() and other.read_bytes() == path.read_bytes()):
            continue
        if not other.is_file():
            findings += _absent(name, result)
        else:
            findings.append(_compared(name, path, other))
    return [*findings, *_templates(source, result)]


def _config(source: Checkpoint, result: Checkpoint) -> Iterator[Finding]:
    try:
        expected, found = source.config, result.config
    except CheckpointError as error:
        yield mismatch("config.json", error.message)
        return
    if not found:
        yield mismatch("config.json", "is missing, so that no library can load the weights")
        return
    yield from _dtype(source, result)
    plain = dict(differences(expected, found))
    if not plain:
        return
    pair = as_class_reads(expected), as_class_reads(found)
    if pair[0] is None or pair[1] is None:
        wrong = plain
    else:
        said = leaves(pair[0])
        wrong = {p: values for p, values in plain.items() if not all(said_elsewhere(p, v, said) for v in values)}
        wrong = dict(differences(*pair)) or wrong
    for path, (was, now) in wrong.items():
        yield mismatch("config.json", f"{path} is {_short(now)}, not {_short(was)}")
    if harmless := [path for path in plain if path not in wrong]:
        yield note("config.json", f"written in another way, to the same effect: {', '.join(harmless)}")


def leaves(value: Any, name: str = "") -> dict[str, list[Any]]:
    """Every value of a config by the last part of its path."""
    if not isinstance(value, Mapping):
        return {name: [value]}
    found: dict[str, list[Any]] = {}
    for key, inner in value.items():
        for last, values in leaves(inner, str(key)).items():
            found.setdefault(last, []).extend(values)
    return found


def said_elsewhere(path: str, value: Any, said: Mapping[str, list[Any]]) -> bool:
    """Whether a value says only what the class reads anyway: nothing, a default written out, or a key that moved.

    A key that this class ignores and an older library heeds (a second `rope_theta`) must not say something else.
    """
    if value is None:
        return True
    if isinstance(value, Mapping):
        return all(said_elsewhere(str(key), inner, said) for key, inner in value.items())
    name = path.rpartition(".")[2]
    return value in said.get("rope_type" if name == "type" else name, [])


def _dtype(source: Checkpoint, result: Checkpoint) -> Iterator[Finding]:
    """A config names the dtype of its weights; loaders that ask for it would cast to another."""
    named = _named_dtype(result.config)
    stored = {FLOATS[s.spec.dtype] for s in result.tensors.values() if s.spec.is_float}
    if named is None or not stored or named in stored:
        return
    message = f"dtype is {named}, the weights are {', '.join(sorted(stored))}: loaders cast them"
    yield note("config.json", message) if named == _named_dtype(source.config) else mismatch("config.json", message)


def _named_dtype(config: Mapping[str, Any]) -> str | None:
    named = config.get("dtype", config.get("torch_dtype"))
    return named.removeprefix("torch.") if isinstance(named, str) else None


def differences(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(path, (expected, found)) of what differs; an absent key and null are one, neutral keys are left out."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys((*expected, *found)):
            if key not in NEUTRAL and key not in _DTYPES:
                inner = f"{path}.{key}" if path else str(key)
                yield from differences(expected.get(key), found.get(key), inner)
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        yield path, (expected, found)


def _compared(name: str, path: Path, other: Path) -> Finding:
    if not name.endswith(".json"):
        return mismatch(name, "differs from the source's")
    try:
        expected, found = read_object(path), read_object(other)
    except CheckpointError as error:
        return mismatch(name, error.message)
    if name == "tokenizer.json":
        expected, found = ({key: value.get(key) for key in _TOKENIZER} for value in (expected, found))
    if name in ("tokenizer_config.json", "special_tokens_map.json"):
        expected, found = _special(expected, found)
    if name == "generation_config.json":
        found = {key: value for key, value in found.items() if key in expected}
    changed = [path for path, _ in differences(expected, found)]
    if changed:
        return mismatch(name, f"differs from the source's in {', '.join(changed[:6])}")
    return note(name, "written in another way, to the same effect")


def _special(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Special tokens by their text, where both sides name them: newer libraries leave out what tokenizer.json says."""
    shared = [key for key in _SPECIAL if key in expected and key in found]
    return {k: _text(expected[k]) for k in shared}, {k: _text(found[k]) for k in shared}


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _absent(name: str, result: Checkpoint) -> list[Finding]:
    if name == "generation_config.json" or name.startswith(("LICENSE", "NOTICE", "USE_POLICY")):
        return [note(name, "is not there")]
    if name == "chat_template.jinja" or name == "chat_template.json":
        return []
    return [note(name, "is not there; what reads it must take the source's")]


def _templates(source: Checkpoint, result: Checkpoint) -> Iterator[Finding]:
    """A chat template may stand in a file of its own or in tokenizer_config.json."""
    expected, found = (_template(checkpoint.root) for checkpoint in (source, result))
    if expected is not None and found is not None and expected.strip() != found.strip():
        yield mismatch("chat template", "differs from the source's")
    if expected is not None and found is None and (result.root / "tokenizer_config.json").is_file():
        yield mismatch("chat template", "is missing")


def _template(root: Path) -> str | None:
    path = root / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (root / name).is_file():
            try:
                template = read_object(root / name).get("chat_template")
            except CheckpointError:
                return None
            if isinstance(template, str):
                return template
    return None


def _short(value: Any) -> str:
    text = _ABSENT if value is None else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
