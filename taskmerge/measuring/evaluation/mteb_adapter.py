"""Variants on mteb's tasks and benchmarks: MAEB, MIEB, MVEB, ViDoRe and one's own sets in one place.

mteb comes with the extra [eval].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmerge.errors import TaskmergeError, few
from taskmerge.measuring.evaluation.mteb_model import as_mteb_model, variant_names
from taskmerge.measuring.evaluation.mteb_results import Say, results_folder
from taskmerge.measuring.evaluation.mteb_tasks import check_tasks, local_task, require_mteb, tasks_of
from taskmerge.measuring.evaluation.table import MtebScores
from taskmerge.words.precisions import precision_name

__all__ = ["as_mteb_model", "check_tasks", "evaluate_mteb", "local_task", "run_mteb", "tasks_of"]

WANTED_FIELDS = ("release_date", "languages", "license", "reference", "training_datasets", "public_training_code",
                 "public_training_data")  # fmt: skip
"""What a submission to mteb's leaderboard asks for and no file of a model says."""


def evaluate_mteb(
    variants: Mapping[str, Any],
    tasks: Sequence[Any],
    *,
    batch_size: int = 32,
    cache: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    prompts: Any = None,
) -> dict[str, dict[str, float]]:
    """Main score of every variant on every task: variant -> task -> score; see `run_mteb`.

    cache: folder for mteb's results; None keeps none, and runs everything.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size, "device": device, "precision": precision, "prompts": prompts,
    }  # fmt: skip
    found = run_mteb(variants, tasks, results=cache, keep=cache is not None, **options)
    return {name: dict(scores) for name, scores in found.scores.items()}


def run_mteb(
    variants: Mapping[str, Any],
    tasks: Sequence[Any],
    *,
    results: str | Path | None = None,
    keep: bool = True,
    batch_size: int = 32,
    device: str | None = None,
    precision: str | None = None,
    prompts: Any = None,
    dimensions: Sequence[int] = (),
    meta: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> MtebScores:
    """Run every variant on every task that it takes, keep finished results, and resume from existing ones.

    Args:
        variants: name ("organisation/model", or a name of one's own) -> what `open_embedder` takes.
        tasks: names of mteb tasks or benchmarks ("MAEB", "MIEB-lite"), or task objects such as `local_task` makes.
        results: folder for mteb's results, by model, revision and task; None: mteb's own ($MTEB_CACHE or
            ~/.cache/mteb). The revision is the model's own hash: a model that was merged again has no old scores.
        keep: whether results are written and taken again at all.
        precision: what models are run in; default: each one's own. Results of another are filed by themselves.
        prompts: instead of the models' own, see `Embedder.prompted`.
        dimensions: lengths that embeddings are truncated to, each scored in addition as "VARIANT, N dimensions".
        meta: fields of mteb's ModelMeta that no file of the model says.
        say: told what runs, what is taken from the folder, what is left out.

    Raises:
        UsageError: for unknown tasks, before any model runs.
        TaskmergeError: when a task fails; what was finished before is kept.
    """
    require_mteb()
    chosen = tasks_of(tasks)
    variant_names(list(variants))
    folder = (
        results_folder(results, {row.metadata.name: row.metadata.revision for row in chosen}, say) if keep else None
    )
    if folder is not None:
        folder.cache_path.mkdir(parents=True, exist_ok=True)
        say(f"mteb's results: {folder.cache_path}")
    scores: dict[str, dict[str, float]] = {}
    left_out: dict[str, dict[str, str]] = {}
    revisions: dict[str, str] = {}
    precisions: dict[str, str] = {}
    for name, source in variants.items():
        for dimension in (None, *dimensions):
            title = name if dimension is None else f"{name}, {dimension} dimensions"
            model = as_mteb_model(
                source, name, device=device, precision=precision, prompts=prompts, dimension=dimension, meta=meta
            )
            own = model.mteb_model_meta
            precisions[title] = precision_name(model.model.dtype)
            revisions[title] = own.revision
            fitting, left_out[title] = _fitting(chosen, set(own.modalities))
            _say_left_out(title, left_out[title], say)
            _say_missing(own, say if dimension is None and keep else lambda _: None)
            scores[title] = {}
            for number, task in enumerate(fitting, start=1):
                say(f"{title}: {task.metadata.name} ({number} of {len(fitting)})")
                scores[title] |= _run(model, title, task, folder, batch_size)
    place = "" if folder is None else str(folder.cache_path)
    return MtebScores(scores, left_out, place, revisions, precisions)


def _run(model: Any, title: str, task: Any, folder: Any, batch_size: int) -> dict[str, float]:
    mteb = require_mteb()
    try:
        found = mteb.evaluate(
            model,
            task,
            cache=folder,
            encode_kwargs={"batch_size": batch_size},
            show_progress_bar=False,
            co2_tracker=False,
            overwrite_strategy="only-missing" if folder is not None else "always",
        )
    except TaskmergeError:
        raise
    except Exception as error:  # mteb raises whatever data sets and hubs raise
        raise TaskmergeError(f"mteb task {task.metadata.name} failed for {title}: {error}") from error
    return {result.task_name: float(result.get_score()) for result in found.task_results}


def _fitting(tasks: Sequence[Any], modalities: set[str]) -> tuple[list[Any], dict[str, str]]:
    """(tasks whose modalities a model takes, task -> why it is left out)."""
    lacking = {task.metadata.name: sorted(set(task.metadata.modalities) - modalities) for task in tasks}
    left_out = {name: f"it needs {', '.join(names)}" for name, names in lacking.items() if names}
    return [task for task in tasks if task.metadata.name not in left_out], left_out


def _say_left_out(title: str, left_out: Mapping[str, str], say: Say) -> None:
    for why in dict.fromkeys(left_out.values()):
        tasks = [task for task, own in left_out.items() if own == why]
        say(f"{title}: {few(tasks)} left out: {why}")


def _say_missing(meta: Any, say: Say) -> None:
    missing = [field for field in WANTED_FIELDS if getattr(meta, field) is None]
    if missing:
        say(f"{meta.name}: for a submission mteb also requires {', '.join(missing)}")
