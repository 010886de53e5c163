"""One weight file cut into segments of equal size, each of which can be made by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.tensors import TensorInfo

Produce = Callable[[str, int, int, np.ndarray], None]
"""(name, start, stop, out): puts entries [start, stop) of an output tensor into `out`, 1-D, of its storage dtype; of
formats of less than a byte the packed bytes, all of them."""


@dataclass(frozen=True)
class Part:
    """Bytes [start, stop) of one tensor of the output, or of the header (its bytes in place of a tensor's info)."""

    name: str
    source: TensorInfo | bytes
    start: int
    stop: int

    def fill(self, target: np.ndarray, produce: Produce) -> None:
        """Write the part's bytes, in place if complete aligned entries are wanted. target: uint8 (stop - start,)."""
        if isinstance(self.source, bytes):
            target[:] = np.frombuffer(self.source, np.uint8)[self.start : self.stop]
            return
        size, storage = self.source.format.size, self.source.format.storage
        if storage is not None and self.start % size == 0 and self.stop % size == 0:
            entries = target.view(storage)
            if entries.flags.aligned:
                produce(self.name, self.start // size, self.stop // size, entries)
                return
        first, last = (self.start // size, -(-self.stop // size)) if storage is not None else (0, self.source.count)
        count = last - first if storage is not None else self.source.nbytes
        made = np.empty(count, storage or np.uint8)
        produce(self.name, first, last, made)
        skipped = self.start - first * size
        target[:] = made.view(np.uint8)[skipped : skipped + target.size]


def segments(shard: ShardLayout, size: int) -> Iterator[list[Part]]:
    """Yield the segments of the file between multiples of `size`: the parts of each, in order."""
    waiting: list[Part] = []
    room = size
    for part in _parts(shard):
        start = part.start
        while start < part.stop:
            stop = min(start + room, part.stop)
            waiting.append(Part(part.name, part.source, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield waiting
                waiting, room = [], size
    if waiting:
        yield waiting


def _parts(shard: ShardLayout) -> Iterator[Part]:
    yield Part("", shard.header, 0, len(shard.header))
    for name, entry in zip(shard.names, shard.entries, strict=True):
        yield Part(name, entry.info, 0, entry.stop - entry.start)
