"""adapter_config.json of a PEFT adapter: what the numbers depend on; what is not known here is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.lineage.adapter_patterns import ModuleValues
from taskmerge.errors import CheckpointError
from taskmerge.words.regular import RegularError

# Fields that say how it was trained or which modules were chosen; the tensors themselves tell the rest.
_SILENT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "revision", "task_type"),
        *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"),
        *("bias", "modules_to_save", "target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
        *("init_lora_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config"),
        *("inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
        *("ensure_weight_tying", "target_parameters", "trainable_token_indices", "token_indices", "init_weights"),
    }
)
_MERGE_WITH_PEFT = "merge it into its base with peft (merge_and_unload) and use the result"
# Initialisations that leave the base's weights alone; the others subtract something from them, which is not saved.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of adapter_config.json that the numbers depend on.

    rank_pattern, alpha_pattern: module regex -> value. target_parameters: parameters that are adapted directly, such as
    all experts of a layer in one. trained_tokens: module ("" for every module that has them) -> rows of its token
    table.
    """

    rank: int
    alpha: float
    rank_pattern: ModuleValues = field(default_factory=lambda: ModuleValues({}))
    alpha_pattern: ModuleValues = field(default_factory=lambda: ModuleValues({}))
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    target_parameters: tuple[str, ...] = ()
    trained_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def scaling(self, module: str) -> float:
        """Return the factor of B·A at a module path: alpha / rank, with rsLoRA alpha / sqrt(rank)."""
        rank, alpha = self.rank_of(module), self.alpha_pattern.of(module, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def rank_of(self, module: str) -> int:
        """Return the rank of a module."""
        return int(self.rank_pattern.of(module, self.rank))


def read_config(path: Path) -> AdapterConfig:
    """Read and check adapter_config.json. Raises CheckpointError with the name of a field that is not supported."""
    table: dict[str, Any] = read_json(path, dict[str, Any], "not a table of adapter settings: save the adapter again")
    if table.get("peft_type") not in ("LORA", "TRAINABLE_TOKENS"):
        raise CheckpointError(
            f"peft_type {table.get('peft_type')!r} is not supported, only 'LORA' and 'TRAINABLE_TOKENS'",
            str(path),
            _MERGE_WITH_PEFT,
        )
    for key, value in table.items():
        if key not in _SILENT and value not in (None, False, [], {}):
            raise CheckpointError(
                f"{key}: {value!r} is not supported",
                str(path),
                _MERGE_WITH_PEFT,
            )
    if table.get("init_lora_weights") not in _INITIALISATIONS:
        raise CheckpointError(
            f"init_lora_weights: {table['init_lora_weights']!r} changes the base's own weights",
            str(path),
            "convert it first: peft's save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    return AdapterConfig(
        rank=int(_number(table, "r", path, 8)),
        alpha=_number(table, "lora_alpha", path, 8),
        rank_pattern=_patterns(table, "rank_pattern", path),
        alpha_pattern=_patterns(table, "alpha_pattern", path),
        use_rslora=_flag(table, "use_rslora", path),
        use_dora=_flag(table, "use_dora", path),
        fan_in_fan_out=_flag(table, "fan_in_fan_out", path),
        target_parameters=_texts(table, "target_parameters", path),
        trained_tokens=_token_rows(table, path),
    )


def _number(table: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    return _checked_number(table.get(key, default), key, path)


def _checked_number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise CheckpointError(
            f"{key}: {value!r} is not a positive number", str(path), "correct it, or save the adapter again with peft"
        )
    return float(value)


def _texts(table: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = table.get(key) or ()
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise CheckpointError(
            f"{key}: {value!r} is not a list of names", str(path), "correct it, or save the adapter again with peft"
        )
    return tuple(value)


def _token_rows(table: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Module -> rows, from `trainable_token_indices` of a LoRA or `token_indices` of an adapter of tokens alone."""
    value = table.get("trainable_token_indices") or table.get("token_indices") or {}
    modules = value if isinstance(value, Mapping) else {"": value}
    for module, rows in modules.items():
        if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
            raise CheckpointError(
                f"the trained tokens of {module!r} are not a list of rows",
                str(path),
                "correct it, or save the adapter again with peft",
            )
    return {module: tuple(rows) for module, rows in modules.items()}


def _flag(table: Mapping[str, Any], key: str, path: Path) -> bool:
    value = table.get(key) or False
    if not isinstance(value, bool):
        raise CheckpointError(
            f"{key}: {value!r} is neither true nor false", str(path), "correct it, or save the adapter again with peft"
        )
    return value


def _patterns(table: Mapping[str, Any], key: str, path: Path) -> ModuleValues:
    given = table.get(key) or {}
    if not isinstance(given, dict):
        raise CheckpointError(
            f"{key}: {given!r} is not a table from module names to numbers",
            str(path),
            "correct it, or save the adapter again with peft",
        )
    try:
        return ModuleValues(
            {pattern: _checked_number(value, f"{key}: {pattern}", path) for pattern, value in given.items()}
        )
    except RegularError as error:
        raise CheckpointError(f"{key}: {error.problems[0].what}", str(path), _MERGE_WITH_PEFT) from None
