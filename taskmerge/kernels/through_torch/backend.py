"""The kernels through torch, piece by piece; the next piece is staged while one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from taskmerge.kernels.operands import Health
from taskmerge.kernels.pairs import BLOCK, PIECE, Job, Piece
from taskmerge.kernels.program import DropByRank, DropRandom, KeepLargest, Program
from taskmerge.kernels.selection import RAGGED, Query
from taskmerge.kernels.through_torch.consensus import agree, drop_by_rank, drop_random, fold, keep_between
from taskmerge.kernels.through_torch.formats import bits_of, count_nonfinite, encode, upload
from taskmerge.numbers.randomness import keep_limit, uniform_bits_torch


class TorchBackend:
    """The kernels on one torch device ("cpu", "cuda", …)."""

    parallel = False

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.piece = PIECE if self.device.type == "cpu" else 16 * PIECE

    def combine(self, jobs: Sequence[Job], program: Program, out_dtype: str) -> Health:
        """See `Backend.combine`."""
        health = Health()
        wanted = [_whole_rows(job.piece, program) for job in jobs]
        for job, piece, inputs in zip(jobs, wanted, self._staged(wanted), strict=True):
            values = self._merged(job, piece, inputs, program)[job.piece.start - piece.start :][: job.piece.length]
            entries = encode(values, out_dtype)
            skip = slice(job.piece.start - piece.start, job.piece.stop - piece.start)
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
        base = inputs[0].to(torch.float64)
        deltas = [
            self._sparsified(tensor.to(torch.float64) - base, i, job, piece, program)
            for i, tensor in enumerate(inputs[1:])
        ]
        still = float(program.base_factor) * base
        move = program.scale * agree(deltas, job.weights(program), program, base)
        return torch.where(move != 0.0, still + move, still)

    def _sparsified(self, delta: Tensor, i: int, job: Job, piece: Piece, program: Program) -> Tensor:
        how = program.sparsify
        if isinstance(how, KeepLargest):
            assert job.found.lowest is not None and job.found.highest is not None
            return keep_between(delta, job.found.lowest[i], job.found.highest[i])
        if isinstance(how, DropRandom):
            return drop_random(delta, job.keys[i], piece.start, keep_limit(how.density), job.factors(how)[i])
        if isinstance(how, DropByRank):
            return drop_by_rank(delta, job.keys[i], piece.start, piece.pair.row, how)
        return delta

    def _deltas(self, piece: Piece) -> list[Tensor]:
        base, *others = self._upload(piece)
        return [other.to(torch.float64) - base.to(torch.float64) for other in others]

    def _magnitude_bits(self, piece: Piece) -> list[Tensor]:
        return [delta.to(torch.float32).abs().view(torch.int32) for delta in self._deltas(piece)]

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

    def gram(self, piece: Piece) -> np.ndarray:
        """See `Backend.gram`."""
        deltas = self._deltas(piece)
        sums = [torch.stack([_fold_pieces(first * second) for second in deltas], dim=-1) for first in deltas]
        return torch.stack(sums, dim=-2).cpu().numpy()

    def masses(self, piece: Piece, keys: Sequence[int], limit: int) -> np.ndarray:
        """See `Backend.masses`."""
        whole, kept = [], []
        for delta, key in zip(self._deltas(piece), keys, strict=True):
            bits = uniform_bits_torch(key, piece.start, piece.length, self.device)
            whole.append(_fold_pieces(delta.abs()))
            kept.append(_fold_pieces(torch.where(bits < limit, delta.abs(), 0.0)))
        return torch.stack([torch.stack(whole, dim=-1), torch.stack(kept, dim=-1)], dim=-2).cpu().numpy()


def _whole_rows(piece: Piece, program: Program) -> Piece:
    """The piece, widened to whole rows where ranks are taken within rows."""
    return piece.widened_to_rows() if isinstance(program.sparsify, DropByRank) else piece


def _fold_pieces(values: Tensor) -> Tensor:
    """Sums over each PIECE: float64 (entries,) -> (PIECEs,)."""
    padded = torch.zeros(-(-values.numel() // PIECE) * PIECE, dtype=torch.float64, device=values.device)
    padded[: values.numel()] = values
    return fold(fold(padded.reshape(-1, PIECE // BLOCK, BLOCK)))
