"""The output of each command with --json: the only declaration of its keys. `python -m taskmerge.cli.json_docs` makes
docs/json.md of it, and every test that runs a command with --json holds the output against it.

No command imports this: it is for the page and for tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from taskmerge.declarations import Doc
from taskmerge.embedders.checking import ModelCheck
from taskmerge.measuring.drift.forecast import Forecast
from taskmerge.measuring.drift.report import ModalityDrift
from taskmerge.measuring.evaluation.table import EvaluationTable, MtebScores
from taskmerge.pipeline.planned import Row
from taskmerge.searching.findings import Confirmed, Correlation, Curve
from taskmerge.searching.points import Point


@dataclass(frozen=True)
class And:
    """A class whose fields are printed, and keys that are printed beside them: name -> (type, meaning)."""

    shape: Any
    more: Mapping[str, tuple[Any, str]]


class ErrorProblem(TypedDict):
    what: Annotated[str, Doc("The sentence, with the user's own text.")]
    place: Annotated[str | None, Doc("file:line, a tensor or a path.")]
    next_move: Annotated[str | None, Doc("What to do about it.")]


class ErrorBody(TypedDict):
    kind: Annotated[str, Doc("Class of the error: UsageError, RecipeError, CheckpointError, OutputError, MergeError, "
                             "Fault (an unexpected error), Interrupted.")]  # fmt: skip
    text: Annotated[str, Doc("The text that is printed on stderr.")]
    problems: Annotated[list[ErrorProblem], Doc("All problems, not shortened.")]
    exit_code: Annotated[int, Doc("The exit code of the command.")]


class Failed(TypedDict):
    """Printed instead of a result, by every command."""

    error: Annotated[ErrorBody, Doc("Why there is no result.")]


class Planned(TypedDict):
    """`fuse --dry-run`: the plan. Nothing is written."""

    output: Annotated[str, Doc("Folder or uri.")]
    bytes_read: Annotated[int, Doc("Of all inputs.")]
    bytes_written: Annotated[int, Doc("Of the weight files.")]
    peak_memory: Annotated[int, Doc("Maximum number of bytes, not counting mapped inputs.")]
    files: Annotated[dict[str, int], Doc("Weight file -> bytes.")]
    components: Annotated[dict[str, dict[str, int]], Doc("Component -> merge, keep, copy -> number of tensors.")]
    ways: Annotated[list[PlannedWay], Doc("Each way in which tensors are treated.")]
    tensors: Annotated[dict[str, str], Doc("Tensor -> its treatment, in words.")]
    dropped: Annotated[dict[str, str], Doc("input:tensor -> the rule that leaves it out of the output.")]
    warnings: Annotated[list[str], Doc("Possible problems.")]
    notes: Annotated[list[str], Doc("Assumptions, omissions and approximations.")]
    more_documents: Annotated[int, Doc("Merges after this one in the same file, planned when this one is made.")]


class PlannedWay(TypedDict):
    component: Annotated[str, Doc("Of the tensors.")]
    action: Annotated[Literal["merge", "keep", "copy"], Doc("merge; keep the base's; copy one specialist's.")]
    method: Annotated[str | None, Doc("Of a merge.")]
    tensors: Annotated[int, Doc("The number of tensors treated in this way.")]
    how: Annotated[str, Doc("In words: options, weights, and the rule that applies.")]


class Fused(TypedDict):
    """`fuse`, also `--part` and `--finish`."""

    path: Annotated[str, Doc("The model.")]
    bytes: Annotated[int, Doc("Of the weight files.")]
    seconds: Annotated[float, Doc("Duration.")]
    sha256: Annotated[dict[str, str], Doc("Weight file -> hash.")]
    resumed: Annotated[list[str], Doc("Files reused from an interrupted run.")]
    remade: Annotated[list[str], Doc("Files of the interrupted run that had been changed and were written again.")]
    notes: Annotated[list[str], Doc("Assumptions, omissions and approximations.")]
    left: Annotated[list[str], Doc("Files that were added to the replaced folder meanwhile and are kept.")]
    card: Annotated[
        list[str], Doc("What the model card does not state: licences that differ, inputs without a hub id.")
    ]
    published: Annotated[bool, Doc("False for one part of an output: `--finish` publishes.")]


class SeveralFused(TypedDict):
    """`fuse` of a file with several documents."""

    merges: Annotated[list[Fused], Doc("In order.")]


class PartMeasured(TypedDict):
    """`fuse --part N/M --measure`."""

    part: Annotated[str, Doc("Which.")]
    done: Annotated[bool, Doc("Whether all measurements are complete.")]
    next: Annotated[str, Doc("What to run next.")]


class SweptPoint(TypedDict):
    values: Annotated[dict[str, Any], Doc("Axis -> value.")]
    length: Annotated[float | None, Doc("Norm of the merged task vector divided by the base's norm.")]
    cosines: Annotated[dict[str, float | None], Doc("Specialist -> cosine of the merged task vector with its own.")]
    score: Annotated[float | None, Doc("On the recipe's pairs; null if there are none.")]
    scores: Annotated[dict[str, float | None], Doc("Every score by name.")]


class Swept(TypedDict):
    """`fuse --sweep`."""

    points: Annotated[list[SweptPoint], Doc("One per point of the grid.")]
    best: Annotated[dict[str, Any] | None, Doc("Axis -> value of the best; null without pairs.")]
    written: Annotated[Fused | None, Doc("The model that `--keep best` wrote.")]


class Compared(TypedDict):
    """`compare`."""

    norms: Annotated[dict[str, list[float | None]], Doc("Task vector -> [norm, norm over the base's].")]
    cosine: Annotated[dict[str, dict[str, float | None]], Doc("Of each two.")]
    sign_conflict: Annotated[dict[str, dict[str, float | None]], Doc("Share of entries whose signs differ.")]
    by_layer: Annotated[dict[str, dict[str, float | None]], Doc("Layer -> task vector -> norm.")]
    warnings: Annotated[list[str], Doc("Differences between the configs and the base's config.")]


class Difference(TypedDict):
    tensor: Annotated[str, Doc("Its name.")]
    difference: Annotated[str, Doc("values, or the part of its header that differs.")]
    entries: Annotated[int | None, Doc("The number of entries that differ.")]
    largest: Annotated[float | None, Doc("The largest difference of two entries.")]


class Diff(TypedDict):
    """`diff`. Exits with 1 if anything differs."""

    same: Annotated[bool, Doc("Whether all bits are the same.")]
    differences: Annotated[list[Difference], Doc("One per tensor.")]


class InspectedTensor(TypedDict):
    component: Annotated[str, Doc("backbone, audio_projector, …")]
    dtype: Annotated[str, Doc("As safetensors names it.")]
    shape: Annotated[list[int], Doc("Lengths.")]


class ToldByShapes(TypedDict):
    path: Annotated[str, Doc("Where the names begin.")]
    component: Annotated[str, Doc("The recognised component.")]
    reason: Annotated[str, Doc("Why.")]


class Inspected(TypedDict):
    """`inspect`."""

    model: Annotated[str, Doc("As named.")]
    config: Annotated[dict[str, Any], Doc("config.json.")]
    tensors: Annotated[dict[str, InspectedTensor], Doc("By name.")]
    told_by_shapes: Annotated[list[ToldByShapes], Doc("Parts that were recognised by shape, not by name.")]


class Drifted(TypedDict):
    """`diagnose-drift`. Exits with 3 if `beyond_limit` is not empty, otherwise with 4 if `cannot_tell` is not empty."""

    drifted: Annotated[list[str], Doc("Modalities whose verdict is drifted.")]
    beyond_limit: Annotated[list[str], Doc("Those of them that lost more than the limit.")]
    cannot_tell: Annotated[list[str], Doc("Modalities for which drift cannot be decided.")]
    modalities: Annotated[
        dict[
            str,
            Annotated[Any, And(ModalityDrift, {"onset": (int | None, "First depth with a mean cosine below 0.99.")})],
        ],
        Doc("Modality -> verdict, scores and statistics."),
    ]
    forecasts: Annotated[dict[str, Forecast], Doc("Modality -> the forecast from the weights alone.")]
    exit_code: Annotated[int, Doc("0, 3 or 4.")]
    recovered: Annotated[str | None, Doc("The repaired model, with --recover.")]


class EvaluatedFields(TypedDict, total=False):
    retrieval: Annotated[EvaluationTable, Doc("On sets of pairs.")]
    mteb: Annotated[MtebScores, Doc("On mteb's tasks.")]


class EvaluatedResult(EvaluatedFields):
    """`evaluate`."""

    models: Annotated[dict[str, str], Doc("Variant -> hash of its weight files, of models that taskmerge made.")]


class Searched(TypedDict):
    """`search`."""

    objectives: Annotated[list[str], Doc("What was maximised.")]
    best: Annotated[str | None, Doc("Name of the best point that meets all floors.")]
    front: Annotated[list[str], Doc("Points that no other point beats in all objectives.")]
    points: Annotated[
        list[Annotated[Any, And(Point, {"recipe": (str | None, "Its recipe, as YAML.")})]],
        Doc("Trials and references."),
    ]
    curves: Annotated[
        list[Annotated[Any, And(Curve, {"flat": (Any, "Values that score as well."), "sentence": (str, "In words.")})]],
        Doc("Along each axis through the best trial."),
    ]
    confirmed: Annotated[
        list[Annotated[Any, And(Confirmed, {"sentence": (str, "In words.")})]], Doc("On held-out pairs.")
    ]
    importances: Annotated[list[dict[str, float | None]], Doc("Axis -> share, one an objective.")]
    correlations: Annotated[list[Correlation], Doc("Of agreement with real scores.")]
    sentences: Annotated[list[str], Doc("Notes.")]
    notes: Annotated[list[str], Doc("What was assumed or left out.")]
    recipe: Annotated[str, Doc("The best one's recipe: a file.")]
    report: Annotated[str, Doc("The page.")]


class VerifiedRecord(TypedDict):
    """`verify` of a folder made here. Exit 1 where it differs."""

    path: Annotated[str, Doc("As named.")]
    same: Annotated[bool, Doc("As recorded, in all that was checked.")]
    differences: Annotated[list[str], Doc("From the record.")]
    checked: Annotated[list[str], Doc("What was compared, and how.")]
    unchecked: Annotated[list[str], Doc("What was not.")]


class JudgedTensor(TypedDict):
    component: Annotated[str, Doc("backbone, …")]
    status: Annotated[str, Doc("What it is.")]
    entries: Annotated[int, Doc("It has.")]
    entries_off: Annotated[int, Doc("Entries with other bits than planned.")]
    entries_beyond_rounding: Annotated[int, Doc("Entries further off than rounding explains.")]
    largest_units: Annotated[float | None, Doc("Largest distance, in units of the last place.")]
    equals_base: Annotated[bool, Doc("Bit for bit.")]
    rows: Annotated[list[str], Doc("Which rows fit and which do not, in words; empty where that is not looked at.")]


class Judged(TypedDict):
    """`verify --base`, `verify --recipe`: a merge made by any program. Exits with 1 if it does not match."""

    path: Annotated[str, Doc("As named.")]
    verdict: Annotated[str, Doc("exact, within rounding, not applied, other weights, torn, …")]
    fits: Annotated[bool, Doc("Whether it is the merge that was said.")]
    sentence: Annotated[str, Doc("In words.")]
    weights: Annotated[dict[str, float | None], Doc("Specialist -> the weight that would fit.")]
    text_path: Annotated[str, Doc("Whether the text path is the base's, in words.")]
    components: Annotated[dict[str, dict[str, int]], Doc("Component -> status -> number of tensors.")]
    tensors: Annotated[dict[str, JudgedTensor], Doc("By name.")]
    notes: Annotated[list[str], Doc("What was assumed or not looked at.")]


class Pushed(TypedDict):
    """`push`."""

    path: Annotated[str, Doc("The folder.")]
    repository: Annotated[str, Doc("owner/name.")]
    files: Annotated[dict[str, int], Doc("What goes up -> bytes.")]
    bytes: Annotated[int, Doc("Of all files.")]
    left: Annotated[dict[str, str], Doc("What stays -> why.")]
    card: Annotated[str, Doc("README.md as it goes up.")]
    own_card: Annotated[bool, Doc("Whether that is the user's own.")]
    findings: Annotated[list[str], Doc("What the card leaves open.")]
    licence_conflict: Annotated[bool, Doc("Whether the licences of the inputs differ.")]
    local_paths: Annotated[list[str], Doc("Places of this disk that taskmerge.json names.")]
    address: Annotated[str | None, Doc("Of the commit; null with --dry-run.")]


class Proposed(TypedDict):
    """`init`."""

    path: Annotated[str, Doc("The recipe.")]
    merged: Annotated[int, Doc("Tensors that it merges.")]
    copied: Annotated[int, Doc("Tensors copied from one specialist.")]
    kept: Annotated[int, Doc("Tensors kept from the base.")]
    notes: Annotated[list[str], Doc("What was assumed.")]


class Extracted(TypedDict):
    """`extract`."""

    path: Annotated[str, Doc("The task vector or adapter.")]
    form: Annotated[str, Doc("dense, sparse, low_rank, sign or lora.")]
    deltas: Annotated[int, Doc("Tensors that differ.")]
    own: Annotated[int, Doc("Tensors that only the specialist has.")]
    bytes: Annotated[int | None, Doc("Of compressed forms.")]
    relative_error: Annotated[float | None, Doc("Of compressed forms.")]
    left_out: Annotated[list[str], Doc("Tensors that an adapter cannot carry.")]
    part: Annotated[str | None, Doc("The share that was written; `--finish` publishes.")]
    warnings: Annotated[list[str], Doc("What the configs say otherwise.")]


class Made(TypedDict):
    """`apply`."""

    path: Annotated[str, Doc("The model.")]


class Souped(TypedDict):
    """`soup`."""

    path: Annotated[str, Doc("The model.")]
    checkpoints: Annotated[list[str], Doc("What it is the mean of.")]
    notes: Annotated[list[str], Doc("What was assumed.")]


class Grafted(TypedDict):
    """`graft`."""

    path: Annotated[str, Doc("The model.")]
    modalities: Annotated[list[str], Doc("It takes.")]
    placeholders: Annotated[dict[str, str], Doc("Modality -> the placeholder token of an item.")]


class Stats(TypedDict):
    """`stats`."""

    path: Annotated[str, Doc("The file of covariances.")]
    layers: Annotated[int, Doc("How many.")]
    tokens: Annotated[dict[str, int], Doc("Group -> tokens seen.")]


class RunTable(TypedDict):
    """`run`, `specialize`, `recover`, `rehearse`: what every stage left, also those that were skipped."""

    recipe: Annotated[str, Doc("Its text.")]
    models: Annotated[dict[str, str], Doc("base, specialists, fused, recovered, rehearsed -> folder, of those there.")]
    stages: Annotated[
        dict[str, Any], Doc("Stage -> its result: of `diagnose` and `evaluate` as those commands print it.")
    ]
    outdated: Annotated[list[str], Doc("Stages whose results are of another recipe or model, and left out.")]


class RunPlan(TypedDict):
    """`run --dry-run`."""

    devices: Annotated[int, Doc("How many.")]
    memory: Annotated[int, Doc("Bytes of each.")]
    speed: Annotated[float, Doc("Operations a second of each, assumed.")]
    stages: Annotated[
        list[Annotated[Any, And(Row, {})]], Doc("One a stage: what it will take; `needs` is bytes, with their `total`.")
    ]


class MethodParameter(TypedDict):
    default: Annotated[Any, Doc("Null where it must be given.")]
    doc: Annotated[str, Doc("Meaning.")]


class Method(TypedDict):
    name: Annotated[str, Doc("In recipes.")]
    aliases: Annotated[list[str], Doc("Other names.")]
    doc: Annotated[str, Doc("What it does.")]
    source: Annotated[str, Doc("Where it comes from.")]
    parameters: Annotated[dict[str, MethodParameter], Doc("By name.")]


class Methods(TypedDict):
    """`methods`."""

    methods: Annotated[list[Method], Doc("All, or the one that was asked for.")]


class MachineRow(TypedDict):
    what: Annotated[str, Doc("A library, a device, room.")]
    found: Annotated[str, Doc("Version or size.")]
    state: Annotated[Literal["ok", "absent", "broken"], Doc("Whether it works.")]
    note: Annotated[str, Doc("What it is for, or what to do.")]


class Doctored(TypedDict):
    """`doctor`. Exit 1 where something is broken."""

    rows: Annotated[list[MachineRow], Doc("One a finding.")]


class Told(TypedDict):
    """`demo`."""

    report: Annotated[str, Doc("The page.")]
    models: Annotated[dict[str, str], Doc("Variant -> folder.")]
    stages: Annotated[dict[str, Any], Doc("As `run` prints it.")]


class LaidOut(TypedDict):
    """`demo --texts`."""

    folder: Annotated[str, Doc("What holds the models and pairs.")]
    models: Annotated[dict[str, str], Doc("`base` and the specialists -> folder.")]


class WrittenSchema(TypedDict):
    """`schema --out FILE`; without --out it prints the JSON Schema itself."""

    path: Annotated[str, Doc("The file.")]


CheckedModel = Annotated[Any, And(ModelCheck, {"fits": (bool, "Whether every stage can run it.")})]

RESULTS: dict[str, tuple[Any, ...]] = {
    "apply": (Made,),
    "check-model": (CheckedModel,),
    "compare": (Compared,),
    "demo": (Told, LaidOut),
    "diagnose-drift": (Drifted,),
    "diff": (Diff,),
    "doctor": (Doctored,),
    "evaluate": (EvaluatedResult,),
    "extract": (Extracted,),
    "fuse": (Planned, Fused, SeveralFused, PartMeasured, Swept),
    "graft": (Grafted,),
    "init": (Proposed,),
    "inspect": (Inspected,),
    "methods": (Methods,),
    "push": (Pushed,),
    "recover": (RunTable,),
    "rehearse": (RunTable,),
    "run": (RunTable, RunPlan),
    "schema": (WrittenSchema,),
    "search": (Searched,),
    "soup": (Souped,),
    "specialize": (RunTable,),
    "stats": (Stats,),
    "verify": (VerifiedRecord, Judged),
}
"""Command -> what it may print."""
