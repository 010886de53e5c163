"""The grafted embedder: backbone, and per modality an encoder and a projector that feed it vectors for tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules.input_module import InputModule
from torch import Tensor, nn

from taskmerge.embedders.anatomy import MODEL_TYPE
from taskmerge.embedders.backbones import backbone_config, backbone_of, load_tensors, replaced_embeddings, save_tensors
from taskmerge.embedders.encoders import Encoder, build_encoder
from taskmerge.embedders.inputs import MESSAGE, BackboneInputs, messages_without
from taskmerge.embedders.media import describe
from taskmerge.embedders.sequences import SequenceBuilder
from taskmerge.embedders.towers import Projector, TowerConfig
from taskmerge.errors import UsageError
from taskmerge.words.modalities import modality_of_column

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUB_OPTIONS = ("token", "cache_folder", "revision", "local_files_only")


class OmniEmbedder(InputModule):
    """The first module of a SentenceTransformer: (text, pictures, audio, videos) -> token embeddings.

    Tensors are named ``backbone.*``, ``{tower}_encoder.*``, ``{tower}_projector.*``.

    Features, all batch-first so that a batch can be sliced: ``input_ids``, ``attention_mask`` (batch, sequence); per
    tower in the batch ``{tower}_mask`` (batch, sequence), true at the places of its vectors; ``{tower}_lengths``
    (batch, 1), 0 for items without; and either ``{tower}_values`` (batch, 1, longest, ...), prepared items, or
    ``{tower}_encoded`` (batch, 1, tokens, width), the encoder's output computed before. Beside them what the backbone's
    own modalities need, as its processor names it.
    """

    forward_kwargs = {"output_hidden_states"}  # noqa: RUF012  (the attribute's type is set by the base class)

    backbone: Any  # a PreTrainedModel

    # modules.json of a saved model names its classes: this address stays, wherever the file moves.
    __module__ = "taskmerge"

    def __init__(self, backbone: nn.Module, towers: Sequence[TowerConfig], inputs: BackboneInputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backbone = backbone
        self.towers = {tower.name: tower for tower in towers}
        self.tower_of: dict[str, str] = {}
        # in a tuple: what it holds of the backbone must not count as a part twice
        self._inputs = (inputs,)
        for tower in towers:
            encoder = build_encoder(tower.encoder)
            projector = Projector(encoder.output_size, self.get_embedding_dimension(), **tower.projector)
            self.add_module(f"{tower.name}_encoder", encoder)
            self.add_module(f"{tower.name}_projector", projector)
            for modality in encoder.modalities:
                if modality in self.tower_of:
                    raise UsageError(
                        f"towers {self.tower_of[modality]!r} and {tower.name!r} both process {modality}",
                        next_move="keep one of the two towers",
                    )
                self.tower_of[modality] = tower.name

    # What it is made of

    def encoder(self, tower: str) -> Encoder:
        """Return the encoder of a tower, by the tower's name."""
        part: Encoder = self._part(tower, "encoder")
        return part

    def projector(self, tower: str) -> Projector:
        """Return the projector of a tower, by the tower's name."""
        part: Projector = self._part(tower, "projector")
        return part

    def _part(self, tower: str, part: str) -> Any:
        if tower not in self.towers:
            raise UsageError(f"this embedder has no tower {tower!r}", next_move=f"it has: {', '.join(self.towers)}")
        return getattr(self, f"{tower}_{part}")

    @property
    def inputs(self) -> BackboneInputs:
        """The object that makes features of items for the backbone."""
        return self._inputs[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:  # type: ignore[override]
        """The backbone's, with the tokens that grafting added."""
        own: PreTrainedTokenizerBase = self.inputs.tokenizer
        return own

    @property
    def max_seq_length(self) -> int | None:
        """The maximum number of tokens of one item."""
        return self.inputs.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.inputs.max_seq_length = value

    @property
    def modalities(self) -> list[Any]:
        """The modalities of the backbone and of the added encoders, and "message": a batch that mixes them."""
        return [*dict.fromkeys([*self.inputs.modalities, *self.tower_of]), "message"]

    def get_embedding_dimension(self) -> int:
        """Width of the backbone."""
        config = self.backbone.config
        return int(getattr(config, "hidden_size", 0) or config.get_text_config().hidden_size)

    # Inputs

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Strings, pictures, audio, films and ``{modality: item, ...}`` mixtures, in any order, as one batch.

        A prompt is put before every item. Chat messages are taken if the backbone has a template for them. Raises
        UsageError for what neither the backbone nor a tower takes, or what cannot be used.
        """
        rows = [self._parts(item) for item in inputs]
        own, prepared = [], []
        for row in rows:
            grafted, kept = self._split(row)
            prepared.append({self.tower_of[name]: self.prepare(item, name) for name, item in grafted.items()})
            own.append(kept)
        return self.assemble(own, prepared, prompt, **kwargs)

    def prepare(self, item: object, modality: str) -> Tensor:
        """Return one item as its encoder's prepared tensor (length, ...)."""
        if modality not in self.tower_of:
            self._refuse(modality, item)
        return self.encoder(self.tower_of[modality]).prepare(item, modality)

    def _refuse(self, modality: str, item: Any) -> NoReturn:
        has = ", ".join(name for name in self.modalities if name != MESSAGE)
        raise UsageError(
            f"there is no encoder for {modality}: {describe(item)}",
            next_move=f"this embedder takes {has}; `taskmerge graft` attaches another encoder",
        )

    def _parts(self, item: Any) -> dict[str, Any]:
        """{modality: item} of one input; a "document" is an image."""
        if isinstance(item, dict) and "document" in item:
            item = {modality_of_column(key): value for key, value in item.items()}
        if isinstance(item, Path):
            item = str(item)
        try:
            modality: Any = infer_modality(item, supported_modalities=self.modalities)
        except ValueError as error:
            raise UsageError(
                f"{describe(item)} cannot be embedded: {error}", next_move="correct or remove the item"
            ) from error
        if modality == MESSAGE:
            if not self.inputs.takes_messages:
                what = "this backbone lacks a template for chat messages"
                raise UsageError(what, next_move='pass {"text": …, "audio": …}')
            return {MESSAGE: [item] if isinstance(item, dict) else list(item)}
        if isinstance(modality, tuple):
            return dict(item)
        if isinstance(item, dict) and item.keys() == {modality}:
            item = item[modality]
        return {modality: item}

    def _split(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """({modality: item} for the towers, the same for the backbone)."""
        if MESSAGE in row:
            grafted, messages = messages_without(row[MESSAGE], self.tower_of)
            return grafted, {MESSAGE: messages}
        unknown = next((name for name in row if name not in self.modalities), None)
        if unknown is not None:
            self._refuse(unknown, row[unknown])
        grafted = {name: item for name, item in row.items() if name in self.tower_of}
        return grafted, {name: item for name, item in row.items() if name not in grafted}

    def assemble(
        self,
        items: Sequence[str | Mapping[str, Any]],
        prepared: Sequence[Mapping[str, Tensor]],
        prompt: str | None = None,
        encoded: bool = False,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Return a batch of items whose media for the towers are already prepared or encoded.

        Args:
            items: texts ("" for none), or {modality: item} of what the backbone takes by itself.
            prepared: for each item, {tower: prepared tensor, or encoded tensor if `encoded`}.
            prompt: put before every item.
            encoded: which of the two they are.
            options: for `BackboneInputs.build`.
        """
        counts = [
            {tower: len(item) if encoded else self.encoder(tower).token_count(len(item)) for tower, item in row.items()}
            for row in prepared
        ]
        rows = [({"text": item} if item else {}) if isinstance(item, str) else item for item in items]
        features = self.inputs.build(rows, counts, prompt, **options)
        kind = "encoded" if encoded else "values"
        for tower in self.towers:
            present = [row.get(tower) for row in prepared]
            if any(row is not None for row in present):
                features[f"{tower}_{kind}"], features[f"{tower}_lengths"] = _stack(present)
        return features

    # Forward

    def encode_media(self, tower: str, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the encoder's output (items, tokens, width) for prepared items (items, longest, ...)."""
        encoded: Tensor = self.encoder(tower)(values, lengths)
        return encoded

    def forward(self, features: dict[str, Any], output_hidden_states: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Add the backbone's outputs to the features.

        They are ``token_embeddings`` (batch, sequence, width), per tower ``{tower}_projected`` (vectors, width) in the
        order of its mask, and on request ``hidden_states``, a tuple of layers.
        """
        vectors = {}
        for tower in self.towers:
            if f"{tower}_lengths" in features:
                vectors[tower] = features[f"{tower}_projected"] = self._projected(tower, features)
        masks = {tower: features[f"{tower}_mask"] for tower in vectors}
        with replaced_embeddings(self.backbone, masks, vectors):
            states, hidden = self.inputs.run(self.backbone, features, output_hidden_states)
        features["token_embeddings"] = states
        if output_hidden_states:
            features["hidden_states"] = hidden
        return features

    def _projected(self, tower: str, features: dict[str, Any]) -> Tensor:
        """(vectors, width): the projected vectors of all items of this tower, padding left out."""
        lengths = features[f"{tower}_lengths"][:, 0]
        present = lengths > 0
        projector = self.projector(tower)
        dtype = projector.norm.weight.dtype
        if f"{tower}_encoded" in features:
            encoded = features[f"{tower}_encoded"][:, 0][present]
        else:
            values = features[f"{tower}_values"][:, 0][present].to(dtype)
            encoded = self.encode_media(tower, values, lengths[present])
        counts = features[f"{tower}_mask"].sum(dim=1)[present]
        inside = torch.arange(encoded.shape[1], device=encoded.device)[None, :] < counts[:, None]
        projected: Tensor = projector(encoded[inside].to(dtype))
        return projected

    # Saving and loading

    def get_config_dict(self) -> dict[str, Any]:
        """Return the content of the module's config file: towers, inputs, pooling and backbone."""
        towers = [
            {**tower.to_dict(), "encoder": {"kind": tower.encoder["kind"], **self.encoder(name).options}}
            for name, tower in self.towers.items()
        ]
        inputs = self.inputs.config()
        return {
            "model_type": MODEL_TYPE,
            "architectures": [type(self).__name__],
            **backbone_config(self.backbone),
            "towers": towers,
            "max_seq_length": self.max_seq_length,
            "dtype": str(next(self.backbone.parameters()).dtype).removeprefix("torch."),
            **({} if inputs is None else {"inputs": inputs}),
        }

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write config.json, the tokenizer or processor, and model.safetensors, the only format here."""
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_config(str(folder))
        self.inputs.save(str(folder))
        save_tensors(self, folder / "model.safetensors")

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> OmniEmbedder:  # type: ignore[override]
        """Load the embedder of a saved folder or hub id. Raises CheckpointError for missing or unknown tensors."""
        hub = {name: value for name, value in kwargs.items() if name in _HUB_OPTIONS}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        folder = Path(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **hub) or model_name_or_path)
        model_kwargs = kwargs.get("model_kwargs") or {}
        if model_kwargs.get("device_map") == "meta":
            with torch.device("meta"):
                return cls.from_config(config, folder).eval()
        embedder = cls.from_config(config, folder)
        load_tensors(embedder, folder)
        wanted = model_kwargs.get("dtype", model_kwargs.get("torch_dtype"))
        if wanted is not None and wanted != "auto":
            embedder.to(getattr(torch, wanted) if isinstance(wanted, str) else wanted)
        return embedder.eval()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> OmniEmbedder:
        """Return the embedder of a config, with new weights; `folder` has its tokenizer or processor."""
        backbone = backbone_of(config)
        towers = [TowerConfig.from_dict(tower) for tower in config["towers"]]
        by_name = {tower.name: tower for tower in towers}
        inputs: BackboneInputs
        if "inputs" in config:
            from taskmerge.embedders.own_inputs import OwnInputs

            inputs = OwnInputs.load(backbone, folder, config["inputs"], by_name)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, config=backbone.config)
            inputs = SequenceBuilder(tokenizer, by_name, config["max_seq_length"])
        return cls(backbone, towers, inputs)


def _stack(rows: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Zero-padded (batch, 1, longest, ...) and lengths (batch, 1); None rows are all padding, of length 0."""
    example = next(row for row in rows if row is not None)
    longest = max(len(row) for row in rows if row is not None)
    values = example.new_zeros(len(rows), 1, longest, *example.shape[1:])
    lengths = torch.zeros(len(rows), 1, dtype=torch.long)
    for index, row in enumerate(rows):
        if row is not None:
            values[index, 0, : len(row)] = row
            lengths[index, 0] = len(row)
    return values, lengths
