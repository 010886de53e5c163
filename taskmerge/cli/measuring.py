"""diagnose-drift, evaluate, stats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taskmerge.cli.options import EMBEDDER, HTML, JSON, MODEL_DEVICE
from taskmerge.cli.output import announce_notes, note, print_json
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from taskmerge.measuring.drift import DriftReport


def diagnose_drift(
    recipe: Path = typer.Argument(None, help="A recipe with a `drift` section; or give the four paths."),
    fused: str = typer.Option(None, "--fused", help="The fused model."),
    specialist: str = typer.Option(None, "--specialist", help="The specialist whose modality is probed."),
    base: str = typer.Option(None, "--base", help="The base; allows a forecast from weights alone."),
    probes: str = typer.Option(None, "--probes", help="Pairs of an item and its text (jsonl, parquet, datasets id)."),
    limit: float = typer.Option(None, "--limit", help="The drop in R@1 that matters; 0.05 by default."),
    recover: bool = typer.Option(False, "--recover", help="Go on into recovery when it drifted (needs a recipe)."),
    embedder: str = EMBEDDER,
    device: str = MODEL_DEVICE,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Measure what fusing broke. Exit 3 when a modality drifted beyond its limit."""
    announce_notes()
    paths = {"--fused": fused, "--specialist": specialist, "--base": base, "--probes": probes, "--embedder": embedder}
    if limit is not None and not 0 < limit <= 1:
        raise UsageError(f"--limit {limit:g} is no share", next_move="above 0, at most 1: 0.05 is a drop of 5 points")
    if recipe is None:
        if recover:
            raise UsageError("--recover needs a recipe", next_move="a `recover` section says what to train on what")
        found = _by_paths(fused, specialist, base, probes, limit, device, embedder)
    else:
        if beside := [option for option, said in paths.items() if said is not None]:
            raise UsageError(f"{', '.join(beside)} beside a recipe", str(recipe), "give one or the other")
        found = _by_recipe(recipe, limit, recover, device)
    _show(found, html, as_json)
    if not found.exit_code:
        return
    if not recover:
        raise typer.Exit(found.exit_code)
    from taskmerge.pipeline import run
    from taskmerge.recipes import load

    run(load(recipe), start="recover", until="recover", say=note, device=device)


def _by_recipe(path: Path, limit: float | None, recover: bool, device: str | None) -> DriftReport:
    from dataclasses import replace

    from taskmerge.measuring.drift import DriftReport
    from taskmerge.pipeline import run
    from taskmerge.recipes import FailAbove, load

    recipe = load(path)
    if recipe.drift is None:
        raise UsageError("the recipe has no `drift` section", str(path), "drift: {specialist: NAME, probes: PAIRS}")
    if recover and recipe.recover is None:
        raise UsageError("the recipe has no `recover` section", str(path), "recover: {train: [...], data: PAIRS}")
    if limit is not None:
        recipe = replace(recipe, drift=replace(recipe.drift, fail_above=FailAbove(recall_drop=limit)))
    table = run(recipe, start="diagnose", until="diagnose", say=note, device=device)
    return DriftReport.from_dict(table["stages"]["diagnose"])


def _by_paths(
    fused: str | None,
    specialist: str | None,
    base: str | None,
    probes: str | None,
    limit: float | None,
    device: str | None,
    embedder: str | None,
) -> DriftReport:
    from taskmerge.embedders import ModelSource
    from taskmerge.measuring.drift import diagnose_drift as diagnose

    if fused is None or specialist is None or (base is None and probes is None):
        raise UsageError(
            "nothing to compare", next_move="give a recipe, or --fused, --specialist and --probes (or --base, or both)"
        )
    limits: dict[str, Any] = {} if limit is None else {"limit": limit}
    given = None if base is None else ModelSource(base, embedder)
    models = (ModelSource(fused, embedder), ModelSource(specialist, embedder), given)
    return diagnose(*models, probes, device=device, **limits)


def _show(found: DriftReport, html: Path | None, as_json: bool) -> None:
    from taskmerge.reporting import drift_sections, show, write_report

    if html is not None:
        page, _ = write_report(html, "Projector drift", drift_sections(found), found.as_dict())
        note(f"report: {page}")
    if as_json:
        print_json(found.as_dict())
    else:
        show(drift_sections(found))


def evaluate(
    model: str = typer.Argument(help="A recipe with an `evaluate` section, or a model."),
    retrieval: list[str] = typer.Option([], "--retrieval", help="A set of pairs, as NAME=PATH; repeatable."),
    mteb: list[str] = typer.Option([], "--mteb", help="An mteb task or benchmark; repeatable."),
    embedder: str = EMBEDDER,
    device: str = MODEL_DEVICE,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Score a model, or every variant of a recipe, on retrieval sets and mteb tasks."""
    announce_notes()
    from taskmerge.measuring.evaluation import EvaluationTable
    from taskmerge.reporting import evaluation_section, show, write_report

    result = _evaluated(model, retrieval, mteb, device, embedder)
    sections = []
    if "retrieval" in result:
        sections.append(evaluation_section(EvaluationTable.from_dict(result["retrieval"])))
    if html is not None:
        page, _ = write_report(html, "Evaluation", sections, result)
        note(f"report: {page}")
    if as_json:
        print_json(result)
        return
    show(sections)
    for variant, scores in result.get("mteb", {}).items():
        for task, score in scores.items():
            print(f"{variant}\t{task}\t{score:.4f}")


def _evaluated(
    model: str, retrieval: list[str], mteb: list[str], device: str | None, embedder: str | None
) -> dict[str, Any]:
    if model.endswith((".yaml", ".yml")):
        from taskmerge.pipeline import run
        from taskmerge.recipes import load

        recipe = load(model)
        if embedder is not None:
            raise UsageError("--embedder beside a recipe", model, "write `embedder:` in the recipe")
        if recipe.evaluate is None:
            raise UsageError("the recipe has no `evaluate` section", model, "evaluate: {retrieval: {NAME: PAIRS}}")
        evaluated: dict[str, Any] = run(recipe, start="evaluate", say=note, device=device)["stages"]["evaluate"]
        return evaluated
    if not retrieval and not mteb:
        raise UsageError("nothing to evaluate on", next_move="--retrieval NAME=PATH or --mteb TASK")
    from taskmerge.embedders import ModelSource

    result: dict[str, Any] = {}
    source = {Path(model).name: ModelSource(model, embedder)}
    if retrieval:
        from taskmerge.measuring.evaluation import evaluate_retrieval

        sets = dict(_named_set(text) for text in retrieval)
        result["retrieval"] = evaluate_retrieval(source, sets, device=device).as_dict()
    if mteb:
        from taskmerge.measuring.evaluation.mteb_adapter import evaluate_mteb

        result["mteb"] = evaluate_mteb(source, mteb, device=device)
    return result


def _named_set(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).stem, text)


def stats(
    model: str = typer.Argument(help="Folder of a specialist."),
    probes: str = typer.Option(..., "--probes", help="Items of its modality; their texts need not be pairs."),
    embedder: str = EMBEDDER,
    device: str = MODEL_DEVICE,
) -> None:
    """Collect what a specialist's layers see, for regmean and protect; stored beside its weights."""
    from taskmerge.embedders import ModelSource
    from taskmerge.measuring.covariances import collect_covariances

    covariances = collect_covariances(ModelSource(model, embedder), probes, device=device)
    path = covariances.save(model)
    note(f"{len(covariances)} layers, tokens seen: {covariances.counts}")
    print(path)


COMMANDS = (diagnose_drift, evaluate, stats)
