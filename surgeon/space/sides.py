"""The files beside a model's weights: config, tokenizer, templates; as they lie, or as a reshape has changed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from surgeon.anatomy.vocabulary import Tokenizer
from surgeon.errors import MismatchError
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.json_files import parse_object, read_object
from surgeon.store.side_files import side_files

#: What a file is: where it lies, or its bytes.
Content = Path | bytes


@dataclass(frozen=True, eq=False)
class Sides:
    """The side files of the model `label`, by their names in its folder."""

    label: str
    files: Mapping[str, Content] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Sides:
        """The files in a checkpoint's folder that belong to it."""
        found = {path.relative_to(checkpoint.root).as_posix(): path for path in side_files(checkpoint)}
        return cls(checkpoint.ref, found)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file as parsed; {} where there is none. CheckpointError for a broken one."""
        content = self.files.get(name)
        if content is None:
            return {}
        return parse_object(content, name) if isinstance(content, bytes) else read_object(content)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. MismatchError where there is none that says its tokens in tokenizer.json."""
        if "tokenizer.json" not in self.files:
            raise MismatchError(
                f"{self.label} has no tokenizer.json, from which its vocabulary would be read",
                hint="write one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            )
        return Tokenizer(self.label, self.json("tokenizer.json"), self.json("tokenizer_config.json"))

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, where it has one."""
        content = self.files.get("chat_template.jinja")
        if content is not None:
            return (content if isinstance(content, bytes) else content.read_bytes()).decode()
        named = (self.json(name).get("chat_template") for name in ("chat_template.json", "tokenizer_config.json"))
        return next((held for held in named if isinstance(held, str)), None)

    def changed(self, changes: Mapping[str, Content | None]) -> Sides:
        """The same with files replaced, added, or (None) left out."""
        if not changes:
            return self
        files = {**self.files, **changes}
        return Sides(self.label, {name: content for name, content in files.items() if content is not None})


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A file's content, as the libraries write theirs."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def differences(before: Sides, after: Sides) -> dict[str, Content | None]:
    """What `changed` would have to be told to make one of the other."""
    gone: dict[str, Content | None] = dict.fromkeys(before.files.keys() - after.files.keys())
    return gone | {name: value for name, value in after.files.items() if before.files.get(name) != value}
