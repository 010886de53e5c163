"""Attach an encoder and a fresh projector to a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from taskmerge.checkpoints.formats.links import check_links
from taskmerge.checkpoints.formats.modules import module_folders
from taskmerge.checkpoints.formats.reading import local_folder, open_stored
from taskmerge.checkpoints.memory import bytes_of
from taskmerge.checkpoints.output.library_saves import publish_saved
from taskmerge.checkpoints.output.record import Source, described, new_record
from taskmerge.checkpoints.output.replacing import absolute, site
from taskmerge.declarations import (
    COUNT,
    Between,
    Either,
    Flag,
    Named,
    Number,
    Place,
    Section,
    Text,
    checked_arguments,
    optional,
)
from taskmerge.errors import CheckpointError, UsageError, did_you_mean, first_line
from taskmerge.words.extras import TRAINING, require
from taskmerge.words.modalities import modality_of_column, through, tower_of, with_tower

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from taskmerge.embedders.embedder import OmniEmbedder
    from taskmerge.embedders.inputs import BackboneInputs
    from taskmerge.embedders.towers import TowerConfig


@dataclass(frozen=True)
class ProjectorOptions:
    """The projector of a new tower. hidden: width between the two layers of an mlp; None: the backbone's."""

    shorthand: ClassVar[str] = "kind"

    kind: Literal["linear", "mlp"] = "mlp"
    hidden: Annotated[int | None, Between(1, None)] = None


