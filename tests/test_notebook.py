"""What notebooks show: short, escaped, never failing, never reading; mappings; pandas."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskmerge import (
    Checkpoint,
    Comparison,
    DriftReport,
    EvaluationTable,
    FusedModel,
    Outcome,
    Plan,
    compare_task_vectors,
    fuse,
)
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import MergeError, UsageError
from taskmerge.measuring.drift.report import ModalityDrift
from taskmerge.measuring.drift.verdict import Verdict
from taskmerge.measuring.evaluation.table import Difference, RetrievalResult
from taskmerge.metrics.bootstrap import Interval
from taskmerge.searching.points import Point

EVIL = "<script>alert(1)</script>\x1b[2J\u202e"


class Unreadable(StateDict):
    """Headers alone: reading fails the test."""

    def __init__(self, label: str, names: list[str]) -> None:
        self.label = label
        self.tensors = {name: TensorInfo(name, "BF16", (3, 4)) for name in names}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        raise AssertionError(f"{name} was read")


def checkpoint(label: str = "model") -> Checkpoint:
    return Checkpoint.open(Unreadable(label, ["a.weight", "b.weight"]))


def fused(label: str = "one") -> FusedModel:
    name = label if label.isalnum() else "one"  # others are no names; a tensor may be called anything
    names = ["a.weight", "b.weight"] if name == label else [label, "b.weight"]
    base, specialist = (Checkpoint.open(Unreadable(one, names)) for one in ("base", name))
    return fuse(base, {name: specialist}, "ties", density=0.5)


def interval(estimate: float) -> Interval:
    return Interval(estimate, estimate - 0.1, estimate + 0.1, 40)


def drift(name: str = "audio") -> DriftReport:
    verdict = Verdict("drifted", True, interval(0.25), 0.05, 40, None, ("Drifted.",))
    scores = {"specialist": {"recall_at_1": 0.75}, "fused": {"recall_at_1": 0.5}}
    control: Any = None  # is not shown
    found = ModalityDrift(name, "probes.jsonl", 40, 40, verdict, scores, {}, {}, control, (), {})
    return DriftReport({name: found}, {})


def evaluation(name: str = "fused") -> EvaluationTable:
    results = [RetrievalResult(one, "clotho", "audio", "to_text", 40, 40, {"recall_at_1": interval(score)})
               for one, score in ((name, 0.5), ("other", 0.75))]  # fmt: skip
    difference = Difference("other", name, "clotho", "to_text", {"recall_at_1": interval(0.25)})
    return EvaluationTable(tuple(results), (difference,))


def outcome(name: str = "own") -> Outcome:
    points = (
        Point(name, {"scale": 0.5}, (0.4,), {"retrieval.a": 0.4}),
        Point("trial 0", {"scale": 0.7}, (0.6,), {"retrieval.a": 0.6}),
        Point("trial 1", {"scale": 0.9}, state="failed", why="NaN"),
    )
    return Outcome(("retrieval",), points, points[1:2], points[1], None)


def comparison(name: str = "one") -> Comparison:
    return compare_task_vectors({"w": torch.zeros(2)}, {name: {"w": torch.ones(2)}, "two": {"w": -torch.ones(2)}})


MAKERS: dict[str, Any] = {
    "Checkpoint": checkpoint,
    "TaskVector": lambda label="one": checkpoint(label) - checkpoint(),
    "FusedModel": fused,
    "Plan": lambda label="one": fused(label).plan,
    "DriftReport": drift,
    "EvaluationTable": evaluation,
    "Outcome": outcome,
    "Comparison": comparison,
}
EMPTY: dict[str, Any] = {
    "DriftReport": lambda: DriftReport({}, {}),
    "EvaluationTable": lambda: EvaluationTable(()),
    "Outcome": lambda: Outcome((), (), (), None, None),
    "Comparison": Comparison,
    "Checkpoint": lambda: Checkpoint.open({}),
    "Plan": lambda: Plan({}, (), (), {}, (), fused().plan.beside),
}


class Tags(HTMLParser):
    """Names of the tags, and whether each is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert not tags.open and tags.seen <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert not re.search(r"#[0-9a-f]{3,6}\b|rgb|background: (?!none)|color: (?!inherit)", page)
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize("kind", MAKERS)
def test_one_line_and_a_table(kind: str) -> None:
    one = MAKERS[kind]()
    assert type(one).__name__ == kind
    line = repr(one)
    assert line.startswith(f"<{kind} ") and len(line) < 200 and "\n" not in line
    page = one._repr_html_()
    check_html(page)
    assert "<td" in page
    stranger = MAKERS[kind](EVIL)
    check_html(stranger._repr_html_())
    assert "\x1b" not in repr(stranger) and "\u202e" not in repr(stranger)


