"""Kills a recipe's run again and again until it ends: `python killing_run.py FOLDER SEED KILLS`. Prints counts as JSON.

FOLDER holds a recipe.yaml and what it needs. Each child goes on from what the one before left. The parent imports
everything once and never computes, so that children can be forked from it.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

import datasets as _datasets  # noqa: F401 (imported before forking, as the rest)
import mteb as _mteb  # noqa: F401
import sentence_transformers as _sentence_transformers  # noqa: F401
from killing import Child, in_child, killed_at

from taskmerge import recipes
from taskmerge.embedders import embedder as _embedder  # noqa: F401
from taskmerge.pipeline import run
from taskmerge.training import trainer as _trainer  # noqa: F401

LATEST = 60
"""The last change to the file system, of those a child makes, before which it may be killed."""


def whole_run(folder: Path, progress: Path) -> Child:
    """A run that notes in `progress` which stages it begins."""

    def action() -> None:
        with progress.open("a", buffering=1) as file:
            run(recipes.load(folder / "recipe.yaml"), say=lambda line: print(line, file=file))

    return action


def main() -> None:
    folder, rng, most = Path(sys.argv[1]), random.Random(int(sys.argv[2])), int(sys.argv[3])
    progress = folder / "progress.txt"
    killed_in: Counter[str] = Counter()
    for _ in range(most):
        if in_child(killed_at(rng.randint(1, LATEST), whole_run(folder, progress))) is not None:
            break
        begun = [line for line in progress.read_text().splitlines() if line.endswith(": running")]
        killed_in[begun[-1].removesuffix(": running") if begun else "check"] += 1
    in_child(whole_run(folder, progress))
    print(json.dumps(killed_in))


if __name__ == "__main__":
    main()
