"""What a command does while it runs, told by Python itself: code that is run, files written, programs, the network."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TARGETS = {
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
}
"""Event -> where its arguments name what is changed, and the folder that a relative name starts from."""
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")

_watch: Callable[[str, tuple[Any, ...]], None] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is not None:
        _watch(event, arguments)


def install() -> None:
    """Once a process; it cannot be taken away again."""
    sys.addaudithook(_hook)


class Watched:
    """What was seen. written: real paths.  ran: files of the room whose code was run."""

    def __init__(self, room: Path) -> None:
        self.room = os.fspath(room)
        self.written: set[str] = set()
        self.ran: set[str] = set()
        self.started: set[str] = set()
        self.reached: set[str] = set()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int):
                self._wrote(path)
        elif event == "exec":
            code = arguments[0]
            if isinstance(code, types.CodeType) and self._inside(code.co_filename):
                self.ran.add(code.co_filename)
        elif event in _TARGETS:
            for place, start in _TARGETS[event]:
                if not isinstance(arguments[place], int):
                    self._wrote(arguments[place], -1 if start is None else arguments[start])
        elif event in _PROGRAMS:
            self.started.add(f"{event} {str(arguments)[:200]}")
        elif event in _NETWORK:
            self.reached.add(f"{event} {str(arguments[1:])[:200]}")

    def _inside(self, name: str) -> bool:
        return not name.startswith("<") and _real(name).startswith(self.room + os.sep)

    def _wrote(self, path: Any, start: int = -1) -> None:
        try:
            inside = Path(f"/proc/self/fd/{start}" if start >= 0 else ".").resolve()
        except OSError:
            return
        folder, name = os.path.split(os.path.normpath(inside / os.fsdecode(path)))
        self.written.add(f"{os.path.realpath(folder)}{os.sep}{name}")


def _real(name: str) -> str:
    return os.path.normpath(Path.cwd() / name)


@contextmanager
def watching(room: Path) -> Iterator[Watched]:
    global _watch
    watched = Watched(room)
    _watch = watched
    try:
        yield watched
    finally:
        _watch = None
