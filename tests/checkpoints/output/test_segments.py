"""Files made segment by segment, ahead and in order: the bytes are those of the whole."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from taskmerge.checkpoints.output.ahead import in_order
from taskmerge.checkpoints.output.layout import lay_out
from taskmerge.checkpoints.output.segments import segments
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.merging.once import Once
from taskmerge.numbers.dtypes import DTYPES

COUNTS = {"F64": 700, "F32": 1_001, "BF16": 3, "I8": 9_999, "BOOL": 1}


@pytest.mark.parametrize("size", [1 << 12, 1 << 13, 1 << 20])
def test_segments_are_the_file(size: int) -> None:
    (shard,) = lay_out([TensorInfo(f"t.{dtype}", dtype, (count,)) for dtype, count in COUNTS.items()], 10**9, {"": ""})
    rng = np.random.default_rng(0)
    whole = {info.info.name: rng.integers(0, 2, info.stop - info.start, np.uint8) for info in shard.entries}

    def produce(name: str, start: int, stop: int, out: np.ndarray) -> None:
        storage = DTYPES[name.removeprefix("t.")].storage
        assert out.dtype == storage and out.shape == (stop - start,)
        out[:] = whole[name].view(storage)[start:stop]

    made = []
    for segment in segments(shard, size):
        lengths = [part.stop - part.start for part in segment]
        buffer = np.full(sum(lengths), 255, np.uint8)
        for part, end in zip(segment, np.cumsum(lengths), strict=True):
            part.fill(buffer[end - (part.stop - part.start) : end], produce)
        made.append(buffer.tobytes())
    assert {len(piece) for piece in made[:-1]} <= {size}
    assert b"".join(made) == shard.header + b"".join(whole[name].tobytes() for name in shard.names)


def test_a_segment_that_cuts_an_entry() -> None:
    (shard,) = lay_out([TensorInfo("t.F64", "F64", (100,))], 10**9, {"": ""})
    values = np.arange(100.0)
    made = b""
    for segment in segments(shard, 75):
        for part in segment:
            buffer = np.empty(part.stop - part.start, np.uint8)
            part.fill(buffer, lambda _, start, stop, out: np.copyto(out, values[start:stop]))
            made += buffer.tobytes()
    assert made == shard.header + values.tobytes()


def test_results_come_in_order_and_errors_in_their_turn() -> None:
    later = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0:
            assert later.wait(10)
        later.set()
        if item == 3:
            raise ValueError("the third")
        return item

    got = in_order(slow_first, range(100), 2)
    assert [next(got) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(got)


def test_once_for_all_who_ask_and_failures_too() -> None:
    calls: list[str] = []
    once: Once[str, int] = Once(2)

    def made() -> int:
        calls.append("a")
        return 1

    assert [once.get("a", made) for _ in range(2)] == [1, 1] and calls == ["a"]
    for key in ("b", "c"):
        once.get(key, lambda: 0)
    assert once.get("a", lambda: 2) == 2, "the oldest is forgotten"
    with pytest.raises(ZeroDivisionError):
        once.get("d", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        once.get("d", lambda: 1)
