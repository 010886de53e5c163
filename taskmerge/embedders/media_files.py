"""Sounds, pictures and films out of files and bytes: how large they become is known before anything is decoded."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from taskmerge.errors import TaskmergeError, UsageError, clipped, first_line
from taskmerge.words.extras import require

MOST_SAMPLES = 1 << 28
"""Of all channels of a sound: 4.6 hours at 16 kHz, 1 GiB."""
MOST_PIXELS = 178_000_000
"""Of one picture: half a GiB."""
MOST_FILM_PIXELS = 500_000_000
"""Maximum for all frames of a video: 1.5 GB."""
_FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "ICO", "TGA", "SGI", "PCX",
)  # fmt: skip
"""Of pictures. No EPS, WMF or the like: reading these runs other programs."""
_SMALLER = "make it smaller, split it, or remove it"


def read_sound(source: Path | bytes, name: str) -> tuple[np.ndarray, int]:
    """Return the samples, float32 (samples,) or (samples, channels), and the sampling rate in Hz.

    Args:
        source: a file, or its content.  name: what messages call it.

    Raises:
        UsageError: for a file that soundfile cannot read as sound, and for more than `MOST_SAMPLES`.
    """
    require("soundfile")
    import soundfile

    what = f"audio {name}"
    move = "supported: WAV, FLAC, OGG/Opus and MP3"
    with _stream(source, what) as stream, _reading(what, move), soundfile.SoundFile(stream) as sound:
        check_sound(max(int(sound.frames), 0) * sound.channels, what)
        return sound.read(dtype="float32", always_2d=False), int(sound.samplerate)


def read_picture(source: Path | bytes, name: str) -> Any:
    """Return a picture as PIL's, decoded. Raises UsageError for what is none, and for more than `MOST_PIXELS`."""
    with _stream(source, f"picture {name}") as stream, _picture(stream, f"picture {name}") as picture:
        picture.load()
        return picture.copy()


def read_film(source: Path | bytes, name: str) -> list[Any]:
    """Return the frames of an animated picture as PIL's, decoded.

    Raises UsageError for what is none, and for more than `MOST_FILM_PIXELS` in all.
    """
    from PIL import ImageSequence

    what = f"video {name}"
    move = "pass a folder of pictures, an animated GIF/WebP/PNG, or an array of frames"
    with _stream(source, what) as stream, _picture(stream, what, move) as film:
        check_film(film.width * film.height * getattr(film, "n_frames", 1), what)
        return [frame.copy() for frame in ImageSequence.Iterator(film)]


def check_sound(samples: int, what: str) -> None:
    """Raise UsageError for more samples than a sound may have."""
    _check(samples, MOST_SAMPLES, what, "samples")


def check_film(pixels: int, what: str) -> None:
    """Raise UsageError when frames have more pixels in all than a video may have."""
    _check(pixels, MOST_FILM_PIXELS, what, "pixels")


def check_picture(width: int, height: int, what: str) -> None:
    """Raise UsageError for a picture of more pixels than it may have."""
    _check(width * height, MOST_PIXELS, what, "pixels")


def _check(count: int, most: int, what: str, of: str) -> None:
    if count > most:
        raise UsageError(f"{what} is too large: {count:,} {of}, at most {most:,} are allowed", next_move=_SMALLER)


@contextmanager
def _stream(source: Path | bytes, what: str) -> Iterator[BinaryIO]:
    """A file that is one: opening a named pipe would wait for ever, and a device never ends."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    move = "paths are relative to the working directory"
    try:
        number = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"{what} cannot be read: {said}", next_move=move) from None
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise UsageError(f"{what} is not a file", next_move=move)
        yield file


@contextmanager
def _reading(what: str, move: str) -> Iterator[None]:
    try:
        yield
    except TaskmergeError:
        raise
    except Exception as error:  # what libraries raise for a file that makes no sense has no bounds
        said = clipped(first_line(error), 300)
        raise UsageError(f"{what} cannot be read: {said}", next_move=move) from error


@contextmanager
def _picture(stream: BinaryIO, what: str, move: str = "supported: PNG, JPEG, WebP, GIF, TIFF and BMP") -> Iterator[Any]:
    require("PIL")
    from PIL import Image

    Image.init()
    known = [name for name in _FORMATS if name in Image.OPEN]
    with _reading(what, move), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(stream, formats=known)
        except Image.DecompressionBombError as error:
            raise UsageError(f"{what} is too large: {clipped(first_line(error), 200)}", next_move=_SMALLER) from None
        with picture:
            check_picture(picture.width, picture.height, what)
            yield picture
