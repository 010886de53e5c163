"""Argument types of the public functions: a model to run, pairs, prompts, sets that are trained together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from taskmerge.embedders.interface import Embedder
    from taskmerge.embedders.pairs import Pairs
    from taskmerge.embedders.prompts import Prompts
    from taskmerge.embedders.sources import ModelSource

    Model: TypeAlias = str | Path | ModelSource | Embedder | SentenceTransformer
    """What `open_embedder` opens."""
    PairSource: TypeAlias = str | Path | Pairs | Iterable[Mapping[str, object]]
    """What `read_pairs` reads: a file, a data set's folder or id, its rows."""
    PairSets: TypeAlias = PairSource | Mapping[str, PairSource]
    """One set of pairs, or several by name."""
    PromptSource: TypeAlias = Prompts | Mapping[str, object] | None
    """What `Embedder.prompted` takes."""
