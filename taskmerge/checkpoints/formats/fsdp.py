"""One file a rank, as FSDP trainers save (`model_world_size_8_rank_3.pt`): each holds its piece of every tensor.

The pieces are `DTensor`s (its mesh and placements say where a piece belongs) or the older `ShardedTensor`s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.archives import read_archive
from taskmerge.checkpoints.formats.boxes import Box, JoinedFile
from taskmerge.checkpoints.formats.pickles import PickleFile
from taskmerge.checkpoints.formats.unpickling import Record, Reference
from taskmerge.checkpoints.formats.wrappers import find_pieces
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, few

_RANK = re.compile(r"(?P<stem>.*world_size_(?P<world>[0-9]+))_rank_(?P<rank>[0-9]+)\.pt")
_JOIN = "join the ranks with the trainer that wrote them (verl: python -m verl.model_merger merge ...)"


@dataclass(frozen=True)
class _Piece:
    """One rank's part of a tensor: its own entries, and their place in the tensor, if it states it."""

    local: Reference
    shape: tuple[int, ...]
    offsets: tuple[int, ...] | None = None
    coordinates: tuple[int, ...] = ()
    placements: tuple[Any, ...] = ()


def join_ranks(folder: Path, names: Sequence[str]) -> JoinedFile:
    """Join the rank files of a folder. Raises CheckpointError if one is missing or they do not fit together."""
    ranks = _all_ranks(folder, names)
    files, pieces = [], []
    for rank, name in enumerate(ranks):
        archive = read_archive(folder / name)
        found = find_pieces(archive.root, str(folder / name))
        own: dict[str, list[_Piece]] = {key: _pieces(key, value, rank, folder / name) for key, value in found.items()}
        local = {f"{key}@{place}": one.local for key, several in own.items() for place, one in enumerate(several)}
        files.append(PickleFile(name, folder / name, archive, local))
        pieces.append(own)
    if odd := [key for key in {key for own in pieces for key in own} if any(key not in own for own in pieces)]:
        raise CheckpointError(f"not all ranks contain {few(sorted(odd), 3)}", str(folder), _JOIN)
    sizes = _mesh_sizes(pieces)
    infos: dict[str, TensorInfo] = {}
    boxes: dict[str, list[Box]] = {key: [] for key in pieces[0]}
    for file, own in zip(files, pieces, strict=True):
        for key, several in own.items():
            for place, one in enumerate(several):
                stored = file.entries[f"{key}@{place}"].info
                infos.setdefault(key, TensorInfo(key, stored.dtype, one.shape))
                if infos[key] != TensorInfo(key, stored.dtype, one.shape):
                    raise CheckpointError(f"{key!r} is not the same tensor in all ranks", str(folder), _JOIN)
                offsets = one.offsets if one.offsets is not None else _offsets(key, one, sizes, folder / file.name)
                boxes[key].append(Box(file, f"{key}@{place}", offsets, stored.shape))
    joined = JoinedFile(_stem(names[0]), folder / ranks[0], files, infos, boxes)
    joined.notes = (f"joined from the files of {len(ranks)} ranks: {_stem(names[0])}_rank_*.pt",)
    return joined


def _stem(name: str) -> str:
    match = _RANK.fullmatch(name)
    assert match is not None
    return match["stem"]


def _all_ranks(folder: Path, names: Sequence[str]) -> list[str]:
    """The file of each rank, in order."""
    found: dict[str, dict[int, str]] = {}
    worlds: dict[str, int] = {}
    for name in names:
        match = _RANK.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{name!r} does not state its rank", str(folder), _JOIN)
        found.setdefault(match["stem"], {})[int(match["rank"])] = name
        worlds[match["stem"]] = int(match["world"])
    if len(found) > 1:
        what = f"files of several checkpoints: {few(map(repr, sorted(found)), 4)}"
        raise CheckpointError(what, str(folder), "leave only the files of the one that you want in the folder")
    ((stem, own),) = found.items()
    if not 0 < worlds[stem] <= 1 << 16:
        raise CheckpointError(f"{stem!r} does not state the number of ranks", str(folder), _JOIN)
    if missing := [rank for rank in range(worlds[stem]) if rank not in own]:
        what = f"the files of ranks {few(missing, 8)} of {worlds[stem]} are missing"
        raise CheckpointError(what, str(folder), "copy them from the machines that wrote them")
    return [own[rank] for rank in range(worlds[stem])]


