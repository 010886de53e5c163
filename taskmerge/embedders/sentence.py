"""Embedders made from sentence-transformers models: any of them, and the grafted ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.embedders.anatomy import Anatomy, components_of, native_anatomy, token_table
from taskmerge.embedders.file_names import parts_of
from taskmerge.embedders.interface import EMBEDDING, Embedder, Features
from taskmerge.embedders.items import GraftedItems, PreparedItems
from taskmerge.embedders.opening import quiet
from taskmerge.embedders.prompts import Role
from taskmerge.errors import CheckpointError, UsageError, clipped, first_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

    from taskmerge.embedders.embedder import OmniEmbedder

_PROMPTS: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Where sentence-transformers looks for the prompt of a role."""

_NOT_SETTINGS = ("_name_or_path", "transformers_version", "_commit_hash", "processor_class", "dtype")
"""The model's earlier path and the program that saved it."""


class SentenceEmbedder(Embedder):
    """Any sentence-transformers model, architectures that own their towers (Qwen2-Audio, Qwen3-VL, …) among them."""

    module: SentenceTransformer
    takes_prompts = True

    def __init__(self, model: SentenceTransformer, label: str | None = None, stored: StateDict | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: run, and trained, in place.
            label: what messages call it.
            stored: the weights it was loaded from, for their names.
        """
        self.module = model
        self._beside = Beside() if stored is None else replace(stored.beside, files={})  # live tensors may have changed
        self._parts = parts_of(cast("Sequence[nn.Module]", model), self._beside)
        self.network: Any = self._parts[0].network
        self.label = label or f"{type(self.network).__name__} in memory"
        self._in_files = {part.folder: part.in_file(stored) for part in self._parts}
        self._in_file = self._in_files[""]
        if stored is None:
            self._beside = MemoryStateDict.of_module(self.network).beside

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model embeds."""
        return tuple(name for name in self.module.modalities if isinstance(name, str) and name != "message")

    @property
    def dimension(self) -> int:
        """The length of its embeddings."""
        return int(self.module.get_embedding_dimension() or super().dimension)

    @property
    def state_dict(self) -> MemoryStateDict:
        """The live tensors, under their names in the model's folder."""
        tensors = {name: tensor for part in self._parts for name, tensor in part.tensors(self._in_files[part.folder])}
        found = MemoryStateDict(tensors, self.label)
        found.beside = self._beside
        return found

    def prepare(self, items: Sequence[Any], modality: str | None = None, role: Role | None = None) -> Features:
        """Make one batch of features from decoded items, see `Embedder.prepare`."""
        if modality is not None:
            self.check_takes(modality, "the batch")
        said: dict[str, Any] = {"task": role} if role else {}
        try:
            features = dict(self.module.preprocess(list(items), prompt=self.prompt(role, modality), **said))
        except (TypeError, ValueError) as error:
            what = f"cannot read these items: {clipped(first_line(error), 300)}"
            raise UsageError(what, self.label, "give items of the kind that it takes") from error
        if role and self._is_routed:
            features["task"] = role  # a router that is not the first module finds it nowhere else
        return features

    @property
    def _is_routed(self) -> bool:
        return any(type(part).__name__ == "Router" for part in self.module)

    @property
    def own_prompts(self) -> Mapping[str, str]:
        """The model's own prompts by name."""
        return {name: text for name, text in self.module.prompts.items() if text is not None}

    def prompt(self, role: Role | None, modality: str | None = None) -> str | None:
        """Return the user's prompt, else the first one that the model has under a name of the role.

        The names are those that `encode_query` and `encode_document` of sentence-transformers use; an empty prompt
        counts.
        """
        said = super().prompt(role, modality)
        if said is not None:
            return said or None
        own = self.module.prompts
        names = _PROMPTS[role] if role else (self.module.default_prompt_name,)
        return next((own[name] for name in names if name in own), None) or None

    def same_for_both_roles(self, items: Sequence[Any], modality: str) -> bool:
        """Return whether items are embedded alike in both roles: equal prompts, and no Router among the modules."""
        return not self._is_routed and self.prompt("query", modality) == self.prompt("document", modality)

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that decide the embeddings in addition to the tensors, as plain values."""
        module = self.module
        own = {name: getattr(module, name, None) for name in ("default_prompt_name", "truncate_dim", "max_seq_length")}
        parts = [(type(part).__name__, _config_of(part)) for part in module]
        return {**super().settings(), **own, "similarity": self.similarity, "modules": parts}

    @property
    def max_tokens(self) -> int | None:
        """The number of tokens beyond which a text is truncated; None without a limit."""
        return self.module.max_seq_length

    def token_embeddings(self) -> Tensor | None:
        """Return the weight of the token embeddings, (vocabulary, width); None if there is none."""
        return token_table(getattr(self.network, "backbone", self.network))

    @property
    def similarity(self) -> str:
        """The measure for comparing its embeddings, as the model states it."""
        return str(self.module.similarity_fn_name or "cosine")

    def embed(self, features: Features) -> Tensor:
        """Embed one batch, see `Embedder.embed`."""
        found = self.module(self.placed(features)).get(EMBEDDING)
        if found is None:
            parts = ", ".join(type(part).__name__ for part in self.module)
            raise CheckpointError(
                f"its modules do not produce a sentence embedding: {parts}",
                self.label,
                "add a Pooling to its modules.json",
            )
        return found[..., : self.module.truncate_dim]

    def anatomy(self) -> Anatomy:
        """Find the layers and the projectors, see `Embedder.anatomy`."""
        parts = components_of(self.state_dict, self.components)
        names = self.network.state_dict()
        return native_anatomy(self.network, {name: parts.home(self._in_file.get(name, name)) for name in names})

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, as sentence-transformers does."""
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
        """The live tensors, with the config of the grafted embedder."""
        found = super().state_dict
        found.beside = replace(found.beside, config=self.graft.get_config_dict())
        return found

    def anatomy(self) -> Anatomy:
        """Find the layers, and the projectors of the backbone and of the added encoders."""
        graft = self.graft
        state_dict = MemoryStateDict.of_module(graft.backbone)
        parts = component_map(state_dict.tensors, state_dict.config)
        own = native_anatomy(graft.backbone, {name: parts.home(name) for name in parts})
        grafted = {modality: (graft.projector(tower),) for modality, tower in graft.tower_of.items()}
        tokens = {modality: graft.inputs.placeholders[tower] for modality, tower in graft.tower_of.items()}
        return Anatomy(own.layers, {**own.projectors, **grafted}, {**own.placeholders, **tokens}, own.token_table)

    def prepared_items(self) -> PreparedItems:
        """Return a store for the items of training sets."""
        return GraftedItems(self.graft)


def _config_of(part: Any) -> dict[str, Any]:
    """What a module of a sentence-transformers model is set to: its options, its processor and its tokenizer."""
    found = {"options": part.get_config_dict() if hasattr(part, "get_config_dict") else {}}
    network = getattr(part, "auto_model", None)
    if network is not None:
        config = network.config.to_dict()
        found["network"] = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    processor = getattr(part, "processor", None)
    for name in ("feature_extractor", "image_processor", "video_processor"):
        if (own := getattr(processor, name, None)) is not None:
            found[name] = {key: value for key, value in own.to_dict().items() if key not in _NOT_SETTINGS}
    tokenizer = getattr(part, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        table = json.loads(backend.to_str())
        found["tokenizer"] = {key: value for key, value in table.items() if key not in ("padding", "truncation")}
        found["chat_template"] = getattr(tokenizer, "chat_template", None)
    return found
