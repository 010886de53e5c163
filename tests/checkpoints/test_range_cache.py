"""Ranges of remote files on this disk: the same bytes, never out of date, never beyond the budget."""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import digests, prepare
from disturbed_runs import run
from s3_server import serving
from store_runs import forget, in_store, local_weights, store_job, weights

from taskmerge.checkpoints.stores import cached
from taskmerge.checkpoints.stores.blocks import blocks
from taskmerge.checkpoints.stores.cached import RangeCache, use_cache
from taskmerge.errors import UsageError
from taskmerge.merging import execute

BUDGET = 1 << 20


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def content(number: int) -> bytes:
    return random.Random(number).randbytes(20_000)


def test_a_range_is_fetched_once_and_anew_for_another_version(tmp_path: Path) -> None:
    asked: list[object] = []

    def get(cache: RangeCache, *key: object) -> bytes:
        return cache.get(key, 20_000, lambda: asked.append(key) or content(1))  # type: ignore[func-returns-value]

    cache = RangeCache(tmp_path, BUDGET)
    assert [get(cache, "s3://b/f", "etag", 9, 0) for _ in range(2)] == [content(1)] * 2 and len(asked) == 1
    assert get(RangeCache(tmp_path, BUDGET), "s3://b/f", "etag", 9, 0) == content(1) and len(asked) == 1
    for other in (("s3://b/f", "etag2", 9, 0), ("s3://b/f", "etag", 8, 0), ("s3://b/g", "etag", 9, 0)):
        get(cache, *other)
    assert len(asked) == 4
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"\0\0")  # torn
    assert get(cache, "s3://b/f", "etag", 9, 0) == content(1) and len(asked) == 5


def test_what_was_used_longest_ago_goes_and_strangers_stay(tmp_path: Path) -> None:
    (tmp_path / "a stranger's").write_bytes(b"x" * 500)
    cache = RangeCache(tmp_path, BUDGET)
    for number in range(120):
        assert cache.get((number,), 20_000, lambda n=number: content(n)) == content(number)  # type: ignore[misc]
        assert held(tmp_path) <= BUDGET + 500
        for age, path in enumerate(sorted(tmp_path.glob("*.range"), key=lambda one: one.stat().st_mtime_ns)):
            os.utime(path, (age, age))
    there = {number for number in range(120) if cache.get((number,), 20_000, lambda: b"") == content(number)}
    assert there and min(there) > 60 and max(there) == 119
    assert (tmp_path / "a stranger's").exists()


def _share(folder: Path, seed: int) -> bool:
    cache, draw = RangeCache(folder, BUDGET), random.Random(seed)
    numbers = [draw.randrange(80) for _ in range(200)]
    return all(cache.get((n,), 20_000, lambda n=n: content(n)) == content(n) for n in numbers)  # type: ignore[misc]


def test_two_processes_share_it(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as processes:
        assert all(processes.map(_share, [tmp_path] * 2, [1, 2]))
    assert held(tmp_path) <= BUDGET
    assert all(path.suffix == ".range" for path in tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert RangeCache(tmp_path / "file" / "inside", BUDGET).get(("k",), 20_000, lambda: content(3)) == content(3)


def test_a_merge_made_again_reads_no_tensor_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(tmp_path, layers=3, size=48)
    run(tmp_path)
    read = []
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        recipe = in_store(server, tmp_path)
        use_cache(128 << 20)
        try:
            for out in ("one", "two"):
                forget()
                blocks._held.clear()
                server.read.clear()
                job: Any = store_job(recipe, f"s3://bucket/{out}")
                execute(job.plan, job.recipe, job.out)
                assert weights(server, f"bucket/{out}") == local_weights(digests(tmp_path / "out"))
                read.append(sum(size for key, size in server.read.items() if key.endswith("/model.safetensors")))
            assert read[0] > 10_000 and read[1] == 0
            key = "bucket/base/model.safetensors"
            server.put(key, server.objects[key].data[:-2] + b"\1\1")  # written to: nothing kept of it counts
            forget()
            server.read.clear()
            job = store_job(recipe, "s3://bucket/three")
            execute(job.plan, job.recipe, job.out)
            assert server.read[key] > 0 and weights(server, "bucket/three") != weights(server, "bucket/two")
        finally:
            use_cache(None)
    forget()
    blocks._held.clear()


def test_without_a_home_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "cache_folder", lambda: None)
    with pytest.raises(UsageError, match="needs a cache folder"):
        use_cache(128 << 20)
    with pytest.raises(UsageError, match="are too few"):
        use_cache(1000)
