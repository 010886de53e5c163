"""How much memory the methods that take whole tensors need, beside what they declare (`MergeMethod.peak_bytes`).

Run: python benchmarks/whole_tensor_memory.py [--shapes 2048x2048 1024x3072] [--specialists 3] [--methods iso_c tsv]

Each method runs in a process of its own, once on deltas of full rank and once on low-rank ones stored as bf16; the
larger high-water mark of resident memory counts, less what was resident before the deltas were made. Measured on one
thread, with every large array given back to the system when it is freed: more threads have more buffers, and arrays
below 32 MiB may be kept by the allocator for later.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

MEBIBYTE = 2**20


def measured(name: str, specialists: int, shape: tuple[int, ...], rank: int) -> int:
    """Bytes at the peak of one merge, deltas and result included; run in a fresh process."""
    import torch

    from taskmerge.methods import find_method

    torch.set_num_threads(1)
    method = find_method(name)
    small = torch.randn(specialists, 9, 8, dtype=torch.float64)
    inputs = {"base": torch.zeros(9, 8, dtype=torch.float64)} if "base" in method.inputs else {}
    weights = torch.ones(specialists, dtype=torch.float64)
    method.merge(small, weights, method.options({}), **inputs)  # loads what is loaded once
    torch.linalg.eigh(torch.linalg.svd(torch.randn(300, 300, dtype=torch.float64))[0])
    before = resident()
    deltas = torch.empty(specialists, *shape, dtype=torch.float64)
    for delta in deltas:
        if rank:
            torch.mm(torch.randn(shape[0], rank).double(), torch.randn(rank, shape[1]).double(), out=delta)
        else:
            delta.normal_()
    inputs = {"base": torch.zeros(shape, dtype=torch.float64)} if "base" in method.inputs else {}
    if "covariances" in method.inputs:
        inputs["covariances"] = torch.eye(shape[1], dtype=torch.float64).repeat(specialists, 1, 1)
    noise = torch.full((specialists,), 0.02, dtype=torch.float64)
    result = method.merge(deltas, weights, method.options({}), noise=noise, **inputs)
    assert torch.isfinite(result).all()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def resident() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["2048x2048", "1024x3072", "3072x1024"])
    parser.add_argument("--specialists", nargs="*", type=int, default=[3])
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, specialists, shape, rank = given.one
        print(measured(name, int(specialists), tuple(map(int, shape.split("x"))), int(rank)))
        return

    from taskmerge.methods import all_methods

    print(f"{'method':12} {'shape':>10} {'T':>2} {'measured':>10} {'declared':>10} {'ratio':>6}")
    for method in all_methods():
        if method.stream is not None or (given.methods and method.name not in given.methods):
            continue
        for shape in given.shapes:
            for specialists in given.specialists:
                peaks = []
                for rank in ("0", "16"):
                    command = [sys.executable, __file__, "--one", method.name, str(specialists), shape, rank]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
                    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                    peaks.append(int(output.stdout))
                declared = method.peak_bytes(specialists, tuple(map(int, shape.split("x"))))
                ratio = max(peaks) / declared
                sizes = f"{max(peaks) / MEBIBYTE:6.0f} MiB {declared / MEBIBYTE:6.0f} MiB"
                print(f"{method.name:12} {shape:>10} {specialists:2} {sizes} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
