"""graft, specialize, recover, rehearse, run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from taskmerge.cli.options import (
    ENCODINGS,
    ENCODINGS_LIMIT,
    FRESH,
    HTML,
    JSON,
    KEEP_CHECKPOINTS,
    OUT,
    OUT_FOLDER,
    PROCESSES,
    TRAINING_DEVICE,
)
from taskmerge.cli.output import announce_notes, announce_preparing, console, next_move, note, print_json, say
from taskmerge.cli.pages import check_html, write_stages
from taskmerge.cli.planning import show_run_plan
from taskmerge.errors import UsageError
from taskmerge.words.sizes import parse_size

if TYPE_CHECKING:
    from taskmerge.recipes import Recipe

RECIPE = typer.Argument(help="The recipe.")
FRESH_STAGE = typer.Option(
    False, "--fresh", help="Also replace models of taskmerge that were not written by an earlier run of this recipe."
)


def graft(
    backbone: str = typer.Argument(
        help="A text or vision-language model, or an already grafted one: folder or hub id."
    ),
    modality: str = typer.Option(..., "--modality", help="audio, image, document or video."),
    encoder: str = typer.Option(..., "--encoder", help="log_mel, patches, or a transformers encoder."),
    projector: str = typer.Option("mlp", "--projector", help="linear or mlp."),
    out: Path = OUT_FOLDER,
    seed: int = typer.Option(0, "--seed", help="Seed of the new projector."),
    fresh: bool = FRESH,
    as_json: bool = JSON,
) -> None:
    """Attach an encoder and a new projector to a backbone."""
    announce_notes()
    from taskmerge.embedders import graft as attach

    first: Any = attach(backbone, modality, encoder, projector, out, seed=seed, fresh=fresh)[0]
    takes = [name for name in first.modalities if name != "message"]
    tokens = {name: tower.placeholder for name, tower in first.towers.items()}
    shown = ", ".join(f"{token} for {name}" for name, token in tokens.items())
    note(f"takes {', '.join(takes)}; placeholder tokens: {shown}")
    next_move(f"taskmerge check-model {out}; the projector is not trained yet: a recipe with `specialize` trains it")
    print_json({"path": str(out), "modalities": takes, "placeholders": tokens}) if as_json else say(out)


def specialize(
    recipe: Path = RECIPE,
    device: str = TRAINING_DEVICE,
    fresh: bool = FRESH_STAGE,
    processes: int = PROCESSES,
    keep_checkpoints: bool = KEEP_CHECKPOINTS,
    encodings: Path | None = ENCODINGS,
    encodings_limit: str = ENCODINGS_LIMIT,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Train the specialists listed in the recipe's `specialize` section."""
    how = _How(device, fresh, processes, keep_checkpoints, encodings, encodings_limit, html, as_json)
    _stage(recipe, "specialize", None, how)


