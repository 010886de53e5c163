"""The reference is whole: every command, option, key of a recipe, method, parameter and public name is on its page.

What there is comes from the program itself (the parser, the JSON Schema, the registry), not from what prints the pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from places import ROOT
from typer.main import get_command

import taskmerge
from taskmerge import recipes
from taskmerge.cli.app import app
from taskmerge.methods import all_methods

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next of its level."""
    level = heading.split(" ")[0]
    assert f"\n{heading}\n" in text, heading
    return text.split(f"\n{heading}\n")[1].split(f"\n{level} ")[0]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_has_its_line(name: str) -> None:
    told = section(page("commands"), f"## {name}")
    for parameter in COMMANDS[name].params:
        for spelled in [*parameter.opts, *parameter.secondary_opts]:
            if spelled.startswith("-"):
                line = re.search(rf"^ +(?:-\w, )?(?:--[\w-]+ / )?{re.escape(spelled)}\b.*", told, re.MULTILINE)
                assert line, f"{name} {spelled}"
            else:
                assert re.search(rf"^  {spelled}(\.\.\.)? +\S", told, re.MULTILINE), f"{name} {spelled}"
        assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


def keys(schema: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """(where, key) of everything that a recipe may hold, from its JSON Schema."""
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            yield at, name
            yield from keys(inner, f"{at}.{name}".lstrip("."))
        for name, inner in schema.items():
            if name != "properties":
                yield from keys(inner, at)
    elif isinstance(schema, list):
        for inner in schema:
            yield from keys(inner, at)


def test_every_key_of_a_recipe_has_its_row() -> None:
    of_methods = {row.name for method in all_methods() for row in method.parameters}
    found = set(keys(recipes.schema()))
    assert len(found) > 80 and {"rank", "recall_drop", "temperature", "shard_size"} <= {key for _, key in found}
    rows, methods = page("recipe"), page("methods")
    lost = [
        f"{at}: {key}" for at, key in sorted(found)
        if f"\n| `{key}` |" not in rows and not (key in of_methods and f"\n| `{key}` |" in methods)
    ]  # fmt: skip
    assert not lost, lost


@pytest.mark.parametrize("name", [method.name for method in all_methods()])
def test_every_method_and_its_parameters_have_a_section(name: str) -> None:
    (method,) = [one for one in all_methods() if one.name == name]
    told = section(page("methods"), f"### `{name}`")
    assert not [row.name for row in method.parameters if f"\n| `{row.name}` |" not in told]
    assert not [alias for alias in method.aliases if f"`{alias}`" not in told]


def test_every_public_name_is_on_some_page() -> None:
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    code = "\n".join(re.findall(r"```python\n.*?```|`[^`\n]+`", text, re.DOTALL))
    lost = [name for name in taskmerge.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", code)]
    assert not lost, lost
