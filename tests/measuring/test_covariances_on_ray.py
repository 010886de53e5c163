"""Input covariances from several processes: the bits of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disturbed_runs import environment
from safetensors.numpy import load_file
from search_projects import new_project

from taskmerge.checkpoints.covariances import FILE, InputCovariances
from taskmerge.embedders import ModelSource
from taskmerge.measuring import covariances
from taskmerge.measuring.covariances import Data, Total, collect_covariances
from taskmerge.measuring.on_ray import InOrder, Told, collect
from taskmerge.words.parts import Part


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    new_project(folder, count=24)
    return folder


def probes(folder: Path, count: int) -> Path:
    """Pairs of one word or of many, so that batches differ."""
    path = folder / f"probes{count}.jsonl"
    words = ["red", "green", "blue", "dog", "cat"]
    rows = [{"query": " ".join(words[: 1 + at % 5]), "text": " ".join(words[at % 5 :])} for at in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_chunks_added_in_their_order_whoever_ends_first(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(covariances, "CHUNK", 1)
    path = str(probes(tmp_path, 150))
    model = str(project / "law")
    expected = collect_covariances(model, path)
    told = Told(ModelSource(model), path, None, "cpu", tmp_path, torch.get_num_threads())
    data = Data.of(path)
    assert len(data.chunks) > 5
    total = Total(data.groups)
    ordered = InOrder(total)
    for number in range(len(data.chunks), 0, -1):
        part = Part(number, len(data.chunks))
        ordered.add(part, collect(told, part))
    found = total.result()
    assert found.aliases == expected.aliases and found.counts == expected.counts
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_every_item_and_text_is_in_one_chunk(tmp_path: Path) -> None:
    data = Data.of(str(probes(tmp_path, 601)))
    spans = [(chunk.start, chunk.stop) for chunk in data.chunks if chunk.group == 0]
    assert spans == [(0, 256), (256, 512), (512, 601)]
    assert data.size == 601 + 5  # the distinct texts


@pytest.mark.slow
def test_a_cluster_has_the_bits_of_one_process(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, model = probes(tmp_path, 700), project / "code"
    paths = os.pathsep.join([*sys.path, environment()["PYTHONPATH"]])
    env = {**environment(), "PYTHONPATH": paths, "OMP_NUM_THREADS": "2", "RAY_DISABLE_IMPORT_WARNING": "1"}
    words = [sys.executable, "-m", "taskmerge", "stats", str(model), "--probes", str(path), "--device", "cpu"]
    kept = []
    for more in ([], ["--on", "ray"]):
        done = subprocess.run([*words, *more], env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        found = InputCovariances.open(model)
        kept.append((load_file(model / FILE), found.aliases, found.counts))
        (model / FILE).unlink()
    (here, *rest), (far, *others) = kept
    assert rest == others and here.keys() == far.keys() and len(here) > 4
    for name, matrix in here.items():
        np.testing.assert_array_equal(far[name], matrix)
