"""Options that every command has: -h, -q, -v; help that nothing cuts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import write_model
from typer.main import get_command
from typer.testing import CliRunner

from taskmerge.cli.app import app

COMMANDS = sorted(getattr(get_command(app), "commands", {}))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name in ("base", "a"):
        write_model(tmp_path / name, {"a.weight": torch.randn(8, 8)})
    table = {"base": "base", "specialists": {"a": {"model": "a", "weight": 0.5}}, "merge": {"method": "linear"}}
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps({**table, "output": {"path": "out"}}))
    return path


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "taskmerge", *map(str, words)], capture_output=True, text=True)


def test_a_quiet_command_prints_its_result_alone(recipe: Path) -> None:
    ended = run("fuse", recipe, "-q")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{recipe.parent / 'out'}\n", "")


def test_a_quiet_command_prints_its_errors(recipe: Path) -> None:
    ended = run("fuse", recipe.parent / "none.yaml", "--quiet")
    assert ended.returncode and "none.yaml" in ended.stderr and "Traceback" not in ended.stderr


def test_the_trace_of_a_failure_is_for_those_who_ask(recipe: Path) -> None:
    assert "Traceback" in run("fuse", recipe.parent / "none.yaml", "-v").stderr


def test_out_has_a_letter(recipe: Path) -> None:
    assert run("fuse", recipe, "-q", "-o", recipe.parent / "other").stdout == f"{recipe.parent / 'other'}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_by_letter_says_what_all_options_do(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "-h"], terminal_width=80)
    assert shown.exit_code == 0 and "--quiet" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    options = get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert not [option.name for option in options if not getattr(option, "help", None)]


def test_summaries_are_not_cut() -> None:
    shown = " ".join(CliRunner().invoke(app, ["-h"], terminal_width=80).output.split())
    assert "..." not in shown.partition("Commands:")[2]
    assert "Run all stages of a recipe: specialize, fuse, diagnose, recover, rehearse, evaluate." in shown
