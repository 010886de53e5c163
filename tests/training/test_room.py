"""A disk without room for a stage is told before anything is computed, not after hours of training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omni_models import tiny_backbone
from pipeline_projects import RECIPE, new_project, run_quietly
from training_sets import tones

from taskmerge.embedders import graft, open_embedder
from taskmerge.errors import OutputError
from taskmerge.training import LoraSettings, TrainingSettings, recover
from taskmerge.training.arms import recover_by_choice
from taskmerge.training.room import check_room

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*'repr' attribute.*")
FAST = TrainingSettings(steps=6, batch_size=8, learning_rate=3e-3, warmup=1, evaluate_every=2, temperature=0.1)
STATVFS = "taskmerge.checkpoints.output.writing.os.statvfs"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("start")
    tiny_backbone(home / "backbone")
    graft(home / "backbone", "audio", {"kind": "log_mel", "mels": 64}, "mlp", home / "audio")
    return home / "audio"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones(tmp_path_factory.mktemp("sounds"), 3)


def disk(free: int, files: int = 10**6) -> Any:
    return lambda path: SimpleNamespace(f_frsize=1, f_bavail=free, f_files=files, f_favail=files)


def needed(told: OutputError) -> int:
    return int(str(told).partition("needs ")[2].partition(" ")[0].replace(",", ""))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_asked_for_is_what_training_writes(
    start: Path, sounds: Path, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_embedder(start)
    model.module.to(dtype)
    kept = replace(FAST, keep_checkpoints=True)
    recover(model, sounds, ["*"], kept, held_out=sounds, out=tmp_path / "out", work=tmp_path / "work")
    folders = list((tmp_path / "work").glob("checkpoint-*"))
    written = max(sum(path.stat().st_size for path in folder.iterdir()) for folder in folders)
    written = 3 * written + (tmp_path / "out" / "model.safetensors").stat().st_size
    shutil.rmtree(tmp_path / "work")
    monkeypatch.setattr(STATVFS, disk(0))
    names = list(model.parameter_names())
    with pytest.raises(OutputError, match="training, with its checkpoints and its model, needs") as caught:
        check_room(model, names, FAST, tmp_path / "work", tmp_path / "new")
    assert 0.85 * written < needed(caught.value) <= written, "no more than is written, and most of it"


@pytest.mark.parametrize(("free", "files"), [(1000, 10**6), (10**12, 3)], ids=["bytes", "files"])
@pytest.mark.parametrize("stage", ["recover", "recover_by_choice"])
def test_a_stage_is_refused_before_it_computes(
    start: Path, sounds: Path, tmp_path: Path, stage: str, free: int, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STATVFS, disk(free, files))
    monkeypatch.setattr("taskmerge.training.session.Session.run", lambda _: pytest.fail("training began"))
    call: Any = {"recover": recover, "recover_by_choice": recover_by_choice}[stage]
    with pytest.raises(OutputError, match=r"bytes, the disk has only 1,000 free|files, the disk can hold only 3 more"):
        call(start, sounds, ["*_projector"], settings=FAST, held_out=sounds, out=tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_what_is_there_already_is_not_asked_for_again(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from its checkpoints needs room for what is still to come; adapters need next to none."""
    model, work = open_embedder(start), tmp_path / "work"
    names = list(model.parameter_names())
    found = []
    for count in range(4):
        (work / f"checkpoint-{count}").mkdir(parents=True)
        monkeypatch.setattr(STATVFS, disk(0))
        with pytest.raises(OutputError) as caught:
            check_room(model, names, FAST, work, tmp_path / "out")
        found.append(needed(caught.value))
    assert found[0] > found[1] > found[2] == found[3]
    monkeypatch.setattr(STATVFS, disk(found[2]))
    check_room(model, names, TrainingSettings(steps=9, evaluate_every=1, lora=LoraSettings()), work, tmp_path / "out")


def test_a_graft_is_refused_before_its_folder_is_made(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STATVFS, disk(1000))
    with pytest.raises(OutputError, match="the disk has only 1,000 free"):
        graft(start, "image", "patches", "linear", tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_run_is_refused_before_its_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all the models that it will make; not for those that are there."""
    project = new_project(tmp_path / "project")
    size = (project / "base" / "model.safetensors").stat().st_size
    before = sorted(project.rglob("*"))
    monkeypatch.setattr(STATVFS, disk(4 * size))
    with pytest.raises(OutputError, match=r"this run \(5 models\) needs") as caught:
        run_quietly(project, RECIPE)
    assert 4.9 * size < needed(caught.value) < 5 * size
    assert sorted(project.rglob("*")) == before
    with pytest.raises(OutputError, match=r"this run \(2 models\) needs"):
        monkeypatch.setattr(STATVFS, disk(size))
        run_quietly(project, RECIPE, until="specialize")
