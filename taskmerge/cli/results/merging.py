"""Output with --json of the commands that make models and task vectors out of others."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from taskmerge.declarations import Doc


class Planned(TypedDict):
    """`fuse --dry-run`: the plan. Nothing is written."""

    output: Annotated[str, Doc("Folder or URI of the output.")]
    bytes_read: Annotated[int, Doc("Bytes read from all inputs.")]
    bytes_written: Annotated[int, Doc("Size of the weight files.")]
    peak_memory: Annotated[int, Doc("Maximum number of bytes, not counting mapped inputs.")]
    files: Annotated[dict[str, int], Doc("Weight file -> bytes.")]
    components: Annotated[
        dict[str, dict[str, int]], Doc("Component -> action (merge, keep, copy) -> number of tensors.")
    ]
    ways: Annotated[list[PlannedWay], Doc("Each way in which tensors are treated.")]
    tensors: Annotated[dict[str, str], Doc("Tensor -> its treatment, in words.")]
    dropped: Annotated[dict[str, str], Doc("input:tensor -> the rule that leaves it out of the output.")]
    warnings: Annotated[list[str], Doc("Possible problems.")]
    notes: Annotated[list[str], Doc("Assumptions, omissions and approximations.")]
    more_documents: Annotated[int, Doc("Merges after this one in the same file, planned when this one is made.")]


class PlannedWay(TypedDict):
    """A group of tensors that are treated alike."""

    component: Annotated[str, Doc("Component of the tensors.")]
    action: Annotated[Literal["merge", "keep", "copy"], Doc("merge; keep the base's; copy one specialist's.")]
    method: Annotated[str | None, Doc("Merge method; null unless the action is merge.")]
    tensors: Annotated[int, Doc("The number of tensors treated in this way.")]
    how: Annotated[str, Doc("In words: options, weights, and the rule that applies.")]


class Fused(TypedDict):
    """`fuse`, also `--part` and `--finish`."""

    path: Annotated[str, Doc("The model.")]
    bytes: Annotated[int, Doc("Size of the weight files.")]
    seconds: Annotated[float, Doc("Duration of writing.")]
    sha256: Annotated[dict[str, str], Doc("Weight file -> its sha256.")]
    resumed: Annotated[list[str], Doc("Files reused from an interrupted run.")]
    remade: Annotated[list[str], Doc("Files of the interrupted run that had been changed and were written again.")]
    warnings: Annotated[list[str], Doc("Possible problems.")]
    notes: Annotated[list[str], Doc("Assumptions, omissions and approximations.")]
    left: Annotated[list[str], Doc("Files that others added to the replaced folder; they are kept.")]
    card: Annotated[
        list[str], Doc("What the model card does not state: licences that differ, inputs without a hub id.")
    ]
    published: Annotated[bool, Doc("False for one part of an output: `--finish` publishes the output.")]


class SeveralFused(TypedDict):
    """`fuse` of a file with several documents."""

    merges: Annotated[list[Fused], Doc("One result per document, in order.")]


class PartMeasured(TypedDict):
    """`fuse --part N/M --measure`."""

    part: Annotated[str, Doc("The part, such as 1/8.")]
    done: Annotated[bool, Doc("Whether all measurements are complete.")]
    next: Annotated[str, Doc("What to run next.")]


class SweptPoint(TypedDict):
    """One point of a sweep."""

    values: Annotated[dict[str, Any], Doc("Axis -> value.")]
    length: Annotated[float | None, Doc("Norm of the merged task vector divided by the base's norm.")]
    cosines: Annotated[dict[str, float | None], Doc("Specialist -> cosine of the merged task vector with its own.")]
    score: Annotated[float | None, Doc("Score on the recipe's pairs; null if there are none.")]
    scores: Annotated[dict[str, float | None], Doc("Name of a score -> value.")]


class Swept(TypedDict):
    """`fuse --sweep`."""

    points: Annotated[list[SweptPoint], Doc("One per point of the grid.")]
    best: Annotated[dict[str, Any] | None, Doc("Axis -> value of the best point; null without pairs.")]
    written: Annotated[Fused | None, Doc("The model that `--keep best` wrote.")]


class Proposed(TypedDict):
    """`init`."""

    path: Annotated[str, Doc("The recipe.")]
    merged: Annotated[int, Doc("Number of tensors that are merged.")]
    copied: Annotated[int, Doc("Number of tensors copied from one specialist.")]
    kept: Annotated[int, Doc("Number of tensors kept from the base.")]
    notes: Annotated[list[str], Doc("What was assumed.")]


class Extracted(TypedDict):
    """`extract`."""

    path: Annotated[str, Doc("The task vector or adapter.")]
    form: Annotated[str, Doc("dense, sparse, low_rank, sign or lora.")]
    deltas: Annotated[int, Doc("Number of tensors that differ from the base.")]
    own: Annotated[int, Doc("Number of tensors that only the specialist has.")]
    bytes: Annotated[int | None, Doc("Size of a compressed form; null for others.")]
    relative_error: Annotated[
        float | None, Doc("Error of a compressed form, relative to the task vector; null for others.")
    ]
    left_out: Annotated[list[str], Doc("Tensors that an adapter cannot represent.")]
    part: Annotated[str | None, Doc("The part that was written, such as 2/8; `--finish` publishes the output.")]
    warnings: Annotated[list[str], Doc("Differences between the configs.")]


class Made(TypedDict):
    """`apply`."""

    path: Annotated[str, Doc("The model.")]


class Souped(TypedDict):
    """`soup`."""

    path: Annotated[str, Doc("The model.")]
    checkpoints: Annotated[list[str], Doc("The checkpoints that it is the mean of.")]
    notes: Annotated[list[str], Doc("What was assumed.")]
