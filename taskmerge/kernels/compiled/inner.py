"""Compilation of functions that only other compiled functions call."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.np.arrayobj import make_array, populate_array

intrinsic: Any = _intrinsic  # its declared type hides that the typing context is passed by numba

# No array owns memory, so nothing counts references. Python cannot call inner functions, so nothing is compiled that
# would let it. LLVM inlines `inlined` ones; numba's own inlining would type and lower their bodies for every caller.
PLAIN: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_rewrites": True}
UNWRAPPED: dict[str, Any] = {**PLAIN, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner: Any = njit(**UNWRAPPED)
inlined: Any = njit(**UNWRAPPED, forceinline=True)


@intrinsic
def array_at(typing: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """Return a view of the C-contiguous array at an address; `numba.carray` needs four functions for the same."""
    kind = types.Array(dtype.instance_type, len(shape), "C")

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lengths = cgutils.unpack_tuple(builder, arguments[1])
        lengths = [context.cast(builder, one, of, types.intp) for one, of in zip(lengths, shape, strict=True)]
        size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        strides: list[Any] = []
        step = context.get_constant(types.intp, size)
        for length in reversed(lengths):
            strides.insert(0, step)
            step = builder.mul(step, length)
        array = make_array(kind)(context, builder)
        data = builder.inttoptr(arguments[0], context.get_data_type(kind.dtype).as_pointer())
        populate_array(
            array, data=data, shape=lengths, strides=strides,
            itemsize=context.get_constant(types.intp, size), meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return kind(types.int64, shape, dtype), build


def bitcast(argument: Any, result: Any, llvm_type: Any) -> Any:
    """Return an intrinsic that reinterprets the bits of one number as another type."""

    def typed(typing: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm_type)

        return result(argument), build

    return intrinsic(typed)


float_of_bits = bitcast(types.uint32, types.float32, ir.FloatType())
double_of_bits = bitcast(types.uint64, types.float64, ir.DoubleType())
bits_of_float = bitcast(types.float32, types.uint32, ir.IntType(32))
bits_of_double = bitcast(types.float64, types.uint64, ir.IntType(64))
