"""diagnose-drift, evaluate, stats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taskmerge.cli.options import (
    BATCH_SIZE,
    DOCUMENT_PROMPT,
    EMBEDDER,
    HTML,
    JSON,
    MODEL_DEVICE,
    ON,
    PRECISION,
    QUERY_PROMPT,
    dimensions_of,
    prompts_of,
)
from taskmerge.cli.output import announce_notes, console, next_move, note, print_json, say
from taskmerge.cli.pages import check_html, write_page
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from taskmerge.embedders import ModelSource
    from taskmerge.measuring.drift import DriftReport


def diagnose_drift(
    recipe: Path = typer.Argument(None, help="A recipe with a `drift` section; or give the paths as options."),
    fused: str = typer.Option(None, "--fused", help="The fused model."),
    specialist: str = typer.Option(None, "--specialist", help="The specialist for the probed modality."),
    base: str = typer.Option(None, "--base", help="The base model; allows a forecast from the weights alone."),
    probes: str = typer.Option(None, "--probes", help="Pairs of an item and its text (jsonl, parquet, datasets id)."),
    trained_on: str = typer.Option(
        None, "--trained-on", help="Pairs that the specialist was trained on: overlaps with the probes are reported."
    ),
    query_prompt: str = QUERY_PROMPT,
    document_prompt: str = DOCUMENT_PROMPT,
    limit: float = typer.Option(None, "--limit", help="The largest acceptable drop in R@1; 0.05 by default."),
    recover: bool = typer.Option(False, "--recover", help="Continue with recovery if it drifted (needs a recipe)."),
    embedder: str = EMBEDDER,
    device: str = MODEL_DEVICE,
    precision: str = PRECISION,
    batch_size: int = BATCH_SIZE,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Measure what the fusion broke.

    Exit with 3 if a modality drifted beyond its limit, and with 4 if none did but one cannot be decided.
    """
    announce_notes()
    check_html(html)
    if limit is not None and not 0 < limit <= 1:
        raise UsageError(
            f"--limit {limit:g} is not a valid share",
            next_move="give a number above 0 and at most 1: 0.05 is a drop of 5 points",
        )
    if recipe is None:
        if recover:
            raise UsageError(
                "--recover needs a recipe",
                next_move="give a recipe: its `recover` section lists the components to train and the data",
            )
        of_probes = {
            "--trained-on": trained_on, "--query-prompt": query_prompt, "--document-prompt": document_prompt,
            "--limit": limit, "--precision": precision, "--batch-size": batch_size,
        }  # fmt: skip
        _check_probes(probes, base, of_probes)
        prompts = prompts_of(query_prompt, document_prompt)
        options = {
            "device": device, "prompts": prompts, "trained_on": trained_on,
            **_how(precision, batch_size),
        }  # fmt: skip
        found = _by_paths(fused, specialist, base, probes, limit, embedder, options)
    else:
        options = {
            "--fused": fused, "--specialist": specialist, "--base": base, "--probes": probes,
            "--trained-on": trained_on, "--query-prompt": query_prompt, "--document-prompt": document_prompt,
            "--embedder": embedder, "--precision": precision, "--batch-size": batch_size,
        }  # fmt: skip
        if beside := [option for option, said in options.items() if said is not None]:
            raise UsageError(
                f"{', '.join(beside)} cannot be combined with a recipe",
                str(recipe),
                "give either a recipe or these options",
            )
        found = _by_recipe(recipe, limit, recover, device)
    _show(found, html, as_json)
    recovered = None
    if recover and found.beyond_limit:
        recovered = _recovered(recipe, device)
    elif found.beyond_limit:
        next_move(f"taskmerge recover {recipe}" if recipe else "a recipe with a `recover` section repairs projectors")
    elif found.open:
        next_move("give more probes: the verdict states how many")
    if as_json:
        print_json({**found.as_dict(), "exit_code": found.exit_code, "recovered": recovered})
    elif recovered is not None:
        say(recovered)
    if found.exit_code and recovered is None:
        raise typer.Exit(found.exit_code)


def _check_probes(probes: str | None, base: str | None, given: Mapping[str, object]) -> None:
    """Raise UsageError for options of probes, where there is only a forecast."""
    named = [option for option, value in given.items() if value is not None]
    if probes is None and base is not None and named:
        what = f"{', '.join(named)}: a forecast from the weights alone runs no model"
        raise UsageError(what, next_move="give --probes too, or leave it out")


