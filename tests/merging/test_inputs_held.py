"""Inputs stay what they were from plan to publish, and what an unfinished run left is read before it is believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import digests, prepare, write_model, write_recipe
from disturbed_runs import Once, StopsAfter, environment, refused, run

from taskmerge import recipes
from taskmerge.errors import CheckpointError
from taskmerge.merging import execute, plan

Change = Callable[[Path], object]


def overwrite(path: Path, *, byte: int = 0, same_time: bool = False) -> None:
    """Other numbers in place, the header as it was."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes([byte] * 64))
    if same_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file of the same size under the same name."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    overwrite(other)
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


CHANGES: dict[str, tuple[str, Change, str]] = {
    "overwritten": ("image/model.safetensors", overwrite, "was written to while it was being read"),
    "overwritten, its time set back": (
        "base/model.safetensors", lambda path: overwrite(path, same_time=True), "was written to while",
    ),
    "replaced": ("audio/model.safetensors", replace, "was replaced by another file"),
    "removed": ("audio/model.safetensors", Path.unlink, "can no longer be read"),
    "grown": ("audio/model.safetensors", lambda path: os.truncate(path, 1 << 20), "was written to while"),
    "its tokenizer": ("base/tokenizer.json", lambda path: path.write_text("[]"), "written to while they were"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_an_input_that_changes_under_the_run(tmp_path: Path, what: str) -> None:
    name, change, said = CHANGES[what]
    prepare(tmp_path, layers=5, size=32)
    with pytest.raises(CheckpointError, match=said) as caught:
        run(tmp_path, progress=Once(lambda: change(tmp_path / name)))
    assert str(tmp_path / name.partition("/")[0]) in str(caught.value)
    assert "run it again when no other program writes to" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_change_between_plan_and_fuse(tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=32)
    recipe = recipes.load(tmp_path / "merge.yaml")
    decided = plan(recipe)
    overwrite(tmp_path / "image" / "model.safetensors")
    with pytest.raises(CheckpointError, match="was written to while it was being read"):
        execute(decided, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_or_other_rights_change_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, layers=3, size=32)
    path = tmp_path / "image" / "model.safetensors"

    def touch() -> None:
        path.chmod(0o600)
        os.link(path, tmp_path / "backup")

    run(tmp_path, progress=Once(touch))
    assert (tmp_path / "out" / "taskmerge.json").is_file()


def test_the_own_base_of_a_specialist_is_an_input_as_well(tmp_path: Path) -> None:
    prepare(tmp_path, layers=4, size=32)
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    write_recipe(
        tmp_path, base="base", specialists={"image": {"model": "image", "base": "other"}}, output={"shard_size": 2048}
    )
    with pytest.raises(CheckpointError, match="was written to"):
        run(tmp_path, progress=Once(lambda: overwrite(tmp_path / "other" / "model.safetensors")))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=StopsAfter(3000))
    overwrite(tmp_path / "other" / "model.safetensors", byte=1)
    assert "other inputs" in refused(tmp_path)
    run(tmp_path, fresh=True)
    record = json.loads((tmp_path / "out" / "taskmerge.json").read_text())
    assert list(record["inputs"]) == ["base", "image", "image's base"]


CUT = """
import os, sys
from pathlib import Path
from disturbed_runs import Once
from taskmerge import recipes
from taskmerge.errors import CheckpointError
from taskmerge.merging import execute, plan
from taskmerge.merging.algebra import Checkpoint

folder, name, length = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
path = next((folder / "image").glob("*.*[ns]"))
recipe = recipes.load(folder / "merge.yaml")
try:
    if name == "fuse":
        execute(plan(recipe), recipe, folder / "out", progress=Once(lambda: os.truncate(path, length)))
    else:
        checkpoint = Checkpoint.open(folder / "image")
        first, *_, last = checkpoint.tensors
        checkpoint.numbers.read(first)
        os.truncate(path, length)
        checkpoint.save(folder / "out")
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("command", "length", "file"),
    [
        ("fuse", 0, "model.safetensors"),
        ("fuse", 5000, "pytorch_model.bin"),
        ("save", 5000, "model.safetensors"),
    ],
)
def test_an_input_cut_off_under_the_run(tmp_path: Path, command: str, length: int, file: str) -> None:
    prepare(tmp_path, layers=6, size=64)
    if file.endswith(".bin"):
        from safetensors.torch import load_file

        torch.save(load_file(tmp_path / "image" / "model.safetensors"), tmp_path / "image" / file)
        (tmp_path / "image" / "model.safetensors").unlink()
    said = [sys.executable, "-c", CUT, str(tmp_path), command, str(length)]
    done = subprocess.run(said, capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{file}: was truncated while it was being read: {length:,} bytes are left" in done.stdout
    assert not (tmp_path / "out").exists()


FOREIGN = """
import faulthandler, mmap, os, sys
if sys.argv[2] == "known": faulthandler.enable()
from pathlib import Path
from taskmerge.checkpoints.formats.reading import open_stored
model = open_stored(Path(sys.argv[1]))
model.read(next(iter(model.tensors)))
path = Path(sys.argv[1]) / "foreign"
path.write_bytes(bytes(1 << 16))
with path.open("r+b") as file:
    region = mmap.mmap(file.fileno(), 0)
os.truncate(path, 0)
region[1 << 15]
"""


@pytest.mark.parametrize("handler", ["known", "none"])
def test_the_signal_of_anybody_elses_file_goes_where_it_went(tmp_path: Path, handler: str) -> None:
    write_model(tmp_path, {"model.layers.0.weight": torch.ones(3)})
    said = [sys.executable, "-c", FOREIGN, str(tmp_path), handler]
    done = subprocess.run(said, capture_output=True, text=True, timeout=30, env=os.environ)
    assert done.returncode == -7
    assert ("Bus error" in done.stderr) == (handler == "known")


# --- what an unfinished run left --------------------------------------------------------------------------------------

FIRST = "model-00001-of-00005.safetensors"
SECOND = "model-00002-of-00005.safetensors"


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A folder with a run interrupted in its third of five shards."""
    prepare(tmp_path, layers=5, size=32)
    first, second, *_ = plan(recipes.load(tmp_path / "merge.yaml")).shards
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=StopsAfter(first.size + second.size))
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = prepare(tmp_path_factory.mktemp("undisturbed"), layers=5, size=32)
    run(folder)
    return digests(folder / "out")


