"""Runs a case's commands and says what is wrong with how each ended. Nothing here knows what a case is about."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.cases import GENERATORS, Case, Command, Ended
from fuzz.surroundings import Snapshot, differences, snapshot
from fuzz.watching import Watched, watching

CODES = (0, 1, 2, 3, 4)
MOST_LINES, MOST_CHARACTERS = 20, 4096
CANARY = "canary"
"""What foreign code makes when it is run: a file of this name, anywhere below the sandbox."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")
_TRACES = ("Traceback (most recent call last)", "Exception ignored", "this is a bug in taskmerge", "internal error")


@dataclass
class Result:
    """Of one case: how many commands ran, how many of them were accepted, and what was wrong."""

    commands: int = 0
    accepted: int = 0
    compared: int = 0
    findings: list[str] = field(default_factory=list)


def run_case(case: Case, sandbox: Path, templates: Path, begins: Callable[[str], None] = lambda _: None) -> Result:
    """One case in a sandbox of its own, which is made anew.

    sandbox: holds room/ (the current folder of commands), outside/ and temporary/ then.  begins: told of each command.
    """
    room = prepare(sandbox, templates / GENERATORS[case.generator].template)
    os.chdir(room)
    begins("make")
    commands = GENERATORS[case.generator].make(case.random(), room)
    result = Result()
    for one in commands:
        told = " ".join(one.words)
        begins(told)
        if not room.is_dir():
            break
        result.commands += 1
        before = snapshot(sandbox)
        with watching(sandbox) as watched:
            ended = run(one)
        found = list(judge(one, ended, sandbox, before, watched))
        if ended.code == 0:
            result.accepted += 1
            if one.check is not None and not found:
                result.compared += 1
                found += one.check(room, ended)
        elif one.must:
            found.append(f"refused: {ended.err.strip()[-400:]}")
        result.findings += [f"{told}: {what}" for what in found]
    return result


def prepare(sandbox: Path, template: Path) -> Path:
    for name in ("room", "outside", "temporary"):
        shutil.rmtree(sandbox / name, ignore_errors=True)
    room = sandbox / "room"
    if template.is_dir():
        shutil.copytree(template, room, symlinks=True)
    else:
        room.mkdir(parents=True)
    (sandbox / "temporary").mkdir()
    (sandbox / "outside").mkdir()
    (sandbox / "outside" / "precious.txt").write_text("ten years of work")
    (sandbox / "outside" / "secret.json").write_text('{"secret": "of the owner"}')
    return room


def run(one: Command) -> Ended:
    """The command through `main`, as the script runs it, with everything it prints."""
    import taskmerge.cli

    out, err = io.StringIO(), io.StringIO()
    code: int | None = None
    trace = ""
    arguments = sys.argv
    sys.argv = ["taskmerge", *one.words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            taskmerge.cli.main()
            code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        trace = "\n".join(line[:300] for line in traceback.format_exc().splitlines())
    finally:
        sys.argv = arguments
    gc.collect(1)
    return Ended(code, out.getvalue(), err.getvalue(), trace)


def judge(one: Command, ended: Ended, sandbox: Path, before: Snapshot, watched: Watched) -> Iterator[str]:
    """What is wrong with how a command ended."""
    if ended.traceback:
        yield "traceback: " + ended.traceback[-3000:]
    elif ended.code not in CODES:
        yield f"exit code {ended.code}"
    asked = any(word == "--verbose" or re.fullmatch("-[a-z]*v[a-z]*", word) for word in one.words)
    for trace in _TRACES[1:] if asked else _TRACES:  # --verbose asks for the trace of a failure
        if trace in ended.err or trace in ended.out:
            yield f"printed {trace!r}: {(ended.err + ended.out)[-3000:]}"
    if ended.code not in (0, None) and not asked:
        yield from _message(ended)
    if control := _CONTROL.search(ended.err) or _CONTROL.search(ended.out):
        around = control.string[max(0, control.start() - 80) :][:160]
        yield f"a control character was printed: {control[0]!r} in {around!r}"
    yield from _touched(one, ended, sandbox, before, watched)
    allowed = {str(sandbox / "room" / name) for name in one.runs}
    for name in sorted(watched.ran - allowed):
        yield f"canary: code of {name} was run"
    for what in sorted(watched.started):
        if "'fc-list'" not in what or "--plot" not in one.words:  # by which matplotlib finds fonts, once
            yield f"started a program: {what}"
    for what in sorted(watched.reached):
        yield f"reached for the network: {what}"


def _message(ended: Ended) -> Iterator[str]:
    if not (ended.err + ended.out).strip():
        yield f"exit code {ended.code} without a message"
    text = ended.err[max(ended.err.find("taskmerge:"), 0) :]
    if len(text.splitlines()) > MOST_LINES or len(text) > MOST_CHARACTERS:
        yield f"a message of {len(text.splitlines())} lines, {len(text)} characters: {text[:300]!r}"


def _touched(one: Command, ended: Ended, sandbox: Path, before: Snapshot, watched: Watched) -> Iterator[str]:
    """Files that were made, changed or removed though the command had no business there."""
    after = snapshot(sandbox)
    room = sandbox / "room"
    outputs = [room / name for name in one.writes]
    outputs += [Path(os.path.realpath(out.parent)) / out.name for out in outputs]  # the user's path goes through a link
    for path, how in sorted(differences(before, after).items()):
        if Path(path).name == CANARY:
            yield f"canary: {path} was made"
        elif path.startswith("temporary/"):
            yield f"left a temporary file: {path}"
        elif not any(_belongs(sandbox / path, out, ended) for out in outputs):
            yield f"{how} outside the output: {path}"
    kept = (
        str(sandbox / "temporary"),
        str(sandbox.parent / "home"),
        str(sandbox.parent.parent / "cache"),
        *("/dev/", "/proc/", "/sys/"),  # the kernel makes no file there, whoever asks
    )
    for path in sorted(watched.written):
        # gone again by the end, or outside the sandbox
        inside = any(_belongs(Path(path), out, None) for out in outputs)
        if not f"{path}/".replace("//", "/").startswith(kept) and not inside and "__pycache__" not in path:
            yield f"wrote outside the output: {path}"


def _belongs(path: Path, out: Path, ended: Ended | None) -> bool:
    """Whether a path is of an output: below it, or of its run beside it. A refused command leaves nothing finished."""
    beside = (f".{out.name}.", f"{out.name}-")
    if out == path or out in path.parents:
        return True
    if path in out.parents:  # folders above an output are made for it, and go with one that fails
        return ended is None or ended.code == 0
    relative = path.relative_to(out.parent).parts if out.parent in path.parents else ()
    return bool(relative) and (relative[0].startswith(beside) or Path(relative[0]).stem == out.stem)
