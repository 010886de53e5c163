"""The tensors of a PEFT adapter: which module or parameter of the base each belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.lineage.adapter_config import AdapterConfig
from taskmerge.checkpoints.lineage.low_rank import Factors, TrainedRows
from taskmerge.checkpoints.lineage.names import match_names
from taskmerge.checkpoints.lineage.overlay import Outline
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, MergeError

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<leaf>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
_INNER = ".base_layer"
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_IN_BY_OUT = ("gpt_oss", "llama4", "llama4_text")
"""Models whose packed experts are stored in × out."""


@dataclass(frozen=True)
class AdapterTensors:
    """The tensors of an adapter's file.

    modules: path -> factors of its weight. parameters: path -> parameter of it -> factors, if the parameter is adapted
    directly. replaced: name -> the stored tensor that replaces it (biases, modules_to_save). rows: module -> the rows
    of its token table.
    """

    modules: Mapping[str, Factors] = field(default_factory=dict)
    parameters: Mapping[str, tuple[Factors, ...]] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, TrainedRows] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """The content of `AdapterTensors`, by the base's tensor names."""

    factors: Mapping[str, Factors]
    replaced: Mapping[str, str]
    rows: Mapping[str, TrainedRows]


def sorted_out(file: WeightFile, config: AdapterConfig, place: str) -> AdapterTensors:
    """Sort the tensors of an adapter's file by kind. Raises CheckpointError for an unknown or damaged one."""
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    rows: dict[str, TrainedRows] = {}
    for stored in file.entries:
        if not stored.startswith(_PREFIX):
            raise CheckpointError(
                f"{stored!r} does not start with {_PREFIX!r}: not saved by peft",
                place,
                "save the adapter with peft's save_pretrained",
            )
        name = stored[len(_PREFIX) :]
        if ".original_module." in name:  # the base's own tensor, which peft saves with the trained one
            continue
        if match := _FACTOR.fullmatch(name):
            part = "lora_bias" if match["leaf"] == "bias" else match["part"]
            parts.setdefault(match["module"], {})[part] = stored
        elif match := _TOKENS.fullmatch(name):
            rows[match["module"]] = _trained_rows(match["module"], stored, file, config, place)
        elif "lora_" in name or "token_adapter" in name:
            raise CheckpointError(
                f"{stored!r} is not a known kind of adapter tensor",
                place,
                "merge it into its base with peft (merge_and_unload) and use the result",
            )
        else:
            replaced[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = stored
    targets = {target.rpartition(".")[0] for target in config.target_parameters}
    modules: dict[str, Factors] = {}
    parameters: dict[str, list[Factors]] = {}
    for path, own in parts.items():
        module = path
        while module.endswith(_INNER):
            module = module.removesuffix(_INNER)
        if any(module == target or module.endswith(f".{target}") for target in targets):
            parameters.setdefault(module, []).append(_expert_factors(module, own, file, config, place))
        else:
            modules[path] = _factors(path, own, file, config, place)
    for key, said, there in (
        ("target_parameters", config.target_parameters, parameters),
        ("trainable_token_indices", config.trained_tokens, rows),
    ):
        if said and not there:
            raise CheckpointError(f"{key} is set, but there are no such tensors", place, "save the adapter again")
    return AdapterTensors(modules, {path: tuple(own) for path, own in parameters.items()}, replaced, rows)


def _trained_rows(module: str, stored: str, file: WeightFile, config: AdapterConfig, place: str) -> TrainedRows:
    said = [rows for name, rows in config.trained_tokens.items() if not name or f".{module}".endswith(f".{name}")]
    shape = file.entries[stored].info.shape
    if len(said) != 1 or len(shape) < 2 or len(said[0]) != shape[0]:
        raise CheckpointError(
            f"{stored!r} has {shape[:1] or 'no'} rows, but the settings do not list their tokens",
            place,
            "list the same number of tokens in trainable_token_indices of adapter_config.json",
        )
    return TrainedRows(stored, said[0])


def _factors(module: str, own: Mapping[str, str], file: WeightFile, config: AdapterConfig, place: str) -> Factors:
    embedding = "lora_embedding_A" in own or "lora_embedding_B" in own
    down, up = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    for part in (down, up):
        if part not in own:
            raise CheckpointError(f"module {module!r} has no {part}", place, "save the adapter again")
    if config.use_dora != ("lora_magnitude_vector" in own):
        trouble = "has no" if config.use_dora else "has a"
        raise CheckpointError(
            f"module {module!r} {trouble} lora_magnitude_vector, which contradicts use_dora",
            place,
            "save the adapter again with peft",
        )
    shapes = {part: file.entries[own[part]].info.shape for part in (down, up)}
    if 0 in (*shapes[down], *shapes[up]):
        raise CheckpointError(
            f"module {module!r} has empty factors",
            place,
            "they were saved before DeepSpeed ZeRO-3 gathered them: gather the weights and save the adapter again",
        )
    rank = config.rank_of(module)
    if len(shapes[down]) < 2 or len(shapes[up]) < 2 or {shapes[down][0], shapes[up][1]} != {rank}:
        raise CheckpointError(
            f"module {module!r} has factors {list(shapes[down])} and {list(shapes[up])}; its rank should be {rank}",
            place,
            "correct r or rank_pattern in adapter_config.json",
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


def _expert_factors(
    module: str, own: Mapping[str, str], file: WeightFile, config: AdapterConfig, place: str
) -> Factors:
    """Factors of a parameter with an axis of experts (peft's `target_parameters`); of one without, a weight's."""
    if set(own) != {"lora_A", "lora_B"}:
        raise CheckpointError(
            f"the parameter of {module!r} has {', '.join(sorted(own))}, not lora_A and lora_B",
            place,
            "save the adapter again with peft",
        )
    down, up = (file.entries[own[part]].info.shape for part in ("lora_A", "lora_B"))
    rank = config.rank_of(module)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0] or down[0] % rank:
        raise CheckpointError(
            f"module {module!r} has factors {list(down)} and {list(up)} of rank {rank}",
            place,
            "save the adapter again with peft",
        )
    experts = down[0] // rank
    return Factors(
        own["lora_A"], own["lora_B"], down, up, config.scaling(module), experts=experts if experts > 1 else 0
    )


# ------------------------------------------------------------------------------------------------------ fitting


def fitted(base: StateDict, file: WeightFile, config: AdapterConfig, found: AdapterTensors, label: str) -> Fitted:
    """Return an adapter's tensors by the base's names.

    Every module must be found, and fit. A replaced tensor that the base lacks (a new classifier among
    modules_to_save) keeps its name. Raises MergeError.
    """
    state_dict = {f"{module}.weight": (module, own) for module, own in found.modules.items()}
    for module, several in found.parameters.items():
        state_dict |= {name: (name, own) for name, own in _parameters(base, module, several, config, label).items()}
    outline = {name: TensorInfo(name, "F32", own.shape) for name, (_, own) in state_dict.items()}
    for name, (_, own) in state_dict.items():
        if own.experts and own.transposed:
            outline[name] = TensorInfo(name, "F32", (own.shape[0], own.shape[2], own.shape[1]))
    for name, stored in found.replaced.items():
        outline[name] = replace(file.entries[stored].info, name=name)
    tables = {f"{module}.weight": _table_of(base, module) for module in found.rows}
    outline |= {name: TensorInfo(name, "F32", table.shape) for name, table in tables.items() if table is not None}
    pairs = match_names(base, Outline(label, outline, base.beside)).pairs if outline else {}
    names = {theirs: ours for ours, theirs in pairs.items()}
    factors = {}
    for theirs, (module, own) in state_dict.items():
        name = names.get(theirs, "")
        if not name:
            what = f"the adapter's module {module!r} is not in the base"
            raise MergeError(
                what,
                label,
                "use the base that the adapter was trained on; if the base is quantised, name the model that it "
                "was made from",
            )
        if own.bias is not None and _bias_of(name) not in base.tensors:
            raise MergeError(
                f"the adapter has a bias for {module!r}, but the base has none",
                label,
                "use the base that the adapter was trained on",
            )
        factors[name] = own if own.experts else _oriented(own, base.tensors[name], base.config, module, label)
    rows = {names.get(f"{module}.weight", f"{module}.weight"): own for module, own in found.rows.items()}
    for table, trained in rows.items():
        _check_rows(table, trained, file, base, label)
    return Fitted(factors, {names.get(name, name): stored for name, stored in found.replaced.items()}, rows)


def _table_of(base: StateDict, module: str) -> TensorInfo | None:
    """A tensor of the base that could be the module's weight: for the shape of its outline."""
    last = module.rpartition(".")[2]
    return next((info for name, info in base.tensors.items() if f".{name}".endswith(f".{last}.weight")), None)


def _check_rows(name: str, trained: TrainedRows, file: WeightFile, base: StateDict, label: str) -> None:
    info, shape = base.tensors.get(name), file.entries[trained.stored].info.shape
    if info is None:
        raise MergeError(
            f"the adapter's table of tokens {name!r} is not in the base",
            label,
            "use the base that the adapter was trained on",
        )
    if info.shape[1:] != shape[1:] or max(trained.rows, default=0) >= info.shape[0]:
        what = f"the adapter trained rows up to {max(trained.rows, default=0)} of width {list(shape[1:])}"
        raise MergeError(
            f"{what}; the base has {name!r} of shape {list(info.shape)}",
            label,
            "use the base that the adapter was trained on",
        )


def _parameters(
    base: StateDict, module: str, several: tuple[Factors, ...], config: AdapterConfig, label: str
) -> dict[str, Factors]:
    """Parameter -> its factors: peft nests those of one module, and their names do not say which is whose."""
    targets = [target.rpartition(".") for target in config.target_parameters]
    left = [leaf for stem, _, leaf in targets if module == stem or module.endswith(f".{stem}")]
    found: dict[str, Factors] = {}
    for own in several:
        fits = {leaf: turned for leaf in left if (turned := _fit(base, module, leaf, own)) is not None}
        if len(fits) != 1:
            what = f"the adapter's parameters of {module!r} ({', '.join(left)}) cannot be distinguished by their shapes"
            what = what if fits else f"none of the base's {', '.join(left)} fits the adapter's factors of {module!r}"
            raise MergeError(what, label, "merge it into its base with peft (merge_and_unload) and use the result")
        ((leaf, turned),) = fits.items()
        left.remove(leaf)
        found[f"{module}.{leaf}"] = replace(own, transposed=turned)
    return found


def _fit(base: StateDict, module: str, leaf: str, own: Factors) -> bool | None:
    """Whether the base stores such a parameter in × out; None where the factors do not fit it."""
    last = module.rpartition(".")[2]
    shape = next((info.shape for name, info in base.tensors.items() if f".{name}".endswith(f".{last}.{leaf}")), ())
    straight = shape == own.shape
    turned = own.experts > 0 and shape == (own.shape[0], own.shape[2], own.shape[1])
    if straight and turned:  # square matrices do not tell
        return base.config.get("model_type") in _IN_BY_OUT
    return turned if straight or turned else None


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
        f"the adapter's module {module!r} has the shape {list(own.shape)}; the base has {info.dtype} "
        f"{list(info.shape)}",
        f"{label}: {info.name}",
        "use the base that the adapter was trained on, not quantised; grouped convolutions are not supported",
    )


def _bias_of(name: str) -> str:
    return name.removesuffix("weight") + "bias"
