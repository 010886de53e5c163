"""A whole fuse through the kernels: the same bytes whatever the memory setting and threads, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskmerge import recipes
from taskmerge.kernels import set_threads
from taskmerge.merging import execute, plan

METHODS = {
    "task_arithmetic": {},
    "ties": {"density": 0.2},
    "dare_ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.1},
    "magmax": {},
    "consensus": {},
    "model_stock": {},
}


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    set_threads(None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two specialists: one matrix larger than the smallest chunk, and small tensors."""
    folder = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)
    shapes = {"model.layers.0.big.weight": (311, 700), "model.layers.0.norm.weight": (700,), "model.scale": ()}
    base = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("base", "one", "two"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        moved = {key: value + 0.01 * random.standard_normal(value.shape) for key, value in base.items()}
        tensors = base if name == "base" else moved
        save_file(
            {key: np.asarray(value, np.float32) for key, value in tensors.items()}, folder / name / "model.safetensors"
        )
    return folder


def recipe_in(folder: Path, method: str, models: Path) -> Path:
    path = folder / "merge.yaml"
    table = {
        "base": str(models / "base"),
        "specialists": {name: {"model": str(models / name), "weight": 0.5} for name in ("one", "two")},
        "merge": {"method": method, **METHODS[method]},
        "output": {"path": "out", "dtype": "bfloat16"},
    }
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_memory_and_threads_change_no_byte(method: str, tmp_path: Path, models: Path) -> None:
    recipe = recipes.load(recipe_in(tmp_path, method, models))
    digests = set()
    for threads, memory in ((1, 1 << 30), (2, 1 << 20), (2, 1 << 30)):
        set_threads(threads)
        out = tmp_path / f"out_{threads}_{memory}"
        digests.add(execute(plan(recipe), recipe, out, memory=memory).sha256["model.safetensors"])
    assert len(digests) == 1


@pytest.mark.slow
def test_a_fuse_of_eight_specialists_stays_within_a_gibibyte(tmp_path: Path) -> None:
    """1.2 GB of inputs, 0.13 GB each, one tensor of 67 million entries: private memory, sampled while it runs."""
    count = 1 << 26
    folder = tmp_path / "models"
    for number in range(9):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "config.json").write_text("{}")
        values = np.random.default_rng(number).standard_normal(count // 64, np.float32).astype(np.float16)
        save_file({"weight": np.tile(values, 64).reshape(8192, -1)}, folder / str(number) / "model.safetensors")
    table = {
        "base": str(folder / "0"),
        "specialists": {f"s{i}": {"model": str(folder / str(i)), "weight": 0.1} for i in range(1, 9)},
        "merge": {"method": "breadcrumbs_ties", "density": 0.2},
        "output": {"path": "out"},
    }
    (tmp_path / "merge.yaml").write_text(json.dumps(table))
    command = [sys.executable, "-c", "from taskmerge.cli import main; main()", "fuse", str(tmp_path / "merge.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            peak[0] = max([peak[0], *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.wait() == 0
    ended.set()
    watcher.join()
    assert 20 << 10 < peak[0] < 1 << 20  # KiB
