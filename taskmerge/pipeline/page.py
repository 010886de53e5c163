"""The page of a run, or of one stage, from the stages' plain results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskmerge.pipeline.state import NOTE_MOVE
from taskmerge.words.json_text import check_json

if TYPE_CHECKING:
    from taskmerge.reporting import Section


def page_sections(table: Mapping[str, Any], stage: str | None = None) -> list[Section]:
    """Return the sections of the page.

    Args:
        table: of `pipeline.run`: "stages", of which a skipped one's result comes from its note, and "models".
        stage: the one stage to show; None: all of them.

    Raises:
        CheckpointError: for results that make no sense, and the file to remove.
    """
    from taskmerge.measuring.drift import DriftReport
    from taskmerge.measuring.evaluation import Evaluated
    from taskmerge.reporting import StageResults, recovery_page, run_page, training_page
    from taskmerge.training import StageReport
    from taskmerge.training.arms import RecoveryReport

    results = table["stages"]

    def read(name: str, shape: Any) -> Any:
        return check_json(results[name], shape, f"{name}.json", NOTE_MOVE) if name in results else None

    trained = [name for name in results if name == "rehearse" or name.startswith("specialize-")]
    if stage is not None:
        trained = [name for name in trained if name.partition("-")[0] == stage]
    found = StageResults(
        table["models"],
        results.get("fuse"),
        read("diagnose", DriftReport),
        read("recover", RecoveryReport),
        {name: read(name, StageReport) for name in trained},
        read("evaluate", Evaluated),
    )
    if stage == "recover":
        return recovery_page(found)
    return run_page(found) if stage is None else training_page(found)
