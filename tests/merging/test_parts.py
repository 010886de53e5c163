"""One output in several parts: the same bytes as in one, whoever writes which, and what is lost is named."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import digests, prepare
from disturbed_runs import change_recipe, environment, run
from store_runs import local_job

from taskmerge.checkpoints.output.parts import NOTES, LocalParts
from taskmerge.errors import OutputError, UsageError
from taskmerge.merging import execute
from taskmerge.merging.parts import execute_part, measure_part
from taskmerge.words.parts import Part, parse_part


def finish(folder: Path, out: str = "parts", **options: Any) -> None:
    one = local_job(folder, out)
    execute(one.plan, one.recipe, one.out, finish=True, **options)


@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_the_parts_are_the_whole(of: int, tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=48)
    run(tmp_path)
    for number in random.Random(of).sample(range(1, of + 1), of):
        execute_part(local_job(tmp_path), Part(number, of))
    assert not (tmp_path / "parts").exists()
    finish(tmp_path)
    whole, parts = digests(tmp_path / "out"), digests(tmp_path / "parts")
    assert {name for name in whole if whole[name] != parts.get(name)} <= {"README.md", "taskmerge.json"}
    records = [json.loads((tmp_path / out / "taskmerge.json").read_text()) for out in ("out", "parts")]
    for record in records:
        del record["outputs"]["README.md"]  # names the folder
    assert records[0] == records[1]
    assert not (tmp_path / ".parts.partial").exists()


@pytest.mark.parametrize("wide", [False, True])
def test_thresholds_over_the_model_are_measured_in_parts(wide: bool, tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=640)  # more entries than a sample
    merge: dict[str, Any] = {"method": "ties", "density": 0.2, "trim": "model"}
    change_recipe(tmp_path, merge=merge, output={"path": "out", "shard_size": 900_000})
    if wide:  # float32 specialists: more bit patterns than one round can tell apart
        from checkpoint_files import write_model

        generator = torch.Generator().manual_seed(0)
        for label in ("image", "audio"):
            held = {
                f"model.layers.{i}.mlp.weight": torch.randn(640, 640, generator=generator) * 10.0**-i for i in range(5)
            }
            write_model(tmp_path / label, held)
    run(tmp_path)
    one = local_job(tmp_path)
    with pytest.raises(OutputError, match="has not been measured yet"):
        execute_part(one, Part(1, 3))
    for turn in itertools.count():
        said = [measure_part(one, Part(number, 3)) for number in (2, 1, 3)]
        if said[-1].done:
            break
        assert turn < 4, said
    with pytest.raises(OutputError, match="started in 3 parts, not 2"):
        measure_part(one, Part(1, 2))
    for number in (1, 2):  # another division than that of the measuring
        execute_part(one, Part(number, 2))
    finish(tmp_path)
    names = [shard.file for shard in one.plan.shards]
    assert len(names) == 5
    whole, parts = digests(tmp_path / "out"), digests(tmp_path / "parts")
    assert [whole[name] for name in names] == [parts[name] for name in names]


def test_a_lost_part_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=32)
    for number in (1, 3):
        execute_part(local_job(tmp_path), Part(number, 3))
    with pytest.raises(OutputError) as told:
        finish(tmp_path)
    assert "2 of 5 files were not written: model-00002" in str(told.value) and "part 2/3 again" in str(told.value)
    execute_part(local_job(tmp_path), Part(2, 3))
    changed = tmp_path / ".parts.partial" / "model-00003-of-00005.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        OutputError, match=r"are missing or were changed since they were written: model-00003.*\n.*part 3/3 again"
    ):
        finish(tmp_path)
    assert not (tmp_path / "parts").exists()
    assert execute_part(local_job(tmp_path), Part(3, 3)).remade == ("model-00003-of-00005.safetensors",)
    finish(tmp_path)


def test_a_part_twice_does_nothing_the_second_time(tmp_path: Path) -> None:
    prepare(tmp_path, layers=3, size=32)
    first = execute_part(local_job(tmp_path), Part(1, 2))
    file = tmp_path / ".parts.partial" / "model-00001-of-00003.safetensors"
    before = file.stat()
    second = execute_part(local_job(tmp_path), Part(1, 2))
    assert second.resumed == tuple(first.sha256) and file.stat().st_ino == before.st_ino
    assert second.sha256 == first.sha256


def test_parts_of_another_recipe_do_not_mix(tmp_path: Path) -> None:
    prepare(tmp_path, layers=3, size=32)
    execute_part(local_job(tmp_path), Part(1, 2))
    change_recipe(tmp_path, seed=4)
    with pytest.raises(OutputError, match="parts here from another recipe"):
        execute_part(local_job(tmp_path), Part(2, 2))
    with pytest.raises(OutputError, match="parts here from another recipe"):
        finish(tmp_path)


def test_a_whole_fuse_goes_on_from_parts(tmp_path: Path) -> None:
    prepare(tmp_path, layers=3, size=32)
    execute_part(local_job(tmp_path), Part(2, 3))
    one = local_job(tmp_path)
    written = execute(one.plan, one.recipe, one.out)
    assert written.resumed == ("model-00002-of-00003.safetensors",)
    assert NOTES not in {path.name for path in (tmp_path / "parts").iterdir()}


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=32)
    one = local_job(tmp_path)
    layout = one.plan.shards[0]
    with one.output(Part(1, 2)) as output:
        assert isinstance(output, LocalParts)
        with output.shard(layout) as writer:
            with pytest.raises(OutputError, match="another process is writing model-00001"):
                execute_part(local_job(tmp_path), Part(1, 2))
            with pytest.raises(OutputError, match="another process is writing this output"):
                execute(one.plan, one.recipe, one.out)
            execute_part(local_job(tmp_path), Part(2, 2))
            for name, entry in zip(layout.names, layout.entries, strict=True):
                del entry
                writer.write(one.plan.base.read(name))
    with pytest.raises(UsageError, match="is not a valid part"):
        parse_part("0/2")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/2/3", "a/b", "-1/2", "1/0", "²/3", ""])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid part"):
        parse_part(text)


KILLED = """
import sys
from pathlib import Path
from store_runs import local_job
from taskmerge.merging.parts import execute_part
from taskmerge.words.parts import parse_part
one = local_job(Path(sys.argv[1]))
print("planned", flush=True)
execute_part(one, parse_part(sys.argv[2]))
"""


def test_a_worker_that_is_killed_costs_its_own_files_only(tmp_path: Path) -> None:
    prepare(tmp_path, layers=8, size=640)
    run(tmp_path)
    whole = digests(tmp_path / "out")
    execute_part(local_job(tmp_path), Part(2, 2))
    staging = tmp_path / ".parts.partial"
    others = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.safetensors")}
    assert len(others) == 4
    killed = 0
    words = [sys.executable, "-c", KILLED, str(tmp_path), "1/2"]
    paths = os.pathsep.join([*sys.path, environment()["PYTHONPATH"]])
    for moment in range(6):
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, env={**environment(), "PYTHONPATH": paths}, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "planned\n"
            time.sleep(random.Random(moment).random() * 0.15)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 3
    execute_part(local_job(tmp_path), Part(1, 2))
    now = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.safetensors")}
    assert {name: now[name] for name in others} == others
    finish(tmp_path)
    parts = digests(tmp_path / "parts")
    assert all(parts[name] == whole[name] for name in whole if name.endswith(".safetensors"))
