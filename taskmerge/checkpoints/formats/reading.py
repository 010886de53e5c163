"""Opening a checkpoint folder, file or hub repository: which files hold its tensors, headers only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.pickles import SUFFIXES, PickleFile, pickle_names
from taskmerge.checkpoints.hub import HubPlace, Snapshot, locate, open_snapshot
from taskmerge.checkpoints.weights import Beside, TensorInfo, Weights
from taskmerge.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PROMPTS = "config_sentence_transformers.json"
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors$")
_LARGEST_JSON = 256 << 20


class StoredWeights(Weights):
    """`Weights` in safetensors or PyTorch files, on disk or on the hub.

    folder: where they lie, with the side files. modules: see `Beside.module_folders`. files: (module, file) of every
    weight file. commit: of a hub repository, else None.
    """

    beside: Beside

    def __init__(self, label: str, folder: Path, modules: dict[str, str], files: list[tuple[str, WeightFile]],
                 commit: str | None = None) -> None:  # fmt: skip
        self.label = label
        self.folder = folder
        self.beside = Beside(
            config=read_table(folder / modules[""] / "config.json"),
            folder=folder,
            module_folders=modules,
            prompts=read_table(folder / PROMPTS),
            commit=commit,
            files={file.name: file for _, file in files},
        )
        self.tensors: dict[str, TensorInfo] = {}
        self._owners: dict[str, tuple[WeightFile, str]] = {}
        for prefix, file in files:
            for stored, entry in file.entries.items():
                name = f"{prefix}/{stored}" if prefix else stored
                if name in self._owners:
                    raise CheckpointError(
                        f"tensor {name!r} stands in two files: {self._owners[name][0].name} and {file.name}", label
                    )
                self._owners[name] = (file, stored)
                self.tensors[name] = TensorInfo(name, entry.info.dtype, entry.info.shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`."""
        file, stored = self._owners[name]
        return file.read(stored, start, stop)

    def view(self, name: str) -> np.ndarray | None:
        """See `Weights.view`."""
        file, stored = self._owners[name]
        return None if isinstance(file, PickleFile) else file.read(stored, 0, None)

    def release(self, name: str, start: int, stop: int) -> None:
        """See `Weights.release`."""
        file, stored = self._owners[name]
        file.release(stored, start, stop)

    def file_of(self, name: str) -> WeightFile:
        """The file that holds tensor `name`."""
        return self._owners[name][0]


def open_stored(text: str | Path, relative_to: Path | None = None, label: str | None = None) -> StoredWeights:
    """Opens a safetensors or PyTorch file, a checkpoint or sentence-transformers folder, a hub id or an hf:// uri.

    Reads headers, indexes and config only. Raises CheckpointError (missing, ambiguous or malformed files).
    """
    place = locate(str(text), relative_to)
    label = label or str(text)
    if isinstance(place, HubPlace):
        return _open_hub(place, label)
    if place.is_file():
        if place.suffix not in (".safetensors", *SUFFIXES):
            raise CheckpointError(f"{place.name!r} is no safetensors file", str(place), _pickle_advice(place))
        return StoredWeights(label, place.parent, {"": ""}, [("", _weight_file(place.name, place))])
    modules = module_folders(place)
    files = []
    for prefix, inside in modules.items():
        names = weight_files(place / inside, required=not prefix)
        part = {name: _weight_file(_join(inside, name), place / inside / name) for name in names}
        check_index(place / inside, part)
        files += [(prefix, file) for file in part.values()]
    return StoredWeights(label, place, modules, files)


def local_folder(text: str | Path, relative_to: Path | None = None) -> Path:
    """Where a checkpoint lies on this disk, for libraries that open folders; one on the hub is downloaded first.

    Raises CheckpointError as `open_stored`, for a local folder only when it is not there.
    """
    place = locate(str(text), relative_to)
    if isinstance(place, Path):
        return place
    stored = _open_hub(place, str(text))
    paths = [file.path for file in stored.beside.files.values()]  # asking for it downloads a file
    assert all(path.is_relative_to(stored.folder) for path in paths)
    return stored.folder


def _weight_file(name: str, path: Path) -> WeightFile:
    return PickleFile(name, path) if path.suffix in SUFFIXES else WeightFile(name, path)


def _open_hub(place: HubPlace, label: str) -> StoredWeights:
    snapshot = open_snapshot(place)
    modules = module_folders(snapshot.folder)
    files = []
    for prefix, inside in modules.items():
        here = [
            PurePosixPath(name).name for name in snapshot.weights if str(PurePosixPath(name).parent) == (inside or ".")
        ]
        names = choose_files(here, snapshot.folder / inside, required=not prefix)
        part = {name: _hub_file(snapshot, _join(inside, name)) for name in names}
        check_index(snapshot.folder / inside, part)
        files += [(prefix, file) for file in part.values()]
    return StoredWeights(label, snapshot.folder, modules, files, snapshot.commit)


