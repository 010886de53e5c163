"""Mapped files that are cut off while they are read: zeros and a mark, instead of the end of the process.

Reading a page that a mapped file no longer has, or that its disk cannot give, sends SIGBUS, which ends a process before
any of its own code runs. Copying through read() would be safe and costs half of a merge's processor time again. So a
handler is installed, a few lines of machine code: it puts zeros under the rest of the file's pages and marks the file;
readers check the mark. A SIGBUS of any other code goes to the earlier handler.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import weakref
from typing import Any

import numpy as np

_CAPACITY = 4096
"""Files mapped at a time that are watched over; more are mapped all the same."""
_START, _STOP, _TORN = range(3)
_FIXED = 0x10
_SIGBUS = 10 if sys.platform == "darwin" else 7
_ADDRESS_AT = 24 if sys.platform == "darwin" else 16  # of the address in siginfo_t

_files = np.zeros((_CAPACITY + 1, 3), np.int64)  # the last row: whether a signal was passed on already
_free = list(range(_CAPACITY - 1, -1, -1))
_lock = threading.Lock()
_handler: Any = None
_before = ctypes.create_string_buffer(512)  # struct sigaction of the earlier handler; larger than any


_MASK = ctypes.c_uint32 if sys.platform == "darwin" else ctypes.c_uint8 * 128


class _Sigaction(ctypes.Structure):
    """As far as it is set here; what follows is zero."""

    _fields_ = [("handler", ctypes.c_void_p), ("mask", _MASK), ("flags", ctypes.c_int), ("rest", ctypes.c_uint8 * 256)]


_ON_STACK, _SIGINFO = (0x1, 0x40) if sys.platform == "darwin" else (0x08000000, 0x4)


class Watched:
    """One mapping that is watched until it is released. torn: whether pages of it could not be read."""

    def __init__(self, region: mmap.mmap) -> None:
        self._row = -1
        with _lock:
            if not _stands() or not _free:
                return
            self._row = _free.pop()
            start = np.frombuffer(region, np.uint8).ctypes.data
            _files[self._row] = start, start + -(-len(region) // mmap.PAGESIZE) * mmap.PAGESIZE, 0
        weakref.finalize(region, _forget, self._row).atexit = False

    @property
    def torn(self) -> bool:
        """True if pages of the mapping could not be read."""
        return self._row >= 0 and bool(_files[self._row, _TORN])


def _forget(row: int) -> None:
    _files[row, :_TORN] = 0
    _free.append(row)


def _stands() -> bool:
    """Whether the handler has the signal; puts it there. Not on a system it is not known to work on."""
    global _handler
    try:
        libc = ctypes.CDLL(None)
        if _handler is None:
            if sys.maxsize < 2**32 or sys.platform not in ("linux", "darwin"):
                return False
            _handler = _built(
                *(ctypes.cast(getattr(libc, name), ctypes.c_void_p).value for name in ("mmap", "sigaction"))
            )
        now = ctypes.create_string_buffer(512)
        libc.sigaction(_SIGBUS, None, now)
        if _Sigaction.from_buffer(now).handler == _handler[0]:
            return True
        ctypes.memmove(_before, now, len(now))
        _files[_CAPACITY] = 0
        ours = _Sigaction(_handler[0], flags=_SIGINFO | _ON_STACK)
        return bool(libc.sigaction(_SIGBUS, ctypes.byref(ours), None) == 0)
    except Exception:  # without it files are read as ever
        return False


def _built(map_at: int | None, sigaction_at: int | None) -> tuple[int, Any]:
    """The handler's address, and what must live as long as it."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=1, reloc="pic", codemodel="default", jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_assembly(map_at, sigaction_at)), machine)
    engine.finalize_object()
    return engine.get_function_address("taskmerge_bus_error"), engine


def _assembly(map_at: int | None, sigaction_at: int | None) -> str:
    """The handler. Of a foreign address: give the signal back, the second time to the system."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANON | _FIXED
    default = ctypes.addressof(_DEFAULT)
    return f"""
define void @taskmerge_bus_error(i32 %signal, ptr %info, ptr %context) {{
begin:
  %place = getelementptr i8, ptr %info, i64 {_ADDRESS_AT}
  %address = load i64, ptr %place
  br label %look
look:
  %i = phi i64 [0, %begin], [%next, %other]
  %row = mul i64 %i, 24
  %start_at = add i64 %row, {_files.ctypes.data}
  %stop_at = add i64 %start_at, 8
  %mark_at = add i64 %start_at, 16
  %start_p = inttoptr i64 %start_at to ptr
  %stop_p = inttoptr i64 %stop_at to ptr
  %mark_p = inttoptr i64 %mark_at to ptr
  %start = load i64, ptr %start_p
  %stop = load i64, ptr %stop_p
  %after = icmp uge i64 %address, %start
  %before = icmp ult i64 %address, %stop
  %inside = and i1 %after, %before
  br i1 %inside, label %ours, label %other
other:
  %next = add i64 %i, 1
  %done = icmp eq i64 %next, {_CAPACITY}
  br i1 %done, label %foreign, label %look
ours:
  %page = and i64 %address, {-mmap.PAGESIZE}
  %length = sub i64 %stop, %page
  %map = inttoptr i64 {map_at} to ptr
  %found = call i64 %map(i64 %page, i64 %length, i32 {mmap.PROT_READ}, i32 {private}, i32 -1, i64 0)
  store i64 1, ptr %mark_p
  %failed = icmp eq i64 %found, -1
  br i1 %failed, label %foreign, label %end
foreign:
  %passed_p = inttoptr i64 {_files.ctypes.data + _CAPACITY * 24} to ptr
  %passed = load i64, ptr %passed_p
  store i64 1, ptr %passed_p
  %again = icmp ne i64 %passed, 0
  %whose = select i1 %again, i64 {default}, i64 {ctypes.addressof(_before)}
  %set = inttoptr i64 {sigaction_at} to ptr
  %zero = call i32 %set(i32 {_SIGBUS}, i64 %whose, i64 0)
  br label %end
end:
  ret void
}}
"""


_DEFAULT = ctypes.create_string_buffer(512)
