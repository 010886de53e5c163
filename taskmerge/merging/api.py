"""`fuse` for Python programs: the same plan as a recipe's, on models wherever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import UsageError
from taskmerge.merging.algebra import Checkpoint, TaskVector
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.inputs import Inputs, open_inputs
from taskmerge.merging.plan import plan
from taskmerge.methods import MergeMethod
from taskmerge.recipes import Recipe, from_dict
from taskmerge.words.devices import parse_device


def fuse(
    base: Any,
    specialists: Mapping[str, Any],
    method: str | MergeMethod = "task_arithmetic",
    *,
    weights: Mapping[str, float | Sequence[float]] | float | Literal["metagpt"] | None = None,
    rules: Sequence[Mapping[str, Any]] = (),
    copy: Mapping[str, Sequence[str]] | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Checkpoint:
    """Merge models; lazy: nothing is merged until a tensor is read or the model saved.

        fused = fuse(base, {"image": image, "audio": audio}, "ties", weights={"image": 0.3, "audio": 0.5}, density=0.2)
        fused.save("out/fused")

    Args:
        base: whatever `Checkpoint.open` takes: a path, hub id, dict of tensors, live module.
        specialists: the same by a name of your choice, or a PEFT adapter's folder, a task vector or its folder.
        method: the name of a merge method, or one itself.
        weights: one number for all specialists, or one for each by name; a list of numbers for a name is a gradient
            over depth, first layer to last; "metagpt" finds them. 1 by default.
        rules, copy, components, seed: as in a recipe.
        dtype: torch name of the output's number format; left out: each tensor's own in the base.
        device: where the arithmetic runs.
        options: the method's parameters.

    Returns: the merged model as a `Checkpoint`.

    Raises: RecipeError, MergeError or CheckpointError with every problem found.
    """
    device = parse_device(device)
    recipe, inputs = said_by(
        base, specialists, method, weights=weights, rules=rules, copy=copy, components=components, dtype=dtype,
        seed=seed, **options,
    )  # fmt: skip
    return Checkpoint(FusedStateDict(plan(recipe, inputs), device))


def said_by(
    base: Any,
    specialists: Mapping[str, Any],
    method: str | MergeMethod = "task_arithmetic",
    *,
    weights: Any = None,
    rules: Sequence[Mapping[str, Any]] = (),
    copy: Mapping[str, Sequence[str]] | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Recipe, Inputs]:
    """What a call of `fuse` says as a recipe, and its models, open. Arguments and errors as there."""
    merge: dict[str, Any] = {"method": method if isinstance(method, str) else method.name, **options}
    numbers = _checked(weights, list(specialists))
    if isinstance(numbers, str):
        merge["weight"] = numbers
    if rules:
        merge["rules"] = [dict(rule) for rule in rules]
    said: dict[str, Any] = {
        "base": _said(base),
        "specialists": {
            name: {"model": _said(source), **_weight(numbers, name)} for name, source in specialists.items()
        },
        "merge": merge,
        "output": {"dtype": dtype} if dtype else {},
        "seed": seed,
    }
    if copy:
        said["copy"] = {name: list(patterns) for name, patterns in copy.items()}
    if components:
        said["components"] = {name: list(patterns) for name, patterns in components.items()}
    recipe = from_dict(said, folder=Path())
    sources = {BASE: base, **specialists}
    in_memory = {label: _opened(source) for label, source in sources.items() if not isinstance(source, str | Path)}
    vectors = {label: frozenset(one.own) for label, one in specialists.items() if isinstance(one, TaskVector)}
    return recipe, open_inputs(recipe, Inputs(in_memory, deltas=vectors))


def _said(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "in memory"


def _weight(numbers: Any, name: str) -> dict[str, Any]:
    number = numbers.get(name) if isinstance(numbers, Mapping) else numbers
    return {} if number is None or isinstance(number, str) else {"weight": number}


def _opened(source: Any) -> StateDict:
    return source.as_state_dict() if isinstance(source, TaskVector) else Checkpoint.open(source).numbers


def _checked(weights: Any, names: list[str]) -> Any:
    """The weights as a recipe takes them. Raises UsageError where it is open which specialist has which."""
    if isinstance(weights, Mapping):
        left_out = [name for name in names if name not in weights]
        if left_out:
            raise UsageError(
                f"weights lists {', '.join(map(repr, weights)) or 'nobody'}, but not {', '.join(map(repr, left_out))}",
                next_move=f"give each specialist a weight: weights={{{', '.join(f'{name!r}: …' for name in names)}}}",
            )
        return {name: list(one) if isinstance(one, tuple) else one for name, one in weights.items()}
    if isinstance(weights, Sequence) and not isinstance(weights, str):
        raise UsageError(
            f"weights={weights!r} does not say which specialist they are for",
            next_move=f"give them by name: weights={{{', '.join(f'{name!r}: …' for name in names)}}}; a gradient over "
            "depth is a list for one specialist",
        )
    return weights
