"""What the stages of a run must say: what the fusion left out, what was not scored, what cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from live_models import moved, save
from omni_models import tiny_backbone
from pipeline_projects import run_quietly

from taskmerge.checkpoints.output.checking import check_made
from taskmerge.embedders import graft
from taskmerge.errors import UsageError
from taskmerge.pipeline.planned import machine_of, planned
from taskmerge.pipeline.state import Places, Run
from taskmerge.recipes import loads

PAIRS = [{"query": "a dog", "text": "a cat"}, {"query": "red sound", "text": "blue"}, {"query": "low", "text": "high"}]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A plain base, a sentence-transformers specialist of it and one of its own kind, and pairs."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    plain = tiny_backbone(tmp_path / "base")
    body = modules.Transformer(str(plain))
    whole = SentenceTransformer(modules=[body, modules.Pooling(32, "cls"), modules.Dense(32, 8)], device="cpu")
    save(moved(whole, 1), tmp_path / "whole")
    moved(body.auto_model, 2).save_pretrained(tmp_path / "bare")
    body.tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


def text(**changes: Any) -> str:
    rows = {"base": "base", "specialists": {"whole": "whole", "bare": "bare"}, "output": {"path": "fused"}}
    return json.dumps({**rows, "evaluate": {"retrieval": {"texts": "pairs.jsonl"}}, **changes})


def test_models_that_nothing_says_how_they_embed_are_named(project: Path) -> None:
    table, said = run_quietly(project, text())
    (line,) = [line for line in said if "not scored" in line]
    assert "base, specialist bare, fused" in line and "modules.json" in line and "whole" not in line
    rows = table["stages"]["evaluate"]["retrieval"]["results"]
    assert {row["variant"] for row in rows} == {"specialist whole"}


def test_a_run_says_what_its_fusion_left_out(project: Path) -> None:
    table, said = run_quietly(project, text(), until="fuse")
    assert any(line.startswith("  warning: whole runs Transformer → Pooling → Dense") for line in said)
    assert any(line.startswith("  left out of whole: ") and "2_Dense" in line for line in said)
    assert any("2_Dense" in line for line in table["stages"]["fuse"]["notes"])


def test_a_plan_refuses_pairs_that_cannot_be_read(project: Path) -> None:
    (project / "pairs.parquet").write_bytes(b"PAR1 nothing")
    recipe = loads(text(evaluate={"retrieval": {"texts": "pairs.parquet"}}), "r.yaml", project)
    with pytest.raises(UsageError, match=r"pairs.parquet: cannot be read"):
        planned(Run(recipe, Places(project / "fused")), machine_of("1x80GB"))


def test_an_input_that_is_there_but_cannot_be_opened_is_a_difference(tmp_path: Path) -> None:
    backbone = tiny_backbone(tmp_path / "backbone")
    folder = tmp_path / "grafted"
    graft(backbone, "image", "patches", "linear", folder)
    before = check_made(folder)
    assert not before.differences and any(line.startswith("input ") for line in before.checked)
    os.truncate(backbone / "model.safetensors", 100)
    (difference,) = check_made(folder).differences
    assert "cannot be opened" in difference and str(backbone) in difference
    backbone.rename(tmp_path / "gone")
    found = check_made(folder)
    assert not found.differences and any("not available" in line for line in found.unchecked)
