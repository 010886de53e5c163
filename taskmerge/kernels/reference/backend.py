"""The reference over raw entries, piece by piece; the next piece is staged while one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from taskmerge.kernels.operands import Health
from taskmerge.kernels.pairs import PIECE, Job, Piece
from taskmerge.kernels.program import DropByRank, DropRandom, KeepLargest, Program
from taskmerge.kernels.reference.consensus import agree
from taskmerge.kernels.reference.folding import masses, products
from taskmerge.kernels.reference.formats import bits_of, count_nonfinite, encode, upload
from taskmerge.kernels.reference.survivors import drop_by_rank, drop_random, keep_between, magnitudes
from taskmerge.kernels.selection import RAGGED, Query
from taskmerge.numbers.randomness import uniform_bits_torch


class ReferenceBackend:
    """The reference on one torch device ("cpu", "cuda", …)."""

    parallel = False

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.piece_size = PIECE if self.device.type == "cpu" else 16 * PIECE

    def combine(self, jobs: Sequence[Job], program: Program, out_dtype: str) -> Health:
        """See `Backend.combine`."""
        health = Health()
        wanted = [_whole_rows(job.piece, program) for job in jobs]
        for job, piece, inputs in zip(jobs, wanted, self._staged(wanted), strict=True):
            skip = slice(job.piece.start - piece.start, job.piece.stop - piece.start)
            entries = encode(self._merged(job, piece, inputs, program)[skip], out_dtype)
            bad_inputs = sum(
                int(count_nonfinite(bits_of(tensor, operand.dtype)[skip], operand.dtype))
                for tensor, operand in zip(inputs, piece.pair.operands, strict=True)
            )
            health += Health(bad_inputs, int(count_nonfinite(entries, out_dtype)))
            job.out[:] = entries.cpu().numpy().view(job.out.dtype)
        return health

    def _staged(self, pieces: Sequence[Piece]) -> Iterator[list[Tensor]]:
        """The inputs of each piece on the device, read one piece ahead of the arithmetic."""
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self._upload, pieces[0])
            for following in [*pieces[1:], None]:
                inputs = waiting.result()
                if following is not None:
                    waiting = ahead.submit(self._upload, following)
                yield inputs

    def _upload(self, piece: Piece) -> list[Tensor]:
        return [upload(o.read(piece.start, piece.stop), o.dtype, self.device) for o in piece.pair.operands]

    def _merged(self, job: Job, piece: Piece, inputs: list[Tensor], program: Program) -> Tensor:
        """The program's formula on one piece: float64 (entries,)."""
        base, deltas = _taken_apart(piece, inputs)
        factors = job.factors(program)
        left = [self._survivors(delta, i, factors[i], job, piece, program) for i, delta in enumerate(deltas)]
        move = program.scale * agree(left, job.weights(program), program.consensus, base)
        if program.base == "left_out":
            return move + 0.0  # no negative zeros: nothing there has a sign
        still = job.base_factor(program) * base
        return torch.where(move != 0.0, still + move, still)

    def _survivors(self, delta: Tensor, i: int, factor: float, job: Job, piece: Piece, program: Program) -> Tensor:
        way = program.ways[i]
        if isinstance(way, KeepLargest):
            assert job.measured.lowest is not None and job.measured.highest is not None
            return keep_between(delta, job.measured.lowest[i], job.measured.highest[i])
        return self._dropped(delta, way, job.keys[i] if job.keys else 0, factor, piece)

    def _dropped(
        self, delta: Tensor, way: DropRandom | DropByRank | None, key: int, factor: float, piece: Piece
    ) -> Tensor:
        """What a random drop leaves; everything where there is none."""
        if way is None:
            return delta
        bits = uniform_bits_torch(key, piece.start, delta.numel(), delta.device)
        if isinstance(way, DropRandom):
            return drop_random(delta, bits, way.density, factor)
        rows = -1, piece.pair.row
        return drop_by_rank(delta.reshape(rows), bits.reshape(rows), way, factor).flatten()

    def _deltas(self, piece: Piece) -> list[Tensor]:
        return _taken_apart(piece, self._upload(piece))[1]

    def _magnitude_bits(self, piece: Piece) -> list[Tensor]:
        return [magnitudes(delta).view(torch.int32) for delta in self._deltas(piece)]

    def magnitudes(self, pieces: Sequence[Piece]) -> np.ndarray:
        """See `Backend.magnitudes`."""
        parts = [torch.stack(self._magnitude_bits(piece)).cpu().numpy() for piece in pieces]
        return np.concatenate(parts, axis=1).view(np.uint32)

    def scan(self, pieces: Sequence[Piece], queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.scan`."""
        bins = max(query.bins for query in queries)
        above = torch.zeros(len(queries), dtype=torch.int64, device=self.device)
        histogram = torch.zeros(len(queries), bins, dtype=torch.int64, device=self.device)
        for piece in pieces:
            bits = self._magnitude_bits(piece)
            for number, query in enumerate(queries):
                these = bits[query.specialist]
                above[number] += (these > query.high).sum()
                inside = these[(these >= query.low) & (these <= query.high)]
                offsets = inside - query.low
                ragged = offsets[offsets & ((1 << query.shift) - 1) != 0]
                histogram[number] += torch.bincount(offsets >> query.shift, minlength=bins)
                histogram[number] += RAGGED * torch.bincount(ragged >> query.shift, minlength=bins)
        return above.cpu().numpy(), histogram.cpu().numpy()

    def gram(self, piece: Piece, models: bool) -> np.ndarray:
        """See `Backend.gram`."""
        inputs = self._upload(piece)
        vectors = _taken_apart(piece, inputs)[1]
        if models:
            base, operands = inputs[0].to(torch.float64), piece.pair.specialists
            vectors = [
                delta + base if operand.is_delta else tensor.to(torch.float64)
                for delta, tensor, operand in zip(vectors, inputs[1:], operands, strict=True)
            ]
        return products(vectors).cpu().numpy()

    def masses(self, piece: Piece, program: Program, keys: Sequence[int]) -> np.ndarray:
        """See `Backend.masses`."""
        whole = _whole_rows(piece, program)
        skip = slice(piece.start - whole.start, piece.stop - whole.start)
        deltas = self._deltas(whole)
        kept = [
            delta if isinstance(way, KeepLargest) else self._dropped(delta, _unscaled(way), key, 1.0, whole)
            for delta, way, key in zip(deltas, program.ways, keys, strict=True)
        ]
        parts = [masses([tensor[skip] for tensor in tensors]) for tensors in (deltas, kept)]
        return torch.stack(parts, dim=-2).cpu().numpy()


def _unscaled(way: DropRandom | DropByRank | None) -> DropRandom | DropByRank | None:
    """The same drop, survivors as they are."""
    return None if way is None else replace(way, rescale="none")


def _taken_apart(piece: Piece, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The base and the deltas: float64 (entries,) each."""
    base, *others = [tensor.to(torch.float64) for tensor in inputs]
    operands = piece.pair.specialists
    return base, [other if operand.is_delta else other - base for other, operand in zip(others, operands, strict=True)]


def _whole_rows(piece: Piece, program: Program) -> Piece:
    """The piece, widened to whole rows where ranks are taken within rows."""
    return piece.widened_to_rows() if program.ranked else piece
