"""An adapter that would hold nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taskmerge.errors import UsageError
from taskmerge.merging.algebra import Checkpoint


def test_no_delta_that_an_adapter_can_carry(tmp_path: Path) -> None:
    base = Checkpoint.open({"scales": torch.ones(2, 2, 2, 2, 2)})
    vector = Checkpoint.open({"scales": torch.zeros(2, 2, 2, 2, 2)}) - base
    with pytest.raises(UsageError, match="an adapter cannot represent any of the deltas; left out: scales"):
        vector.save_lora(tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()
