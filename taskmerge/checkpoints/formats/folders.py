"""Choice of the files of a folder that are one model: by the index, by their names, or the only one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypedDict

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.formats.table import (
    READABLE,
    SAFETENSORS,
    Format,
    advice,
    format_called,
    is_training_state,
)
from taskmerge.errors import CheckpointError, few
from taskmerge.opened import opened
from taskmerge.words.tables import counted

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.[a-z]+")
_BELOW = ("pytorch_model_fsdp_[0-9]*", "dist_ckpt", "model")
"""Folders in a checkpoint in which trainers save sharded weights (accelerate, verl, …)."""
_CONFIGS = "huggingface"
_OWN = ("config.json", "adapter_config.json", "modules.json", "taskmerge.json")
"""Files that only a model's own folder has."""
_AGAIN = "get the file again; or remove it if the folder contains only one weight file"


class Index(TypedDict):
    """An index of several weight files: tensor name -> file name."""

    weight_map: dict[str, str]


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder is a model's own: config and weights are directly in it, or it is in the hub's cache."""
    if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
        return True
    if not any((folder / name).is_file() for name in _OWN):
        return False
    names = [path.name for path in folder.iterdir()]
    return (folder / "modules.json").is_file() or any(_is_of(row, name) for row in READABLE for name in names)


def weights_below(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a trainer's checkpoint that has the weights, itself or one in it, and notes about it."""
    if weight_files(folder, required=False).names:
        return folder, ()
    below = [path for pattern in _BELOW for path in sorted(folder.glob(pattern)) if path.is_dir()]
    if len(below) != 1 or not weight_files(below[0], required=False).names:
        return folder, ()
    check_link(below[0], folder)
    return below[0], (f"the weights are in {below[0].name}/",)


def config_folder(folder: Path, modules: Mapping[str, str]) -> Path:
    """Return the folder of config and tokenizer: the model's, or the one next to it that verl writes."""
    beside = folder / _CONFIGS
    there = (folder / modules[""] / "config.json").exists()
    if there or modules != {"": ""} or not (beside / "config.json").is_file():
        return folder
    check_link(beside, folder)
    return beside


class Chosen(NamedTuple):
    """names: of the files that make up a model, in order. notes: what of the folder was passed over, and why."""

    names: list[str]
    notes: tuple[str, ...] = ()


