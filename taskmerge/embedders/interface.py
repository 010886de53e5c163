"""The interface to run a model, which drift, training, evaluation and covariances use."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from taskmerge.embedders.prompts import ROLES, Prompts, Role
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.words.progress import work

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from taskmerge.checkpoints.memory import MemoryStateDict
    from taskmerge.checkpoints.state_dict import StateDict
    from taskmerge.embedders.anatomy import Anatomy
    from taskmerge.embedders.items import PreparedItems

Features = dict[str, Any]
EMBEDDING = "sentence_embedding"
"""Where `Embedder.module` leaves the embeddings in what it returns."""


class Embedder(ABC):
    """A model that turns items into vectors; `open_embedder` makes one.

    Your own subclass sets `module` and defines `modalities`, `prepare` and `embed`. It may override `state_dict`,
    `anatomy` and `save` if the definitions here do not fit. All other methods are built on these.

    Attributes:
        module: the network that runs. It is trained in place; optimizers, hooks and Jacobian products use its
            parameters.
        label: the model's name in messages: its path, or a description.
        stored: the model's file, set by `open_embedder`; None for a model without a file.
        components: component -> patterns of names in the file, for tensors that the rules do not assign; the
            `components` of a recipe.
        prompts: the prompts that the user sets; see `prompted`.
        takes_prompts: whether `prepare` puts the text that `prompt` returns before the items. A subclass that does so
            sets it to True.
    """

    module: nn.Module
    label: str = "a model in memory"
    stored: StateDict | None = None
    components: Mapping[str, Sequence[str]] = MappingProxyType({})
    prompts: Prompts = Prompts()
    takes_prompts: ClassVar[bool] = False

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model embeds, of "text", "image", "audio", "video"."""

    @property
    def state_dict(self) -> MemoryStateDict:
        """The live tensors as a `StateDict`, under their names in the model's file.

        Component maps, patterns and reports use these names. A model made in memory has no file: its names are those of
        its network. Parameters remain parameters: values that are written to one of `state_dict.values` change the
        model.
        """
        from taskmerge.checkpoints.memory import MemoryStateDict

        live = {self._names.get(name, name): value for name, value in self.module.state_dict(keep_vars=True).items()}
        found = MemoryStateDict(live, self.label)
        found.beside = MemoryStateDict.of_module(self.module).beside
        if self.stored is not None:
            found.beside = replace(self.stored.beside, files={})  # live tensors may have changed
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        """Name in `module` -> name in the file."""
        from taskmerge.embedders.file_names import names_in_file

        return names_in_file(self.module, self.stored)

    @abstractmethod
    def prepare(self, items: Sequence[Any], modality: str | None = None, role: Role | None = None) -> Features:
        """Make one batch of features from decoded items.

        Args:
            items: items as `Pairs.load` returns them; strings for text.
            modality: the modality of all items; None: each item states its own, so a batch may mix modalities.
            role: "query" or "document": the prompt of this role is put before the items, see `prompt`. None: the
                model's default prompt, if it has one.

        Returns:
            A dict for `embed`, on the CPU; tensors are batch-first.

        Raises:
            UsageError: for a modality that the model does not take, or an item that cannot be used.
        """

    @abstractmethod
    def embed(self, features: Features) -> Tensor:
        """Embed one batch.

        Args:
            features: the result of `prepare`; it is moved to the model's device and precision here.

        Returns:
            (items, d), of the model's dtype and on its device; gradients flow unless `inference` is entered.
        """

    def anatomy(self) -> Anatomy:
        """Find the layers, the projectors by modality, and which tokens are projected.

        Raises:
            UsageError: when there is no stack of backbone layers.
        """
        from taskmerge.embedders.anatomy import components_of, native_anatomy

        parts = components_of(self.state_dict, self.components)
        own = {name: self._names.get(name, name) for name in self.module.state_dict()}
        return native_anatomy(self.module, {name: parts.home(in_file) for name, in_file in own.items()})

    def save(self, path: str | Path) -> None:
        """Write the model to a new folder, with the live values of the tensors in its file.

        The folder is opened in the same way as the model's own. `path` is the new folder.
        """
        from taskmerge.embedders.live import save_live

        save_live(self.state_dict, self.stored, Path(path))

    # Prompts

    @property
    def own_prompts(self) -> Mapping[str, str]:
        """The model's own prompts by name; {} for a model without prompts."""
        return {}

    def prompt(self, role: Role | None, modality: str | None = None) -> str | None:
        """Return the text before items of a role and a modality.

        Returns:
            The text; None if there is none, or if the model adds its own default prompt.
        """
        return self.prompts.text(role, modality)

    def prompted(self, prompts: Prompts | Mapping[str, object] | None, task: str | None = None) -> Embedder:
        """Return the same model with other prompts.

        Args:
            prompts: `Prompts`, or a mapping that makes one; None keeps the present prompts.
            task: name of a set or a task, whose own prompts are used if there are any.

        Returns:
            An embedder around the same network.

        Raises:
            UsageError: for a model that puts no prompts before its items.
        """
        wanted = self.prompts if prompts is None else Prompts.of(prompts)
        if wanted and not self.takes_prompts:
            raise UsageError(
                f"{self.label}: a {type(self).__name__} does not use prompts",
                next_move="let its `prepare` use `self.prompt(role, modality)` and set `takes_prompts = True`",
            )
        found = copy.copy(self)
        found.prompts = wanted if task is None else wanted.of_task(task)
        return found

    def same_for_both_roles(self, items: Sequence[Any], modality: str) -> bool:
        """Return whether items are embedded alike as queries and as documents: here, whether their features are equal.

        Args:
            items, modality: as for `prepare`; one item of the modality is enough, since all have the same prompt.
        """
        query, document = (self.prepare(items, modality, role) for role in ROLES)
        return query.keys() == document.keys() and all(_equal(query[key], document[key]) for key in query)

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that decide the embeddings in addition to the tensors, as plain values.

        They include prompts, pooling and the tokenizer.
        """
        return {"prompts": dict(self.own_prompts), "config": dict(self.state_dict.config)}

    @property
    def max_tokens(self) -> int | None:
        """The number of tokens beyond which a text is truncated; None if the model does not state it."""
        return None

    def token_embeddings(self) -> Tensor | None:
        """Return the weight of the token embeddings, (vocabulary, width); None if the model does not state it."""
        return None

    @property
    def similarity(self) -> str:
        """The measure for comparing its embeddings: "cosine", "dot", "euclidean" or "manhattan"."""
        return "cosine"

    # What follows from these

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter; the CPU for a model without parameters."""
        import torch

        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model: the dtype of its first floating-point parameter."""
        import torch

        parameters = self.module.parameters()
        return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), torch.float32)

    @property
    def dimension(self) -> int:
        """The length of its embeddings."""
        with self.inference():
            return int(self.embed(self.prepare(["a"], "text")).shape[-1])

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Embedder:
        """Move the model to a device, a precision, or both, in place.

        Buffers that the model computes when it is made and that no file stores (frequencies of rotary positions) keep
        their precision, as in transformers when it loads a model in half precision.

        Args:
            device: torch device or its name; None: no change.
            dtype: torch dtype of parameters and stored buffers; None: no change.

        Returns:
            The embedder itself.
        """
        made = [
            (part, name, part._buffers[name])
            for part in (self.module.modules() if dtype is not None else ())
            for name in part._non_persistent_buffers_set
        ]
        self.module.to(device=device, dtype=dtype)
        for part, name, buffer in made:
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = buffer if device is None else buffer.to(device)
        return self

    def copied(self) -> Embedder:
        """Return a copy with its own tensors; both use the same file."""
        return deepcopy(self, {id(self.stored): self.stored})

    def placed(self, features: Features) -> Features:
        """Move features to the model's device, and floating-point tensors to its precision."""
        device, dtype = self.device, self.dtype

        def move(value: Any) -> Any:
            if not hasattr(value, "is_floating_point"):
                return value
            return value.to(device, dtype) if value.is_floating_point() else value.to(device)

        return {key: move(value) for key, value in features.items()}

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Disable dropout and gradients inside the block."""
        import torch

        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(was_training)

    def encode(
        self, items: Sequence[Any], modality: str | None = None, role: Role | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Embed any number of items, in batches and without gradients.

        Args:
            items, modality, role: as for `prepare`.
            batch_size: items per batch.

        Returns:
            (items, d) float32; float64 for a model in float64.

        Raises:
            CheckpointError: for embeddings with NaN or infinite values.
        """
        with self.inference():
            found = []
            with work(f"embedding {modality or 'items'}", len(items)) as told:
                for start in range(0, len(items), batch_size):
                    batch = items[start : start + batch_size]
                    found.append(as_array(self.embed(self.prepare(batch, modality, role))))
                    self.check_finite(found[-1], modality)
                    told.advance(len(batch))
            return np.concatenate(found)

    def check_finite(self, embeddings: np.ndarray, modality: str | None) -> None:
        """Raise CheckpointError for embeddings with NaN or infinite values: no measure of them is true."""
        broken = int((~np.isfinite(embeddings).all(axis=-1)).sum())
        if broken:
            what = f"{broken} of {len(embeddings)} embeddings of {modality or 'items'} have NaN or infinite values"
            move = "its weights may have such values, or its precision is too narrow: try --precision float32"
            raise CheckpointError(what, self.label, move)

    def embed_with(self, parameters: Mapping[str, Tensor], features: Features) -> Tensor:
        """Embed one batch with other values for some parameters.

        Args:
            parameters: name in the file -> value, of the parameter's shape.
            features: the result of `prepare`.

        Returns:
            (items, d), differentiable with respect to the values.
        """
        import torch

        names = self.parameter_names()
        swapped = {f"module.{names[name]}": value for name, value in parameters.items()}
        embeddings: Tensor = torch.func.functional_call(_running(self), swapped, (features,))[EMBEDDING]
        return embeddings

    def parameter_names(self) -> dict[str, str]:
        """Return the name in `module` of every parameter, by its name in the file."""
        by_identity = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return {
            name: by_identity[id(tensor)]
            for name, tensor in self.state_dict.values.items()
            if id(tensor) in by_identity
        }

    def linear_layers(self) -> dict[str, nn.Linear]:
        """Return every linear layer, by the name of its weight in the model's file."""
        from torch import nn

        names = {id(tensor): name for name, tensor in self.state_dict.values.items()}
        linear = [module for module in self.module.modules() if isinstance(module, nn.Linear)]
        return {names[id(layer.weight)]: layer for layer in linear if id(layer.weight) in names}

    def prepared_items(self) -> PreparedItems:
        """Return a store for the items of training sets."""
        from taskmerge.embedders.items import PreparedItems

        return PreparedItems()

    def check_takes(self, modality: str, source: str) -> None:
        """Check that the model embeds items of a modality.

        Args:
            modality: the modality of the items.
            source: name of the data, for the message.

        Raises:
            UsageError: if it does not.
        """
        if modality not in self.modalities:
            raise UsageError(
                f"{source} contains {modality}, for which the model has no encoder",
                next_move=f"the model takes {', '.join(self.modalities)}",
            )


def as_array(value: Tensor) -> np.ndarray:
    """Convert a tensor to NumPy; half precisions become float32, which represents them exactly."""
    value = value.detach()
    return (value.float() if value.element_size() < 4 else value).cpu().numpy()


def _equal(first: Any, second: Any) -> bool:
    """Whether two values of features are known to be the same."""
    import torch

    if isinstance(first, torch.Tensor) or isinstance(second, torch.Tensor):
        return type(first) is type(second) and torch.equal(first, second)
    return bool(np.array_equal(first, second)) if type(first) is type(second) else False


def _running(embedder: Embedder) -> Any:
    """An embedder as a module: torch's functional calls swap the parameters of modules alone."""
    from torch import nn

    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = embedder.module

        def forward(self, features: Features, **options: Any) -> Features:
            return {**features, EMBEDDING: embedder.embed(features)}

    return Running()