def _recovered(recipe: Path, device: str | None) -> Path:
    """Repair the fused model of a recipe; returns the folder of the repaired one."""
    from taskmerge.pipeline import Places, run
    from taskmerge.recipes import load

    said = load(recipe)
    run(said, start="recover", until="recover", say=note, device=device)
    recovered = Places.of(said).recovered
    next_move(f"taskmerge diagnose-drift --fused {recovered} …, or taskmerge run {recipe}")
    return recovered


def _how(precision: str | None, batch_size: int | None) -> dict[str, Any]:
    """What --precision and --batch-size say."""
    from taskmerge.words.precisions import parse_precision

    parse_precision(precision)
    return {"precision": precision, **({} if batch_size is None else {"batch_size": batch_size})}


def _by_recipe(path: Path, limit: float | None, recover: bool, device: str | None) -> DriftReport:
    from dataclasses import replace

    from taskmerge.measuring.drift import DriftReport
    from taskmerge.pipeline import run
    from taskmerge.recipes import FailAbove, load

    recipe = load(path)
    if recipe.drift is None:
        raise UsageError("the recipe has no `drift` section", str(path), "add drift: {specialist: NAME, probes: PAIRS}")
    if recover and recipe.recover is None:
        raise UsageError("the recipe has no `recover` section", str(path), "add recover: {train: [...], data: PAIRS}")
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
    embedder: str | None,
    options: dict[str, Any],
) -> DriftReport:
    from taskmerge.embedders import ModelSource
    from taskmerge.measuring.drift import diagnose_drift as diagnose

    if fused is None or specialist is None or (base is None and probes is None):
        raise UsageError(
            "nothing to compare", next_move="give a recipe, or --fused, --specialist and --probes (or --base, or both)"
        )
    limits: dict[str, Any] = {} if limit is None else {"limit": limit}
    given = None if base is None else ModelSource(base, embedder)
    own, merged = ModelSource(specialist, embedder), ModelSource(fused, embedder)
    return diagnose(merged, own, given, probes, **limits, **options)


def _show(found: DriftReport, html: Path | None, as_json: bool) -> None:
    from taskmerge.reporting import drift_page, drift_sections, show

    if html is not None:
        write_page(html, "Projector drift", drift_page(found), found.as_dict())
    if not as_json:
        show(drift_sections(found), console())


