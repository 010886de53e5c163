"""The expected merge, from the options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskmerge.errors import UsageError
from taskmerge.recipes import Recipe, from_dict, load


def as_said(
    base: str | None,
    recipe: Path | None,
    adapters: Sequence[str] = (),
    specialists: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> Recipe:
    """Return the recipe that a merge is compared with.

    Args:
        base: of the merge; None: the recipe's own.
        recipe: its file. Without one, the weighted sum of what follows.
        adapters: folders of PEFT adapters over the base.
        specialists: whole models, or task vectors.
        weights: of each adapter, then of each specialist; one number for all; none: 1.

    Raises: UsageError where these do not make a merge; RecipeError for a broken recipe.
    """
    if recipe is not None:
        if adapters or specialists or weights:
            move = "leave out --adapter, --specialist and --weight"
            raise UsageError("--recipe already lists what is merged", next_move=move)
        said = load(recipe)
        return said if base is None else replace(said, base=str(Path(base).resolve()) if Path(base).exists() else base)
    count = len(adapters) + len(specialists)
    if base is None:
        raise UsageError("the base is missing", next_move="give --base MODEL")
    if not count:
        raise UsageError(
            "the adapters and specialists are missing",
            next_move="give --recipe FILE, --adapter FOLDER or --specialist MODEL",
        )
    if len(weights) not in (0, 1, count):
        raise UsageError(
            f"{len(weights)} weights for {count} adapters and specialists",
            next_move="give one --weight for each, in that order, or one for all",
        )
    numbers = list(weights) * count if len(weights) == 1 else list(weights) or [1.0] * count
    rows: dict[str, Any] = {}
    for number, (text, weight) in enumerate(zip((*adapters, *specialists), numbers, strict=True)):
        name = _name(text, rows)
        source = {"model": "base", "adapter": text} if number < len(adapters) else {"model": text}
        rows[name] = {**source, "weight": weight}
    return from_dict({"base": base, "specialists": rows})


def _name(text: str, taken: dict[str, Any]) -> str:
    """What messages call it: the end of its path, as a recipe takes names."""
    name = "".join(letter if letter.isalnum() else "_" for letter in Path(text).name) or "specialist"
    return name if name not in taken and name != "base" else f"{name}_{len(taken) + 1}"
