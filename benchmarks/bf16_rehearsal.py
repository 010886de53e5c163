"""Sixty steps of rehearsal in bfloat16 and in float32, from one start: what they move of a thousand held-out pairs.

python benchmarks/bf16_rehearsal.py .bench/bf16

Pictures of 16 x 16 of two words each, as in `million_pairs.py`, of 40 words; combinations of the test are never trained
on. A grafted model learns some of it, then it is rehearsed: in float32, with bfloat16 weights (float32 while they are
trained), with float32 weights under bfloat16 autocast, and, for comparison, with bfloat16 weights that the optimizer
steps themselves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from million_pairs import make, picture_of, text_of
from processes import machine

HERE = Path(__file__).parent
SEEDS, WORDS, STEPS, TEST = (0, 1, 2), 40, 60, 1000
RATE = 1e-4
WAYS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "bfloat16 weights": (torch.bfloat16, False),
    "bfloat16 autocast": (torch.float32, True),
    "bfloat16 weights without masters": (torch.bfloat16, False),
}


def pairs(numbers: list[int]) -> list[dict[str, Any]]:
    return [{"image": {"bytes": picture_of(number), "path": None}, "text": text_of(number)} for number in numbers]


def sets(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(to train on, to test on) of all combinations of the words."""
    every = [first + 1000 * second for first in range(WORDS) for second in range(WORDS)]
    order = np.random.default_rng(seed).permutation(every).tolist()
    return pairs(order[TEST:]), pairs(order[:TEST])


def recall(model: Any, test: list[dict[str, Any]]) -> float:
    """R@1 of pictures among the texts of the test, computed in float32."""
    from taskmerge.measuring.evaluation import evaluate_retrieval

    found = evaluate_retrieval({"one": model}, {"image": test}, precision="float32", directions=["to_text"])
    return found.get("one", "image").estimate


@contextmanager
def stepped_without_masters(without: bool) -> Iterator[None]:
    """Inside, bfloat16 weights stay bfloat16 while they are trained."""
    import taskmerge.training.masters as home

    kept = home.in_float32
    if without:
        home.in_float32 = lambda module: nullcontext(home.Masters())  # type: ignore[assignment]
    try:
        yield
    finally:
        home.in_float32 = kept


def of_seed(folder: Path, seed: int) -> dict[str, Any]:
    """R@1 of the start, and after each way."""
    from taskmerge import TrainingSettings, open_embedder, rehearse, specialize
    from taskmerge.embedders.encodings import Keeping

    train, test = sets(seed)
    common: dict[str, Any] = {
        "batch_size": 64, "temperature": 0.05, "device": "cpu", "encodings": Keeping(limit=0), "seed": seed,
    }  # fmt: skip
    start = open_embedder(folder / "start")
    learning = TrainingSettings(steps=80, learning_rate=1e-3, warmup=10, **common)
    specialize(start, train, ["backbone", "vision_*"], learning)
    start = start.to(dtype=torch.bfloat16).to(dtype=torch.float32)  # one start for all, which both formats hold
    found: dict[str, Any] = {"seed": seed, "start": recall(start, test)}
    settings = TrainingSettings(steps=STEPS, learning_rate=RATE, warmup=5, evaluate_every=STEPS, **common)
    for name, (dtype, autocast) in WAYS.items():
        model = start.copied().to(dtype=dtype)
        own = TrainingSettings(**{**vars(settings), "bf16": autocast})
        began = time.perf_counter()
        with stepped_without_masters("without" in name):
            report = rehearse(
                model, {"image": train}, ["backbone", "vision_*"], own, held_out={"image": test[:64]},
                may_fall=["image"],
            )  # fmt: skip
        found[name] = {"recall": recall(model, test), "kept": report.kept, "moved": report.moved,
                       "seconds": time.perf_counter() - began}  # fmt: skip
        print(json.dumps({name: found[name]}), flush=True)
    return found


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [
        "# Sixty steps of rehearsal in bfloat16", "",
        f"{result['machine']['processor']}. R@1 of {TEST:,} held-out pictures among their {TEST:,} texts, in points; "
        f"in brackets against float32. Learning rate {RATE:g}, batches of 64.", "",
        "| seed | start | " + " | ".join(WAYS) + " |",
        "|---|---|" + "---|" * len(WAYS),
    ]  # fmt: skip
    for row in result["seeds"]:
        whole = row["float32"]["recall"]
        cells = [
            f"{100 * row[name]['recall']:.1f}" + ("" if name == "float32" else
                                                  f" ({100 * (row[name]['recall'] - whole):+.1f})")
            for name in WAYS
        ]  # fmt: skip
        lines.append(f"| {row['seed']} | {100 * row['start']:.1f} | " + " | ".join(cells) + " |")
    for name in list(WAYS)[1:]:
        apart = [100 * (row[name]["recall"] - row["float32"]["recall"]) for row in result["seeds"]]
        lines += [
            "",
            f"{name}: {np.mean(apart):+.2f} points in the mean, at most {max(map(abs, apart)):.2f} in one seed.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "start").exists():
        make(folder, 16)
    result = {"machine": machine(), "seeds": [of_seed(folder, seed) for seed in SEEDS]}
    (HERE / "results" / "bf16_rehearsal.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "bf16_rehearsal.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
