"""MMEB-V2's own evaluation: the measures against trec_eval, the files as its program writes them, its report."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omni_models import WORDS, picture, tiny_backbone

from taskmerge.embedders import graft, open_embedder
from taskmerge.errors import OutputError, UsageError
from taskmerge.measuring.evaluation.mmeb import DATA_SETS, evaluate_mmeb, mmeb_report
from taskmerge.metrics.ranking import mean_scores, ranking_scores

PUBLISHED = (
    "hit@1 hit@5 hit@10 ndcg_linear@1 ndcg_linear@5 ndcg_linear@10 ndcg_exponential@1 ndcg_exponential@5 "
    "ndcg_exponential@10 precision@1 precision@5 precision@10 recall@1 recall@5 recall@10 f1@1 f1@5 f1@10 map@1 map@5 "
    "map@10 mrr@1 mrr@5 mrr@10 num_pred num_data"
).split()
"""The keys of a published NAME_score.json, in order."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    backbone = tiny_backbone(folder / "plain")
    return graft(backbone, "image", "patches", "linear", folder / "eyes")


def stored(shade: int) -> dict[str, Any]:
    """A picture as MMEB-V2's loaders hand it over."""
    picture(shade).save(data := io.BytesIO(), format="PNG")
    return {"bytes": [data.getvalue()], "paths": [""], "resolutions": [None]}


