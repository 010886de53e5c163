"""The kernels as machine code: built once by numba, then loaded without it.

Importing numba and loading its own cache takes half a second, longer than merging a gigabyte. So what it compiled is
kept as an object file in the user's cache, named by everything the code depends on, and loaded by llvmlite in
milliseconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

# Arguments of each entry: i an int64 (often an address), d a float64.
ENTRIES = {
    "combining.combine_pieces": "i" * 20 + "d" * 3,
    "scanning.magnitudes": "i" * 8,
    "scanning.count_in_brackets": "i" * 13,
    "scanning.gram_of_piece": "i" * 7,
    "scanning.mass_of_piece": "i" * 10,
    "ranking.pack_short": "i" * 5,
    "ranking.chances_of_short": "i" * 8,
    "ranking.chances_of_ranks": "i" * 4 + "d" * 2,
}
_SOURCES = (
    "codes",
    "formats",
    "blocks",
    "combining",
    "scanning",
    "ranking",
    "native",
    "../pairs",
    "../selection",
    "../../numbers/randomness",
)
# What the machine code may ask of the process: nothing, but for a destructor of arrays that own memory (none do).
_UNUSED = ("NRT_MemInfo_call_dtor", "NRT_Free")
_KNOWN = ("llvm.", *_UNUSED, "memset", "memcpy", "memmove")
_lock = threading.Lock()

Kernel = Callable[..., None]


@cache
def _loaded() -> Mapping[str, Kernel]:
    try:
        return load()
    except Exception:  # a numba or llvmlite that works differently inside: slower to start, the same results
        return {name: _compiled(name, letters)[0] for name, letters in ENTRIES.items()}


def load() -> Mapping[str, Kernel]:
    """The kernels from the cache, built first where they are not in it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    path = cache_folder() / f"{_key()}.o"
    found = read(path)
    if found is None:
        found = build()
        write(path, *found)
    return _link(*found)


def kernel(name: str) -> Kernel:
    """An entry by the name it has in ENTRIES; takes ints and floats, releases the interpreter lock."""
    with _lock:
        return _loaded()[name]


def build() -> tuple[dict[str, str], bytes]:
    """Compiles every entry: symbol names and object code. Raises RuntimeError if that would need numba at run time."""
    symbols, module = {}, None
    for name, letters in ENTRIES.items():
        compiled, arguments = _compiled(name, letters, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        symbols[name] = compiled.overloads[arguments].fndesc.llvm_func_name
        part = llvm.parse_assembly(compiled.inspect_llvm(arguments))
        if module is None:
            module = part
        else:
            module.link_in(part)
    assert module is not None
    missing = [row.name for row in module.functions if row.is_declaration and not row.name.startswith(_KNOWN)]
    if missing:
        raise RuntimeError(f"the kernels would need {', '.join(missing)}")
    return symbols, bytes(_machine().emit_object(module))


def _compiled(name: str, letters: str, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """One entry compiled by numba, and the types of its arguments."""
    from numba import njit, types

    file, function = name.split(".")
    source = getattr(import_module(f"taskmerge.kernels.compiled.{file}"), function)
    arguments = tuple({"i": types.int64, "d": types.float64}[letter] for letter in letters)
    return njit(types.void(*arguments), nogil=True, error_model="numpy", **options)(source), arguments


def _link(symbols: Mapping[str, str], code: bytes) -> Mapping[str, Kernel]:
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in _UNUSED:
        llvm.add_symbol(name, abort)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return {name: _callable(engine, symbols[name], letters) for name, letters in ENTRIES.items()}


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


def _machine() -> Any:
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, reloc="pic", codemodel="default", jit=True
    )


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


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "taskmerge" / "kernels"


def read(path: Path) -> tuple[dict[str, str], bytes] | None:
    """A stored build, if it is whole."""
    try:
        first, _, code = path.read_bytes().partition(b"\n")
        table = json.loads(first)
        return (table["symbols"], code) if table["sha256"] == hashlib.sha256(code).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, symbols: Mapping[str, str], code: bytes) -> None:
    """Keeps a build; where nothing can be kept, the next run builds again."""
    first = json.dumps({"sha256": hashlib.sha256(code).hexdigest(), "symbols": symbols}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(first + b"\n" + code)
        scratch.replace(path)
    except OSError:
        return


def address_of(array: np.ndarray) -> int:
    """Where the array's entries lie."""
    return array.__array_interface__["data"][0]