@checked_arguments(
    backbone=Place(),
    modality=Text(),
    encoder=Either((Place(), Named("options"))),
    projector=Section(ProjectorOptions),
    out=optional(Place()),
    pooling=optional(Text()),
    normalize=Flag(),
    placeholder=optional(Text()),
    start=optional(Text()),
    end=optional(Text()),
    max_seq_length=optional(COUNT),
    seed=Number(0, 2**32 - 1, integer=True),
    fresh=Flag(),
)
def graft(
    backbone: str | Path,
    modality: str,
    encoder: str | Path | Mapping[str, object],
    projector: str | Mapping[str, object] = "mlp",
    out: str | Path | None = None,
    *,
    pooling: str | None = None,
    normalize: bool = True,
    placeholder: str | None = None,
    start: str | None = None,
    end: str | None = None,
    max_seq_length: int | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> SentenceTransformer:
    """Make a SentenceTransformer that takes one more modality, and save it to `out` if given.

    Args:
        backbone: folder or hub id of a text or vision-language model, or a folder made by this function (encoders can
            be added one after the other). The model still takes its own modalities, through its own processor.
        modality: "audio", "image", "document" or "video"; the last three share one vision encoder.
        encoder: a registered kind ("log_mel", "patches"), a folder or hub id of a transformers model, or
            ``{"kind": ..., option: value}``.
        projector: "linear", "mlp" or ``{"kind": ..., "hidden": ...}``.
        out: folder for the model; default: it is not saved.
        pooling: "mean", "cls" or "lasttoken"; default: as in the backbone's folder, else "mean" for encoders and
            "lasttoken" for decoders.
        normalize: whether embeddings have length 1.
        placeholder, start, end: tokens in place of and around the media. Unknown ones are added to the tokenizer and to
            the token embeddings. The default placeholder is an unused token of the vocabulary, if there is one.
        max_seq_length: in tokens; default: as in the backbone's tokenizer, else all its positions.
        seed: of the new weights.
        fresh: replace a folder at `out` that taskmerge made.

    Returns:
        The model, on the CPU.

    Raises:
        UsageError, CheckpointError or OutputError: before anything is written.
    """
    require(*TRAINING)
    read = [Path(str(one)) for one in (backbone, encoder) if isinstance(one, str | Path)]
    read = [path for path in read if path.exists()]
    if out is not None:
        site(absolute(out), fresh, read)
    tokens = (placeholder, start, end)
    made = cast(ProjectorOptions, projector)
    model = _attached(backbone, modality, encoder, made, pooling, normalize, tokens, max_seq_length, seed)
    if out is not None:
        _save(model, Path(out), fresh, read, {"backbone": backbone, "encoder": encoder})
    return cast("SentenceTransformer", model)


def _save(model: Any, out: Path, fresh: bool, read: Sequence[Path], made_of: Mapping[str, Any]) -> None:
    """Write a graft into its folder with its card and record, whole or not at all."""
    sources: dict[str, Source] = {}
    for label, source in made_of.items():
        if isinstance(source, str | Path) and ("/" in str(source) or Path(source).exists()):
            sources |= described({label: open_stored(str(source))})
        else:
            sources[label] = {"source": str(source)}
    record = new_record("grafted", "graft", sources)
    from taskmerge.embedders.opening import quiet

    with quiet():
        publish_saved(
            lambda place: model.save_pretrained(str(place), create_model_card=False),
            out,
            record,
            needed=bytes_of(model.state_dict(keep_vars=True).values()),
            fresh=fresh,
            inputs=read,
            base=local_folder(made_of["backbone"]),
        )


def graft_on_meta(
    backbone: str | Path, modality: str, encoder: str | Path | Mapping[str, Any], projector: str = "mlp"
) -> Any:
    """Make the model of `graft` with a backbone without values, for checks before anything is trained.

    Tokens that grafting would add have no rows. Arguments and errors as for `graft`.
    """
    require(*TRAINING)
    return _attached(backbone, modality, encoder, projector, None, True, (None, None, None), None, 0, on_meta=True)


def _attached(
    backbone: str | Path,
    modality: str,
    encoder: str | Path | Mapping[str, Any],
    projector: str | ProjectorOptions,
    pooling: str | None,
    normalize: bool,
    tokens: tuple[str | None, str | None, str | None],
    max_seq_length: int | None,
    seed: int,
    on_meta: bool = False,
) -> Any:
    import torch

    from taskmerge.embedders.backbones import check_can_be_made_again
    from taskmerge.embedders.embedder import OmniEmbedder
    from taskmerge.embedders.encoders import encoder_problems
    from taskmerge.embedders.towers import TowerConfig

    encoder = str(encoder) if isinstance(encoder, Path) else encoder
    if modality not in with_tower():
        raise UsageError(f"unknown modality {modality!r}", next_move=did_you_mean(modality, with_tower()))
    if isinstance(encoder, str) and (problems := list(encoder_problems(encoder, modality_of_column(modality)))):
        raise UsageError(problems)
    folder = local_folder(backbone)
    check_links(folder, module_folders(folder).values())
    opened = _open_backbone(folder, pooling, normalize, on_meta)
    network, old, name = opened.network, opened.old, tower_of(modality)
    _check_modality(opened, modality, str(backbone))
    taken = {tower.placeholder for tower in old.towers.values()} if old is not None else set()
    placeholder, start, end = tokens
    tower = TowerConfig(
        name=name,
        encoder=_encoder_options(encoder),
        projector=_projector_options(projector),
        placeholder=placeholder or _unused_token(opened.tokenizer, name, taken),
        start=start,
        end=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _add_tokens(network, opened.tokenizer, [tower.placeholder, start, end], in_text=opened.own is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = [*(old.towers.values() if old is not None else ()), tower]
        embedder = OmniEmbedder(network, towers, opened.inputs(towers, max_seq_length))
        takes = embedder.encoder(name).modalities
        if modality_of_column(modality) not in takes:
            raise UsageError(
                f"encoder {encoder!r} takes {', '.join(takes)}, not {modality}",
                next_move="choose an encoder for this modality, or another modality",
            )
        table = network.get_input_embeddings().weight
        if not table.is_meta:
            embedder.projector(name).match_scale(table)
    if old is not None:
        embedder.load_state_dict(old.state_dict(), strict=False, assign=on_meta)
    check_can_be_made_again(embedder.get_config_dict(), network, str(backbone))
    return _assembled(embedder, opened.tail)


def _assembled(embedder: Any, tail: list[Any]) -> Any:
    from sentence_transformers import SentenceTransformer

    device = embedder.backbone.device  # "meta" for a model without values
    return SentenceTransformer(modules=[embedder, *tail], device=str(device)).eval()


@dataclass(frozen=True)
class _Opened:
    """A backbone to graft onto.

    network: the transformers model.  tokenizer: its own.  own: sentence-transformers' module around it, where it has a
    way of its own to prepare items; None for a plain text model.  old: the grafted embedder that it is in.  tail: the
    modules after it.
    """

    network: Any
    tokenizer: Any
    own: Any
    old: OmniEmbedder | None
    tail: list[Any]

    @property
    def takes(self) -> tuple[str, ...]:
        """The modalities that it takes by itself."""
        return ("text",) if self.own is None else tuple(name for name in self.own.modalities if isinstance(name, str))

    def inputs(self, towers: Sequence[TowerConfig], longest: int | None) -> BackboneInputs:
        """What prepares its items, with room for the towers."""
        from taskmerge.embedders.own_inputs import OwnInputs
        from taskmerge.embedders.sequences import SequenceBuilder

        by_name = {tower.name: tower for tower in towers}
        if self.own is None:
            known = self.old.max_seq_length if self.old is not None else None
            return SequenceBuilder(self.tokenizer, by_name, longest or known or _positions(self.network))
        found = OwnInputs(self.own, by_name)
        if longest is not None:
            found.max_seq_length = longest
        return found


def _check_modality(opened: _Opened, modality: str, place: str) -> None:
    """Raises UsageError where the backbone takes the modality already, or has a tower of that name."""
    name = tower_of(modality)
    if opened.old is not None and name in opened.old.towers:
        raise UsageError(
            f"{place} already has a tower {name!r}",
            next_move="train it with `recover` or `specialize`, or graft another modality",
        )
    if own := sorted(set(through(name)) & set(opened.takes)):
        raise UsageError(
            f"{place} already supports {', '.join(own)}",
            next_move=f"train its own {name} tower (`specialize` without `graft`), or graft another modality",
        )


def _open_backbone(backbone: str | Path, pooling: str | None, normalize: bool, on_meta: bool) -> _Opened:
    from taskmerge.embedders.loading import open_embedder, open_on_meta
    from taskmerge.embedders.own_inputs import OwnInputs
    from taskmerge.embedders.sentence import GraftedEmbedder

    if not (Path(backbone) / "modules.json").is_file():
        module = _open_plain(backbone, on_meta)
        network = module.auto_model
        mode = pooling or ("lasttoken" if _is_causal(network) else "mean")
        return _Opened(network, module.tokenizer, _own(module, backbone), None, _tail(network, mode, normalize))
    opened: Any = open_on_meta(backbone) if on_meta else open_embedder(backbone)
    first, *rest = list(opened.module)
    old = opened.graft if isinstance(opened, GraftedEmbedder) else None
    network = old.backbone if old is not None else opened.network
    if not hasattr(network, "get_input_embeddings"):
        raise CheckpointError(
            "its first module does not contain a transformers model",
            str(backbone),
            "graft onto a text or vision-language model of transformers",
        )
    tail = rest if pooling is None else _tail(network, pooling, normalize)
    if old is None:
        return _Opened(network, first.tokenizer, _own(first, backbone), None, tail)
    own = old.inputs.module if isinstance(old.inputs, OwnInputs) else None
    return _Opened(network, old.tokenizer, own, old, tail)


def _own(module: Any, place: str | Path) -> Any:
    """The module where it prepares more than plain text, else None.

    Raises UsageError where modalities go through separate networks, so that there is no sequence to put vectors into.
    """
    from taskmerge.embedders.own_inputs import OUTPUT

    if module.module_output_name != OUTPUT or any(
        row["method"] != "forward" for row in module.modality_config.values()
    ):
        what = f"{type(module.auto_model).__name__} has no single sequence for text and projected vectors"
        raise UsageError(what, str(place), "graft onto a text or vision-language model")
    return None if set(module.modalities) <= {"text"} else module


def _tail(network: Any, pooling: str, normalize: bool) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    try:
        pooled = Pooling(_width(network), pooling)
    except ValueError as error:
        raise UsageError(
            f"pooling: {first_line(error)}",
            next_move="use mean, cls, lasttoken or another mode of sentence-transformers' Pooling",
        ) from None
    return [pooled, *([Normalize()] if normalize else [])]


def _open_plain(backbone: str | Path, on_meta: bool) -> Any:
    """sentence-transformers' module around a plain transformers folder."""
    from sentence_transformers.base.modules import Transformer

    from taskmerge.embedders.opening import opening

    with opening(backbone, "backbone"):
        return Transformer(str(backbone), model_kwargs={"device_map": "meta"} if on_meta else {}).eval()


def _width(network: Any) -> int:
    return int(getattr(network.config, "hidden_size", 0) or network.config.get_text_config().hidden_size)


def _positions(network: Any) -> int:
    return int(getattr(network.config, "max_position_embeddings", 0) or 512)


def _is_causal(network: Any) -> bool:
    return not any("bert" in str(name).lower() for name in (network.config.model_type, type(network).__name__))


def _projector_options(projector: str | ProjectorOptions) -> dict[str, Any]:
    if isinstance(projector, str):
        return {"kind": projector}
    return {name: value for name, value in asdict(projector).items() if value is not None}


def _encoder_options(encoder: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    from taskmerge.embedders.encoders import encoder_kinds

    if isinstance(encoder, Mapping):
        return dict(encoder)
    return {"kind": encoder} if encoder in encoder_kinds() else {"kind": "huggingface", "model": str(encoder)}


def _unused_token(tokenizer: Any, name: str, taken: set[str]) -> str:
    vocabulary = tokenizer.get_vocab()
    for index in range(100):
        for token in (f"[unused{index}]", f"<unused{index}>"):
            if token in vocabulary and token not in taken:
                return token
    return f"<|{name}|>"


def _add_tokens(network: Any, tokenizer: Any, tokens: list[str | None], in_text: bool) -> None:
    """Tokens the tokenizer lacks get rows in the token embeddings, drawn closely around the mean of the old rows.

    in_text: whether the tokenizer must find them in a text, where words of the vocabulary may be cut into pieces.
    """
    from taskmerge.embedders.opening import quiet

    wanted = [token for token in tokens if token is not None]
    new = [token for token in wanted if in_text or token not in tokenizer.get_vocab()]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
        table = network.get_input_embeddings().weight
        if len(tokenizer) > table.shape[0] and not table.is_meta:
            with quiet():
                network.resize_token_embeddings(len(tokenizer), mean_resizing=True)
