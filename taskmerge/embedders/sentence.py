"""Embedders made from sentence-transformers models: any of them, and the grafted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.embedders.anatomy import Anatomy, components_of, native_anatomy
from taskmerge.embedders.file_names import names_in_file
from taskmerge.embedders.interface import EMBEDDING, Embedder, Features, Role
from taskmerge.embedders.items import GraftedItems, PreparedItems
from taskmerge.embedders.opening import quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from taskmerge.embedders.embedder import OmniEmbedder

_PROMPTS: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Where sentence-transformers looks for the prompt of a role."""


class SentenceEmbedder(Embedder):
    """Any sentence-transformers model, architectures that own their towers (Qwen2-Audio, Qwen3-VL, …) among them."""

    module: SentenceTransformer

    def __init__(self, model: SentenceTransformer, label: str | None = None, stored: StateDict | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: run, and trained, in place.
            label: what messages call it.
            stored: the weights it was loaded from, for their names.
        """
        first: Any = model[0]
        self.module = model
        self.network: Any = getattr(first, "auto_model", first)
        self.label = label or f"{type(self.network).__name__} in memory"
        self._in_file, self._tails = names_in_file(self.network, stored)
        own = MemoryStateDict.of_module(self.network).beside
        self._beside = own if stored is None else replace(stored.beside, files={})  # live tensors may have changed

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name in self.module.modalities if isinstance(name, str) and name != "message")

    @property
    def dimension(self) -> int:
        return int(self.module.get_embedding_dimension() or super().dimension)

    @property
    def state_dict(self) -> MemoryStateDict:
        tensors: dict[str, Any] = {}
        for index, part in enumerate(self.module):
            inside = self._tails.get(index, f"{index}_{type(part).__name__}")
            for name, tensor in part.state_dict(keep_vars=True).items():
                tensors[f"{inside}/{name}" if index else self._name(name)] = tensor
        found = MemoryStateDict(tensors, self.label)
        found.beside = self._beside
        return found

    def _name(self, name: str) -> str:
        """The name in the file of a tensor of the first module."""
        inner = name.removeprefix(self._prefix)
        return self._in_file.get(inner, inner)

    @property
    def _prefix(self) -> str:
        """What the first module puts before the names of its network."""
        parts = self.module[0].named_modules()
        return next((f"{name}." for name, part in parts if part is self.network and name), "")

    def prepare(self, items: Sequence[Any], modality: str | None = None, role: Role | None = None) -> Features:
        if modality is not None:
            self.check_takes(modality, "the batch")
        said: dict[str, Any] = {"task": role} if role else {}
        return dict(self.module.preprocess(list(items), prompt=self.prompt(role), **said))

    def prompt(self, role: Role | None) -> str | None:
        """What stands before items of a role: the first prompt of sentence-transformers' names for it."""
        names = _PROMPTS[role] if role else (self.module.default_prompt_name,)
        return next((text for name in names if (text := self.module.prompts.get(cast(str, name)))), None)

    def embed(self, features: Features) -> Tensor:
        return self.module(self.placed(features))[EMBEDDING][..., : self.module.truncate_dim]

    def trainable(self) -> SentenceTransformer:
        return self.module

    def anatomy(self) -> Anatomy:
        parts = components_of(self.state_dict, self.components)
        names = self.network.state_dict()
        return native_anatomy(self.network, {name: parts.home(self._in_file.get(name, name)) for name in names})

    def save(self, path: str | Path) -> None:
        with quiet():
            self.module.save_pretrained(str(path), create_model_card=False)


class GraftedEmbedder(SentenceEmbedder):
    """A sentence-transformers model whose first module is ours: its parts are named by the prefixes of its tensors."""

    @property
    def graft(self) -> OmniEmbedder:
        """The first module."""
        return cast("OmniEmbedder", self.module[0])

    @property
    def state_dict(self) -> MemoryStateDict:
        found = super().state_dict
        found.beside = replace(found.beside, config=self.graft.get_config_dict())
        return found

    def anatomy(self) -> Anatomy:
        graft = self.graft
        state_dict = MemoryStateDict.of_module(graft.backbone)
        parts = component_map(state_dict.tensors, state_dict.config)
        own = native_anatomy(graft.backbone, {name: parts.home(name) for name in parts})
        grafted = {modality: (graft.projector(tower),) for modality, tower in graft.tower_of.items()}
        tokens = {modality: graft.inputs.placeholders[tower] for modality, tower in graft.tower_of.items()}
        return Anatomy(own.layers, {**own.projectors, **grafted}, {**own.placeholders, **tokens}, own.token_table)

    def prepared_items(self) -> PreparedItems:
        return GraftedItems(self.prepare, self.graft, self.prompt(None))
