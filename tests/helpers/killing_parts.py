"""Kills a worker that writes its part into a store, at random moments, until it has been killed often enough.

    python killing_parts.py RECIPE OUT PART KILLS

Each worker is forked from this process, which has imported everything and started no thread. Prints, as JSON, how many
were killed, and how many of them had already noted a file as finished.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from store_runs import store_job

from taskmerge.merging.parts import execute_part
from taskmerge.words.parts import parse_part


def worker(recipe: Path, out: str, part: str) -> int:
    """The pid of a process that writes a part."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        execute_part(store_job(recipe, out), parse_part(part))
        code = 0
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def main() -> None:
    recipe, out, part, wanted = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    draw = random.Random(0)
    killed, whole, longest = 0, 0, 3.0
    while killed < wanted:
        began = time.monotonic()
        pid = worker(recipe, out, part)
        time.sleep(draw.random() * longest)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            whole += 1
            longest = max(0.1, min(longest, time.monotonic() - began) * 0.7)
    _, status = os.waitpid(worker(recipe, out, part), 0)
    print(json.dumps({"killed": killed, "whole": whole, "ended": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
