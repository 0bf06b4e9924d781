"""adapter_config.json of a LoRA adapter: what of it changes weights, and what is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.errors import CheckpointError

#: Keys without influence on the merged weights.
NEUTRAL = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
})  # fmt: skip

#: Keys that are honoured.
HONOURED = frozenset({
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "modules_to_save", "r",
    "rank_pattern", "use_dora", "use_rslora",
})  # fmt: skip

#: Ways to begin the training that leave the base model as it was.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

#: A pattern is matched against every module name: quantifiers are limited so that none can take for ever.
_QUANTIFIERS = re.compile(r"(?<!\\)[*+?{]")
_QUANTIFIED_GROUP = re.compile(r"\)[*+?{]")

Patterns = tuple[tuple[re.Pattern[str], float], ...]


@dataclass(frozen=True)
class Settings:
    """What the configuration says of each module's rank and scale, and of tensors beside the low-rank ones."""

    r: int
    alpha: float
    rslora: bool
    ranks: Patterns
    alphas: Patterns
    fan_in_fan_out: bool
    dora: bool
    bias: str
    modules_to_save: tuple[str, ...]

    def rank(self, module: str) -> int:
        """The rank of a module's update."""
        return int(_first(self.ranks, module, self.r))

    def scale(self, module: str) -> float:
        """The factor on B @ A."""
        rank = self.rank(module)
        return _first(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def saves(self, name: str) -> bool:
        """Whether a tensor belongs to a module that was trained whole."""
        parents = name.split(".")[:-1]
        paths = [".".join(parents[: end + 1]) for end in range(len(parents))]
        return any(path.endswith(module) for path in paths for module in self.modules_to_save)


def read_settings(config: Mapping[str, Any], where: str) -> Settings:
    """Check and read a configuration; CheckpointError for everything that is not a plain LoRA or DoRA."""
    _refuse(config, where)
    bias = config.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        raise _broken(where, "bias", bias, "none, all or lora_only")
    saved = config.get("modules_to_save") or ()
    if not isinstance(saved, list | tuple) or not all(isinstance(name, str) and name for name in saved):
        raise _broken(where, "modules_to_save", saved, "a list of module names")
    return Settings(
        r=_rank(where, "r", config.get("r", 8)),
        alpha=_number(where, "lora_alpha", config.get("lora_alpha", 8)),
        rslora=_flag(where, config, "use_rslora"),
        ranks=_patterns(where, "rank_pattern", config, _rank),
        alphas=_patterns(where, "alpha_pattern", config, _number),
        fan_in_fan_out=_flag(where, config, "fan_in_fan_out"),
        dora=_flag(where, config, "use_dora"),
        bias=bias,
        modules_to_save=tuple(saved),
    )


def _refuse(config: Mapping[str, Any], where: str) -> None:
    """Refuse other kinds of adapters, and settings whose meaning would be lost."""
    merge = "merge it with peft (merge_and_unload, save_pretrained) and give the merged model"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type {kind!a}; only LORA is read", hint=merge)
    start = config.get("init_lora_weights", True)
    if not any(start is known or (isinstance(start, str) and start == known) for known in _HARMLESS_STARTS):
        raise CheckpointError(
            f"{where}: init_lora_weights {start!a} may change the base before training, and the adapter "
            "alone does not say how",
            hint="save it again with peft's path_initial_model_for_weight_conversion, or " + merge,
        )
    plain = NEUTRAL | HONOURED
    unknown = sorted(key for key, value in config.items() if key not in plain and value not in (None, False, {}, []))
    if unknown:
        listed = ", ".join(f"{key}={_glimpse(config[key])}" for key in unknown)
        raise CheckpointError(f"{where}: settings that are not supported: {listed}", hint=merge)


def _patterns(where: str, key: str, config: Mapping[str, Any], read: Callable[[str, str, Any], float]) -> Patterns:
    value = config.get(key) or {}
    if not isinstance(value, dict) or len(value) > 10_000:
        raise _broken(where, key, value, "a mapping of at most 10000 module patterns")
    return tuple(
        (_compiled(where, key, text), read(where, f"{key} {text!a}", number)) for text, number in value.items()
    )


def _compiled(where: str, key: str, text: str) -> re.Pattern[str]:
    """The pattern as PEFT matches it: the whole module name, or a tail of it that begins at a dot."""
    if len(text) > 1000 or len(_QUANTIFIERS.findall(text)) > 3 or _QUANTIFIED_GROUP.search(text):
        raise _broken(where, key, text, "a simple pattern: at most three * + ? and no repeated groups")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where}: {key}: {text!a} is no pattern: {error}", hint="correct the pattern") from None


def _first(patterns: Patterns, module: str, default: float) -> float:
    return next((number for pattern, number in patterns if pattern.match(module)), default)


def _rank(where: str, key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise _broken(where, key, value, "a positive integer")
    return value


def _number(where: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise _broken(where, key, value, "a number")
    return float(value)


def _flag(where: str, config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if value is not None and not isinstance(value, bool):
        raise _broken(where, key, value, "true or false")
    return bool(value)


def _broken(where: str, key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"{where}: {key} is {_glimpse(value)}; it must be {wanted}", hint=f"correct {where}")


def _glimpse(value: Any) -> str:
    text = f"{value!a}"
    return text if len(text) <= 60 else text[:60] + "…"