def recover(
    recipe: Path = RECIPE,
    out: Path = OUT,
    device: str = TRAINING_DEVICE,
    fresh: bool = FRESH_STAGE,
    processes: int = PROCESSES,
    keep_checkpoints: bool = KEEP_CHECKPOINTS,
    encodings: Path | None = ENCODINGS,
    encodings_limit: str = ENCODINGS_LIMIT,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Repair drifted projectors of the fused model; all other tensors stay frozen."""
    how = _How(device, fresh, processes, keep_checkpoints, encodings, encodings_limit, html, as_json)
    _stage(recipe, "recover", out, how)


def rehearse(
    recipe: Path = RECIPE,
    out: Path = OUT,
    device: str = TRAINING_DEVICE,
    fresh: bool = FRESH_STAGE,
    processes: int = PROCESSES,
    keep_checkpoints: bool = KEEP_CHECKPOINTS,
    encodings: Path | None = ENCODINGS,
    encodings_limit: str = ENCODINGS_LIMIT,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Train the fused (or recovered) model on all modalities in balance."""
    how = _How(device, fresh, processes, keep_checkpoints, encodings, encodings_limit, html, as_json)
    _stage(recipe, "rehearse", out, how)


_STAGES = "specialize, fuse, diagnose, recover, rehearse, evaluate"


class _How(NamedTuple):
    """Options of all commands that train."""

    device: str | None
    fresh: bool
    processes: int
    keep_checkpoints: bool
    encodings: Path | None
    limit: str
    html: Path | None
    as_json: bool

    def run(self, recipe: Recipe, **stages: Any) -> dict[str, Any] | None:
        """Return the table of the run; None if other processes did all the work, or if this is one of the others."""
        from taskmerge.embedders.encodings import Keeping
        from taskmerge.pipeline import run as run_all
        from taskmerge.words.processes import is_first, start

        limit = 0 if self.limit.strip() == "0" else parse_size(self.limit)
        if self.processes > 1:
            words = _without_processes(sys.argv[1:])
            raise typer.Exit(start(self.processes, words))
        keeping = Keeping(None if self.encodings is None else str(self.encodings.absolute()), limit)
        table = run_all(
            recipe, **stages, say=note, device=self.device, fresh=self.fresh,
            keep_checkpoints=self.keep_checkpoints, encodings=keeping,
        )  # fmt: skip
        return table if is_first() else None


def _without_processes(words: Sequence[str]) -> list[str]:
    """Return the same command for one process."""
    found, skip = [], False
    for word in words:
        if not skip and not word.startswith("--processes"):
            found.append(word)
        skip = word == "--processes"
    return found


_AFTER = {"specialize": "fuse", "recover": "evaluate", "rehearse": "evaluate"}


def _stage(path: Path, stage: str, out: Path | None, how: _How) -> None:
    announce_notes()
    check_html(how.html)
    from taskmerge.recipes import load

    recipe = load(path)
    if getattr(recipe, stage) is None:
        raise UsageError(f"the recipe has no `{stage}` section", str(path), "add one: `taskmerge schema` describes it")
    table = how.run(recipe, out=out, start=stage, until=stage)
    if table is None:
        return
    if how.html is not None:
        write_stages(how.html, table, stage)
    next_move(f"taskmerge {_AFTER[stage]} {path}")
    if how.as_json:
        print_json(table)
    _end(table)


def run(
    recipe: Path = RECIPE,
    out: Path = OUT,
    start: str = typer.Option(None, "--from", help=f"First stage to run: {_STAGES}."),
    until: str = typer.Option(None, "--until", help="Last stage to run: one of the same names."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the time, memory and disk space that every stage needs; run nothing."
    ),
    assume: str = typer.Option(
        None, "--assume", help="With --dry-run: devices to plan for: 4x80GB, 4x80GB@400 (TFLOP/s)."
    ),
    device: str = typer.Option(
        None,
        "--device",
        help="Where models are trained and measured: cpu, cuda, mps; by default the first GPU, if there is one, for "
        "training, and the CPU for measuring.",
    ),
    fresh: bool = FRESH_STAGE,
    processes: int = PROCESSES,
    keep_checkpoints: bool = KEEP_CHECKPOINTS,
    encodings: Path | None = ENCODINGS,
    encodings_limit: str = ENCODINGS_LIMIT,
    html: Path = HTML,
    as_json: bool = JSON,
) -> None:
    """Run all stages of a recipe: specialize, fuse, diagnose, recover, rehearse, evaluate.

    A stage is skipped if nothing has changed since it ran: its part of the recipe, its models and data, and the sounds
    and pictures that .jsonl and .parquet data list (by size and modification time). Run the same command again to
    resume. Several processes (--processes, or `accelerate launch -m taskmerge run recipe.yaml`) share the stages that
    train.
    """
    from taskmerge.pipeline import Places
    from taskmerge.recipes import load

    if dry_run and html is not None:
        raise UsageError(
            "--html shows the results of a run, and --dry-run runs nothing", next_move="leave out one of them"
        )
    check_html(html)
    said = load(recipe)
    if assume is not None and not dry_run:
        raise UsageError(
            "--assume needs --dry-run", next_move="add --dry-run: taskmerge run --dry-run --assume 4x80GB RECIPE"
        )
    if dry_run:
        show_run_plan(said, out, assume, processes, as_json)
        return
    announce_preparing()
    announce_notes()
    how = _How(device, fresh, processes, keep_checkpoints, encodings, encodings_limit, html, as_json)
    table = how.run(said, out=out, start=start, until=until)
    if table is None:
        return
    if html is not None:
        write_stages(html, table)
    places = Places.of(said, out)
    there = set(table["models"].values())
    if made := [path for path in (places.rehearsed, places.recovered, places.fused) if str(path) in there]:
        next_move(f"taskmerge push {made[0]} owner/name --dry-run")
    if as_json:
        print_json(table)
    else:
        _show_table(table)
        say(places.report / "report.html")
    _end(table, _unrepaired(said, until))


def _unrepaired(recipe: Recipe, until: str | None) -> bool:
    """Whether a diagnosis of this run is its last word: no stage of it repairs."""
    from taskmerge.pipeline import STAGES
    from taskmerge.pipeline.steps import stages_of

    stages = STAGES[: STAGES.index(until) + 1] if until else STAGES
    return not {"recover", "rehearse"} & {*stages} & {*stages_of(recipe)}


def _end(table: dict[str, Any], unrepaired: bool = False) -> None:
    """End as a table of stages says: 3 where rehearsal had to keep the initial model, so that no modality would end
    below its floor; as `diagnose-drift` does where nothing repairs what was diagnosed."""
    stages = table["stages"]
    code = 3 if stages.get("rehearse", {}).get("barred") else 0
    if not code and unrepaired:
        code = stages.get("diagnose", {}).get("exit_code", 0)
    if code:
        raise typer.Exit(code)


def _show_table(table: dict[str, object]) -> None:
    from taskmerge.measuring.evaluation import Evaluated
    from taskmerge.reporting import evaluated_sections, show
    from taskmerge.words.json_text import check_json

    stages = table["stages"]
    assert isinstance(stages, dict)
    if "evaluate" in stages:
        show(evaluated_sections(check_json(stages["evaluate"], Evaluated, "the evaluation")), console())


COMMANDS = (graft, specialize, recover, rehearse, run)
