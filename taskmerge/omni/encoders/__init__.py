"""Encoders by name. A new one is a class with the decorator, no edit here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from taskmerge.errors import UsageError, did_you_mean
from taskmerge.omni.encoders.base import Encoder

__all__ = ["Encoder", "build_encoder", "encoder_kinds", "register_encoder"]

EncoderClass = TypeVar("EncoderClass", bound=type[Encoder])

_KINDS: dict[str, type[Encoder]] = {}
_BUILT_IN = ("log_mel", "patches", "huggingface")


def register_encoder(kind: str) -> Callable[[EncoderClass], EncoderClass]:
    """Class decorator: makes an `Encoder` known as `kind` to `graft`, to saved folders and to recipes."""

    def register(encoder: EncoderClass) -> EncoderClass:
        encoder.kind = kind
        _KINDS[kind] = encoder
        return encoder

    return register


def encoder_kinds() -> dict[str, type[Encoder]]:
    """All known encoders by name."""
    for module in _BUILT_IN:
        import_module(f"taskmerge.omni.encoders.{module}")
    return dict(_KINDS)


def build_encoder(options: Mapping[str, Any]) -> Encoder:
    """An encoder with fresh weights from ``{"kind": ..., option: value, ...}``.

    Raises UsageError for an unknown kind or option, or a value the encoder refuses.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    kinds = encoder_kinds()
    if kind not in kinds:
        raise UsageError(f"no encoder kind {kind!r}", next_move=did_you_mean(str(kind), kinds))
    try:
        return kinds[kind](**options)
    except TypeError as error:
        raise UsageError(f"encoder {kind!r} with options {sorted(options)}: {error}") from error
