"""Faults of the disk, put where every write of a process ends: in its system calls, whoever makes them.

A child's system calls that write stop in the kernel (seccomp's user notification) and this process answers each: go on,
or fail with an error number. So native code's writes count as Python's do, and no file system has to be filled.

Interface: https://man7.org/linux/man-pages/man2/seccomp_unotify.2.html
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_NUMBERS = {
    "x86_64": {
        "seccomp": 317,
        "write": 1,
        "pwrite64": 18,
        "writev": 20,
        "pwritev": 296,
        "fsync": 74,
        "fdatasync": 75,
        "ftruncate": 77,
        "fallocate": 285,
        "copy_file_range": 326,
        "sendfile": 40,
        "openat": 257,
        "open": 2,
        "creat": 85,
        "mkdir": 83,
        "mkdirat": 258,
        "rename": 82,
        "renameat": 264,
        "renameat2": 316,
        "link": 86,
        "linkat": 265,
        "symlink": 88,
        "symlinkat": 266,
        "unlink": 87,
        "unlinkat": 263,
        "rmdir": 84,
    },
    "aarch64": {
        "seccomp": 277,
        "write": 64,
        "pwrite64": 68,
        "writev": 66,
        "pwritev": 70,
        "fsync": 82,
        "fdatasync": 83,
        "ftruncate": 46,
        "fallocate": 47,
        "copy_file_range": 285,
        "sendfile": 71,
        "openat": 56,
        "mkdirat": 34,
        "renameat": 38,
        "renameat2": 276,
        "linkat": 37,
        "symlinkat": 36,
        "unlinkat": 35,
    },
}
_DESCRIPTOR = {
    "write": 0,
    "pwrite64": 0,
    "writev": 0,
    "pwritev": 0,
    "fsync": 0,
    "fdatasync": 0,
    "ftruncate": 0,
    "fallocate": 0,
    "copy_file_range": 2,
    "sendfile": 0,
}
"""Call -> which argument is the file."""
_PATH = {
    "openat": (0, 1),
    "open": (None, 0),
    "creat": (None, 0),
    "mkdir": (None, 0),
    "mkdirat": (0, 1),
    "rename": (None, 1),
    "renameat": (2, 3),
    "renameat2": (2, 3),
    "link": (None, 1),
    "linkat": (2, 3),
    "symlink": (None, 1),
    "symlinkat": (1, 2),
    "unlink": (None, 0),
    "unlinkat": (0, 1),
    "rmdir": (None, 0),
}
"""Call -> which arguments are the folder and the path."""
_NEED_NO_ROOM = ("fsync", "fdatasync", "unlink", "unlinkat", "rmdir")
"""Calls that a full disk does not refuse."""
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_ALLOW, _NOTIFY, _CONTINUE = 0x7FFF0000, 0x7FC00000, 1
_NO_NEW_PRIVILEGES, _SET_FILTER, _NEW_LISTENER = 38, 1, 8


def can_watch() -> bool:
    return platform.system() == "Linux" and platform.machine() in _NUMBERS and hasattr(socket, "send_fds")


@dataclass
class Disk:
    """Answers a child's writes below `root`: all go on, but the one at `point` fails, or all from there on.

    point: 0: none fails.  number: the error.  seen: how many writes there were.
    """

    root: Path
    point: int = 0
    number: int = errno.ENOSPC
    sticky: bool = True
    seen: int = 0
    failed: list[str] = field(default_factory=list)

    def answer(self, pid: int, name: str, arguments: tuple[int, ...]) -> int:
        """0 to go on, or an error number."""
        place = _place(pid, name, arguments)
        if place is None or not place.startswith(f"{self.root}{os.sep}"):
            return 0
        if name in _NEED_NO_ROOM and self.number == errno.ENOSPC:
            return 0
        self.seen += 1
        if self.point == 0 or not (self.seen >= self.point if self.sticky else self.seen == self.point):
            return 0
        self.failed.append(f"{name} {place}")
        return self.number


def _place(pid: int, name: str, arguments: tuple[int, ...]) -> str | None:
    """The file that a call writes to, or the path that it makes; None for a call that only reads."""
    try:
        if name in _DESCRIPTOR:
            return str(Path(f"/proc/{pid}/fd/{arguments[_DESCRIPTOR[name]]}").readlink())
        start, path = _PATH[name]
        if name in ("open", "openat") and not arguments[path + 1] & os.O_CREAT:
            return None
        text = _text(pid, arguments[path])
        folder = ctypes.c_int(arguments[start] & 0xFFFFFFFF).value if start is not None else -100
        inside = f"/proc/{pid}/cwd" if folder == -100 else f"/proc/{pid}/fd/{folder}"
        return os.path.normpath(Path(inside).readlink() / text)
    except OSError:
        return None


def _text(pid: int, address: int) -> str:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        data = b""
        while b"\0" not in data and len(data) < 4096:
            data += memory.read(min(256, 4096 - (address + len(data)) % 4096))
        return os.fsdecode(data.partition(b"\0")[0])


def run_in_child(action: Callable[[], int], disk: Disk | None, output: Path) -> int | None:
    """The action's exit code, run in a forked child whose writes `disk` answers; what it prints goes into a file.

    None when the child died by a signal.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            ours.close()
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            if disk is not None:
                socket.send_fds(theirs, [b"x"], [_listen()])
            code = action()
        finally:
            os._exit(code)
    theirs.close()
    if disk is not None:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        status = _serve(child, descriptors[0], disk)
        os.close(descriptors[0])
    else:
        _, status = os.waitpid(child, 0)
    ours.close()
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def _listen() -> int:
    """Stops this process's writing calls for whoever holds the returned descriptor."""
    library = ctypes.CDLL(None, use_errno=True)
    numbers = _NUMBERS[platform.machine()]
    watched = [numbers[name] for name in (*_DESCRIPTOR, *_PATH) if name in numbers]
    rows = [struct.pack("=HBBI", 0x20, 0, 0, 0)]  # load the call's number
    rows += [
        struct.pack("=HBBI", 0x15, len(watched) - place, 0, number)  # jump to the last row when it is equal
        for place, number in enumerate(watched)
    ]
    rows += [struct.pack("=HBBI", 0x06, 0, 0, _ALLOW), struct.pack("=HBBI", 0x06, 0, 0, _NOTIFY)]
    program = ctypes.create_string_buffer(b"".join(rows))
    head = struct.pack("@HP", len(rows), ctypes.addressof(program))
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = library.syscall(numbers["seccomp"], _SET_FILTER, _NEW_LISTENER, ctypes.create_string_buffer(head))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def _serve(child: int, listener: int, disk: Disk) -> int:
    names = {number: name for name, number in _NUMBERS[platform.machine()].items()}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if not any(event & select.POLLIN for _, event in poll.poll(50)):
            continue
        request = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, request)
        except OSError:  # the child is gone
            continue
        key, pid, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", request)
        error = disk.answer(pid, names[number], tuple(arguments))
        reply = struct.pack("=QqiI", key, 0, -error, 0 if error else _CONTINUE)
        try:
            fcntl.ioctl(listener, _SEND, reply)
        except OSError:
            continue
