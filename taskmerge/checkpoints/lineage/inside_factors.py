"""LoRA factors inside a model's own file: `q_proj.base_layer.weight` next to `q_proj.lora_A.speech.weight`.

What the model computes is base_layer + s·B·A. A sum of factors is not the factor of a sum, so they are never merged one
by one: they must agree in all inputs, or the model is folded first, where its file says s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import Entry
from taskmerge.checkpoints.lineage.adapter_config import AdapterConfig, read_config
from taskmerge.checkpoints.lineage.low_rank import AdaptedStateDict, Factors
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.views import ViewedStateDict, whole
from taskmerge.errors import CheckpointError, few

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(?P<adapter>[^.]+))?(?:\.weight)?"
)
_INNER = ".base_layer."
_PEFT = "base_model.model."


def factor_names(names: Iterable[str]) -> frozenset[str]:
    """Return the LoRA factors among a model's tensors."""
    return frozenset(name for name in names if _FACTOR.fullmatch(name))


@dataclass(frozen=True)
class _Pair:
    """Names of A and B of one weight."""

    down: str = ""
    up: str = ""


def folded(state_dict: StateDict) -> StateDict:
    """Merge the factors in a model's file into their weights; return the model itself without any.

    Raises CheckpointError where there are several adapters, or the file does not say by what they are multiplied.
    """
    names = factor_names(state_dict.tensors)
    if not names:
        return state_dict
    place, pairs = state_dict.label, _pairs(state_dict, names)
    adapters = sorted({adapter for adapter, _ in pairs})
    if len(adapters) > 1:
        raise CheckpointError(
            f"contains the LoRA factors of several adapters: {few(adapters)}",
            place,
            "merge the one that you want into the weights first, or name a base that contains the same factors",
        )
    config = _settings(state_dict, adapters[0])
    factors: dict[str, Factors] = {}
    used: dict[str, Entry] = {}
    for (_, module), pair in pairs.items():
        down, up = state_dict.tensors[pair.down], state_dict.tensors[pair.up]
        target = f"{module}.weight".removeprefix(_PEFT)
        factors[target] = Factors(pair.down, pair.up, down.shape, up.shape, config.scaling(module))
        used |= {name: Entry(state_dict.tensors[name], 0, 0) for name in (pair.down, pair.up)}
    views = {
        plain: whole(info, plain)
        for name, info in state_dict.tensors.items()
        if name not in names
        for plain in (name.replace(_INNER, ".").removeprefix(_PEFT),)
    }
    base = ViewedStateDict(state_dict, views)
    for target, own in factors.items():
        if target not in base.tensors or base.tensors[target].shape != own.shape:
            raise CheckpointError(
                f"the LoRA factors of {target!r} do not fit it",
                place,
                "merge the factors into the weights and save the model again",
            )
    model = AdaptedStateDict(base, _Inside(state_dict, used), factors, {}, place)
    model.beside = base.beside
    return model


class _Inside(WeightFile):
    """The factors of a model, as an adapter's file offers them."""

    def __init__(self, state_dict: StateDict, entries: Mapping[str, Entry]) -> None:
        super().__init__("factors", Path(), entries=entries)
        self._weights = state_dict

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """See `WeightFile.read`."""
        return self._weights.read(name, start, stop)


def _pairs(state_dict: StateDict, names: Iterable[str]) -> dict[tuple[str, str], _Pair]:
    """(adapter, module) -> its A and B."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        match = _FACTOR.fullmatch(name)
        assert match is not None
        if match["part"] not in ("A", "B"):
            raise CheckpointError(f"{name!r} among its weights is not supported", state_dict.label, _FIRST)
        found.setdefault((match["adapter"] or "default", match["module"]), {})[match["part"]] = name
    if odd := [module for (_, module), own in found.items() if len(own) < 2]:
        raise CheckpointError(
            f"{odd[0]!r} has one LoRA factor without the other", state_dict.label, "get the file again"
        )
    return {key: _Pair(own["A"], own["B"]) for key, own in found.items()}


_FIRST = "merge them first: peft's merge_and_unload(), then save_pretrained"


def _settings(state_dict: StateDict, adapter: str) -> AdapterConfig:
    """Rank and alpha of the factors: from the config (`speech_lora`, as Phi-4-multimodal says it), or from
    adapter_config.json next to the weights."""
    said: Any = state_dict.config.get(f"{adapter}_lora")
    if isinstance(said, Mapping) and all(isinstance(said.get(key), int | float) for key in ("r", "lora_alpha")):
        return AdapterConfig(int(said["r"]), float(said["lora_alpha"]))
    folder = state_dict.beside.folder
    if folder is not None and (folder / "adapter_config.json").is_file():
        return read_config(folder / "adapter_config.json")
    raise CheckpointError(
        f"contains LoRA factors among its weights ({adapter}), but does not state the factor of their product",
        state_dict.label,
        f"{_FIRST}; or put its adapter_config.json next to the weights",
    )
