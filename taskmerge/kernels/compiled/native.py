"""The kernels as machine code: built once by numba, then loaded without it.

Importing numba and loading its own cache takes half a second, longer than merging a gigabyte. So what it compiled is
kept in the user's cache, an object file for each entry, made when the entry is first called and named by everything
the code depends on; llvmlite loads it in milliseconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from taskmerge.errors import CheckpointError
from taskmerge.kernels.compiled.building import build, compiled_by_numba, target_machine
from taskmerge.kernels.preparing import announce
from taskmerge.whole_files import written_whole
from taskmerge.words import places
from taskmerge.words.json_text import parse_json

# Arguments of each entry: i an int64 (often an address), d a float64.
ENTRIES = {
    "combining.combine_pieces": "i" * 22 + "d" * 2,
    "scanning.magnitudes": "i" * 8,
    "scanning.count_in_brackets": "i" * 13,
    "scanning.gram_of_piece": "i" * 8,
    "scanning.mass_of_piece": "i" * 12,
    "ranking.pack_short": "i" * 5,
    "ranking.chances_of_short": "i" * 8,
    "ranking.chances_of_ranks": "i" * 4 + "d" * 2,
}
_SOURCES = (
    "codes",
    "inner",
    "formats",
    "blocks",
    "combining",
    "scanning",
    "ranking",
    "building",
    "native",
    "../pairs",
    "../selection",
    "../../numbers/randomness",
)
_lock = threading.Lock()

Kernel = Callable[..., None]
_ready: dict[str, Kernel] = {}


def kernel(name: str) -> Kernel:
    """Return an entry by its name in ENTRIES; it takes ints and floats, and releases the interpreter lock."""
    found = _ready.get(name)
    if found is None:
        with _lock:
            found = _ready.get(name) or _ready.setdefault(name, _loaded(name))
    return found


def _loaded(name: str) -> Kernel:
    try:
        return load(name)
    except Exception:  # a numba or llvmlite that works differently inside: slower to start, the same results
        announce()
        return compiled_by_numba(name, ENTRIES[name])[0]


def load(name: str) -> Kernel:
    """Return an entry from the cache; build it first if necessary."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    folder = cache_folder()
    path = folder / f"{_key()}-{name}.o" if folder is not None else None
    found = read(path) if path is not None else None
    if found is None:
        announce()
        found = build(name, ENTRIES[name])
        if path is not None:
            write(path, *found)
    return _link(*found, ENTRIES[name])


def _link(symbol: str, code: bytes, letters: str) -> Kernel:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return _callable(engine, symbol, letters)


def _callable(engine: Any, symbol: str, letters: str) -> Kernel:
    kinds: list[Any] = [{"i": ctypes.c_int64, "d": ctypes.c_double}[letter] for letter in letters]
    # numba's convention: where the result goes, where an exception would go, then the arguments.
    raw = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(
        engine.get_function_address(symbol)
    )

    def call(*arguments: float, _keep: Any = engine) -> None:
        result, raised = ctypes.c_int64(), ctypes.c_int64()
        if raw(ctypes.addressof(result), ctypes.addressof(raised), *arguments) != 0:
            raise RuntimeError(f"kernel {symbol} failed")

    return call


@cache
def _key() -> str:
    """Changes with the kernels' source, numba, llvmlite and the processor."""
    here = Path(__file__).parent
    numba = find_spec("numba")
    origin = Path(numba.origin) if numba is not None and numba.origin else here
    digest = hashlib.sha256(f"{llvmlite.__version__}:{origin}:{origin.stat().st_mtime_ns}".encode())
    digest.update(f"{llvm.get_host_cpu_name()}:{llvm.get_host_cpu_features().flatten()}".encode())
    for name in _SOURCES:
        digest.update((here / f"{name}.py").read_bytes())
    return digest.hexdigest()[:32]


def cache_folder() -> Path | None:
    """Return the folder for compiled builds; None if no folder can be written."""
    folder = places.cache_folder()
    return folder / "kernels" if folder is not None else None


class _Head(TypedDict):
    sha256: str
    symbol: str


def read(path: Path) -> tuple[str, bytes] | None:
    """Return a stored build; None if it is missing or damaged."""
    try:
        first, _, code = path.read_bytes().partition(b"\n")
        table: _Head = parse_json(first, _Head)
        return (table["symbol"], code) if table["sha256"] == hashlib.sha256(code).hexdigest() else None
    except (OSError, CheckpointError):
        return None


def write(path: Path, symbol: str, code: bytes) -> None:
    """Store a build; if nothing can be stored, the next run builds again."""
    first = json.dumps({"sha256": hashlib.sha256(code).hexdigest(), "symbol": symbol}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(first + b"\n" + code)
    except OSError:
        return


def address_of(array: np.ndarray) -> int:
    """Return the memory address of the array's first entry."""
    return array.__array_interface__["data"][0]
