"""Specialists with modules the base lacks: whose names, config and processor the grafted model takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import BACKBONE, BUFFERS, EMBEDDINGS, HEAD, component_map
from taskmerge.checkpoints.lineage.classes import of_another_class, ordinary_head
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.words.modalities import config_words

_TOWERS = ("encoder", "projector", "_decoder")
_SHARED = {BACKBONE, EMBEDDINGS, HEAD, BUFFERS}


@dataclass(frozen=True)
class Naming:
    """label: the input whose file names, config and code the output takes. others: specialists of yet other classes,
    whose modules it may be unable to load."""

    label: str = BASE
    others: tuple[str, ...] = ()


def naming(inputs: Mapping[str, StateDict], overrides: Mapping[str, Sequence[str]] | None = None) -> Naming:
    """Choose the model whose file names and class the output has.

    The base's, unless a specialist is of another class and adds modules of its own (a Qwen2-Audio grafted onto
    Qwen2, a user's own class): only its class can contain them. Of several such, the one that adds most tensors.
    """
    base = inputs[BASE]
    others = [label for label in inputs if label != BASE and of_another_class(inputs[label].config, base.config)]
    if not others:
        return Naming()
    base_parts = component_map(base.tensors, base.config, overrides, strict=False)
    bring: dict[str, int] = {}
    for label in others:
        parts = component_map(inputs[label].tensors, inputs[label].config, overrides, strict=False)
        modules = {parts.home(name) for name in parts} - {base_parts.home(name) for name in base_parts} - _SHARED
        heads = [name for name in parts.names(HEAD) if not (ordinary_head(name) or "/" in name or _in(name, base))]
        if modules or len(parts.towers) > len(base_parts.towers):
            bring[label] = sum(parts.home(name) not in _SHARED for name in parts)
        elif heads:  # such as ColQwen2's, which no class of the base's has
            bring[label] = len(heads)
    if not bring:
        return Naming()
    chosen = max(bring, key=lambda label: bring[label])
    own = inputs[chosen].config
    return Naming(chosen, tuple(label for label in bring if of_another_class(inputs[label].config, own)))


def _in(name: str, base: StateDict) -> bool:
    return any(other.endswith(name) or name.endswith(other) for other in base.tensors)


def grafted_config(
    start: Mapping[str, Any], grafts: Mapping[str, tuple[Mapping[str, Any], set[str]]]
) -> dict[str, Any]:
    """Return config.json of the result: `start`, completed from each grafted specialist.

    grafts: label -> (its config, the components it brings). A key that `start` lacks or leaves null is copied, and
    so is every key that speaks of a modality the specialist brings (audio_config, audio_token_id); a list of named
    tables (an embedder's towers) gets those it lacks. Of the base, only keys that speak of such a modality are taken.
    """
    config = dict(start)
    for label, (own, components) in grafts.items():
        towers = {component.split("_")[0] for component in components}
        words = {word for tower in towers for word in config_words(tower)}
        for key, value in own.items():
            speaks = bool(words & set(key.split("_")))
            if speaks or (config.get(key) is None and label != BASE):
                config[key] = value
            elif _named_tables(value) and _named_tables(config[key]):
                known = {row["name"] for row in config[key]}
                config[key] = [*config[key], *(row for row in value if row["name"] not in known)]
    return config


def _named_tables(value: Any) -> bool:
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, Mapping) and isinstance(row.get("name"), str) for row in rows)


def side_folders(inputs: Mapping[str, StateDict], order: Iterable[str]) -> tuple[Path, ...]:
    """Folders of side files (config, processor, tokenizer): where two hold the same file, the first one's is taken."""
    folders = [inputs[label].beside.folder for label in order]
    return tuple(dict.fromkeys(folder for folder in folders if folder is not None))


def merged_json(first: Any, *others: Any) -> Any:
    """Merge tables key by key, at every depth; of two values for a key, the first is kept."""
    for other in others:
        if isinstance(first, dict) and isinstance(other, dict):
            first = {key: merged_json(first[key], other[key]) if key in other else first[key] for key in first} | {
                key: value for key, value in other.items() if key not in first
            }
        elif first is None:
            first = other
    return first


def is_processor_file(name: str) -> bool:
    """Return whether a side file describes a processor, whose parts may come from several inputs."""
    return re.fullmatch(r"(pre|video_pre)?processor_config\.json", Path(name).name) is not None


def brought(own: Mapping[str, Sequence[str]], homes: Mapping[str, str], base_homes: set[str]) -> dict[str, set[str]]:
    """Specialist -> components it brings. own: tensor the base lacks -> its owners; homes: tensor -> component."""
    found: dict[str, set[str]] = {}
    for name, owners in own.items():
        if homes[name] not in _SHARED and (homes[name] not in base_homes or homes[name].endswith(_TOWERS)):
            for label in owners:
                found.setdefault(label, set()).add(homes[name])
    return found
