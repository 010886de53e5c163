"""graft, specialize, recover, rehearse, run."""

from __future__ import annotations

from pathlib import Path

import typer

from taskmerge.cli.options import FRESH, JSON, MODEL_DEVICE, OUT, OUT_FOLDER, TRAINING_DEVICE
from taskmerge.cli.output import announce_notes, announce_preparing, console, note, print_json, say
from taskmerge.errors import UsageError

RECIPE = typer.Argument(help="The recipe.")
FRESH_STAGE = typer.Option(
    False, "--fresh", help="Replace models that taskmerge made, but that no earlier run of this recipe has left."
)


def graft(
    backbone: str = typer.Argument(help="A text or vision-language model, or one grafted before: folder or hub id."),
    modality: str = typer.Option(..., "--modality", help="audio, image, document or video."),
    encoder: str = typer.Option(..., "--encoder", help="log_mel, patches, or a transformers encoder."),
    projector: str = typer.Option("mlp", "--projector", help="linear or mlp."),
    out: Path = OUT_FOLDER,
    seed: int = typer.Option(0, "--seed", help="Of the fresh projector."),
    fresh: bool = FRESH,
) -> None:
    """Attach an encoder and a fresh projector to a backbone."""
    announce_notes()
    from taskmerge.embedders import graft as attach

    first = attach(backbone, modality, encoder, projector, out, seed=seed, fresh=fresh)[0]
    tokens = ", ".join(f"{tower.placeholder} for {name}" for name, tower in first.towers.items())
    note(f"takes {', '.join(name for name in first.modalities if name != 'message')}; tokens that stand in: {tokens}")
    say(out)


def specialize(
    recipe: Path = RECIPE, device: str = TRAINING_DEVICE, fresh: bool = FRESH_STAGE, as_json: bool = JSON
) -> None:
    """Train the specialists that the recipe has a `specialize` section for."""
    _stage(recipe, "specialize", None, device, fresh, as_json)


def recover(
    recipe: Path = RECIPE,
    out: Path = OUT,
    device: str = TRAINING_DEVICE,
    fresh: bool = FRESH_STAGE,
    as_json: bool = JSON,
) -> None:
    """Repair drifted projectors of the fused model, everything else frozen."""
    _stage(recipe, "recover", out, device, fresh, as_json)


def rehearse(
    recipe: Path = RECIPE,
    out: Path = OUT,
    device: str = TRAINING_DEVICE,
    fresh: bool = FRESH_STAGE,
    as_json: bool = JSON,
) -> None:
    """Train the fused (or recovered) model on all modalities in balance."""
    _stage(recipe, "rehearse", out, device, fresh, as_json)


def _stage(path: Path, stage: str, out: Path | None, device: str | None, fresh: bool, as_json: bool) -> None:
    announce_notes()
    from taskmerge.pipeline import run
    from taskmerge.recipes import load

    recipe = load(path)
    if getattr(recipe, stage) is None:
        raise UsageError(f"the recipe has no `{stage}` section", str(path), "`taskmerge schema` describes it")
    table = run(recipe, out=out, start=stage, until=stage, say=note, device=device, fresh=fresh)
    if as_json:
        print_json(table)


def run(
    recipe: Path = RECIPE,
    out: Path = OUT,
    start: str = typer.Option(None, "--from", help="First stage to run."),
    until: str = typer.Option(None, "--until", help="Last stage to run."),
    device: str = MODEL_DEVICE,
    fresh: bool = FRESH_STAGE,
    as_json: bool = JSON,
) -> None:
    """Run all stages of a recipe: specialize, fuse, diagnose, recover, rehearse, evaluate. Resumable.

    A stage is skipped while its part of the recipe, the models and data it reads, and the sounds and pictures that
    .jsonl and .parquet data name (by size and time of change) are as they were when it ran.
    """
    from taskmerge.pipeline import Places
    from taskmerge.pipeline import run as run_all
    from taskmerge.recipes import load

    said = load(recipe)
    announce_preparing()
    announce_notes()
    table = run_all(said, out=out, start=start, until=until, say=note, device=device, fresh=fresh)
    if as_json:
        print_json(table)
        return
    _show_table(table)
    say(Places.of(said, out).report / "report.html")


def _show_table(table: dict[str, object]) -> None:
    from taskmerge.measuring.evaluation import Evaluated
    from taskmerge.reporting import evaluated_sections, show
    from taskmerge.words.json_text import check_json

    stages = table["stages"]
    assert isinstance(stages, dict)
    if "evaluate" in stages:
        show(evaluated_sections(check_json(stages["evaluate"], Evaluated, "the evaluation")), console())


COMMANDS = (graft, specialize, recover, rehearse, run)
