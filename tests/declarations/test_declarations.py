"""Declarations: what annotations become, and what is said when a value does not fit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as some

from taskmerge.declarations import (
    BAD,
    REQUIRED,
    At,
    Between,
    DeclarationError,
    Doc,
    EntryOf,
    Glob,
    Gradient,
    NewName,
    Parameter,
    Section,
    Size,
    check,
    fields_of,
    kind_of,
    name_field,
    object_schema,
    parameters_of,
    place_field,
    read_mapping,
)
from taskmerge.errors import Problem

if TYPE_CHECKING:
    from a_module_that_is_not_there import Tensor

Share = Annotated[float, Between(0, 1)]


def example(
    deltas: Tensor,
    *,
    density: Annotated[float, Between(0, 1, open="low"), Doc("what share is kept")] = 0.5,
    count: Annotated[int, Between(1, None)] = 2,
    normalize: bool = False,
    elect: Annotated[Literal["mass", "count"], Doc("how")] = "mass",
    name: str,
) -> Tensor:
    raise NotImplementedError


def rows() -> dict[str, Parameter]:
    return {row.name: row for row in parameters_of(example)}


def test_a_signature_becomes_rows_without_resolving_what_is_not_asked() -> None:
    found = rows()
    assert list(found) == ["density", "count", "normalize", "elect", "name"]
    assert found["density"].default == 0.5 and found["density"].doc == "what share is kept"
    assert found["name"].required and found["name"].default is REQUIRED
    assert not found["elect"].required


@pytest.mark.parametrize(
    ("name", "value", "what", "move"),
    [
        ("density", 1.5, "density must be a number above 0 and at most 1, not 1.5", None),
        ("density", 0, "density must be a number above 0 and at most 1, not 0", None),
        ("density", float("nan"), "density must be a number above 0 and at most 1, not nan", None),
        ("density", float("inf"), "density must be a number above 0 and at most 1, not inf", None),
        ("density", "0.3", "not the text '0.3'", "write 0.3 without quotes"),
        ("density", "much", "not the text 'much'", None),
        ("density", True, "not true", "write 1 if you mean the number"),
        ("density", None, "not nothing", None),
        ("density", [0.1, 0.2], "not a list of 2", None),
        ("density", {"audio": 0.1}, "not a mapping with 'audio'", None),
        ("density", 10**400, "density must be a number above 0 and at most 1", None),
        ("count", 2.0, "count must be a whole number of at least 1, not 2.0", None),
        ("count", 0, "count must be a whole number of at least 1, not 0", None),
        ("count", False, "not false", "write 0 if you mean the number"),
        ("normalize", 1, "normalize must be true or false, not 1", "write true"),
        ("normalize", "no", "normalize must be true or false, not the text 'no'", "write false"),
        ("normalize", "maybe", "normalize must be true or false, not the text 'maybe'", None),
        ("elect", "mas", "elect must be mass or count, not the text 'mas'", "did you mean 'mass'?"),
        ("elect", 3, "elect must be mass or count, not 3", None),
        ("name", 3, "name must be text, not 3", 'put it in quotes: "3"'),
        ("name", "  ", "name must be text, not '  '", "write text, without line breaks and control characters"),
        ("name", "a\nb", "name must be text, not 'a\\nb'", "write text, without line breaks and control characters"),
        ("name", [], "name must be text, not an empty list", None),
        ("name", {}, "name must be text, not a mapping (empty)", None),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(name: str, value: Any, what: str, move: str | None) -> None:
    problem = check(value, rows()[name], "here:7")
    assert isinstance(problem, Problem)
    assert what in problem.what
    assert problem.place == "here:7"
    assert problem.next_move == move


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [("density", 1, 1.0), ("density", 0.25, 0.25), ("count", 3, 3), ("normalize", True, True)],
)
def test_a_right_value_is_read(name: str, value: Any, read: Any) -> None:
    found = check(value, rows()[name], "here")
    assert found == read and type(found) is type(read)


@given(
    some.one_of(
        some.floats(allow_nan=False, allow_infinity=False),
        some.integers(),
        some.booleans(),
        some.text(max_size=5),
        some.none(),
    )
)
def test_check_and_schema_agree(value: Any) -> None:
    for row in (rows()["density"], rows()["count"], rows()["normalize"], rows()["elect"]):
        accepted = not isinstance(check(value, row, "here"), Problem)
        valid = jsonschema.Draft7Validator(row.schema()).is_valid(value)
        whole = isinstance(value, float) and value.is_integer()
        if not (row.name == "count" and whole):  # JSON Schema takes 2.0 for a whole number
            assert accepted == valid


@dataclass(frozen=True)
class Inner:
    shorthand: ClassVar[str] = "path"

    path: Annotated[str, Doc("where")]
    weight: Annotated[float | tuple[float, ...], Gradient(), Doc("how much")] = 1.0
    name: str = name_field()
    place: str = place_field()


@dataclass(frozen=True)
class Outer:
    parts: Mapping[Annotated[str, NewName(("base",))], Inner]
    first: Annotated[str, EntryOf("parts", ("base",))] = "base"
    only: tuple[Annotated[str, Glob()], ...] = ()
    size: Annotated[int, Size()] = 10
    steps: Annotated[int | None, Between(1, None)] = None
    inner: Inner = field(default_factory=lambda: Inner("x"))
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        if not self.parts:
            yield Problem("no parts", self.place)


def read(value: Any) -> tuple[Any, list[Problem]]:
    problems: list[Problem] = []
    at = At(lambda path: "/".join(map(str, path)), root=value)
    return Section(Outer).read(value, at, problems), problems


def test_a_dataclass_becomes_rows_and_a_mapping_becomes_the_dataclass() -> None:
    assert [row.name for row in fields_of(Outer)] == ["parts", "first", "only", "size", "steps", "inner"]
    value = {
        "parts": {"a": "models/a", "b": {"path": "models/b", "weight": [0.0, 1]}},
        "first": "b",
        "only": "x.*",
        "size": "2KB",
    }
    found, problems = read(value)
    assert not problems
    assert found.parts["a"] == Inner("models/a", 1.0, "a")
    assert found.parts["b"] == Inner("models/b", (0.0, 1.0), "b")
    assert found.parts["b"].place == "parts/b"
    assert (found.first, found.only, found.size, found.steps) == ("b", ("x.*",), 2000, None)
    assert jsonschema.Draft7Validator(Section(Outer).schema()).is_valid(value)


@pytest.mark.parametrize(
    ("value", "place", "what", "move"),
    [
        ({"parts": {"a": "x"}, "frist": "a"}, "frist", "unknown key 'frist'", "did you mean 'first'?"),
        ({"parts": {"a": {"paht": "x"}}}, "parts/a/paht", "unknown key 'paht' in parts.a", "did you mean 'path'?"),
        ({"parts": {"a": {"weight": 1}}}, "parts/a", "parts.a lacks 'path'", "add path: where (text)"),
        ({}, "", "the recipe lacks 'parts'", "add parts: "),
        ({"parts": {}}, "", "no parts", None),
        ({"parts": {"base": "x"}}, "parts/base", "the text 'base' cannot be a name", "choose a name of letters"),
        ({"parts": {"a b": "x"}}, "parts/a b", "the text 'a b' cannot be a name", "choose a name of letters"),
        ({"parts": {"audio": "x"}, "first": "audoi"}, "first", "'audoi' is not one of the parts", "did you mean"),
        ({"parts": {"a": "x"}, "only": ["b", "c["]}, "only/1", "'[' is never closed", None),
        ({"parts": {"a": "x"}, "only": []}, "only", "only must be a list", None),
        ({"parts": {"a": "x"}, "size": "big"}, "size", "size must be a size such as 5GB", None),
        ({"parts": {"a": "x"}, "size": 0}, "size", "size must be a size such as 5GB", None),
        ({"parts": {"a": "x"}, "steps": 0}, "steps", "steps must be a whole number of at least 1, not 0", None),
        ({"parts": {"a": {"path": "x", "weight": []}}}, "parts/a/weight", "not an empty list", None),
        (
            {"parts": {"a": {"path": "x", "weight": [1, "2"]}}},
            "parts/a/weight/1",
            "weight[1] must be a number",
            "write 2",
        ),
        ({"parts": ["a"]}, "parts", "parts must be a mapping", None),
        ({"parts": {"a": 3}}, "parts/a", "a must be text or a mapping (path, weight), not 3", None),
        ({"parts": {"a": "x"}, "inner": None}, "inner", "inner must be text or a mapping (path, weight)", None),
    ],
)
def test_each_mistake_in_a_section_is_placed(value: Any, place: str, what: str, move: str | None) -> None:
    found, problems = read(value)
    assert found is BAD
    assert len(problems) == 1
    assert problems[0].place == place
    assert what in problems[0].what
    assert (problems[0].next_move or "").startswith(move or "")


def test_all_mistakes_are_told_at_once() -> None:
    _, problems = read({"parts": {"a": {"paht": 1, "weight": "x"}}, "size": "big", "steps": 0})
    assert [problem.place for problem in problems] == ["parts/a/paht", "parts/a/weight", "size", "steps"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("7", 7), ("7 pages", None), (9, 9), (True, None)]
)
def test_sizes(text: Any, size: int | None) -> None:
    row = next(row for row in fields_of(Outer) if row.name == "size")
    found = check(text, row, "here")
    assert isinstance(found, Problem) if size is None else found == size


def _declare(annotation: Any, default: Any = REQUIRED) -> None:
    def function(*, value: float) -> None: ...

    function.__annotations__["value"] = annotation
    if default is not REQUIRED:
        function.__kwdefaults__ = {"value": default}
    parameters_of(function)


@pytest.mark.parametrize(
    ("annotation", "default", "what"),
    [
        (complex, REQUIRED, "cannot be checked"),
        (list[int], REQUIRED, "cannot be checked"),
        (dict[int, str], REQUIRED, "cannot be checked"),
        (Literal[1.5], REQUIRED, "cannot be checked"),
        (Annotated[str, Between(0, 1)], REQUIRED, "does not apply to text"),
        (Annotated[float, "a note"], REQUIRED, "does not apply to a number"),
        ("NotThere", REQUIRED, "cannot be read: name 'NotThere' is not defined"),
        (Share, 2.0, "the default contradicts its own declaration: value must be a number from 0 to 1, not 2.0"),
    ],
)
def test_what_cannot_be_checked_fails_where_it_is_declared(annotation: Any, default: Any, what: str) -> None:
    with pytest.raises(DeclarationError, match="value of function") as caught:
        _declare(annotation, default)
    assert what in str(caught.value)


def test_a_parameter_without_annotation_is_refused() -> None:
    def function(*, value=1):  # type: ignore[no-untyped-def]
        return value

    with pytest.raises(DeclarationError, match="value of function has no annotation"):
        parameters_of(function)


def test_annotations_may_name_what_is_local() -> None:
    Local = Annotated[float, Between(0, 3)]

    def function(*, value: Local = 1.0) -> Any:  # type: ignore[valid-type]
        return Local

    assert parameters_of(function)[0].kind.words == "a number from 0 to 3"


def test_rows_describe_themselves() -> None:
    found = rows()
    assert found["density"].help() == ("density: what share is kept (a number above 0 and at most 1; default 0.5)")
    assert found["name"].help() == "name:  (text; required)"
    assert found["elect"].row() == "| `elect` | mass or count | mass | how |"
    assert found["normalize"].default_words == "false"
    schema = object_schema(parameters_of(example))
    assert schema["required"] == ["name"]
    assert schema["properties"]["density"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "what share is kept",
        "default": 0.5,
    }


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (Between(0, None), "a number of at least 0"),
        (Between(0, None, open="low"), "a number above 0"),
        (Between(None, 1), "a number of at most 1"),
        (Between(None, 1, open="high"), "a number below 1"),
        (Between(0, 1, open="both"), "a number above 0 and below 1"),
        (Between(0, 1, open="high"), "a number at least 0 and below 1"),
    ],
)
def test_bounds_in_words(between: Between, words: str) -> None:
    assert kind_of(Annotated[float, between], "x").words == words


def test_read_mapping_tells_a_key_that_is_no_text() -> None:
    problems: list[Problem] = []
    read_mapping({1: 2}, parameters_of(lambda: None), At.fixed("here", "x"), problems)
    assert problems[0].what == "unknown key '1' in x"


def test_defaults_of_dataclasses_survive() -> None:
    default = next(row.default for row in fields_of(Outer) if row.name == "inner")
    assert dataclasses.is_dataclass(default)


def test_importing_declarations_methods_and_recipes_imports_no_torch() -> None:
    code = (
        "import sys, taskmerge.declarations, taskmerge.methods, taskmerge.recipes as r; r.schema();"
        "print([n for n in ('torch', 'transformers', 'numba') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