def _hub_file(snapshot: Snapshot, name: str) -> WeightFile:
    cached = snapshot.folder / name
    return WeightFile(name, cached if cached.exists() else None, snapshot)


def module_folders(folder: Path) -> dict[str, str]:
    """Module -> folder inside `folder`: {"": ""}, or what a sentence-transformers modules.json lists.

    The first module is the transformer; its name is "" wherever it lies.
    """
    listing = folder / "modules.json"
    if not listing.exists():
        return {"": ""}
    modules = load_json(listing)
    if (
        not isinstance(modules, list)
        or not modules
        or not all(isinstance(row, dict) and isinstance(row.get("path"), str) for row in modules)
    ):
        raise CheckpointError("not a list of modules with a path each", str(listing))
    found = {"": _inside(folder, modules[0]["path"], listing)}
    for row in modules[1:]:
        inside = _inside(folder, row["path"], listing)
        if inside and (folder / inside).is_dir():
            found[inside] = inside
    return found


def weight_files(folder: Path, required: bool = True) -> list[str]:
    """Names of the files in `folder` that make up one model, in order: safetensors, or else PyTorch's own."""
    try:
        names = [path.name for path in folder.iterdir() if path.suffix == ".safetensors"]
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", str(folder)) from None
    chosen = (pickle_names(folder) if not names else []) or choose_files(names, folder, required)
    for name in chosen:
        check_link(folder / name, folder)
    return chosen


def choose_files(names: list[str], folder: Path, required: bool) -> list[str]:
    """Which of the safetensors files `names` in `folder` are the model: by index, by name, or the only one."""
    if (folder / INDEX).exists():
        return _files_of_index(folder / INDEX, names)
    if SINGLE in names:
        return [SINGLE]
    shards = [match for match in map(_SHARD.match, sorted(names)) if match]
    if shards and len(shards) == len(names) and len({shard["stem"] for shard in shards}) == 1:
        missing = set(range(1, int(shards[0]["total"]) + 1)) - {int(shard["number"]) for shard in shards}
        if missing:
            raise CheckpointError(f"shards {sorted(missing)} of {int(shards[0]['total'])} are missing", str(folder))
        return sorted(names)
    if len(names) == 1:
        return list(names)
    if names:
        raise CheckpointError(
            f"{len(names)} safetensors files and no {INDEX}: {', '.join(sorted(names)[:5])}", str(folder),
            "name the one file you mean",
        )  # fmt: skip
    if required:
        raise CheckpointError("no safetensors file in this folder", str(folder), _pickle_advice(folder))
    return []


def _files_of_index(index: Path, names: list[str]) -> list[str]:
    table = load_json(index)
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError("no weight_map from tensor names to file names", str(index))
    for tensor, name in weight_map.items():
        if name != PurePosixPath(name).name or name in ("", ".", "..") or "\\" in name:
            raise CheckpointError(f"{tensor!r} is said to lie outside the folder: {name!r}", str(index))
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if name not in names]
    if missing:
        raise CheckpointError(
            f"names {len(missing)} files that are not there: {', '.join(missing[:5])}",
            str(index),
            "finish the download",
        )
    return files


def check_index(folder: Path, files: Mapping[str, WeightFile]) -> None:
    """The index, when there is one, must agree with the files' own headers on where each tensor lies."""
    if not (folder / INDEX).exists():
        return
    for tensor, name in load_json(folder / INDEX)["weight_map"].items():
        if tensor not in files[name].entries:
            raise CheckpointError(f"tensor {tensor!r} is not in {name!r}", str(folder / INDEX), "download it again")


def check_link(path: Path, folder: Path) -> None:
    """A symbolic link may stay inside its folder or point into the hub cache's blobs, nowhere else."""
    if not path.is_symlink():
        return
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # Python's two ways of reporting a loop
        raise CheckpointError("a link that leads back to itself", str(path)) from None
    blobs = next((parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"), home)
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"a link to a file outside the folder: {target}", str(path), "copy the file in, or name it"
        )


def load_json(path: Path) -> Any:
    """A JSON file of bounded size; CheckpointError with the place when it is none, or a link to somewhere else."""
    check_link(path, path.parent)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path.stat().st_size:,} bytes is too much for a JSON file", str(path))
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CheckpointError(f"not valid JSON: {error}", str(path)) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", str(path)) from None


def read_table(path: Path) -> Mapping[str, Any]:
    """A JSON file that must hold a table; {} when it is not there."""
    table = load_json(path) if path.is_file() else {}
    if not isinstance(table, dict):
        raise CheckpointError(f"{path.name} is no table", str(path))
    return table


def _inside(folder: Path, text: str, listing: Path) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise CheckpointError(f"names a folder outside: {text!r}", str(listing))
    return "" if str(path) == "." else str(path)


def _join(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name


def _pickle_advice(place: Path) -> str:
    folder = place if place.is_dir() else place.parent
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        return f"only {pickles[0]!r} is there: convert it with transformers' save_pretrained(safe_serialization=True)"
    return "name a folder with model.safetensors or an index"
