"""Two processes under `accelerate launch`, CPU and gloo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omni_models import tiny_backbone
from places import HELPERS
from training_sets import tensors, tones

from taskmerge.embedders import graft


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
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(script), stage, str(tmp_path / "start"), str(tmp_path / "sounds"), str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    digests = re.findall(r"weights ([0-9a-f]{64})", run.stdout)
    assert len(digests) == 2 and digests[0] == digests[1]
    old, new = tensors(tmp_path / "start"), tensors(tmp_path / "out")
    moved = {name.partition(".")[0] for name in old if old[name].tobytes() != new[name].tobytes()}
    if stage == "recover":
        assert moved <= {"audio_projector"}
    else:
        assert moved <= {"backbone", "vision_encoder", "vision_projector"}
