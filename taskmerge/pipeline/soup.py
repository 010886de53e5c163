"""The greedy soup: of a run's checkpoints, those whose mean retrieves best on pairs held out for it.

Checkpoints are taken in the order of their own scores, each kept when the mean with it is not worse (arXiv 2203.05482).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.soups import Averaged, shares
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.embedders.putting import check_covers, put


@dataclass(frozen=True)
class Greedy:
    """alone: R@1 of each checkpoint.  chosen: places of those that are kept, best first.  score: R@1 of their mean."""

    alone: tuple[float, ...]
    chosen: tuple[int, ...]
    score: float


def greedy_soup(
    members: Sequence[StateDict], folders: Sequence[Path], pairs: Any, say: Callable[[str], None] = lambda _: None
) -> Greedy:
    """Choose the checkpoints of a greedy soup.

    Args:
        members: the checkpoints, of equal names and shapes.
        folders: of each; the last is opened as an embedder, and the others' tensors are put into it in turn.
        pairs: what retrieval is measured on: see `read_pairs`; the mean of R@1 in both directions decides.
        say: is told each score as it is found.

    Raises: CheckpointError when no embedder can be opened there, UsageError for pairs that are none.
    """
    from taskmerge.embedders import open_embedder

    embedder = open_embedder(folders[-1])

    def score(places: Sequence[int]) -> float:
        mean = Averaged([members[place] for place in places], shares(len(places)), "a soup")
        check_covers(embedder.state_dict.values, mean)
        put(embedder.state_dict.values, mean)
        return _recall(embedder, pairs)

    alone = []
    for place, folder in enumerate(folders):
        alone.append(score([place]))
        say(f"{folder.name}: R@1 {alone[-1]:.3f}")
    order = sorted(range(len(folders)), key=lambda place: (-alone[place], -place))
    chosen, best = [order[0]], alone[order[0]]
    for place in order[1:]:
        with_it = score([*chosen, place])
        kept = with_it >= best
        say(f"with {folders[place].name}: R@1 {with_it:.3f}, {'kept' if kept else 'left out'}")
        if kept:
            chosen, best = [*chosen, place], with_it
    return Greedy(tuple(alone), tuple(chosen), best)


def _recall(embedder: Any, pairs: Any) -> float:
    from taskmerge.measuring.evaluation.local import DIRECTIONS, evaluate_retrieval

    table = evaluate_retrieval({"soup": embedder}, {"pairs": pairs})
    found = [table.get("soup", "pairs", direction=direction).estimate for direction in DIRECTIONS]
    return sum(found) / len(found)
