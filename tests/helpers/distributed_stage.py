"""One stage in one process of `accelerate launch`: prints what every process ended with."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from training_sets import shades

from taskmerge.embedders import open_embedder
from taskmerge.training import TrainingSettings, recover, rehearse


def main() -> None:
    stage, start, sounds, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    model: Any = open_embedder(start).module
    settings = TrainingSettings(steps=6, batch_size=4, learning_rate=1e-3, warmup=0, evaluate_every=3)
    held_out = {"audio": sounds / "held_out" / "pairs.jsonl"}
    train = sounds / "train" / "pairs.jsonl"
    if stage == "recover":
        recover(model, train, ["audio_projector"], settings, held_out=held_out, out=out)
    else:
        data: dict[str, Any] = {"audio": train, "image": shades(6)}
        rehearse(model, data, ["backbone", "vision_*"], settings, held_out=held_out, out=out)
    digest = hashlib.sha256()
    for value in model[0].state_dict().values():
        digest.update(value.numpy().tobytes())
    print("weights", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main()
