"""`check-model`: one item of each modality through a model, and what its parts were taken for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.embedders.anatomy import Anatomy, components_of
from taskmerge.embedders.interface import Embedder, as_array
from taskmerge.errors import TaskmergeError, clipped, first_line
from taskmerge.words.modalities import TEXT, media_of
from taskmerge.words.precisions import precision_name

if TYPE_CHECKING:
    from torch import nn

RATE = 16_000  # Hz, of the sound that is tried


@dataclass(frozen=True)
class Tried:
    """One item of one modality. dimension: length of its embedding. projected: tokens that a projector fed, None when
    the model does not tell. projectors: names of the modules that ran as projectors. problem: what did not work; ""."""

    modality: str
    dimension: int = 0
    projected: int | None = None
    projectors: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ModelCheck:
    """The result of `check_model`.

    components: component -> number of tensors. layers: of the backbone, in order. prompts: role -> text. problems: all
    that do not belong to a single modality. precision: of the run.
    """

    modalities: tuple[Tried, ...]
    components: dict[str, int]
    layers: tuple[str, ...]
    prompts: dict[str, str]
    problems: tuple[str, ...]
    precision: str = ""

    @property
    def fits(self) -> bool:
        """True if every stage can run the model with all of its modalities."""
        return not self.problems and not any(tried.problem for tried in self.modalities)


def check_model(embedder: Embedder) -> ModelCheck:
    """Run one item per modality through a model that was opened, and say what its parts are.

    Args:
        embedder: what `open_embedder` gives; that its tensors are those of the file was checked there.

    Returns:
        What was found; problems are collected, not raised.
    """
    parts = components_of(embedder.state_dict, embedder.components)
    counts: dict[str, int] = {}
    for component in parts.values():
        counts[component] = counts.get(component, 0) + 1
    names = {id(module): name for name, module in embedder.module.named_modules()}
    problems: list[str] = []
    anatomy: Anatomy | None = None
    try:
        anatomy = embedder.anatomy()
    except TaskmergeError as error:
        problems.append(str(error))
    tried = tuple(_try(embedder, anatomy, modality, names) for modality in embedder.modalities)
    if TEXT not in embedder.modalities:
        problems.append("it does not embed text: text cannot be used for retrieval, and no stage can train it")
    layers = tuple(names.get(id(layer), "?") for layer in anatomy.layers) if anatomy is not None else ()
    precision = precision_name(embedder.dtype)
    return ModelCheck(tried, counts, layers, _prompts(embedder), tuple(problems), precision)


def example(modality: str) -> Any:
    """Return an example of a modality, as from `Pairs.load`: a text, a picture of noise, a tone, four frames."""
    media = media_of(modality)
    rng = np.random.default_rng(0)
    if media == "text":
        return "a dog barks"
    if media == "sound":
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
        return {"array": wave.astype(np.float32), "sampling_rate": RATE}
    from PIL import Image

    frames = rng.integers(0, 255, (4, 64, 64, 3), np.uint8)
    return frames if media == "film" else Image.fromarray(frames[0])


def _try(embedder: Embedder, anatomy: Anatomy | None, modality: str, names: dict[int, str]) -> Tried:
    try:
        features = embedder.prepare([example(modality)], modality)
        projectors = anatomy.projectors.get(modality, ()) if anatomy is not None else ()
        with embedder.inference(), _watched(projectors) as ran:
            embedding = as_array(embedder.embed(features))
    except TaskmergeError as error:
        return Tried(modality, problem=str(error))
    except Exception as error:  # the model's own code
        return Tried(modality, problem=f"{type(error).__name__}: {clipped(first_line(error), 300)}")
    run = tuple(dict.fromkeys(names.get(id(module), "?") for module in ran))
    tokens = anatomy.projected_tokens(features, modality) if anatomy is not None and modality != TEXT else None
    projected = None if tokens is None else int(tokens.sum())
    problem = ""
    if embedding.ndim != 2 or len(embedding) != 1:
        problem = f"1 item gives embeddings of shape {list(embedding.shape)}, not [1, width]"
    elif not np.isfinite(embedding).all():
        problem = "the embedding contains NaN or infinity"
    elif projectors and not run:
        problem = "none of its projectors ran: if other modules are the projectors, list them under `components:`"
    return Tried(modality, int(embedding.shape[-1]), projected, run, problem)


@contextmanager
def _watched(modules: tuple[nn.Module, ...]) -> Iterator[list[nn.Module]]:
    """The modules that were called inside the block, in order."""
    ran: list[nn.Module] = []

    def on_call(module: nn.Module, *_: Any) -> None:
        ran.append(module)

    handles = [module.register_forward_hook(on_call) for module in modules]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _prompts(embedder: Embedder) -> dict[str, str]:
    """Role -> the prompt before its texts; "" without one."""
    return {role: embedder.prompt(role) or "" for role in ("query", "document")}
