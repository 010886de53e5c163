"""Leases: who writes what in a store, where there are no locks.

A writer writes an object of its own next to those of the others and looks at all of them. Of those that live the oldest
holds; the others step back. Time is the store's: an object that was not written again for `LIFE` seconds, as the newest
one counts them, is of a writer that is gone; so is one whose process no longer exists on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict
from uuid import uuid4

from taskmerge.checkpoints.stores.interface import UNFINISHED, Stat, Store, storing
from taskmerge.errors import OutputError, TaskmergeError
from taskmerge.words.json_text import parse_json

LIFE, RENEW = 60.0, 15.0
"""Seconds after which a lease that was not renewed is no more; seconds between renewals."""
_FOLDER = f"{UNFINISHED}/leases"


class Holder(TypedDict):
    """The holder of a lease. began: identity of its process (boot and start time); since: seconds since 1970."""

    host: str
    process: int
    began: str
    since: float


class Lease:
    """The right to write one thing (`what`: a file's name, or "" for the whole output) while the block lasts.

    Raises OutputError when another living writer holds it, the whole, or anything of it where `what` is the whole.
    """

    def __init__(self, store: Store, what: str = "") -> None:
        self._store, self._what = store, what
        self._name = f"{_FOLDER}/{_called(what)}/{uuid4().hex}.json"
        self._text = json.dumps(
            {"host": socket.gethostname(), "process": os.getpid(), "began": _began(os.getpid()), "since": time.time()}
        ).encode()
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        storing(self._store.uri, lambda: self._store.put(self._name, self._text))
        try:
            self._check()
        except BaseException:
            self._give_back()
            raise
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._give_back()

    def _give_back(self) -> None:
        with suppress(Exception):
            self._store.remove([self._name])

    def _renew(self) -> None:
        while not self._ended.wait(RENEW):
            with suppress(Exception):  # the next time; writing itself says what is wrong
                self._store.put(self._name, self._text)

    def _check(self) -> None:
        rows = storing(self._store.uri, self._store.names)
        leases = {name: stat for name, stat in rows.items() if name.startswith(f"{_FOLDER}/")}
        own = leases.pop(self._name, None)
        now = max([stat.modified for stat in leases.values()] + [own.modified if own else 0.0])
        mine = (own.modified if own else now, self._name)
        for name, stat in sorted(leases.items(), key=lambda row: (row[1].modified, row[0])):
            if not self._concerns(name) or now - stat.modified > LIFE or (stat.modified, name) > mine:
                continue
            holder = self._holder(name, stat)
            if holder is not None:
                what = (
                    f"another process is writing {self._what or 'this output'}: {holder['process']} on {holder['host']}"
                )
                move = f"wait for it to end; if it was killed, retry after {LIFE:.0f} seconds"
                raise OutputError(what, str(self._store.uri), move)

    def _concerns(self, name: str) -> bool:
        what = name.removeprefix(f"{_FOLDER}/").partition("/")[0]
        return not self._what or what in (_called(self._what), _called(""))

    def _holder(self, name: str, stat: Stat) -> Holder | None:
        """Who holds another lease; None where that is known to have ended."""
        try:
            text = self._store.read(name, 0, stat.size)
            holder: Holder = parse_json(text, Holder, name)
        except (FileNotFoundError, TaskmergeError):
            return None
        gone = holder["host"] == socket.gethostname() and holder["began"] != _began(holder["process"])
        if gone:
            with suppress(Exception):
                self._store.remove([name])
        return None if gone else holder


def _called(what: str) -> str:
    return what.replace("/", "%2F") or "whole"


def _began(process: int) -> str:
    """What tells a process from others of the same number; "" for one that is gone, "?" where that is not known."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot}:{stat.rpartition(')')[2].split()[19]}"
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else "?"
    except OSError:
        return "?"