def flip(path: Path) -> None:
    data, before = bytearray(path.read_bytes()), path.stat()
    data[-7] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path) -> None:
    other = path.with_name(SECOND)
    path.rename(path.with_name("scratch"))
    other.rename(path)
    path.with_name("scratch").rename(other)


DAMAGE: dict[str, tuple[Change, tuple[str, ...]]] = {
    "flipped": (flip, (FIRST,)),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), (FIRST,)),
    "empty": (lambda path: os.truncate(path, 0), (FIRST,)),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), (FIRST,)),
    "swapped": (swap, (FIRST, SECOND)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_finished_file_that_is_no_longer_so_is_made_again(
    interrupted: Path, undisturbed: dict[str, str], what: str, command: Callable[..., Any]
) -> None:
    change, names = DAMAGE[what]
    change(interrupted / ".out.partial" / FIRST)
    ran = command("fuse", interrupted / "merge.yaml")
    assert ran.code == 0
    for name in names:
        assert f"{name}: changed since the interrupted run wrote it; written again" in ran.err
    assert digests(interrupted / "out") == undisturbed


def folder_instead(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()


def link_instead(folder: Path) -> None:
    (folder / FIRST).rename(folder.parent / "away")
    (folder / FIRST).symlink_to("../away")


STRANGE: dict[str, tuple[Change, str]] = {
    "a file": (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt"),
    "weights": (lambda folder: shutil.copy(folder / FIRST, folder / "adapter_model.safetensors"), "adapter_model"),
    "code": (lambda folder: (folder / "modeling_own.py").write_text("x"), "modeling_own.py"),
    "a folder": (lambda folder: (folder / "1_Pooling").mkdir(), r"1_Pooling \(a folder\)"),
    "a folder in place of a file": (folder_instead, rf"{FIRST} \(a folder\)"),
    "a link in place of a file": (link_instead, FIRST),
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_what_the_run_did_not_write_is_named_and_stays(interrupted: Path, what: str) -> None:
    change, said = STRANGE[what]
    folder = interrupted / ".out.partial"
    change(folder)
    before = sorted(path.name for path in folder.iterdir())
    message = refused(interrupted)
    assert "files which taskmerge did not write" in message and "move these out of it" in message
    with pytest.raises(Exception, match=said):
        run(interrupted)
    assert sorted(path.name for path in folder.iterdir()) == before and not (interrupted / "out").exists()


def test_what_appears_during_the_run_is_not_published(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    prepare(tmp_path, layers=5, size=32)
    stray = tmp_path / ".out.partial" / "stray.bin"
    with pytest.raises(Exception, match=r"files which taskmerge did not write: stray\.bin"):
        run(tmp_path, progress=Once(lambda: stray.write_text("mine")))
    assert not (tmp_path / "out").exists() and stray.read_text() == "mine"
    stray.unlink()
    assert len(run(tmp_path).resumed) == 5
    assert digests(tmp_path / "out") == undisturbed


def test_side_files_of_a_run_that_ended_before_publishing_are_its_own(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskmerge.checkpoints.output.writing import OutputFolder

    prepare(tmp_path, layers=5, size=32)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OutputFolder, "publish", lambda self, record: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path)
    assert (tmp_path / ".out.partial" / "tokenizer.json").is_file()
    assert len(run(tmp_path).resumed) == 5
    assert digests(tmp_path / "out") == undisturbed
