"""Which files beside the weights belong to a model and are copied into an output byte for byte."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.containment import links_inside

#: Names (globs, in the checkpoint's folder) of configs, tokenizers, templates, processors, code and licences.
PATTERNS = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "audio_tokenizer_config.json", "hf_quant_config.json", "quantize_config.json", "quant_config.json",
    "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def is_side_file(name: str) -> bool:
    """Whether a file of this name, relative to the checkpoint's folder, is copied along."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in PATTERNS)


def side_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files to copy, sorted by name; none for a checkpoint opened as a single file."""
    if checkpoint.single_file:
        return ()
    root = checkpoint.root
    found = [path for path in _candidates(root) if is_side_file(path.relative_to(root).as_posix()) and path.is_file()]
    outside = [str(path) for path in found if not links_inside(root, path)]
    if outside:
        raise CheckpointError(
            f"side files that are symbolic links out of {root}: {', '.join(outside)}",
            hint="put the files themselves into the folder",
        )
    return tuple(sorted(found))


def _candidates(root: Path) -> Iterable[Path]:
    yield from root.iterdir()
    templates = root / "additional_chat_templates"
    if templates.is_dir() and not templates.is_symlink():
        yield from templates.iterdir()
