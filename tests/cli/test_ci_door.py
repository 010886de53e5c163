"""The CI job of examples/ci: its shell step, run as a job runs it; its workflow; and the table of exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

from taskmerge.cli.exit_codes import EXIT_CODES
from taskmerge.cli.funnel import FAULT, INTERRUPTED
from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.measuring.drift.report import EXIT_CANNOT_TELL, EXIT_DRIFTED

CI = ROOT / "examples" / "ci"


def step(folder: Path, program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """drift.sh in a folder where `taskmerge` is this program."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    (place / "taskmerge").write_text(f"#!/bin/sh\n{program}\n")
    (place / "taskmerge").chmod(0o755)
    around = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(
        ["sh", str(CI / "drift.sh"), *words], cwd=folder, capture_output=True, text=True, env={**around, **environment}
    )


def said(folder: Path, code: int, table: dict[str, Any]) -> str:
    """A program that prints this and ends so."""
    (folder / "said.json").write_text(json.dumps(table))
    return f'echo "$@" > words; cat "{folder}/said.json"; exit {code}'


def verdict(*sentences: str) -> dict[str, Any]:
    return {"stages": {"diagnose": {"modalities": {"audio": {"verdict": {"sentences": list(sentences)}}}}}}


@pytest.mark.parametrize(
    ("code", "around", "ends"), [(0, {}, 0), (3, {}, 3), (4, {}, 4), (4, {"CANNOT_TELL": "pass"}, 0),
                                 (3, {"CANNOT_TELL": "pass"}, 3)],
)  # fmt: skip
def test_the_verdict_ends_the_job(tmp_path: Path, code: int, around: dict[str, str], ends: int) -> None:
    ran = step(tmp_path, said(tmp_path, code, verdict("Drifted.", "R@1 fell\nby 0.1.")), "r.yaml", "--fresh", **around)
    assert ran.returncode == ends, ran.stderr
    assert ran.stdout.startswith("drift: audio: Drifted. R@1 fell by 0.1.\n")
    assert (tmp_path / "words").read_text() == "run r.yaml --until diagnose --json --fresh\n"
    assert json.loads((tmp_path / "drift.json").read_text()) == verdict("Drifted.", "R@1 fell\nby 0.1.")


def test_what_was_not_measured_does_not_pass(tmp_path: Path) -> None:
    ran = step(tmp_path, said(tmp_path, 0, {"stages": {"fuse": {}}}), "r.yaml")
    assert ran.returncode == 2 and "nothing was measured" in ran.stdout
    ran = step(tmp_path, "exit 0", "r.yaml")
    assert ran.returncode == 70, "no JSON is no verdict"
    assert step(tmp_path, "exit 0").returncode == 2


def test_errors_of_the_command_itself_reach_the_log(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base: base\nspecialists: {one: one}\noutpt: {}\n")
    ran = step(tmp_path, f'exec {sys.executable} -m taskmerge "$@"', "bad.yaml")
    assert ran.returncode == 2 and "drift: no result: " in ran.stdout and "outpt" in ran.stdout


def test_run_ends_as_the_diagnosis_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    """Where nothing repairs. The table is a run's own; what made it is tested with the pipeline."""
    monkeypatch.chdir(tmp_path)
    text = "base: base\nspecialists: {audio: audio}\noutput: {path: out}\ndrift: {specialist: audio, probes: p.jsonl}\n"
    table: dict[str, Any] = {"recipe": text, "models": {}, "outdated": [], "stages": {"diagnose": {"exit_code": 4}}}
    monkeypatch.setattr("taskmerge.pipeline.run", lambda *_, **__: table)
    (tmp_path / "r.yaml").write_text(text)
    assert command("run", "r.yaml", "--json").code == 4
    table["stages"]["diagnose"]["exit_code"] = 3
    assert command("run", "r.yaml").code == 3
    (tmp_path / "r.yaml").write_text(text + "recover: {train: [audio_projector], data: p.jsonl}\n")
    assert command("run", "r.yaml").code == 0
    assert command("run", "r.yaml", "--until", "diagnose").code == 3
    table["stages"]["rehearse"] = {"barred": ["audio"]}
    assert command("run", "r.yaml").code == 3


def test_the_workflow_is_one_that_may_run() -> None:
    """Least rights, no credentials kept, a limit of time; its step is the script."""
    flow = yaml.safe_load((CI / "drift.yml").read_text())
    (job,) = flow["jobs"].values()
    assert flow["permissions"] == {} and job["permissions"] == {"contents": "read"} and job["timeout-minutes"]
    steps = job["steps"]
    assert all("@" in one["uses"] for one in steps if "uses" in one)
    assert steps[0]["with"]["persist-credentials"] is False
    assert [one["run"] for one in steps if "run" in one][-1] == "sh drift.sh recipe.yaml"


def test_every_exit_code_is_in_the_table() -> None:
    codes = {0, TaskmergeError.exit_code, UsageError.exit_code, EXIT_DRIFTED, EXIT_CANNOT_TELL, FAULT, INTERRUPTED}
    assert set(EXIT_CODES) == codes
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert all(f"| {code} | {text} |" in page for code, text in EXIT_CODES.items())
