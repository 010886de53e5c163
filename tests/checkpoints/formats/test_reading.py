"""Opening checkpoints: headers only, every layout of files, and hostile files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import TORCH, bytes_of, random_model, same_bits, write_model, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from taskmerge import Checkpoint, recipes
from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import build_header, read_file_header
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError
from taskmerge.merging import plan
from taskmerge.numbers.dtypes import DTYPES

EVERY_FORMAT = {
    **{f"float.{name}": torch.linspace(-2, 2, 12).reshape(3, 4).to(dtype) for name, dtype in TORCH.items()},
    "small.a": torch.linspace(-2, 2, 6).to(torch.float8_e4m3fn),
    "small.b": torch.linspace(-2, 2, 6).to(torch.float8_e5m2),
    "whole.a": torch.arange(-4, 4, dtype=torch.int64),
    "whole.b": torch.arange(-4, 4, dtype=torch.int32),
    "whole.c": torch.arange(-4, 4, dtype=torch.int16),
    "whole.d": torch.arange(-4, 4, dtype=torch.int8),
    "whole.e": torch.arange(8, dtype=torch.uint8),
    "whole.f": torch.arange(8).to(torch.uint16),
    "whole.g": torch.arange(8).to(torch.uint32),
    "truth": torch.tensor([[True], [False]]),
    "pair": torch.tensor([1 + 2j, -3j]),
    "scalar": torch.tensor(0.5),
    "empty": torch.zeros(0, 3),
}


def refused(path: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_stored(path)
    return str(caught.value)


# --- what is read -------------------------------------------------------------------------------------------------


def test_every_format_comes_as_the_safetensors_library_has_it(tmp_path: Path) -> None:
    save_file(EVERY_FORMAT, tmp_path / "model.safetensors")
    weights = open_stored(tmp_path)
    assert isinstance(weights, StateDict)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(weights.tensors) == set(stored)
    for name, tensor in stored.items():
        info = weights.tensors[name]
        assert (info.shape, info.count, info.nbytes) == (tuple(tensor.shape), tensor.numel(), tensor.nbytes)
        read = weights.read(name)
        assert read.ndim == 1 and read.dtype == info.format.storage and not read.flags.writeable
        assert read.tobytes() == bytes_of(tensor)
        assert same_bits(Checkpoint(weights)[name], tensor)


@given(start=some.integers(0, 40), length=some.integers(0, 40), name=some.sampled_from(["a", "b"]))
@settings(max_examples=60, deadline=None)
def test_any_slice_of_a_tensor(tmp_path_factory: pytest.TempPathFactory, start: int, length: int, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "slices.safetensors"
    tensors = {"a": torch.arange(35, dtype=torch.bfloat16).reshape(5, 7), "b": torch.arange(40.0).double()}
    if not path.exists():
        save_file(tensors, path)
    flat = tensors[name].flatten()[start : start + length]
    assert open_stored(path).read(name, start, start + length).tobytes() == bytes_of(flat)


def test_nothing_but_headers_is_read_until_a_tensor_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of 400 GB each, holes but for the header: opened, subtracted, selected and planned at once."""
    count = 100 << 30
    for label in ("base", "image", "audio"):
        (tmp_path / label).mkdir()
        header, entries = build_header([TensorInfo("model.layers.0.mlp.weight", "F32", (count,))], {})
        with (tmp_path / label / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(entries[-1].stop)
    mapped: list[str] = []
    really_map = WeightFile.mapped

    def noting(file: WeightFile) -> Any:
        mapped.append(file.name)
        return really_map(file)

    monkeypatch.setattr(WeightFile, "mapped", noting)
    base, image = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "image")
    vector = 0.5 * (image - base).only("backbone")
    moved = base + vector
    assert moved.tensors["model.layers.0.mlp.weight"].count == count
    recipe = write_recipe(tmp_path, base="base", specialists={"image": "image", "audio": "audio"})
    assert plan(recipes.load(recipe)).bytes_written > 4 * count
    assert mapped == []
    assert moved.underlying.read("model.layers.0.mlp.weight", count - 3, count).tolist() == [0, 0, 0]
    assert mapped == ["model.safetensors"] * 2  # the base and the specialist, each once


