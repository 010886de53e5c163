"""Numba's source to machine code. Only this imports numba.

Numba optimises every function by itself and once more inside of each that calls it, and makes machine code of all of
them. Here all functions that an entry needs are collected as they come out of numba's front end, optimised together
once, and only the entry is made machine code of. What is left of the time is numba's front end: types and LLVM's
assembly of some fifty little functions.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm

_OURS = "taskmerge"  # in the name that numba gives a function
_KNOWN = ("llvm.", "memset", "memcpy", "memmove")  # what machine code may ask of the process


def build(name: str, letters: str) -> tuple[str, bytes]:
    """Return an entry's symbol and object code. letters: its arguments, i an int64, d a float64.

    Raises RuntimeError if the code would need numba at run time; anything where numba works differently inside.
    """
    with _front_end_only():
        compiled, arguments = compiled_by_numba(name, letters, wrapped=False)
    found = compiled.overloads[arguments]
    symbol = found.fndesc.llvm_func_name
    module = found.library._final_module.clone()
    for function in module.functions:
        if function.is_declaration:
            continue
        function.linkage = llvm.Linkage.external if function.name == symbol else llvm.Linkage.internal
        if _OURS in function.name and b"alwaysinline" not in b" ".join(function.attributes):
            # Each works on a block: a call costs it nothing, a copy in every caller costs LLVM half of its time.
            function.add_function_attribute("noinline")
    machine = target_machine()
    _optimise(module, machine)
    missing = [row.name for row in module.functions if row.is_declaration and not row.name.startswith(_KNOWN)]
    if missing:
        raise RuntimeError(f"the kernels would need {', '.join(missing)}")
    return symbol, bytes(machine.emit_object(module))


def compiled_by_numba(name: str, letters: str, wrapped: bool = True) -> tuple[Any, tuple[Any, ...]]:
    """Return one entry compiled by numba, and the types of its arguments. wrapped: so that Python can call it."""
    from numba import njit, types

    from taskmerge.kernels.compiled.inner import PLAIN, UNWRAPPED

    file, function = name.split(".")
    source = getattr(import_module(f"taskmerge.kernels.compiled.{file}"), function)
    arguments = tuple({"i": types.int64, "d": types.float64}[letter] for letter in letters)
    return njit(types.void(*arguments), **(PLAIN if wrapped else UNWRAPPED))(source), arguments


def target_machine() -> Any:
    """Return the description of this processor for the compiler."""
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, reloc="pic", codemodel="default", jit=True
    )


@contextlib.contextmanager
def _front_end_only() -> Iterator[None]:
    """Numba's compiler without its back end: libraries hold what was lowered, linked, not optimised."""
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
    from numba.core.registry import cpu_target

    class Lowered(JITCodeLibrary):
        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_specific(self) -> None:
            pass

        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            return 0

    class FrontEnd(JITCPUCodegen):
        _library_class = Lowered

        def set_env(self, env_name: str, env: Any) -> None:
            pass

    context = cpu_target.target_context
    usual = context.codegen()
    context._internal_codegen = FrontEnd("taskmerge")
    collecting = gc.isenabled()
    gc.disable()  # millions of little objects, few of them in cycles
    try:
        yield
    finally:
        context._internal_codegen = usual
        if collecting:
            gc.enable()


def _optimise(module: Any, machine: Any) -> None:
    """Numba's two rounds, over all of a module: a cheap one that inlines and rotates loops, then the full one."""
    from numba.core.llvm_bindings import create_pass_builder

    cheap = create_pass_builder(machine, opt=0, loop_vectorize=False, slp_vectorize=False)
    passes = cheap.getModulePassManager()
    passes.add_sroa_pass()
    passes.add_loop_rotate_pass()
    passes.add_instruction_combine_pass()
    passes.add_jump_threading_pass()
    passes.run(module, cheap)
    full = create_pass_builder(machine, opt=3, loop_vectorize=True, slp_vectorize=False)
    full.getModulePassManager().run(module, full)
