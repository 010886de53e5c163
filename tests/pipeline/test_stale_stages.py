"""Which stages a change makes run again, for everything that stages read; the base is a `pytorch_model.bin`.

Seen on an earlier commit: the teacher of `recover` had changed, and the recovery was "unchanged, skipped".
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from omni_models import tiny_backbone
from pipeline_projects import RECIPE, new_project, run_quietly
from safetensors.torch import load_file

from taskmerge.pipeline import Places, Run
from taskmerge.pipeline.steps import STEPS
from taskmerge.recipes import loads

TEXT = RECIPE.replace("method: gradient, steps: 2, batch_size: 4", "method: closed_form")


def old_base(folder: Path) -> None:
    """A backbone whose weights are PyTorch's own file."""
    tiny_backbone(folder)
    for path in list(folder.rglob("model.safetensors")):
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = new_project(tmp_path_factory.mktemp("stages") / "project", old_base)
    run_quietly(project, TEXT)
    return project


def stale(project: Path, text: str = TEXT) -> set[str]:
    """Stages whose notes no longer hold."""
    run = Run(loads(text, "recipe.yaml", project), Places(project / "fused"))
    return {step.name for steps in STEPS.values() for step in steps(run) if not run.is_done(step)}


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


TRAINED = {"specialize-audio", "specialize-text"}
WHO_READS: dict[str, set[str]] = {
    "base/**/pytorch_model.bin": {*TRAINED, "fuse", "diagnose"},
    "base/**/tokenizer.json": {*TRAINED, "fuse", "diagnose"},
    "specialist-audio/**/*.safetensors": {"fuse", "diagnose", "recover", "evaluate"},
    "specialist-audio/**/config.json": {"fuse", "diagnose", "recover", "evaluate"},
    "specialist-text/**/*.safetensors": {"fuse", "evaluate"},
    "fused/**/*.safetensors": {"diagnose", "recover", "evaluate"},
    "fused-recovered/**/*.safetensors": {"rehearse", "evaluate"},
    "fused-rehearsed/**/*.safetensors": {"evaluate"},
    "audio.jsonl": {"specialize-audio", "diagnose", "recover", "rehearse", "evaluate"},
    "text.jsonl": {"specialize-text", "recover", "rehearse", "evaluate"},
    "held.jsonl": {"recover", "rehearse", "evaluate"},
    "[!h]*.wav": {"specialize-audio", "diagnose", "recover", "rehearse", "evaluate"},
}
"""A file -> the stages that read it. Recovery and evaluation also read what was trained on, to say what overlaps; a
backbone alone is no model that is scored."""


def test_nothing_is_stale_when_nothing_has_changed(done: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(done, tmp_path / "moved"))
    assert stale(done) == stale(moved) == set()


@pytest.mark.parametrize("pattern", WHO_READS)
def test_who_reads_it_runs_again(done: Path, tmp_path: Path, pattern: str) -> None:
    project = Path(shutil.copytree(done, tmp_path / "project"))
    changed(next(iter(sorted(project.glob(pattern)))))
    assert stale(project) == WHO_READS[pattern]


def test_another_teacher(done: Path, tmp_path: Path) -> None:
    """Another specialist, and the same text with another model behind it."""
    project = Path(shutil.copytree(done, tmp_path / "project"))
    assert "recover" in stale(project, TEXT.replace("drift: {specialist: audio", "drift: {specialist: text"))
    shutil.rmtree(project / "specialist-audio")
    shutil.copytree(project / "specialist-text", project / "specialist-audio")
    assert "recover" in stale(project)