def _pieces(name: str, value: Any, rank: int, path: Path) -> list[_Piece]:
    if isinstance(value, Reference):  # whole on every rank
        return [_Piece(value, value.shape, (0,) * len(value.shape))]
    if isinstance(value, Record) and value.is_a("DTensor"):
        return [_of_dtensor(name, value, rank, path)]
    if isinstance(value, Record) and value.is_a("ShardedTensor"):
        return _of_sharded(name, value, path)
    kind = value.qualified if isinstance(value, Record) else type(value).__name__
    raise CheckpointError(f"{name!r} is of an unsupported kind: {kind}", str(path), _JOIN)


def _of_dtensor(name: str, value: Record, rank: int, path: Path) -> _Piece:
    local, spec = value.get("_local_tensor"), value.get("_spec")
    mesh = spec.get("mesh") if isinstance(spec, Record) else None
    meta = spec.get("tensor_meta") if isinstance(spec, Record) else None
    if not (isinstance(local, Reference) and isinstance(mesh, Record) and isinstance(meta, Record) and meta.arguments):
        raise CheckpointError(f"{name!r}: a DTensor that does not state its placement", str(path), _JOIN)
    placements = tuple(spec.get("placements") or ())
    coordinates = mesh.get("_coordinate_on_dim")
    if coordinates is None and len(placements) == 1:
        coordinates = (rank,)
    if coordinates is None or len(coordinates) != len(placements):
        raise CheckpointError(f"{name!r}: its device mesh does not state the rank of this file", str(path), _JOIN)
    return _Piece(local, tuple(meta.arguments[0]), None, tuple(coordinates), placements)


def _of_sharded(name: str, value: Record, path: Path) -> list[_Piece]:
    """A ShardedTensor's state: (local shards, metadata, …), each shard with offsets of its own."""
    state = value.state if isinstance(value.state, tuple) else ()
    shards = state[0] if state and isinstance(state[0], list) else value.get("_local_shards")
    metadata = state[1] if len(state) > 1 else value.get("_metadata")
    size = metadata.get("size") if isinstance(metadata, Record) else None
    found = []
    for shard in shards or ():
        where = shard.get("metadata") if isinstance(shard, Record) else None
        local = shard.get("tensor") if isinstance(shard, Record) else None
        if not (isinstance(where, Record) and isinstance(local, Reference) and size is not None):
            raise CheckpointError(f"{name!r}: a ShardedTensor that does not state its placement", str(path), _JOIN)
        found.append(_Piece(local, tuple(size), tuple(where.get("shard_offsets") or ())))
    if not found and size is None:
        raise CheckpointError(f"{name!r}: a ShardedTensor that does not state its placement", str(path), _JOIN)
    return found


def _mesh_sizes(pieces: Sequence[Mapping[str, Sequence[_Piece]]]) -> dict[int, tuple[int, ...]]:
    """Number of dimensions of a mesh -> number of ranks along each."""
    highest: dict[int, tuple[int, ...]] = {}
    for own in pieces:
        for several in own.values():
            for one in several:
                before = highest.get(len(one.coordinates), (0,) * len(one.coordinates))
                highest[len(one.coordinates)] = tuple(map(max, before, (at + 1 for at in one.coordinates)))
    return highest


def _offsets(name: str, piece: _Piece, sizes: Mapping[int, tuple[int, ...]], path: Path) -> tuple[int, ...]:
    """Where a DTensor's piece begins: each mesh dimension cuts what the ones before it left, as `torch.chunk` does."""
    offsets, extent = [0] * len(piece.shape), list(piece.shape)
    for at, count, placement in zip(piece.coordinates, sizes[len(piece.coordinates)], piece.placements, strict=True):
        if isinstance(placement, Record) and placement.is_a("Replicate"):
            continue
        axis = placement.get("dim") if isinstance(placement, Record) and placement.is_a("Shard") else None
        if type(axis) is not int or not -len(extent) <= axis < len(extent):
            said = getattr(placement, "qualified", repr(placement))
            raise CheckpointError(f"{name!r} is distributed in an unsupported way: {said}", str(path), _JOIN)
        chunk = -(-extent[axis] // count)
        begin = min(at * chunk, extent[axis])
        offsets[axis] += begin
        extent[axis] = min(chunk, extent[axis] - begin)
    if tuple(extent) != piece.local.shape:
        what = f"{name!r}: this rank should hold {extent} of {list(piece.shape)}, but holds {list(piece.local.shape)}"
        raise CheckpointError(what, str(path), _JOIN)
    return tuple(offsets)