# --- which files --------------------------------------------------------------------------------------------------


def sharded(folder: Path, tensors: dict[str, torch.Tensor], total: int = 3, index: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    weight_map: dict[str, str] = {}
    for number in range(1, total + 1):
        group = dict(list(tensors.items())[number - 1 :: total])
        file = f"model-{number:05d}-of-{total:05d}.safetensors"
        save_file(group, folder / file)
        weight_map |= dict.fromkeys(group, file)
    if index:
        table = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_shards_are_one_model(tmp_path: Path, index: bool) -> None:
    tensors = random_model(0)
    weights = open_stored(sharded(tmp_path / "m", tensors, index=index))
    assert set(weights.tensors) == set(tensors)
    assert all(weights.read(name).tobytes() == bytes_of(tensor) for name, tensor in tensors.items())


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    save_file(random_model(0), tmp_path / "one.safetensors")
    save_file(random_model(1), tmp_path / "two.safetensors")
    weights = open_stored(tmp_path / "two.safetensors")
    name = "model.layers.0.norm.weight"
    assert weights.read(name).tobytes() == bytes_of(random_model(1)[name])
    message = refused(tmp_path)
    assert "2 safetensors files and no model.safetensors.index.json: one.safetensors, two.safetensors" in message
    assert "give the path of the file that you mean" in message


def test_paths_start_at_the_recipe_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "recipes" / "model", random_model(0))
    write_model(tmp_path / "here" / "model", random_model(1))
    write_model(tmp_path / "here" / "other", random_model(2))
    monkeypatch.chdir(tmp_path / "here")
    name = "model.layers.0.norm.weight"
    opened = [open_stored(text, tmp_path / "recipes").read(name).tobytes() for text in ("model", "other")]
    assert opened == [bytes_of(random_model(0)[name]), bytes_of(random_model(2)[name])]


def test_a_sentence_transformers_folder_is_all_its_modules(tmp_path: Path) -> None:
    write_model(tmp_path / "0_Transformer", {"model.layers.0.weight": torch.ones(2, 2)})
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(3, 2)}, tmp_path / "2_Dense" / "model.safetensors")
    rows = [{"idx": i, "path": path} for i, path in enumerate(["0_Transformer", "1_Pooling", "2_Dense", "3_Normalize"])]
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    weights = open_stored(tmp_path)
    assert list(weights.tensors) == ["model.layers.0.weight", "2_Dense/linear.weight"]
    assert weights.beside.module_folders == {"": "0_Transformer", "1_Pooling": "1_Pooling", "2_Dense": "2_Dense"}
    assert weights.config == {"model_type": "llama"}
    assert weights.read("2_Dense/linear.weight").tolist() == [1.0] * 6


Break = Callable[[Path], object]


def edit_index(change: Callable[[dict[str, Any]], Any]) -> Break:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        table = json.loads(path.read_text())
        changed = change(table)
        path.write_text(json.dumps(table if changed is None else changed))

    return apply


def map_to(tensor: str, file: str) -> Break:
    return edit_index(lambda table: table["weight_map"].update({tensor: file}))


