"""The floor: read every input file once, write as many bytes as the output has once, and do nothing else.

    python benchmarks/floor.py OUT INPUT... [--no-sync]

Written past the page cache and synced, the fastest way for bytes to be on the disk; with --no-sync into the page
cache only.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

_BLOCK = 8 << 20


def main() -> None:
    names = [name for name in sys.argv[1:] if name != "--no-sync"]
    out, inputs = Path(names[0]), [Path(name) for name in names[1:]]
    buffer = memoryview(mmap.mmap(-1, _BLOCK))
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    size, synced = inputs[0].stat().st_size, "--no-sync" not in sys.argv
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if synced else 0), 0o666)
    os.posix_fallocate(target, 0, size)
    for _ in range(0, size, _BLOCK):
        os.write(target, buffer)  # the last block whole: a few bytes more than the output has
    if synced:
        os.fsync(target)
    os.close(target)


if __name__ == "__main__":
    main()
