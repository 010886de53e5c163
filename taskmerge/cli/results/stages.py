"""Output with --json of the commands that train, measure and search, and of those that run the stages of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from taskmerge.cli.results.shapes import And
from taskmerge.declarations import Doc
from taskmerge.embedders.checking import ModelCheck
from taskmerge.measuring.drift.forecast import Forecast
from taskmerge.measuring.drift.report import ModalityDrift
from taskmerge.measuring.evaluation.table import EvaluationTable, MtebScores
from taskmerge.pipeline.planned import Row
from taskmerge.searching.findings import Confirmed, Correlation, Curve
from taskmerge.searching.points import Point


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
    """The results of an evaluation."""

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


CheckedModel = Annotated[Any, And(ModelCheck, {"fits": (bool, "Whether every stage can run it.")})]
"""`check-model`."""
