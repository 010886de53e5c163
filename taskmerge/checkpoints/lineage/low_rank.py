"""Weights of a model with low-rank adapters applied, computed entry range by entry range.

LoRA (arXiv 2106.09685): W' = W + s·B·A.  rsLoRA (2312.03732) differs in s only.  DoRA (2402.09353):
W' = m · (W + s·B·A) / ‖W + s·B·A‖, the norm of each output's weights.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.numbers.rounding import decode, encode

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Factors:
    """The low-rank update of one weight.

    down, up: stored names of A (rank, in, …) and B (out, rank, …); scaling: s.
    magnitude: stored name of DoRA's m, one number per output.  bias: stored name of B's bias.
    transposed: the weight is stored in × out.  embedding: A and B belong to a token table, tokens × width.
    experts: of a parameter with the weights of this number of experts, (experts, out, in): A stores their ranks one
    expert after another, B one rank after another.
    """

    down: str
    up: str
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    scaling: float
    magnitude: str | None = None
    bias: str | None = None
    transposed: bool = False
    embedding: bool = False
    experts: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight it adapts: (out, in, …), for a table (tokens, width)."""
        if self.embedding:
            return self.down_shape[1], self.up_shape[0]
        if self.experts:
            return self.experts, self.up_shape[0], self.down_shape[1]
        return self.up_shape[0], *self.down_shape[1:]


@dataclass(frozen=True)
class TrainedRows:
    """Rows of a table of tokens that an adapter trained. stored: name of their values, one row each; rows: where."""

    stored: str
    rows: tuple[int, ...]


