"""mteb's results are kept and taken again: after a kill, never of another model, other data or half a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mteb_stage
import pytest
import torch
from mteb_stage import PAIRS, tasks
from omni_models import tiny_backbone
from places import HELPERS, ROOT

from taskmerge.embedders import open_embedder
from taskmerge.embedders.identity import revision_of
from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation.mteb_adapter import as_mteb_model, check_tasks, local_task, run_mteb

pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("text") / "plain")


def killed(model: Path, results: Path, fatal: str, log: Path) -> None:
    """A run in a process of its own, which is killed when a task begins."""
    path = os.pathsep.join([str(ROOT), str(HELPERS)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, str(HELPERS / "mteb_stage.py"), str(model), str(results), str(log), fatal]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_run_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    killed(folder, tmp_path / "results", "LocalSecond", log)
    assert json.loads(log.read_text()) == {"LocalFirst": 2 * len(PAIRS)}
    mteb_stage.main(str(folder), str(tmp_path / "results"), str(log))
    embedded = json.loads(log.read_text())
    assert "LocalFirst" not in embedded  # not run twice
    assert embedded["LocalSecond"] == 2 * len(PAIRS)
    assert embedded["scores"] == run_mteb({"tiny": folder}, tasks(), keep=False).scores
    assert set(embedded["scores"]["tiny"]) == {"LocalFirst", "LocalSecond"}
    (place,) = (tmp_path / "results" / "results" / "local__tiny").iterdir()
    assert place.name == embedded["revisions"]["tiny"] == revision_of(open_embedder(folder))
    assert {path.name for path in place.iterdir()} == {
        "LocalFirst.json", "LocalSecond.json", "model_meta.json", "run_settings.jsonl"
    }  # fmt: skip


def scores(source: Any, results: Path, pairs: Any = PAIRS, **options: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    found = run_mteb({"tiny": source}, [local_task("LocalFirst", pairs)], results=results, say=said.append, **options)
    return dict(found.scores), said


def test_what_is_half_written_or_of_other_data_is_made_again(folder: Path, tmp_path: Path) -> None:
    first, _ = scores(folder, tmp_path)
    (place,) = (tmp_path / "results" / "local__tiny").iterdir()
    result = place / "LocalFirst.json"
    result.write_text(result.read_text()[:100])
    again, said = scores(folder, tmp_path)
    assert again == first
    assert any("cannot be read" in line for line in said)
    other, said = scores(folder, tmp_path, PAIRS[:4])
    assert any("made from other data" in line for line in said)
    assert other != first


def test_a_changed_model_is_given_no_old_scores(folder: Path, tmp_path: Path) -> None:
    model = open_embedder(folder)
    own = revision_of(model)
    assert revision_of(open_embedder(folder)) == own
    scores(model, tmp_path)
    model.encode(["a dog of the high rain"] * 3)  # what a tokenizer remembers of its last batch is no setting
    assert revision_of(model) == own
    with torch.no_grad():
        next(iter(model.state_dict.values.values())).view(-1)[0].add_(1e-3)
    assert revision_of(model) != own
    scores(model, tmp_path)
    module: Any = model.module
    module.prompts["query"] = "red "
    scores(model, tmp_path)
    assert len(list((tmp_path / "results" / "local__tiny").iterdir())) == 3


def test_the_users_prompts_and_dimensions_are_experiments_of_their_own(folder: Path, tmp_path: Path) -> None:
    whole = scores(folder, tmp_path)[0]["tiny"]
    for query in ("red: ", "red? "):  # mteb would file both as "red_ "
        scores(folder, tmp_path, prompts={"query": query})
    found, _ = scores(folder, tmp_path, dimensions=[4])
    assert list(found) == ["tiny", "tiny, 4 dimensions"]
    assert found["tiny"] == whole
    (place,) = (tmp_path / "results" / "local__tiny").iterdir()
    assert len(list((place / "experiments").iterdir())) == 3
    meta = json.loads(next((place / "experiments").glob("*4*/model_meta.json")).read_text())
    assert (meta["embed_dim"], meta["experiment_kwargs"]) == (4, {"embed_dim": 4})


def test_the_record_says_all_that_a_model_shows(folder: Path, tmp_path: Path) -> None:
    from mteb import ResultCache

    model = open_embedder(folder)
    said = {"release_date": "2026-11-26", "training_datasets": {"MSMARCO"}, "reference": "https://example.org/tiny"}
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: them/base\n---\n# Tiny\n"
    )
    meta = as_mteb_model(open_embedder(folder), "us/tiny", meta=said).mteb_model_meta
    shown = sum(tensor.numel() for tensor in model.state_dict.values.values())
    assert (meta.name, meta.n_parameters, meta.embed_dim, meta.max_tokens) == ("us/tiny", shown, 32, 64)
    module: Any = model.module
    assert meta.n_embedding_parameters == module[0].auto_model.get_input_embeddings().weight.numel()
    assert meta.memory_usage_mb == pytest.approx(4 * shown / 2**20, abs=0.01)
    assert (meta.license, meta.adapted_from, meta.languages) == ("apache-2.0", "them/base", ["deu-Latn", "eng-Latn"])
    assert (meta.release_date, meta.training_datasets) == ("2026-11-26", {"MSMARCO"})
    found = run_mteb({"us/tiny": folder}, [local_task("LocalFirst", PAIRS)], results=tmp_path, meta=said)
    loaded = ResultCache(tmp_path).load_results(tasks=[local_task("LocalFirst", PAIRS)])  # as a submission reads it
    assert loaded.model_results[0].model_revision == found.revisions["us/tiny"]
    with pytest.raises(UsageError, match="no field 'licence'"):
        as_mteb_model(model, "tiny", meta={"licence": "mit"})


def test_benchmarks_by_name() -> None:
    check_tasks(["MAEB", "MVEB", "MIEB-lite", "ViDoRe(v2)", "vidore (V1)"])
    with pytest.raises(UsageError) as error:
        check_tasks(["ViDoRe", "MOEB-nano"])
    assert "'ViDoRe' matches several mteb benchmarks" in str(error.value)
    assert "ViDoRe(v1), ViDoRe(v2)" in str(error.value)
    assert "no mteb task or benchmark 'MOEB-nano'" in str(error.value)
    assert "another version may have more" in str(error.value)


def test_two_variants_do_not_share_a_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="have the same name in mteb's results"):
        run_mteb({"a b": folder, "a_b": folder}, [local_task("LocalFirst", PAIRS)], keep=False)
