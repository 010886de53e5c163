"""What every test runs under: no network, no clock, and no traces in the home folder of whoever runs the tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure, and CI must say the same twice; at the desk each run tries new examples.
settings.register_profile(
    "taskmerge", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("taskmerge")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def hashes_forgotten_afterwards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remembered sha256 of files that end with the run go nowhere else."""
    from taskmerge.checkpoints import hashing
    from taskmerge.embedders import encodings

    path = tmp_path_factory.mktemp("hashes") / "sha256.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_cache", lambda: path)
        patch.setattr(encodings, "cache_folder", lambda: path.parent)
        yield


class Ran(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`command("fuse", path)` runs `taskmerge fuse PATH` in this process."""
    import taskmerge.cli

    def run(*words: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["taskmerge", *map(str, words)])
        code = 0
        try:
            taskmerge.cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        ran = Ran(code, *capsys.readouterr())
        if "--json" in words and words[0] != "schema" and not {"-h", "--help"} & set(words):
            from json_shapes import check_documented

            check_documented(str(words[0]), ran.out)
        return ran

    return run
