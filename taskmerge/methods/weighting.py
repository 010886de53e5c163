"""Weights found from the task vectors themselves: `weight: metagpt` in a recipe, with any method.

Source: MetaGPT, arXiv 2406.11385: w_i = ‖d_i‖² / Σ_j ‖d_j‖². The paper takes one norm over the whole model; here it is
taken of each tensor, so that a specialist counts where it has moved.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from taskmerge.errors import UsageError
from taskmerge.methods.registry import MergeMethod


def metagpt_weights(gram: np.ndarray) -> np.ndarray:
    """Compute w_i = ‖d_i‖² / Σ_j ‖d_j‖²; all zero if all task vectors are.

    gram (specialists, specialists), <d_i, d_j> -> (specialists,), float64.
    """
    squares = np.diag(gram)
    total = squares.sum()
    return squares / total if total > 0 else np.zeros(len(squares))


def weighed_by_metagpt(method: MergeMethod) -> MergeMethod:
    """Return the same method with MetaGPT's weights. Raises UsageError for one that computes its own weights."""
    if "weights" not in method.inputs or _finds_its_own(method):
        raise UsageError(f"{method.name} finds its own weights", next_move="leave out `weight: metagpt`")
    return replace(method, name=f"{method.name} with the weights of metagpt", aliases=(), weighted_by=metagpt_weights)


def _finds_its_own(method: MergeMethod) -> bool:
    program = method.program((0.5, 0.5), method.defaults, ()) if method.elementwise else None
    return program is not None and program.from_gram is not None
