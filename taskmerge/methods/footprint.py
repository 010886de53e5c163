"""Peak memory of methods that take complete tensors, as they declare it: `merge_method(memory=held(…))`.

The numbers are measured, not derived: `python benchmarks/whole_tensor_memory.py` prints them next to the declarations.
"""

from __future__ import annotations

import math

from taskmerge.methods.registry import Memory


def held(each: float, beside: float, small: float = 0.0, inputs: float = 0.0) -> Memory:
    """Declare the entries in memory, (each · T + beside) · n + small · (smaller side)² + inputs · columns².

    For a tensor that is not a matrix, of which methods of matrices take the mean: one of each delta and three more.
    """

    def entries(specialists: int, shape: tuple[int, ...]) -> float:
        count = math.prod(shape)
        if len(shape) != 2:
            return max(each * specialists + beside, specialists + 3.0) * count
        return (each * specialists + beside) * count + small * min(shape) ** 2 + inputs * shape[1] ** 2

    return entries


def either(*ways: Memory) -> Memory:
    """Return the larger of several estimates: for stages that do not overlap."""
    return lambda specialists, shape: max(way(specialists, shape) for way in ways)
