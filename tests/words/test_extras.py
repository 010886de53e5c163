"""Without the extras: what trains nothing works, the rest says what to install, from a checkout too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import taskmerge
from taskmerge.words.extras import EXTRA_OF

ROOT = Path(taskmerge.__file__).parent.parent
_BARE = """
import sys
from taskmerge.words.extras import EXTRA_OF
sys.modules.update(dict.fromkeys(EXTRA_OF))  # as if they were not installed
sys.argv = ["taskmerge", *sys.argv[1:]]
from taskmerge.cli import main
main()
"""


def bare(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BARE, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from taskmerge import Checkpoint

    place = tmp_path_factory.mktemp("bare")
    for number, name in enumerate(("base", "a", "b")):
        Checkpoint.open({"model.layers.0.mlp.up_proj.weight": torch.ones(8, 8) + number}).save(place / name)
    (place / "p.jsonl").write_text('{"query": "a", "text": "b"}\n{"query": "c", "text": "d"}\n')
    (place / "r.yaml").write_text("base: base\nspecialists: {a: a, b: b}\noutput: {path: out}\n")
    (place / "t.yaml").write_text(
        "base: base\nspecialists: {a: a}\noutput: {path: out2}\nrecover: {train: ['*_projector'], data: p.jsonl}\n"
        "rehearse: {train: [backbone], data: {text: p.jsonl}}\nspecialize: {a: {data: p.jsonl}}\n"
        "drift: {specialist: a, probes: p.jsonl}\nevaluate: {retrieval: {x: p.jsonl}}\n"
    )
    return place


WITHOUT = (
    "inspect base", "fuse r.yaml", "verify out", "compare base a", "diff base base", "extract base a --out v",
    "extract base a --lora 2 --out l", "apply base v --out w", "apply base l --out x", "methods", "schema",
    "run r.yaml", "diagnose-drift --fused out --specialist a --base base",
)  # fmt: skip


def test_what_runs_no_model_needs_no_extra(folder: Path) -> None:
    for words in WITHOUT:
        done = bare(folder, *words.split())
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("demo", "demo"), ("graft base --modality audio --encoder log_mel --out g", "train"), ("run t.yaml", "train"),
        ("specialize t.yaml", "train"), ("recover t.yaml", "train"), ("rehearse t.yaml", "train"),
        ("diagnose-drift t.yaml", "train"), ("evaluate t.yaml", "train"), ("evaluate a --retrieval x=p.jsonl", "train"),
        ("evaluate a --mteb STS12", "eval"), ("stats a --probes p.jsonl", "train"),
        ("diagnose-drift --fused a --specialist a --probes p.jsonl", "train"),
        ("compare base a --plot x.png", "plots"),
    ],
)  # fmt: skip
def test_what_needs_one_says_which(folder: Path, words: str, extra: str) -> None:
    done = bare(folder, *words.split())
    assert done.returncode == 2, done.stderr
    assert "not installed: " in done.stderr and "Traceback" not in done.stderr
    assert f"pip install 'taskmerge[{extra}]'; from a checkout: pip install -c " in done.stderr
    assert f"-e '.[{extra}]'" in done.stderr


def test_every_extra_named_here_exists() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(EXTRA_OF.values()) <= set(extras)
    for module, extra in EXTRA_OF.items():
        names = {"PIL": "pillow", "sklearn": "scikit-learn", "pyarrow": "datasets"}  # datasets brings pyarrow
        wanted = names.get(module, module.replace("_", "-"))
        assert any(re.match(rf"{wanted}\b", row) for row in extras[extra]), (module, extra)
