"""The section of the language model in a config.json, and the few numbers of it that several rooms use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TEXT = ("text_config", "llm_config", "language_config", "text_model_config", "thinker_config", "decoder")
_WIDTH = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "encoder_embed_dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "depth")


def text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the table of the language model: a section of a config with several encoders, or the config itself."""
    for key in _TEXT:
        section = config.get(key)
        if isinstance(section, Mapping) and section:
            return text_section(section)
    return config


def sections(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every table in a config that describes a part of the model: (dotted name, table), the config first."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and (key.endswith(("_config", "-config")) or key in _TEXT):
            yield from sections(value, f"{path}.{key}" if path else key)


def width(section: Mapping[str, Any]) -> int | None:
    """Size of the vectors that its layers hand on; None where it does not say."""
    return _number(section, _WIDTH)


def layers(section: Mapping[str, Any]) -> int | None:
    """Return the number of layers; None if the section does not state it."""
    return _number(section, _LAYERS)


def _number(section: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((section[key] for key in keys if type(section.get(key)) is int), None)
