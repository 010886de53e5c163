"""Recipe files: YAML that misleads or harms, and methods that a recipe names by file."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_problems import SMALL, problems_of

from taskmerge import recipes
from taskmerge.errors import RecipeError
from taskmerge.methods import all_methods


@pytest.mark.parametrize(
    ("text", "place", "what", "move"),
    [
        ("base: b\nbase: c\n", "merge.yaml:2", "the key 'base' is given twice", "it is already on line 1"),
        ("base: b\nspecialists:\n\ta: m\n", "merge.yaml:3", "not readable as YAML", "indent with spaces"),
        ("base: [b\n", "merge.yaml:2", "not readable as YAML", None),
        ("base: b: c\n", "merge.yaml:1", "not readable as YAML: mapping values are not allowed here", None),
        ("base: b\n1: x\n", "merge.yaml:2", "a key must be text, not '1'", 'put it in quotes: "1"'),
        ("base: b\n? [a, b]\n: x\n", "merge.yaml:2", "a key must be text, not a list or mapping", None),
        ("base: b\n? {a: b}\n: x\n", "merge.yaml:2", "a key must be text, not a list or mapping", None),
        ("base: b\ntrue: x\n", "merge.yaml:2", "a key must be text, not 'true'", None),
        ("base: b\ncopy:\n  <<: x\n", "merge.yaml:3", "<< must refer to a mapping", "write `<<: *anchor`"),
        ("base: &a {x: 1, <<: *a}\n", "merge.yaml:1", "an alias contains itself", None),
        (
            "base: !!python/object/apply:os.system [ls]\n",
            "merge.yaml:1",
            "the tag !!python/object/apply:os.system",
            None,
        ),
        ("base: !mine x\n", "merge.yaml:1", "the tag !mine is not allowed in a recipe", "write the plain value"),
        ("base: !!binary aGk=\n", "merge.yaml:1", "the tag !!binary is not allowed", None),
        ("base: !!set {a, b}\n", "merge.yaml:1", "the tag !!set is not allowed", None),
        ("seed: !!int abc\n", "merge.yaml:1", "'abc' cannot be read as int", None),
        ("base: !!bool maybe\n", "merge.yaml:1", "'maybe' cannot be read as bool", None),
        ("a: &a [*a]\n", "merge.yaml:1", "an alias contains itself", None),
        ("a: *b\n", "merge.yaml:1", "found undefined alias", None),
        ("a: \x07\n", "merge.yaml", "not readable as YAML", None),
        ("", "merge.yaml", "the recipe is empty", "begin with `base:`"),
        ("# nothing\n", "merge.yaml", "the recipe is empty", "begin with `base:`"),
        ("base: b\n---\nbase: c\n", "merge.yaml:3", "a recipe is one YAML document", "remove the `---`"),
        ("a: " + "[" * 3000, "merge.yaml", "nested too deeply", None),
        ("a: " + "[" * 70 + "]" * 70, "merge.yaml:1", "nested too deeply", None),
    ],
)
def test_hostile_or_broken_yaml(text: str, place: str, what: str, move: str | None) -> None:
    problem = problems_of(text)[0]
    assert what in problem.what
    assert problem.place == place
    assert move is None or move in (problem.next_move or "")


def test_a_yaml_bomb_is_refused_quickly() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    (problem,) = problems_of(bomb)
    assert problem.what == "the recipe contains more than 50,000 values, including aliases"


def test_aliases_are_read() -> None:
    recipe = recipes.loads("base: &b models/base\nspecialists: {a: {model: *b, adapter: x}}\n")
    assert recipe.specialists["a"].model == "models/base"


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-5", 1e-5), ("1.", 1.0), (".5", 0.5), ("-2", -2.0), ("+3", 3.0), ("010", 10.0), ("2E3", 2000.0)],
)
def test_numbers_are_read_as_in_yaml_1_2(written: str, read: float) -> None:
    assert (
        recipes.loads(f"base: b\nspecialists: {{a: {{model: m, weight: {written}}}}}\n").specialists["a"].weight == read
    )


@pytest.mark.parametrize("written", [".inf", "-.Inf", ".nan", "1:30", "0x10", "1_000", "yes", "2020-01-01"])
def test_what_is_no_finite_number_is_refused(written: str) -> None:
    (problem,) = problems_of(f"base: b\nspecialists: {{a: {{model: m, weight: {written}}}}}\n")
    assert problem.what.startswith("weight must be a number")


def test_words_that_yaml_1_1_took_for_truth_are_text() -> None:
    assert recipes.loads("base: no\nspecialists: {on: off}\n").specialists["on"].model == "off"


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"base: b\nspecialists: {a: caf\xe9}\n")
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * 1_000_001)
    for path, what in [
        (tmp_path / "missing.yaml", "does not exist"),
        (tmp_path, "is a folder, not a recipe"),
        (latin, "the file is not UTF-8 text"),
        (large, "is larger than 1,000,000 bytes"),
    ]:
        with pytest.raises(RecipeError, match=what) as caught:
            recipes.load(path)
        assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_places_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text("\ufeffbase: b\nspecialists: {a: {modle: m}}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    assert caught.value.problems[0].place == f"{path}:2"


# --- methods from files ---------------------------------------------------------------------------------------------

MEDIAN = '''
from typing import Annotated
from taskmerge.declarations import Between, Doc
from taskmerge.methods import merge_method

@merge_method
def median(deltas, weights, *, scale: Annotated[float, Between(0, 2), Doc("step along the median")] = 1.0):
    """Coordinate-wise median of the task vectors."""
    return scale * deltas.median(dim=0).values

def helper(deltas):
    return deltas
'''


def test_a_method_from_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "median.py").write_text(MEDIAN)
    path = tmp_path / "merge.yaml"
    path.write_text(SMALL.format(method="mine/median.py:median\n  scale: [0.5, 1.5]"))
    merge = recipes.load(path).merge
    assert merge.settings().method.name == "median"
    assert merge.options == {"scale": (0.5, 1.5)}
    assert "median" not in [method.name for method in all_methods()]
    path.write_text(SMALL.format(method="mine/median.py:median\n  scale: 3"))
    with pytest.raises(RecipeError, match="scale must be a number from 0 to 2"):
        recipes.load(path)


@pytest.mark.parametrize(
    ("name", "what", "move"),
    [
        ("mine/missing.py:median", "no file 'mine/missing.py' for the method", "check the path: "),
        ("median.py:meidan", "median.py does not contain 'meidan'", "did you mean 'median'?"),
        ("median.py:helper", "'helper' in median.py is not a merge method", "decorate it with @merge_method"),
        ("median.py", "does not name a function in the file", "write path/to/file.py:name"),
        ("broken.py:median", "the file of the method 'broken.py:median' fails: ZeroDivisionError", None),
        ("undeclared.py:median", "unknown positional argument 'tensors'", None),
    ],
)
def test_a_file_that_does_not_serve(tmp_path: Path, name: str, what: str, move: str | None) -> None:
    (tmp_path / "median.py").write_text(MEDIAN)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "undeclared.py").write_text(MEDIAN.replace("median(deltas", "median(tensors"))
    path = tmp_path / "merge.yaml"
    path.write_text(SMALL.format(method=name))
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    (problem,) = caught.value.problems
    assert what in problem.what
    assert str(problem.place) == f"{path}:5"
    assert move is None or move in (problem.next_move or "")


def test_no_file_is_run_unless_named(tmp_path: Path) -> None:
    (tmp_path / "median.py").write_text("raise SystemExit('run')\n")
    path = tmp_path / "merge.yaml"
    path.write_text(SMALL.format(method="ties"))
    assert recipes.load(path).merge.method == "ties"
