"""What is said of long work: a bar on a terminal, a line per minute in a log, nothing of what is short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import taskmerge.words.progress as home
from taskmerge.cli.watching import duration, show_work, words
from taskmerge.words.progress import Progress, Said, tell, watching, work


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    monkeypatch.setattr(home, "time", found)
    yield found


def steps(clock: Clock, count: int, seconds: float, **facts: float) -> None:
    with work("rehearse", count, "steps") as told:
        for _ in range(count):
            clock.now += seconds
            told.advance(1, **facts)


def test_a_log_gets_one_line_a_minute_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_work():
        steps(clock, 600, 0.5, loss=1.23456, pairs=64.0, held_out=0.5)
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert not shown.out
    assert lines[0] == "rehearse: 4 of 600 steps, loss 1.235, held out 0.500, 128 pairs/s, 5 min left"
    assert lines[1].startswith("rehearse: 124 of 600 steps") and lines[1].endswith("4 min left")
    assert lines[-1] == "rehearse: 600 of 600 steps, loss 1.235, held out 0.500, 128 pairs/s, 5 min in total"
    assert len(lines) == 1 + 4 + 1  # after 2 s, every minute of the 300 s, at the end


def test_nothing_is_said_of_what_is_short(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_work():
        steps(clock, 3, 0.5)
    assert capsys.readouterr().err == ""


def test_work_inside_other_work_has_lines_of_its_own(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_work(), work("stages", 2, "stages") as outer:
        for _ in range(2):
            steps(clock, 3, 1.0)
            outer.advance()
    titles = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert titles == ["rehearse", "rehearse", "stages", "rehearse", "rehearse", "stages"]


def test_what_is_assumed_is_said_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_work():
        tell("audio: only 10 of 20 pairs are used")
        assert "audio: only 10 of 20 pairs are used" in capsys.readouterr().err


def test_a_resumed_run_is_as_fast_as_it_is_now(clock: Clock) -> None:
    heard: list[Progress | Said] = []
    with watching(heard.append), work("recover", 100, "steps", done=90) as told:
        clock.now += 10.0
        told.advance(5)
    first = heard[0]
    assert isinstance(first, Progress) and first.done == 95 and first.rate == pytest.approx(0.5)
    assert first.left == pytest.approx(10.0) and "95 of 100 steps, 0.5 steps/s, 10 s left" in words(first)


def test_an_unknown_total_has_no_time_left() -> None:
    told = Progress("reading", 1500, None, "rows", 3.0, 500.0)
    assert told.left is None and words(told) == "1,500 rows, 500 rows/s"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (3600, "60 min"), (5990, "1 h 40 min"), (11_100, "3 h 05 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_who_has_left_is_told_no_more(clock: Clock) -> None:
    heard: list[Progress | Said] = []
    with watching(heard.append):
        steps(clock, 1, 1.0)
    steps(clock, 1, 1.0)
    assert [isinstance(one, Progress) and one.over for one in heard] == [False, True]
