"""The position of every byte of the output, known before the first one is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taskmerge.checkpoints.formats.header import Entry, build_header
from taskmerge.checkpoints.formats.table import SAFETENSORS
from taskmerge.checkpoints.tensors import TensorInfo

METADATA = {"format": "pt"}


@dataclass(frozen=True)
class ShardLayout:
    """One file of the output. file: relative to the output folder. names: the output tensor name of each entry (an
    entry of a module folder is stored without its ``2_Dense/``). header: the exact leading bytes."""

    file: str
    header: bytes
    entries: tuple[Entry, ...]
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.entries[-1].stop if self.entries else len(self.header)


_NUMBER = re.compile(r"([0-9]+)")
_DIGITS = 18


def natural(name: str) -> list[str]:
    """Sort key that puts layer 2 before layer 10. Longer numbers than of 18 digits are text, after the others."""
    pieces = _NUMBER.split(name)
    pieces[1::2] = [piece.zfill(_DIGITS) if len(piece) <= _DIGITS else f"~{piece}" for piece in pieces[1::2]]
    return pieces


def lay_out(tensors: Iterable[TensorInfo], shard_size: int, modules: Mapping[str, str]) -> list[ShardLayout]:
    """Split the output into files of at most `shard_size` bytes of tensors (a larger tensor gets its own file).

    Tensors are taken in natural order of their names, so the layout does not depend on the order of any input;
    within a file the widest formats come first, so that all stay aligned. modules: see `Beside.module_folders`.
    """
    by_module: dict[str, list[TensorInfo]] = {module: [] for module in modules}
    for info in sorted(tensors, key=lambda info: natural(info.name)):
        module = info.name.rpartition("/")[0]
        by_module[module if module in by_module else ""].append(info)
    shards = []
    for module, infos in by_module.items():
        if infos:
            shards += _lay_out_module(module, modules[module], infos, shard_size)
    return shards


def _lay_out_module(module: str, folder: str, infos: list[TensorInfo], shard_size: int) -> list[ShardLayout]:
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in infos:
        size = info.nbytes
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += size
    total = len(groups)
    shards = []
    for number, group in enumerate(groups, 1):
        name = SAFETENSORS.shard(number, total)
        ordered = sorted(group, key=lambda info: -info.format.bits)  # stable: natural order within one format
        prefix = f"{module}/" if module else ""
        stored = ordered
        if prefix:
            stored = [TensorInfo(info.name.removeprefix(prefix), info.dtype, info.shape) for info in ordered]
        header, entries = build_header(stored, METADATA)
        file = f"{folder}/{name}" if folder else name
        shards.append(ShardLayout(file, header, entries, tuple(info.name for info in ordered)))
    return shards


def index_files(shards: Iterable[ShardLayout]) -> dict[str, str]:
    """Path -> text of the index of each folder whose tensors are in more than one file."""
    folders: dict[str, list[ShardLayout]] = {}
    for shard in shards:
        folders.setdefault(shard.file.rpartition("/")[0], []).append(shard)
    texts = {}
    for folder, group in folders.items():
        if len(group) < 2:
            continue
        weight_map = {entry.info.name: shard.file.rpartition("/")[2] for shard in group for entry in shard.entries}
        total = sum(entry.info.nbytes for shard in group for entry in shard.entries)
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        path = f"{folder}/{SAFETENSORS.index}" if folder else SAFETENSORS.index
        texts[path] = json.dumps(table, indent=2) + "\n"
    return texts
