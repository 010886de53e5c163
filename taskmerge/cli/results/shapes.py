"""A class that is printed with more keys than its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class And:
    """A class whose fields are printed, and keys that are printed with them: name -> (type, meaning)."""

    shape: Any
    more: Mapping[str, tuple[Any, str]]
