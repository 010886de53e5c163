"""Other systems than the one the tests run on: macOS, which lacks calls that Linux has, and Pythons from 3.10 on."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import digests, write_model, write_recipe
from places import ROOT

PACKAGE = sorted((ROOT / "taskmerge").rglob("*.py"))
LINUX_ONLY = {
    "os": {
        "posix_fallocate", "posix_fadvise", "O_DIRECT", "O_TMPFILE", "O_PATH", "sched_getaffinity", "sched_setaffinity",
        "copy_file_range", "memfd_create", "eventfd", "splice", "getxattr", "setxattr", "pidfd_open",
        "RWF_DSYNC", "O_NOATIME", "fdatasync", "pipe2", "getrandom", "unshare", "setns",
    },
    "mmap": {"MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_DONTFORK", "MADV_REMOVE", "MAP_POPULATE", "MAP_NORESERVE"},
    "fcntl": {"F_SETPIPE_SZ", "F_GETPIPE_SZ", "F_ADD_SEALS", "F_OFD_SETLK", "F_NOTIFY"},
    "signal": {"sigwaitinfo", "sigtimedwait", "SIGPWR", "SIGSTKFLT"},
    "socket": {"SOCK_NONBLOCK", "SOCK_CLOEXEC"},
}  # fmt: skip
"""Not there on macOS."""
NEWER = {  # module, or what is in one, that came after 3.10
    "tomllib", "asyncio.timeout", "asyncio.TaskGroup", "asyncio.Runner", "contextlib.chdir", "datetime.UTC",
    "enum.StrEnum", "enum.ReprEnum", "enum.verify", "enum.member", "enum.nonmember", "hashlib.file_digest",
    "typing.Self", "typing.Never", "typing.LiteralString", "typing.assert_never", "typing.assert_type",
    "typing.reveal_type", "typing.NotRequired", "typing.Required", "typing.Unpack", "typing.TypeVarTuple",
    "typing.dataclass_transform", "typing.override", "typing.TypeAliasType", "typing.ReadOnly", "typing.TypeIs",
    "typing.NoDefault", "typing.get_overloads", "itertools.batched", "math.cbrt", "math.exp2", "math.sumprod",
    "math.fma", "operator.call", "collections.abc.Buffer", "copy.replace", "warnings.deprecated", "sys.exception",
    "inspect.getmembers_static", "logging.getLevelNamesMapping", "string.templatelib", "compression", "annotationlib",
    "concurrent.interpreters", "os.process_cpu_count", "queue.ShutDown", "pathlib.UnsupportedOperation",
    "threading.setprofile_all_threads", "locale.getencoding", "functools.Placeholder", "heapq.heappush_max",
}  # fmt: skip
NEWER_METHODS = {"walk", "is_junction", "full_match", "from_uri", "add_note"}
"""Of paths and exceptions."""
NEWER_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path), feature_version=(3, 10))


def names_used(module: ast.Module) -> set[tuple[str, int]]:
    """Dotted names of what is taken from modules, with the line."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {(f"{node.module}.{alias.name}", node.lineno) for alias in node.names} | {
                (node.module, node.lineno)
            }
        elif isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add((ast.unparse(node), node.lineno))
    return found


def guarded(path: Path, name: str) -> bool:
    """Whether the file asks first: hasattr(os, "name"), or getattr with a default."""
    return re.search(rf"(hasattr|getattr)\(\w+, \"{name}\"", path.read_text("utf-8")) is not None


def test_what_linux_alone_has_is_asked_for_first() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in PACKAGE
        for name, line in names_used(tree(path))
        for module, only in LINUX_ONLY.items()
        if name.partition(".")[0] == module and name.partition(".")[2] in only
        if not guarded(path, name.partition(".")[2])
    ]
    assert not bare, "\n".join(bare)


def test_nothing_newer_than_python_3_10_is_used() -> None:
    newer = []
    for path in PACKAGE:
        module = tree(path)
        newer += [f"{path}:{line}: {name}" for name, line in names_used(module) if name in NEWER]
        for node in ast.walk(module):
            if isinstance(node, ast.Name) and node.id in NEWER_BUILTINS:
                newer.append(f"{path}:{node.lineno}: {node.id}")
            called = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
            if called and called.attr in NEWER_METHODS and ast.unparse(called.value) not in ("os", "ast"):
                newer.append(f"{path}:{called.lineno}: .{called.attr}()")
    assert not newer, "\n".join(newer)


def test_pyproject_says_which_pythons() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'requires-python = ">=3.10"' in text and 'target-version = "py310"' in text
    for minor in range(10, 15):
        assert f'"Programming Language :: Python :: 3.{minor}"' in text


def interpreters() -> list[Path]:
    """Of other versions of Python that lie on this machine."""
    homes = [Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"]
    found = [path for home in homes for path in sorted(home.glob("3.*/bin/python3"))]
    return [path for path in found if int(path.parts[-3].split(".")[1]) >= 10]


@pytest.mark.parametrize("python", interpreters() or [Path(sys.executable)], ids=lambda path: path.parts[-3])
def test_every_python_here_compiles_every_file(python: Path, tmp_path: Path) -> None:
    """And runs what needs no library: the words, the errors and the regular expressions."""
    script = """
import ast, sys
from pathlib import Path
for path in Path('taskmerge').rglob('*.py'):
    compile(path.read_text('utf-8'), str(path), 'exec')
import taskmerge.errors, taskmerge.opened, taskmerge.printable
from taskmerge.words import devices, extras, json_text, modalities, numerals, patterns, places, sizes, statistics
from taskmerge.words import system_errors
from taskmerge.words.regular import Regular
assert Regular(r'(a|b)+c{2}|(?i:X)').fullmatch('abacc') and not Regular('(.|.)*!').fullmatch('a' * 99)
assert sizes.parse_size('1TiB') == 2**40 and patterns.matches('a.1.b', 'a.{0..3}.*')
import taskmerge.cli.funnel
"""
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run([python, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


LIKE_MACOS = f"""
import fcntl, mmap, os, signal, socket, sys
gone = {LINUX_ONLY!r}
for module in (os, mmap, fcntl, signal, socket):
    for name in gone[module.__name__]:
        if hasattr(module, name):
            delattr(module, name)
import shutil
shutil._USE_CP_SENDFILE = False
from taskmerge.cli import main
main()
"""


def test_macos_by_taking_away_what_it_lacks(tmp_path: Path) -> None:
    """fuse, verify, extract, apply and doctor where no call of Linux's own is left; the same bytes as with them."""
    for number, name in enumerate(("base", "one")):
        write_model(tmp_path / name, {"model.layers.0.mlp.weight": torch.full((37, 41), float(number))})
    write_recipe(tmp_path, base="base", specialists={"one": "one"}, merge={"method": "ties", "density": 0.5})

    def run(*arguments: str, like_macos: bool = True) -> None:
        script = LIKE_MACOS if like_macos else "from taskmerge.cli import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("fuse", "merge.yaml", "--out", "linux", like_macos=False)
    run("fuse", "merge.yaml", "--out", "macos")
    run("verify", "macos")
    run("extract", "base", "one", "--out", "vector")
    run("apply", "base", "vector", "--out", "applied")
    weights = "model.safetensors"
    assert digests(tmp_path / "linux")[weights] == digests(tmp_path / "macos")[weights]
    assert digests(tmp_path / "applied")[weights] == digests(tmp_path / "one")[weights]
