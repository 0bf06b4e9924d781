"""Chat templates by name, for `chat_template:`; each spells one published format of turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from surgeon.errors import RefusedError, nearest

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- set said = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set said.system = message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{ '[INST] ' + said.system + message['content'] + ' [/INST]' }}{%- set said.system = '' -%}
{%- else -%}{{ ' ' + message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}{{ '### Response:\\n' + message['content'] + '\\n\\n' }}
{%- else -%}{{ message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}
"""

_EXAONE = """\
{%- if messages[0]['role'] != 'system' -%}{{ '[|system|][|endofturn|]\\n' }}{%- endif -%}
{%- for message in messages -%}
{{ '[|' + message['role'] + '|]' + message['content'] + ('\\n' if message['role'] == 'user' else '[|endofturn|]\\n') }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[|assistant|]' }}{%- endif -%}
"""

TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL,
}  # fmt: skip
AUTO = "auto"


def check_template(text: str) -> str:
    """What `chat_template:` says, itself: ``auto``, a name, or jinja. RefusedError for what is none of them."""
    if text == AUTO or text in TEMPLATES or "{" in text:
        return text
    hint = f"{nearest(text, [AUTO, *TEMPLATES])}; or write the template itself, in jinja"
    raise RefusedError(f"there is no chat template {text!r}", hint=hint)


def template(text: str, found: Iterable[str]) -> str:
    """The template that `chat_template:` means; ``auto`` is the one most of the models have (`found`, in their order).

    RefusedError where none of them has one.
    """
    if text != AUTO:
        return TEMPLATES.get(text, text)
    counted = Counter(found).most_common(1)
    if not counted:
        raise RefusedError("chat_template: auto: none of the models has a chat template", hint="name one")
    return counted[0][0]


def template_files(text: str, config: Mapping[str, Any] | None, has_file: bool) -> dict[str, str | dict[str, Any]]:
    """Where a template is written: chat_template.jinja, and tokenizer_config.json (`config`) if it holds one."""
    files: dict[str, str | dict[str, Any]] = {}
    inside = config is not None and "chat_template" in config
    if config is not None and inside:
        files["tokenizer_config.json"] = {**config, "chat_template": text}
    if has_file or not inside:
        files["chat_template.jinja"] = text
    return files
