"""adapter_config.json of a LoRA adapter: what of it changes weights, and what is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from surgeon.errors import CheckpointError

#: Keys without influence on the merged weights.
NEUTRAL = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
})  # fmt: skip

#: Ways to begin the training that leave the base model as it was.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

#: A pattern is matched against every module name: quantifiers are limited so that none can take for ever.
_QUANTIFIERS = re.compile(r"(?<!\\)[*+?{]")
_QUANTIFIED_GROUP = re.compile(r"\)[*+?{]")

_MERGE = "merge it with peft (merge_and_unload, save_pretrained) and give the merged model"


def _compiled(text: str) -> re.Pattern[str]:
    """The pattern as PEFT matches it: the whole module name, or a tail of it that begins at a dot."""
    if len(text) > 1000 or len(_QUANTIFIERS.findall(text)) > 3 or _QUANTIFIED_GROUP.search(text):
        raise ValueError("must be a simple pattern: at most three * + ? and no repeated groups")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no pattern: {error}") from None


def _none_is_false(value: Any) -> Any:
    return False if value is None else value


_Flag = Annotated[bool, BeforeValidator(_none_is_false)]
_Rank = Annotated[int, Field(gt=0, lt=2**31)]
_Alpha = Annotated[float, Field(gt=-1e30, lt=1e30)]
_Pattern = Annotated[re.Pattern[str], BeforeValidator(_compiled)]
_Module = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """What the configuration says of each module's rank and scale, and of tensors beside the low-rank ones."""

    model_config = ConfigDict(strict=True, frozen=True)

    r: _Rank = 8
    lora_alpha: _Alpha = 8.0
    use_rslora: _Flag = False
    rank_pattern: Annotated[dict[_Pattern, _Rank], Field(max_length=10_000)] | None = None
    alpha_pattern: Annotated[dict[_Pattern, _Alpha], Field(max_length=10_000)] | None = None
    fan_in_fan_out: _Flag = False
    use_dora: _Flag = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: list[_Module] | None = None

    def rank(self, module: str) -> int:
        """The rank of a module's update."""
        return int(_first(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """The factor on B @ A."""
        rank = self.rank(module)
        return _first(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def saves(self, name: str) -> bool:
        """Whether a tensor belongs to a module that was trained whole."""
        parents = name.split(".")[:-1]
        paths = [".".join(parents[: end + 1]) for end in range(len(parents))]
        return any(path.endswith(module) for path in paths for module in self.modules_to_save or ())


def read_settings(config: Mapping[str, Any], where: str) -> Settings:
    """Check and read a configuration; CheckpointError for everything that is not a plain LoRA or DoRA."""
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type {kind!a}; only LORA is read", hint=_MERGE)
    if not any(start is known or (isinstance(start, str) and start == known) for known in _HARMLESS_STARTS):
        raise CheckpointError(
            f"{where}: init_lora_weights {start!a} may change the base before training, and the adapter "
            "alone does not say how",
            hint="save it again with peft's path_initial_model_for_weight_conversion, or " + _MERGE,
        )
    plain = {*NEUTRAL, *Settings.model_fields, "init_lora_weights"}
    unknown = sorted(key for key, value in config.items() if key not in plain and value not in (None, False, {}, []))
    if unknown:
        listed = ", ".join(f"{key}={_glimpse(config[key])}" for key in unknown)
        raise CheckpointError(f"{where}: settings that are not supported: {listed}", hint=_MERGE)
    try:
        return Settings.model_validate(config)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        key, *within = (part for part in found["loc"] if part != "[key]")
        at = f"{key} {_glimpse('.'.join(map(str, within)))}" if within else key
        fault = f"{where}: {at} is {_glimpse(found['input'])}: {found['msg'].removeprefix('Value error, ')}"
        raise CheckpointError(fault, hint=f"correct {where}") from None


def _first(patterns: Mapping[re.Pattern[str], float] | None, module: str, default: float) -> float:
    return next((number for pattern, number in (patterns or {}).items() if pattern.match(module)), default)


def _glimpse(value: Any) -> str:
    text = f"{value!a}"
    return text if len(text) <= 60 else text[:60] + "…"
