"""config.json of a stacked model: its number of layers, and what it says of each layer by its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_SECTIONS = ("text_config", "llm_config", "language_config")
# Lists of the layers that are of another kind, by number.
_NUMBERS = ("mlp_only_layers", "cross_attention_layers", "full_attn_idxs", "attn_layer_indices", "attn_rms_layers")
# Numbers from which the kind of a layer follows by its place.
_BY_PLACE = (
    "sliding_window_pattern",
    "full_attention_interval",
    "first_k_dense_replace",
    "attn_layer_period",
    "expert_layer_period",
    "num_kv_shared_layers",
    "interleave_moe_layer_step",
    "no_rope_layer_interval",
)


@dataclass(frozen=True)
class Section:
    """A run of layers of one model. depth: how many layers that model has."""

    config: Mapping[str, Any]
    layers: range
    depth: int


def stacked_config(
    config: Mapping[str, Any], depth: int, sections: Sequence[Section], layers: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the config with `layers` layers taken from the sections, and notes on settings that become unknown.

    depth: the number of layers that `config` itself speaks of.
    """
    made: dict[str, Any] = dict(config)
    notes: list[str] = []
    for key in (None, *(key for key in _SECTIONS if isinstance(config.get(key), Mapping))):
        inner = config if key is None else config[key]
        parts = [_inner(section, key) for section in sections]
        renewed = _renewed(inner, depth, list(zip(parts, sections, strict=True)), layers)
        notes += [
            f"config.json has {name}: {inner[name]}, which refers to layers by number; the stack changes these numbers"
            for name in _BY_PLACE
            if isinstance(inner.get(name), int) and inner[name] and "layer_types" not in inner
        ]
        made = {**made, **renewed} if key is None else {**made, key: {**inner, **renewed}}
    return made, notes


def _inner(section: Section, key: str | None) -> Mapping[str, Any]:
    found = section.config if key is None else section.config.get(key)
    return found if isinstance(found, Mapping) else {}


def _renewed(
    config: Mapping[str, Any], depth: int, parts: Sequence[tuple[Mapping[str, Any], Section]], layers: int
) -> dict[str, Any]:
    renewed: dict[str, Any] = {key: layers for key in _COUNTS if config.get(key) == depth}
    for key, value in config.items():
        if not isinstance(value, list):
            continue
        lists = [(own.get(key), section) for own, section in parts]
        if key in _NUMBERS and all(isinstance(own, list) for own, _ in lists):
            renewed[key] = _moved(lists)
        elif "layer" in key and len(value) == depth and all(_one_each(own, section) for own, section in lists):
            renewed[key] = [own[layer] for own, section in lists if own is not None for layer in section.layers]
    return renewed


def _one_each(value: Any, section: Section) -> bool:
    return isinstance(value, list) and len(value) == section.depth


def _moved(lists: Sequence[tuple[Any, Section]]) -> list[int]:
    """New numbers of layers."""
    found, start = [], 0
    for own, section in lists:
        found += [start + layer - section.layers[0] for layer in section.layers if layer in own]
        start += len(section.layers)
    return found