class AdaptedStateDict(StateDict):
    """`StateDict` of a base with adapters applied.

    factors: base's tensor name -> factors.  replaced: name -> the adapter's stored tensor that replaces it.
    rows: table of tokens -> the rows of it that the adapter trained.
    tokenizer: folder of the tokenizer, when the adapter brings its own. prompts: as in `Beside`, when it brings them.
    """

    def __init__(
        self,
        base: StateDict,
        adapter: WeightFile,
        factors: Mapping[str, Factors],
        replaced: Mapping[str, str],
        label: str,
        tokenizer: Path | None = None,
        prompts: Mapping[str, Any] | None = None,
        rows: Mapping[str, TrainedRows] | None = None,
    ) -> None:
        self.base = base
        self.label = label
        files = {**base.beside.files, f"adapter/{adapter.name}": adapter} if base.beside.files else {}
        self.beside = replace(
            base.beside,
            own_tokenizer=tokenizer or base.beside.own_tokenizer,
            prompts=prompts or base.beside.prompts,
            files=files,
        )
        self._adapter = adapter
        self._factors = dict(factors)
        self._replaced = dict(replaced)
        self._trained = dict(rows or {})
        self._biases = {
            name.removesuffix("weight") + "bias": own for name, own in factors.items() if own.bias is not None
        }
        self._lock = threading.Lock()
        self._last: tuple[str, np.ndarray, np.ndarray, np.ndarray | None] | None = None
        self.tensors = self._headers()

    def _headers(self) -> dict[str, TensorInfo]:
        headers = dict(self.base.tensors)
        headers |= {name: replace(self._adapter.entries[own].info, name=name) for name, own in self._replaced.items()}
        for name in (*self._factors, *self._biases, *self._trained):
            headers[name] = replace(headers[name], dtype="F64" if headers[name].dtype == "F64" else "F32")
        return headers

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return self.base.stored_name(name) if name in self.base.tensors else name

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`; adapted entries are computed in float64 and rounded once."""
        info = self.tensors[name]
        stop = info.count if stop is None else min(stop, info.count)
        if name in self._trained:
            return encode(self._with_trained_rows(name, start, stop), info.dtype)
        if name in self._factors:
            columns = self._columns(name)
            first, last = start // columns, -(-stop // columns)
            rows = self._rows(name, first, last)
            return encode(rows.reshape(-1)[start - first * columns : stop - first * columns], info.dtype)
        if name in self._biases:
            own = self._biases[name]
            assert own.bias is not None
            values = self._unadapted(name, start, stop) + own.scaling * self._stored(own.bias)[start:stop]
            return encode(values, info.dtype)
        if name in self._replaced:
            return self._adapter.read(self._replaced[name], start, stop)
        return self.base.read(name, start, stop)

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.delta`: s·B·A, where nothing is normalised or replaced."""
        own = self._factors.get(name)
        if own is None or own.magnitude is not None or name in self._replaced or name in self._trained:
            return None
        return partial(self._product, name)

    def _product(self, name: str, start: int, stop: int) -> np.ndarray:
        columns = self._columns(name)
        first, last = start // columns, -(-stop // columns)
        rows = self._product_rows(name, first, last)
        return rows.reshape(-1)[start - first * columns : stop - first * columns]

    def _columns(self, name: str) -> int:
        """Of the matrix that a weight is seen as: (out, rest), of experts (experts × out, in)."""
        shape = self.tensors[name].shape
        return shape[-1] if self._factors[name].experts else math.prod(shape[1:])

    def _product_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of s·B·A, float64."""
        own, (left, right, _) = self._factors[name], self._matrices(name)
        if not own.experts:
            return own.scaling * (left[first:last] @ right)
        height = left.shape[1]
        found = []
        for expert in range(first // height, -(-last // height)):
            low, high = max(first - expert * height, 0), min(last - expert * height, height)
            found.append(left[expert, low:high] @ right[expert])
        return own.scaling * np.concatenate(found)

    def _with_trained_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries of a table of tokens, the trained rows in their place: float64."""
        values, trained = self._unadapted(name, start, stop), self._trained[name]
        width = math.prod(self.tensors[name].shape[1:])
        stored = self._stored(trained.stored)
        for place, row in enumerate(trained.rows):
            low, high = max(row * width, start), min((row + 1) * width, stop)
            if low < high:
                values[low - start : high - start] = stored[place].reshape(-1)[low - row * width : high - row * width]
        return values

    def _rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of the adapted weight as a matrix (shape[0], rest), float64."""
        own, (_, _, by_column) = self._factors[name], self._matrices(name)
        rows = self._plain_rows(name, first, last)
        if by_column is not None:
            return rows * by_column
        if own.magnitude is not None:
            magnitude = self._stored(own.magnitude).reshape(-1)[first:last]
            with np.errstate(divide="ignore", invalid="ignore"):  # an all-zero output: NaN, as peft has it
                rows *= (magnitude / np.linalg.norm(rows, axis=1))[:, None]
        return rows

    def _plain_rows(self, name: str, first: int, last: int) -> np.ndarray:
        columns = self._columns(name)
        plain = self._unadapted(name, first * columns, last * columns).reshape(-1, columns)
        return plain + self._product_rows(name, first, last)

    def _matrices(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """left (rows, rank), right (rank, columns), and DoRA's factor per column when outputs are columns."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                own = self._factors[name]
                left, right = self._sides(own)
                by_column = self._column_factor(name, left, right) if own.transposed and own.magnitude else None
                self._last = (name, left, right, by_column)
            return self._last[1:]

    def _sides(self, own: Factors) -> tuple[np.ndarray, np.ndarray]:
        """What is multiplied, left (rows, rank) and right (rank, columns); of experts, one such pair for each."""
        down, up = self._stored(own.down), self._stored(own.up)
        if own.experts:
            down = down.reshape(own.experts, -1, own.down_shape[1])
            up = up.reshape(own.up_shape[0], -1, own.experts).transpose(2, 0, 1)
            return (down.transpose(0, 2, 1), up.transpose(0, 2, 1)) if own.transposed else (up, down)
        down, up = down.reshape(own.down_shape[0], -1), up.reshape(own.up_shape[0], -1)
        return (down.T, up.T) if own.transposed else (up, down)

    def _column_factor(self, name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """m / ‖column‖; needs one pass over the whole weight."""
        magnitude = self._factors[name].magnitude
        assert magnitude is not None
        squares = np.zeros(right.shape[1])
        for first in range(0, left.shape[0], _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, left.shape[0])
            plain = self._unadapted(name, first * right.shape[1], last * right.shape[1]).reshape(-1, right.shape[1])
            rows = plain + self._factors[name].scaling * (left[first:last] @ right)
            squares += np.square(rows).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._stored(magnitude).reshape(-1) / np.sqrt(squares)

    def _unadapted(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries of the weight before adaptation: the base's, or what the adapter saved in its place."""
        stored = self._replaced.get(name)
        if stored is not None:
            return decode(self._adapter.read(stored, start, stop), self._adapter.entries[stored].info.dtype)
        return decode(self.base.read(name, start, stop), self.base.tensors[name].dtype)

    def _stored(self, stored: str) -> np.ndarray:
        """An adapter tensor, whole, float64, in its own shape."""
        info = self._adapter.entries[stored].info
        return decode(self._adapter.read(stored, 0, None), info.dtype).reshape(info.shape)
