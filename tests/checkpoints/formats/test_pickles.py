"""PyTorch's own files: the tensors in them, and nothing else of them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from taskmerge import merging as fusion
from taskmerge import recipes
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import CheckpointError


def save(folder: Path, seed: int, shards: int = 1) -> dict[str, torch.Tensor]:
    """A tiny Llama saved as transformers 4 did by default."""
    model = zoo.BY_NAME["Llama"].build(seed=seed)
    state = OrderedDict(model.state_dict())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return state
    names = list(state)
    weight_map = {
        name: f"pytorch_model-{place % shards + 1:05d}-of-{shards:05d}.bin" for place, name in enumerate(names)
    }
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return state


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_read_where_asked(tmp_path: Path, shards: int) -> None:
    state = save(tmp_path / "model", 0, shards)
    weights = open_stored(tmp_path / "model")
    assert set(weights.tensors) == set(state)
    for name, value in state.items():
        assert weights.tensors[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(weights.read(name), value.numpy().reshape(-1))
        np.testing.assert_array_equal(weights.read(name, 3, 11), value.numpy().reshape(-1)[3:11])


def test_bfloat16_and_views_that_are_not_in_order(tmp_path: Path) -> None:
    matrix = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    torch.save({"a": matrix, "b": matrix.T, "c": torch.tensor(2.5)}, tmp_path / "model.pt")
    weights = open_stored(tmp_path / "model.pt")
    assert weights.tensors["b"].shape == (4, 3) and weights.tensors["b"].dtype == "BF16"
    bits = matrix.T.contiguous().view(torch.int16).numpy().reshape(-1).view("<u2")
    np.testing.assert_array_equal(weights.read("b"), bits)
    np.testing.assert_array_equal(weights.read("c"), np.array([2.5], "f4"))


def test_a_base_of_pickles_becomes_safetensors(tmp_path: Path) -> None:
    base, one = save(tmp_path / "base", 0), save(tmp_path / "one", 1, shards=2)
    recipe = recipes.from_dict(
        {"base": str(tmp_path / "base"), "specialists": {"one": {"model": str(tmp_path / "one"), "weight": 0.5}},
         "merge": {"method": "task_arithmetic"}}
    )  # fmt: skip
    fusion.execute(fusion.plan(recipe), recipe, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin*"))
    out = open_stored(tmp_path / "out")
    for name, value in base.items():
        expected = value.double() + 0.5 * (one[name].double() - value.double())
        np.testing.assert_allclose(out.read(name), expected.numpy().reshape(-1), rtol=2e-7, atol=1e-9)


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def hostile(path: Path, marker: Path) -> dict[str, Any]:
    command = f"touch {marker}"
    return {
        "plain pickle": lambda: path.write_bytes(pickle.dumps(Evil(command))),
        "saved by torch": lambda: torch.save(Evil(command), path),
        "beside a tensor": lambda: torch.save({"a": torch.ones(2), "b": Evil(command)}, path),
        "empty": lambda: path.write_bytes(b""),
        "noise": lambda: path.write_bytes(bytes(range(256)) * 8),
        "an empty zip": lambda: zipfile.ZipFile(path, "w").close(),
        "a list": lambda: torch.save([torch.ones(2)], path),
        "numbers": lambda: torch.save({"a": 3}, path),
        "two models": lambda: torch.save({"one": {"a": torch.ones(2)}, "two": {"a": torch.ones(2)}}, path),
        "an optimizer alone": lambda: torch.save(torch.optim.Adam([torch.ones(2)]).state_dict(), path),
        "sparse": lambda: torch.save({"a": torch.eye(3).to_sparse()}, path),
        "a module": lambda: torch.save(torch.nn.Linear(2, 2), path),
    }


@pytest.mark.parametrize("name", list(hostile(Path(), Path())))
@pytest.mark.filterwarnings("ignore")
def test_nothing_but_tensors_comes_out(tmp_path: Path, name: str) -> None:
    folder, marker = tmp_path / "model", tmp_path / "pwned"
    folder.mkdir()
    hostile(folder / "pytorch_model.bin", marker)[name]()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_stored(folder)
    assert not marker.exists()


@pytest.mark.parametrize("target", ["../other.bin", "/etc/passwd", "missing.bin", ""])
def test_an_index_stays_in_its_folder(tmp_path: Path, target: str) -> None:
    save(tmp_path / "model", 0, shards=2)
    save(tmp_path / "other", 0)
    (tmp_path / "model" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\.index\.json"):
        open_stored(tmp_path / "model")


def test_safetensors_come_first(tmp_path: Path) -> None:
    folder = zoo.save(zoo.BY_NAME["Llama"].build(), tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(f"touch {tmp_path / 'pwned'}")))
    assert open_stored(folder).tensors and not (tmp_path / "pwned").exists()
