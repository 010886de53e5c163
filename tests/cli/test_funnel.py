"""Every exception ends as a short message with a next move; names are text on every terminal and page."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import write_model
from places import ROOT
from rich.console import Console

from taskmerge.checkpoints.output import markdown
from taskmerge.cli.funnel import FAULT, funnel, told
from taskmerge.cli.output import print_json, print_table
from taskmerge.errors import CheckpointError, OutputError, UsageError
from taskmerge.printable import printable, printable_json, printable_line
from taskmerge.reporting import show
from taskmerge.reporting.content import Banner, Section, Table
from taskmerge.reporting.page import render
from taskmerge.reporting.plots import plot_comparison
from taskmerge.words.system_errors import MOVES, number_of, writing

NASTY = "[red]w[/o]*[link=http://x]\x1b]8;;http://x\x07\x1b[31m\x9b2J\u202e<b>&|`$a_b$"
ORDERS = ("\x1b", "\x07", "\x9b", "\u202e")


def command(arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `taskmerge ARGUMENTS`."""
    line = f"{sys.executable} -m taskmerge {arguments}"
    around: dict[str, Any] = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT), **environment}}
    return subprocess.run(
        line,
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        **around,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("base", "[models]"):
        write_model(folder / name, {"model.layers.0.mlp.weight": torch.zeros(4, 4)})
    os.mkfifo(folder / "pipe.safetensors")
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("inspect base > /dev/full", "standard output: cannot be written to"),
        ("inspect base --json > /dev/full", "standard output"),
        ("--version > /dev/full", "standard output"),
        ("fuse --help > /dev/full", "standard output"),
        ("inspect pipe.safetensors", "is not a file"),
        ("extract base base --out /dev/shm", "is a mount point"),
        ("extract base base --out .", "would replace the current folder"),
        ("extract base base --out /", "is the root of a disk"),
        ("extract base base --out /proc/x/y", "the disk has only 0 free"),
        ("inspect $'nowhere\\x1b[31m\\xff'", "nowhere\\x1b[31m"),
        ("inspect base --js", "taskmerge inspect: No such option: --js"),
        ("inspect", "taskmerge inspect: Missing argument"),
        ("inspekt base", "No such command 'inspekt'"),
        ("inspect base $'--\\x1b[31m'", "No such option: --\\x1b[31m"),
        ("$'\\x1b[2J'", "No such command '\\x1b[2J'"),
        ("soup 'b*' --out o --last $'\\x1b]0;title\\a'", "'\\x1b]0;title\\x07' is not a valid"),
        ("inspect base --" + "x" * 9000, "No such option: --xxx"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="these devices are Linux's")
def test_no_traceback_but_a_place_and_a_next_move(models: Path, arguments: str, words: str) -> None:
    done = command(arguments, models)
    assert done.returncode in (1, 2), done
    lines = done.stderr.splitlines()
    assert words in done.stderr and lines[0] == "taskmerge:" and len(lines) <= 20, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert not any(order in done.stderr for order in ORDERS)


@pytest.mark.parametrize("closing", [">&-", "<&- >&- 2>&-", "2>/dev/full", "| true"])
def test_streams_that_nobody_reads_leave_no_traceback(models: Path, closing: str) -> None:
    done = command(f"inspect base {closing}", models)
    assert "Traceback" not in done.stderr + done.stdout and "Exception" not in done.stderr


def test_a_terminal_that_knows_ascii_alone(models: Path) -> None:
    done = command("inspect 'nöwhere…'", models, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "n\\xf6where" in done.stderr


def test_what_nobody_foresaw_is_told_and_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run() -> None:
        raise ValueError("strange\nand long " + "x" * 9000)

    assert funnel(run) == FAULT
    said = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert "a bug in taskmerge" in said and str(kept) in said and "Traceback" not in said
    assert len(said) < 4096 and len(said.splitlines()) <= 20
    assert "Traceback" in kept.read_text() and "in run" in kept.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert funnel(run) == FAULT and "could not be saved" in capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "x", "there/file"), 1, "there/file: No space left on device\n    free disk space"),
        (OSError(errno.EACCES, "x", "there"), 1, "there: Permission denied\n    change its permissions"),
        (OSError(errno.EIO, "x", "there"), 1, "Input/output error\n    the disk"),
        (OSError(errno.EMFILE, "x"), 1, "ulimit -n"),
        (MemoryError(), 1, "not enough memory"),
        (OutOfMemoryError("CUDA out of memory"), 1, "not enough memory: CUDA out of memory"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 9"), 1, "not enough memory"),
        (RuntimeError("IoError(Os { code: 28, kind: StorageFull })"), 1, "No space left on device"),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), 2, None),
        (CheckpointError("its own words", "here"), 1, "here: its own words"),
        (UsageError("no"), 2, "no"),
        (KeyError("x"), FAULT, "a bug in taskmerge"),
        (RecursionError("deep"), FAULT, "a bug in taskmerge"),
    ],
)
def test_what_each_exception_means(error: Exception, code: int, words: str | None, capsys: Any) -> None:
    def run() -> None:
        raise error

    if words is None:  # installed here: no extra explains it
        assert "fault" in str(told(error))
        return
    assert funnel(run) == code
    assert words in capsys.readouterr().err.replace("\n  ", "\n").replace("taskmerge:\n", "").replace("\n  ", "\n    ")


