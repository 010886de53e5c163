"""Roles of the models in a mergekit configuration: the start of task vectors, the merged models, their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from taskmerge.declarations import At
from taskmerge.recipes.mergekit.findings import Findings
from taskmerge.recipes.mergekit.methods import Peer
from taskmerge.recipes.mergekit.models import Model, names_for
from taskmerge.recipes.mergekit.slices import Slice, Source


@dataclass(frozen=True)
class Cast:
    """base: the recipe's base.  names: what it calls each specialist, in order.  starts: whether the base is where task
    vectors start, so that it is itself no specialist.  slices: as written, with the base where mergekit adds it."""

    base: Model
    names: dict[Model, str]
    starts: bool
    slices: list[Slice]

    def label(self, model: Model) -> str:
        """Return the name of a model in the recipe."""
        return "base" if self.starts and model == self.base else self.names[model]


def cast(
    method: str, peer: Peer, base: Model | None, slices: list[Slice], at: At, whole: bool, findings: Findings
) -> Cast | None:
    """Assign the roles; None, with a problem, if they are unclear.

    at: of the method.  whole: `models` are listed, to which mergekit adds the base.
    """
    starts = peer.base == "start" or (peer.base == "either" and base is not None)
    if starts and base is None:
        findings.problem(f"{method} needs a base_model", at.place, "add base_model:")
        return None
    if peer.base == "first":
        base = _first(method, base, slices, at, whole, findings)
    if base is not None and (starts or (whole and peer.base in ("listed", "first"))):
        slices = [_with_base(method, part, base, at, findings) for part in slices]
    _check_numbers(method, peer, base if starts else None, slices, findings)
    listed = list(dict.fromkeys(source.model for part in slices for source in part.sources))
    if starts and base is not None:
        return Cast(base, names_for(model for model in listed if model != base), True, slices)
    if peer.base == "first" and base in listed:
        listed.sort(key=lambda model: model != base)
    return Cast(listed[0], names_for(listed), False, slices)


def _first(
    method: str, base: Model | None, slices: Sequence[Slice], at: At, whole: bool, findings: Findings
) -> Model | None:
    """The model that slerp starts from."""
    listed = [source.model for source in slices[0].sources]
    if base in listed or (base is not None and whole and len(listed) == 1):
        return base
    if len(listed) != 2:
        return base
    said = "there is no base_model" if base is None else f"base_model {base.path} is not one of the two"
    findings.note(f"{said}: {method} starts from {listed[0].path}, the first of the two; mergekit 0.1.5 refuses "
    f"this configuration",
                  at.place)  # fmt: skip
    return listed[0]


def _with_base(method: str, part: Slice, base: Model, at: At, findings: Findings) -> Slice:
    """The slice with the base among its sources."""
    if any(source.model == base for source in part.sources):
        return part
    own = part.sources[0]
    if part.moves_layers:
        findings.problem(f"{method}: this slice does not list the layers of base_model that it changes",
                         own.at.place, "list the base_model among its sources")  # fmt: skip
    elif own.layers is not None:
        findings.note(f"base_model {base.path} provides the same layers as {own.model.path}; mergekit 0.1.5 refuses a "
                      "slice that does not list it", own.at.place)  # fmt: skip
    return replace(part, sources=(*part.sources, Source(base, own.layers, {}, at)))


def _check_numbers(method: str, peer: Peer, base: Model | None, slices: Sequence[Slice], findings: Findings) -> None:
    for part in slices:
        merged = [source for source in part.sources if source.model != base]
        if peer.base == "none" and len(merged) > 1:
            findings.problem(f"{method} needs one model for each slice", merged[1].at.place)
        elif peer.most is not None and len(merged) > peer.most:
            besides = " in addition to base_model" if base is not None else ""
            many = f"{method} takes {peer.most} model{'s' if peer.most > 1 else ''}{besides}, not {len(merged)}"
            findings.problem(many, merged[peer.most].at.place, "remove the others, or use another method")
