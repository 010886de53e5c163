"""Opening the model that trials are put into."""

from __future__ import annotations

from typing import Any

from taskmerge.declarations import shown
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.prompts import Prompts
from taskmerge.embedders.sources import ModelSource
from taskmerge.errors import UsageError
from taskmerge.merging.bench import Bench
from taskmerge.merging.fused import FusedStateDict
from taskmerge.recipes import Recipe
from taskmerge.searching.folder import SearchFolder
from taskmerge.searching.live import LiveModel


def live_model(recipe: Recipe, bench: Bench, model: Any, folder: SearchFolder, device: str | None) -> LiveModel:
    """Return the live model that receives the tensors of trials.

    Args:
        recipe: says how models are run: embedder, components, prompts.
        bench: what is merged.
        model: a network or an embedder that is written over, what makes one of a folder's path, or None: the recipe's
            own merge is written into the folder once and opened.
        folder: where that is written.
        device: where it runs.

    Raises:
        CheckpointError, UsageError, MergeError: for a model that trials cannot be put into.
    """
    if model is not None and (isinstance(model, Embedder) or hasattr(model, "state_dict")):
        return LiveModel(bench, model, own=False)
    if model is not None and not callable(model):
        move = "give a network, an Embedder, or a function that opens one from the path of a folder"
        raise UsageError(f"model: {shown(model)} is not a model", next_move=move)
    start = folder.start_model(bench, bench.recipe)
    if model is not None:
        return LiveModel(bench, model(start), own=False)
    prompts = None if recipe.prompts is None else Prompts.of(recipe.prompts)
    source = ModelSource(start, recipe.embedder, recipe.components, recipe.folder)
    live = LiveModel(bench, open_embedder(source, device=device).prompted(prompts), own=True)
    live.check(FusedStateDict(bench.plan))
    return live