def evaluate(
    model: str = typer.Argument(help="A recipe with an `evaluate` section, or a model."),
    retrieval: list[str] = typer.Option([], "--retrieval", help="A set of pairs: NAME=PATH; repeatable."),
    mteb: list[str] = typer.Option([], "--mteb", help="An mteb task or benchmark; repeatable."),
    query_prompt: str = QUERY_PROMPT,
    document_prompt: str = DOCUMENT_PROMPT,
    dimensions: str = typer.Option(
        None, "--dimensions", help="Also score embeddings truncated to these dimensions, for example 64,128."
    ),
    results: Path = typer.Option(
        None, "--results", help="Folder with mteb's results, which are reused; by default mteb's own ($MTEB_CACHE)."
    ),
    model_meta: Path = typer.Option(
        None, "--model-meta", help="YAML or JSON file with fields for mteb's record: release_date, license, …"
    ),
    embedder: str = EMBEDDER,
    device: str = MODEL_DEVICE,
    precision: str = PRECISION,
    batch_size: int = BATCH_SIZE,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Score a model, or every variant of a recipe, on retrieval sets and mteb tasks.

    Each set is searched in both directions. Queries get the query prompt, documents the document prompt. The results of
    mteb are saved after each task; run the same command again to resume.
    """
    announce_notes()
    check_html(html)
    from taskmerge.embedders import ModelSource
    from taskmerge.measuring.evaluation import Evaluated
    from taskmerge.reporting import evaluated_sections, evaluation_page, show
    from taskmerge.words.json_text import check_json

    prompts = prompts_of(query_prompt, document_prompt)
    own = {"--retrieval": retrieval, "--mteb": mteb, "--query-prompt, --document-prompt": prompts,
           "--dimensions": dimensions, "--results": results, "--model-meta": model_meta,
           "--embedder": embedder, "--precision": precision, "--batch-size": batch_size}  # fmt: skip
    places: dict[str, str] = {}
    if model.endswith((".yaml", ".yml")):
        if beside := [option for option, said in own.items() if said]:
            raise UsageError(f"{', '.join(beside)} cannot be combined with a recipe", model, "set it in the recipe")
        result, places = _by_evaluate_section(model, device)
    else:
        cut = dimensions_of(dimensions)
        options = {"device": device, "prompts": prompts, "dimensions": cut, **_how(precision, batch_size)}
        result = _by_model(ModelSource(model, embedder), retrieval, mteb, results, model_meta, options)
    checked: Any = check_json(result, Evaluated, "the evaluation")
    sections = evaluated_sections(checked)
    if html is not None:
        page = evaluation_page(checked, places)
        write_page(html, "Evaluation", page, result)
    if as_json:
        print_json(result)
    else:
        show(sections, console())


def _by_evaluate_section(path: str, device: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """(what was found, variant -> its folder)."""
    from taskmerge.pipeline import run
    from taskmerge.recipes import load

    recipe = load(path)
    if recipe.evaluate is None:
        raise UsageError("the recipe has no `evaluate` section", path, "add evaluate: {retrieval: {NAME: PAIRS}}")
    found = run(recipe, start="evaluate", say=note, device=device)
    return found["stages"]["evaluate"], found["models"]


def _by_model(
    model: ModelSource,
    retrieval: list[str],
    mteb: list[str],
    results: Path | None,
    model_meta: Path | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    if not retrieval and not mteb:
        raise UsageError("nothing to evaluate on", next_move="give --retrieval NAME=PATH or --mteb TASK")
    if not mteb and (results or model_meta):
        raise UsageError("--results and --model-meta are for mteb, but --mteb is missing", next_move="add --mteb TASK")
    variants = {_variant(str(model)): model}
    result: dict[str, Any] = {}
    if mteb:
        from taskmerge.measuring.evaluation.mteb_adapter import check_tasks
        from taskmerge.measuring.evaluation.mteb_card import read_meta

        check_tasks(mteb)
        meta = read_meta(model_meta) if model_meta is not None else None
    if retrieval:
        from taskmerge.measuring.evaluation import evaluate_retrieval

        sets = _named_sets(retrieval)
        result["retrieval"] = evaluate_retrieval(variants, sets, **options).as_dict()
    if mteb:
        from taskmerge.measuring.evaluation.mteb_adapter import run_mteb

        found = run_mteb(variants, mteb, results=results, meta=meta, say=note, **options)
        if not any(found.scores.values()):
            raise UsageError(
                f"{model}: does not support the modalities of any of these tasks",
                next_move="see the messages above: they state what the tasks need",
            )
        result["mteb"] = found.as_dict()
    from taskmerge.measuring.evaluation.of_model import digests

    result["models"] = digests({name: str(model) for name in variants})
    return result


def _variant(model: str) -> str:
    """Return the name of a model in tables and in mteb's results: the complete hub id, or the name of the folder."""
    from taskmerge.words.places import parse_place

    here = Path(model)
    return here.resolve().name if here.exists() or parse_place(model).kind == "path" else model.partition("@")[0]


def _named_sets(texts: list[str]) -> dict[str, str]:
    """--retrieval NAME=PATH, or a path whose file name is the name. Raises UsageError for two of one name."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (Path(text).stem, text)
        if not name or not path:
            raise UsageError(f"{text!r} is not of the form NAME=PATH", "--retrieval", "give --retrieval NAME=PATH")
        if name in found:
            move = f"give one another name: --retrieval {name}2={path}"
            raise UsageError(f"two sets have the name {name!r}: {found[name]} and {path}", "--retrieval", move)
        found[name] = path
    return found


def stats(
    model: str = typer.Argument(help="Folder of a specialist."),
    probes: str = typer.Option(..., "--probes", help="Items of its modality; their texts are not used."),
    query_prompt: str = QUERY_PROMPT,
    document_prompt: str = DOCUMENT_PROMPT,
    embedder: str = EMBEDDER,
    device: str = MODEL_DEVICE,
    on: str = ON,
    as_json: bool = JSON,
) -> None:
    """Collect the input covariances of a specialist's layers, for regmean and protect, and store them next to its
    weights.

    With --on ray, tasks run fixed chunks of the probes and return their sums, which are added in a fixed order: the
    result is that of the command without it, if the machines are alike.
    """
    from taskmerge.embedders import ModelSource

    prompts = prompts_of(query_prompt, document_prompt)
    source = ModelSource(model, embedder)
    if on is None:
        from taskmerge.measuring.covariances import collect_covariances

        covariances = collect_covariances(source, probes, device=device, prompts=prompts)
    else:
        from taskmerge.measuring.on_ray import collect_on_ray
        from taskmerge.words.ray_cluster import parse_launcher

        covariances = collect_on_ray(parse_launcher(on), source, probes, device=device, prompts=prompts)
    path = covariances.save(model)
    note(f"{len(covariances)} layers, tokens seen: {covariances.counts}")
    next_move("a recipe with this specialist can use merge: {method: regmean}, or protect")
    if as_json:
        print_json({"path": str(path), "layers": len(covariances), "tokens": dict(covariances.counts)})
        return
    say(path)


COMMANDS = (diagnose_drift, evaluate, stats)
