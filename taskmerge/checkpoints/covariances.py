"""Covariances of the inputs of a model's linear layers, stored next to its weights.

The file is in a folder of its own, `statistics/`, so that no reader takes it for a shard. It holds one float32 matrix
(inputs, inputs) a distinct input; layers that read the same input (query, key and value) share one, as the aliases in
its header say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import Header, read_file_header
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.output.record import add_to_record
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.stores.mirrors import remote_file
from taskmerge.errors import CheckpointError, few
from taskmerge.numbers.rounding import decode
from taskmerge.whole_files import written_whole
from taskmerge.words.json_text import parse_json
from taskmerge.words.system_errors import writing

FILE = Path("statistics") / "input_covariances.safetensors"
_ANEW = "collect them again: `taskmerge stats MODEL --probes …`"
FORMAT = "taskmerge input covariances 1"


class InputCovariances(Mapping[str, np.ndarray]):
    """Weight tensor's file name -> E[z zᵀ] of its layer's inputs, (inputs, inputs) float64; read when asked for.

    counts: tokens seen, by group ("audio", "text"): each group's covariance is normalised by its own count, then
    summed.
    """

    def __init__(
        self, matrices: Mapping[str, np.ndarray], aliases: Mapping[str, str], counts: Mapping[str, int]
    ) -> None:
        self._matrices = matrices
        self.aliases = dict(aliases)
        self.counts = dict(counts)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._matrices[self.aliases[name]], dtype=np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self.aliases)

    def __len__(self) -> int:
        return len(self.aliases)

    def save(self, folder: str | Path) -> Path:
        """Write into `folder`/statistics; returns the file."""
        from safetensors.numpy import save_file

        path = Path(folder) / FILE
        check_link(path, Path(folder))
        if path.exists():  # ours gives way, nothing else: this raises for it
            InputCovariances.open(folder)
        stored = {name: np.asarray(self._matrices[name], dtype=np.float32) for name in set(self.aliases.values())}
        header = {"format": FORMAT, "aliases": json.dumps(self.aliases), "counts": json.dumps(self.counts)}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as unfinished:
                save_file(stored, unfinished, metadata=header)
            add_to_record(Path(folder), str(FILE))
        return path

    @classmethod
    def open(cls, folder: str | Path) -> InputCovariances:
        """Open the covariances next to a checkpoint. Raises CheckpointError for a missing file or another model's."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise CheckpointError(
                "contains no covariances of its layers' inputs",
                str(folder),
                f"`taskmerge stats {folder} --probes …` collects them",
            )
        check_link(path, Path(folder))
        try:
            remote = remote_file(path)
            read = read_file_header(path) if remote is None else remote
        except CheckpointError as error:
            raise CheckpointError(f"cannot be read: {error.problems[0].what}", str(path), _ANEW) from None
        entries = read.entries if isinstance(read, Header) else read.entries.values()
        header, stored = read.metadata, {entry.info.name for entry in entries}
        if header.get("format") != FORMAT:
            raise CheckpointError("is not a file of input covariances", str(path), _ANEW)
        aliases: dict[str, str] = parse_json(header.get("aliases", ""), dict[str, str], f"{path}: aliases", _ANEW)
        counts: dict[str, int] = parse_json(header.get("counts", ""), dict[str, int], f"{path}: counts", _ANEW)
        if lost := set(aliases.values()) - stored:
            raise CheckpointError(f"lists matrices that are missing: {few(sorted(lost))}", str(path), _ANEW)
        return cls(_Stored(path), aliases, counts)


def covariances_beside(state_dict: StateDict) -> InputCovariances | None:
    """Return the covariances that belong to an opened checkpoint, however it is wrapped; None when there are none."""
    folder = state_dict.beside.folder
    return InputCovariances.open(folder) if folder is not None and (folder / FILE).is_file() else None


def covariance_of(state_dict: StateDict, name: str) -> np.ndarray | None:
    """Return the covariance for one tensor of an opened checkpoint, also through renaming views; None without one."""
    covariances = covariances_beside(state_dict)
    stored = state_dict.stored_name(name)
    return covariances.get(stored) if covariances is not None and stored is not None else None


class _Stored(Mapping[str, np.ndarray]):
    """Matrices of a file, one read at a time."""

    def __init__(self, path: Path) -> None:
        self._file = remote_file(path) or WeightFile(path.name, path)

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._file.entries[name].info
        return decode(self._file.read(name, 0, None), info.dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.entries)

    def __len__(self) -> int:
        return len(self._file.entries)
