"""Any `StateDict` written by several processes, each some of its files; on a disk or in a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.output.layout import ShardLayout, lay_out
from taskmerge.checkpoints.output.parts import LocalParts, PartsFolder
from taskmerge.checkpoints.output.record import Kind, described, new_record
from taskmerge.checkpoints.output.saving import (
    add_side_files,
    bytes_beside,
    folders_of,
    write_shards,
    write_weights,
)
from taskmerge.checkpoints.output.store_folder import StoreFolder
from taskmerge.checkpoints.output.writing import check_space
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.words.parts import Part
from taskmerge.words.places import StoreUri


@dataclass(frozen=True)
class Saving:
    """An output to be written, and its place.

    identity: equal for all parts of one output only, see `merging.identity`. extra: further files.
    made, sources: of the record, see `saving.save_state_dict`.
    """

    state_dict: StateDict
    place: Path | StoreUri
    identity: str
    shard_size: int
    made: tuple[Kind, str]
    sources: Mapping[str, StateDict]
    extra: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False

    @property
    def shards(self) -> list[ShardLayout]:
        """All files of weights."""
        return lay_out(self.state_dict.tensors.values(), self.shard_size, self.state_dict.beside.module_folders)

    @property
    def inputs(self) -> list[Path]:
        """The folders that are read."""
        return folders_of((self.state_dict, *self.sources.values()))

    def produce(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        """See `segments.Produce`."""
        out[:] = self.state_dict.read(name, start, stop)


def write_part(saving: Saving, part: Part) -> int:
    """Write a part's files, those that are not finished; how many it has. Raises OutputError."""
    shards = part.share(saving.shards)
    if isinstance(saving.place, StoreUri):
        output: LocalParts | StoreFolder = StoreFolder(
            saving.place, saving.identity, saving.fresh, saving.inputs, part=part
        )
    else:
        output = LocalParts(saving.place, saving.identity, part, saving.inputs, saving.fresh)
        check_space(saving.place, sum(shard.size for shard in shards), len(shards))
    with output:
        output.take_up([shard.file for shard in shards])
        write_weights(output, shards, saving.produce)
    return len(shards)


def write_whole(saving: Saving, finish: bool) -> None:
    """Write everything and publish it; finish: all weight files were written by parts, and are checked.

    Raises OutputError.
    """
    shards = saving.shards
    expected = shards if finish else []
    if isinstance(saving.place, StoreUri):
        output: PartsFolder | StoreFolder = StoreFolder(
            saving.place, saving.identity, saving.fresh, saving.inputs, expected=expected
        )
    else:
        output = PartsFolder(saving.place, saving.identity, saving.fresh, saving.inputs).expect(expected)
        check_space(saving.place, bytes_beside(saving.state_dict.beside), 0)
    with output:
        write_shards(output, shards, saving.produce)
        if not saving.state_dict.write_side_files(output, None):
            add_side_files(output, saving.state_dict.beside, None)
        for name, text in saving.extra.items():
            output.add_text(name, text)
        output.publish(new_record(*saving.made, described(saving.sources)))
