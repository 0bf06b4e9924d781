"""What a folder's config says that its weights do not, or that older readers do not understand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from surgeon.anatomy.family import Family, families
from surgeon.errors import CheckpointError
from surgeon.measuring.reading import same_bytes
from surgeon.measuring.serving.folder import Folder
from surgeon.measuring.verdict import Finding, mismatch, note, unknown
from surgeon.store.files import Files
from surgeon.store.header import Stored
from surgeon.store.json_files import read_object
from surgeon.tensors import FLOATS

#: Files that name a quantisation where the config does not.
_QUANTISED = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_KEYS = ("quantization_config", "compression_config")
_ROPE = (
    "says rope_parameters, which transformers before 5, llama.cpp and mistral.rs do not read: they take another rope"
)
_TOKENS = "names the class TokenizersBackend, at which transformers before 5 fails"

Texts = Mapping[str, Any]


def config_faults(folder: Folder, source: Texts | None, wanted: bool) -> Iterator[Finding]:
    """Every fault of the config; `source`: the files of the source by name, None where they cannot be had.

    `wanted` says that there is a source, so that not having it leaves something open.
    """
    if "config.json" not in folder.names:
        yield mismatch("config.json", "is missing: no server loads the weights", "copy it from the source")
        return
    try:
        config = folder.config
    except CheckpointError as error:
        yield mismatch("config.json", error.message)
        return
    yield from _tied(folder, config)
    yield from _quantised(folder, config)
    yield from _rewritten(folder, config, source, wanted)
    if not any(name in folder.names for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")):
        yield note("tokenizer", "there is none: servers can be asked by token ids at most")


def _tied(folder: Folder, config: Texts) -> Iterator[Finding]:
    """A head of its own beside a config that ties it to the embedding."""
    family = families().get(str(config.get("model_type", "")))
    if family is None or not config.get("tie_word_embeddings", family.tied):
        return
    embed, head = (_stored(folder, family, name) for name in (family.embed, family.unembed))
    if embed is None or head is None:
        return
    with closing(Files()) as files:
        if same_bytes(files, embed, head):
            return
    found = "differs from the embedding, to which config.json ties it: transformers uses it, vLLM does not"
    yield mismatch(family.unembed, found, 'write "tie_word_embeddings": false into config.json, or edit both alike')


def _stored(folder: Folder, family: Family, name: str) -> Stored | None:
    found = (folder.stored(name.replace("{trunk}", trunk)) for trunk in family.trunks)
    return next((stored for stored in found if stored is not None), None)


def _quantised(folder: Folder, config: Texts) -> Iterator[Finding]:
    """A quantisation that is announced, while every matrix is stored as plain floats."""
    matrices = (stored.spec for name in folder.meant if (stored := folder.stored(name)) and len(stored.spec.shape) > 1)
    if any(spec.dtype not in FLOATS and spec.dtype != "BOOL" for spec in matrices):
        return
    texts = [("", config), ("text_config.", config.get("text_config") or {})]
    found = [f"{at}{key}" for at, text in texts for key in _KEYS if text.get(key)]
    hint = "remove it: the weights are stored as plain floats"
    if found:
        yield mismatch("config.json", f"announces quantised weights ({', '.join(found)}), and none is", hint)
    for name in folder.names.intersection(_QUANTISED):
        yield mismatch(name, "announces quantised weights, and none is", hint)


def _rewritten(folder: Folder, config: Texts, source: Texts | None, wanted: bool) -> Iterator[Finding]:
    """What a newer transformers wrote anew that the source had in words older readers know."""
    tokenizer = _object(folder, "tokenizer_config.json")
    told = [
        ("config.json", _ROPE, _has_rope, config),
        ("tokenizer_config.json", _TOKENS, _has_backend, tokenizer),
    ]
    for name, message, has, found in told:
        if not has(found):
            continue
        if source is None and wanted:
            hint = "name the source, so that its files can be compared: --base MODEL"
            yield unknown(name, f"{message}; whether the source did is not known", hint)
        elif source is None:
            yield note(name, message)
        elif not has(source.get(name, {})):
            yield mismatch(name, f"{message}; the source does not say it", f"copy {name} from the source")


def _has_rope(config: Texts) -> bool:
    return any("rope_parameters" in text for text in (config, config.get("text_config") or {}))


def _has_backend(config: Texts) -> bool:
    return config.get("tokenizer_class") == "TokenizersBackend"


def _object(folder: Folder, name: str) -> Texts:
    try:
        return read_object(folder.root / name) if name in folder.names else {}
    except CheckpointError:
        # A file that is damaged is told where it is compared with the source's, by `verify`.
        return {}
