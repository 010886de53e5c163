"""Reader for files of `torch.save`, as a table of references: the zip archive, and the stream of versions before 1.6.

In both forms, the tensors' bytes are stored unchanged in the file, so that they can be mapped and read on demand.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from taskmerge.checkpoints.formats.unpickling import Storage, Unpickler
from taskmerge.errors import CheckpointError, clipped
from taskmerge.numbers.dtypes import BY_TORCH_NAME

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of PyTorch before 1.6 begins: a pickle of its magic number."""
_PROTOCOL = 1001
_LARGEST_PICKLE = 512 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class Archive:
    """root: the object that was saved, tensors as references. places: storage key -> where its bytes start and stop."""

    root: Any
    places: dict[str, tuple[int, int]]


class Window(io.RawIOBase):
    """The bytes [start, start + length) of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the start (0), the present place (1) or the end (2) of the window."""
        self._place = max(0, (0, self._place, self._length)[whence] + offset)
        return self._place

    def tell(self) -> int:
        """Return the present place in the window."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return their number."""
        count = max(0, min(len(buffer), self._length - self._place))
        self._file.seek(self._start + self._place)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def read_archive(path: Path, start: int = 0, length: int | None = None) -> Archive:
    """Read the table in a file of `torch.save`, or in the bytes [start, start + length) of a file.

    Raises CheckpointError for another kind of file, and for a file that is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size - start if length is None else length
            window = io.BufferedReader(Window(file, start, length))
            if window.peek(len(LEGACY_MAGIC)).startswith(LEGACY_MAGIC):
                return _legacy(window, length, start)
            return _zipped(window, start, length)
    except CheckpointError:
        raise
    except Exception as error:  # what a broken or hostile pickle raises has no bounds
        said = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path.name!r} is not a safetensors file, and no tensors can be read from it as a PyTorch file "
            f"({type(error).__name__}{': ' + clipped(said[0], 120) if said else ''})",
            str(path),
            "get the file again; or load it where it was made and save its tensors as safetensors",
        ) from None


def _zipped(file: BinaryIO, start: int, length: int) -> Archive:
    with zipfile.ZipFile(file) as archive:
        rows = {row.filename: row for row in archive.infolist()}
        name = next((name for name in rows if name.endswith("data.pkl") and name.count("/") <= 1), None)
        if name is None:
            raise ValueError("a zip archive without data.pkl")
        inside = name.removesuffix("data.pkl")
        if any(row.startswith(f"{inside}code/") for row in rows):
            raise CheckpointError(
                "a TorchScript program, not a file of tensors",
                getattr(file, "name", "") or name,
                "save its tensors: torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'model.pt')",
            )
        if f"{inside}byteorder" in rows and archive.read(f"{inside}byteorder") != b"little":
            raise ValueError("saved on a big-endian machine")
        if rows[name].file_size > _LARGEST_PICKLE:
            raise ValueError(f"a pickle of {rows[name].file_size:,} bytes")
        reader = Unpickler(io.BytesIO(archive.read(name)))
        root = reader.load()
        places = {}
        for key, storage in reader.storages.items():
            row = rows[f"{inside}data/{key}"]
            if row.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its tensors are compressed")
            file.seek(row.header_offset)
            magic, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            first = row.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            if magic != b"PK\x03\x04" or first + row.file_size > length or row.file_size < _size(storage):
                raise ValueError(f"storage {key!r} is truncated")
            places[key] = (start + first, start + first + row.file_size)
    return Archive(root, places)


def _legacy(file: BinaryIO, length: int, start: int) -> Archive:
    Unpickler(file).load()  # the magic number
    protocol, system = Unpickler(file).load(), Unpickler(file).load()
    if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("another protocol, or a big-endian machine")
    reader = Unpickler(file)
    root = reader.load()
    keys = Unpickler(file).load()
    if not isinstance(keys, list) or {str(key) for key in keys} != set(reader.storages):
        raise ValueError("its list of storages does not match the storages that the tensors name")
    places, place = {}, file.tell()
    for key in map(str, keys):
        file.seek(place)
        (count,) = struct.unpack("<q", file.read(8))
        storage = reader.storages[key]
        stop = place + 8 + _size(storage)
        if count != storage.count or stop > length:
            raise ValueError(f"storage {key!r} is truncated")
        places[key] = (start + place + 8, start + stop)
        place = stop
    return Archive(root, places)


def _size(storage: Storage) -> int:
    row = BY_TORCH_NAME.get(storage.dtype)
    if storage.count < 0:
        raise ValueError("a storage of negative size")
    return storage.count * ((row.bits // 8) if row is not None else {"complex128": 16}.get(storage.dtype, 1))
