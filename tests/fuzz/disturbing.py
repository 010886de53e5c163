"""Commands that are disturbed while they write, by a failing disk or by kills, and what they leave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.system_calls import Disk, run_in_child

ENDED_WELL = (0, 3, 4)
"""Exit codes: also of a diagnosis that finds drift, or cannot tell."""
MODELS = ("specialist-audio", "specialist-text", "out", "out-recovered", "out-rehearsed")


@dataclass(frozen=True)
class Writer:
    """A command that writes. template: the folder it begins with.  outputs: the models that it leaves there."""

    template: str
    words: str
    outputs: tuple[str, ...] = ("out",)


WRITERS = {
    "fuse": Writer("layers", "fuse merge.yaml"),
    "fuse --fresh": Writer("older", "fuse merge.yaml --fresh"),
    "extract": Writer("layers", "extract base image --out out"),
    "extract sign": Writer("layers", "extract base image --out out --form sign"),
    "extract lora": Writer("layers", "extract base image --out out --lora 2"),
    "apply": Writer("layers", "apply base vector --out out --shard-size 512B"),
    "soup": Writer("layers", "soup [ai]*[oe] --out out --shard-size 512B"),
    "graft": Writer("grown", "graft backbone --modality audio --encoder log_mel --out out"),
    "stats": Writer("hearing", "stats model --probes sounds.jsonl", ()),
    "specialize": Writer("project", "specialize recipe.yaml", MODELS[:2]),
    "recover": Writer("repaired", "recover recipe.yaml", ("out-recovered",)),
    "rehearse": Writer("recovered", "rehearse recipe.yaml", ("out-rehearsed",)),
    "evaluate": Writer("rehearsed", "run recipe.yaml --from evaluate", ()),
    "run": Writer("project", "run recipe.yaml", MODELS),
}


def taskmerge(
    words: str, room: Path, disk: Disk | None = None, first: Callable[[], None] = lambda: None
) -> tuple[int | None, str]:
    """Runs a command in a forked child; returns its exit code, None when a signal ended it, and all that it said.

    disk: answers its writes.  first: called in the child before.
    """
    said = room.parents[2] / f"{room.parents[1].name}-said.txt"

    def action() -> int:
        import taskmerge.cli

        os.chdir(room)
        os.environ |= {
            "HOME": str(room.parents[1] / "home"),
            "XDG_CACHE_HOME": str(room.parents[1] / "cache"),
            "TMPDIR": str(room.parent / "temporary"),
        }
        tempfile.tempdir = str(room.parent / "temporary")
        sys.argv = ["taskmerge", *words.split()]
        first()
        try:
            taskmerge.cli.main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
        except BaseException:
            traceback.print_exc()
            return 98
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    code = run_in_child(action, disk, said)
    return code, said.read_text("utf-8", "replace")


def undisturbed(writer: Writer, room: Path, **how: Any) -> float:
    """Runs a command to its end; returns the seconds that it took."""
    began = time.monotonic()
    code, said = taskmerge(writer.words, room, **how)
    assert code in ENDED_WELL, f"{writer.words}: ends with {code}: {said}"
    return time.monotonic() - began


def outcome(room: Path) -> dict[str, str]:
    """Path -> what is there, of all that must be the same whenever the same command ends well."""
    found = {}
    for path in sorted(room.rglob("*")):
        name = str(path.relative_to(room))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file() and path.name != ".lock" and "-report/" not in name:
            found[name] = _digest(path)
        elif path.is_file() and name.endswith("-report/evaluate.json"):
            result = _timeless(json.loads(path.read_text())).get("result")
            if result is not None:  # else it says that the scores are being made: there are none
                found[name] = json.dumps(result, sort_keys=True)
    return found


def of_output(found: dict[str, str], name: str) -> dict[str, str]:
    """What of an outcome lies in one output."""
    return {path: what for path, what in found.items() if path.startswith(f"{name}/")}


def others(one: dict[str, str], two: dict[str, str]) -> list[str]:
    """Paths at which two outcomes differ."""
    return sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "taskmerge.json":
        with contextlib.suppress(ValueError):  # half written, in an unfinished output
            data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _timeless(value: Any) -> Any:
    """A record without what says how long something took, and whether it was gone on with."""
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if "second" not in key and key != "resume"}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
