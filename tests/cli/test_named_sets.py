"""What has a name on the command line: two of one name are not one; and embeddings that no measure can use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_models import MAKERS, moved, save
from safetensors.torch import load_file, save_file

from taskmerge.embedders import open_embedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.measuring.drift import diagnose_drift
from taskmerge.measuring.evaluation import evaluate_retrieval

Command = Callable[..., Any]
PAIRS = [{"query": "a dog", "text": "a cat"}, {"query": "red sound", "text": "blue"}, {"query": "low", "text": "high"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    model = MAKERS["SentenceTransformer"](folder)
    for seed, name in enumerate(("base", "one/model", "two/model")):
        save(moved(model, seed) if seed else model, folder / name)
    shutil.copytree(folder / "one/model", folder / "broken")
    weights = folder / "broken/2_Dense/model.safetensors"
    tensors = load_file(weights)
    tensors["linear.weight"][0, 0] = float("nan")
    save_file(tensors, weights)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return folder


def test_models_of_one_name_are_compared_under_their_paths(models: Path, command: Command) -> None:
    paths = [str(models / name / "model") for name in ("one", "two")]
    ran = command("compare", models / "base", *paths, "--json")
    assert ran.code == 0 and set(json.loads(ran.out)["norms"]) == set(paths)
    ran = command("compare", models / "base", paths[0], f"b={paths[1]}", "--json")
    assert set(json.loads(ran.out)["norms"]) == {"model", "b"}
    for named in ([f"x={path}" for path in paths], [paths[0], paths[0]]):
        ran = command("compare", models / "base", *named)
        assert ran.code == 2 and "two models have the name" in ran.err and not ran.out


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["t=a.jsonl", "t=b.jsonl"], "two sets have the name 't': a.jsonl and b.jsonl"),
        (["x/a.jsonl", "y/a.jsonl"], "two sets have the name 'a'"),
        (["=a.jsonl"], "'=a.jsonl' is not of the form NAME=PATH"),
        (["a="], "'a=' is not of the form NAME=PATH"),
    ],
)
def test_sets_of_one_name_are_refused(models: Path, command: Command, sets: list[str], words: str) -> None:
    given = [part for one in sets for part in ("--retrieval", one)]
    ran = command("evaluate", models / "base", *given)
    assert ran.code == 2 and words in ran.err


def test_embeddings_without_values_name_their_model(models: Path) -> None:
    broken, pairs = models / "broken", models / "pairs.jsonl"
    with pytest.raises(CheckpointError, match=r"broken: 3 of 3 embeddings of text have NaN"):
        open_embedder(broken).encode(["a", "dog", "low"], "text")
    with pytest.raises(CheckpointError, match=r"broken: . of . embeddings of text have NaN"):
        evaluate_retrieval({"it": broken}, {"set": pairs})
    with pytest.raises(CheckpointError, match=r"broken: . of . embeddings of text have NaN"):
        diagnose_drift(broken, {"it": models / "one/model"}, models / "base", {"it": pairs})


@pytest.mark.parametrize("item", [1, True, 2.5, ["a"], [1.0, 2.0]])
def test_a_query_that_is_not_text_is_refused(item: Any) -> None:
    with pytest.raises(UsageError, match="row 1: its query is not text"):
        read_pairs([{"query": item, "text": "x"}, *PAIRS])


def test_items_that_the_library_does_not_read_are_refused_by_name(models: Path) -> None:
    pairs: list[Any] = [{"query": {"smell": "rose"}, "text": "x"}, *PAIRS]
    with pytest.raises(UsageError, match=r"cannot read these items: .*smell"):
        evaluate_retrieval({"it": models / "base"}, {"set": pairs})
