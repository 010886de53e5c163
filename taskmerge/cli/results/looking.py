"""Output with --json of the commands that inspect and compare models."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from taskmerge.declarations import Doc


class Compared(TypedDict):
    """`compare`."""

    norms: Annotated[
        dict[str, list[float | None]], Doc("Task vector -> [its norm, its norm divided by the base's norm].")
    ]
    cosine: Annotated[dict[str, dict[str, float | None]], Doc("Task vector -> task vector -> their cosine.")]
    sign_conflict: Annotated[
        dict[str, dict[str, float | None]], Doc("Task vector -> task vector -> share of entries whose signs differ.")
    ]
    by_layer: Annotated[dict[str, dict[str, float | None]], Doc("Layer -> task vector -> norm.")]
    warnings: Annotated[list[str], Doc("Differences between the configs and the base's config.")]


class Difference(TypedDict):
    """The difference of one tensor between two models."""

    tensor: Annotated[str, Doc("Name of the tensor.")]
    difference: Annotated[str, Doc("`values`, or the part of the header that differs.")]
    entries: Annotated[int | None, Doc("The number of entries that differ.")]
    largest: Annotated[float | None, Doc("The largest difference between two entries.")]


class Diff(TypedDict):
    """`diff`. Exits with 1 if anything differs."""

    same: Annotated[bool, Doc("Whether all bits are the same.")]
    differences: Annotated[list[Difference], Doc("One entry per tensor that differs.")]


class InspectedTensor(TypedDict):
    """The header and the component of one tensor."""

    component: Annotated[str, Doc("backbone, audio_projector, …")]
    dtype: Annotated[str, Doc("As safetensors names it.")]
    shape: Annotated[list[int], Doc("Lengths.")]


class ToldByShapes(TypedDict):
    """A part of the model that was recognised by its shapes."""

    path: Annotated[str, Doc("What the names of its tensors begin with.")]
    component: Annotated[str, Doc("The recognised component.")]
    reason: Annotated[str, Doc("Why.")]


class Inspected(TypedDict):
    """`inspect`."""

    model: Annotated[str, Doc("The model, as given on the command line.")]
    config: Annotated[dict[str, Any], Doc("config.json.")]
    tensors: Annotated[dict[str, InspectedTensor], Doc("Name -> tensor.")]
    told_by_shapes: Annotated[list[ToldByShapes], Doc("Parts that were recognised by shape, not by name.")]


class VerifiedRecord(TypedDict):
    """`verify` of a folder made here. Exit 1 where it differs."""

    path: Annotated[str, Doc("The model, as given on the command line.")]
    same: Annotated[bool, Doc("Whether all that was checked is as recorded.")]
    differences: Annotated[list[str], Doc("Differences from the record.")]
    checked: Annotated[list[str], Doc("What was compared, and how.")]
    unchecked: Annotated[list[str], Doc("What was not compared, and why.")]


class JudgedTensor(TypedDict):
    """The verdict on one tensor."""

    component: Annotated[str, Doc("backbone, audio_projector, …")]
    status: Annotated[str, Doc("What it is.")]
    entries: Annotated[int, Doc("The number of entries of the tensor.")]
    entries_off: Annotated[int, Doc("Entries with other bits than planned.")]
    entries_beyond_rounding: Annotated[int, Doc("Entries that differ by more than rounding explains.")]
    largest_units: Annotated[float | None, Doc("Largest difference, in units of the last place.")]
    equals_base: Annotated[bool, Doc("Whether the tensor is bit for bit the base's.")]
    rows: Annotated[list[str], Doc("Which rows fit and which do not, in words; empty if rows were not compared.")]


class Judged(TypedDict):
    """`verify --base`, `verify --recipe`: a merge made by any program. Exits with 1 if it does not match."""

    path: Annotated[str, Doc("The model, as given on the command line.")]
    verdict: Annotated[str, Doc("exact, within rounding, not applied, other weights, torn, …")]
    fits: Annotated[bool, Doc("Whether it is the merge that was asked about.")]
    sentence: Annotated[str, Doc("The verdict in words.")]
    weights: Annotated[dict[str, float | None], Doc("Specialist -> the weight that would fit.")]
    text_path: Annotated[str, Doc("Whether the text path is the base's, in words.")]
    components: Annotated[dict[str, dict[str, int]], Doc("Component -> status -> number of tensors.")]
    tensors: Annotated[dict[str, JudgedTensor], Doc("Name -> finding.")]
    notes: Annotated[list[str], Doc("What was assumed or not compared.")]
