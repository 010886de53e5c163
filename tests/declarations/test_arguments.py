"""Arguments of Python calls: values of the wrong class are refused by name, numbers of numpy and torch are numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import taskmerge
from taskmerge import Checkpoint, LoraSettings, TaskVector, TrainingSettings
from taskmerge.declarations import COUNT, Named, checked_arguments, optional
from taskmerge.errors import TaskmergeError, UsageError

JUNK = (object(), b"x", {1: 2}, [object()], torch.zeros(2, 2))
"""Values that no argument takes."""
NUMBERS = ("batch_size", "limit", "trials", "sensitivity", "memory", "max_seq_length", "seed", "density", "scale")
FLAGS = ("in_place", "prune", "fresh", "normalize")
MAPPINGS = ("specialists", "variants", "sets", "on", "components", "copy", "against")
CALLS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "fuse": (("base", {"a": "a"}), ("specialists", "method", "in_place", "device", "rules", "copy", "components",
                                    "dtype", "seed", "density", "scale")),
    "compare_task_vectors": (("base", {"a": "a"}), ("specialists",)),
    "evaluate_retrieval": (({"m": "m"}, {"s": "s"}), ("variants", "sets", "batch_size", "directions", "dimensions",
                                                      "against")),
    "diagnose_drift": (("fused", "a"), ("limit", "batch_size", "components")),
    "collect_covariances": (("model", "pairs"), ("texts", "components", "batch_size")),
    "specialize": (("model", "pairs"), ("train", "settings", "work")),
    "recover": (("model", "pairs"), ("train", "settings", "work")),
    "rehearse": (("model", {"s": "s"}), ("data", "train", "settings", "may_fall", "specialists", "work")),
    "recover_by_choice": (("model", "pairs"), ("train", "method", "settings", "work")),
    "search": (({"base": "base", "a": "a"},), ("objective", "maximize", "on", "confirm", "trials", "sampler", "prune",
                                               "sensitivity", "fresh", "memory", "batch_size", "page", "say")),
    "graft": (("model", "image", "patches"), ("backbone", "modality", "encoder", "projector", "out", "pooling",
                                              "normalize", "placeholder", "start", "end", "max_seq_length", "seed",
                                              "fresh")),
    "open_embedder": (("model",), ("components", "dtype")),
    "ModelSource": (("model",), ("path", "components", "folder")),
}  # fmt: skip
"""Public name -> arguments that are fine in form, and those that are checked before anything is opened."""


def models() -> dict[str, dict[str, torch.Tensor]]:
    """Three models of one tensor."""
    draw = torch.Generator().manual_seed(0)
    return {name: {"w": torch.randn(8, generator=draw)} for name in ("base", "a", "b")}


def called(name: str, given: tuple[Any, ...], changed: dict[str, Any]) -> Callable[[], Any]:
    """The call with some of its arguments changed."""
    function = getattr(taskmerge, name)
    bound = inspect.signature(function).bind_partial(*given)
    named = {**bound.arguments, **changed}
    return lambda: function(**named)


@pytest.mark.parametrize(("name", "argument"), [(name, one) for name, row in CALLS.items() for one in row[1]])
@pytest.mark.parametrize("junk", JUNK, ids=["object", "bytes", "keys", "entries", "matrix"])
def test_refuses_what_no_argument_takes(name: str, argument: str, junk: Any, tmp_path: Path) -> None:
    given, _ = CALLS[name]
    extra: dict[str, Any] = {"out": tmp_path / "out"} if name in ("recover_by_choice",) else {}
    if name == "fuse":
        given = (models()["base"], {"a": models()["a"]})
        extra = {"method": "ties"} if argument == "density" else {}
    with pytest.raises(TaskmergeError) as caught:
        called(name, given, extra | {argument: junk})()
    assert argument in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 20
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [
        *((name, one, "three") for name, row in CALLS.items() for one in row[1] if one in NUMBERS),
        *((name, one, 1) for name, row in CALLS.items() for one in row[1] if one in FLAGS),
        *(
            (name, one, ["a"])
            for name, row in CALLS.items()
            for one in row[1]
            if one in MAPPINGS and name != "collect_covariances"
        ),
    ],
)
def test_refuses_the_wrong_class(name: str, argument: str, wrong: Any) -> None:
    given = CALLS[name][0] if name != "fuse" else (models()["base"], {"a": models()["a"]})
    extra = {"method": "ties"} if name == "fuse" and argument == "density" else {}
    with pytest.raises(TaskmergeError, match=argument):
        called(name, given, extra | {argument: wrong})()


def test_a_list_of_models_is_told_to_give_names() -> None:
    made = models()
    with pytest.raises(UsageError) as caught:
        taskmerge.fuse(made["base"], [made["a"], made["b"]])  # type: ignore[call-overload]
    assert "specialists must be a mapping from names to models, not a list of 2" in str(caught.value)
    assert "give the models names" in str(caught.value)


@pytest.mark.parametrize("half", [np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_are_numbers(half: Any) -> None:
    made = models()
    wanted = taskmerge.fuse(made["base"], {"a": made["a"]}, "ties", weights=0.5, density=0.5)["w"]
    found = taskmerge.fuse(made["base"], {"a": made["a"]}, "ties", weights=half, density=half)["w"]
    assert torch.equal(found, wanted)
    by_name = taskmerge.fuse(made["base"], {"a": made["a"]}, "ties", weights={"a": half}, density=0.5)["w"]
    assert torch.equal(by_name, wanted)
    vector = Checkpoint.open(made["a"]) - Checkpoint.open(made["base"])
    for product in (vector * half, vector / (1 / half)):
        assert isinstance(product, TaskVector)
        assert torch.equal(product["w"], (vector * 0.5)["w"])


@pytest.mark.parametrize("half", [np.float64(0.5), np.float32(0.5), np.array(0.5)])
def test_numpy_leaves_a_product_to_the_task_vector(half: Any) -> None:
    made = models()
    vector = Checkpoint.open(made["a"]) - Checkpoint.open(made["base"])
    product = half * vector
    assert isinstance(product, TaskVector)
    assert torch.equal(product["w"], (0.5 * vector)["w"])


def test_a_list_of_weights_is_refused_in_every_class() -> None:
    made = models()
    for weights in ([0.5, 0.3], (0.5, 0.3), np.array([0.5, 0.3]), torch.tensor([0.5, 0.3])):
        with pytest.raises(UsageError, match="does not state which specialist"):
            taskmerge.fuse(made["base"], {"a": made["a"], "b": made["b"]}, weights=weights)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("steps", 0), ("steps", 2.5), ("steps", float("nan")), ("steps", "10"), ("steps", None), ("batch_size", 1),
        ("learning_rate", 0), ("learning_rate", "1e-4"), ("learning_rates", 3), ("learning_rates", {"projector": -1}),
        ("warmup", -1), ("temperature", 0), ("max_gradient_norm", float("inf")), ("lora", 8), ("balance", 0),
        ("shares", {"a": 0}), ("shares", ["a"]), ("adaptive", 1), ("bf16", "yes"), ("gradient_cache", 0),
        ("accumulation", 0), ("dimensions", (0,)), ("dimensions", "64"), ("dropout", 1.0), ("input_noise", -0.1),
        ("evaluate_every", 0), ("looked_at_in", "float8"), ("patience", 0), ("stop_at", 1.5), ("report_to", 3),
        ("seed", -1), ("seed", 2**32), ("device", 0), ("encodings", "folder"), ("keep_checkpoints", None),
    ],
)  # fmt: skip
def test_settings_are_checked_when_they_are_made(name: str, wrong: Any) -> None:
    with pytest.raises(UsageError, match=name):
        TrainingSettings(**{name: wrong})


def test_settings_of_numpy_are_the_same_settings() -> None:
    given = TrainingSettings(steps=np.int64(5), learning_rate=np.float32(0.5), dimensions=[np.int32(8)])  # type: ignore[arg-type]
    assert given == TrainingSettings(steps=5, learning_rate=0.5, dimensions=(8,))
    assert type(given.steps) is int


@pytest.mark.parametrize(("name", "wrong"), [("rank", 0), ("rank", 2.5), ("scale", 0), ("components", 3)])
def test_lora_settings_are_checked(name: str, wrong: Any) -> None:
    with pytest.raises(UsageError, match=name):
        LoraSettings(**{name: wrong})


@pytest.mark.parametrize("wrong", ["query: ", 3, ["query: "], object()])
def test_prompts_that_name_no_role_are_refused(wrong: Any) -> None:
    from taskmerge.embedders.prompts import Prompts

    with pytest.raises(UsageError, match="prompts"):
        Prompts.of(wrong)
    with pytest.raises(UsageError, match="prompts: tasks"):
        Prompts.of({"tasks": wrong})


def test_covariances_of_nothing_are_refused() -> None:
    from taskmerge.measuring.covariances import Data

    with pytest.raises(UsageError, match="no items and no texts"):
        Data.of({})


def test_the_decorator_keeps_the_function() -> None:
    @checked_arguments(count=optional(COUNT), models=Named("models"))
    def function(models: Any, /, count: int | None = None) -> Any:
        """Count models."""
        return models, count

    assert function({"a": 1}) == ({"a": 1}, None)
    assert function({"a": 1}, count=np.int64(2)) == ({"a": 1}, 2)  # type: ignore[arg-type]
    assert (function.__doc__, list(inspect.signature(function).parameters)) == ("Count models.", ["models", "count"])
    with pytest.raises(UsageError, match="count must be a whole number of at least 1, not 0"):
        function({}, 0)
    with pytest.raises(TypeError, match="has no argument"):
        checked_arguments(other=COUNT)(lambda one: one)


def test_a_share_or_a_rank_of_another_form_is_refused(tmp_path: Path) -> None:
    made = models()
    vector = Checkpoint.open(made["a"]) - Checkpoint.open(made["base"])
    for options in ({"density": 0.5}, {"rank": 2}, {"form": "sign", "density": 0.5}, {"form": "sparse", "rank": 2}):
        with pytest.raises(UsageError, match="belongs to the form"):
            vector.save(tmp_path / "vector", **options)  # type: ignore[arg-type]
    wrong: tuple[dict[str, object], ...] = ({"fresh": "no"}, {"dtype": ["float32"]}, {"shard_size": -1})
    for options in wrong:
        with pytest.raises(UsageError, match=next(iter(options))):
            vector.save(tmp_path / "vector", **options)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=next(iter(options))):
            Checkpoint.open(made["a"]).save(tmp_path / "model", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [3, None, ("w",), b"w"])
def test_names_of_tensors_must_be_text(name: Any) -> None:
    with pytest.raises(TaskmergeError, match="name must be text"):
        Checkpoint.open({name: torch.zeros(2)})


def test_tensors_must_be_dense() -> None:
    with pytest.raises(TaskmergeError, match="not a dense tensor"):
        Checkpoint.open({"w": torch.eye(2).to_sparse()})
