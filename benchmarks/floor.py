"""The floor: read every input file once, write as many bytes as the output has once, and do nothing else.

python benchmarks/floor.py OUT INPUT... [--no-sync]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_BLOCK = 8 << 20


def main() -> None:
    names = [name for name in sys.argv[1:] if name != "--no-sync"]
    out, inputs = Path(names[0]), [Path(name) for name in names[1:]]
    buffer = memoryview(bytearray(_BLOCK))
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    size = inputs[0].stat().st_size
    with out.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for start in range(0, size, _BLOCK):
            file.write(buffer[: min(_BLOCK, size - start)])
        if "--no-sync" not in sys.argv:
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
