"""Weights found from the task vectors themselves: `weight: metagpt` in a recipe, with any method.

MetaGPT (arXiv 2406.11385): w_i = ‖d_i‖² / Σ_j ‖d_j‖², of each tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.errors import UsageError
from taskmerge.kernels.program import DropRandom, KeepLargest, Program
from taskmerge.methods.geometry import gram_matrix
from taskmerge.methods.registry import MergeMethod

if TYPE_CHECKING:
    from torch import Tensor


def metagpt_from_gram(gram: np.ndarray) -> np.ndarray:
    """w_i = ‖d_i‖² / Σ_j ‖d_j‖²; all zero where all task vectors are.

    gram (specialists, specialists) -> (specialists,), float64.
    """
    squares = np.diag(gram)
    total = squares.sum()
    return squares / total if total > 0 else np.zeros(len(squares))


def metagpt_weights(deltas: Tensor) -> Tensor:
    """As `metagpt_from_gram`: deltas (specialists, *shape) -> (specialists,), float64, on the deltas' device."""
    import torch

    return torch.as_tensor(metagpt_from_gram(gram_matrix(deltas)), device=deltas.device)


def weighed_by_metagpt(method: MergeMethod) -> MergeMethod:
    """The same method, its weights replaced by MetaGPT's. Raises UsageError for one that finds its own weights."""
    if "weights" not in method.inputs or _finds_its_own(method):
        raise UsageError(f"{method.name} finds its own weights", next_move="leave out `weight: metagpt`")

    def weighed(*inputs: Any, **options: Any) -> Tensor:
        given = dict(zip(method.inputs, inputs, strict=True))
        given["weights"] = metagpt_weights(given["deltas"])
        return method.function(*given.values(), **options)

    def stream(weights: Sequence[float], options: Mapping[str, Any]) -> Program | None:
        return metagpt_program(method, len(weights), options)

    return replace(
        method,
        name=f"{method.name} weighed by metagpt",
        aliases=(),
        function=wraps(method.function)(weighed),
        stream=stream if method.stream else None,
    )


def _finds_its_own(method: MergeMethod) -> bool:
    program = method.stream((0.5, 0.5), method.defaults) if method.stream else None
    return program is not None and program.from_gram is not None


def metagpt_program(method: MergeMethod, specialists: int, options: Mapping[str, Any]) -> Program | None:
    """What the method streams, with MetaGPT's weights; None when the whole tensor must be taken."""
    # Any weights that sum to exactly 1, as MetaGPT's do, serve to build the program.
    program = method.stream((1.0, *[0.0] * (specialists - 1)), options) if method.stream else None
    how = program.sparsify_of(0) if program is not None else None
    if program is None or isinstance(how, KeepLargest) or (isinstance(how, DropRandom) and how.rescale == "l1"):
        # A tensor is measured once: for its Gram matrix, or for what its sparsifying needs.
        return None
    return replace(program, from_gram=metagpt_from_gram)