SHARD = "model-00002-of-00003.safetensors"
NAME = "model.layers.0.norm.weight"
BROKEN_FOLDERS: dict[str, tuple[Break, str]] = {
    "a tensor of the index is in no file": (map_to("model.lost", SHARD), f"tensor 'model.lost' is not in '{SHARD}'"),
    "a tensor is in another file than the index says": (
        map_to(NAME, "model-00001-of-00003.safetensors"),
        f"tensor '{NAME}' is not in 'model-00001-of-00003.safetensors'",
    ),
    "a file of the index is missing": (
        lambda folder: (folder / SHARD).unlink(),
        f"lists 1 missing file: {SHARD}\n    finish the download",
    ),
    "an index that leaves the folder": (
        map_to("x", "../secret.safetensors"),
        "'x' is listed with a path outside the folder",
    ),
    "an index with an absolute path": (
        map_to("x", "/etc/passwd"),
        "'x' is listed with a path outside the folder: '/etc/passwd'",
    ),
    "an index with a backslash": (map_to("x", "..\\y.safetensors"), "'x' is listed with a path outside the folder"),
    "an index without a map": (edit_index(lambda table: table.pop("weight_map") and None), "no weight_map from tensor"),
    "an index of numbers": (edit_index(lambda table: {"weight_map": {"a": 1}}), "no weight_map from tensor names"),
    "an index that is a list": (edit_index(lambda table: [1]), "no weight_map from tensor names to file names"),
    "an index that is no JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        "model.safetensors.index.json: not valid JSON",
    ),
    "a tensor in two files": (
        lambda folder: save_file(random_model(0), folder / SHARD),
        f"is in two files: model-00001-of-00003.safetensors and {SHARD}",
    ),
    "a config that is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "config.json is not a table",
    ),
    "modules.json that leaves the folder": (
        lambda folder: (folder / "modules.json").write_text('[{"path": "../other"}]'),
        "modules.json: lists a folder outside this one: '../other'",
    ),
    "modules.json without paths": (
        lambda folder: (folder / "modules.json").write_text("[{}]"),
        "modules.json: [0] lacks 'path'\n    not a list of modules that each have a path",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FOLDERS)
def test_a_broken_folder_is_told(tmp_path: Path, kind: str) -> None:
    folder = sharded(tmp_path / "m", random_model(0))
    damage, message = BROKEN_FOLDERS[kind]
    damage(folder)
    said = refused(folder)
    assert message in said and str(folder) in said


