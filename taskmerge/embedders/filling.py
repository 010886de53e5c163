"""Tensors that transformers does not find in a file, found there as `fuse` finds them, and put into the live model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.reading import StoredStateDict, open_stored
from taskmerge.checkpoints.formats.table import READABLE
from taskmerge.checkpoints.lineage.names import align
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.views import ViewedStateDict, whole
from taskmerge.errors import CheckpointError, MergeError
from taskmerge.numbers.rounding import decode

_ENTRIES = 1 << 22


def stored_of(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> StoredStateDict | None:
    """Return the folder that these arguments of `from_pretrained` mean, its headers read; None without one."""
    path = arguments[0] if arguments else options.get("pretrained_model_name_or_path")
    if not isinstance(path, str | Path) or options.get("state_dict") is not None:
        return None
    folder = Path(path) / str(options.get("subfolder") or "")
    try:
        return open_stored(folder) if folder.is_dir() else None
    except CheckpointError:  # transformers' own message for what it cannot read
        return None


def is_read_by_transformers(stored: StoredStateDict) -> bool:
    """Return whether transformers finds and reads the transformer's files of this folder itself.

    It does so by their names, for formats that it knows.
    """
    files = {id(file): file for name in stored.tensors if "/" not in name for file in (stored.file_of(name),)}
    folder = stored.folder / stored.beside.module_folders.get("", "")
    called = {PurePosixPath(file.name).name for file in files.values()}
    known = any(called == {row.single} or (row.index and (folder / row.index).exists()) for row in READABLE)
    return known and not any(file.notes for file in files.values())


def filled(model: Any, told: Mapping[str, Any], stored: StoredStateDict) -> dict[str, Any]:
    """Put what `model` still lacks from its file into it, with any prefix, packing or spelling.

    Args:
        model: what `from_pretrained` made, in which what was not found is random.
        told: its loading info.
        stored: the same file, opened here.

    Returns:
        The loading info without what has been found.
    """
    own = MemoryStateDict.of_module(model)
    absent = [name for name in told["missing_keys"] if name in own.tensors]
    if not absent:
        return dict(told)
    first = {name: whole(info, name) for name, info in stored.tensors.items() if "/" not in name}
    try:
        aligned = align(own, ViewedStateDict(stored, first))
    except MergeError:  # what cannot be told apart stays missing, and is told so
        return dict(told)
    live = model.state_dict(keep_vars=True)
    found = [name for name in absent if name in aligned.state_dict.tensors]
    found = [name for name in found if aligned.state_dict.tensors[name].shape == own.tensors[name].shape]
    for name in found:
        _copy(aligned.state_dict, name, live[name])
    used = {*aligned.names.pairs.values()}
    used |= {raw for name in used if (raw := stored.stored_name(name)) is not None}
    return {
        **told,
        "missing_keys": [name for name in told["missing_keys"] if name not in found],
        "unexpected_keys": [name for name in told["unexpected_keys"] if name not in used],
    }


def _copy(state_dict: StateDict, name: str, tensor: Any) -> None:
    import torch

    info = state_dict.tensors[name]
    target = torch.empty_like(tensor.data, memory_format=torch.contiguous_format)
    flat = target.view(-1)
    for start in range(0, info.count, _ENTRIES):
        stop = min(start + _ENTRIES, info.count)
        values = state_dict.read(name, start, stop)
        values = decode(values, info.dtype) if info.format.kind.endswith("float") else np.ascontiguousarray(values)
        flat[start:stop] = torch.from_numpy(values.copy())
    tensor.data.copy_(target)
