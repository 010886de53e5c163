"""PEFT adapters as specialists: a LoRA, rsLoRA or DoRA folder on a base, seen as the adapted model's weights.

Nothing full-size is written: `low_rank.AdaptedStateDict` computes entries when they are read. The rules are those of
peft (adapter_config.json and adapter_model.safetensors); what is not known here is refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import is_token_table
from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.folders import weight_files
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.formats.reading import PROMPTS, read_prompts
from taskmerge.checkpoints.formats.table import READABLE, SAFETENSORS, open_file
from taskmerge.checkpoints.hub import HubPlace, locate, open_snapshot
from taskmerge.checkpoints.lineage.adapter_config import read_config
from taskmerge.checkpoints.lineage.adapter_tensors import AdapterTensors, fitted, sorted_out
from taskmerge.checkpoints.lineage.experts import pack_experts
from taskmerge.checkpoints.lineage.heads import with_own_head
from taskmerge.checkpoints.lineage.low_rank import AdaptedStateDict
from taskmerge.checkpoints.lineage.overlay import overlaid
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import CheckpointError

CONFIG = "adapter_config.json"
TRAINED_BESIDE = "non_lora_trainables.bin"
"""Tensors that LLaVA's trainer and its successors save in addition to the adapter: projectors, embeddings."""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter and no model of its own; a config.json may be the base's."""
    if not (folder / CONFIG).is_file():
        return False
    return {row.adapter for row in READABLE}.issuperset(weight_files(folder, required=False).names)


def base_of(folder: Path) -> str | None:
    """Return the base that an adapter's config states. Raises CheckpointError for settings that are not valid."""
    table: dict[str, Any] = read_json(folder / CONFIG, dict[str, Any])
    named = table.get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def adapted(base: StateDict, adapter: str | Path, relative_to: Path | None = None) -> StateDict:
    """Return the weights of `base` with the adapter folder or hub repository `adapter` applied at full strength.

    Tensors that were trained in addition to it are applied too (`non_lora_trainables.bin`).
    """
    folder, file = _open(adapter, relative_to)
    label, place = f"{base.label} + {adapter}", str(folder / file.name)
    if not file.entries:
        raise CheckpointError(
            "contains no tensors: the adapter changes nothing",
            place,
            "save it again with the trainer that made it; DeepSpeed ZeRO-3 must gather the weights first",
        )
    config = read_config(folder / CONFIG)
    found = sorted_out(file, config, place)
    base = _with_head(_packed_as(base, found), found)
    own = fitted(base, file, config, found, label)
    tokenizer = folder if (folder / "tokenizer.json").is_file() else None
    prompts = read_prompts(folder / PROMPTS)
    model = AdaptedStateDict(base, file, own.factors, own.replaced, label, tokenizer, prompts, own.rows)
    beside = folder / TRAINED_BESIDE
    if not beside.is_file():
        return model
    check_link(beside, folder)
    return overlaid(model, [beside])


def _open(adapter: str | Path, relative_to: Path | None) -> tuple[Path, WeightFile]:
    place = locate(str(adapter), relative_to)
    if isinstance(place, HubPlace):
        snapshot = open_snapshot(place)
        name = SAFETENSORS.adapter
        if name not in snapshot.weight_files:
            raise CheckpointError(
                f"{name} is missing in this repository", str(place), "give the repository of a PEFT adapter"
            )
        return snapshot.folder, open_file(name, snapshot.fetch(name))
    there = [row.adapter for row in READABLE if (place / row.adapter).is_file()]
    file_name = there[0] if there else SAFETENSORS.adapter
    for name in (CONFIG, file_name):
        if not (place / name).is_file():
            raise CheckpointError(
                f"{name} is missing: not a PEFT adapter folder",
                str(place),
                "give a folder that peft's save_pretrained wrote",
            )
        check_link(place / name, place)
    return place, open_file(file_name, place / file_name)


def _packed_as(base: StateDict, found: AdapterTensors) -> StateDict:
    """The base, its experts in one tensor a layer where the adapter is of these."""
    leaves = ("gate_up_proj", "down_proj")
    if not found.parameters or any(name.endswith(leaves) for name in base.tensors):
        return base
    return pack_experts(base)


def _with_head(base: StateDict, found: AdapterTensors) -> StateDict:
    """The base, with a head of its own where the adapter trains one of two tied tensors, head or table of tokens: what
    is added to one is not added to the other."""
    trained = [*(f"{module}.weight" for module in found.modules), *found.replaced]
    heads = [name for name in trained if name.split(".")[-2:] == ["lm_head", "weight"]]
    if not heads and not any(is_token_table(name) for name in trained):
        return base
    untied = with_own_head(base, heads[0] if heads else None)
    if untied is not base:
        what = "head" if heads else "table of tokens"
        said = f"the adapter trains only the {what} of two tensors that the base ties: the result gets a separate head"
        untied.beside = replace(untied.beside, notes=(*base.beside.notes, said))
    return untied
