"""Two processes on the CPU, with gloo: they learn what one process with their whole batch learns, sharded or not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omni_models import tiny_backbone
from places import HELPERS
from training_sets import tensors, tones
from vision_models import vision_model

from taskmerge.embedders import graft

LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
STEPS = {"steps": 20, "learning_rate": 1e-3, "evaluate_every": 5}
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient cache": {"gradient_cache": 3},
    "layers computed again": {"gradient_checkpointing": True},
    "accumulation, cut lengths": {"accumulation": 2, "dimensions": [8, 16]},
    "LoRA": {"lora": {"rank": 4}},
    "bfloat16 weights": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL with a grafted ear, and sounds."""
    home = tmp_path_factory.mktemp("distributed")
    graft(vision_model("Qwen3-VL", home / "base"), "audio", {"kind": "log_mel", "mels": 16}, "mlp", home / "start")
    tones(home / "sounds" / "train", 3)
    tones(home / "sounds" / "held_out", 1, seed=1)
    return home


def ran(home: Path, processes: int, stage: str, work: Path, **settings: Any) -> list[dict[str, Any]]:
    """What each process found; the batch of all of them is 8."""
    said = json.dumps({**STEPS, "batch_size": 8 // processes, **settings})
    script = str(HELPERS / "distributed_losses.py")
    command = [*(LAUNCH if processes > 1 else [sys.executable]), script, stage, str(home / "start")]
    run = subprocess.run(
        [*command, str(home / "sounds"), str(work), said], capture_output=True, text=True, timeout=550, check=False,
        env={**os.environ, **QUIET},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line[6:]) for line in run.stdout.splitlines() if line.startswith("found ")]
    assert len(found) == processes
    return found


def apart(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference between losses of the same step."""
    by_step = dict(wanted["losses"])
    return max(abs(loss - by_step[step]) for step, loss in found["losses"])


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("stage", ["recover", "rehearse"])
def test_two_processes_learn_what_one_does(home: Path, tmp_path: Path, stage: str, how: str) -> None:
    settings = dict(HOW[how])
    if how == "LoRA" and stage == "recover":
        settings["lora"] = {"rank": 4, "components": ["audio_projector"]}
    (whole,) = ran(home, 1, stage, tmp_path / "one", **settings)
    assert [step for step, _ in whole["losses"]] == list(range(1, 21)) and whole["moved"] > 0
    for fsdp in (False, True):
        first, second = ran(home, 2, stage, tmp_path / f"two-{fsdp}", fsdp=fsdp, **settings)
        assert first["weights"] == second["weights"], "the processes do not agree"
        assert len(first["losses"]) == 20
        gap = apart(first, whole)
        print(f"{stage}, {how}, fsdp {fsdp}: losses differ by {gap:.1e}")
        assert gap < 1e-4
        assert (first["frozen"], first["moved"]) == (whole["frozen"], whole["moved"])


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_one_process_goes_on_from_two_and_two_from_one(home: Path, tmp_path: Path, fsdp: bool) -> None:
    (whole,) = ran(home, 1, "rehearse", tmp_path / "whole")
    ran(home, 2, "rehearse", tmp_path / "stopped", stop=12, fsdp=fsdp)
    shutil.copytree(tmp_path / "stopped", tmp_path / "again")
    (one,) = ran(home, 1, "rehearse", tmp_path / "stopped", resume=True)
    two = ran(home, 2, "rehearse", tmp_path / "again", resume=True, fsdp=not fsdp)
    for found in (one, *two):
        assert [step for step, _ in found["losses"]] == list(range(11, 21))
        assert apart(found, whole) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["recover", "rehearse"])
def test_two_processes_train_the_same_model(tmp_path: Path, stage: str) -> None:
    tiny_backbone(tmp_path / "backbone")
    graft(tmp_path / "backbone", "audio", {"kind": "log_mel", "mels": 16}, "linear", tmp_path / "audio")
    vision = {"kind": "patches", "height": 16, "patch_height": 16, "max_width": 32, "width": 24}
    graft(tmp_path / "audio", "image", vision, "mlp", tmp_path / "start")
    tones(tmp_path / "sounds" / "train", 3)
    tones(tmp_path / "sounds" / "held_out", 1, seed=1)
    script = HELPERS / "distributed_stage.py"
    command = [*LAUNCH, str(script), stage, str(tmp_path / "start"), str(tmp_path / "sounds"), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, **QUIET}, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    digests = re.findall(r"weights ([0-9a-f]{64})", run.stdout)
    assert len(digests) == 2 and digests[0] == digests[1]
    old, new = tensors(tmp_path / "start"), tensors(tmp_path / "out")
    moved = {name.partition(".")[0] for name in old if old[name].tobytes() != new[name].tobytes()}
    if stage == "recover":
        assert moved <= {"audio_projector"}
    else:
        assert moved <= {"backbone", "vision_encoder", "vision_projector"}