def visdoc_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Text queries over pages, with graded relevance; the corpus holds every page."""
    queries = [
        {
            "query_text": [f"Find a document image: {WORDS[row]} {WORDS[row + 1]}"],
            "query_image": [None],
            "cand_text": ["<|image_pad|>\nUnderstand the document."] * 2,
            "cand_image": [stored(20 * row), stored(20 * row + 10)],
            "dataset_infos": {
                "cand_names": [f"p{2 * row}", f"p{2 * row + 1}"],
                "label_name": [f"p{2 * row}", f"p{2 * row + 1}"],
                "rel_scores": [2, 1],
            },
        }
        for row in range(6)
    ]
    corpus = [
        {
            "cand_text": ["<|image_pad|>\nUnderstand the document."],
            "cand_image": [stored(10 * row)],
            "dataset_infos": {"cand_names": [f"p{row}"]},
        }
        for row in range(16)
    ]
    return queries, corpus


def test_measures_are_those_of_trec_eval() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(0)
    names = [f"d{row}" for row in range(30)]
    rankings = [list(rng.permutation(names)) for _ in range(20)]
    graded = [
        {name: int(rng.integers(1, 4)) for name in rng.choice(names, 1 + row % 7, replace=False)} for row in range(20)
    ]
    measures = {"ndcg_cut.1,5,10", "P.1,5,10", "recall.1,5,10", "success.1,5,10"}
    evaluator = pytrec_eval.RelevanceEvaluator({f"q{row}": right for row, right in enumerate(graded)}, measures)
    run = {f"q{row}": {name: -float(rank) for rank, name in enumerate(own)} for row, own in enumerate(rankings)}
    for row, (query, wanted) in enumerate(evaluator.evaluate(run).items()):
        assert query == f"q{row}"
        found = ranking_scores(rankings[row], list(graded[row]), list(graded[row].values()))
        for depth in (1, 5, 10):
            assert found[f"ndcg_linear@{depth}"] == pytest.approx(wanted[f"ndcg_cut_{depth}"])
            assert found[f"precision@{depth}"] == pytest.approx(wanted[f"P_{depth}"])
            assert found[f"recall@{depth}"] == pytest.approx(wanted[f"recall_{depth}"])
            assert found[f"hit@{depth}"] == pytest.approx(wanted[f"success_{depth}"])


def test_measures_by_hand() -> None:
    found = ranking_scores(["x", "a", "y", "b", "z"], ["a", "b", "c"], [1, 3, 2])
    assert found["mrr@1"] == 0
    assert found["mrr@5"] == 1 / 2
    assert found["map@5"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert found["f1@5"] == pytest.approx(2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3))
    ideal = 7 / np.log2(2) + 3 / np.log2(3) + 1 / np.log2(4)
    assert found["ndcg_exponential@5"] == pytest.approx((1 / np.log2(3) + 7 / np.log2(5)) / ideal)
    nothing = ranking_scores(["x"], [])
    assert {name for name, value in nothing.items() if value} == {"recall@1", "recall@5", "recall@10"}
    assert mean_scores([found, nothing])["mrr@5"] == 1 / 4


def test_a_data_set_leaves_the_files_of_its_own_program(model: Any, tmp_path: Path) -> None:
    queries, corpus = visdoc_rows()
    scores = evaluate_mmeb(model, "ViDoRe_arxivqa", queries, corpus, out=tmp_path, suite="visdoc")
    folder = tmp_path / "visdoc"
    assert json.loads((folder / "ViDoRe_arxivqa_score.json").read_text()) == scores
    assert list(scores) == PUBLISHED
    assert (scores["num_pred"], scores["num_data"]) == (6, 6)
    # what eval.py does with these files: dot products, sorted, against label_name and rel_scores
    vectors = pickle.loads((folder / "ViDoRe_arxivqa_qry").read_bytes())
    candidates = pickle.loads((folder / "ViDoRe_arxivqa_tgt").read_bytes())
    infos = [json.loads(line) for line in (folder / "ViDoRe_arxivqa_info.jsonl").read_text().splitlines()]
    assert (vectors.dtype, vectors.shape, len(candidates)) == (np.float32, (6, 32), 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    names = list(candidates)
    ranked = np.argsort(-(vectors @ np.stack([candidates[name] for name in names]).T), axis=1, kind="stable")
    hits, gains = [], []
    for row, info in zip(ranked, infos, strict=True):
        relevance = dict(zip(info["label_name"], info["rel_scores"], strict=True))
        first = [relevance.get(names[place], 0) for place in row[:5]]
        hits.append(any(first))
        ideal = 2 / np.log2(2) + 1 / np.log2(3)
        gains.append(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(first)) / ideal)
    assert scores["hit@5"] == pytest.approx(np.mean(hits))
    assert scores["ndcg_linear@5"] == pytest.approx(np.mean(gains))
    predictions = [json.loads(line) for line in (folder / "ViDoRe_arxivqa_pred.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in predictions] == [[names[place] for place in row] for row in ranked]


def test_items_are_what_the_rows_mean(model: Any, tmp_path: Path) -> None:
    """A text alone, a picture alone, and both; what stands for a picture in the text is not embedded as text."""
    rows = [
        {
            "query_text": [text], "query_image": [shown],
            "cand_text": ["a dog", "a cat"], "cand_image": [None, None],
            "dataset_infos": {"cand_names": ["dog", "cat"], "label_name": "dog"},
        }
        for text, shown in (("red dog", None), ("<|image_1|>\n", stored(40)), ("<|image_1|>\nred dog", stored(40)))
    ]  # fmt: skip
    evaluate_mmeb(model, "CIRR", rows, out=tmp_path, suite="image", ranking="local")
    vectors = pickle.loads((tmp_path / "image" / "CIRR_qry").read_bytes())
    for vector, item in zip(vectors, ("red dog", picture(40), {"image": picture(40), "text": "red dog"}), strict=True):
        wanted = model.encode([item])[0]
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_what_is_there_is_not_run_again_and_never_another_models(model: Any, tmp_path: Path) -> None:
    queries, corpus = visdoc_rows()
    embedder = open_embedder(model)
    scores = evaluate_mmeb(embedder, "ViDoRe_docvqa", queries, corpus, out=tmp_path, suite="visdoc")
    assert evaluate_mmeb(embedder, "ViDoRe_docvqa", [], out=tmp_path, suite="visdoc") == scores
    (tmp_path / "visdoc" / "ViDoRe_docvqa_score.json").unlink()  # killed before its scores were written
    with embedder.module.register_forward_pre_hook(lambda *_: pytest.fail("nothing is embedded again")):
        assert evaluate_mmeb(embedder, "ViDoRe_docvqa", queries, corpus, out=tmp_path, suite="visdoc") == scores
    with pytest.raises(OutputError, match="of another model or of other prompts"):
        evaluate_mmeb(model, "CIRR", queries, out=tmp_path, suite="image", prompts={"query": "find: "})
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].add_(1e-3)
    with pytest.raises(OutputError, match="of another model or of other prompts"):
        evaluate_mmeb(model, "CIRR", queries, out=tmp_path, suite="image")


def test_a_file_of_embeddings_runs_nothing(model: Any, tmp_path: Path) -> None:
    queries, corpus = visdoc_rows()
    embedder = open_embedder(model)
    evaluate_mmeb(embedder, "CIRR", queries, corpus, out=tmp_path, suite="image")
    (tmp_path / "image" / "CIRR_score.json").unlink()
    (tmp_path / "image" / "CIRR_qry").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError, match=r"would load os\.system"):
        evaluate_mmeb(embedder, "CIRR", queries, corpus, out=tmp_path, suite="image")


def test_the_report_is_the_leaderboards(tmp_path: Path) -> None:
    scores = dict.fromkeys(PUBLISHED, 0.5)
    for suite, name, value in (("image", "CIRR", 0.75), ("image", "GQA", 0.25), ("visdoc", "ViDoSeek-page-fixed", 0.4)):
        (tmp_path / suite).mkdir(exist_ok=True)
        own = {**scores, "hit@1": value, "ndcg_linear@5": value}
        (tmp_path / suite / f"{name}_score.json").write_text(json.dumps(own))
    path, summary = mmeb_report(tmp_path, {"model_name": "fused", "model_size": 2.2})
    table = json.loads(path.read_text())
    assert path.name == "fused.json"
    assert table["metadata"].keys() == {
        "model_name", "model_backbone", "model_size", "embedding_dimension", "max_length_tokens", "model_release_date",
        "data_source", "url", "report_generated_date",
    }  # fmt: skip
    assert table["metrics"]["image"]["CIRR"]["hit@1"] == 0.75
    assert table["metrics"]["image"]["WebQA"] == "FILE_N/A"
    assert table["metrics"]["visdoc"]["ViDoSeek-page"]["ndcg_linear@5"] == 0.4
    assert (summary["image"]["mean"], summary["image"]["data_sets"]) == (0.5, 2)
    assert summary["visdoc"]["mean"] == 0.4
    assert summary["video"]["mean"] is None
    assert [len(names) for names in DATA_SETS.values()] == [36, 18, 24]
    with pytest.raises(UsageError, match="without a model_name"):
        mmeb_report(tmp_path, {})
    with pytest.raises(UsageError, match="contains no score"):
        mmeb_report(tmp_path / "video", {"model_name": "fused"})


def test_rows_that_make_no_sense_are_told(model: Any, tmp_path: Path) -> None:
    (row, *_), corpus = visdoc_rows()
    for change, words in (
        ({"query_text": ["a", "b"], "query_image": [None, None]}, "row 1 contains 2 queries"),
        ({"query_audio": [1]}, "query_audio, which MMEB-V2 does not have"),
        ({"query_text": [" "]}, "neither text nor picture"),
        ({"dataset_infos": {**row["dataset_infos"], "rel_scores": [1]}}, "2 labels and 1 rel_scores"),
        ({"dataset_infos": {**row["dataset_infos"], "label_name": ["px", "py"]}}, "'px', which is not a candidate"),
    ):
        with pytest.raises(UsageError, match=words):
            evaluate_mmeb(model, "EDIS", [{**row, **change}], corpus, out=tmp_path / words[:5], suite="image")
