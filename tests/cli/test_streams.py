"""What other libraries print of a stranger's file carries no orders to the terminal either."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as some

from taskmerge.cli.funnel import funnel
from taskmerge.cli.output import console, progress
from taskmerge.cli.streams import Washed, safe_streams, unwashed

ORDERS = "\x1b[31m\x9b2J\x07\u202e"


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    """Both standard streams in one text."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def _warns() -> None:
    sys.stderr.write(warnings.formatwarning(f"of {ORDERS}", UserWarning, "x.py", 1))  # as Python shows one


def _logs() -> None:
    log, handler = logging.getLogger("somebody's"), logging.StreamHandler()
    log.addHandler(handler)
    log.error("of %s", ORDERS)
    log.removeHandler(handler)


def _prints() -> None:
    print(ORDERS)
    print(ORDERS, file=sys.stderr)
    sys.stdout.writelines([ORDERS, ORDERS])


def _typer() -> None:
    import typer

    typer.echo(ORDERS)
    typer.echo(ORDERS, err=True)


@pytest.mark.parametrize("speak", [_warns, _logs, _prints, _typer])
def test_whoever_prints_gives_no_orders(speak: object) -> None:
    with heard() as said:
        assert funnel(speak) == 0  # type: ignore[arg-type]
        assert sys.stdout is said, "the streams are the caller's again"
    assert "\\x9b2J\\x07\\u202e" in said.getvalue()
    assert not any(order in said.getvalue() for order in ("\x1b", "\x9b", "\x07", "\u202e"))


@given(some.text("ab\r\n\x1b[A31m", max_size=12))
def test_a_bar_moves_only_as_bars_do(text: str) -> None:
    stream = io.StringIO()
    assert Washed(stream).write(text) == len(text)
    passed = stream.getvalue()
    if "\x1b" in passed:
        assert not passed.replace("\x1b[A", "").strip("\n"), "moves up stand alone"
    assert "\r" not in passed[1:]
    assert passed.replace("\\r", "\r").replace("\\x1b", "\x1b") == text


def test_bars_of_progress_are_drawn() -> None:
    from tqdm import tqdm

    with heard() as said, safe_streams():
        for _ in tqdm(range(3), desc="download", file=sys.stderr, mininterval=0):
            pass
    assert said.getvalue().count("\rdownload") >= 2 and "\\r" not in said.getvalue()


def test_what_this_program_draws_keeps_its_own_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with safe_streams():
        assert sys.stderr.isatty() and unwashed(sys.stderr) is terminal and console(stderr=True).is_terminal
        with progress(100, "fusing [red]") as advance:
            advance(100)
    assert "\x1b[" in terminal.getvalue() and "fusing [red]" in terminal.getvalue()
    assert "\\x1b" not in terminal.getvalue()