def weight_files(folder: Path, required: bool = True) -> Chosen:
    """Return the files in `folder` that are one model: of the first format that is present."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_file() or path.is_symlink()]
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", str(folder), "check that the folder exists and that you may read it"
        ) from None
    chosen = choose_files(names, folder, required)
    for name in chosen.names:
        check_link(folder / name, folder)
    return chosen


def choose_files(names: Sequence[str], folder: Path, required: bool, formats: Sequence[Format] = READABLE) -> Chosen:
    """Choose the files among `names` of `folder` that are the model.

    formats: the formats that can be read, the best first. Raises CheckpointError for an index or a set of shards that
    is incomplete, for several files without an index, and, if `required`, if there is no model.
    """
    for row in formats:
        own = sorted(name for name in names if _is_of(row, name))
        found = Chosen(own) if row.joins is not None else _of_format(row, own, names, folder)
        if found.names:
            return found
    if required:
        raise CheckpointError("there are no readable weights in this folder", str(folder), advice(folder, names))
    return Chosen([])


def _is_of(row: Format, name: str) -> bool:
    """Whether a file of a folder is taken for weights of a format: not another's, no trainer's state, no adapter."""
    own = format_called(name) is row and not is_training_state(name)
    return own and (row is SAFETENSORS or name != row.adapter)


def _of_format(row: Format, own: Sequence[str], names: Sequence[str], folder: Path) -> Chosen:
    index = folder / row.index
    own = [name for name in own if row is SAFETENSORS or _filled(folder / name)]
    single = row.single in own
    if index.exists():
        listed = set(read_index(index)["weight_map"].values())
        if single and row.single not in listed:  # as transformers, which looks for it first
            gone = sorted(listed - set(names))
            why = f"; it lists {few(gone, 3)}, which {'is' if len(gone) == 1 else 'are'} missing" if gone else ""
            return Chosen([row.single], (f"{row.single} is read; {row.index} next to it is ignored{why}",))
        files = _files_of_index(index, names)
        return Chosen(files, _passed_over(set(own) - set(files), f"{row.index} does not list"))
    if single:
        return Chosen(
            [row.single], _passed_over(set(own) - {row.single}, f"{row.single} is the model and there is no index of")
        )
    return Chosen(_by_name(own, folder, row))


def _passed_over(names: Set[str], why: str) -> tuple[str, ...]:
    which = "it" if len(names) == 1 else "them"
    return (f"not read: {few(sorted(names), 3)} ({why} {which})",) if names else ()


def _by_name(names: Sequence[str], folder: Path, row: Format) -> list[str]:
    """Shards that are numbered, or the only file."""
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    if shards and len(shards) == len(names) and len({shard["stem"] for shard in shards}) == 1:
        total = int(shards[0]["total"])
        missing = sorted(set(range(1, total + 1)) - {int(shard["number"]) for shard in shards})
        if missing:
            told = f"[{few(missing)}]" if len(missing) > 10 else str(missing)
            raise CheckpointError(f"shards {told} of {total} are missing", str(folder), "finish the download")
        return list(names)
    if len(names) > 1:
        what = f"{len(names)} {row.name} files and no {row.index}: {few(names, 5)}"
        raise CheckpointError(what, str(folder), "give the path of the file that you mean")
    return list(names)


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


_MOST_INDEXES = 8
_indexes: dict[Path, tuple[tuple[int, ...], Index]] = {}


def read_index(path: Path) -> Index:
    """Return an index, its file names checked: all inside its folder. Raises CheckpointError.

    One of a hundred thousand tensors takes a second: the last ones are remembered while the file stays as it is.
    """
    try:
        found = path.stat()
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except OSError:
        return _read_index(path)
    known = _indexes.get(path)
    if known is not None and known[0] == state:
        opened(path)
        return known[1]
    index = _read_index(path)
    _indexes.pop(path, None)
    _indexes[path] = state, index
    for old in list(_indexes)[:-_MOST_INDEXES]:
        del _indexes[old]
    return index


def _read_index(path: Path) -> Index:
    move = "it has no weight_map from tensor names to file names: " + _AGAIN
    index: Index = read_json(path, Index, move)
    for name in sorted(set(index["weight_map"].values())):
        if name != PurePosixPath(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            tensor = next(tensor for tensor, where in index["weight_map"].items() if where == name)
            raise CheckpointError(
                f"{tensor!r} is listed with a path outside the folder: {name!r}",
                str(path),
                "download or write the index again",
            )
    return index


def _files_of_index(path: Path, names: Sequence[str]) -> list[str]:
    files = sorted(set(read_index(path)["weight_map"].values()))
    there = set(names)
    missing = [name for name in files if name not in there]
    if missing:
        what = f"lists {counted(len(missing), 'missing file')}: {few(missing, 5)}"
        raise CheckpointError(what, str(path), "finish the download")
    _check_shards(files, path, there)
    return files


def _check_shards(files: Sequence[str], path: Path, there: Set[str]) -> None:
    """Shards are numbered k of n: an index that lists fewer than n was cut, or is that of another model."""
    listed, there_too = _numbered(files), _numbered(there)
    for stem, total in sorted(listed):
        numbers = listed[stem, total].keys()
        left_out = set(range(1, int(total) + 1)) - numbers
        if left_out:
            here = sorted(name for number, name in there_too[stem, total].items() if number in left_out)
            lies = f"; {few(here, 3)} {'is' if len(here) == 1 else 'are'} in the folder" if here else ""
            told = few(sorted(left_out), 10)
            what = f"lists {len(numbers)} of the {int(total)} shards of {stem!r}, without {told}{lies}"
            raise CheckpointError(what, str(path), "get the index again: without it those tensors would be lost")


def _numbered(names: Iterable[str]) -> dict[tuple[str, str], dict[int, str]]:
    """(stem, total) -> number -> name, of the names of shards."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if shard := _SHARD.fullmatch(name):
            found.setdefault((shard["stem"], shard["total"]), {})[int(shard["number"])] = name
    return found


def check_index(folder: Path, files: Mapping[str, WeightFile]) -> None:
    """Check that the index, if there is one, agrees with the files' own headers on the file of each tensor."""
    path = folder / SAFETENSORS.index
    weight_map = read_index(path)["weight_map"] if path.exists() else {}
    if not set(weight_map.values()) <= set(files):  # passed over for a file that is whole
        return
    for tensor, name in weight_map.items():
        if tensor not in files[name].entries:
            raise CheckpointError(f"tensor {tensor!r} is not in {name!r}", str(path), "download it again")
