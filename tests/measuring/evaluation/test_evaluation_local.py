"""Every variant on every set, in one table, with embedders whose scores are known beforehand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from oracle_embedder import WORDS, Oracle

from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation import EvaluationTable, evaluate_retrieval
from taskmerge.metrics.bootstrap import mean_interval
from taskmerge.metrics.retrieval import METRICS


class Hearing(Oracle):
    """Knows a sound by its length: 400 samples for the first word, one more for each next."""

    def embed(self, features: dict[str, Any]) -> torch.Tensor:
        items = [WORDS[len(item["array"]) - 400] if isinstance(item, dict) else item for item in features["items"]]
        return super().embed({"items": items})


SOUNDS = [
    {"audio": {"array": np.ones(400 + number, dtype=np.float32), "sampling_rate": 16000}, "text": word}
    for number, word in enumerate(WORDS)
]
PAIRS = [{"query": f"say {word}", "text": word} for word in WORDS for _ in range(5)]


def test_scores_and_counts() -> None:
    table = evaluate_retrieval({"good": Oracle(), "poor": Oracle(["one", "two"])}, {"words": PAIRS})
    assert (table.variants, table.sets) == (["good", "poor"], ["words"])
    assert table.get("good", "words").estimate == 1
    assert table.get("poor", "words").estimate == 0.75
    assert table.get("poor", "words", "recall_at_5").estimate == 0.75  # ties with every other word are lost
    row = next(row for row in table.results if row.variant == "poor" and row.direction == "from_text")
    assert (row.queries, row.gallery) == (8, 40)
    # "one" and "two" are answered by nothing of theirs, and "three" as loudly by what was said as "two"
    assert row.intervals["recall_at_1"].estimate == pytest.approx(5 / 8)
    assert set(row.intervals) == set(METRICS)


def test_intervals_know_that_recordings_of_a_word_fail_together() -> None:
    poor = evaluate_retrieval({"poor": Oracle(["one", "two"])}, {"words": PAIRS}).get("poor", "words")
    # 8 words, two of them always wrong: binomial(8, 0.75) / 8 has standard deviation 0.153
    assert poor.high - poor.low > 0.4


def test_equal_texts_are_embedded_once() -> None:
    model = Oracle()
    evaluate_retrieval({"good": model}, {"words": PAIRS})
    assert sum(not item.startswith("say") for item in model.seen) == len(WORDS)


def test_a_variant_is_not_asked_for_what_it_cannot_take() -> None:
    model, hearing = Oracle(), Hearing(modalities=("text", "audio"))
    table = evaluate_retrieval({"text only": model, "hearing": hearing}, {"words": PAIRS, "sounds": SOUNDS})
    assert table.sets == ["words", "sounds"]
    assert table.get("hearing", "sounds").estimate == 1
    with pytest.raises(UsageError, match="'text only' on 'sounds'"):
        table.get("text only", "sounds")


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_a_set_that_no_variant_takes_is_an_error_not_an_empty_page(names: list[str]) -> None:
    variants = {name: Oracle() for name in names}
    with pytest.raises(UsageError, match="sounds contains audio, and none of the models has an encoder for it"):
        evaluate_retrieval(variants, {"words": PAIRS, "sounds": SOUNDS})
    assert len(names) > 1 or not variants["one"].seen  # a single model is not run first


def test_the_table_survives_json() -> None:
    table = evaluate_retrieval({"good": Oracle()}, {"words": PAIRS})
    assert EvaluationTable.from_dict(json.loads(json.dumps(table.as_dict()))) == table
    assert (table + table).variants == ["good"]


def test_bad_sets_are_told_at_once_and_before_any_model_runs() -> None:
    model = Oracle()
    silent = [{"audio": {"array": np.zeros(0), "sampling_rate": 16000}, "text": "a"}]
    with pytest.raises(UsageError) as error:
        evaluate_retrieval({"m": model}, {"one": silent, "two": [{"query": "a", "text": "b"}] * 3, "three": []})
    message = str(error.value)
    assert "one: pairs in memory: row 1" in message
    assert "two: pairs in memory: all items have the same text" in message
    assert "three: pairs in memory: contains no pairs" in message
    assert not model.seen
    with pytest.raises(UsageError, match="no set to evaluate on"):
        evaluate_retrieval({"m": model}, {})
    with pytest.raises(UsageError, match="unknown direction"):
        evaluate_retrieval({"m": model}, {"words": PAIRS}, directions=["sideways"])


def test_differences_are_paired_by_query() -> None:
    """Two variants that each fail on words of their own: the difference has the interval of the words' differences."""
    variants = {"first": Oracle(["one"]), "second": Oracle(["one", "two", "three"]), "third": Oracle(["two"])}
    table = evaluate_retrieval(variants, {"words": PAIRS})
    found = table.difference("second", "first", "words")
    assert found.estimate == pytest.approx(-2 / 8)
    assert found.high == 0  # no word is found by the second alone
    alone = [table.get(name, "words") for name in ("first", "second")]
    assert found.high - found.low < sum(one.high - one.low for one in alone) / 1.4
    assert {(row.variant, row.reference) for row in table.differences} == {
        ("second", "first"), ("third", "second"), ("third", "first")
    }  # fmt: skip
    values = np.repeat([0, -1, -1, 0, 0, 0, 0, 0], 5).astype(float)
    wanted = mean_interval(values, groups=np.repeat(np.arange(8), 5).tolist())
    assert (found.low, found.high) == (wanted.low, wanted.high)
    chosen = evaluate_retrieval(variants, {"words": PAIRS}, against={"first": ["third"]})
    assert [(row.variant, row.reference) for row in chosen.differences] == [("first", "third")] * 2
    with pytest.raises(UsageError, match="unknown variant 'fourth'"):
        evaluate_retrieval(variants, {"words": PAIRS}, against={"first": ["fourth"]})


def test_dimensions_are_scored_beside_the_whole() -> None:
    table = evaluate_retrieval({"good": Oracle()}, {"words": PAIRS}, dimensions=[3])
    assert table.get("good", "words").estimate == 1
    assert table.get("good", "words", dimension=3).estimate == 3 / 8  # the others are all zeros, and ties are lost
    with pytest.raises(UsageError, match=r"dimensions\[0\] must be a whole number of at least 1, not 0"):
        evaluate_retrieval({"good": Oracle()}, {"words": PAIRS}, dimensions=[0])


def test_sets_that_nobody_takes_are_not_an_empty_page() -> None:
    sound = [{"audio": {"array": np.ones(400, dtype=np.float32), "sampling_rate": 16000}, "text": w} for w in WORDS]
    model = Oracle()
    given: tuple[dict[str, Any], ...] = ({"sounds": sound}, {"words": PAIRS, "sounds": sound})
    for sets in given:
        with pytest.raises(UsageError, match="sounds contains audio, and none of the models has an encoder for it"):
            evaluate_retrieval({"text only": model}, sets)
    assert not model.seen
