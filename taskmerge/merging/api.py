"""`fuse` for Python programs: the same plan as a recipe's, on models wherever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.merging.algebra import Checkpoint
from taskmerge.merging.fused import FusedWeights
from taskmerge.merging.plan import plan
from taskmerge.merging.steps import BASE
from taskmerge.methods import MergeMethod
from taskmerge.recipes import from_dict


def fuse(
    base: Any,
    specialists: Mapping[str, Any],
    method: str | MergeMethod = "task_arithmetic",
    *,
    weights: Mapping[str, float | Sequence[float]] | float | None = None,
    rules: Sequence[Mapping[str, Any]] = (),
    copy: Mapping[str, Sequence[str]] | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Checkpoint:
    """The fused model, lazy: nothing is merged until a tensor is read or the model saved.

    base, specialists: whatever `Checkpoint.open` takes (paths, hub ids, dicts of tensors, modules). weights: one number
    for all or one per specialist (a list is a gradient over depth); 1 by default. options: the method's parameters.
    The rest is as in a recipe. Raises RecipeError, MergeError or CheckpointError with every problem found.

        fused = fuse(base, {"image": image, "audio": audio}, "ties", weights={"image": 0.3, "audio": 0.5}, density=0.2)
        fused.save("out/fused")
    """
    merge: dict[str, Any] = {"method": method if isinstance(method, str) else method.name, **options}
    if weights is not None:
        merge["weight"] = dict(weights) if isinstance(weights, Mapping) else weights
    if rules:
        merge["rules"] = [dict(rule) for rule in rules]
    said: dict[str, Any] = {
        "base": "in memory",
        "specialists": dict.fromkeys(specialists, "in memory"),
        "merge": merge,
        "output": {"dtype": dtype} if dtype else {},
        "seed": seed,
    }
    if copy:
        said["copy"] = {name: list(patterns) for name, patterns in copy.items()}
    if components:
        said["components"] = {name: list(patterns) for name, patterns in components.items()}
    recipe = from_dict(said, folder=Path())
    opened = {BASE: dequantized(Checkpoint.open(base).weights)}
    for name, source in specialists.items():
        opened[name] = dequantized(Checkpoint.open(source).weights)
    return Checkpoint(FusedWeights(plan(recipe, opened), device))
