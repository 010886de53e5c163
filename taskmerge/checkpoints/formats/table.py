"""FORMATS: one row a format of weight files. How it is recognised, how it is opened, or what to do instead.

This table alone decides which file is a checkpoint. A new format is a new row; one that can be read also has
a class with the interface of `files.WeightFile`.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from taskmerge.checkpoints.formats.archives import LEGACY_MAGIC
from taskmerge.checkpoints.formats.dcp import join_checkpoint
from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.fsdp import join_ranks
from taskmerge.checkpoints.formats.pickles import PickleFile
from taskmerge.checkpoints.formats.wrappers import SAVE_ANEW
from taskmerge.checkpoints.stores.mirrors import remote_file
from taskmerge.errors import CheckpointError, few
from taskmerge.opened import opened

Magic = Callable[[bytes], bool]
HEAD = 512
"""Bytes from the start of a file that are looked at."""


@dataclass(frozen=True)
class Format:
    """One format of weight files.

    name: what messages call it.  suffixes: of its files, in lower case.  names: globs of file names that mean it
    whatever the suffix.  magic: whether a file that begins with these bytes is of it.  certain: no other format begins
    so: the bytes decide, whatever the file is called.  opens: makes the reader of a local file from (name, path).
    joins: makes one reader of several files from (folder, names), where a model is spread over them. None of the two: a
    format that is not read.  move: what the user can do with one that is not read.  single, index, adapter: what
    a folder calls the only file, the index of several, and the file of a PEFT adapter.  remote: headers are read on
    the hub without downloading the file.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    magic: Magic | None = None
    certain: bool = False
    opens: Callable[[str, Path], WeightFile] | None = None
    joins: Callable[[Path, Sequence[str]], WeightFile] | None = None
    move: str = ""
    single: str = ""
    index: str = ""
    adapter: str = ""
    remote: bool = False

    def called(self, name: str) -> bool:
        """Return whether a file of this name counts as one of this format."""
        name = Path(name).name.lower()
        return name.endswith(self.suffixes) or any(fnmatchcase(name, glob) for glob in self.names)

    def shard(self, number: int, total: int) -> str:
        """Return the name of one of several files of a model."""
        stem, _, suffix = self.single.rpartition(".")
        return self.single if total == 1 else f"{stem}-{number:05d}-of-{total:05d}.{suffix}"


def _starts(*texts: bytes) -> Magic:
    return lambda head: head.startswith(texts)


