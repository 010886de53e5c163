"""The floors of the house: imports point down, and starting up is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from places import TESTS

import taskmerge

PACKAGE = Path(taskmerge.__file__).parent
FLOORS: dict[str, int] = {
    "errors": 0, "printable": 0, "opened": 0, "whole_files": 0, "words": 0, "numbers": 0, "declarations": 0,
    "metrics": 1,
    "kernels": 1,
    "checkpoints": 2,
    "methods": 3,
    "recipes": 4, "embedders": 4,
    "omni": 5, "merging": 5, "training": 5, "measuring": 5,
    "pipeline": 6, "reporting": 6, "demo": 6, "searching": 6,
    "cli": 7, "__main__": 7,
}  # fmt: skip
HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "einops",
    "numba",
    "sentence_transformers",
    "rich",
    "yaml",
    "huggingface_hub",
)


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, for_types: bool = False) -> set[str]:
    """taskmerge modules that a file imports anywhere; for_types: under TYPE_CHECKING too."""
    found: set[str] = set()
    known = set(modules())

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if for_types or "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "taskmerge":
                found.update(f"taskmerge.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("taskmerge."):
                files = {f"{node.module}.{alias.name}" for alias in node.names}
                found.update(files & known if files <= known else {node.module, *(files & known)})

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names if alias.name.startswith("taskmerge."))

    Visitor().visit(ast.parse(path.read_text("utf-8")))
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in modules() if "." in module}
    assert rooms <= set(FLOORS), f"say the floor of {rooms - set(FLOORS)} here and in docs/architecture.md"


def test_imports_point_down() -> None:
    upward = []
    for module, path in modules().items():
        if "." not in module:
            continue
        for target in imports(path):
            if room(target) in FLOORS and FLOORS[room(target)] > FLOORS[room(module)]:
                upward.append(f"{module} (floor {FLOORS[room(module)]}) -> {target} (floor {FLOORS[room(target)]})")
    assert not upward, "\n".join(upward)


def test_rooms_of_one_floor_do_not_form_a_ring() -> None:
    edges: dict[str, set[str]] = {}
    for module, path in modules().items():
        if "." in module:
            edges.setdefault(room(module), set()).update(
                room(target) for target in imports(path) if room(target) in FLOORS and room(target) != room(module)
            )

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for after in edges.get(stack.pop(), ()):
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
        return seen

    rings = sorted(start for start in edges if start in reachable(start))
    assert not rings, f"rooms that import each other: {rings}"


def test_files_do_not_form_a_ring() -> None:
    known = modules()
    edges = {module: imports(path, for_types=True) & known.keys() for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "files that import each other: " + " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in sorted(known):
        visit(module, ())


def test_tests_lie_as_the_package_does() -> None:
    """tests/a/b holds the tests of taskmerge/a/b, and every room has some."""
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {Path()}
    assert not [str(folder) for folder in folders if not (PACKAGE / folder).is_dir()]
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert rooms <= {folder.parts[0] for folder in folders}


def test_the_trades_know_nothing_of_one_another() -> None:
    trades = ("merging", "training", "measuring")
    meetings = [
        f"{module} -> {target}"
        for module, path in modules().items()
        if "." in module and room(module) in trades
        for target in imports(path)
        if room(target) in trades and room(target) != room(module)
    ]
    assert not meetings, "\n".join(meetings)


def test_starting_up_is_light() -> None:
    script = "import sys, taskmerge, taskmerge.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in HEAVY if name in loaded]


def test_version_is_the_newest_in_the_changelog() -> None:
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest and newest[1] == taskmerge.__version__


def test_no_test_module_is_imported_by_another() -> None:
    """What several tests share lies in tests/helpers, so that every file can be run alone."""
    importing = re.compile(r"^\s*(from|import) test_\w+", re.MULTILINE)
    found = [path.name for path in TESTS.rglob("*.py") if importing.search(path.read_text("utf-8"))]
    assert not found, found


def test_no_two_test_files_have_one_name() -> None:
    """pytest would not collect the second: the folders of tests are no packages."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
