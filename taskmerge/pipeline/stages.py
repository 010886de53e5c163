"""Each stage of a run: what it reads, what it leaves, which part of the library does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from taskmerge.errors import RecipeError
from taskmerge.pipeline.outputs import destination
from taskmerge.pipeline.overlaps import overlap_notes
from taskmerge.pipeline.page import page_sections
from taskmerge.pipeline.report_folder import claim_report
from taskmerge.pipeline.scored import results_place
from taskmerge.pipeline.sets import grafted_modality
from taskmerge.pipeline.state import Run, training_settings
from taskmerge.pipeline.steps import (
    diagnose_steps,
    evaluate_steps,
    followed,
    fuse_steps,
    recover_steps,
    rehearse_steps,
    specialize_steps,
)
from taskmerge.pipeline.variants import plain, unscored, variants
from taskmerge.recipes import Specialize


def specialize(run: Run) -> None:
    """Train every specialist that the recipe has a `specialize` section for, into its `model` folder."""
    sections = (run.recipe.specialize or {}).values()
    for section, step in zip(sections, specialize_steps(run), strict=True):
        run.once(step, partial(_train_specialist, run, section, step.outputs[0], step.name))


def _train_specialist(run: Run, section: Specialize, out: Path, stage: str) -> dict[str, Any]:
    from taskmerge.embedders import graft
    from taskmerge.training import specialize as train

    data = run.data(section.data)
    if section.graft is None:
        model: Any = run.source(run.base)
    else:
        modality, encoder = grafted_modality(run, section), run.encoder(section.graft)
        model = graft(run.base, modality, encoder, section.graft.projector, seed=run.recipe.seed)
    settings = training_settings(section, run, run.work(stage), steps=1000, learning_rate=2e-5)
    place = destination(run, stage, out, **({} if section.graft is None else {"base": run.base}))
    return asdict(train(model, data, section.train, settings, out=place, work=run.work(stage)))


def fuse(run: Run) -> None:
    """Merge the models into OUT."""
    from taskmerge.merging import execute, plan

    recipe, out = run.recipe, run.places.fused

    def make() -> dict[str, Any]:
        decided = plan(recipe)
        for line in (*(f"warning: {text}" for text in decided.warnings), *decided.notes):
            run.say(f"  {line}")
        written = execute(decided, recipe, out, fresh=destination(run, "fuse", out).fresh)
        for path in written.left:
            run.say(f"  left in place: {path}")
        table = {component: dict(counts) for component, counts in decided.table().items()}
        return {"path": str(out), "bytes": written.bytes, "components": table, "warnings": list(decided.warnings),
                "notes": list(decided.notes)}  # fmt: skip

    (step,) = fuse_steps(run)
    run.once(step, make)


def diagnose(run: Run) -> None:
    """Measure the drift of the fused model against each named specialist."""
    from taskmerge.measuring.drift import diagnose_drift

    section = run.recipe.drift
    if section is None:
        return
    names = section.specialist
    probes = section.probes if not isinstance(section.probes, str) else dict.fromkeys(names, section.probes)
    sources = {name: run.data(probes[name]) for name in names if name in probes}
    if missing := [name for name in names if name not in sources]:
        raise RecipeError(
            f"drift: there are no probes for {', '.join(missing)}", section.place, "write probes: {NAME: path, ...}"
        )

    said = section.trained_on
    by_name: Mapping[str, Any] = (
        dict.fromkeys(names, said)
        if isinstance(said, str)
        else said or {name: row.data for name, row in (run.recipe.specialize or {}).items() if name in names}
    )
    trained_on = {name: run.data(source) for name, source in by_name.items()}

    def make() -> dict[str, Any]:
        specialists = {name: run.source(run.specialist(name)) for name in names}
        found = diagnose_drift(
            run.source(run.places.fused), specialists, run.source(run.base), sources,
            limit=section.fail_above.recall_drop, components=run.recipe.components, device=run.device,
            precision=section.precision, batch_size=section.batch_size, prompts=run.prompts, trained_on=trained_on,
        )  # fmt: skip
        for line in str(found).splitlines():
            run.say(f"  {line}")
        return {**found.as_dict(), "words": str(found), "exit_code": found.exit_code}

    (step,) = diagnose_steps(run)
    run.once(step, make)


def recover(run: Run) -> None:
    """Repair projectors of the fused model into OUT-recovered."""
    section = run.recipe.recover
    if section is None:
        return
    from taskmerge.training.arms import recover_by_choice

    data, held_out = run.data(section.data), run.data(section.held_out)
    drift = run.recipe.drift
    specialist = run.source(run.specialist(drift.specialist[0])) if drift and len(drift.specialist) == 1 else None

    def make() -> dict[str, Any]:
        settings = training_settings(
            section, run, run.work("recover"),
            steps=300, learning_rate=1e-3, evaluate_every=25, patience=4,
        )  # fmt: skip
        report = recover_by_choice(
            run.source(run.places.fused), data, section.train, method=section.method, specialist=specialist,
            settings=settings, held_out=held_out, out=destination(run, "recover", run.places.recovered),
            work=run.work("recover"),
        )  # fmt: skip
        for arm in report.arms:
            gain = "" if arm.gain is None else f", gain {arm.gain}"
            run.say(f"  {arm.name}: MRR {arm.scores['mrr']:.3f}{gain} ({arm.note})")
        run.say(f"  kept: {report.kept}: {report.reason}")
        report.notes.extend(overlap_notes(run, "recover", held_out or data))
        for note in report.notes:
            run.say(f"  {note}")
        return report.as_dict()

    (step,) = recover_steps(run)
    run.once(step, make)


def rehearse(run: Run) -> None:
    """Train the latest model on all modalities in balance, into OUT-rehearsed."""
    section = run.recipe.rehearse
    if section is None:
        return
    from taskmerge.training import rehearse as train

    start = run.places.recovered if run.recipe.recover else run.places.fused
    data, held_out = run.data(section.data), run.data(section.held_out)

    def make() -> dict[str, Any]:
        work = run.work("rehearse")
        settings = training_settings(section, run, work, steps=2000, learning_rate=1e-5)
        place = destination(run, "rehearse", run.places.rehearsed)
        told = train(
            run.source(start), data, section.train, settings, held_out=held_out, may_fall=section.may_fall,
            specialists={name: run.source(run.specialist(name)) for name in followed(run)}, out=place, work=work,
        )  # fmt: skip
        for line in [*told.notes, *told.verdict()]:
            run.say(f"  {line}")
        return asdict(told)

    (step,) = rehearse_steps(run)
    run.once(step, make)


def evaluate(run: Run) -> None:
    """Score every existing variant on the recipe's retrieval sets."""
    section = run.recipe.evaluate
    if section is None:
        return
    from taskmerge.measuring.evaluation import evaluate_retrieval
    from taskmerge.measuring.evaluation.of_model import digests

    models = variants(run)
    if absent := unscored(run):
        run.say(
            f"  not scored, because they are not complete models: {', '.join(absent)} (`taskmerge apply` makes "
            "a model from an adapter)"
        )
    if bare := plain(run):
        run.say(
            f"  not scored, because nothing says how they embed: {', '.join(bare)} (they have no modules.json: save "
            "them with sentence-transformers, or name an `embedder`)"
        )
    sources = {name: run.source(path) for name, path in models.items()}
    sets = run.data(section.retrieval)
    own: dict[str, Any] = {
        "device": run.device, "precision": section.precision, "batch_size": section.batch_size,
        "prompts": run.prompts, "dimensions": section.dimensions,
    }  # fmt: skip

    def make() -> dict[str, Any]:
        result: dict[str, Any] = {}
        for note in overlap_notes(run, "evaluate", sets, ("specialize", "recover", "rehearse")):
            run.say(f"  {note}")
        if sets:
            result["retrieval"] = evaluate_retrieval(sources, sets, against=against(sources), **own).as_dict()
        if section.mteb:
            from taskmerge.measuring.evaluation.mteb_adapter import run_mteb
            from taskmerge.measuring.evaluation.mteb_card import read_meta

            meta = read_meta(run.path(section.model_meta)) if section.model_meta else None
            found = run_mteb(sources, section.mteb, results=results_place(run), meta=meta, say=run.say, **own)
            result["mteb"] = found.as_dict()
        result["models"] = digests(models)
        return result

    (step,) = evaluate_steps(run)
    run.once(step, make)


