"""One stage in one process of however many: prints the loss of every step, and what every process ended with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from training_sets import shades

from taskmerge.embedders import open_embedder
from taskmerge.embedders.encodings import Keeping
from taskmerge.training import LoraSettings, TrainingSettings, recover, rehearse
from taskmerge.words.progress import Progress, Said, watching


def main() -> None:
    """argv: stage, model, folder of sounds, folder of checkpoints, settings as JSON."""
    stage, start, sounds, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    said: dict[str, Any] = json.loads(sys.argv[5])
    torch.set_num_threads(1)
    stop = said.pop("stop", 0)
    dtype = getattr(torch, said.pop("dtype", "float32"))
    if said.get("lora"):
        said["lora"] = LoraSettings(**said["lora"])
    settings = TrainingSettings(**{"warmup": 2, "encodings": Keeping(limit=0), "device": "cpu", **said})
    embedder = open_embedder(start, dtype=dtype)
    held_out = {"audio": sounds / "held_out" / "pairs.jsonl"}
    train = sounds / "train" / "pairs.jsonl"
    losses: list[tuple[int, float]] = []

    def hear(told: Progress | Said) -> None:
        if isinstance(told, Progress) and told.unit == "steps" and "loss" in told.facts and not told.over:
            if not losses or losses[-1][0] != told.done:
                losses.append((told.done, told.facts["loss"]))
            if told.done == stop:
                say({"losses": losses})
                sys.exit(0)

    with watching(hear):
        if stage == "recover":
            report = recover(embedder, train, ["audio_projector"], settings, held_out=held_out, work=work)
        else:
            data: dict[str, Any] = {"audio": train, "image": shades(6)}
            report = rehearse(embedder, data, ["backbone", "audio_projector"], settings, held_out=held_out, work=work)
    digest = hashlib.sha256()
    for name, value in sorted(embedder.state_dict.values.items()):
        digest.update(name.encode() + value.detach().float().numpy().tobytes())
    told = {"losses": losses, "weights": digest.hexdigest(), "after": report.after, "frozen": report.frozen,
            "moved": report.moved}  # fmt: skip
    say(told)


def say(found: dict[str, Any]) -> None:
    """In one write: several processes have one pipe."""
    os.write(1, f"found {json.dumps(found)}\n".encode())


if __name__ == "__main__":
    main()
