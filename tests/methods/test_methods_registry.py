"""Where merge methods come from, and what their authors and users are told when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

from taskmerge.declarations import Between, DeclarationError, Doc
from taskmerge.errors import MergeError, UsageError
from taskmerge.methods import MergeMethod, all_methods, discovery, find_method, known_names, merge_method, registry

DELTAS = torch.tensor([[1.0, 2.0, 3.0], [3.0, -2.0, 5.0], [8.0, 0.0, 4.0]])
WEIGHTS = torch.ones(3)


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    all_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield


def test_a_decorated_function_is_a_method_and_still_a_function() -> None:
    @merge_method
    def median(deltas, weights, *, step: Annotated[float, Between(0, 2), Doc("how far")] = 1.0):  # type: ignore[no-untyped-def]
        """Coordinate-wise median of the task vectors.

        More about it.
        """
        return step * deltas.median(dim=0).values

    assert find_method("median") is median
    assert median.summary == "Coordinate-wise median of the task vectors."
    assert median(DELTAS, WEIGHTS).tolist() == [3.0, 0.0, 4.0]
    assert median.merge(DELTAS, WEIGHTS, median.options({"step": 0.5})).tolist() == [1.5, 0.0, 2.0]
    assert "median" in known_names()
    assert median.program((1.0,), median.options(), (3,)) is None
    assert median.needs({}) == frozenset()


def test_names_and_aliases() -> None:
    @merge_method(name="middle", aliases=("centre",), source="nowhere")
    def median(deltas):  # type: ignore[no-untyped-def]
        """The middle."""
        return deltas.median(dim=0).values

    assert find_method("centre") is find_method("middle") is median
    assert [method.name for method in all_methods()].count("middle") == 1
    assert median.merge(DELTAS, WEIGHTS, {}).tolist() == [3.0, 0.0, 4.0]


@pytest.mark.parametrize("name", ["ties", "sum", "task_arithmetic"])
def test_a_taken_name_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match=f"a merge method named '{name}' exists already"):

        @merge_method(name=name)
        def mine(deltas):  # type: ignore[no-untyped-def]
            return deltas[0]


def _function(source: str) -> Any:
    scope: dict[str, Any] = {"Annotated": Annotated, "Between": Between, "Doc": Doc}
    exec(source, scope)
    return scope["mine"]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def mine(*deltas): ...", "write out every argument instead of *deltas"),
        ("def mine(deltas, **options): ...", "write out every argument instead of *options"),
        ("def mine(tensors): ...", "unknown positional argument 'tensors'"),
        ("def mine(deltas, density): ...", "unknown positional argument 'density'"),
        ("def mine(weights, deltas): ...", "the first argument of a merge method is `deltas`"),
        ("def mine(): ...", "the first argument of a merge method is `deltas`"),
        ("def mine(deltas, *, density=1.0): ...", "density of mine has no annotation"),
        ("def mine(deltas, *, density: list = 1.0): ...", "density of mine: <class 'list'> cannot be checked"),
        ("def mine(deltas, *, density: 'Sahre' = 1.0): ...", "the annotation 'Sahre' cannot be read"),
        ("def mine(deltas, *, density: Annotated[float, Between(0, 1)] = 3.0): ...", "contradicts its own declaration"),
    ],
)
def test_a_bad_declaration_fails_where_it_is_made(source: str, what: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        merge_method(_function(source))
    assert what in str(caught.value)
    assert "mine" not in known_names()


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        find_method("ties").options({"density": 2, "elect": "mas", "scal": 1})
    places = {problem.place for problem in caught.value.problems}
    assert places == {"ties.density", "ties.elect", "ties.scal"}


def test_a_result_of_another_shape_is_refused() -> None:
    @merge_method
    def flat(deltas):  # type: ignore[no-untyped-def]
        """Too short."""
        return deltas.sum()

    with pytest.raises(MergeError, match=r"the method 'flat' made a tensor of shape \(\) from deltas of shape \(3,\)"):
        flat.merge(DELTAS, WEIGHTS, {})


def test_a_missing_input_is_named() -> None:
    method = find_method("dare_linear")
    with pytest.raises(MergeError, match="the method 'dare_linear' needs random_bits"):
        method.merge(DELTAS, WEIGHTS, method.options())
    assert method.needs({}) == {"random_bits"}


def test_numbers_for_another_count_of_specialists_are_refused() -> None:
    method = find_method("ties")
    with pytest.raises(MergeError, match="2 numbers for 3 specialists"):
        method.merge(DELTAS, WEIGHTS, method.options({"density": (0.1, 0.2)}))


@pytest.mark.parametrize(
    ("name", "move"),
    [("tise", "did you mean 'ties'?"), ("dare", "did you mean 'dare_"), ("zzz", "known: ")],
)
def test_an_unknown_method_is_told_with_the_nearest(name: str, move: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_method(name)
    (problem,) = caught.value.problems
    assert problem.what == f"unknown merge method {name!r}"
    assert str(problem.next_move).startswith(move)


def _installed(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, value: str) -> None:
    """As if a package offered `value` under the entry point group."""
    (folder / "their_methods.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "their_methods", raising=False)
    point = EntryPoint(name="theirs", value=value, group=discovery.GROUP)
    monkeypatch.setattr(discovery, "offered", lambda: [point])
    monkeypatch.setattr(discovery, "_loaded", False)


THEIRS = """
from taskmerge.methods import merge_method

@merge_method
def theirs(deltas, weights):
    "The first."
    return deltas[0]

def helper(deltas):
    return deltas
"""


def test_an_installed_package_offers_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, tmp_path, THEIRS, "their_methods:theirs")
    method = find_method("theirs")
    assert isinstance(method, MergeMethod)
    assert method.merge(DELTAS, WEIGHTS, {}).tolist() == [1.0, 2.0, 3.0]


def test_the_group_is_that_of_the_documentation() -> None:
    assert discovery.GROUP == "taskmerge.methods"
    assert all(point.group == discovery.GROUP for point in discovery.offered())


def test_known_methods_are_found_without_importing_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[EntryPoint]:
        raise AssertionError("looked for entry points")

    monkeypatch.setattr(discovery, "offered", fail)
    monkeypatch.setattr(discovery, "_loaded", False)
    assert find_method("ties").name == "ties"


@pytest.mark.parametrize(
    ("text", "value", "what"),
    [
        (THEIRS, "their_methods:helper", "an installed package provides 'their_methods:helper' as a merge method, but"),
        (
            THEIRS,
            "their_methods:nothing",
            "the merge method 'theirs' provided by an installed package cannot be imported",
        ),
        ("import not_there", "their_methods:theirs", "cannot be imported: No module named 'not_there'"),
    ],
)
def test_a_broken_offer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, value: str, what: str
) -> None:
    _installed(monkeypatch, tmp_path, text, value)
    with pytest.raises(UsageError) as caught:
        known_names()
    assert what in str(caught.value)
    assert caught.value.problems[0].place == value
