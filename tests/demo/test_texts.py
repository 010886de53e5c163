"""`taskmerge demo --texts`: what is laid out is what is shipped, and its pairs were never trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from taskmerge.demo import texts
from taskmerge.demo.folder import begin
from taskmerge.demo.pairs import in_words, splits
from taskmerge.demo.unpacking import minilm

Command = Callable[..., Any]
MOVED = "encoder.layer.3.intermediate.dense.weight"


def test_what_is_laid_out(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "first"
    ran = command("demo", "--texts", "--out", out)
    assert ran.code == 0 and Path(ran.out.strip()) == out, ran.err
    original = load_file(minilm() / "model.safetensors")
    for task in texts.TASKS:
        made = load_file(out / task / "model.safetensors")
        shipped = load_file(texts.SHIPPED / task / "model.safetensors")
        left, right = (shipped[name].double() for name in sorted(shipped) if name.startswith(f"{MOVED}#"))
        product = left @ right if left.shape[1] == right.shape[0] else right @ left
        np.testing.assert_allclose(made[MOVED], original[MOVED].double() + product, atol=1e-6)
        assert float(product.norm()) > 0
        untouched = [name for name in made if f"{name}#" not in "".join(shipped) and "embeddings" in name]
        assert untouched and all(made[name].equal(original[name]) for name in untouched)
        for split, count in (("test", texts.TEST), ("dev", texts.DEV)):
            rows = [json.loads(line) for line in (out / "pairs" / f"{task}_{split}.jsonl").read_text().splitlines()]
            assert len(rows) == count and all(set(row) == {"query", "text"} for row in rows)
    story = command("demo", "--out", out)
    assert story.code == 1 and "another demo" in story.err
    (out / "pairs" / "typos_dev.jsonl").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    again = command("demo", "--texts", "--out", out, "--json")
    assert again.code == 0 and json.loads(again.out)["models"]["typos"] == str(out / "typos")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == before


def test_no_target_stands_in_two_splits() -> None:
    for each in splits().values():
        targets = {name: {target for _, target in pairs} for name, pairs in each.items()}
        assert {name: len(found) for name, found in targets.items()} == {"test": 200, "dev": 200, "train": 2600}
        assert not targets["test"] & targets["train"] and not targets["dev"] & targets["train"]
        assert not targets["test"] & targets["dev"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(7, "seven"), (40, "forty"), (40_217, "forty thousand two hundred seventeen"), (9_013, "nine thousand thirteen")],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


def test_what_is_shipped_is_small() -> None:
    assert sum(path.stat().st_size for path in texts.SHIPPED.rglob("*") if path.is_file()) < 400_000


def test_what_is_in_the_way_is_told_first(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = command("demo", "--texts", "--out", tmp_path)
    assert ran.code == 1 and "something other" in ran.err and len(list(tmp_path.iterdir())) == 1
    out = tmp_path / "linked"
    begin(out, texts.MARK)
    (out / "pairs").symlink_to(tmp_path)
    ran = command("demo", "--texts", "--out", out)
    assert ran.code == 1 and "is a link" in ran.err and len(list(out.iterdir())) == 2
    ran = command("demo", "--texts", "--from-scratch", "--out", tmp_path / "out")
    assert ran.code == 2 and "--from-scratch" in ran.err and not (tmp_path / "out").exists()
    monkeypatch.setattr("taskmerge.words.extras.find_spec", lambda name: None)
    ran = command("demo", "--texts", "--out", tmp_path / "out")
    assert ran.code == 2 and "taskmerge[demo]" in ran.err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_makes_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "STEPS", {"numbers": 2, "typos": 2})
    texts.train(tmp_path, lambda line: None)
    for task in texts.TASKS:
        one, other = (
            {name: value.shape for name, value in load_file(folder / task / "model.safetensors").items()}
            for folder in (tmp_path, texts.SHIPPED)
        )
        assert one == other