def _safetensors_magic(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= 100_000_000


_AS_SAFETENSORS = "name the safetensors or PyTorch files that it was made from"

SAFETENSORS = Format(
    "safetensors",
    suffixes=(".safetensors",),
    magic=_safetensors_magic,
    certain=True,
    opens=WeightFile,
    single="model.safetensors",
    index="model.safetensors.index.json",
    adapter="adapter_model.safetensors",
    remote=True,
)
PYTORCH = Format(
    "PyTorch",
    suffixes=(".bin", ".pt", ".pth", ".ckpt"),
    magic=_starts(b"PK\x03\x04", b"PK\x05\x06", LEGACY_MAGIC),
    opens=PickleFile,
    move=SAVE_ANEW,
    single="pytorch_model.bin",
    index="pytorch_model.bin.index.json",
    adapter="adapter_model.bin",
)
FORMATS: tuple[Format, ...] = (
    SAFETENSORS,
    Format("Git LFS pointer", magic=_starts(b"version https://git-lfs"), certain=True,
           move="this is only a pointer to the file: run `git lfs pull` in its repository, or download the file "
               "itself"),
    Format("web page", magic=_starts(b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), certain=True,
           move="the download returned a web page instead of the file: download it again, with HF_TOKEN if it is "
               "gated"),
    Format("GGUF", (".gguf",), magic=_starts(b"GGUF"), certain=True,
           move="name the safetensors folder that it was made from, or write one: transformers' "
                "from_pretrained(FOLDER, gguf_file=NAME), then save_pretrained(OUT)"),
    Format("GGML", (".ggml",), magic=_starts(b"lmgg", b"tjgg", b"fmgg"), certain=True, move=_AS_SAFETENSORS),
    Format("HDF5 (Keras, TensorFlow)", (".h5", ".hdf5"), magic=_starts(b"\x89HDF\r\n\x1a\n"), certain=True,
           move=_AS_SAFETENSORS),
    Format("NumPy", (".npy",), magic=_starts(b"\x93NUMPY"), certain=True,
           move="save it by name: safetensors.numpy.save_file({NAME: numpy.load(FILE)}, 'model.safetensors')"),
    Format("NumPy archive", (".npz",),
           move="save the arrays: safetensors.numpy.save_file(dict(numpy.load(FILE)), 'model.safetensors')"),
    Format("PyTorch, sharded by torch.distributed.checkpoint", (".distcp",), ("*.distcp",), joins=join_checkpoint,
           move="name the folder that contains all .distcp files and .metadata"),
    Format("PyTorch, one file per rank", names=("*world_size_*_rank_*.pt",), joins=join_ranks,
           move="name the folder that contains the files of all ranks"),
    Format("PyTorch, flattened by FSDP", names=("*_fsdp*_rank*.pt", "*_fsdp*_rank*.bin"),
           move="save the complete model: FSDP's state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT"),
    Format("Megatron", names=("model_optim_rng.pt", "distrib_optim.pt"),
           move="convert it with the trainer's own script (Megatron-LM: tools/checkpoint/convert.py)"),
    Format("Llama, as Meta publishes it", names=("consolidated.[0-9][0-9].pth",),
           move="convert it with transformers' convert_llama_weights_to_hf.py"),
    Format("PyTorch, sharded by DeepSpeed", names=("*mp_rank_*_model_states.pt", "*zero_pp_rank_*_optim_states.pt"),
           move="join the shards: python zero_to_fp32.py FOLDER OUT --safe_serialization"),
    Format("OpenVINO", names=("openvino_*.bin", "openvino_*.xml"), move=_AS_SAFETENSORS),
    PYTORCH,
    Format("pickle", (".pkl", ".pickle"), move="loading it can run any program; save its tensors as safetensors"),
    Format("Flax", (".msgpack",), move=_AS_SAFETENSORS),
    Format("ONNX", (".onnx", ".onnx_data"), move=_AS_SAFETENSORS),
    Format("TensorFlow checkpoint", names=("*.ckpt.index", "*.data-?????-of-?????"), move=_AS_SAFETENSORS),
    Format("TensorFlow", (".pb", ".tflite"), move=_AS_SAFETENSORS),
    Format("Core ML", (".mlmodel", ".mlpackage"), move=_AS_SAFETENSORS),
    Format("NeMo archive", (".nemo",), move="unpack it (it is a tar file) and convert its weights with NeMo's scripts"),
)  # fmt: skip
READABLE: tuple[Format, ...] = tuple(
    sorted((row for row in FORMATS if row.opens or row.joins), key=lambda row: row.opens is None)
)
"""Formats that are read, the preferred first: files that are whole before those that must be joined."""

_NOT_WEIGHTS = (
    "training_args.bin", "optimizer*", "optim_*", "scheduler*", "lr_scheduler*", "rng_state*", "random_states_*",
    "scaler.pt", "*_optim_states.pt", "extra_state_*", "sampler*.bin", "dl_state_dict.bin", "non_lora_trainables.bin",
)  # fmt: skip


def is_weight_file(name: str) -> bool:
    """Return whether a file of this name counts as weights in a format that can be read."""
    return not is_training_state(name) and any(row.called(name) for row in READABLE)


def is_training_state(name: str) -> bool:
    """Return whether a file that looks like weights is a trainer's own: options, optimiser, random numbers."""
    return any(fnmatchcase(Path(name).name, glob) for glob in _NOT_WEIGHTS)


def format_called(name: str) -> Format | None:
    """Return the format that a file name means; None for an unknown one. Unambiguous names have priority."""
    own = Path(name).name.lower()
    special = (row for row in FORMATS if any(fnmatchcase(own, glob) for glob in row.names))
    return next(special, None) or next((row for row in FORMATS if row.called(name)), None)


def format_of(path: Path) -> Format | None:
    """Return the format of a file: by its first bytes if they are certain, else by its name. None if unknown.

    Raises CheckpointError when it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for a writer
            raise CheckpointError("is not a file", str(path), "give the path of a file of weights")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", str(path), "check that the file exists and that you may read it"
        ) from None
    certain = next((row for row in FORMATS if row.certain and row.magic is not None and row.magic(head)), None)
    named = format_called(path.name)
    # what is called safetensors is read as such: its own reader says best what is broken
    return named if named is SAFETENSORS and certain in (None, SAFETENSORS) else certain or named


def open_file(name: str, path: Path) -> WeightFile:
    """Open a local weight file. name: its name in its checkpoint.

    Raises CheckpointError for a format that is not read, named and with what to do instead, and what the reader raises.
    """
    if (remote := remote_file(path, name)) is not None:
        return remote
    row = format_of(path)
    if row is None:
        raise CheckpointError(f"{path.name!r} is not a safetensors file", str(path), advice(path.parent))
    if row.opens is None:  # alone, it is read only with others
        raise CheckpointError(f"{path.name!r} is not a safetensors file; its format: {row.name}", str(path), row.move)
    if not row.called(path.name):
        suffix = row.suffixes[0]
        raise CheckpointError(f"{path.name!r} has the contents of another format: {row.name}", str(path),
                              f"rename it to {path.stem}{suffix}")  # fmt: skip
    opened(path)
    return row.opens(name, path)


def open_files(folder: Path, names: Sequence[str], inside: str = "") -> list[WeightFile]:
    """Open the files `names` of a folder that are one model. inside: prefix of their names in the checkpoint.

    Raises CheckpointError as `open_file`.
    """
    rows = {format_called(name) for name in names}
    row = rows.pop() if len(rows) == 1 else None
    if row is not None and row.joins is not None:
        opened(*(folder / name for name in names))
        return [row.joins(folder, names)]
    return [open_file(f"{inside}/{name}" if inside else name, folder / name) for name in names]


def advice(folder: Path, names: Iterable[str] | None = None) -> str:
    """Return the next move for a folder without readable weights, according to its other files. names: of its files."""
    if names is None:
        try:
            names = [path.name for path in folder.iterdir()]
        except OSError:
            names = []
    known: dict[str, list[str]] = {}
    names = sorted(names)
    if adapters := [row.adapter for row in READABLE if row.adapter and row.adapter in names]:
        return f"{adapters[0]} is an adapter: name the model that it belongs to, and give this folder as its `adapter`"
    for name in names:
        row = format_called(name)
        if row is not None and not is_training_state(name):
            known.setdefault(row.name, []).append(name)
    for row in FORMATS:
        if found := known.get(row.name):
            return (
                f"only {few(map(repr, found), 3)} {'is' if len(found) == 1 else 'are'} present: {row.move or SAVE_ANEW}"
            )
    return f"name a folder with {SAFETENSORS.single} or an index"
