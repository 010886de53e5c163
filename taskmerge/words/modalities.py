"""MODALITIES: one row a modality. What it is called in data, in tensor names, in configs, and who takes it.

A tower is what a model has for one or several modalities: pictures and videos go through the same one, "vision". Its
components are called `vision_encoder` and `vision_projector`. All code about modalities uses this table; a new
modality is a new row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

Media = Literal["text", "sound", "picture", "film"]
TEXT = "text"
_VERSION = re.compile(r"(2vec|v?\d)+$")


@dataclass(frozen=True)
class Modality:
    """One modality.

    name: also the name of its data column.  media: how an item is decoded.  tower: what its components begin with; ""
    for text, which has none.  columns: further data columns that hold items of it.  words: whole words of tensor names
    and config keys that speak of its tower.  config_words: words that do so in config keys only.  letter: mteb's.
    encoders: what well-known encoders of it are called; owners name modules after them.  placeholders: config keys that
    hold the id of the token that its vectors replace.
    """

    name: str
    media: Media
    tower: str = ""
    columns: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    config_words: tuple[str, ...] = ()
    letter: str = ""
    encoders: tuple[str, ...] = ()

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The keys of a config that may contain the id of the placeholder token."""
        return tuple(pattern.format(self.name) for pattern in ("{}_token_id", "{}_token_index"))


MODALITIES: tuple[Modality, ...] = (
    Modality(TEXT, "text", letter="t"),
    Modality(
        "image", "picture", "vision", ("document",),
        ("vision", "visual", "image", "img", "pixel"), ("boi", "eoi", "mm"), "i",
        ("vit", "siglip", "clip", "openclip", "dino", "eva", "intern", "internvit", "navit", "moonvit", "radio", "sam",
         "swin", "convnext", "resnet", "beit", "deit", "mae", "pixtral", "eye", "eyes", "camera"),
    ),
    Modality(
        "audio", "sound", "audio", (), ("audio", "speech", "sound", "acoustic"), ("boa", "eoa"), "a",
        ("whisper", "wav", "wavlm", "hubert", "beats", "clap", "htsat", "ast", "mert", "conformer", "usm", "parakeet",
         "encodec", "mimi", "dac", "voice", "ear", "ears", "mel", "fbank", "asr"),
    ),
    Modality("video", "film", "vision", (), ("video",), (), "v", ("vjepa", "videomae", "timesformer", "vivit")),
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(row.name for row in MODALITIES)
TOWERS: tuple[str, ...] = tuple(dict.fromkeys(row.tower for row in MODALITIES if row.tower))
"""Of every modality that has one; the first modality of a tower is what it is called after in data."""
COLUMNS: tuple[str, ...] = tuple(column for row in MODALITIES for column in (row.name, *row.columns))
"""Data columns that hold items, text among them."""
WORDS: tuple[str, ...] = tuple(word for row in MODALITIES for word in row.words)


def modality(name: str) -> Modality | None:
    """Return the row of a modality or of a data column; None when there is none."""
    return _rows().get(name)


def modality_of_column(column: str) -> str:
    """Return the name of the modality that a data column holds ("document": "image"); another name as it is."""
    row = modality(column)
    return row.name if row else column


def media_of(name: str) -> Media:
    """Return how items of a modality or column are decoded; text for a name that is none."""
    row = modality(name)
    return row.media if row else "text"


def letter_of(name: str) -> str:
    """Return mteb's letter of a modality ("image": "i"), or the first of its name."""
    row = modality(name)
    return (row.letter if row else "") or name[:1]


def tower_of(name: str) -> str:
    """Return the tower that items of a modality or column go through ("video": "vision"); another name as it is."""
    row = modality(name)
    return row.tower if row and row.tower else name


def with_tower() -> tuple[str, ...]:
    """Return the columns whose items need a tower: what an encoder can be grafted for."""
    return tuple(column for column in COLUMNS if (row := modality(column)) is not None and row.tower)


def through(tower: str) -> tuple[str, ...]:
    """Return the modalities whose items go through a tower."""
    return tuple(row.name for row in MODALITIES if row.tower == tower)


def tower_in(words: Iterable[str]) -> str | None:
    """Return the tower that the first word that speaks of one names; None when none does."""
    towers = _tower_of_word()
    return next((towers[word] for word in words if word in towers), None)


def tower_of_encoder(part: str) -> str | None:
    """Return the tower that a well-known encoder's name in a path component tells ("whisper_model": "audio").

    Versions count as the name: wav2vec2, dinov3, siglip2. None when no word is one.
    """
    known = _tower_of_encoder()
    for word in part.lower().replace("-", "_").split("_"):
        stem = _VERSION.sub("", word)
        if (tower := known.get(word) or known.get(stem)) is not None:
            return tower
    return None


def config_words(tower: str) -> frozenset[str]:
    """Return the words of config keys that speak of a tower."""
    return frozenset(word for row in MODALITIES if row.tower == tower for word in (*row.words, *row.config_words))


@cache
def _rows() -> dict[str, Modality]:
    return {column: row for row in MODALITIES for column in (row.name, *row.columns)}


@cache
def _tower_of_encoder() -> dict[str, str]:
    return {word: row.tower for row in MODALITIES for word in row.encoders}


@cache
def _tower_of_word() -> dict[str, str]:
    return {word: row.tower for row in MODALITIES for word in row.words}
