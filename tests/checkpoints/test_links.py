"""Links in a model's folder that lead out of it carry nothing: not a byte of what they lead to reaches an output.

A module folder that was a link, and links in `additional_chat_templates`, carried files from outside into the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import random_model, write_model, write_recipe

from taskmerge import Checkpoint
from taskmerge.errors import TaskmergeError

SECRET = "the password is swordfish"


def _folder(name: str) -> Callable[[Path, Path], None]:
    """The folder `name` of a model is a link to one outside with the same files."""

    def put(model: Path, outside: Path) -> None:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).symlink_to(outside)

    return put


def _file(name: str) -> Callable[[Path, Path], None]:
    def put(model: Path, outside: Path) -> None:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(outside / Path(name).name)

    return put


LINKS = {
    "a module folder": _folder("1_Pooling"),
    "the transformer's folder": _folder("0_Transformer"),
    "a file in a module folder": _file("1_Pooling/config.json"),
    "the folder of chat templates": _folder("additional_chat_templates"),
    "a chat template": _file("additional_chat_templates/tool.jinja"),
    "the chat template": _file("chat_template.jinja"),
    "a license": _file("LICENSE"),
    "code": _file("modeling_own.py"),
    "the config": _file("config.json"),
    "a vocabulary": _file("vocab.txt"),
    "the weights": _file("model.safetensors"),
    "statistics": _folder("statistics"),
}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    base = random_model(0)
    write_model(tmp_path / "base", base, {"model_type": "llama"})
    write_model(tmp_path / "one", random_model(1, near=base), {"model_type": "llama"})
    outside = write_model(tmp_path / "outside", random_model(2, near=base), {"secret": SECRET})
    for name in ("tool.jinja", "chat_template.jinja", "LICENSE", "modeling_own.py"):
        (outside / name).write_text(SECRET)
    (outside / "vocab.txt").write_text(SECRET + "\n")
    write_recipe(tmp_path, base="base", specialists={"one": "one"}, output={"path": "out"})
    return tmp_path


@pytest.mark.parametrize("owner", ["base", "one"])
@pytest.mark.parametrize("what", LINKS)
def test_nothing_from_outside_reaches_an_output(
    room: Path, command: Callable[..., Any], what: str, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    LINKS[what](room / owner, room / "outside")
    inside = "0_Transformer" if what == "the transformer's folder" else ""
    rows = [{"path": inside, "type": "sentence_transformers.models.Transformer"}, {"path": "1_Pooling", "type": "x"}]
    (room / owner / "modules.json").write_text(json.dumps(rows))
    before = {path: path.read_bytes() for path in (room / "outside").iterdir()}
    ran = command("fuse", "merge.yaml")
    assert "Traceback" not in ran.err
    for place in (room / "out", *(room / "out").rglob("*")):
        if place.is_file():
            assert SECRET.encode() not in place.read_bytes(), place
    if not (room / "out").exists():
        assert ran.code in (1, 2) and "outside the folder" in ran.err, ran.err
    try:
        saved = Checkpoint.open(room / owner).save(room / "saved")
    except TaskmergeError as error:
        assert "outside the folder" in str(error)
    else:
        assert all(SECRET.encode() not in path.read_bytes() for path in saved.rglob("*") if path.is_file())
    assert {path: path.read_bytes() for path in (room / "outside").iterdir()} == before


def test_links_that_stay_inside_and_those_of_the_hubs_cache(room: Path) -> None:
    model = room / "base"
    (model / "LICENSE.txt").write_text("free")
    (model / "LICENSE").symlink_to("LICENSE.txt")
    assert (Checkpoint.open(model).save(room / "saved") / "LICENSE").read_text() == "free"
    cache = room / "models--a--b"
    (cache / "snapshots" / "c" / "1_Pooling").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        (model / name).replace(cache / "blobs" / str(number))
        (cache / "snapshots" / "c" / name).symlink_to(f"../../blobs/{number}")
    (cache / "blobs" / "9").write_text("{}")
    (cache / "snapshots" / "c" / "1_Pooling" / "config.json").symlink_to("../../../blobs/9")
    rows = [{"path": "", "type": "a"}, {"path": "1_Pooling", "type": "b"}]
    (cache / "snapshots" / "c" / "modules.json").write_text(json.dumps(rows))
    saved = Checkpoint.open(cache / "snapshots" / "c").save(room / "again")
    assert (saved / "1_Pooling" / "config.json").read_text() == "{}"
