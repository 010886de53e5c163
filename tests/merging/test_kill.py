"""Never half a model: runs that are killed, disturbed, doubled or repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import digests, prepare
from disturbed_runs import StopsAfter, change_recipe, environment, refused, run
from places import HELPERS

from taskmerge import recipes
from taskmerge.checkpoints.output.writing import JOURNAL
from taskmerge.errors import OutputError
from taskmerge.merging import execute, plan

HERE = HELPERS


def test_killed_at_random_moments_and_before_every_change(tmp_path: Path) -> None:
    folders = [prepare(tmp_path / "random", layers=4, size=128), prepare(tmp_path / "every", layers=2, size=64)]
    script = [sys.executable, str(HERE / "killing.py"), *map(str, folders), "17", "52"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["random"]["killed"] >= 50
    assert counts["random"]["resumed"] >= 5, "runs that went on from finished shards"
    assert counts["every"]["killed"] >= 20
    assert counts["every"]["absent"] and counts["every"]["before"] and counts["every"]["whole"]


# --- disturbed ----------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A folder with a run interrupted in its third of five shards."""
    prepare(tmp_path, layers=5, size=32)
    first, second, *_ = plan(recipes.load(tmp_path / "merge.yaml")).shards
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=StopsAfter(first.size + second.size))
    assert not (tmp_path / "out").exists()
    finished = json.loads((tmp_path / ".out.partial" / JOURNAL).read_text())["finished"]
    assert list(finished) == ["model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors"]
    return tmp_path


def test_an_interrupted_run_goes_on_where_it_was(interrupted: Path) -> None:
    written = run(interrupted)
    assert written.resumed == ("model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors")
    first = digests(interrupted / "out")
    run(interrupted, fresh=True)
    assert digests(interrupted / "out") == first


@pytest.mark.parametrize("changes", [{"seed": 4}, {"merge": {"method": "ties"}}], ids=str)
def test_another_recipe_is_not_mixed_in(interrupted: Path, changes: dict[str, Any]) -> None:
    change_recipe(interrupted, **changes)
    message = refused(interrupted)
    assert (
        ".out.partial: there is an unfinished run here with another recipe, other inputs or another version" in message
    )
    assert "--fresh deletes it" in message
    assert run(interrupted, fresh=True).resumed == ()
    assert not (interrupted / ".out.partial").exists()


def test_other_inputs_are_not_mixed_in(interrupted: Path) -> None:
    path = interrupted / "image" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "other inputs" in refused(interrupted)
    assert run(interrupted, fresh=True).resumed == ()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "statistics/input_covariances.safetensors"])
def test_another_file_beside_the_weights_is_not_mixed_in(interrupted: Path, file: str) -> None:
    path = interrupted / "base" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"model_type": "llama", "vocab_size": 2}')
    assert "other inputs" in refused(interrupted)


OWN = """
from taskmerge import merge_method

@merge_method
def own(deltas, weights):
    "The first task vector."
    return deltas[0]
"""


def test_another_method_in_the_same_file_is_not_mixed_in(tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=32)
    change_recipe(tmp_path, merge={"method": "own.py:own"})
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=StopsAfter(2 * 32 * 32 * 2 + 100))
    (tmp_path / "own.py").write_text(OWN.replace("deltas[0]", "deltas[1]"))
    assert "an unfinished run here with another recipe" in refused(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    assert "an unfinished run" in refused(tmp_path), "a file written anew may be another"
    assert run(tmp_path, fresh=True).resumed == ()


def test_a_comment_in_the_recipe_changes_nothing(interrupted: Path) -> None:
    recipe = interrupted / "merge.yaml"
    recipe.write_text("# the same merge\n" + recipe.read_text())
    assert len(run(interrupted).resumed) == 2


def test_a_finished_file_that_is_gone_is_written_again(interrupted: Path) -> None:
    (interrupted / ".out.partial" / "model-00001-of-00005.safetensors").unlink()
    assert run(interrupted).resumed == ("model-00002-of-00005.safetensors",)


def test_an_existing_output_is_refused_and_fresh_replaces_it(tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=8)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    message = refused(tmp_path)
    assert "out: the output folder already exists" in message
    assert "it was not made by taskmerge" in message
    with pytest.raises(OutputError, match="it was not made by taskmerge"):
        run(tmp_path, fresh=True)
    assert digests(tmp_path / "out").keys() == {"notes.txt"}
    (tmp_path / "out" / "notes.txt").unlink()
    run(tmp_path)
    assert "--fresh replaces it, --out writes elsewhere" in refused(tmp_path)
    run(tmp_path, fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=8)
    (tmp_path / "out").mkdir()
    run(tmp_path)
    assert (tmp_path / "out" / "config.json").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=8)
    (tmp_path / "out").write_text("mine")
    assert "out: exists and is not a folder" in refused(tmp_path, fresh=True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("target", ["base", "image", "."])
def test_the_output_never_takes_the_place_of_an_input(tmp_path: Path, target: str) -> None:
    prepare(tmp_path, layers=2, size=8)
    before = digests(tmp_path)
    recipe = recipes.load(tmp_path / "merge.yaml")
    with pytest.raises(OutputError, match="the output would replace an input"):
        execute(plan(recipe), recipe, tmp_path / target, fresh=True)
    assert digests(tmp_path) == before


HOLDING = """
import os, signal, sys
from pathlib import Path
from killing import fuse
fuse(Path(sys.argv[1]), Path(sys.argv[1]) / "out", progress=lambda count: os.kill(os.getpid(), signal.SIGSTOP))
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    prepare(tmp_path, layers=1, size=16)
    held = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLDING), str(tmp_path)], env=environment())
    try:
        _, status = os.waitpid(held.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        message = refused(tmp_path)
        assert "out: another process is writing this output" in message and "wait for it to end" in message
        assert "another process is writing" in refused(tmp_path, fresh=True)
        deadline = time.monotonic() + 60
        while held.poll() is None and time.monotonic() < deadline:
            held.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        assert held.returncode == 0
    finally:
        held.kill()
        held.wait()
    assert (tmp_path / "out" / "model.safetensors").exists()
