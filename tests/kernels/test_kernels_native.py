"""The kernels' machine code: built once, loaded without numba, rebuilt when damaged."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from safetensors.numpy import save_file

from taskmerge.kernels import on_prepare, preparing
from taskmerge.kernels.compiled import building, native

PROGRAM = """
import sys
import numpy as np
from taskmerge.kernels import Elect, KeepLargest, Operand, Program, combine, measure
base, other = np.zeros(1000, np.float32), np.linspace(-1, 1, 1000, dtype=np.float32)
pair = [Operand("F32", (1000,), lambda start, stop, a=a: a[start:stop]) for a in (base, other)]
program = Program((2.0,), sparsify=KeepLargest(0.1), consensus=Elect(average="none"))
out = np.empty(1000, np.float32)
combine(pair[0], pair[1:], program, measure(pair[0], pair[1:], program, ()), (), 0, 1000, out, "F32")
assert (out[50:950] == 0).all() and (out[:50] == 2 * other[:50]).all() and (out[950:] == 2 * other[950:]).all()
print("numba" in sys.modules)
"""


def imports_numba(cache: Path, **environment: str) -> bool:
    """Merges something in a fresh process; whether numba had to be imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() == "True"


def test_what_is_built_is_loaded_without_numba() -> None:
    folder = native.cache_folder()
    assert folder is not None
    imports_numba(folder.parent.parent)
    assert not imports_numba(folder.parent.parent)


def test_a_damaged_build_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "kernels" / "build.o"
    native.write(path, "symbol", b"machine code\nof many lines")
    assert native.read(path) == ("symbol", b"machine code\nof many lines")
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", b"{}\nx", b"[]\nx", whole.replace(b"code", b"c0de")):
        path.write_bytes(damaged)
        assert native.read(path) is None
    assert native.read(tmp_path / "absent.o") is None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was announced, in a process that has announced nothing yet."""
    said: list[str] = []
    monkeypatch.setattr(preparing, "_announced", False)
    on_prepare(lambda: said.append("preparing"))
    yield said
    on_prepare(None)


def test_preparing_is_announced_once_and_only_where_something_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = "ranking.chances_of_ranks", "ranking.pack_short"
    for name in names:
        native.load(name)
    assert told == ["preparing"]
    monkeypatch.setattr(preparing, "_announced", False)
    monkeypatch.setattr(native, "build", lambda *_: pytest.fail("built again"))
    for name in names:
        native.load(name)
    assert told == ["preparing"]
    folder = native.cache_folder()
    assert folder is not None
    built = sorted(path.name.partition("-")[2] for path in folder.iterdir())
    assert built == ["ranking.chances_of_ranks.o", "ranking.pack_short.o"]


def test_an_entry_needs_nothing_of_the_process(tmp_path: Path) -> None:
    """Machine code that called into numba's run time could not be loaded without it."""
    symbol, code = building.build("ranking.chances_of_ranks", native.ENTRIES["ranking.chances_of_ranks"])
    assert symbol.encode() in code and b"NRT_" not in code and b"numba_" not in code


def test_building_leaves_numba_as_it_was() -> None:
    from numba import njit

    building.build("ranking.pack_short", native.ENTRIES["ranking.pack_short"])
    assert njit(lambda x: x + 1)(1) == 2 and gc.isenabled()


@pytest.mark.slow
def test_a_fuse_says_once_what_is_prepared(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": np.full((5000, 9), number, np.float32)}, tmp_path / name / "model.safetensors")
    (tmp_path / "merge.yaml").write_text(
        f"base: {tmp_path / 'base'}\nspecialists: {{one: {{model: {tmp_path / 'one'}}}}}\n"
        "merge: {method: ties}\noutput: {path: out}\n"
    )
    command = [sys.executable, "-m", "taskmerge", "fuse", str(tmp_path / "merge.yaml"), "--fresh"]
    lines = [
        subprocess.run(
            command, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, capture_output=True, text=True
        ).stderr.count("Preparing kernels for this processor (once)")
        for _ in range(2)
    ]
    assert lines == [1, 0]


@pytest.mark.slow
def test_built_once_per_cache(tmp_path: Path) -> None:
    assert imports_numba(tmp_path)
    assert not imports_numba(tmp_path)


@pytest.mark.slow
def test_where_machine_code_cannot_be_loaded_numba_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such engine")

    name = "scanning.magnitudes"
    native.load(name)
    monkeypatch.setattr(native.llvm, "create_mcjit_compiler", refuse)
    with pytest.raises(RuntimeError, match="no such engine"):
        native.load(name)
    fallback = native._loaded(name)
    base, other = np.zeros(300, np.float32), np.linspace(-1, 1, 300, dtype=np.float32)
    out, space = np.empty(300, np.uint32), np.empty(768)
    inputs = np.array([native.address_of(base), native.address_of(other)])
    rows = inputs, np.array([2, 2]), np.array([300])
    fallback(1, 1, *(native.address_of(row) for row in rows), 300, native.address_of(out), native.address_of(space))
    np.testing.assert_array_equal(out.view(np.float32), np.abs(other))


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "taskmerge").write_text("a file where the folder should be")
    assert imports_numba(tmp_path)
    assert imports_numba(tmp_path)


def test_without_numba_torch_does_the_work(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'numba' else real(name, *rest)\n"
    )
    assert not imports_numba(tmp_path, PYTHONPATH=f"{hidden}{os.pathsep}{ROOT}")
    assert not (tmp_path / "taskmerge").exists()
