"""Folders of `torch.distributed.checkpoint`: `.distcp` files, and `.metadata` that says which bytes are which piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.archives import read_archive
from taskmerge.checkpoints.formats.boxes import Box, JoinedFile
from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import Entry
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.formats.pickles import PickleFile
from taskmerge.checkpoints.formats.unpickling import Name, Record, Reference, Unpickler
from taskmerge.checkpoints.formats.wrappers import model_under
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, few
from taskmerge.numbers.dtypes import BY_TORCH_NAME
from taskmerge.opened import opened

METADATA = ".metadata"
_LARGEST = 512 << 20
_JOIN = "join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER pytorch_model.bin"


class _PieceFile(WeightFile):
    """One .distcp file: pieces, each what `torch.save` writes of one tensor, opened when it is first read."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path, entries={})
        self._spans: dict[str, tuple[int, int]] = {}
        self._opened: dict[str, PickleFile] = {}

    def add(self, key: str, info: TensorInfo, start: int, length: int) -> None:
        """A piece, in bytes [start, start + length)."""
        self.entries[key] = Entry(info, start, start + length)
        self._spans[key] = (start, length)

    def _piece(self, key: str) -> PickleFile:
        if key not in self._opened:
            archive = read_archive(self.path, *self._spans[key])
            found, info = archive.root, self.entries[key].info
            if isinstance(found, Record) and isinstance(found.get("_local_tensor"), Reference):
                found = found.get("_local_tensor")
            if not isinstance(found, Reference) or (found.shape, found.dtype) != (info.shape, info.format.torch_name):
                raise CheckpointError(f"{key!r} is not the piece that {METADATA} describes", str(self.path), _JOIN)
            piece = PickleFile(self.name, self.path, archive, {key: found})
            piece.held = self.held  # as it was when the save was opened
            self._opened[key] = piece
        return self._opened[key]

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """See `WeightFile.read`."""
        return self._piece(name).read(name, start, stop)

    def view(self, name: str) -> np.ndarray | None:
        """See `WeightFile.view`."""
        return self._piece(name).view(name)

    def release(self, name: str, start: int, stop: int) -> None:
        """See `WeightFile.release`."""
        self._piece(name).release(name, start, stop)


def join_checkpoint(folder: Path, names: Sequence[str]) -> JoinedFile:
    """Open the model in a folder of this format. Raises CheckpointError for a missing file or invalid metadata."""
    place = folder / METADATA
    check_link(place, folder)
    opened(place)  # its name begins with a dot: no listing of the folder has it
    metadata = _metadata(place)
    tensors = _tables(metadata.get("state_dict_metadata"), place)
    paths = metadata.get("planner_data")
    paths = paths if isinstance(paths, Mapping) else {}
    told = {key: tuple(map(str, paths.get(key) or (key,))) for key in tensors}
    chosen, note = model_under(told, {key: _shape(key, one, place) for key, one in tensors.items()}, str(folder))
    pieces = _places(metadata.get("storage_data"), place)
    files: dict[str, _PieceFile] = {}
    infos: dict[str, TensorInfo] = {}
    boxes: dict[str, list[Box]] = {}
    for name, key in chosen.items():
        info = infos[name] = _info(name, tensors[key], place)
        boxes[name] = []
        for number, chunk in enumerate(tensors[key].get("chunks") or ()):
            offsets, sizes = tuple(chunk.get("offsets") or ()), tuple(chunk.get("sizes") or ())
            if (key, offsets) not in pieces:
                raise CheckpointError(
                    f"does not state where the piece of {key!r} at {list(offsets)} is stored", str(place), _JOIN
                )
            path, start, length = pieces[key, offsets]
            file = files.setdefault(path, _opened(path, folder, names))
            if start + length > file.path.stat().st_size:
                raise CheckpointError(f"{path!r} is shorter than {METADATA} states", str(folder), "get the file again")
            file.add(f"{key}@{number}", TensorInfo(key, info.dtype, sizes), start, length)
            boxes[name].append(Box(file, f"{key}@{number}", offsets, sizes))
    own = WeightFile(METADATA, place, entries={})
    joined = JoinedFile("*.distcp", place, [own, *files.values()], infos, boxes)
    joined.notes = (f"joined from {len(files)} .distcp files", *note)
    return joined


def _metadata(place: Path) -> Record:
    try:
        if not place.is_file() or place.stat().st_size > _LARGEST:
            raise CheckpointError(f"no {METADATA}, which describes the .distcp files", str(place.parent),
                                  "copy it from where they were saved: its name begins with a dot")  # fmt: skip
        with place.open("rb") as file:
            root = Unpickler(file).load()
    except CheckpointError:
        raise
    except Exception as error:  # what a broken or hostile pickle raises has no bounds
        raise CheckpointError(
            f"cannot be read: {type(error).__name__}: {str(error)[:120]}", str(place), _JOIN
        ) from None
    if not isinstance(root, Record) or not root.is_a("Metadata"):
        raise CheckpointError("not the metadata of torch.distributed.checkpoint", str(place), _JOIN)
    return root


def _tables(found: Any, place: Path) -> dict[str, Record]:
    """Every tensor of the checkpoint; other entries (numbers, settings) do not belong to the model."""
    if not isinstance(found, Mapping):
        raise CheckpointError("lists no tensors", str(place), _JOIN)
    return {
        key: one
        for key, one in found.items()
        if isinstance(key, str) and isinstance(one, Record) and one.is_a("TensorStorageMetadata")
    }


def _info(name: str, record: Record, place: Path) -> TensorInfo:
    properties = record.get("properties")
    state = properties.state if isinstance(properties, Record) else None
    if isinstance(state, tuple):
        dtype = state[0] if state else None
    else:
        dtype = properties.get("dtype") if isinstance(properties, Record) else None
    row = BY_TORCH_NAME.get(dtype.text) if isinstance(dtype, Name) else None
    if row is None or row.storage is None:
        raise CheckpointError(f"{name!r} has a number format that is not supported", str(place), _JOIN)
    return TensorInfo(name, row.name, _shape(name, record, place))


def _shape(name: str, record: Record, place: Path) -> tuple[int, ...]:
    shape = tuple(record.get("size") or ())
    if not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(f"{name!r} has the invalid shape {shape}", str(place), _JOIN)
    return shape


def _places(found: Any, place: Path) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """(tensor, where its piece begins) -> file, first byte, bytes."""
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    for index, row in found.items() if isinstance(found, Mapping) else ():
        if not (isinstance(index, Record) and isinstance(row, Record)):
            continue
        path, start, length = row.get("relative_path"), row.get("offset"), row.get("length")
        if row.get("transform_descriptors"):
            raise CheckpointError("its pieces are compressed", str(place), _JOIN)
        if not (isinstance(path, str) and type(start) is int and type(length) is int and min(start, length) >= 0):
            raise CheckpointError("does not state where the pieces are stored", str(place), _JOIN)
        places[str(index.get("fqn")), tuple(index.get("offset") or ())] = (path, start, length)
    return places


def _opened(name: str, folder: Path, names: Sequence[str]) -> _PieceFile:
    if name not in names:
        told = "is listed with a path outside the folder" if "/" in name or "\\" in name else "is missing"
        raise CheckpointError(
            f"{few([repr(name)])} {told}", str(folder / METADATA), "copy every .distcp file of the checkpoint"
        )
    check_link(folder / name, folder)
    return _PieceFile(name, folder / name)
