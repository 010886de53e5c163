"""The verdict on a merged model, from all its tensors together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from taskmerge.checkpoints.components import BACKBONE, EMBEDDINGS, HEAD, component_map
from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.lineage.alignment import align_all
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import InputError, few
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.judging.tensors import FITS, Finding, Sides, compared, explained, is_linear
from taskmerge.merging.plan import plan
from taskmerge.recipes import Recipe

TEXT_PATH = (BACKBONE, EMBEDDINGS, HEAD)
_LEAST_DRIFT, _SURE = 0.02, 8.0
"""Of a change: what share more or less is told from rounding, and by how many standard deviations."""
_MERGED = "the merged model"
_ORIGINAL = "the base itself"

Verdict = Literal["exact", "within rounding", "not applied", "other weights", "torn", "other tensors", "another model"]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a merge.

    verdict: in a word; `fits` if it is the expected merge. sentence: the verdict in full. findings: one per tensor.
    weights: specialist -> the weight with which it was added, if all tensors that differ agree with it ("all" if the
    method does not add a plain sum: the factor of its change). text_path: whether the tensors of the text path are bit
    for bit
        the
    base's. notes: assumptions, and checks that were not made.
    """

    verdict: Verdict
    sentence: str
    findings: tuple[Finding, ...]
    weights: Mapping[str, float]
    text_path: str
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True if it is the expected merge, exactly or within rounding."""
        return self.verdict in ("exact", "within rounding")

    def components(self) -> dict[str, Counter[str]]:
        """Component -> how many tensors are what."""
        table: dict[str, Counter[str]] = {}
        for finding in self.findings:
            table.setdefault(finding.component, Counter())[finding.status] += 1
        return table

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "verdict": self.verdict,
            "fits": self.fits,
            "sentence": self.sentence,
            "weights": dict(self.weights),
            "text_path": self.text_path,
            "components": {name: dict(counts) for name, counts in self.components().items()},
            "tensors": {
                one.name: {
                    "component": one.component,
                    "status": one.status,
                    "entries": one.entries,
                    "entries_off": one.off,
                    "entries_beyond_rounding": one.beyond,
                    "largest_units": one.largest if np.isfinite(one.largest) else None,
                    "equals_base": one.unchanged,
                    "rows": list(one.rows),
                }
                for one in self.findings
            },
            "notes": list(self.notes),
        }


def judge(merged: str | Path, recipe: Recipe, device: str = "cpu") -> Judgement:
    """Compare a model with what a recipe gives, tensor by tensor, of any origin.

    Args:
        merged: a folder, file or hub id.
        recipe: what it should be.
        device: where the planned merge is computed.

    Raises: what opening, aligning and planning raise.
    """
    stored = dequantized(open_stored(merged))
    sides, components, notes = _sides(stored, FusedStateDict(plan(recipe), device), recipe)
    names = list(dict.fromkeys((*sides.planned.tensors, *sides.merged.tensors)))
    findings = [_finding(sides, name, components.get(name, "")) for name in names]
    weights = _other_weights(sides, findings)
    verdict = _verdict(findings)
    notes += (f"the tensors were compared ({len(names)}); config, tokenizer and other files were not",)
    if any(not one.telling for one in findings):
        same = sum(not one.telling for one in findings)
        notes += (
            f"{same} of {len(names)} tensors are planned to equal the base's: they do not show whether the "
            f"model was merged",
        )
    said = _sentence(verdict, findings, weights, sides)
    return Judgement(verdict, said, tuple(findings), weights, _text_path(sides, findings), notes)


def _sides(
    merged: StateDict, fused: FusedStateDict, recipe: Recipe
) -> tuple[Sides, Mapping[str, str], tuple[str, ...]]:
    """All under one naming; the plan rounded into the formats that the merged model has."""
    inputs, components, notes = _aligned(fused, merged, recipe)
    theirs = inputs[_MERGED].tensors
    steps, other = [], 0
    for step in fused.plan.steps:
        info = theirs.get(step.info.name)
        if info is not None and info.dtype != step.info.dtype and info.format.mergeable and step.info.format.mergeable:
            step = replace(step, info=TensorInfo(step.info.name, info.dtype, step.info.shape))
            other += 1
        steps.append(step)
    if other:
        fused = FusedStateDict(replace(fused.plan, steps=tuple(steps)), fused.device)
        inputs, components, notes = _aligned(fused, merged, recipe)
    merging = [step for step in fused.plan.steps if step.action == "merge"]
    linear = all(is_linear(fused.plan.program(step)) for step in merging)
    labels = tuple(label for label in fused.plan.inputs if label != BASE) if linear else ()
    if other:
        notes += (f"{other} tensors do not have the planned number format: they were compared in their own format",)
    sides = Sides(inputs[BASE], inputs[_MERGED], inputs[_ORIGINAL], fused, labels)
    return sides, components, notes


def _aligned(
    fused: FusedStateDict, merged: StateDict, recipe: Recipe
) -> tuple[Mapping[str, StateDict], Mapping[str, str], tuple[str, ...]]:
    """Inputs and components under one naming. A model that is not of this lineage is compared by its own names."""
    inputs = {BASE: fused, _MERGED: merged, _ORIGINAL: fused.plan.base}
    try:
        alignment = align_all(inputs, recipe.components)
    except InputError as error:
        said = f"names were compared as stored: {error.problems[0].what.splitlines()[0]}"
        components = component_map({**merged.tensors, **fused.tensors}, fused.config, recipe.components, strict=False)
        return inputs, components, (said,)
    return alignment.census.inputs, alignment.census.components, alignment.notes


def _finding(sides: Sides, name: str, component: str) -> Finding:
    if name not in sides.merged.tensors:
        return Finding(name, component, "missing", sides.planned.tensors[name].count)
    if name not in sides.planned.tensors:
        return Finding(name, component, "extra", sides.merged.tensors[name].count)
    return compared(sides, name, component)


def _other_weights(sides: Sides, findings: list[Finding]) -> dict[str, float]:
    """Marks tensors that fit with other weights; the weights, where one set does for all that do not fit."""
    merging = [one for one in findings if sides.step(one.name) is not None]
    drifted = _drifted([one for one in merging if one.status == "rounding"])
    left = [one for one in merging if one.status in ("other", "torn") or one in drifted]
    if not left:
        return {}
    left += [one for one in merging if one.status == "base" and one.telling]
    together = _solved(sum(one.gram for one in left), sum(one.moment for one in left))
    all_fit = True
    for one in left:
        if explained(sides, one.name, together):
            one.status, one.rows = ("base" if one.status == "base" else "other weights"), ()
        else:
            all_fit = False
            own = _solved(one.gram, one.moment)
            if one.status == "other" and explained(sides, one.name, own):
                one.status, one.rows = "other weights", (f"as if the weights were {_numbers(own)}",)
    if not all_fit:
        return {}
    for one in merging:  # what fits either way says nothing of which it is
        one.telling = one.telling and not (one.status in FITS and explained(sides, one.name, together))
    return dict(zip(sides.labels or ("all",), map(float, together), strict=True))


def _drifted(near: list[Finding]) -> list[Finding]:
    """Of tensors within rounding, all, where together they lean to more or less than the planned change: rounding
    leans nowhere, other weights of a change as small as the rounding do."""
    lean, square, noise = sum((one.drift for one in near), np.zeros(3))
    entries = sum(one.entries for one in near)
    if not square or abs(lean) < _LEAST_DRIFT * square:
        return []
    return near if abs(lean) > _SURE * np.sqrt(noise / entries * square) else []


def _solved(gram: Any, moment: Any) -> np.ndarray:
    return np.linalg.lstsq(np.asarray(gram), np.asarray(moment), rcond=1e-12)[0]


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _verdict(findings: list[Finding]) -> Verdict:
    wrong = [one for one in findings if one.status not in FITS]
    if not wrong:
        return "exact" if all(one.status == "exact" for one in findings) else "within rounding"
    if all(one.status in ("missing", "extra", "another shape") for one in wrong):
        return "other tensors"
    fit = [one for one in findings if one.status in FITS and one.telling]
    statuses = {one.status for one in wrong}
    if statuses == {"base"} and not fit:
        return "not applied"
    if fit or "torn" in statuses:
        return "torn"
    if statuses <= {"other weights", "base"} and not any(one.rows for one in wrong):
        return "other weights"
    return "another model"


def _sentence(verdict: Verdict, findings: list[Finding], weights: Mapping[str, float], sides: Sides) -> str:
    count = len(findings)
    off = sum(one.off for one in findings)
    largest = max((one.largest for one in findings), default=0.0)
    wrong = [one for one in findings if one.status not in FITS]
    if verdict == "exact":
        return f"exact: all {count} tensors are bit for bit the result of the recipe"
    if verdict == "within rounding":
        of = sum(one.entries for one in findings)
        return (
            f"within rounding: {off:,} of {of:,} entries differ from the result of the recipe; the largest "
            f"difference is {largest:.3g} steps of its number format, and arithmetic that rounds at every "
            f"step may differ by {sides.most_units}"
        )
    if verdict == "not applied":
        what = "the adapter is" if sides.fused.plan.adapters else "the specialists are"
        return f"not applied: {what} not contained; every tensor that should have changed is bit for bit the base's"
    if verdict == "other weights":
        return f"other weights: it matches as if {_as_if(weights, sides)}"
    if verdict == "torn":
        beyond, of = sum(one.beyond for one in wrong), sum(one.entries for one in findings)
        share = f"{beyond:,} of {of:,} entries" if beyond else "none of their entries is known to be wrong"
        said = f"torn: {len(wrong)} of {count} tensors do not match ({share}), and the others do"
        return f"{said}. These do not: {_named(wrong)}"
    if verdict == "other tensors":
        return f"other tensors: the common ones match, but {_named(wrong)}"
    return f"another model: {len(wrong)} of {count} tensors do not match with any weights: {_named(wrong)}"


def _as_if(weights: Mapping[str, float], sides: Sides) -> str:
    said: dict[str, set[float]] = {}
    for step in sides.fused.plan.steps:
        if step.action == "merge":
            for one, weight in zip(step.specialists, step.weights, strict=True):
                said.setdefault(one.label, set()).add(float(weight))
    parts = []
    for label, weight in weights.items():
        if label not in said:
            parts.append(f"the complete change were multiplied by {weight:.4g}")
        else:
            told = "/".join(f"{value:.4g}" for value in sorted(said[label]))
            parts.append(f"{label} had the weight {weight:.4g} (the recipe has {told})")
    return ", ".join(parts)


def _named(findings: list[Finding]) -> str:
    words = {"base": "equals the base's", "other": "fits no weights", "other weights": "has other weights"}
    return few(
        [
            f"{one.name}: {'; '.join(one.rows) if one.rows else words.get(one.status, one.status)}"
            for one in sorted(findings, key=lambda one: one.status)
        ],
        6,
    )


def _text_path(sides: Sides, findings: list[Finding]) -> str:
    """Whether what embeds text was left alone: every one of its tensors, its bytes compared."""
    path = [one for one in findings if one.component in TEXT_PATH]
    own = [one for one in path if one.name in sides.base.tensors]
    changed = [one.name for one in path if not one.unchanged]
    if not own:
        return "not proved: the base has no tensors of a text path"
    if not changed:
        return f"unchanged: proved, {len(own)} tensors of {', '.join(TEXT_PATH)} are bit for bit the base's"
    if set(changed) == {one.name for one in path if one.name not in sides.merged.tensors}:
        return f"not proved: {few(changed, 3)} not stored"
    return f"changed: {len(changed)} of {len(path)} tensors are not bit for bit the base's ({few(changed, 3)})"
