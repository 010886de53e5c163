"""Models of a user's own class: found by the name he gives, opened by his code, checked against the file."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.components import BUFFERS, HEAD
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.whole import refuse
from taskmerge.errors import CheckpointError, TaskmergeError, UsageError, clipped, did_you_mean, first_line
from taskmerge.numbers.rounding import decode
from taskmerge.words.named_objects import find_object, names_code

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "taskmerge.embedders"
_COMPARED = 4096  # entries of each tensor: a random start differs in any of them


def named_embedder(embedder: Any, folder: Path) -> Any:
    """Return the loader or class that the user means.

    Args:
        embedder: itself, or its name; see `ModelSource.embedder`.
        folder: what the path of a file is relative to.

    Raises:
        UsageError: when there is no such thing, or it can neither load nor be a module.
    """
    found = embedder
    if isinstance(embedder, str):
        found = find_object(embedder, folder, "the embedder") if names_code(embedder) else _offered(embedder)
    if not callable(found):
        raise UsageError(
            f"the embedder {embedder!r} is a {type(found).__name__}, which cannot be called",
            next_move="give a function that takes the path of a folder and returns a taskmerge.Embedder",
        )
    return found


def offered() -> list[EntryPoint]:
    """Return the entry points of installed packages in the group `taskmerge.embedders`; none of them is imported."""
    return list(entry_points(group=GROUP))


def _offered(name: str) -> Any:
    points = {point.name: point for point in offered()}
    if name not in points:
        move = did_you_mean(name, points) if points else "give a file: my_model.py:load"
        raise UsageError(f"no installed package provides an embedder {name!r}", next_move=move)
    return find_object(points[name].value, Path(), "the embedder")


def is_module_class(found: Any) -> bool:
    """Return whether the user named a module class of a sentence-transformers folder, not a loader function."""
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module)


def class_address(found: type) -> str:
    """Return the name of a class in modules.json."""
    return f"{found.__module__}.{found.__qualname__}"


def loaded(loader: Any, folder: Path, label: str) -> Any:
    """Load a folder with the user's function; None if it reports that the model is not one of its own.

    Raises CheckpointError with what the function raised.
    """
    try:
        return loader(str(folder))
    except TaskmergeError:
        raise
    except Exception as error:  # the user's own code
        name = getattr(loader, "__name__", "the embedder")
        raise CheckpointError(
            f"{name}() fails: {type(error).__name__}: {clipped(first_line(error), 500)}",
            label,
            "let it return None for models of another class (the base, another specialist)",
        ) from error


def check_against_file(embedder: Embedder, stored: StateDict, label: str) -> None:
    """Refuse a model that does not run on what its file holds.

    Every tensor that trains must be in the file under its name and shape with the file's values (4096 entries of each
    are compared, in the model's precision), and every tensor of the file must have a place in the model, heads and
    buffers aside.

    Raises:
        CheckpointError: naming the tensors.
    """
    live = embedder.state_dict.values
    there = {id(value) for name, value in live.items() if name in stored.tensors}  # tied ones are stored once
    trained = {id(parameter) for parameter in embedder.module.parameters()}
    missing = [name for name, value in live.items()
               if name not in stored.tensors and id(value) in trained and id(value) not in there]  # fmt: skip
    parts = components_of(stored, embedder.components)
    left = [name for name in stored.tensors if name not in live and parts[name] not in (HEAD, BUFFERS)]
    left = [name for name in left if stored.tensors[name].format.kind.endswith("float")]
    other = [name for name, value in live.items() if name in stored.tensors and not _same(value, stored, name)]
    refuse(type(embedder.module).__name__, label, missing, left, other)


def _same(value: Tensor, stored: StateDict, name: str) -> bool:
    info = stored.tensors[name]
    if tuple(value.shape) != tuple(info.shape):
        return False
    if not info.format.kind.endswith("float") or not value.is_floating_point():
        return True
    import torch

    count = min(info.count, _COMPARED)
    wanted = torch.from_numpy(np.array(decode(stored.read(name, info.count - count, info.count), info.dtype)))
    return bool(torch.equal(value.detach().reshape(-1)[info.count - count :].cpu(), wanted.to(value.dtype)))
