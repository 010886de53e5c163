"""Looking at held-out pairs while training: learning curves, the best checkpoint, floors, early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor

from taskmerge.embedders.pairs import Pairs, spelling
from taskmerge.metrics.bootstrap import Interval, mean_interval
from taskmerge.metrics.retrieval import score_queries
from taskmerge.training.items import TrainingItems
from taskmerge.training.watching import DECIDES, METRIC, Watch

MOST_OTHERS = 2000
"""Texts of a gallery in addition to the held-out ones: enough difficulty, and affordable at every evaluation."""
_BELOW = "_below_its_floor"
LEAST_SHARE = 0.1
"""Of the largest share, which a modality keeps though it misses nothing."""


class HeldOutRetrieval(BaseEvaluator):
    """Item-to-text retrieval on every held-out set.

    A gallery is the set's distinct texts, and those of `others` (what is trained on), since a gallery of the held-out
    texts alone is soon full marks. fixed_texts: embeddings by set name where the text side is frozen. `history` keeps
    every look: the learning curves, one row {"step", "<set>_recall_at_1", "<set>_mrr", ..., "mrr"} per look, and
    "<set>_below_its_floor" where that is so; `looks` the reciprocal rank of every pair at the looks of this process,
    {set: (pairs,)}, `start` those of the initial model.
    """

    def __init__(
        self, items: TrainingItems, others: Mapping[str, Pairs] | None = None, watch: Watch | None = None
    ) -> None:
        super().__init__()
        self.items = items
        self.fixed_texts: dict[str, Tensor] = {}
        self.primary_metric = DECIDES
        self.watch = watch or Watch()
        self.history: list[dict[str, float]] = []
        self.looks: list[dict[str, np.ndarray]] = []
        self.start: dict[str, np.ndarray] = {}
        self.latest: dict[str, np.ndarray] = {}
        self.galleries = {name: gallery_of(pairs, (others or {}).get(name)) for name, pairs in items.sets.items()}

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        scores, ranks = self._look()
        self.history.append({"step": float(steps), **scores})
        self.looks.append(ranks)
        return scores

    def begin(self) -> dict[str, float]:
        """Score the initial model, which sets the floors."""
        self.start = {}
        scores, self.start = self._look()
        return scores

    def scores(self) -> dict[str, float]:
        """Recall@1 and MRR of every set, the mean MRR, and what decides."""
        return self._look()[0]

    @torch.no_grad()
    def _look(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        found: dict[str, float] = {}
        ranks: dict[str, np.ndarray] = {}
        for name, (texts, places) in self.galleries.items():
            gallery = self.fixed_texts[name] if name in self.fixed_texts else self._gallery(name, texts)
            queries = self.items.embed(list(self.items.numbers(name)))
            scores = score_queries(queries.numpy(), gallery.numpy(), [[int(place)] for place in places])
            found[f"{name}_recall_at_1"] = float(scores["recall_at_1"].mean())
            found[f"{name}_mrr"] = float(scores["mrr"].mean())
            ranks[name] = scores["mrr"]
        self.latest = ranks
        found[METRIC] = sum(found[f"{name}_mrr"] for name in self.galleries) / len(self.galleries)
        below = self.below(ranks)
        found |= {f"{name}{_BELOW}": 1.0 for name in below}
        found[DECIDES] = found[METRIC] - len(below)
        return found, ranks

    def changes(self, ranks: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Compute the change of every set's reciprocal ranks since the start, pair by pair."""
        return {
            name: mean_interval(ranks[name] - own, groups=self.galleries[name][1].tolist())
            for name, own in self.start.items()
        }

    def below(self, ranks: Mapping[str, np.ndarray]) -> list[str]:
        """Return the sets that are below their floors."""
        return [name for name in self.fallen(ranks) if name not in self.watch.may_fall]

    def fallen(self, ranks: Mapping[str, np.ndarray]) -> list[str]:
        """Return the sets that are below their initial scores, if floors are watched."""
        if not self.watch.floors:
            return []
        return [name for name, change in self.changes(ranks).items() if change.high < 0]

    def barred(self) -> list[str]:
        """Return the sets whose floors rejected an evaluation with a better mean than the initial one."""
        if not self.start:
            return []
        mean = sum(float(ranks.mean()) for ranks in self.start.values()) / len(self.start)
        better = [row for row in self.history if row[METRIC] > mean]
        return sorted({name for row in better for name in self.galleries if f"{name}{_BELOW}" in row})

    def shares_at(self, draw: int, names: Sequence[str]) -> list[float]:
        """Return each set's distance to its target when batch `draw` is drawn, for the balance of batches.

        draw: from 0. An evaluation counts for the batches that are drawn after its step, because a batch is fetched in
        advance.
        """
        seen = [row for row in self.history if row["step"] < draw]
        now = seen[-1] if seen else {f"{name}_mrr": float(row.mean()) for name, row in self.start.items()}
        targets = self.watch.targets or {}
        missing = [max(targets.get(name, 1.0) - now.get(f"{name}_mrr", 0.0), 0.0) for name in names]
        least = LEAST_SHARE * max(missing)
        return [max(part, least) for part in missing] if max(missing) > 0 else [1.0] * len(missing)

    def restore(self, logged: Sequence[Mapping[str, Any]]) -> None:
        """Take up the looks of a run that was stopped. logged: the trainer's log, whose scores begin with `eval_`."""
        rows = [row for row in logged if f"eval_{DECIDES}" in row]
        own = [{key.removeprefix("eval_"): float(row[key]) for key in row if key.startswith("eval_")} for row in rows]
        ends = ("_recall_at_1", "_mrr", _BELOW)
        names = (METRIC, DECIDES, *(f"{name}{end}" for name in self.galleries for end in ends))
        self.history = [
            {"step": float(row["step"]), **{name: scores[name] for name in names if name in scores}}
            for row, scores in zip(rows, own, strict=True)
        ]

    def freeze_texts(self) -> None:
        """Embed every gallery once, because the text side is not trained."""
        self.fixed_texts = {name: self._gallery(name, texts) for name, (texts, _) in self.galleries.items()}

    def _gallery(self, name: str, texts: list[str]) -> Tensor:
        return self.items.embed_texts(texts, self.items.sets[name].roles[1], name=name)


def gallery_of(pairs: Pairs, others: Pairs | None) -> tuple[list[str], np.ndarray]:
    """Return the gallery of the pairs, and the place of each pair's text (pairs,) int64.

    The gallery has the distinct texts of the pairs, then texts that only `others` has, at most `MOST_OTHERS` at random.
    """
    texts, places = pairs.distinct()
    if others is None:
        return texts, places
    own = {spelling(text) for text in texts}
    more = [text for text in others.distinct()[0] if spelling(text) not in own]
    if len(more) > MOST_OTHERS:
        more = [more[row] for row in sorted(np.random.default_rng(0).permutation(len(more))[:MOST_OTHERS].tolist())]
    return [*texts, *more], places
