"""Opening a checkpoint folder, file or hub repository: which files hold its tensors, headers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.folders import (
    check_index,
    choose_files,
    config_folder,
    weight_files,
    weights_below,
)
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.modules import is_needed, module_folders, modules_with_weights
from taskmerge.checkpoints.formats.table import READABLE, advice, open_file, open_files
from taskmerge.checkpoints.hub import HubPlace, Snapshot, locate, open_snapshot, why_in_ranges
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.checkpoints.stores.mirrors import mirrored
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError
from taskmerge.opened import opened

_listeners: list[Callable[[str], None]] = []


def on_note(listener: Callable[[str], None]) -> None:
    """Have `listener` told what is assumed, passed over or left out of every checkpoint that is opened from now on."""
    _listeners[:] = [listener]


PROMPTS = "config_sentence_transformers.json"


class _Quantization(TypedDict, total=False):
    quant_method: str | None
    weight_block_size: list[int] | None


class Config(TypedDict, total=False):
    """The keys of a config.json that are used; other keys are ignored."""

    model_type: str | None
    architectures: list[str] | None
    dtype: str | None
    torch_dtype: str | None
    text_config: dict[str, Any] | None
    llm_config: dict[str, Any] | None
    quantization_config: _Quantization | None


class Prompts(TypedDict, total=False):
    """The keys of a config_sentence_transformers.json that are used; other keys are ignored."""

    prompts: dict[str, str | None] | None
    default_prompt_name: str | None


class StoredStateDict(StateDict):
    """`StateDict` in safetensors or PyTorch files, on disk or on the hub.

    folder: their folder, with the side files. modules: see `Beside.module_folders`. files: (module, file) of every
    weight file. commit: of a hub repository, else None.
    """

    beside: Beside

    def __init__(self, label: str, folder: Path, modules: dict[str, str], files: list[tuple[str, WeightFile]],
                 commit: str | None = None, notes: tuple[str, ...] = ()) -> None:  # fmt: skip
        self.label = label
        self.folder = folder
        self.beside = Beside(
            config=read_config(folder / modules[""] / "config.json") or _told(files),
            folder=folder,
            module_folders=modules,
            prompts=read_prompts(folder / PROMPTS),
            commit=commit,
            files={part.name: part for _, file in files for part in file.parts},
            notes=(*notes, *(f"{file.name}: {note}" for _, file in files for note in (*file.notes, *_stripped(file)))),
        )
        for note in self.beside.notes:
            for listener in _listeners:
                listener(f"{label}: {note}")
        self.tensors: dict[str, TensorInfo] = {}
        self._owners: dict[str, tuple[WeightFile, str]] = {}
        for prefix, file in files:
            plain = unwrapped(file.entries)
            for stored, entry in file.entries.items():
                name = f"{prefix}/{plain[stored]}" if prefix else plain[stored]
                if name in self._owners:
                    raise CheckpointError(
                        f"tensor {name!r} is in two files: {self._owners[name][0].name} and {file.name}",
                        label,
                        "remove the file that does not belong to the model",
                    )
                self._owners[name] = (file, stored)
                info = entry.info
                self.tensors[name] = info if info.name == name else TensorInfo(name, info.dtype, info.shape)

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return self._owners[name][1]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        file, stored = self._owners[name]
        return file.read(stored, start, stop)

    def view(self, name: str) -> np.ndarray | None:
        """See `StateDict.view`."""
        file, stored = self._owners[name]
        return file.view(stored)

    def release(self, name: str, start: int, stop: int) -> None:
        """See `StateDict.release`."""
        file, stored = self._owners[name]
        file.release(stored, start, stop)

    def file_of(self, name: str) -> WeightFile:
        """Return the file of tensor `name`."""
        return self._owners[name][0]


def open_stored(text: str | Path, relative_to: Path | None = None, label: str | None = None) -> StoredStateDict:
    """Open a safetensors or PyTorch file, a checkpoint or sentence-transformers folder, a hub id or an hf:// uri.

    Reads headers, indexes and config only. Raises CheckpointError (missing, ambiguous or malformed files).
    """
    place = locate(str(text), relative_to)
    label = label or str(text)
    if isinstance(place, HubPlace):
        return _open_hub(place, label)
    if not place.is_dir():
        return StoredStateDict(label, place.parent, {"": ""}, [("", open_file(place.name, place))])
    if mirrored(place) is None:
        opened(place)
    modules = module_folders(place)
    files: list[tuple[str, WeightFile]] = []
    notes: tuple[str, ...] = ()
    for prefix, inside in modules.items():
        here, said = weights_below(place / inside) if not prefix else (place / inside, ())
        chosen = weight_files(here, required=not prefix and is_needed(here, modules))
        part = open_files(here, chosen.names, inside)
        check_index(here, dict(zip(chosen.names, part, strict=False)))
        files += [(prefix, file) for file in part]
        notes += (*said, *chosen.notes)
    if not files:
        weight_files(place / modules[""])  # raises what is wrong with them
    _check_modules_have_weights(place, modules, files)
    return StoredStateDict(label, config_folder(place, modules), modules, files, notes=notes)


def local_folder(text: str | Path, relative_to: Path | None = None) -> Path:
    """Return a checkpoint's folder on this disk, for libraries that open folders; one on the hub is downloaded first.

    Raises CheckpointError as `open_stored`; for a local folder only if it does not exist.
    """
    place = locate(str(text), relative_to)
    if isinstance(place, Path) and mirrored(place) is not None:
        raise CheckpointError("is in a store, but this needs a folder on this disk", str(text), "copy it here first")
    if isinstance(place, Path):
        return place
    stored = _open_hub(place, str(text), download=True)
    paths = [file.path for file in stored.beside.files.values()]  # asking for it downloads a file
    assert all(path.is_relative_to(stored.folder) for path in paths)
    return stored.folder


def _open_hub(place: HubPlace, label: str, download: bool = False) -> StoredStateDict:
    """A repository. download: whether its weight files are needed on this disk."""
    snapshot = open_snapshot(place)
    modules = module_folders(snapshot.folder)
    chosen: dict[str, dict[str, str]] = {}
    notes: tuple[str, ...] = ()
    for prefix, inside in modules.items():
        here = [
            PurePosixPath(name).name
            for name in snapshot.weight_files
            if str(PurePosixPath(name).parent) == (inside or ".")
        ]
        remote = [row for row in READABLE if row.remote]
        if not prefix and not here and is_needed(snapshot.folder / inside, modules):
            raise _without_weights(place, snapshot)
        found = choose_files(here, snapshot.folder / inside, required=False, formats=remote)
        chosen[prefix] = {name: _join(inside, name) for name in found.names}
        notes += found.notes
    paths = [path for part in chosen.values() for path in part.values()]
    if not paths:
        raise _without_weights(place, snapshot)
    why = "" if download else why_in_ranges(snapshot, paths)
    opened_files = _hub_files(snapshot, paths, bool(why))
    if why:
        notes += (
            f"weight files are read from the hub in ranges, and their sha256 is the one that the hub states: {why}",
        )
    for prefix, inside in modules.items():
        check_index(snapshot.folder / inside, {name: opened_files[path] for name, path in chosen[prefix].items()})
    files = [(prefix, opened_files[path]) for prefix, part in chosen.items() for path in part.values()]
    _check_modules_have_weights(snapshot.folder, modules, files)
    return StoredStateDict(label, snapshot.folder, modules, files, snapshot.commit, notes)


def _check_modules_have_weights(
    folder: Path, modules: Mapping[str, str], files: Iterable[tuple[str, WeightFile]]
) -> None:
    """Raise CheckpointError for a module that cannot be loaded: its folder came without its weights."""
    having = {prefix for prefix, _ in files}
    for place, kind in modules_with_weights(folder, modules).items():
        if place not in having:
            what = f"there are no readable weights of this module ({kind}), which modules.json lists"
            names = [path.name for path in (folder / place).glob("*")]
            raise CheckpointError(what, str(folder / place), advice(folder / place, names))


def _without_weights(place: HubPlace, snapshot: Snapshot) -> CheckpointError:
    what = "there are no readable weights in this repository"
    return CheckpointError(what, str(place), advice(snapshot.folder, snapshot.others))


def _hub_files(snapshot: Snapshot, names: Sequence[str], ranges: bool) -> dict[str, WeightFile]:
    """Weight files by name: those that are on this disk, and the others as they are going to be read."""
    here = {name: snapshot.folder / name for name in names if (snapshot.folder / name).exists()}
    far = [name for name in names if name not in here and name in snapshot.stated] if ranges else []
    found: dict[str, WeightFile] = {}
    if far:
        from taskmerge.checkpoints.stores.hub_ranges import HubFile, HubRepository  # loaded where it is used

        store = HubRepository(snapshot, snapshot.stated)
        found = {name: HubFile(name, snapshot.folder, snapshot, store) for name in far}
    return {name: found.get(name) or WeightFile(name, here.get(name), snapshot) for name in names}


WRAPPERS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"))
"""Path components that torch.compile, activation checkpointing, FSDP and Fabric put into names; no model's own."""


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Map each name in a file to the name without `WRAPPERS`; unchanged names if two would become equal."""
    names = list(names)
    together = "\n".join(names)
    if not any(wrapper in together for wrapper in WRAPPERS):  # nearly always, and names may be very many
        return {name: name for name in names}
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in plain}


def _stripped(file: WeightFile) -> tuple[str, ...]:
    changed = {part for name, plain in unwrapped(file.entries).items() if name != plain for part in name.split(".")}
    parts = sorted(WRAPPERS & changed)
    return (f"names are read without {', '.join(map(repr, parts))}",) if parts else ()


def _told(files: list[tuple[str, WeightFile]]) -> Mapping[str, Any]:
    """What the files themselves say of the config, where no config.json does."""
    return next((file.config for prefix, file in files if not prefix and file.config), {})


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a config.json; {} if it is missing."""
    if not (path.exists() or path.is_symlink()):
        return {}
    config: Config = read_json(path, Config, "config.json is not a table of settings as transformers writes it")
    return dict(config)


def read_prompts(path: Path) -> Mapping[str, Any]:
    """Read a config_sentence_transformers.json; {} if it is missing."""
    if not (path.exists() or path.is_symlink()):
        return {}
    prompts: Prompts = read_json(path, Prompts)
    return dict(prompts)


def _join(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name
