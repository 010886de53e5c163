"""Tensors already in memory: NumPy, torch, live modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from checkpoint_files import bytes_of, random_model, read_model, same_bits

from taskmerge import Checkpoint
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import CheckpointError, UsageError

TORCH_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_torch_format(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]).to(dtype)
    tensors = {"matrix": values.reshape(2, 3), "scalar": values[1], "empty": values[:0].reshape(0, 4)}
    weights = MemoryStateDict(tensors)
    assert isinstance(weights, StateDict)
    for name, tensor in tensors.items():
        read = weights.read(name)
        assert read.ndim == 1 and read.dtype == weights.tensors[name].format.storage
        assert read.tobytes() == bytes_of(tensor)
        assert weights.read(name, 1, 3).tobytes() == bytes_of(tensor.reshape(-1)[1:3])
        assert same_bits(Checkpoint(weights)[name], tensor)
    saved = read_model(Checkpoint(weights).save(tmp_path / "out"))
    assert all(same_bits(saved[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "?", "c8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_numpy_format_in_either_byte_order(dtype: str, order: Literal["<", ">"], tmp_path: Path) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(np.dtype(dtype).newbyteorder(order))
    weights = MemoryStateDict({"a": values})
    assert weights.read("a").tolist() == values.ravel().tolist()
    assert weights.read("a").tobytes() == values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    saved = read_model(Checkpoint(weights).save(tmp_path / "out"))
    assert saved["a"].tolist() == values.tolist()


def test_views_are_read_in_their_own_order() -> None:
    array, tensor = np.arange(12.0).reshape(3, 4), torch.arange(12.0).reshape(3, 4)
    weights = MemoryStateDict(
        {"numpy": array.T[::-1], "torch": tensor.T, "step": tensor[:, ::2], "wide": tensor[:1].expand(3, 4)}
    )
    assert weights.read("numpy").tolist() == array.T[::-1].ravel().tolist()
    assert weights.read("torch").tolist() == tensor.T.flatten().tolist()
    assert weights.read("step", 1, 4).tolist() == tensor[:, ::2].flatten()[1:4].tolist()
    assert weights.read("wide").tolist() == [0, 1, 2, 3] * 3


def test_nothing_is_copied_until_it_is_read() -> None:
    tensor = torch.zeros(4)
    array = np.zeros(4)
    model = Checkpoint.open({"torch": tensor, "numpy": array})
    tensor += 1
    array += 2
    assert model["torch"].tolist() == [1] * 4 and model["numpy"].tolist() == [2] * 4
    model["torch"].zero_()
    assert tensor.tolist() == [1] * 4, "what is given out is a copy"


def test_gradients_and_parameters() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert MemoryStateDict({"w": weight}).read("w").tolist() == [1.0] * 4


def test_a_live_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model = Checkpoint.open(module)
    assert model.label == "Sequential"
    state = module.state_dict()
    assert list(model.tensors) == list(state)
    assert all(same_bits(model[name], tensor) for name, tensor in state.items())
    assert all(same_bits(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_transformers_module_brings_its_config() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    model = Checkpoint.open(BertModel(config), label="mine")
    assert (model.label, model.config["model_type"], model.config["hidden_size"]) == ("mine", "bert", 4)
    assert model.components()["encoder.layer.0.output.dense.weight"] == "backbone"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1.0, 2.0], "list"),
        (3.0, "float"),
        (np.array(["a"]), "<U1"),
        (np.ones(2, np.complex128), "complex128"),
        (torch.ones(2, dtype=torch.complex128), "torch.complex128"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_tensor_is_named(value: Any, found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open({"odd": value}, label="mine")
    move = "give torch tensors or NumPy arrays of numbers"
    assert str(caught.value) == f"mine: 'odd' is not a tensor of a known format: {found}\n    {move}"


def test_a_module_without_values_is_refused() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    with pytest.raises(UsageError, match="Linear has no values on the meta device for weight, bias"):
        Checkpoint.open(module)
    with pytest.raises(CheckpointError, match="'weight' has no values, because it is on the meta device"):
        Checkpoint.open({"weight": module.weight})["weight"]


@pytest.mark.parametrize("source", [3, None, [1], b"x"])
def test_what_cannot_be_opened(source: Any) -> None:
    with pytest.raises(UsageError, match=f"cannot open a {type(source).__name__} as a checkpoint") as caught:
        Checkpoint.open(source)
    assert caught.value.problems[0].next_move == "give a path, a hub id, a dict of tensors or a module"


def test_anything_with_the_methods_of_a_state_dict_will_do() -> None:
    memory = MemoryStateDict(random_model(0))
    model = Checkpoint.open(memory)
    assert model.underlying is memory and Checkpoint.open(model) is model
