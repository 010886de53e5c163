"""What a command says at its end, and what of other libraries' talk is not passed on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import random_model, write_model
from typer.main import get_command

from taskmerge.cli.app import app
from taskmerge.embedders.opening import quiet
from taskmerge.pipeline import STAGES


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = random_model(0)
    for name, tensors in (("base", base), ("one", random_model(1, near=base))):
        write_model(tmp_path / name, tensors)
    (tmp_path / "m.yaml").write_text("base: base\nspecialists: {one: one}\noutput: {path: out}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words", [("fuse", "m.yaml"), ("extract", "base", "one"), ("soup", "o*e"), ("init", "base", "one")], ids=str
)
def test_what_makes_something_says_what_to_do_next(models: Path, command: Callable[..., Any], words: Any) -> None:
    ran = command(*words, "--out", "first")
    assert ran.code == 0
    (line,) = [line for line in ran.err.splitlines() if line.startswith("next: ")]
    assert "taskmerge " in line
    quiet_one = command(*words, "--out", "second", "-q")
    assert (quiet_one.code, quiet_one.err) == (0, "")


def test_help_of_80_columns_breaks_no_word_and_lists_the_stages() -> None:
    group = get_command(app)
    with group.make_context("taskmerge", [], resilient_parsing=True) as around:
        for name, own in [("taskmerge", group), *getattr(group, "commands", {}).items()]:
            texts = []
            for width in (80, 4000):
                more: dict[str, Any] = {"terminal_width": width, "max_content_width": width}
                parent = around if own is not group else None
                with own.make_context(name, [], parent=parent, resilient_parsing=True, **more) as context:
                    texts.append(own.get_help(context))
            assert set(texts[0].split()) <= set(texts[1].split()), name
            assert max(map(len, texts[0].splitlines())) <= 80, name
            if name == "run":
                assert all(texts[0].count(stage) >= 2 for stage in STAGES), "in the summary, and for --from"


def test_libraries_draw_no_bars_and_make_no_remarks(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils import logging as theirs

    before = theirs.is_progress_bar_enabled()
    log = logging.getLogger("transformers.trainer_utils")
    with quiet(), caplog.at_level(logging.WARNING, logger="transformers"):
        assert not theirs.is_progress_bar_enabled()
        assert not log.filter(log.makeRecord(log.name, 30, "", 0, "mtime may not be reliable on this", (), None))
        assert log.filter(log.makeRecord(log.name, 30, "", 0, "a real warning", (), None))
    assert theirs.is_progress_bar_enabled() == before
