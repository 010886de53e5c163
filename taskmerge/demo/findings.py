"""Findings of each stage, in words for a first-time reader. Every number is measured in this run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from taskmerge.measuring.evaluation import EvaluationTable
from taskmerge.merging.algebra import Checkpoint
from taskmerge.merging.algebra.comparison import differences
from taskmerge.pipeline import Run

PROJECTOR = "audio_projector."


def fused(run: Run) -> Iterator[str]:
    """Yield the angle between the two task vectors, and the numbers of merged and copied tensors."""
    base = Checkpoint.open(str(run.base))
    image, audio = (Checkpoint.open(str(run.specialist(name))) - base for name in ("image", "audio"))
    parts = run.results["fuse"]["components"].values()
    merged, copied = (sum(counts.get(action, 0) for counts in parts) for action in ("merge", "copy"))
    cosine = round(image.cosine(audio), 3) + 0.0  # no -0.000
    yield (
        f"{merged} tensors merged, {copied} copied. The cosine of the two task vectors is {cosine:.3f} "
        "(1: the same direction, 0: nothing in common)."
    )


def diagnosed(run: Run) -> Iterator[str]:
    """Yield the meaning of the verdict for a program."""
    code = run.results["diagnose"]["exit_code"]
    yield f"`taskmerge diagnose-drift` ends with exit code {code} for this result."


def recovered(run: Run) -> Iterator[str]:
    """Yield the tensors that recovery changed, found by comparing the two folders bit by bit."""
    before, after = str(run.places.fused), str(run.places.recovered)
    changed = [row["tensor"] for row in differences(before, after)]
    outside = [name for name in changed if not name.startswith(PROJECTOR)]
    same = len(Checkpoint.open(before).tensors) - len(changed)
    yield (
        f"Compared bit by bit with the fused model: {len(changed) - len(outside)} tensors of the audio "
        f"projector and {len(outside)} others changed; {same} are identical."
    )


def rehearsed(run: Run) -> Iterator[str]:
    """Held-out scores before and after."""
    result = run.results["rehearse"]
    before, after = result["before"], result["after"]
    scores = (
        f"{name} R@1 {before[f'{name}_recall_at_1']:.3f} -> {after[f'{name}_recall_at_1']:.3f}"
        for name in run.recipe.specialists
    )
    yield f"On held-out pairs: {', '.join(scores)}."
    if not result["kept"]:
        yield "That was not a gain, so the model was left unchanged."


def evaluated(run: Run) -> Iterator[str]:
    """Yield the loss and the recovery of each modality on the test sets."""
    table = EvaluationTable.from_dict(run.results["evaluate"]["retrieval"])
    scores = {
        (row.variant, row.set_name): row.intervals["recall_at_1"].estimate
        for row in table.results
        if row.direction == "to_text"
    }
    for name in run.recipe.specialists:
        own = scores[f"specialist {name}", name]
        yield (
            f"{name}: the specialist ranks {own:.1%} first, "
            + ", ".join(f"{variant} {scores[variant, name]:.1%}" for variant in ("fused", "recovered", "rehearsed"))
            + "."
        )


FINDINGS: dict[str, Callable[[Run], Iterator[str]]] = {
    "fuse": fused,
    "diagnose": diagnosed,
    "recover": recovered,
    "rehearse": rehearsed,
    "evaluate": evaluated,
}