def against(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the variants that each variant is compared with: every stage with those that it was made from."""
    models = list(names)
    specialists = [name for name in models if name.startswith("specialist ")]
    made_from = {
        **{name: ["base"] for name in specialists},
        "fused": ["base", *specialists],
        "recovered": ["fused", *specialists],
        "rehearsed": ["recovered", "fused", *specialists],
    }
    return {name: [other for other in made_from.get(name, ()) if other in models] for name in models}


def report(run: Run) -> dict[str, Any]:
    """Write report.html and report.json from the results of all stages; return the content of the JSON."""
    from taskmerge.reporting import write_report

    recipe = run.recipe.text
    table = {
        "recipe": recipe,
        "models": {name: str(path) for name, path in variants(run).items()},
        "stages": run.results,
        "outdated": run.outdated,
    }
    claim_report(run.places.report)
    lead = ", ".join(run.recipe.specialists) + f" fused by {run.recipe.merge.method}."
    if run.outdated:
        lead += (
            " Not shown, because they belong to another recipe, other inputs or another "
            f"model: {', '.join(run.outdated)}."
        )
    write_report(run.places.report / "report.html", run.places.fused.name, page_sections(table), table, lead, recipe)
    return table


BY_NAME: dict[str, Callable[[Run], None]] = {
    "specialize": specialize,
    "fuse": fuse,
    "diagnose": diagnose,
    "recover": recover,
    "rehearse": rehearse,
    "evaluate": evaluate,
}