@pytest.mark.parametrize("kind", EMPTY)
def test_nothing_to_show(kind: str) -> None:
    one = EMPTY[kind]()
    assert repr(one).startswith(f"<{kind} ")
    check_html(one._repr_html_())
    assert len(one.to_pandas()) == 0


def test_what_cannot_be_shown_says_so() -> None:
    class Broken(Unreadable):
        @property
        def tensors(self) -> Any:  # type: ignore[override]
            raise OSError("the file is closed")

        @tensors.setter
        def tensors(self, value: Any) -> None: ...

    one = Checkpoint(Broken("gone", []))
    assert repr(one) == "<Checkpoint: OSError: the file is closed>"
    check_html(one._repr_html_())


def test_a_file_that_has_gone(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    one = Checkpoint.open(tmp_path / "model.safetensors", label="gone")
    (tmp_path / "model.safetensors").unlink()
    assert repr(one) == "<Checkpoint gone: 1 tensor, 3 entries, float32>"


def test_long_tables_are_cut_and_counted() -> None:
    one = Checkpoint.open(Unreadable("long", [f"layer.{number}" for number in range(50_000)]))
    page = one._repr_html_()
    assert page.count("<tr>") == 21 and "and 49,980 more rows" in page and len(page) < 20_000


@pytest.mark.parametrize("kind", ["Checkpoint", "TaskVector", "FusedModel"])
def test_mappings(kind: str) -> None:
    values = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.5])}
    moved = {name: value + 2 for name, value in values.items()}
    made: dict[str, Any] = {
        "Checkpoint": Checkpoint.open(moved),
        "TaskVector": Checkpoint.open(moved) - Checkpoint.open(values),
        "FusedModel": fuse(values, {"one": moved}),
    }
    one = made[kind]
    expected = {name: torch.full_like(value, 2) for name, value in values.items()} if kind == "TaskVector" else moved
    assert isinstance(one, Mapping) and bool(one) and len(one) == 2
    assert list(one) == list(one.keys()) == list(expected) and "b" in one and "c" not in one and 3 not in one
    assert all(torch.equal(value, expected[name]) for name, value in one.items())
    assert [value.shape for value in one.values()] == [value.shape for value in expected.values()]
    assert one.get("c") is None and torch.equal(one["b"], expected["b"]) and torch.equal(dict(one)["b"], expected["b"])
    assert one.get("b") is not None and torch.equal(one.get("b", torch.zeros(1)), expected["b"])
    assert one == one and one != made["Checkpoint" if kind != "Checkpoint" else "FusedModel"] and len({one, one}) == 1
    with pytest.raises(KeyError) as caught:
        one["c.weight"]
    assert isinstance(caught.value, MergeError) and str(caught.value).startswith("there is no ")
    assert "\\n" not in str(caught.value)


def test_names_are_asked_for_without_reading() -> None:
    for one in (checkpoint(), checkpoint("one") - checkpoint(), fused()):
        assert "a.weight" in one and len(one) == 2 and list(one.keys()) == ["a.weight", "b.weight"]


def test_a_task_vector_is_not_taken_for_a_model() -> None:
    vector: Any = checkpoint("one") - checkpoint()
    with pytest.raises(UsageError, match="not a model"):
        Checkpoint.open(vector)


def test_frames() -> None:
    plan = fused().plan.to_pandas()
    assert list(plan["tensor"]) == ["a.weight", "b.weight"] and set(plan["method"]) == {"ties"}
    assert plan["shape"][0] == (3, 4) and set(plan["specialists"]) == {"one"}
    report = drift().to_pandas().iloc[0]
    assert (report["verdict"], report["loss"], report["specialist"], report["fused"]) == ("drifted", 0.25, 0.75, 0.5)
    table = evaluation().to_pandas()
    assert list(table["estimate"]) == [0.5, 0.75, 0.25] and table["reference"][2] == "fused"
    assert table["reference"][:2].isna().all()
    points = outcome().to_pandas()
    assert list(points["best"]) == [False, True, False] and points["scale"][2] == 0.9
    assert points["retrieval"].isna().tolist() == [False, False, True]
    both = comparison().to_pandas().set_index("task vector")
    assert both.loc["one", "cosine two"] == pytest.approx(-1) and both.loc["one", "sign_conflict two"] == 1
    assert both.loc["one", "norm"] == pytest.approx(2**0.5)
    json.dumps(comparison())
    assert checkpoint().to_pandas()["bytes"].sum() == 48


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.words import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pandas.*\[notebook\]"):
        evaluation().to_pandas()
    assert repr(evaluation())
