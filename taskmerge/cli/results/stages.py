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
    modalities: Annotated[list[str], Doc("Modalities that the model accepts.")]
    placeholders: Annotated[dict[str, str], Doc("Modality -> the placeholder token of an item.")]


class Stats(TypedDict):
    """`stats`."""

    path: Annotated[str, Doc("The file of covariances.")]
    layers: Annotated[int, Doc("Number of layers.")]
    tokens: Annotated[dict[str, int], Doc("Group of layers -> number of tokens seen.")]


class Drifted(TypedDict):
    """`diagnose-drift`. Exits with 3 if `beyond_limit` is not empty, otherwise with 4 if `cannot_tell` is not empty."""

    drifted: Annotated[list[str], Doc("Modalities whose verdict is drifted.")]
    beyond_limit: Annotated[list[str], Doc("Those of `drifted` that lost more than the limit.")]
    cannot_tell: Annotated[list[str], Doc("Modalities for which the probes cannot decide.")]
    modalities: Annotated[
        dict[
            str,
            Annotated[Any, And(ModalityDrift, {"onset": (int | None, "First depth with a mean cosine below 0.99.")})],
        ],
        Doc("Modality -> verdict, scores and statistics."),
    ]
    forecasts: Annotated[dict[str, Forecast], Doc("Modality -> the forecast from the weights alone.")]
    exit_code: Annotated[int, Doc("Exit code of the command: 0, 3 or 4.")]
    recovered: Annotated[str | None, Doc("The repaired model, with --recover.")]


class EvaluatedFields(TypedDict, total=False):
    """The results of an evaluation."""

    retrieval: Annotated[EvaluationTable, Doc("Scores on sets of pairs.")]
    mteb: Annotated[MtebScores, Doc("Scores on mteb's tasks.")]


class EvaluatedResult(EvaluatedFields):
    """`evaluate`."""

    models: Annotated[dict[str, str], Doc("Variant -> hash of its weight files; only models that taskmerge made.")]


class Searched(TypedDict):
    """`search`."""

    objectives: Annotated[list[str], Doc("The objectives that were maximised.")]
    best: Annotated[str | None, Doc("Name of the best point that meets all floors.")]
    front: Annotated[list[str], Doc("Points that no other point beats in all objectives.")]
    points: Annotated[
        list[Annotated[Any, And(Point, {"recipe": (str | None, "Its recipe, as YAML.")})]],
        Doc("Trials and references."),
    ]
    curves: Annotated[
        list[
            Annotated[
                Any,
                And(Curve, {"flat": (Any, "Values that score as well as the best."), "sentence": (str, "In words.")}),
            ]
        ],
        Doc("Scores along each axis through the best trial."),
    ]
    confirmed: Annotated[
        list[Annotated[Any, And(Confirmed, {"sentence": (str, "In words.")})]], Doc("Points scored on held-out pairs.")
    ]
    importances: Annotated[
        list[dict[str, float | None]],
        Doc("One table per objective: axis -> its share in the difference between better and worse trials."),
    ]
    correlations: Annotated[list[Correlation], Doc("Correlations of agreement scores with scores on pairs.")]
    sentences: Annotated[list[str], Doc("The result in sentences.")]
    notes: Annotated[list[str], Doc("What was assumed or left out.")]
    recipe: Annotated[str, Doc("File with the recipe of the best point.")]
    report: Annotated[str, Doc("The page.")]


class RunTable(TypedDict):
    """`run`, `specialize`, `recover`, `rehearse`: what every stage left, also those that were skipped."""

    recipe: Annotated[str, Doc("Text of the recipe.")]
    models: Annotated[
        dict[str, str], Doc("base, specialists, fused, recovered, rehearsed -> folder; only those that exist.")
    ]
    stages: Annotated[
        dict[str, Any], Doc("Stage -> its result; for `diagnose` and `evaluate` as those commands print it.")
    ]
    outdated: Annotated[
        list[str], Doc("Stages whose results belong to another recipe or model; these results are left out.")
    ]


class RunPlan(TypedDict):
    """`run --dry-run`."""

    devices: Annotated[int, Doc("Number of devices.")]
    memory: Annotated[int, Doc("Bytes of memory of each device.")]
    speed: Annotated[float, Doc("Assumed operations per second of each device.")]
    stages: Annotated[
        list[Annotated[Any, And(Row, {})]], Doc("One row per stage; `needs` lists bytes of memory and their `total`.")
    ]


CheckedModel = Annotated[Any, And(ModelCheck, {"fits": (bool, "Whether every stage can run it.")})]
"""`check-model`."""
