"""`fuse` for Python programs: the same plan as a recipe's, on models wherever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from taskmerge.checkpoints.memory import is_live
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.declarations import Either, Flag, Instance, Named, Text, checked_arguments, plain
from taskmerge.errors import UsageError
from taskmerge.merging.algebra import Checkpoint, TaskVector
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.fused_model import FusedModel
from taskmerge.merging.inputs import Inputs, open_inputs
from taskmerge.merging.plan import plan
from taskmerge.methods import MergeMethod
from taskmerge.recipes import Recipe, from_dict
from taskmerge.words.devices import parse_device

if TYPE_CHECKING:
    from torch import nn

    from taskmerge.merging.algebra.sources import Source, StoredSource

    Module = TypeVar("Module", bound=nn.Module)

Weights = Mapping[str, float | Sequence[float]] | float | Literal["metagpt"] | None


@overload
def fuse(
    base: Module,
    specialists: Mapping[str, Source],
    method: str | MergeMethod = ...,
    *,
    weights: Weights = ...,
    rules: Sequence[Mapping[str, object]] = ...,
    copy: Mapping[str, Sequence[str]] | None = ...,
    components: Mapping[str, Sequence[str]] | None = ...,
    dtype: str | None = ...,
    seed: int = ...,
    device: str = ...,
    in_place: bool = ...,
    **options: object,
) -> Module: ...


@overload
def fuse(
    base: StoredSource,
    specialists: Mapping[str, Source],
    method: str | MergeMethod = ...,
    *,
    weights: Weights = ...,
    rules: Sequence[Mapping[str, object]] = ...,
    copy: Mapping[str, Sequence[str]] | None = ...,
    components: Mapping[str, Sequence[str]] | None = ...,
    dtype: str | None = ...,
    seed: int = ...,
    device: str = ...,
    in_place: bool = ...,
    **options: object,
) -> FusedModel: ...


@checked_arguments(
    specialists=Named("models"), method=Either((Text(), Instance(MergeMethod))), device=Text(), in_place=Flag()
)
def fuse(
    base: Source,
    specialists: Mapping[str, Source],
    method: str | MergeMethod = "task_arithmetic",
    *,
    weights: Weights = None,
    rules: Sequence[Mapping[str, object]] = (),
    copy: Mapping[str, Sequence[str]] | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    in_place: bool = False,
    **options: object,
) -> FusedModel | nn.Module:
    """Merge models from folders, from the hub, in memory, or live.

        fused = fuse("base", {"image": "image", "audio": "audio"}, "ties", weights=0.5, density=0.2)
        fused.save("out/fused")

        model = fuse(SentenceTransformer("base"), {"law": SentenceTransformer("law"), "code": "folder/of/code"}, "ties")
        model.encode(["a sentence"])

        >>> base, law, code = (torch.nn.Linear(2, 1, bias=False) for _ in range(3))
        >>> for model, values in ((base, [1.0, 1.0]), (law, [3.0, 1.0]), (code, [1.0, 0.0])):
        ...     model.weight.data = torch.tensor([values])
        >>> fuse(base, {"law": law, "code": code}, weights=0.5).weight.data
        tensor([[2.0000, 0.5000]])

    Live models give the same bits as the folders that they would be saved as.

    Args:
        base: a path, hub id, dict of tensors, `Checkpoint`; or a live model: a `SentenceTransformer`, `CrossEncoder` or
            `SparseEncoder`, a transformers model, any torch module.
        specialists: the same, by a name of your choice; or a PEFT adapter's folder, a model with an adapter inside, a
            task vector or its folder.
        method: a merge method or its name.
        weights: one number for all specialists, or one for each by name; a list of numbers for a name is a gradient
            over depth, first layer to last; "metagpt" computes them. Default: 1.
        rules, copy, components, seed: as in a recipe.
        dtype: torch name of the output's number format; default: the format of each tensor in the base.
        device: device of the arithmetic.
        in_place: for a live base: write the result into the base, when everything is merged.
        options: parameters of the method.

    Returns:
        For a live base, a live model: a copy of the base with its device, mode, tokenizer and settings. If specialists
            add
        tensors or tokens that the base does not have, its library opens the result as a new model.
        For any other base, a `FusedModel`, which is lazy: tensors are merged when they are read or the model is saved.

    Raises:
        RecipeError, MergeError or CheckpointError: with every problem found.
        UsageError: for live models that cannot be merged (quantized, sharded, not loaded), and for `in_place` if the
            result is not a model of the base's kind.
    """
    device = parse_device(device)
    sources: dict[str, Source] = {BASE: base, **specialists}
    if BASE in specialists:
        raise UsageError(f"{BASE!r} is the name of the base", next_move="give that specialist another name")
    if in_place and not is_live(base):
        raise UsageError("in_place is for a base that is a live model", next_move="leave it out, and save the result")
    said: dict[str, Any] = {
        "weights": weights, "rules": rules, "copy": copy, "components": components, "dtype": dtype, "seed": seed,
        **options,
    }  # fmt: skip
    if not any(map(is_live, sources.values())):
        recipe, inputs = said_by(base, specialists, method, **said)
        return FusedModel(FusedStateDict(plan(recipe, inputs), device))
    from taskmerge.merging.live import as_live_model, open_live

    live = open_live(sources)
    with live.named():
        recipe, inputs = said_by(live.sources[BASE], {name: live.sources[name] for name in specialists}, method, **said)
        inputs = replace(inputs, adapters=inputs.adapters | live.adapters)
        fused = FusedStateDict(plan(recipe, inputs), device)
        return as_live_model(fused, live, in_place) if is_live(base) else FusedModel(fused)


def said_by(
    base: Any,
    specialists: Mapping[str, Any],
    method: str | MergeMethod = "task_arithmetic",
    *,
    weights: Any = None,
    rules: Any = (),
    copy: Any = None,
    components: Any = None,
    dtype: str | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Recipe, Inputs]:
    """Return the arguments of a call of `fuse` as a recipe, and its open models. Arguments and errors as for `fuse`."""
    merge: dict[str, Any] = {"method": method if isinstance(method, str) else method.name, **options}
    numbers = _checked(plain(weights), list(specialists))
    if isinstance(numbers, str):
        merge["weight"] = numbers
    if not (isinstance(rules, (list, tuple)) and not rules):
        merge["rules"] = rules
    said: dict[str, Any] = {
        "base": _said(base),
        "specialists": {
            name: {"model": _said(source), **_weight(numbers, name)} for name, source in specialists.items()
        },
        "merge": merge,
        "output": {} if dtype is None else {"dtype": dtype},
        "seed": seed,
    }
    said |= {key: given for key, given in (("copy", copy), ("components", components)) if given is not None}
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
                f"weights lists {', '.join(map(repr, weights)) or 'no specialist'}, but not "
                f"{', '.join(map(repr, left_out))}",
                next_move=f"give each specialist a weight: weights={{{', '.join(f'{name!r}: …' for name in names)}}}",
            )
        return {name: list(one) if isinstance(one, tuple) else one for name, one in weights.items()}
    if isinstance(weights, Sequence) and not isinstance(weights, str):
        raise UsageError(
            f"weights={weights!r} does not state which specialist each weight is for",
            next_move=f"give them by name: weights={{{', '.join(f'{name!r}: …' for name in names)}}}; a gradient over "
            "depth is a list for one specialist",
        )
    return weights
