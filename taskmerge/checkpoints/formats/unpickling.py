"""Pickles read without running them: tensors as references to bytes, every other object as an inert record.

A pickle names functions to call. Here no name leads to code of the named module: the few that rebuild a tensor lead to
functions of this file that note the place of its bytes, all others to `Record`s that keep their arguments.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO


class Record:
    """An object of a class that is not run: its arguments, its state and its items.

    qualified: "module.name" of the class or function in the pickle.
    """

    qualified = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.state, self.items = arguments, dict(named), {}  # type: tuple[Any, ...], Any, dict[Any, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> Record:
        made = super().__new__(cls)
        made.arguments, made.state, made.items = arguments, dict(named), {}
        return made

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        tables = [part for part in parts if isinstance(part, dict)]
        self.state = {key: value for table in tables for key, value in table.items()} if tables else state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __hash__(self) -> int:
        return id(self)

    def append(self, value: Any) -> None:
        """Append an item of a list."""
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        """Items of a list."""
        for value in values:
            self.append(value)

    add = append

    def is_a(self, *names: str) -> bool:
        """Return whether the class has one of these names, in any module."""
        return self.qualified.rpartition(".")[2] in names

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute of the object, from its state."""
        return self.state.get(key, default) if isinstance(self.state, dict) else default


class Name:
    """A constant or a storage class of torch, by its name: "float32", "BFloat16Storage"."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Storage:
    """A run of bytes next to the pickle. key: what the file calls it. dtype: torch name. count: entries of it."""

    __slots__ = ("count", "dtype", "key")

    def __init__(self, key: str, dtype: str, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count


class Reference:
    """A tensor: entries of a storage. dtype: torch name; offset and stride in entries of it."""

    __slots__ = ("dtype", "offset", "shape", "storage", "stride")

    def __init__(self, storage: Storage, dtype: str, offset: int, shape: Any, stride: Any) -> None:
        self.storage, self.dtype, self.offset = storage, dtype, offset
        self.shape, self.stride = tuple(shape), tuple(stride)


_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_DTYPES = frozenset((
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float4_e2m1fn_x2",
))  # fmt: skip


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *_rest: Any) -> Reference:
    return Reference(storage, storage.dtype, offset, shape, stride)


def _tensor_of_dtype(storage: Storage, offset: int, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Name,
                     *_rest: Any) -> Reference:  # fmt: skip
    return Reference(storage, dtype.text, offset, shape, stride)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _of_class(function: Callable[..., Any], kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a class of its own: itself where its numbers are all of it, else a record of that class."""
    made = function(*arguments)
    if isinstance(made, Reference):
        return made
    record = kind(*arguments) if isinstance(kind, type) and issubclass(kind, Record) else made
    if isinstance(record, Record):
        record.__setstate__(state)
    return record


def _inner_class(owner: Any, name: str) -> type[Record]:
    """A class inside another, which old protocols name by `getattr`."""
    return type("Stand-in", (Record,), {"qualified": f"{getattr(owner, 'qualified', '')}.{name}"})


_REBUILDING: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch._tensor._rebuild_from_type": _of_class,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "collections.defaultdict": lambda *_rest: {},
    "builtins.getattr": _inner_class,
    "__builtin__.getattr": _inner_class,
}


_HARMFUL = frozenset((
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "pty", "ctypes", "webbrowser",
    "multiprocessing", "asyncio", "code",
))  # fmt: skip
_HARMFUL_BUILTINS = frozenset(("eval", "exec", "compile", "open", "__import__", "breakpoint", "input"))


class Unpickler(pickle._Unpickler):
    """A reader of one pickle, based on Python's own: a hostile pickle can make C's memo take all memory.

    storages: every storage that the pickle names, by key.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self._known: dict[str, Any] = {"collections.OrderedDict": OrderedDict, "builtins.set": set}

    def find_class(self, module: str, name: str) -> Any:
        """Return the substitute for a class: new for each file, so that no pickle can change it for the next."""
        qualified = f"{module}.{name}"
        if qualified not in self._known:
            self._known[qualified] = self._stand_in(qualified, module, name)
        return self._known[qualified]

    @staticmethod
    def _stand_in(qualified: str, module: str, name: str) -> Any:
        builtin = module in ("builtins", "__builtin__", "_io", "io") and name in _HARMFUL_BUILTINS
        if builtin or module.partition(".")[0] in _HARMFUL:
            raise pickle.UnpicklingError(f"it would call {qualified}, which no model needs; none of its code was run")
        rebuilding = _REBUILDING.get(qualified)
        if rebuilding is not None:
            return lambda *arguments: rebuilding(*arguments)
        if module.partition(".")[0] == "torch" and (name in _STORAGES or name in _DTYPES):
            return Name(name)
        return type("Stand-in", (Record,), {"qualified": qualified})

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage with a persistent id."""
        kind, storage, key, _device, count, *view = pid
        if kind != "storage" or not isinstance(storage, Name) or type(count) is not int:
            raise pickle.UnpicklingError(f"not a storage: {str(pid)[:80]}")
        if view and view[0] is not None:
            raise pickle.UnpicklingError("storages that are parts of other storages, as in PyTorch before 0.4")
        key = str(key)
        return self.storages.setdefault(key, Storage(key, _STORAGES.get(storage.text, storage.text), count))
