"""How a Ray cluster is found or started, and what its tasks may ask for; Ray itself is not needed here."""

from __future__ import annotations

from typing import Any

import pytest

from taskmerge.errors import UsageError
from taskmerge.words import ray_cluster
from taskmerge.words.parts import Part
from taskmerge.words.ray_cluster import Cluster, device_of_task


class Ray:
    """Stands for the library: starts that fail, then a cluster that runs a task as soon as it is asked for."""

    def __init__(self, *failures: str, gpus: int = 0) -> None:
        self.failures, self.gpus = list(failures), gpus
        self.started: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.options: dict[str, Any] = {}

    def init(self, *address: Any, **options: Any) -> None:
        self.started.append((address, options))
        if self.failures:
            raise RuntimeError(self.failures.pop(0))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0, **({"GPU": float(self.gpus)} if self.gpus else {})}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0}},
                {"Alive": True, "Resources": {"CPU": 2.0}}]  # fmt: skip

    def remote(self, **options: Any) -> Any:
        self.options = options

        class Task:
            def __init__(self, function: Any) -> None:
                self.remote = function

        return Task

    def wait(self, running: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return running[:1], running[1:]

    def get(self, one: Any) -> Any:
        return one


LATE = "The current node timed out during startup."


def test_a_busy_machine_gets_more_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Ray(LATE, LATE)
    ray_cluster._connect(ray, None)
    assert len(ray.started) == 3 and all(options["include_dashboard"] is False for _, options in ray.started)
    for failures, attempts in (((LATE, LATE, LATE, LATE), 3), (("no right to do that", LATE), 1)):
        ray = Ray(*failures)
        with pytest.raises(RuntimeError):
            ray_cluster._connect(ray, None)
        assert len(ray.started) == attempts


@pytest.mark.parametrize("from_environment", [False, True])
def test_a_cluster_that_is_named_is_only_connected_to(from_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if from_environment:
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    ray = Ray(LATE)
    with pytest.raises(RuntimeError):
        ray_cluster._connect(ray, None if from_environment else "head:6379")
    (_, options) = ray.started[0]
    assert len(ray.started) == 1 and "include_dashboard" not in options


def cluster(ray: Ray) -> Cluster:
    made = Cluster(None)
    made._ray = ray
    return made


def test_what_a_task_asks_for_exists() -> None:
    assert device_of_task("cuda:3") == ("cuda", True)
    assert device_of_task("cpu") == ("cpu", False) and device_of_task(None) == (None, False)
    ray, found = Ray(), list[tuple[int, Any]]()
    parts = [Part(number, 3) for number in (1, 2, 3)]
    cluster(ray).run(str, (), parts, lambda part, one: found.append((part.number, one)), processors=16)
    assert ray.options["num_cpus"] == 4, "the largest machine that is alive"
    assert sorted(found) == [(1, "1/3"), (2, "2/3"), (3, "3/3")]
    with pytest.raises(UsageError, match="no GPU"):
        cluster(Ray()).run(str, (), parts, lambda *_: None, gpu=True)
    ray = Ray(gpus=1)
    cluster(ray).run(str, (), parts, lambda *_: None, gpu=True)
    assert ray.options["num_gpus"] == 1