def test_errors_of_libraries_that_wrap_the_systems() -> None:
    try:
        try:
            raise OSError(errno.EIO, "x")
        except OSError as inner:
            raise RuntimeError("could not save") from inner
    except RuntimeError as error:
        assert number_of(error) == errno.EIO
    assert number_of(ValueError("[Errno 28] in somebody's text")) is None
    with pytest.raises(OutputError, match="f: cannot be written: No space"), writing("f"):
        raise OSError(errno.ENOSPC, "x")
    with pytest.raises(ZeroDivisionError), writing("f"):
        _ = 1 / 0
    assert all(move and move[0].islower() for move in MOVES.values())


# ---------------------------------------------------------------------------------------------------- names are text


def test_orders_are_written_out() -> None:
    assert printable("a\x1b[31m\x9b\u202e\udcff\nb\tc\r") == "a\\x1b[31m\\x9b\\u202e\\udcff\nb\tc\\r"
    assert printable_line("a\nb\tc") == "a\\nb\\tc" and printable_line("häß 漢字 🙂") == "häß 漢字 🙂"
    data = {"a": NASTY + "\udcff\U000e0041"}
    text = printable_json(json.dumps(data, ensure_ascii=False))
    assert json.loads(text) == data and not any(order in text for order in ORDERS)


def test_messages_print_no_orders() -> None:
    error = CheckpointError("what\x1b[0m", "pla\nce\x1b[1m", "move\x9b")
    assert str(error) == "pla\\nce\\x1b[1m: what\\x1b[0m\n    move\\x9b"


@pytest.mark.parametrize("drawn", [True, False])
def test_tables_show_names_as_they_are(drawn: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: drawn)
    monkeypatch.setenv("COLUMNS", "400")
    print_table([NASTY, "b"], [[NASTY, 1.0]], NASTY)
    print_json({"a": NASTY})
    said = capsys.readouterr().out  # the terminal's own bold is no order of a name's
    assert not any(order in said for order in ("\x07", "\x9b", "\u202e", "\x1b]", "\x1b[31m"))
    assert said.count("[red]w[/o]*[link=http://x]\\x1b]8;;") >= 2


@pytest.mark.parametrize("terminal", [True, False])
def test_reports_show_names_as_they_are(terminal: bool, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w") as file:
        console = Console(file=file, force_terminal=terminal, width=400, color_system=None)
        blocks = (Banner("good", NASTY, NASTY), Table(NASTY, [NASTY, "x"], [[NASTY, NASTY]], NASTY))
        show([Section(NASTY, blocks)], console)
    said = (tmp_path / "said").read_text()
    assert "\x07" not in said and "\x9b" not in said and "\x1b]8" not in said
    assert said.count("[red]w[/o]*[link=http://x]") >= 6
    page = render(NASTY, NASTY, [Section(NASTY, (Table(NASTY, [NASTY], [[NASTY]], NASTY),))])
    assert "<b>" not in page and "&lt;b&gt;" in page and not any(order in page for order in ORDERS)


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    names = ["$a_{b$", "$\\frac$"]
    table = {one: dict.fromkeys(names, 0.5) for one in names}
    result = {"norms": dict.fromkeys(names), "by_layer": {"$x^^$": dict.fromkeys(names, 1.0)}}
    result |= {"cosine": table, "sign_conflict": table}
    assert plot_comparison(result, tmp_path / "p.svg").stat().st_size


def test_cards_show_names_as_they_are() -> None:
    assert markdown.name("out-1.5") == "out-1.5" and markdown.name("www.x.com") == "`www.x.com`"
    assert markdown.name("a](http://x)<b>") == "`a](http://x)<b>`"
    assert markdown.code("``a`") == "``` ``a` ```" and markdown.code("a|b\n", True) == "`a\\|b\\n`"
    assert markdown.block("a: 1\n```\n# big", "yaml") == "````yaml\na: 1\n```\n# big\n````"


def test_nothing_in_the_command_line_prints_past_its_output() -> None:
    for path in (ROOT / "taskmerge" / "cli").glob("*.py"):
        if path.name in ("output.py", "funnel.py", "docs.py", "json_docs.py"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        assert not [one for one in calls if isinstance(one, ast.Name) and one.id == "print"], path
        assert not [one for one in calls if isinstance(one, ast.Attribute) and ast.unparse(one) == "sys.stdout.write"]


def test_a_model_called_like_markup(models: Path) -> None:
    done = command("compare base '[models]' 'a$b=base'", models)
    assert done.returncode == 0 and "[models]" in done.stdout, done.stderr
