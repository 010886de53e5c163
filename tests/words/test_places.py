"""Paths, uris and outputs: one parser for the command line, recipes and Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from taskmerge.checkpoints.hub import HubPlace, locate
from taskmerge.cli.app import app
from taskmerge.errors import CheckpointError, TaskmergeError, UsageError
from taskmerge.merging.algebra import Checkpoint
from taskmerge.words.places import cache_folder, output_path, parse_place

UNWRITABLE = [
    "https://host/out", "s3://", "s3://user:secret@bucket/out", "hf://owner/name", "S3://bucket", "foo://bar/baz",
    "file://otherhost/out", "", "   ", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("text", UNWRITABLE)
def test_outputs_that_nobody_can_write_to(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        output_path(text)
    model = Checkpoint.open({"w": torch.ones(4)})
    with pytest.raises(TaskmergeError):
        model.save(text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["apply", "extract", "graft", "schema", "run", "recover", "demo", "fuse"])
@pytest.mark.parametrize("out", ["s3://bucket/out", "foo://bar/baz", "https://host/out"])
def test_no_command_makes_a_folder_of_a_uri(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command in ("fuse", "extract") and out.startswith("s3"):
        pytest.skip("it writes there")
    monkeypatch.chdir(tmp_path)
    model = Checkpoint.open({"w": torch.ones(4)})
    model.save(tmp_path / "base")
    (tmp_path / "r.yaml").write_text("base: base\nspecialists: {a: base}\n")
    arguments = {"apply": ["base", "base"], "extract": ["base", "base"], "schema": [], "demo": []}
    arguments["graft"] = ["base", "--modality", "audio", "--encoder", "log_mel"]
    before = sorted(tmp_path.iterdir())
    told = CliRunner().invoke(app, [command, *arguments.get(command, ["r.yaml"]), "--out", out])
    assert isinstance(told.exception, UsageError), told
    assert "cannot be written to" in str(told.exception)
    assert sorted(tmp_path.iterdir()) == before


ELSEWHERE = {
    "init": ("init", "base", "base", "--out", "{}.yaml"),
    "search": ("search", "r.yaml", "--out", "{}"),
    "rehearse": ("rehearse", "r.yaml", "--out", "{}"),
    "a page of fuse": ("fuse", "r.yaml", "--out", "out", "--html", "{}.html"),
    "a page of compare": ("compare", "base", "base", "--html", "{}.html"),
    "a plot": ("compare", "base", "base", "--plot", "{}.png"),
    "a page of evaluate": ("evaluate", "base", "--retrieval", "text=pairs.jsonl", "--html", "{}.html"),
    "a page of drift": ("diagnose-drift", "r.yaml", "--html", "{}.html"),
    "a page of specialize": ("specialize", "r.yaml", "--html", "{}.html"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
@pytest.mark.parametrize("out", ["s3://bucket/out", "hf://owner/name", "foo://bar/baz"])
def test_no_other_file_or_folder_either(what: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Checkpoint.open({"w": torch.ones(4)}).save(tmp_path / "base")
    (tmp_path / "r.yaml").write_text("base: base\nspecialists: {a: base}\n")
    before = sorted(tmp_path.rglob("*"))
    told = CliRunner().invoke(app, [word.format(out) for word in ELSEWHERE[what]])
    assert isinstance(told.exception, UsageError) and "cannot be written to" in str(told.exception), told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_recipe_says_so_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("base: base\nspecialists: {a: base}\noutput: {path: 'https://host/out'}\n")
    told = CliRunner().invoke(app, ["fuse", str(tmp_path / "r.yaml")])
    assert "r.yaml:3: output: path: 'https://host/out': https:// cannot be written to" in str(told.exception)


def test_a_path_that_has_folded_the_slashes() -> None:
    assert str(Path("s3://bucket/out")) == "s3:/bucket/out"
    with pytest.raises(UsageError, match="s3:// cannot be written to"):
        output_path(Path("s3://bucket/out"))
    assert locate(str(Path("hf://owner/name"))) == HubPlace("owner/name", None, "", certain=True)


@pytest.mark.parametrize("text", ["file://{}", "file://localhost{}", "{}"])
def test_a_file_uri_is_its_path(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    quoted = str(folder).replace(" ", "%20") if text.startswith("file") else str(folder)
    assert locate(text.format(quoted)) == folder
    assert output_path(text.format(quoted)) == folder


@pytest.mark.parametrize(
    "text", ["", " ", "foo://b/x", "s3://a:b@c/d", "s3://", "file://host/x", "no/such/place/at/all", "x" * 5000, "a\0b"]
)
def test_inputs_that_are_none(text: str) -> None:
    with pytest.raises((UsageError, CheckpointError)) as told:
        locate(text)
    assert len(str(told.value)) < 1500


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert parse_place("~/models").path == Path("/somewhere/models")
    assert output_path("~/models") == Path("/somewhere/models")

    def gone() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", gone)
    monkeypatch.setattr(Path, "expanduser", lambda self: gone())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UsageError, match="HOME is not set"):
        output_path("~/models")
    with pytest.raises(UsageError, match="HOME is not set"):
        locate("~/models")
    assert cache_folder() is None


_WITHOUT = """
import os, sys
for name in ("posix_fallocate", "O_DIRECT", "sched_getaffinity", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
import mmap
for name in ("MADV_HUGEPAGE", "MADV_DONTNEED"):
    if hasattr(mmap, name):
        delattr(mmap, name)
import torch
from taskmerge.merging.algebra import Checkpoint
model = Checkpoint.open({f"w{i}": torch.arange(3001.0) + i for i in range(5)})
model.save(sys.argv[1], shard_size="20KB")
again = Checkpoint.open(sys.argv[1])
assert all((again[f"w{i}"] == torch.arange(3001.0) + i).all() for i in range(5)), "wrong bytes"
from taskmerge import fuse
fuse(sys.argv[1], {"a": sys.argv[1]}, "ties").save(sys.argv[2])
from typer.testing import CliRunner
from taskmerge.cli.app import app
assert CliRunner().invoke(app, ["doctor"]).exit_code in (0, 1)
"""


def test_saving_works_without_what_macos_lacks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("text", ["./~", "./~nobody"])
def test_an_output_called_like_the_home_folder_stays_here(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out ./~` was read twice, and the second time it was the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    once = output_path(text)
    assert output_path(once) == once and once.is_relative_to(tmp_path) and not once.is_relative_to(tmp_path / "home")
    assert output_path("~/x") == tmp_path / "home" / "x"
