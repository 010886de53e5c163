"""Very many short texts, held as their bytes: a Python string of ten letters takes sixty bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class PackedTexts(Sequence[str]):
    """A sequence of texts that takes their UTF-8 bytes and eight more each. Equal to any sequence of the same texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        content, ends = bytearray(), array("q")
        for text in texts:
            content += text.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        self._set(bytes(content), np.frombuffer(ends, dtype=np.int64) if ends else np.empty(0, np.int64))

    def _set(self, content: bytes, ends: np.ndarray) -> None:
        self._content = content
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        number = range(len(self))[key]
        start = int(self._ends[number - 1]) if number else 0
        return self._content[start : int(self._ends[number])].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield self._content[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:3])
        return f"PackedTexts([{shown}{', …' if len(self) > 3 else ''}])"
