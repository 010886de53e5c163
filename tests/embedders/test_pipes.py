"""A named pipe where a file of a model should be is refused by name: a library that opens it waits for ever.

Seen: `check-model` of a folder with a pipe called tokenizer.json never ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omni_models import tiny_backbone

from taskmerge import Checkpoint
from taskmerge.embedders import graft, open_embedder
from taskmerge.errors import TaskmergeError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
NAMES = ("tokenizer.json", "config.json", "chat_template.jinja", "vocab.txt", "model.safetensors.index.json",
         "additional_chat_templates/tool.jinja")  # fmt: skip
Open = Callable[[Path], Any]
WAYS: dict[str, Open] = {
    "open": open_embedder,
    "graft": lambda folder: graft(folder, "audio", "log_mel", "linear"),
    "encoder": lambda folder: graft(folder.with_name("backbone"), "image", str(folder), "linear"),
    "checkpoint": lambda folder: list(Checkpoint.open(folder).tensors),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("pipes") / "backbone")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    def ended(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_nobody_waits_for_it(backbone: Path, tmp_path: Path, way: str, name: str) -> None:
    import shutil

    folder = Path(shutil.copytree(backbone, tmp_path / "model"))
    shutil.copytree(backbone, tmp_path / "backbone")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if way == "checkpoint" and not name.endswith(("config.json", "index.json")):
        assert WAYS[way](folder), "what is not needed is not read"
        return
    with pytest.raises(TaskmergeError) as caught:
        WAYS[way](folder)
    problem = caught.value.problems[0]
    assert "is not a file" in problem.what and str(folder / name) in str(caught.value) and problem.next_move
