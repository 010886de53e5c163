"""A task vector as a PEFT adapter: LoRA factors for matrices, the small rest whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.header import build_header
from taskmerge.checkpoints.formats.table import SAFETENSORS
from taskmerge.checkpoints.lineage.classes import class_name
from taskmerge.checkpoints.lineage.conversion import memory_modules
from taskmerge.checkpoints.output.layout import METADATA, ShardLayout
from taskmerge.checkpoints.output.record import described, new_record
from taskmerge.checkpoints.output.saving import folders_of
from taskmerge.checkpoints.output.writing import OutputFolder, check_space
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.checkpoints.vectors.compressed import low_rank_factors
from taskmerge.errors import UsageError, few
from taskmerge.numbers.rounding import decode, encode

Reader = Callable[[str, int, int], np.ndarray]
_CHUNK = 4 << 20
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Extraction:
    """The adapter that was written, with its errors. relative_error: ‖d − d'‖ / ‖d‖ over the complete task vector.

    errors: the relative error of each delta. left_out: tensors that an adapter cannot contain (packed experts, tensors
    under no module's name); their deltas are lost.
    """

    path: Path
    bytes: int
    relative_error: float
    errors: Mapping[str, float]
    left_out: tuple[str, ...]


@dataclass
class _Adapter:
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    biases: bool = False
    transposed: bool = False


def extract_lora(
    base: StateDict,
    read_delta: Reader,
    shapes: Mapping[str, tuple[int, ...]],
    out: Path,
    rank: int,
    *,
    seed: int = 0,
    base_name: str | None = None,
    fresh: bool = False,
    sources: Mapping[str, StateDict] | None = None,
) -> Extraction:
    """Write the deltas as the PEFT adapter folder `out`, to be loaded on the base.

    read_delta: (name, start, stop) -> float64 entries. Matrices, convolutions and token tables become factors of at
    most `rank` (`low_rank_factors`); vectors (norms, biases) are saved whole; unchanged tensors are left away. One
    matrix at a time is held in memory. base_name: what adapter_config.json calls the base. sources: what the deltas are
    made of; the base by default. Raises UsageError for a rank below 1, OutputError as writing does.
    """
    if rank < 1:
        raise UsageError(f"rank {rank} is below 1", next_move="give for example --lora 16")
    sources = {base.label: base} if sources is None else sources
    output = OutputFolder(out, identity="", fresh=fresh, inputs=folders_of(sources.values()))
    squares = {name: _square(read_delta, name, math.prod(shape)) for name, shape in shapes.items()}
    changed = [name for name in shapes if squares[name] > 0]
    memory = memory_modules(base.tensors, base.config)
    adapter, lost, left_out = _Adapter(), dict.fromkeys(changed, 0.0), []
    for name in changed:
        parameter, kind = memory.get(name, ("", ""))
        module, _, leaf = parameter.rpartition(".")
        if not module or leaf not in ("weight", "bias"):
            left_out.append(name)
            lost[name] = squares[name]
        elif len(shapes[name]) >= 2 and leaf == "weight":
            lost[name] = _factor(adapter, module, kind, partial(read_delta, name), shapes[name], rank, seed)
        else:
            _keep_whole(adapter, base, name, module, leaf, read_delta, shapes[name])
    if not adapter.stored:
        what = f"an adapter cannot represent any of the deltas; left out: {few(left_out)}"
        raise UsageError(what, next_move="write a task vector instead: leave out --lora")
    _name_biases(adapter)
    size = _write(output, adapter, _config(adapter, base, rank, base_name), sources, class_name(base.config))
    total = sum(squares.values())
    errors = {name: math.sqrt(lost[name] / squares[name]) for name in changed}
    return Extraction(out, size, math.sqrt(sum(lost.values()) / total) if total else 0.0, errors, tuple(left_out))


def _square(read_delta: Reader, name: str, count: int) -> float:
    chunks = (read_delta(name, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
    return float(sum(np.square(chunk).sum() for chunk in chunks))


def _factor(
    adapter: _Adapter,
    module: str,
    kind: str,
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, ...],
    rank: int,
    seed: int,
) -> float:
    """Adds the factors of one delta; returns the square of what they lose."""
    values = read(0, math.prod(shape)).reshape(shape[0], -1)
    own = min(rank, *values.shape)
    left, right = (encode(one, "F32") for one in low_rank_factors(values, own, seed))
    adapter.ranks[module] = own
    if kind == "embedding":  # tokens × width = Aᵀ Bᵀ
        adapter.stored[f"{module}.lora_embedding_A"] = left.T
        adapter.stored[f"{module}.lora_embedding_B"] = right.T
    elif kind == "conv1d":  # in × out = (B A)ᵀ
        adapter.transposed = True
        adapter.stored[f"{module}.lora_A.weight"] = left.T
        adapter.stored[f"{module}.lora_B.weight"] = right.T
    else:
        adapter.stored[f"{module}.lora_A.weight"] = right.reshape(own, *shape[1:])
        adapter.stored[f"{module}.lora_B.weight"] = left.reshape(shape[0], own, *(1 for _ in shape[2:]))
    return float(np.square(values - decode(left, "F32") @ decode(right, "F32")).sum())


def _keep_whole(
    adapter: _Adapter, base: StateDict, name: str, module: str, leaf: str, read_delta: Reader, shape: tuple[int, ...]
) -> None:
    moved = decode(base.read(name), base.tensors[name].dtype) + read_delta(name, 0, math.prod(shape))
    adapter.stored[f"{module}.{leaf}"] = encode(moved, "F32").reshape(shape)
    if leaf == "bias":
        adapter.biases = True
    else:
        adapter.whole.append(module)


def _name_biases(adapter: _Adapter) -> None:
    """peft keeps the bias of an adapted layer under its base_layer."""
    for name in [name for name in adapter.stored if name.endswith(".bias")]:
        module = name.removesuffix(".bias")
        if module in adapter.ranks:
            adapter.stored[f"{module}.base_layer.bias"] = adapter.stored.pop(name)


def _config(adapter: _Adapter, base: StateDict, rank: int, base_name: str | None) -> dict[str, Any]:
    ranks = {module: own for module, own in adapter.ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name or base.label,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(adapter.ranks),
        "modules_to_save": sorted(adapter.whole) or None,
        "bias": "all" if adapter.biases else "none",
        "fan_in_fan_out": adapter.transposed,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "task_type": None,
    }


def _write(
    output: OutputFolder,
    adapter: _Adapter,
    config: Mapping[str, Any],
    sources: Mapping[str, StateDict],
    architecture: str,
) -> int:
    infos = [TensorInfo(_PREFIX + name, "F32", values.shape) for name, values in sorted(adapter.stored.items())]
    header, entries = build_header(infos, METADATA)
    layout = ShardLayout(SAFETENSORS.adapter, header, entries, tuple(info.name for info in infos))
    check_space(output.final, layout.size)
    with output:
        with output.shard(layout) as writer:
            for name in layout.names:
                writer.write(np.ascontiguousarray(adapter.stored[name.removeprefix(_PREFIX)]).reshape(-1))
        output.add_text("adapter_config.json", json.dumps(config, indent=2) + "\n")
        output.publish(new_record("adapter", "extract", described(sources), architecture=architecture))
    return layout.size
