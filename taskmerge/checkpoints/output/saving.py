"""Streams any `StateDict` into a new model folder."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.reading import PROMPTS
from taskmerge.checkpoints.output.ahead import in_order
from taskmerge.checkpoints.output.layout import ShardLayout, index_files, lay_out
from taskmerge.checkpoints.output.record import Kind, described, new_record
from taskmerge.checkpoints.output.segments import Part, Produce, segments
from taskmerge.checkpoints.output.shard_writer import BUFFER, ShardWriter
from taskmerge.checkpoints.output.side_files import side_files, tokenizer_files
from taskmerge.checkpoints.output.writing import OutputFolder, check_space
from taskmerge.checkpoints.state_dict import Beside, Output, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import UsageError, did_you_mean
from taskmerge.numbers.dtypes import OUTPUT_DTYPES
from taskmerge.numbers.rounding import decode, encode
from taskmerge.words.sizes import parse_size

CHUNK = 4 << 20
_LEAST_BUFFER = 1 << 17
AHEAD = 3  # while one chunk is being measured or handed over, others keep all cores busy
MEMORY = 1 << 30
SHARD_SIZE = 5_000_000_000

Progress = Callable[[int], None]


def stored_format(info: TensorInfo, dtype: str | None) -> TensorInfo:
    """Return the header entry of a tensor in an output of torch dtype `dtype` (None: its own)."""
    if dtype is None or not info.format.mergeable:
        return info
    return TensorInfo(info.name, output_dtype(dtype), info.shape)


def output_dtype(name: str) -> str:
    """Return the safetensors name of an output dtype. Raises UsageError for one that cannot be written."""
    if name not in OUTPUT_DTYPES:
        raise UsageError(f"unknown output dtype {name!r}", next_move=did_you_mean(name, OUTPUT_DTYPES))
    return OUTPUT_DTYPES[name]


def save_state_dict(
    state_dict: StateDict,
    path: str | Path,
    *,
    dtype: str | None = None,
    shard_size: int | str = SHARD_SIZE,
    fresh: bool = False,
    extra: Mapping[str, str | Callable[[], str]] | None = None,
    made: tuple[Kind, str] = ("model", "save"),
    sources: Mapping[str, StateDict] | None = None,
) -> Path:
    """Write `state_dict` into folder `path`, completely or not at all; a failure leaves nothing behind.

    Side files come from ``state_dict.write_side_files``, or else from the folder of the weights. fresh: replace
    what was made here. extra: file name -> text of further files, or what makes it once the weights are written. made:
    what kind of folder its record says this is, and what made it. sources: what it is made of, where the state dict
    does not say. Returns the path. Raises OutputError, UsageError, and what reading raises.
    """
    if dtype is not None:
        state_dict = state_dict.in_dtype(dtype)
    infos = {name: stored_format(info, dtype) for name, info in state_dict.tensors.items()}
    shards = lay_out(infos.values(), parse_size(shard_size), state_dict.beside.module_folders)

    def produce(name: str, start: int, stop: int, out: np.ndarray) -> None:
        out[:] = converted(state_dict.read(name, start, stop), state_dict.tensors[name].dtype, infos[name].dtype)

    sources = state_dict.sources() if sources is None else sources
    output = OutputFolder(path, identity="", fresh=fresh, inputs=folders_of((state_dict, *sources.values())))
    check_space(output.final, sum(shard.size for shard in shards) + bytes_beside(state_dict.beside), len(shards))
    with output:
        try:
            write_shards(output, shards, produce)
            if not state_dict.write_side_files(output, dtype):
                add_side_files(output, state_dict.beside, dtype)
            for name, text in (extra or {}).items():
                output.add_text(name, text if isinstance(text, str) else text())
            output.publish(new_record(*made, described(sources)))
        except BaseException:
            output.abandon()
            raise
    return Path(path)


def folders_of(state_dicts: Iterable[StateDict]) -> list[Path]:
    """Return the local folders from which these state dicts are read."""
    return list(dict.fromkeys(folder for one in state_dicts for folder in one.beside.folders))


def converted(stored: np.ndarray, dtype: str, target: str) -> np.ndarray:
    """Entries of format `dtype` in format `target`, rounded once; the same array when nothing changes."""
    return stored if dtype == target else encode(decode(stored, dtype), target)


def write_shards(
    output: NewFolder,
    shards: list[ShardLayout],
    produce: Produce,
    progress: Progress | None = None,
    memory: int = MEMORY,
    ahead: int = AHEAD,
) -> None:
    """Write every shard that is not finished yet, then the indexes; see `write_weights`."""
    write_weights(output, shards, produce, progress, memory, ahead)
    for name, text in index_files(shards).items():
        output.add_text(name, text)


class Shards(Protocol):
    """The destination of weight files."""

    @property
    def finished(self) -> Mapping[str, str]:
        """The sha256 of each finished file, by name."""

    def shard(self, layout: ShardLayout, size: int = BUFFER) -> AbstractContextManager[ShardWriter]:
        """Open a new weight file of this layout for writing."""


class NewFolder(Shards, Output, Protocol):
    """The destination of a complete model."""


def write_weights(
    output: Shards,
    shards: Iterable[ShardLayout],
    produce: Produce,
    progress: Progress | None = None,
    memory: int = MEMORY,
    ahead: int = AHEAD,
) -> None:
    """Write every shard that is not finished yet, buffer after buffer.

    produce: see `Produce`; called from several threads. progress: called with bytes written. memory: bytes to stay
    within; seven buffers are under way at once, and what fills them needs some too. ahead: buffers filled at a time.
    """
    size = min(BUFFER, max(_LEAST_BUFFER, memory // 32 // mmap.PAGESIZE * mmap.PAGESIZE))
    for shard in shards:
        if shard.file in output.finished:
            if progress:
                progress(shard.size)
            continue
        with output.shard(shard, size) as writer:

            def filled(segment: list[Part]) -> tuple[np.ndarray, int]:
                buffer, count = writer.take(), 0
                for part in segment:
                    part.fill(buffer[count : count + part.stop - part.start], produce)
                    count += part.stop - part.start
                return buffer, count

            for buffer, count in in_order(filled, segments(shard, size), ahead):
                writer.put(buffer, count)
                if progress:
                    progress(count)


def bytes_beside(beside: Beside) -> int:
    """Sum the bytes of the files that `add_side_files` copies."""
    names = side_files(beside.folder, beside.module_folders.values()) if beside.folder is not None else []
    return sum((beside.folder / name).stat().st_size for name in names) if beside.folder is not None else 0


def add_side_files(output: Output, beside: Beside, dtype: str | None) -> None:
    """Copy config, tokenizer and processor files; write config.json and prompts if they differ from the folder's."""
    folder, modules = beside.folder, beside.module_folders
    inside = modules.get("", "")
    found = {name: folder / name for name in side_files(folder, modules.values())} if folder is not None else {}
    own_tokenizer = tokenizer_files(beside.own_tokenizer, inside) if beside.own_tokenizer is not None else {}
    copied = {name: path for name, path in (found | own_tokenizer).items() if path is not None}
    for name, path in copied.items():
        output.add_copy(name, path)
    table = dict(beside.config)
    if table and dtype is not None:
        table["dtype" if "torch_dtype" not in table else "torch_dtype"] = dtype
    for name, own in ((str(PurePosixPath(inside, "config.json")), table), (PROMPTS, dict(beside.prompts))):
        if own and (name not in copied or read_json(copied[name]) != own):
            output.add_text(name, json.dumps(own, indent=2) + "\n")
