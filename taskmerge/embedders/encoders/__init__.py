"""Encoders by name. A new one is a class with the decorator, no edit here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from taskmerge.embedders.encoders.base import Encoder
from taskmerge.errors import Problem, UsageError, did_you_mean, nearest

__all__ = ["Encoder", "build_encoder", "encoder_kinds", "encoder_problems", "register_encoder"]

EncoderClass = TypeVar("EncoderClass", bound=type[Encoder])

_KINDS: dict[str, type[Encoder]] = {}
_BUILT_IN = ("log_mel", "patches", "huggingface")


def register_encoder(kind: str) -> Callable[[EncoderClass], EncoderClass]:
    """Register an `Encoder` class for `graft`, saved folders and recipes; a class decorator.

    Args:
        kind: the name of the encoder.

    Returns:
        The decorator.
    """

    def register(encoder: EncoderClass) -> EncoderClass:
        encoder.kind = kind
        _KINDS[kind] = encoder
        return encoder

    return register


def encoder_kinds() -> dict[str, type[Encoder]]:
    """Return all known encoders by name."""
    for module in _BUILT_IN:
        import_module(f"taskmerge.embedders.encoders.{module}")
    return dict(_KINDS)


def encoder_problems(encoder: str, modality: str) -> Iterator[Problem]:
    """Yield the known problems of an encoder for "audio", "image" or "video" before it is built.

    encoder: a kind, or a folder or hub id of a transformers model.
    """
    kinds = encoder_kinds()
    if encoder in kinds:
        takes = getattr(kinds[encoder], "modalities", (modality,))  # some know it only when they are built
        fit = [kind for kind in kinds if modality in getattr(kinds[kind], "modalities", ())]
        if modality not in takes:
            move = f"use {', '.join(fit)}, or a transformers encoder: folder or hub id"
            yield Problem(f"encoder {encoder!r} takes {', '.join(takes)}, not {modality}", next_move=move)
    elif "/" not in encoder and not Path(encoder).exists() and nearest(encoder, kinds):
        yield Problem(f"unknown encoder {encoder!r}", next_move=did_you_mean(encoder, kinds))


def build_encoder(options: Mapping[str, Any]) -> Encoder:
    """Return an encoder with new weights from ``{"kind": ..., option: value, ...}``.

    Raises UsageError for an unknown kind or option, or a value the encoder refuses.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    kinds = encoder_kinds()
    if kind not in kinds:
        raise UsageError(f"unknown encoder kind {kind!r}", next_move=did_you_mean(str(kind), kinds))
    try:
        return kinds[kind](**options)
    except TypeError as error:
        raise UsageError(
            f"encoder {kind!r} with options {sorted(options)}: {error}", next_move="correct the options of the encoder"
        ) from error
