"""PEFT adapters as specialists: a LoRA, rsLoRA or DoRA folder on a base, seen as the adapted model's weights.

Nothing full-size is written: `low_rank.AdaptedStateDict` computes entries when they are read. The rules are those of
peft 0.18+ (adapter_config.json and adapter_model.safetensors); what is not known here is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.formats.reading import PROMPTS, read_prompts
from taskmerge.checkpoints.formats.table import READABLE, SAFETENSORS, open_file
from taskmerge.checkpoints.hub import HubPlace, locate, open_snapshot
from taskmerge.checkpoints.lineage.low_rank import AdaptedStateDict, Factors
from taskmerge.checkpoints.lineage.names import match_names
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, MergeError

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<leaf>weight|bias))?"
)
# Fields that say how it was trained or which modules were chosen; the tensors themselves tell the rest.
_SILENT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "revision", "task_type"),
        *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"),
        *("bias", "modules_to_save", "target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
        *("init_lora_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config"),
        *("inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
        "ensure_weight_tying",
    }
)
# Initialisations that leave the base's weights alone; the others subtract something from them, which is not saved.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_LONGEST_PATTERN = 300
_COSTLY = re.compile(r"[*+}?]\)[*+{]")  # repeats of repeats take exponential time


@dataclass(frozen=True)
class AdapterConfig:
    """What of adapter_config.json the numbers depend on. rank_pattern, alpha_pattern: module regex -> value."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False

    def scaling(self, module: str) -> float:
        """The factor of B·A at a module path: alpha / rank, with rsLoRA alpha / sqrt(rank)."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def adapted(base: StateDict, adapter: str | Path, relative_to: Path | None = None) -> AdaptedStateDict:
    """The weights of `base` with the adapter folder or hub repository `adapter` applied at full strength.

    Adapted tensors are float32 (float64 over a float64 base), computed in float64 and rounded once; the others are
    the base's own. Raises CheckpointError for an adapter that is broken or of a kind not known here, MergeError when
    it does not fit the base.
    """
    folder, file = _open(adapter, relative_to)
    label = f"{base.label} + {adapter}"
    modules, replaced = _sorted_out(file, read_config(folder / CONFIG), str(folder / file.name))
    stored = {name: file.entries[own].info for name, own in replaced.items()}
    factors, names = _fitted(base, modules, stored, label)
    tokenizer = folder if (folder / "tokenizer.json").is_file() else None
    prompts = read_prompts(folder / PROMPTS)
    own = {names[name]: stored for name, stored in replaced.items()}
    return AdaptedStateDict(base, file, factors, own, label, tokenizer, prompts)


def read_config(path: Path) -> AdapterConfig:
    """Reads and checks adapter_config.json. Raises CheckpointError naming the field it cannot honour."""
    table: dict[str, Any] = read_json(path, dict[str, Any], "no table of adapter settings: save the adapter again")
    if table.get("peft_type") != "LORA":
        raise CheckpointError(
            f"peft_type {table.get('peft_type')!r} is not known here, only 'LORA'",
            str(path),
            "merge it into its base with peft (merge_and_unload) and name the result",
        )
    for key, value in table.items():
        if key not in _SILENT and value not in (None, False, [], {}):
            raise CheckpointError(
                f"{key}: {value!r} is not known here",
                str(path),
                "merge it into its base with peft (merge_and_unload) and name the result",
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
        rank_pattern={key: int(value) for key, value in _patterns(table, "rank_pattern", path).items()},
        alpha_pattern=_patterns(table, "alpha_pattern", path),
        use_rslora=_flag(table, "use_rslora", path),
        use_dora=_flag(table, "use_dora", path),
        fan_in_fan_out=_flag(table, "fan_in_fan_out", path),
    )


# ------------------------------------------------------------------------------------------------------ reading


def _open(adapter: str | Path, relative_to: Path | None) -> tuple[Path, WeightFile]:
    place = locate(str(adapter), relative_to)
    if isinstance(place, HubPlace):
        snapshot = open_snapshot(place)
        name = SAFETENSORS.adapter
        if name not in snapshot.weight_files:
            raise CheckpointError(f"no {name} in this repository", str(place))
        return snapshot.folder, open_file(name, snapshot.fetch(name))
    there = [row.adapter for row in READABLE if (place / row.adapter).is_file()]
    file_name = there[0] if there else SAFETENSORS.adapter
    for name in (CONFIG, file_name):
        if not (place / name).is_file():
            raise CheckpointError(f"no {name}: not a PEFT adapter folder", str(place))
        check_link(place / name, place)
    return place, open_file(file_name, place / file_name)


def _sorted_out(file: WeightFile, config: AdapterConfig, place: str) -> tuple[dict[str, Factors], dict[str, str]]:
    """Module path -> its factors; tensor name -> the stored tensor that replaces it (biases, modules_to_save)."""
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for stored in file.entries:
        if not stored.startswith(_PREFIX):
            raise CheckpointError(f"{stored!r} does not start with {_PREFIX!r}: not saved by peft", place)
        name = stored[len(_PREFIX) :]
        if ".original_module." in name:  # the base's own tensor, which peft saves beside the trained one
            continue
        match = _FACTOR.fullmatch(name)
        if match:
            part = "lora_bias" if match["leaf"] == "bias" else match["part"]
            parts.setdefault(match["module"], {})[part] = stored
        elif "lora_" in name or "token_adapter" in name:
            raise CheckpointError(f"{stored!r} is no kind of adapter tensor known here", place)
        else:
            replaced[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = stored
    return {module: _factors(module, own, file, config, place) for module, own in parts.items()}, replaced


def _factors(module: str, own: Mapping[str, str], file: WeightFile, config: AdapterConfig, place: str) -> Factors:
    embedding = "lora_embedding_A" in own or "lora_embedding_B" in own
    down, up = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    for part in (down, up):
        if part not in own:
            raise CheckpointError(f"module {module!r} has no {part}", place, "save the adapter again")
    if config.use_dora != ("lora_magnitude_vector" in own):
        trouble = "has no" if config.use_dora else "has a"
        raise CheckpointError(f"module {module!r} {trouble} lora_magnitude_vector, use_dora says otherwise", place)
    shapes = {part: file.entries[own[part]].info.shape for part in (down, up)}
    rank = config.rank_of(module)
    if len(shapes[down]) < 2 or len(shapes[up]) < 2 or {shapes[down][0], shapes[up][1]} != {rank}:
        raise CheckpointError(
            f"module {module!r} has factors {list(shapes[down])} and {list(shapes[up])}; its rank should be {rank}",
            place,
            "r or rank_pattern in adapter_config.json does not belong to these weights",
        )
    return Factors(
        down=own[down],
        up=own[up],
        down_shape=shapes[down],
        up_shape=shapes[up],
        scaling=config.scaling(module),
        magnitude=own.get("lora_magnitude_vector"),
        bias=own.get("lora_bias"),
        transposed=embedding or config.fan_in_fan_out,
        embedding=embedding,
    )


# ------------------------------------------------------------------------------------------------------ fitting


def _fitted(
    base: StateDict, modules: Mapping[str, Factors], replaced: Mapping[str, TensorInfo], label: str
) -> tuple[dict[str, Factors], dict[str, str]]:
    """Base's tensor name -> factors; the adapter's tensor name -> the base's, for what it replaces.

    Every module must be found, and fit. A replaced tensor that the base lacks (a new classifier among
    modules_to_save) keeps its name.
    """
    outline = {f"{module}.weight": TensorInfo(f"{module}.weight", "F32", own.shape) for module, own in modules.items()}
    outline |= {name: TensorInfo(name, info.dtype, info.shape) for name, info in replaced.items()}
    names = {theirs: ours for ours, theirs in match_names(base, _Outline(label, outline, base.beside)).pairs.items()}
    fitted = {}
    for module, own in modules.items():
        name = names.get(f"{module}.weight")
        if name is None:
            raise MergeError(f"the adapter's module {module!r} is not in the base", label, "is it for another model?")
        if own.bias is not None and _bias_of(name) not in base.tensors:
            raise MergeError(f"the adapter has a bias for {module!r}, the base has none", label)
        fitted[name] = _oriented(own, base.tensors[name], base.config, module, label)
    return fitted, {name: names.get(name, name) for name in replaced}


def _oriented(own: Factors, info: TensorInfo, config: Mapping[str, Any], module: str, label: str) -> Factors:
    """The factors as the base stores the weight: out × in, or in × out (tables of tokens, Conv1D layers)."""
    straight, turned = own.shape == info.shape, own.shape[::-1] == info.shape
    if own.embedding:
        straight, turned = False, straight
    if (straight or turned) and info.format.mergeable:
        if straight and turned:  # a square matrix does not tell
            turned = own.transposed or config.get("model_type") in _CONV1D_MODELS
        return replace(own, transposed=turned)
    raise MergeError(
        f"the adapter's module {module!r} is for {list(own.shape)}; the base's is {info.dtype} {list(info.shape)}",
        f"{label}: {info.name}",
        "is it for another model, a quantised one, or a grouped convolution?",
    )


def _bias_of(name: str) -> str:
    return name.removesuffix("weight") + "bias"


@dataclass
class _Outline(StateDict):
    """Headers without values: enough to match names."""

    label: str
    tensors: Mapping[str, TensorInfo]
    beside: Beside

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        raise CheckpointError(f"{name!r} has a header only", self.label)


# ----------------------------------------------------------------------------------------------- config fields


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """peft's rule: the first pattern that matches the end of the module's path, from a dot on."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default


def _number(table: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    return _checked_number(table.get(key, default), key, path)


def _checked_number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise CheckpointError(f"{key}: {value!r} is no positive number", str(path))
    return float(value)


def _flag(table: Mapping[str, Any], key: str, path: Path) -> bool:
    value = table.get(key) or False
    if not isinstance(value, bool):
        raise CheckpointError(f"{key}: {value!r} is neither true nor false", str(path))
    return value


def _patterns(table: Mapping[str, Any], key: str, path: Path) -> dict[str, float]:
    given = table.get(key) or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{key}: {given!r} is no table from module names to numbers", str(path))
    for pattern in given:
        if len(pattern) > _LONGEST_PATTERN or _COSTLY.search(pattern):
            raise CheckpointError(f"{key}: {pattern!r} is too costly a pattern to try", str(path))
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{key}: {pattern!r} is no regular expression: {error}", str(path)) from None
    return {pattern: _checked_number(value, f"{key}: {pattern}", path) for pattern, value in given.items()}
