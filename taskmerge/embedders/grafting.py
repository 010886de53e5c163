"""Attach an encoder and a fresh projector to a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.reading import local_folder
from taskmerge.errors import CheckpointError, OutputError, UsageError, did_you_mean, first_line
from taskmerge.words.extras import TRAINING, require
from taskmerge.words.modalities import modality_of_column, tower_of, with_tower
from taskmerge.words.places import output_path

#: Prefix of a modality's tensors: pictures, pages and films share one tower.


def graft(
    backbone: str | Path,
    modality: str,
    encoder: str | Mapping[str, Any],
    projector: str | Mapping[str, Any] = "mlp",
    out: str | Path | None = None,
    *,
    pooling: str | None = None,
    normalize: bool = True,
    placeholder: str | None = None,
    start: str | None = None,
    end: str | None = None,
    max_seq_length: int | None = None,
    seed: int = 0,
) -> Any:
    """A SentenceTransformer that takes `modality` too; saved to `out` when given.

    backbone: folder or hub id of a text model, or a folder this function made (towers add up).
    modality: audio, image, document or video; the last three share the tower "vision".
    encoder: a registered kind ("log_mel", "patches"), a folder or hub id of a transformers model, or
    ``{"kind": ..., option: value}``.  projector: "linear", "mlp" or ``{"kind": ..., "hidden": ...}``.
    pooling: "mean", "cls" or "lasttoken"; default: what the backbone's folder says, else "mean" for encoders and
    "lasttoken" for decoders.  placeholder, start, end: tokens; unknown ones are added to the tokenizer and to the
    token embeddings. The default placeholder is an unused token of the vocabulary, if it has one.
    max_seq_length: default: all positions of the backbone.  seed: of the fresh weights.

    Raises UsageError, CheckpointError or OutputError before anything is written.
    """
    require(*TRAINING)
    import torch

    from taskmerge.embedders.embedder import OmniEmbedder
    from taskmerge.embedders.encoders import encoder_problems
    from taskmerge.embedders.towers import TowerConfig

    if modality not in with_tower():
        raise UsageError(f"no modality {modality!r}", next_move=did_you_mean(modality, with_tower()))
    out = None if out is None else output_path(out)
    if out is not None and Path(out).exists() and any(Path(out).iterdir()):
        raise OutputError("the folder is not empty", str(out), "choose another, or remove it")
    if isinstance(encoder, str) and (problems := list(encoder_problems(encoder, modality_of_column(modality)))):
        raise UsageError(problems)
    network, tokenizer, old, tail = _open_backbone(local_folder(backbone), pooling, normalize)
    name = tower_of(modality)
    if old is not None and name in old.towers:
        raise UsageError(f"{backbone} already has a tower {name!r}", next_move="recover or specialize trains it")
    taken = {tower.placeholder for tower in old.towers.values()} if old is not None else set()
    tower = TowerConfig(
        name=name,
        encoder=_encoder_options(encoder),
        projector={"kind": projector} if isinstance(projector, str) else dict(projector),
        placeholder=placeholder or _unused_token(tokenizer, name, taken),
        start=start,
        end=end,
    )
    _add_tokens(network, tokenizer, [tower.placeholder, start, end])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = [*(old.towers.values() if old is not None else ()), tower]
        length = max_seq_length or (old.max_seq_length if old is not None else _positions(network))
        embedder = OmniEmbedder(network, tokenizer, towers, length)
        takes = embedder.encoder(name).modalities
        if modality_of_column(modality) not in takes:
            raise UsageError(f"encoder {encoder!r} takes {', '.join(takes)}, not {modality}")
        embedder.projector(name).match_scale(network.get_input_embeddings().weight)
    if old is not None:
        embedder.load_state_dict(old.state_dict(), strict=False)
    model = _assembled(embedder, tail)
    if out is not None:
        model.save_pretrained(str(out), create_model_card=False)
    return model


def _assembled(embedder: Any, tail: list[Any]) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[embedder, *tail], device="cpu").eval()


def _open_backbone(backbone: str | Path, pooling: str | None, normalize: bool) -> tuple[Any, Any, Any, list[Any]]:
    """(transformers model, tokenizer, grafted embedder if it is one, modules after it)."""
    from taskmerge.embedders.loading import open_embedder
    from taskmerge.embedders.sentence import GraftedEmbedder

    if (Path(backbone) / "modules.json").is_file():
        opened: Any = open_embedder(backbone)
        old = opened.graft if isinstance(opened, GraftedEmbedder) else None
        modules = list(opened.module)
        network = old.backbone if old is not None else opened.network
        if not hasattr(network, "get_input_embeddings"):
            raise CheckpointError("its first module holds no transformers model", str(backbone))
        tail = modules[1:] if pooling is None else _tail(network, pooling, normalize)
        return network, old.tokenizer if old is not None else modules[0].tokenizer, old, tail
    network, tokenizer = _open_plain(backbone)
    mode = pooling or ("lasttoken" if _is_causal(network) else "mean")
    return network, tokenizer, None, _tail(network, mode, normalize)


def _tail(network: Any, pooling: str, normalize: bool) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    return [Pooling(_width(network), pooling), *([Normalize()] if normalize else [])]


def _open_plain(backbone: str | Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    from taskmerge.embedders.whole import whole

    try:
        with whole(backbone):
            return AutoModel.from_pretrained(backbone).eval(), AutoTokenizer.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no backbone can be loaded: {first_line(error)}", str(backbone)) from error


def _width(network: Any) -> int:
    return int(getattr(network.config, "hidden_size", 0) or network.config.get_text_config().hidden_size)


def _positions(network: Any) -> int:
    return int(getattr(network.config, "max_position_embeddings", 0) or 512)


def _is_causal(network: Any) -> bool:
    return not any("bert" in str(name).lower() for name in (network.config.model_type, type(network).__name__))


def _encoder_options(encoder: str | Mapping[str, Any]) -> dict[str, Any]:
    from taskmerge.embedders.encoders import encoder_kinds

    if not isinstance(encoder, str):
        return dict(encoder)
    return {"kind": encoder} if encoder in encoder_kinds() else {"kind": "huggingface", "model": encoder}


def _unused_token(tokenizer: Any, name: str, taken: set[str]) -> str:
    vocabulary = tokenizer.get_vocab()
    for index in range(100):
        for token in (f"[unused{index}]", f"<unused{index}>"):
            if token in vocabulary and token not in taken:
                return token
    return f"<|{name}|>"


def _add_tokens(network: Any, tokenizer: Any, tokens: list[str | None]) -> None:
    """Tokens the tokenizer lacks get rows in the token embeddings, each the mean of the old rows."""
    new = [token for token in tokens if token is not None and token not in tokenizer.get_vocab()]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
        if len(tokenizer) > network.get_input_embeddings().weight.shape[0]:
            network.resize_token_embeddings(len(tokenizer), mean_resizing=True)
