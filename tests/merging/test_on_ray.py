"""Parts on a Ray cluster of this machine: the bytes of one process, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkpoint_files import digests, prepare
from disturbed_runs import change_recipe, environment, run
from s3_server import serving
from store_runs import forget, in_store, local_weights, weights

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def taskmerge(*words: object, kill: bool = False, **more: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; kill: SIGKILL for one of its Ray workers at a time, as long as it runs."""
    paths = os.pathsep.join([*sys.path, environment()["PYTHONPATH"]])
    env = {**environment(), **more, "PYTHONPATH": paths, "RAY_DISABLE_IMPORT_WARNING": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "taskmerge", *map(str, words)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        killed = 0
        ended = threading.Event()

        def killing() -> None:
            nonlocal killed
            while not ended.wait(0.5) and killed < 3:
                for one in psutil.Process(process.pid).children(recursive=True):
                    try:
                        if one.name().startswith("ray::_guarded"):
                            one.send_signal(signal.SIGKILL)
                            killed += 1
                            break
                    except psutil.NoSuchProcess:
                        continue

        thread = threading.Thread(target=killing)
        if kill:
            thread.start()
        out, err = process.communicate(timeout=400)
        ended.set()
        if kill:
            thread.join()
            assert killed, "no worker was there to be killed"
    return subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.mark.parametrize("kill", [False, True])
def test_a_cluster_writes_what_one_process_writes(kill: bool, tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=700)
    change_recipe(tmp_path, merge={"method": "ties", "density": 0.2, "trim": "model"})
    run(tmp_path)
    with serving() as server:
        recipe = in_store(server, tmp_path)
        more: dict[str, Any] = dict(server.environment)
        if kill:
            server.fault = lambda method, key: "slow" if key.startswith("bucket/out/model") else None
        done = taskmerge("fuse", recipe, "--out", "s3://bucket/out", "--on", "ray", kill=kill, **more)
        assert done.returncode == 0, done.stderr
        assert weights(server) == local_weights(digests(tmp_path / "out"))
        if not kill:
            done = taskmerge("verify", "s3://bucket/out", "--on", "ray", **more)
            assert done.returncode == 0, done.stderr + done.stdout
            assert "as recorded" in done.stderr
            key = "bucket/out/model-00003-of-00005.safetensors"
            server.put(key, server.objects[key].data[:-1] + b"\1")
            done = taskmerge("verify", "s3://bucket/out", "--on", "ray", **more)
            assert done.returncode == 1 and "model-00003" in done.stdout
    forget()


def test_what_is_no_launcher(tmp_path: Path, command: Callable[..., Any]) -> None:
    prepare(tmp_path, layers=1, size=16)
    told = command("fuse", tmp_path / "merge.yaml", "--on", "slurm")
    assert told.code == 2 and "is not a launcher" in told.err
