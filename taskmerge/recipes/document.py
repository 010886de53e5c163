"""A YAML file as plain values plus the line of each. Stricter than YAML: misleading forms are errors.

Numbers, true/false and null are read as YAML 1.2 does (`1e-5` is a number, `no` is text, `010` is ten). Not read:
keys that are not text, tags, aliases that hold themselves or multiply without end. `<<` merges mappings, as
YAML 1.1 does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from taskmerge.errors import Problem, RecipeError

MOST_BYTES = 1_000_000
MOST_VALUES = 50_000
DEEPEST = 60

_TAG = "tag:yaml.org,2002:"


class _Composer(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as the parent has it)


for _name, _regex, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
]:
    _Composer.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_regex})\Z"), _first)


@dataclass
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and their places.

    label: what places call the file.  folder: what relative file names in it are relative to.
    lines: line of each value, by path of keys and positions; the line of a mapping's entry is its key's.
    repeated: keys that are given twice, of which the last counts; what that means is the reader's to say.
    """

    data: Any
    label: str
    folder: Path
    text: str
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    repeated: tuple[Problem, ...] = ()

    def place(self, path: tuple[str | int, ...]) -> str:
        """Return "file:line" of the value at `path`, or of the nearest value around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return f"{self.label}:{self.lines[path]}" if path in self.lines else self.label


def read_documents(path: str | Path) -> list[Document]:
    """Return the documents of a YAML file, at least one. Raises RecipeError with every problem of its form."""
    label, path = str(path), Path(path)
    try:
        raw = path.read_bytes()[: MOST_BYTES + 1] if path.is_file() else None
    except OSError as error:
        raise RecipeError(
            f"{label} cannot be read: {error.strerror}", next_move="check that the file exists and that you may read it"
        ) from error
    if raw is None:
        what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
        raise RecipeError(f"{label} {what}", next_move="give the path of a recipe (a YAML file)")
    if len(raw) > MOST_BYTES:
        raise RecipeError(
            f"{label} is larger than {MOST_BYTES:,} bytes, too large for a recipe",
            next_move="check that this is a recipe",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError("the file is not UTF-8 text", f"{label}:{line}", "save it as UTF-8") from error
    return parse_documents(text, label, path.parent)


def parse_documents(text: str, label: str, folder: Path) -> list[Document]:
    """Parse documents from text, as `read_documents` does from a file."""
    try:
        nodes = list(yaml.compose_all(text, Loader=_Composer))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, label) from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"not readable as YAML: {error}".replace("\n", " "),
            label,
            "save it as plain text, without control characters",
        ) from error
    except RecursionError:
        raise RecipeError(
            "values are nested too deeply for a recipe", label, "write a recipe with fewer levels"
        ) from None
    documents = []
    for node in nodes:
        reader = _Reader(label)
        data = reader.value(node, ()) if node is not None else None
        if reader.problems:
            raise RecipeError(reader.problems)
        documents.append(Document(data, label, folder, text, reader.lines, tuple(reader.repeated)))
    return documents or [Document(None, label, folder, text)]


def _syntax_error(error: yaml.MarkedYAMLError, label: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    what = f"not readable as YAML: {error.problem or error.context}"
    if mark is None:
        return RecipeError(what, label, "correct the file")
    source = mark.get_snippet(indent=0, max_length=100) if mark.buffer is not None else None
    tab = source is not None and "\t" in source.split("\n")[0]
    move = "indent with spaces; YAML does not allow tabs" if tab else None
    shown = f"{what}\n{source}" if source else what
    return RecipeError(shown, f"{label}:{mark.line + 1}", move)


class _Reader:
    """Turns a graph of nodes into plain values, noting lines and problems."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.problems: list[Problem] = []
        self.repeated: list[Problem] = []
        self.count = 0
        self.open: set[int] = set()

    def problem(self, what: str, node: yaml.Node, move: str | None = None) -> None:
        self.problems.append(Problem(what, f"{self.label}:{node.start_mark.line + 1}", move))

    def value(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self.count += 1
        if self.count > MOST_VALUES:
            if self.count == MOST_VALUES + 1:
                self.problem(f"the recipe contains more than {MOST_VALUES:,} values, including aliases", node)
            return None
        if id(node) in self.open or len(path) > DEEPEST:
            what = "an alias contains itself" if id(node) in self.open else "values are nested too deeply for a recipe"
            self.problem(what, node)
            return None
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.value(entry, (*path, index)) for index, entry in enumerate(node.value)]
            return self.refuse_tag(node)
        finally:
            self.open.discard(id(node))

    def refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self.problem(f"the tag {tag} is not allowed in a recipe", node, "write the plain value")

    def scalar(self, node: yaml.ScalarNode) -> Any:
        name = node.tag.removeprefix(_TAG)
        try:
            if name == "str":
                return node.value
            if name == "null":
                return None
            if name == "bool":
                return {"true": True, "false": False}[node.value.lower()]
            if name == "int":
                return int(node.value)
            if name == "float":
                return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", node.value.lower()))
        except (ValueError, KeyError):
            self.problem(f"{node.value[:50]!r} cannot be read as {name}", node)
            return None
        return self.refuse_tag(node)

    def mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        read: dict[str, Any] = {}
        first: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key == "<<" and key_node.style is None:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = repr(key) if key is not None else "a list or mapping"
                move = f'put it in quotes: "{key}"' if key else None
                self.problem(f"a key must be text, not {shown}", key_node, move)
            else:
                if key_node.value in read:
                    place = f"{self.label}:{key_node.start_mark.line + 1}"
                    move = f"remove one; it is already on line {first[key_node.value]}"
                    self.repeated.append(Problem(f"the key {key_node.value!r} is given twice", place, move))
                first[key_node.value] = self.lines[(*path, key_node.value)] = key_node.start_mark.line + 1
                read[key_node.value] = self.value(value_node, (*path, key_node.value))
        for source in merged:
            read = {**self._merged(source, path), **read}
        return read

    def _merged(self, source: yaml.Node, path: tuple[str | int, ...]) -> dict[str, Any]:
        """The entries that `<<` adds to the mapping at `path`; its own entries, and earlier sources', win."""
        if not isinstance(source, yaml.MappingNode):
            self.problem("<< must refer to a mapping, or to a list of mappings", source, "write `<<: *anchor`")
            return {}
        held = dict(self.lines)
        found = self.value(source, path)
        self.lines.update(held)  # entries of the mapping itself keep their place
        return found if isinstance(found, dict) else {}
