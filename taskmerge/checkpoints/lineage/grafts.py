"""Specialists with modules the base lacks: whose names, config and processor the grafted model takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import BACKBONE, EMBEDDINGS, HEAD, component_map
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import MergeError
from taskmerge.words.modalities import config_words

_SHARED = {BACKBONE, EMBEDDINGS, HEAD}


def naming(inputs: Mapping[str, StateDict]) -> str:
    """The label of the input whose file names, and class, the output takes.

    The base's, unless a specialist is of another class and brings modules of its own (a Qwen2-Audio grafted onto
    Qwen2): only its class can hold them. Raises MergeError when two such specialists are of different classes.
    """
    base = inputs[BASE]
    base_type = base.config.get("model_type")
    grafted: dict[str, str] = {}
    for label, state_dict in inputs.items():
        own_type = state_dict.config.get("model_type")
        if base_type and own_type and own_type != base_type and _modules(state_dict) - _modules(base) - _SHARED:
            grafted[label] = str(own_type)
    if len(set(grafted.values())) > 1:
        said = " and ".join(f"{label} ({model_type})" for label, model_type in grafted.items())
        raise MergeError(
            f"{said} bring modules of their own to a {base_type}; no one class holds both",
            next_move="fuse with one of them, or graft the encoders onto an embedder (taskmerge.embedders)",
        )
    return next(iter(grafted), BASE)


def grafted_config(
    start: Mapping[str, Any], grafts: Mapping[str, tuple[Mapping[str, Any], set[str]]]
) -> dict[str, Any]:
    """config.json of the result: `start`, with what it lacks from each grafted specialist.

    grafts: label -> (its config, the components it brings). A key that `start` lacks or leaves null is taken over, and
    so is every key that speaks of a modality the specialist brings (audio_config, audio_token_id); a list of named
    tables (an embedder's towers) gets those it lacks.
    """
    config = dict(start)
    for own, components in grafts.values():
        towers = {component.split("_")[0] for component in components}
        words = {word for tower in towers for word in config_words(tower)}
        for key, value in own.items():
            if config.get(key) is None or words & set(key.split("_")):
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
    """Tables joined key by key, at every depth; where both hold a value the first one's stays."""
    for other in others:
        if isinstance(first, dict) and isinstance(other, dict):
            first = {key: merged_json(first[key], other[key]) if key in other else first[key] for key in first} | {
                key: value for key, value in other.items() if key not in first
            }
        elif first is None:
            first = other
    return first


def is_processor_file(name: str) -> bool:
    """Whether a side file describes a processor, whose parts may come from several inputs."""
    return re.fullmatch(r"(pre|video_pre)?processor_config\.json", Path(name).name) is not None


def _modules(state_dict: StateDict) -> set[str]:
    components = component_map(state_dict.tensors, state_dict.config)
    return {components.home(name) for name in components}


def brought(own: Mapping[str, Sequence[str]], homes: Mapping[str, str], base_homes: set[str]) -> dict[str, set[str]]:
    """Specialist -> components it brings that the base lacks. own: tensor -> its owners; homes: tensor -> component."""
    found: dict[str, set[str]] = {}
    for name, owners in own.items():
        if homes[name] not in base_homes | {HEAD}:
            for label in owners:
                found.setdefault(label, set()).add(homes[name])
    return found
