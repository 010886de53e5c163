"""Models read from a store and written to one: the same bytes as on a disk, no more read than is needed, never torn."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import digests, prepare, write_recipe
from disturbed_runs import change_recipe, run
from places import HELPERS
from s3_server import S3, at_random, serving
from safetensors.torch import save_file
from store_runs import forget, in_store, local_weights, store_job, upload, weights
from typer.testing import CliRunner

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.hub import locate
from taskmerge.cli.app import app
from taskmerge.errors import CheckpointError, OutputError, TaskmergeError, UsageError
from taskmerge.merging import execute
from taskmerge.merging.algebra import Checkpoint, TaskVector
from taskmerge.merging.parts import Job, execute_part, measure_part
from taskmerge.merging.verify import verified
from taskmerge.words.parts import Part

pytest.importorskip("obstore")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serving() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        forget()
        yield found
        forget()


def whole(job: Job, **options: Any) -> None:
    execute(job.plan, job.recipe, job.out, **options)


def folder_of(uri: str) -> Path:
    """The folder of this disk that stands for one in a store."""
    place = locate(uri)
    assert isinstance(place, Path)
    return place


def test_from_a_store_to_a_store_and_back(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=48)
    run(tmp_path)
    recipe = in_store(server, tmp_path)
    before = len(server.objects)
    whole(store_job(recipe))
    assert weights(server) == local_weights(digests(tmp_path / "out"))
    made = {name for name in server.objects if name.startswith("bucket/out/")}
    assert made == {f"bucket/out/{name}" for name in digests(tmp_path / "out")}
    assert len(server.objects) == before + len(made) and not server.uploads
    record = json.loads(server.objects["bucket/out/taskmerge.json"].data)
    assert record["inputs"]["base"]["files"]["model.safetensors"].startswith("etag:")
    assert "very-secret" not in server.objects["bucket/out/taskmerge.json"].data.decode()
    again = open_stored("s3://bucket/out")
    local = open_stored(tmp_path / "out")
    for name in local.tensors:
        assert again.read(name).tobytes() == local.read(name).tobytes()
    found = verified(folder_of("s3://bucket/out"), recipe_folder=tmp_path)
    assert not found.differences
    key = "bucket/out/model-00002-of-00005.safetensors"
    server.put(key, server.objects[key].data[:-1] + b"\1")
    forget()
    found = verified(folder_of("s3://bucket/out"), recipe_folder=tmp_path)
    assert any("sha256 is not the recorded one" in line for line in found.differences)
    assert any("entries differ" in line for line in found.differences)


@pytest.mark.parametrize("of", [1, 3, 8])
@pytest.mark.parametrize("trim", ["tensor", "model"])
def test_parts_in_a_store(of: int, trim: str, server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=400)
    change_recipe(tmp_path, merge={"method": "ties", "density": 0.2, "trim": trim})
    run(tmp_path)
    recipe = in_store(server, tmp_path)
    if trim == "model":
        with pytest.raises(OutputError, match="has not been measured yet"):
            execute_part(store_job(recipe), Part(1, of))
        for number in range(1, of + 1):
            said = measure_part(store_job(recipe), Part(number, of))
        assert said.done
    for number in random.Random(of).sample(range(1, of + 1), of):
        execute_part(store_job(recipe), Part(number, of))
        if number < of:
            with pytest.raises(CheckpointError, match="is an unfinished output"):
                open_stored("s3://bucket/out")
    job = store_job(recipe)
    whole(job, finish=True)
    assert weights(server) == local_weights(digests(tmp_path / "out"))
    assert not [name for name in server.objects if ".taskmerge-unfinished" in name]


def test_a_lost_part_is_named_in_a_store(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=5, size=32)
    recipe = in_store(server, tmp_path)
    for number in (1, 2, 3):
        execute_part(store_job(recipe), Part(number, 3))
    key = "bucket/out/model-00002-of-00005.safetensors"
    server.put(key, server.objects[key].data + b" ")
    with pytest.raises(
        OutputError, match=r"(?s)are missing or were changed since they were written: model-00002.*part 2/3 again"
    ):
        whole(store_job(recipe), finish=True)
    assert execute_part(store_job(recipe), Part(2, 3)).remade == ("model-00002-of-00005.safetensors",)
    whole(store_job(recipe), finish=True)
    with pytest.raises(OutputError, match="a model that taskmerge made"):
        execute_part(store_job(recipe), Part(2, 3))
    with pytest.raises(OutputError, match="--fresh replaces it"):
        whole(store_job(recipe))
    whole(store_job(recipe), fresh=True)
    server.put("bucket/out/mine.txt", b"x")
    with pytest.raises(OutputError, match=r"did not write: mine\.txt"):
        whole(store_job(recipe), fresh=True)


def test_what_is_not_ours_is_left_alone(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=32)
    recipe = in_store(server, tmp_path)
    server.put("bucket/out/model.safetensors", b"mine")
    before = dict(server.objects)
    with pytest.raises(OutputError, match="was not made by taskmerge"):
        whole(store_job(recipe))
    with pytest.raises(OutputError, match="would be in the same place as an input"):
        whole(store_job(recipe, "s3://bucket/base"))
    with pytest.raises(OutputError, match="would be in the same place as an input"):
        whole(store_job(recipe, "s3://bucket/base/inside"))
    assert server.objects == before


def test_faults_at_random_tear_nothing(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=6, size=96)
    run(tmp_path)
    recipe = in_store(server, tmp_path)
    failed = 0
    for attempt in range(60):
        server.fault = at_random(0.25, ("503", "cut", "slow", "expired"), attempt)
        try:
            forget()
            whole(store_job(recipe))
            break
        except TaskmergeError as error:
            failed += 1
            assert "very-secret" not in str(error)
            assert "bucket/out/taskmerge.json" not in server.objects
        if attempt % 4 == 3:
            server.fault = at_random(0.05, ("503", "cut"), attempt)
            try:
                whole(store_job(recipe))
                break
            except TaskmergeError:
                continue
    server.fault = lambda method, key: None
    assert failed >= 3
    assert weights(server) == local_weights(digests(tmp_path / "out"))
    assert "bucket/out/taskmerge.json" in server.objects


def test_an_input_that_is_written_to_is_refused(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=3, size=64)
    recipe = in_store(server, tmp_path)
    job = store_job(recipe)
    key = "bucket/image/model.safetensors"
    server.put(key, server.objects[key].data[:-1] + b"\2")
    with pytest.raises(CheckpointError, match="was written to while it was being read"):
        whole(job)
    assert "bucket/out/taskmerge.json" not in server.objects
    forget()
    job = store_job(recipe)

    def touched(_: int) -> None:
        server.put("bucket/base/tokenizer.json", b'{"a": 1}')

    with pytest.raises(CheckpointError, match="was written to while it was being read"):
        whole(job, progress=touched)


def test_two_writers_do_not_meet(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=3, size=64)
    recipe = in_store(server, tmp_path)
    job, other = store_job(recipe), store_job(recipe)
    met: list[pytest.ExceptionInfo[OutputError]] = []

    def second(_: int) -> None:
        if not met:
            with pytest.raises(OutputError, match="another process is writing this output") as told:
                whole(other)
            met.append(told)

    whole(job, progress=second)
    assert met and weights(server)


def test_no_more_is_read_than_is_needed(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=4, size=2200)  # tensors of more than two blocks
    change_recipe(tmp_path, merge={"method": "ties", "density": 0.3})
    recipe = in_store(server, tmp_path)
    for number in (1, 2):
        forget()
        execute_part(store_job(recipe), Part(number, 2))
    job = store_job(recipe)
    needed = job.plan.bytes_read
    read = sum(count for key, count in server.read.items() if key.endswith(".safetensors"))
    assert needed <= read <= 1.03 * needed, (read, needed)
    key = "bucket/base/model.safetensors"
    assert server.largest[key] <= 5 << 20 < len(server.objects[key].data)
    written = sum(count for name, count in server.written.items() if name.startswith("bucket/out/model"))
    assert written == job.plan.bytes_written


def test_a_whole_bucket(server: S3, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there are no objects there"):
        locate("s3://empty")
    prepare(tmp_path, layers=2, size=32)
    upload(server, tmp_path / "base", "models")
    assert open_stored("s3://models").tensors == open_stored(tmp_path / "base").tensors
    file = open_stored("s3://models/model.safetensors")
    name = next(iter(file.tensors))
    assert file.read(name).tobytes() == open_stored(tmp_path / "base").read(name).tobytes()


@pytest.mark.parametrize("text", ["s3://user:password@bucket/x", "s3://b/x?X-Amz-Signature=1", "s3://"])
def test_uris_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as told:
        locate(text)
    assert "password@" not in str(told.value) and "Signature=1" not in str(told.value)


def test_any_other_file_system(tmp_path: Path) -> None:
    """Through fsspec: what it keeps in memory."""
    import fsspec

    prepare(tmp_path, layers=3, size=48)
    run(tmp_path)
    memory = fsspec.filesystem("memory")
    for label in ("base", "image", "audio"):
        for path in (tmp_path / label).iterdir():
            memory.pipe(f"/m/{label}/{path.name}", path.read_bytes())
    text = (tmp_path / "merge.yaml").read_text()
    for label in ("base", "image", "audio"):
        text = text.replace(f": {label}\n", f": memory://m/{label}\n")
    (tmp_path / "memory.yaml").write_text(text)
    forget()
    for number in (2, 1):
        execute_part(store_job(tmp_path / "memory.yaml", "memory://m/out"), Part(number, 2))
    whole(store_job(tmp_path / "memory.yaml", "memory://m/out"), finish=True)
    expected = digests(tmp_path / "out")
    import hashlib

    for name in local_weights(expected):
        assert hashlib.sha256(memory.cat(f"/m/out/{name}")).hexdigest() == expected[name]
    assert not memory.find("/m/out/.taskmerge-unfinished")
    memory.rm("/m", recursive=True)


def test_adapters_and_task_vectors_in_a_store(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=32)
    (tmp_path / "lora").mkdir()
    start = "base_model.model.model.layers.1.mlp"
    held = {f"{start}.lora_A.weight": torch.randn(2, 32), f"{start}.lora_B.weight": torch.randn(32, 2)}
    save_file(held, tmp_path / "lora" / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["mlp"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(said))
    (Checkpoint.open(tmp_path / "image") - Checkpoint.open(tmp_path / "base")).save(tmp_path / "vector")
    rows = {"a": {"model": "base", "adapter": "lora"}, "b": {"model": "vector", "weight": 0.5}}
    write_recipe(tmp_path, base="base", specialists=rows, output={"path": "out"})
    run(tmp_path)
    for label in ("base", "lora", "vector"):
        upload(server, tmp_path / label, f"bucket/{label}")
    remote = {"a": {"model": "s3://bucket/base", "adapter": "s3://bucket/lora"},
              "b": {"model": "s3://bucket/vector", "weight": 0.5}}  # fmt: skip
    (tmp_path / "far").mkdir()
    write_recipe(tmp_path / "far", base="s3://bucket/base", specialists=remote, output={})
    whole(store_job(tmp_path / "far" / "merge.yaml"))
    assert weights(server) == local_weights(digests(tmp_path / "out"))


def test_what_cannot_be_read_in_ranges_is_named(server: S3, tmp_path: Path) -> None:
    server.put("bucket/old/pytorch_model.bin", b"PK\x03\x04" + bytes(100))
    server.put("bucket/old/config.json", b"{}")
    with pytest.raises(CheckpointError, match="only safetensors can be read in ranges"):
        open_stored("s3://bucket/old")
    with pytest.raises(CheckpointError, match="there are no objects there"):
        open_stored("s3://bucket/nowhere")
    server.put("bucket/model/model.safetensors", b"\xff" * 50)
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        open_stored("s3://bucket/model")
    assert not any(server.read[key] for key in server.read if key.endswith(".bin"))


def test_the_stages_of_a_run_say_that_they_need_a_disk(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=2, size=32)
    recipe = in_store(server, tmp_path)
    told = CliRunner().invoke(app, ["run", str(recipe)])
    assert isinstance(told.exception, TaskmergeError)
    assert "is in a store" in str(told.exception)


@pytest.mark.slow
def test_a_worker_killed_thirty_times_costs_its_own_files(server: S3, tmp_path: Path) -> None:
    prepare(tmp_path, layers=8, size=640)
    run(tmp_path)
    recipe = in_store(server, tmp_path)
    execute_part(store_job(recipe), Part(2, 2))
    others = {key: one.etag for key, one in server.objects.items() if key.startswith("bucket/out/model")}
    times = {key: server.objects[key].when for key in others}
    assert len(others) == 4
    server.fault = lambda method, key: "slow" if "bucket/out/model" in key else None
    script = [sys.executable, str(HELPERS / "killing_parts.py"), str(recipe), "s3://bucket/out", "1/2", "30"]
    paths = os.pathsep.join([*sys.path, str(HELPERS)])
    done = subprocess.run(
        script,
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "PYTHONPATH": paths, "TASKMERGE_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] >= 30 and found["ended"] == 0, (found, done.stderr)
    assert {key: server.objects[key].when for key in others} == times
    whole(store_job(recipe), finish=True)
    assert weights(server) == local_weights(digests(tmp_path / "out"))


@pytest.mark.parametrize("far", [False, True])
def test_a_task_vector_in_parts(far: bool, server: S3, tmp_path: Path, command: Any) -> None:
    prepare(tmp_path, layers=5, size=32)
    models = [tmp_path / "base", tmp_path / "image"]
    whole_one = tmp_path / "whole"
    assert command("extract", *models, "--out", whole_one, "--shard-size", "5kB").code == 0
    out = "s3://bucket/vector" if far else tmp_path / "vector"
    if far:
        in_store(server, tmp_path)
        models = [Path("s3://bucket/base"), Path("s3://bucket/image")]
    said = ["extract", *(str(one).replace("s3:/b", "s3://b") for one in models), "--out", out, "--shard-size", "5kB"]
    assert command(*said, "--part", "2/2").code == 0
    told = command(*said, "--finish")
    assert told.code == 1 and "part 1/2 again" in told.err
    assert command(*said, "--part", "1/2").code == 0
    assert command(*said, "--finish").code == 0
    found = weights(server, "bucket/vector") if far else local_weights(digests(tmp_path / "vector"))
    assert len(found) == 5
    one = Checkpoint.open(tmp_path / "base")
    expected = Checkpoint.open(tmp_path / "image") - one
    moved = one + TaskVector.load(str(out), one)
    assert len(expected) == 5
    for name in expected:
        assert torch.equal(torch.as_tensor(moved[name]), torch.as_tensor((one + expected)[name]))
    assert command(*said[:-2], "--form", "sign", "--part", "1/2").code == 2
