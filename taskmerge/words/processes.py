"""Several processes of one run: which of them this is, starting them, and telling the others what comes next."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from taskmerge.errors import TaskmergeError, UsageError

_LONGEST = timedelta(days=7)
"""Others wait that long while the first process does what needs no others."""
_SHOWN = 15
_AGAIN = 0.2


def process_count() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def say_to_all(words: Any) -> Any:
    """Return the first process's value in every process. Each of them must call it."""
    if process_count() == 1:
        return words
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_LONGEST)
    held = [words]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def leave() -> None:
    """End what the processes of a run have in common; each of them calls it when its part is done."""
    if process_count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def start(count: int, words: Sequence[str]) -> int:
    """Run this program `count` times as one run, with these arguments.

    The first process has our streams. The others' are kept, and shown when one of them fails by itself.

    Returns:
        The exit code of the first process.

    Raises:
        UsageError: inside such a run.
        TaskmergeError: when another process fails before the first.
    """
    if process_count() > 1:
        raise UsageError(
            "--processes cannot be used inside `accelerate launch`",
            next_move="set the number of processes in only one of the two",
        )
    port = _free_port()
    running: list[tuple[subprocess.Popen[bytes], Any]] = []
    try:
        for number in range(count):
            own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
            kept = tempfile.TemporaryFile() if number else None  # noqa: SIM115 (closed below)
            streams: dict[str, Any] = {"stdout": kept, "stderr": kept, "stdin": subprocess.DEVNULL} if kept else {}
            command = [sys.executable, "-m", "taskmerge", *words]
            running.append((subprocess.Popen(command, env=environment, **streams), kept))
        return _wait(running)
    finally:
        for process, kept in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
            if kept is not None:
                kept.close()


def _wait(running: Sequence[tuple[subprocess.Popen[bytes], Any]]) -> int:
    first = running[0][0]
    while (code := first.poll()) is None:
        for number, (process, kept) in enumerate(running):
            if number and process.poll():
                time.sleep(10 * _AGAIN)  # the first may be about to say the same
                if first.poll() is None:
                    kept.seek(0)
                    said = kept.read().decode("utf-8", "replace").splitlines()[-_SHOWN:]
                    raise TaskmergeError("\n".join([f"process {number} of {len(running)} ended:", *said]))
        time.sleep(_AGAIN)
    return code


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
