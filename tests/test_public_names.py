"""The Python interface as a whole: typed, documented, with examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from places import ROOT

import taskmerge

NAMES = [name for name in taskmerge.__all__ if name != "__version__"]
HOMES = sorted({inspect.getmodule(getattr(taskmerge, name)).__name__ for name in NAMES})  # type: ignore[union-attr]
BARE = re.compile(r"(^|\| *)Any($| *\|)")


def signatures() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, and every public method of a public class that is defined here."""
    for name in NAMES:
        found = getattr(taskmerge, name)
        if not inspect.isclass(found):
            yield name, found
            continue
        for own, value in vars(found).items():
            function = getattr(value, "__func__", getattr(value, "fget", None) or getattr(value, "func", value))
            if not own.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{own}", function


def types_of(function: Callable[..., Any]) -> dict[str, str]:
    signature = inspect.signature(function)
    found = {
        name: str(one.annotation)
        for name, one in signature.parameters.items()
        if name not in ("self", "cls") and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }
    return {**found, "return": str(signature.return_annotation)}


def test_signatures_say_their_types() -> None:
    seen = dict(signatures())
    assert {"fuse", "Checkpoint.open", "TaskVector.save", "search"} <= seen.keys()
    loose = []
    for name, function in seen.items():
        for parameter, said in types_of(function).items():
            missing = "inspect" in said and "_empty" in said
            own = "." not in name and re.search(r"\bAny\b", said)  # functions have none at all
            if missing or own or BARE.search(said):
                loose.append(f"{name}({parameter}: {said})")
    assert not loose, "\n".join(loose)


@pytest.mark.parametrize("home", HOMES)
def test_examples_run(home: str) -> None:
    module = importlib.import_module(home)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in finder.find(module, globs={**vars(module), "torch": torch, "taskmerge": taskmerge}):
        runner.run(test)
    assert not runner.summarize(verbose=False).failed


def test_there_are_examples() -> None:
    shown = [name for name in NAMES if ">>>" in (inspect.getdoc(getattr(taskmerge, name)) or "")]
    assert {"Checkpoint", "TaskVector", "fuse", "compare_task_vectors", "EvaluationTable", "ModelSource"} <= {*shown}


def test_every_name_is_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    described = set(re.findall(r"`(?:taskmerge\.)?(\w+)", page))
    assert not set(NAMES) - described
    for name in NAMES:
        assert inspect.getdoc(getattr(taskmerge, name)), name


def test_the_public_modules_are_checked_strictly() -> None:
    """mypy itself is run by `make check`; here: that nobody's home is left out of the strict ones."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    strict = re.search(r"\[\[tool.mypy.overrides\]\]\n#.*\nmodule = \[(.*?)\]\n(.*?)\n\n", text + "\n\n", re.DOTALL)
    assert strict is not None and "disallow_any_generics = true" in strict[2] and "warn_return_any = true" in strict[2]
    named = set(re.findall(r'"([\w.*]+)"', strict[1]))
    assert not [home for home in HOMES if home not in named and f"{home.rpartition('.')[0]}.*" not in named]
