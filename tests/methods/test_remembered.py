"""Results remembered by content: the same bits, within a budget, and only while a store is open."""

from __future__ import annotations

import torch

from taskmerge.methods.remembered import Remembered, remembered, remembering, size_of

CALLS: list[int] = []


@remembered
def doubled(matrix: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    CALLS.append(1)
    return matrix * factor


def test_the_same_content_is_computed_once_and_any_other_anew() -> None:
    CALLS.clear()
    matrix = torch.arange(12.0).reshape(3, 4)
    with remembering(Remembered(1 << 20)):
        first = doubled(matrix)
        assert doubled(matrix.clone()) is first and len(CALLS) == 1
        assert torch.equal(doubled(matrix.mT.contiguous().mT), first) and len(CALLS) == 1  # another layout in memory
        doubled(matrix, factor=3.0)
        doubled(matrix.reshape(4, 3))
        doubled(matrix.double())
        changed = matrix.clone()
        changed[2, 3] += 1e-6
        doubled(changed)
        assert len(CALLS) == 5
    doubled(matrix)
    doubled(matrix)
    assert len(CALLS) == 7  # nothing is remembered outside


def test_what_does_not_fit_is_left_out_and_old_rounds_give_way() -> None:
    row = torch.zeros(100, dtype=torch.float64)
    store = Remembered(2 * row.nbytes)
    for name in ("a", "b", "c"):
        store.get(("kind", name), row.clone)
    assert store.left_out == row.nbytes and store.computed == {"kind": 3}
    for _ in range(2):
        store.next_round()
    store.get(("kind", "c"), row.clone)  # a and b were last asked for two rounds ago
    assert store.left_out == 0
    store.get(("kind", "c"), row.clone)
    assert store.computed == {"kind": 4}


def test_sizes() -> None:
    tensor = torch.zeros(3, dtype=torch.float64)
    assert size_of((tensor, [tensor])) == 48 and size_of("x") == 64