def test_shards_without_index_must_be_complete(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", random_model(0), index=False)
    (folder / SHARD).unlink()
    assert "shards [2] of 3 are missing" in refused(folder)


def test_folders_without_weights(tmp_path: Path) -> None:
    assert "no readable weights in this folder\n    name a folder with model.safetensors" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "only 'pytorch_model.bin' is present: save only its tensors" in refused(tmp_path)
    assert "'pytorch_model.bin' is not a safetensors file" in refused(tmp_path / "pytorch_model.bin")


# --- links --------------------------------------------------------------------------------------------------------


def test_links_stay_inside_or_point_to_the_hub_cache(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    save_file(random_model(0), outside)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(outside)
    message = refused(tmp_path / "linked")
    assert f"a link to a file outside the folder: {outside}" in message
    assert "copy the file into the folder, or name it" in message

    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "2_Dense").mkdir(parents=True)
    outside.rename(cache / "blobs" / "f00")
    save_file({"linear.weight": torch.ones(2, 2)}, cache / "blobs" / "f01")
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00")
    (snapshot / "2_Dense" / "model.safetensors").symlink_to("../../../blobs/f01")
    (snapshot / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    assert "2_Dense/linear.weight" in open_stored(snapshot).tensors


# --- hostile headers ----------------------------------------------------------------------------------------------


def raw(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, dtype: str = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file has 0 bytes"),
    "short": (b"\x01\x00", "the file has 2 bytes"),
    "header beyond the file": (raw(b"{}", length=999), "the header claims 999 bytes, but the file has only 10"),
    "header beyond all bounds": (raw(b"{}", length=2**63), "the format allows 100,000,000"),
    "no JSON": (raw(b"{nope}"), "its header is not JSON"),
    "no UTF-8": (raw(b"\xff\xfe"), "its header is not JSON"),
    "a list": (raw(b"[]"), "its header is not a JSON object"),
    "nested without end": (raw(b"[" * 100_000), "its header is not JSON"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__ is not a table of text"),
    "a name twice": (
        raw(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "the name 'a' occurs twice",
    ),
    "an unknown dtype": (raw({"a": entry(0, 8, "F99")}, bytes(8)), "tensor 'a' has the unknown dtype 'F99'"),
    "a dtype that is a list": (raw({"a": entry(0, 8, ["F32"])}, bytes(8)), "unknown dtype"),  # type: ignore[arg-type]
    "a negative size": (raw({"a": entry(0, 8, shape=[-2])}, bytes(8)), "tensor 'a' has the invalid shape [-2]"),
    "a fractional size": (raw({"a": entry(0, 8, shape=[2.0])}, bytes(8)), "tensor 'a' has the invalid shape [2.0]"),
    "a size that overflows": (raw({"a": entry(0, 8, shape=[2**62, 4])}, bytes(8)), "needs 73,786,976,294,838,206,464"),
    "offsets beyond the file": (raw({"a": entry(0, 800)}, bytes(8)), "tensor 'a' has the invalid offsets [0, 800]"),
    "offsets that run back": (raw({"a": entry(8, 0)}, bytes(8)), "tensor 'a' has the invalid offsets [8, 0]"),
    "too few bytes": (raw({"a": entry(0, 4)}, bytes(4)), "F32 [2] needs 8 bytes, its offsets give 4"),
    "overlap": (raw({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "tensor 'b' overlaps the tensor before it"),
    "a hole": (raw({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "tensor 'b' leaves a gap before it"),
    "bytes left over": (raw({"a": entry(0, 8)}, bytes(9)), "the file ends at"),
    "an unknown key": (
        raw({"a": {**entry(0, 8), "code": "x"}}, bytes(8)),
        "must have exactly dtype, shape and data_offsets",
    ),
    "an entry that is text": (raw({"a": "b"}), "must have exactly dtype, shape and data_offsets"),
}
STRICTER_THAN_THE_LIBRARY = {"an unknown key", "a name twice"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, kind: str) -> None:
    data, message = HOSTILE[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    said = refused(path)
    assert said.startswith(f"{path}: not a valid safetensors file: ")
    assert message in said and "download or save it again; nothing was read from it" in said
    if kind not in STRICTER_THAN_THE_LIBRARY:
        with pytest.raises(SafetensorError), safe_open(path, "pt"):
            pass


@given(data=some.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    with pytest.raises(CheckpointError):
        open_stored(path)


INFOS = some.builds(
    lambda rows: [TensorInfo(f"t{i}", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(rows)],
    some.lists(
        some.tuples(
            some.sampled_from([name for name, row in DTYPES.items() if row.storage is not None]),
            some.lists(some.integers(0, 4), max_size=4),
        ),
        max_size=8,
    ),
)


@given(infos=INFOS, metadata=some.dictionaries(some.text(max_size=5), some.text(max_size=5), max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_built_header_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, infos: list[TensorInfo], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "built.safetensors"
    header, entries = build_header(infos, metadata)
    path.write_bytes(header + bytes(entries[-1].stop - len(header) if entries else 0))
    read = read_file_header(path)
    assert len(header) % 8 == 0 and read.size == len(header)
    assert sorted(map(repr, read.entries)) == sorted(map(repr, entries)) and read.metadata == metadata
    with safe_open(path, "np") as opened:
        assert set(opened.keys()) == {info.name for info in infos}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")

    def deny(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", deny)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: Permission denied"):
            open_stored(tmp_path)
    assert np.array_equal(open_stored(tmp_path).read("a"), [1, 1])


@pytest.mark.parametrize("there", [True, False])
def test_an_index_that_lacks_a_shard_loses_no_tensor(tmp_path: Path, there: bool) -> None:
    tensors = random_model(seed=1)
    folder = sharded(tmp_path / "model", tensors)
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    last = sorted(set(table["weight_map"].values()))[-1]
    table["weight_map"] = {name: file for name, file in table["weight_map"].items() if file != last}
    path.write_text(json.dumps(table))
    if not there:
        (folder / last).unlink()
    said = refused(folder)
    assert "lists 2 of the 3 shards of 'model', without 3" in said and str(path) in said
    assert (last in said) is there


@pytest.mark.parametrize("index", [True, False])
def test_weights_beside_the_model_are_named_when_they_are_not_read(tmp_path: Path, index: bool) -> None:
    tensors = random_model(seed=1)
    folder = sharded(tmp_path / "model", tensors, total=3 if index else 1, index=index)
    if not index:
        (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    save_file(tensors, folder / "consolidated.safetensors")
    opened = open_stored(folder)
    assert sorted(opened.tensors) == sorted(tensors)
    assert any("not read: consolidated.safetensors" in note for note in opened.beside.notes)
