"""Recovery with few pairs, many times: is what the tool keeps ever worse than leaving the model as it is, and does it
keep something where something could be won?

A trial draws `count` recordings of captions that no specialist was trained on, or takes those that the audio specialist
was trained on, lets the tool choose a way as `recover_by_choice` does, and scores every way, fitted on all of these
pairs, on the test's captions, which no way saw.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from experiment import OWN_RECOVERY, PAPER_WEIGHTS, RECOVERY, Seed

from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.metrics.bootstrap import mean_interval
from taskmerge.metrics.retrieval import score_queries
from taskmerge.training.arms import try_all
from taskmerge.training.choosing import LEAVE
from taskmerge.training.trying import CLOSED, GRADIENT, WARM, trial_of

FUSED = {"sum": PAPER_WEIGHTS, "sum_audio_low": {"image": 0.8, "document": 0.8, "audio": 0.2}}
"""The paper's weights, and weights that let the audio drift far."""
COUNTS = (16, 32, 64, 200)
OWN = 0
"""In place of a count: all that the audio specialist was trained on, as the paper recovers with. One draw."""
METRICS = ("recall_at_1", "recall_at_10", "mrr")
SHOWN = "recall_at_10"
"""In the table; the others are in the JSON file."""
FEW = replace(RECOVERY, learning_rate=3e-4, evaluate_every=20, patience=None)
"""At 1e-3 the projector learned 200 recordings by heart within fifteen steps."""
CLOSED_UP_TO = 32
"""Pairs, up to which the closed form is tried: its time grows with them, that of gradients does not."""
CAN_WIN = 0.05
"""From which on something could be won."""


class Test:
    """The test's recordings: what a model finds of each."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.texts, self.right = pairs.distinct()
        self.items = pairs.load()

    def scores(self, model: Any) -> dict[str, np.ndarray]:
        queries = model.encode(self.items, self.pairs.modality, "query", batch_size=64)
        gallery = model.encode(self.texts, "text", "document", batch_size=64)
        found = score_queries(queries, gallery, [[int(row)] for row in self.right])
        return {metric: found[metric] for metric in METRICS}

    def gain(self, own: Mapping[str, np.ndarray], left: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Difference of two models by metric, with its interval over captions."""
        return {
            metric: mean_interval(own[metric] - left[metric], groups=self.right.tolist()).as_dict() for metric in own
        }


def run_trial(seed: Seed, fused: str, count: int, draw: int, test: Test) -> dict[str, Any]:
    """One trial, plain data; kept in the seed's folder and not run again."""
    kept = seed.folder / "trials" / f"{fused}_{count}_{draw}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    began, worked = time.monotonic(), time.process_time()
    if count == OWN:
        pairs, settings = seed.own_pairs(), replace(OWN_RECOVERY, seed=seed.seed)
    else:
        pairs = seed.repair_pairs(count, draw)
        settings = replace(FEW, seed=seed.seed, batch_size=min(FEW.batch_size, max(8, count // 4)))
    trial = trial_of(
        seed.folder / fused, pairs, ["audio_projector"], settings, seed.specialist("audio"), None, None
    )  # fmt: skip
    closed = [CLOSED, WARM] if 0 < count <= CLOSED_UP_TO else []
    report = try_all(trial, ways=[*closed[:1], GRADIENT, *closed[1:]])
    left = test.scores(trial.final(LEAVE))
    arms = {
        arm.name: {
            "judged": None if arm.gain is None else arm.gain.as_dict(),
            "test": test.gain(test.scores(trial.final(arm.name)), left),
            "note": arm.note,
        }
        for arm in report.arms
        if arm.name != LEAVE
    }
    found = {
        "seed": seed.seed, "fused": fused, "count": count, "draw": draw, "kept": report.kept, "reason": report.reason,
        "left": {metric: float(values.mean()) for metric, values in left.items()}, "arms": arms,
        "seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked,
    }  # fmt: skip
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found, indent=1))
    seed.say(f"seed {seed.seed}: {count} pairs, draw {draw}: kept {report.kept} ({report.reason})")
    return found


def run_trials(seeds: Sequence[Seed], draws: int, folder: Path) -> None:
    """Trials of all fusions and counts, draw by draw and seed by seed; the results are rewritten after each."""
    tests = {seed.seed: Test(read_pairs(seed.path("audio", "test"))) for seed in seeds}
    for draw in range(draws):
        for seed in seeds:
            for fused, weights in FUSED.items():
                seed.fused(fused, {"method": "task_arithmetic"}, weights)
                for count in (*([OWN] if draw == 0 else []), *COUNTS):
                    run_trial(seed, fused, count, draw, tests[seed.seed])
                    write_trials(there_are(seeds), folder)


def there_are(seeds: Sequence[Seed]) -> list[dict[str, Any]]:
    """The trials that these seeds have finished."""
    found = [
        dict(json.loads(path.read_text())) for seed in seeds for path in sorted((seed.folder / "trials").glob("*.json"))
    ]
    return sorted(found, key=lambda row: (list(FUSED).index(row["fused"]), row["seed"], row["count"], row["draw"]))


def write_trials(results: list[dict[str, Any]], folder: Path) -> str:
    """trials.json and trials.md of all trials there are."""
    lines = [
        "Recovery of a sum's audio projector from few pairs; gains over \"leave it\" in R@10 on the test's captions, "
        "which no way was fitted on, with 95 % intervals over captions. Weights of image, document, audio: "
        + "; ".join(f"{name} {', '.join(f'{weight:g}' for weight in own.values())}" for name, own in FUSED.items())
        + ".",
        "",
        "| fusion | seed | pairs | draw | leave it | "
        + " | ".join(_ways(results))
        + " | kept | gain of what was kept |",
        "|---" * (7 + len(_ways(results))) + "|",
    ]
    for row in results:
        cells = [_gain(row["arms"].get(way)) for way in _ways(results)]
        own = _gain(row["arms"].get(row["kept"])) or "0"
        pairs = row["count"] or "its own"
        lines.append(
            f"| {row['fused']} | {row['seed']} | {pairs} | {row['draw']} | {row['left'][SHOWN]:.3f} | "
            + " | ".join(cells)
            + f" | {row['kept']} | {own} |"
        )
    lines += ["", *summary(results)]
    text = "\n".join(lines) + "\n"
    folder.mkdir(exist_ok=True)
    (folder / "trials.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "trials.md").write_text(text)
    return text


def summary(results: list[dict[str, Any]]) -> list[str]:
    """What was asked: ever significantly worse, and kept where something could be won."""
    kept = [row for row in results if row["kept"] != LEAVE]
    worse = [row for row in kept if any(row["arms"][row["kept"]]["test"][metric]["high"] < 0 for metric in METRICS)]
    lines = [
        f"{len(results)} trials; something was kept in {len(kept)}. What was kept was significantly worse than leaving "
        f"it (an interval of R@1, R@10 or MRR below zero) in {len(worse)}.",
    ]
    for metric in METRICS:
        could = [
            row for row in results
            if max(arm["test"][metric]["estimate"] for arm in row["arms"].values()) >= CAN_WIN
        ]  # fmt: skip
        did = [row for row in could if row["kept"] != LEAVE]
        lines.append(
            f"Some way won {100 * CAN_WIN:g} points or more of {metric} in {len(could)}; something was kept in "
            f"{len(did)} of these."
        )
    return lines


def _ways(results: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in results for name in row["arms"]))


def _gain(arm: Mapping[str, Any] | None) -> str:
    if arm is None:
        return ""
    gain = arm["test"][SHOWN]
    return f"{gain['estimate']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
