"""demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from taskmerge.cli.options import JSON, OUT_DEMO
from taskmerge.cli.output import console, note, print_json, say
from taskmerge.errors import UsageError


def demo(
    out: Path = OUT_DEMO,
    from_scratch: bool = typer.Option(
        False,
        "--from-scratch",
        help="First rebuild the shipped data and models from scratch (needs espeak-ng; takes ten minutes).",
    ),
    texts: bool = typer.Option(
        False,
        "--texts",
        help="Only write a text embedder, two specialists trained from it, and pairs: material to try commands on.",
    ),
    as_json: bool = JSON,
) -> None:
    """Run a complete example on real weights in minutes: fuse, diagnose, recover, rehearse, evaluate."""
    if texts:
        return _texts(out, from_scratch, as_json)
    import logging

    from transformers.utils.logging import disable_progress_bar

    from taskmerge.demo.story import tell

    disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)  # repeats within an epoch are not printed
    table, places = tell(out, note, from_scratch=from_scratch)
    if as_json:
        report = str(places.report / "report.html")
        print_json({"report": report, "models": table["models"], "stages": table["stages"]})
        return
    _show_end(table)
    note(
        f"\nThe models are sentence-transformers folders: SentenceTransformer({str(places.rehearsed)!r}, "
        "trust_remote_code=True), because their first module is a class of taskmerge; "
        "taskmerge.open_embedder does not need this permission. The report, one self-contained page:"
    )
    say(places.report / "report.html")


def _texts(out: Path, from_scratch: bool, as_json: bool) -> None:
    """Write the models of `--texts` and say where they are."""
    from taskmerge.demo.texts import TASKS, lay_out

    if from_scratch:
        move = "python -m taskmerge.demo.texts FOLDER trains the two specialists"
        raise UsageError("--texts and --from-scratch cannot be combined", next_move=move)
    folder = lay_out(out, note)
    models = {name: str(folder / name) for name in ("base", *TASKS)}
    if as_json:
        print_json({"folder": str(folder), "models": models})
        return
    note(f"next: taskmerge init {' '.join(models.values())}")
    say(folder)


def _show_end(table: dict[str, Any]) -> None:
    """Print the verdict and the table of all variants."""
    from taskmerge.measuring.drift import DriftReport
    from taskmerge.measuring.evaluation import EvaluationTable
    from taskmerge.reporting import drift_sections, evaluation_section, show
    from taskmerge.reporting.content import Banner, Section

    verdicts = [
        block
        for section in drift_sections(DriftReport.from_dict(table["stages"]["diagnose"]))
        for block in section.blocks
        if isinstance(block, Banner)
    ]
    evaluated = EvaluationTable.from_dict(table["stages"]["evaluate"]["retrieval"])
    show([Section("Verdict", verdicts), evaluation_section(evaluated, ["recall_at_1"])], console())


COMMANDS = (demo,)
