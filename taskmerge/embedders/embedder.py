"""The grafted embedder: backbone, and per modality an encoder and a projector that feed it vectors for tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_model, save_model
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules.input_module import InputModule
from torch import Tensor, nn

from taskmerge.embedders.anatomy import MODEL_TYPE
from taskmerge.embedders.encoders import Encoder, build_encoder
from taskmerge.embedders.media import describe
from taskmerge.embedders.sequences import SequenceBuilder
from taskmerge.embedders.towers import Projector, TowerConfig
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.words.modalities import modality_of_column

_HUB_OPTIONS = ("token", "cache_folder", "revision", "local_files_only")


class OmniEmbedder(InputModule):
    """First module of a SentenceTransformer: (text, pictures, audio, films) -> token embeddings.

    Tensors are named ``backbone.*``, ``{tower}_encoder.*``, ``{tower}_projector.*``.

    Features, all batch-first so that a batch can be sliced: ``input_ids``, ``attention_mask`` (batch, sequence); per
    tower in the batch ``{tower}_mask`` (batch, sequence), true where its vectors stand; ``{tower}_lengths`` (batch, 1),
    0 for items without; and either ``{tower}_values`` (batch, 1, longest, ...), prepared items, or
    ``{tower}_encoded`` (batch, 1, tokens, width), the encoder's output computed before.
    """

    forward_kwargs = {"output_hidden_states"}  # noqa: RUF012  (the attribute's type is set by the base class)

    backbone: Any  # a PreTrainedModel

    # modules.json of a saved model names its classes: this address stays, wherever the file moves.
    __module__ = "taskmerge"

    def __init__(self, backbone: nn.Module, tokenizer: Any, towers: Sequence[TowerConfig], max_seq_length: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        self.towers = {tower.name: tower for tower in towers}
        self.tower_of: dict[str, str] = {}
        for tower in towers:
            encoder = build_encoder(tower.encoder)
            projector = Projector(encoder.output_size, self.get_embedding_dimension(), **tower.projector)
            self.add_module(f"{tower.name}_encoder", encoder)
            self.add_module(f"{tower.name}_projector", projector)
            for modality in encoder.modalities:
                if modality in self.tower_of:
                    raise UsageError(f"towers {self.tower_of[modality]!r} and {tower.name!r} both take {modality}")
                self.tower_of[modality] = tower.name
        self.sequences = SequenceBuilder(tokenizer, self.towers, max_seq_length)

    # What it is made of

    def encoder(self, tower: str) -> Encoder:
        """The encoder of a tower, by the tower's name."""
        return self._part(tower, "encoder")

    def projector(self, tower: str) -> Projector:
        """The projector of a tower, by the tower's name."""
        return self._part(tower, "projector")

    def _part(self, tower: str, part: str) -> Any:
        if tower not in self.towers:
            raise UsageError(f"this embedder has no tower {tower!r}", next_move=f"it has: {', '.join(self.towers)}")
        return getattr(self, f"{tower}_{part}")

    @property
    def modalities(self) -> list[Any]:
        """Text, what the towers take, and "message": a batch that mixes them."""
        return ["text", *self.tower_of, "message"]

    def get_embedding_dimension(self) -> int:
        """Width of the backbone."""
        config = self.backbone.config
        return int(getattr(config, "hidden_size", 0) or config.get_text_config().hidden_size)

    # Inputs

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Strings, pictures, audio, films and ``{modality: item, ...}`` mixtures, in any order, as one batch.

        A prompt stands before every item. Raises UsageError for what no tower takes or cannot be used.
        """
        items = [self._parts(item) for item in inputs]
        media = [{modality: item for modality, item in parts.items() if modality != "text"} for parts in items]
        unknown = next((name for row in media for name in row if name not in self.tower_of), None)
        if unknown is not None:
            self._refuse(unknown, next(row[unknown] for row in media if unknown in row))
        prepared = [{self.tower_of[name]: self.prepare(item, name) for name, item in row.items()} for row in media]
        return self.assemble([parts.get("text", "") for parts in items], prepared, prompt)

    def prepare(self, item: Any, modality: str) -> Tensor:
        """One item as its encoder's prepared tensor (length, ...)."""
        if modality not in self.tower_of:
            self._refuse(modality, item)
        return self.encoder(self.tower_of[modality]).prepare(item, modality)

    def _refuse(self, modality: str, item: Any) -> NoReturn:
        has = ", ".join(["text", *self.tower_of])
        raise UsageError(
            f"no encoder for {modality}: {describe(item)}",
            next_move=f"this embedder takes {has}; `taskmerge graft` attaches another encoder",
        )

    def _parts(self, item: Any) -> dict[str, Any]:
        """{modality: item} of one input; a "document" is an image."""
        if isinstance(item, dict) and "document" in item:
            item = {modality_of_column(key): value for key, value in item.items()}
        try:
            modality: Any = infer_modality(item, supported_modalities=self.modalities)
        except ValueError as error:
            raise UsageError(f"{describe(item)} cannot be embedded: {error}") from error
        if modality == "message":
            raise UsageError("a grafted embedder takes no chat messages", next_move='hand in {"text": …, "audio": …}')
        if isinstance(modality, tuple):
            return dict(item)
        if isinstance(item, dict) and item.keys() == {modality}:
            item = item[modality]
        return {modality: item}

    def assemble(
        self,
        texts: Sequence[str],
        prepared: Sequence[dict[str, Tensor]],
        prompt: str | None = None,
        encoded: bool = False,
    ) -> dict[str, Tensor]:
        """A batch from texts ("" for none) and, per item, {tower: prepared tensor, or encoded tensor if `encoded`}."""
        counts = [
            {tower: len(item) if encoded else self.encoder(tower).token_count(len(item)) for tower, item in row.items()}
            for row in prepared
        ]
        features = self.sequences.build(texts, counts, prompt)
        kind = "encoded" if encoded else "values"
        for tower in self.towers:
            rows = [row.get(tower) for row in prepared]
            if any(row is not None for row in rows):
                features[f"{tower}_{kind}"], features[f"{tower}_lengths"] = _stack(rows)
        return features

    # Forward

    def encode_media(self, tower: str, values: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's output (items, tokens, width) for prepared items (items, longest, ...)."""
        return self.encoder(tower)(values, lengths)

    def forward(self, features: dict[str, Any], output_hidden_states: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Adds ``token_embeddings`` (batch, sequence, width) to the features, per tower ``{tower}_projected``
        (vectors, width) in the order of its mask, and on request ``hidden_states``, a tuple of layers.
        """
        mask = features["attention_mask"]
        towers = [tower for tower in self.towers if f"{tower}_lengths" in features]
        inputs: dict[str, Tensor] = {"input_ids": features["input_ids"]}
        if towers:
            embeddings = self.backbone.get_input_embeddings()(features["input_ids"])
            for tower in towers:
                vectors = self._projected(tower, features).to(embeddings.dtype)
                features[f"{tower}_projected"] = vectors
                embeddings = embeddings.masked_scatter(features[f"{tower}_mask"][..., None], vectors)
            inputs = {"inputs_embeds": embeddings}
        output = self.backbone(**inputs, attention_mask=mask, output_hidden_states=output_hidden_states)
        features["token_embeddings"] = output.last_hidden_state
        if output_hidden_states:
            features["hidden_states"] = output.hidden_states
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
        return projector(encoded[inside].to(dtype))

    # Saving and loading

    def get_config_dict(self) -> dict[str, Any]:
        towers = [
            {**tower.to_dict(), "encoder": {"kind": tower.encoder["kind"], **self.encoder(name).options}}
            for name, tower in self.towers.items()
        ]
        backbone = self.backbone.config.to_dict()
        backbone.pop("_name_or_path", None)  # where it lay on the machine that grafted it
        return {
            "model_type": MODEL_TYPE,
            "architectures": [type(self).__name__],
            "backbone": backbone,
            "towers": towers,
            "max_seq_length": self.max_seq_length,
            "dtype": str(next(self.backbone.parameters()).dtype).removeprefix("torch."),
        }

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes config.json, the tokenizer and model.safetensors, the only format here."""
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_config(str(folder))
        self.save_tokenizer(str(folder))
        save_model(self, str(folder / "model.safetensors"), metadata={"format": "pt"})

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> OmniEmbedder:  # type: ignore[override]
        """The embedder of a saved folder or hub id; raises CheckpointError when tensors are missing or unknown."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        hub = {name: value for name, value in kwargs.items() if name in _HUB_OPTIONS}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        folder = Path(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **hub) or model_name_or_path)
        options = dict(config["backbone"])
        backbone_config = AutoConfig.for_model(options.pop("model_type"), **options)
        backbone = AutoModel.from_config(backbone_config, dtype=getattr(torch, config["dtype"]))
        tokenizer = AutoTokenizer.from_pretrained(folder, config=backbone_config)
        towers = [TowerConfig.from_dict(tower) for tower in config["towers"]]
        embedder = cls(backbone, tokenizer, towers, config["max_seq_length"])
        _load_tensors(embedder, folder)
        model_kwargs = kwargs.get("model_kwargs") or {}
        wanted = model_kwargs.get("dtype", model_kwargs.get("torch_dtype"))
        if wanted is not None and wanted != "auto":
            embedder.to(getattr(torch, wanted) if isinstance(wanted, str) else wanted)
        return embedder.eval()


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


def _load_tensors(embedder: OmniEmbedder, folder: Path) -> None:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError("no model.safetensors", str(folder))
    missing: set[str] | None = None
    for file in files:
        absent, unexpected = load_model(embedder, str(file), strict=False)
        if unexpected:
            names = ", ".join(sorted(unexpected)[:5])
            raise CheckpointError(f"tensors this embedder has no place for: {names}", str(file))
        missing = set(absent) if missing is None else missing & set(absent)
    if missing:
        raise CheckpointError(f"tensors are missing: {', '.join(sorted(missing)[:5])}", str(folder))
