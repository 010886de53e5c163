"""`python -m fuzz`: makes cases, runs them on two workers, prints what was found and a count by generator."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz.cases import GENERATORS, Case, choose


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="about how many, over all generators")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generator", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--case", help="only this one: NAME:NUMBER")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--findings", type=Path, help="file for what was found, one JSON line each")
    parser.add_argument("--keep", metavar="TITLE", help="write the --case down as a kept one")
    parser.add_argument("--kills", type=int, default=0, help="afterwards so many kills over all commands that write")
    parser.add_argument("--points", type=int, default=0, help="afterwards so many faults of each kind in each of them")
    parser.add_argument("--folder", type=Path, help="where to work; kept afterwards")
    options = parser.parse_args()
    import fuzz.generators  # noqa: F401
    from fuzz.keeping import keep
    from fuzz.session import load, run_session
    from fuzz.templates import make

    if options.case:
        name, _, number = options.case.partition(":")
        cases = [Case(name, int(number), options.seed)]
    else:
        cases = choose(options.cases, options.seed, options.generator)
    if unknown := {case.generator for case in cases} - GENERATORS.keys() or set(options.generator) - GENERATORS.keys():
        parser.error(f"no such generator: {', '.join(unknown)}; known: {', '.join(GENERATORS)}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="taskmerge-fuzz-"))
    try:
        if options.keep:
            load()
            make(folder / "templates", {GENERATORS[cases[0].generator].template})
            print(keep(cases[0], options.keep, folder / "kept", folder / "templates"))
            return 0
        code = report(run_session(cases, folder, options.workers), cases, options.findings, time.monotonic())
    finally:
        if options.folder is None:
            os.chdir("/")
            shutil.rmtree(folder, ignore_errors=True)
    if options.points:
        code |= besides("fuzz.disk", "--points", options.points)
    if options.kills:
        code |= besides("fuzz.kills", "--kills", options.kills, "--seed", options.seed)
    return code


def besides(module: str, *words: object) -> int:
    """Another part of the fuzzer, in a process of its own that forks children."""
    print(f"\n{module}:", flush=True)
    return subprocess.run([sys.executable, "-m", module, *map(str, words)], check=False).returncode


def report(results, cases: list[Case], path: Path | None, began: float) -> int:  # type: ignore[no-untyped-def]
    counts: dict[str, Counter[str]] = {case.generator: Counter() for case in cases}
    for case, result in results:
        row = counts[case.generator]
        row.update(cases=1, commands=result.commands, accepted=result.accepted, compared=result.compared)
        row.update(findings=len(result.findings))
        for what in result.findings:
            print(f"{case} (seed {case.seed}): {what}\n", file=sys.stderr, flush=True)
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps({"case": str(case), "seed": case.seed, "finding": what}) + "\n")
    columns = ("cases", "commands", "accepted", "compared", "findings")
    print(f"{'generator':32}" + "".join(f"{name:>10}" for name in columns))
    whole = sum(counts.values(), Counter())
    for name, row in (*counts.items(), ("all", whole)):
        print(f"{name:32}" + "".join(f"{row[column]:>10,}" for column in columns))
    print(f"{len(counts)} generators, {time.monotonic() - began:.0f} s, {whole['findings']} findings")
    return int(whole["findings"] > 0)


if __name__ == "__main__":
    sys.exit(main())
