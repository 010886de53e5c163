"""Task vectors as small files: sparse, low-rank, or one bit and a scale. What a file gives back, it gives exactly.

| form    | a delta of n entries, (m, …) as a matrix m × n/m, is stored as                              |
|---------|---------------------------------------------------------------------------------------------|
| sparse  | `NAME#indices` (k,) ascending, `NAME#values` (k,): its k = max(1, ⌊density·n⌋) largest entries |
| low_rank| `NAME#left` (m, rank), `NAME#right` (rank, n/m): the best approximation of that rank           |
| sign    | `NAME#signs` ⌈n/8⌉ bytes, `NAME#scales` (m,): BitDelta (arXiv 2402.10193) with a scale per row: |
|         | the mean magnitude, which is the least-squares choice                                        |

Vectors and scalars, and matrices that a form would not make smaller, are stored as they are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.numbers.rounding import decode, encode

Form = Literal["sparse", "low_rank", "sign"]
FORMS: tuple[Form, ...] = ("sparse", "low_rank", "sign")
Reader = Callable[[str, int, int], np.ndarray]
_PIECES = {"sparse": ("indices", "values"), "low_rank": ("left", "right"), "sign": ("signs", "scales")}


@dataclass
class CompressedDeltas(StateDict):
    """`StateDict` of a task vector in one of the forms, compressed tensor by tensor as it is written.

    read_delta: (name, start, stop) -> float64 entries. shapes: of the deltas. own: tensors stored whole, name -> where
    they are. density: of "sparse". rank: of "low_rank". dtype: safetensors name of the stored numbers' format. `report`
    says what was lost, once everything is written.
    """

    read_delta: Reader
    shapes: Mapping[str, tuple[int, ...]]
    form: Form
    own: Mapping[str, StateDict] = field(default_factory=dict)
    density: float | None = None
    rank: int | None = None
    seed: int = 0
    dtype: str = "F32"
    label: str = "task vector"
    beside: Beside = field(default_factory=Beside)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"unknown form {self.form!r}", next_move=f"known: dense, {', '.join(FORMS)}")
        if self.form == "sparse" and not (self.density and 0 < self.density <= 1):
            what = "the density is missing" if self.density is None else f"density {self.density!r} is not valid"
            raise UsageError(what, next_move="give a density above 0 and at most 1 for a sparse task vector")
        if self.form == "low_rank" and not (self.rank and self.rank > 0):
            what = "the rank is missing" if self.rank is None else f"rank {self.rank!r} is not valid"
            raise UsageError(what, next_move="give a rank of at least 1 for a low-rank task vector")
        self.tensors = self._headers()
        self._lock = threading.Lock()
        self._last: tuple[str, dict[str, np.ndarray]] = ("", {})
        self._squares: dict[str, tuple[float, float]] = {}

    def _headers(self) -> dict[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for name, shape in self.shapes.items():
            pieces = self._layout(shape)
            rows = {f"{name}#{piece}": row for piece, row in pieces.items()} or {name: (self.dtype, shape)}
            found |= {stored: TensorInfo(stored, dtype, own) for stored, (dtype, own) in rows.items()}
        return found | {name: state_dict.tensors[name] for name, state_dict in self.own.items()}

    def _layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Piece -> (dtype, shape); {} for a delta that is stored as it is."""
        count = math.prod(shape)
        if len(shape) < 2 or count == 0:
            return {}
        rows, columns = shape[0], count // shape[0]
        pieces: dict[str, tuple[str, tuple[int, ...]]]
        if self.form == "sparse":
            kept = max(1, math.floor((self.density or 1) * count))
            pieces = {"indices": ("I32" if count < 2**31 else "I64", (kept,)), "values": (self.dtype, (kept,))}
        elif self.form == "low_rank":
            rank = min(self.rank or 1, rows, columns)
            pieces = {"left": (self.dtype, (rows, rank)), "right": (self.dtype, (rank, columns))}
        else:
            pieces = {"signs": ("U8", (-(-count // 8),)), "scales": (self.dtype, (rows,))}
        size = sum(TensorInfo("", dtype, own).nbytes for dtype, own in pieces.values())
        return pieces if size < TensorInfo("", self.dtype, shape).nbytes else {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        if name in self.own:
            return self.own[name].read(name, start, stop)
        delta, _, piece = name.partition("#")
        stop = self.tensors[name].count if stop is None else stop
        if not piece:
            values = self.read_delta(name, start, stop)
            stored = encode(values, self.dtype)
            squares = np.square(values).sum(), np.square(values - decode(stored, self.dtype)).sum()
            self._note(name, start, squares)
            return stored
        with self._lock:
            if self._last[0] != delta:
                self._last = (delta, self._compressed(delta))
            return self._last[1][piece][start:stop]

    def _compressed(self, name: str) -> dict[str, np.ndarray]:
        shape = self.shapes[name]
        values = self.read_delta(name, 0, math.prod(shape)).reshape(shape[0], -1)
        pieces: dict[str, np.ndarray]
        if self.form == "sparse":
            kept = largest(values.reshape(-1), self.tensors[f"{name}#values"].count)
            index = self.tensors[f"{name}#indices"].format.storage
            pieces = {"indices": kept.astype(index), "values": encode(values.reshape(-1)[kept], self.dtype)}
        elif self.form == "low_rank":
            left, right = low_rank_factors(values, self.tensors[f"{name}#left"].shape[1], self.seed)
            pieces = {"left": encode(left, self.dtype).reshape(-1), "right": encode(right, self.dtype).reshape(-1)}
        else:
            signs = np.packbits(values.reshape(-1) >= 0)
            pieces = {"signs": signs, "scales": encode(np.abs(values).mean(axis=1), self.dtype)}
        restored = _restored(self.form, lambda piece, start, stop: pieces[piece][start:stop], shape, self.tensors, name)
        back = restored(0, values.size)
        self._note(name, 0, (np.square(values).sum(), np.square(values.reshape(-1) - back).sum()))
        return pieces

    def _note(self, name: str, start: int, squares: tuple[float, float]) -> None:
        before = self._squares.get(name, (0.0, 0.0)) if start else (0.0, 0.0)
        self._squares[name] = (before[0] + float(squares[0]), before[1] + float(squares[1]))

    def report(self) -> dict[str, Any]:
        """Return form, bytes, dense_bytes (of float32), and relative_error ‖d − d'‖ / ‖d‖ of all and of each delta.

        It is complete once every tensor has been read.
        """
        size, lost = (sum(row[place] for row in self._squares.values()) for place in (0, 1))
        return {
            "form": self.form,
            "bytes": sum(info.nbytes for info in self.tensors.values()),
            "dense_bytes": sum(4 * math.prod(shape) for shape in self.shapes.values())
            + sum(state_dict.tensors[name].nbytes for name, state_dict in self.own.items()),
            "relative_error": math.sqrt(lost / size) if size else 0.0,
            "relative_errors": {
                name: math.sqrt(own_lost / own) if own else 0.0 for name, (own, own_lost) in self._squares.items()
            },
        }


def restore(stored: StateDict, form: str, shapes: Mapping[str, tuple[int, ...]]) -> Reader:
    """Return a reader of stored deltas: (name, start, stop) -> float64 entries of the flattened delta.

    shapes: of the deltas, by name. Raises CheckpointError when pieces are missing or do not fit the shapes.
    """
    if form not in FORMS:
        raise CheckpointError(
            f"is a task vector of an unknown form {form!r}",
            stored.label,
            "extract the task vector again, or update taskmerge",
        )
    for name, shape in shapes.items():
        if name in stored.tensors:
            if stored.tensors[name].shape != tuple(shape):
                raise CheckpointError(
                    f"{name!r} does not have its recorded shape {list(shape)}",
                    stored.label,
                    "extract the task vector again",
                )
            continue
        _check_pieces(stored, form, name, tuple(shape))

    def read(name: str, start: int, stop: int) -> np.ndarray:
        if name in stored.tensors:
            return decode(stored.read(name, start, stop), stored.tensors[name].dtype)
        piece = lambda part, first, last: stored.read(f"{name}#{part}", first, last)  # noqa: E731
        return _restored(form, piece, shapes[name], stored.tensors, name)(start, stop)

    return read


def low_rank_factors(values: np.ndarray, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Compute left (m, rank) and right (rank, n), float64, whose product is nearly the best approximation of `values`.

    Exact SVD for small matrices, else randomised (Halko, Martinsson, Tropp 2011) with 10 extra directions and 4 power
    iterations. The singular values are shared evenly between the factors.
    """
    import torch

    matrix = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    if min(matrix.shape) <= max(256, 2 * rank):
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        right = right.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            left, sizes, right = torch.svd_lowrank(matrix, q=min(rank + 10, *matrix.shape), niter=4)
    root = sizes[:rank].sqrt()
    return (left[:, :rank] * root).numpy(), (right[:, :rank] * root).T.contiguous().numpy()


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` entries of largest magnitude; of equal ones the first are taken."""
    size = np.abs(values)
    threshold = np.partition(size, size.size - count)[size.size - count]
    above = np.flatnonzero(size > threshold)
    equal = np.flatnonzero(size == threshold)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def _check_pieces(stored: StateDict, form: str, name: str, shape: tuple[int, ...]) -> None:
    pieces = [stored.tensors.get(f"{name}#{piece}") for piece in _PIECES[form]]
    count, rows = math.prod(shape), shape[0] if shape else 1
    fits = None not in pieces and len(shape) >= 2 and count > 0
    if fits:
        one, two = (piece.shape for piece in pieces if piece is not None)
        fits = {
            "sparse": one == two and len(one) == 1,
            "low_rank": one[:1] == (rows,) and two[1:] == (count // rows,) and one[1:] == two[:1],
            "sign": one == (-(-count // 8),) and two == (rows,),
        }[form]
    if fits and form == "sparse":
        indices = stored.read(f"{name}#indices").astype(np.int64)
        fits = bool(indices.size and (np.diff(indices) > 0).all() and indices[0] >= 0 and indices[-1] < count)
    if not fits:
        raise CheckpointError(
            f"the pieces of {name!r} do not make a delta of shape {list(shape)}",
            stored.label,
            "extract the task vector again",
        )


def _restored(
    form: str,
    piece: Callable[[str, int, int | None], np.ndarray],
    shape: tuple[int, ...],
    tensors: Mapping[str, TensorInfo],
    name: str,
) -> Callable[[int, int], np.ndarray]:
    columns = math.prod(shape) // shape[0]

    def sparse(start: int, stop: int) -> np.ndarray:
        indices = piece("indices", 0, None)
        first, last = np.searchsorted(indices, [start, stop]).tolist()
        out = np.zeros(stop - start)
        out[indices[first:last] - start] = decode(piece("values", first, last), tensors[f"{name}#values"].dtype)
        return out

    def low_rank(start: int, stop: int) -> np.ndarray:
        rank = tensors[f"{name}#left"].shape[1]
        first, last = start // columns, -(-stop // columns)
        left = decode(piece("left", first * rank, last * rank), tensors[f"{name}#left"].dtype).reshape(-1, rank)
        right = decode(piece("right", 0, None), tensors[f"{name}#right"].dtype).reshape(rank, columns)
        return (left @ right).reshape(-1)[start - first * columns : stop - first * columns]

    def sign(start: int, stop: int) -> np.ndarray:
        bits = np.unpackbits(piece("signs", start // 8, -(-stop // 8)))[start % 8 :][: stop - start]
        scales = decode(piece("scales", 0, None), tensors[f"{name}#scales"].dtype)
        return np.where(bits, 1.0, -1.0) * scales[np.arange(start, stop) // columns]

    return {"sparse": sparse, "low_rank": low_rank, "sign": sign}[form]
