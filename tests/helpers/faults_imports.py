"""Everything that the commands under test import, so that forked children find it there."""

from __future__ import annotations

from importlib import import_module

from taskmerge.cli import app as _app  # noqa: F401
from taskmerge.kernels.compiled import backend as _backend  # noqa: F401
from taskmerge.merging import fused as _fused  # noqa: F401
from taskmerge.merging.algebra import checkpoint as _checkpoint  # noqa: F401

for _name in ("safetensors.torch", "safetensors.numpy", "transformers"):
    import_module(_name)
