"""Tensors of a base that are not numbers to be summed: packed modules, LoRA factors inside the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from taskmerge.checkpoints.formats.quantized import packed_modules
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.lineage.inside_factors import factor_names
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import MergeError, Problem
from taskmerge.merging.steps import TensorStep

_OTHERWISE = "is packed in {} but not in {}: its values cannot be read"
_MOVE = "name the model that it was made from, or save it dequantised with transformers (model.dequantize())"


def never_merged(census: Census) -> tuple[dict[str, str], list[Problem]]:
    """Tensor of the base -> why it is never merged; and every input that has a module packed otherwise than the base.

    Such tensors are copied when all inputs hold the same.
    """
    reasons = dict.fromkeys(
        factor_names(census.base.tensors), "a LoRA factor inside the weights: must agree in all inputs"
    )
    ours, problems = packed_modules(census.base), []
    for names in ours.values():
        reasons |= dict.fromkeys(names, "packed numbers: must agree in all inputs")
    for label in census.specialists:
        theirs = packed_modules(census.inputs[label])
        held = _under(census.inputs[label].tensors, {**ours, **theirs})
        if odd := next((module for module in held if held[module] not in (set(), ours.get(module, set()))), None):
            side, other = (label, BASE) if odd in theirs else (BASE, label)
            problems.append(Problem(f"{odd!r} {_OTHERWISE.format(side, other)}", None, _MOVE))
    return reasons, problems


def torn_modules(census: Census, steps: Iterable[TensorStep]) -> list[Problem]:
    """Packed modules whose parts the output would have from several inputs: codes of one and scales of another."""
    modules = {name: module for module, names in packed_modules(census.base).items() for name in names}
    labels: dict[str, set[str]] = {}
    for step in steps if modules else ():
        if step.info.name in modules:
            labels.setdefault(modules[step.info.name], set()).add(step.source.label)
    return [
        Problem(
            f"{module!r} is packed, but its parts would come from several models: {', '.join(sorted(found))}",
            None,
            f"keep all of it from one: rules: - {{match: '{module}.*', keep: {min(found - {BASE})}}}",
        )
        for module, found in labels.items()
        if len(found) > 1
    ]


def module_of_packed(state_dict: StateDict, name: str) -> str | None:
    """The module of a tensor of packed numbers; None for any other tensor."""
    return next((module for module, names in packed_modules(state_dict).items() if name in names), None)


def check_packing(inputs: Mapping[str, StateDict]) -> None:
    """Raise MergeError where an input has a module packed that another has as plain numbers; before names are aligned,
    as those of the two can never be matched."""
    packed = {label: packed_modules(state_dict) for label, state_dict in inputs.items()}
    problems = []
    for label, modules in packed.items():
        for other, state_dict in inputs.items():
            if modules and not packed[other] and (module := _plain_in(state_dict, modules)) is not None:
                problems.append(Problem(f"{module!r} {_OTHERWISE.format(label, other)}", state_dict.label, _MOVE))
    if problems:
        raise MergeError(problems)


def _plain_in(state_dict: StateDict, modules: Iterable[str]) -> str | None:
    """A module that an input has as plain numbers, whatever its file puts before the layers."""
    inner = {".".join(name.split(".")[-4:]): name for name in state_dict.tensors if name.endswith(".weight")}
    return next((module for module in modules if ".".join(module.split(".")[-3:]) + ".weight" in inner), None)


def _under(names: Iterable[str], modules: Iterable[str]) -> dict[str, set[str]]:
    """Module -> the tensors below it, without biases, in one look at all names: there may be very many of both."""
    found: dict[str, set[str]] = {module: set() for module in modules}
    for name in names:
        if found and not name.endswith("bias"):
            at = name.find(".")
            while at >= 0:
                if (holder := name[:at]) in found:
                    found[holder].add(name)
                at = name.find(".", at + 1)
    return found
