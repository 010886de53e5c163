"""Conversion of a user's items (paths, arrays, pictures, dicts) to checked waveforms and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from taskmerge.embedders.media_files import check_film, check_picture, check_sound, read_film, read_picture, read_sound
from taskmerge.errors import UsageError, clipped, first_line
from taskmerge.words.extras import require

LOWEST_SAMPLING_RATE = 1000


def describe(item: Any) -> str:
    """Return a short description of an input for error messages: its path, or its type and shape."""
    if isinstance(item, (str, Path)):
        return repr(str(item))
    if isinstance(item, dict) and "array" in item:
        return f"{describe(item['array'])} at {item.get('sampling_rate')} Hz"
    shape = getattr(item, "shape", None)
    return f"{type(item).__name__}{list(shape) if shape is not None else ''}"


def load_audio(item: Any, sampling_rate: int) -> np.ndarray:
    """Return one waveform, mono float32 at `sampling_rate`.

    item: a path to a file soundfile reads; ``{"array", "sampling_rate"}``; or a bare 1-D or 2-D array or tensor,
    taken to be at `sampling_rate` already. Channels are averaged; integers are scaled to [-1, 1].
    Raises UsageError for empty, non-finite or unreadable audio and impossible sampling rates.
    """
    name = describe(item)
    if isinstance(item, (str, Path)):
        array, rate = read_sound(Path(item), name)
    elif isinstance(item, dict):
        if "array" not in item or item.get("sampling_rate") is None:
            raise UsageError(
                f"audio {name} has no sampling rate",
                next_move='pass {"array": waveform, "sampling_rate": 16000} or a path',
            )
        array, rate = _numbers(item["array"], f"audio {name}"), item["sampling_rate"]
    else:
        array, rate = _numbers(item, f"audio {name}"), sampling_rate
    wave = _mono(array, name)
    if not isinstance(rate, int | float | np.number) or not LOWEST_SAMPLING_RATE <= float(rate) <= 400_000:
        raise UsageError(
            f"audio {name} has a sampling rate of {rate} Hz",
            next_move=f"rates from {LOWEST_SAMPLING_RATE} to 400000 Hz are resampled to the encoder's {sampling_rate}",
        )
    if float(rate) != float(sampling_rate):
        check_sound(int(len(wave) * float(sampling_rate) / float(rate)), f"audio {name} at {sampling_rate} Hz")
        require("soxr")
        import soxr

        wave = soxr.resample(wave, float(rate), float(sampling_rate))
    return np.ascontiguousarray(wave, dtype=np.float32)


def _numbers(item: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(item)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"{what} is not an array of numbers: {clipped(first_line(error), 200)}",
            next_move="give an array of numbers, or the path of a file",
        ) from None
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise UsageError(f"{what} is not an array of numbers", next_move="pass an array or the path of a file")
    return array


def _mono(array: np.ndarray, name: str) -> np.ndarray:
    if array.size == 0:
        raise UsageError(f"audio {name} is empty", next_move="remove the item, or check its recording")
    if array.ndim not in (1, 2):
        raise UsageError(f"audio {name} has {array.ndim} dimensions", next_move="waveforms are 1-D, or 2-D: channels")
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float32) / float(np.iinfo(array.dtype).max)
    wave = array.astype(np.float32)
    if wave.ndim == 2:  # the shorter axis holds the channels, whichever library wrote it
        wave = wave.mean(axis=int(np.argmin(wave.shape)))
    if not np.isfinite(wave).all():
        raise UsageError(f"audio {name} contains NaN or infinite samples", next_move="repair or remove the item")
    return wave


def load_picture(item: Any, mode: str) -> Any:
    """Load a PIL picture in `mode` ("L" or "RGB") from a path, a picture, or an array (H, W), (H, W, C), (C, H, W).

    Float arrays hold [0, 1], integers [0, 255]. Transparency is laid on white.
    Raises UsageError for empty or unreadable pictures.
    """
    require("PIL")
    from PIL import Image

    name = describe(item)
    picture: Any
    if isinstance(item, (str, Path)):
        picture = read_picture(Path(item), name)
    elif isinstance(item, Image.Image):
        check_picture(item.width, item.height, f"picture {name}")
        picture = _decoded(item, name)
    else:
        picture = _picture_from_array(_numbers(item, f"picture {name}"), name)
    if picture.width == 0 or picture.height == 0:
        raise UsageError(
            f"picture {name} is empty ({picture.width} x {picture.height})",
            next_move="remove the item, or replace the picture",
        )
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)


def _decoded(picture: Any, name: str) -> Any:
    """A picture that was opened elsewhere, and may be broken further on."""
    try:
        picture.load()
    except Exception as error:  # what decoders raise for a file that makes no sense has no bounds
        raise UsageError(
            f"picture {name} cannot be read: {clipped(first_line(error), 300)}",
            next_move="supported: PNG, JPEG, WebP, GIF, TIFF and BMP",
        ) from error
    return picture


def _picture_from_array(array: np.ndarray, name: str) -> Any:
    from PIL import Image

    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = rearrange(array, "channel y x -> y x channel")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise UsageError(
            f"picture {name} is not (height, width[, channels])",
            next_move="give an array of this shape, or the path of a picture",
        )
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise UsageError(f"picture {name} contains NaN or infinite values", next_move="repair or remove the item")
        array = np.rint(np.clip(array, 0.0, 1.0) * 255.0)
    return Image.fromarray(array.astype(np.uint8))


def load_frames(item: Any, mode: str) -> list[Any]:
    """Return the frames of one video as PIL pictures: a list of pictures, a (frames, ...) array, a folder of pictures,
    or an animated GIF/WebP/PNG file. Raises UsageError when there are none, or for a format that needs a codec.
    """
    if isinstance(item, dict) and "array" in item:
        item = item["array"]
    if isinstance(item, (str, Path)):
        return _frames_from_path(Path(item), mode)
    if not isinstance(item, Sequence):
        item = _numbers(item, f"video {describe(item)}")
        if item.ndim != 4:
            raise UsageError(
                f"video {describe(item)} is not (frames, height, width, channels)",
                next_move="give an array of this shape, or the path of a video",
            )
    if len(item) == 0:
        raise UsageError("video has no frames", next_move="remove the item, or replace the video")
    return [load_picture(frame, mode) for frame in item]


def _frames_from_path(path: Path, mode: str) -> list[Any]:
    if not path.is_dir():
        return [load_picture(frame, mode) for frame in read_film(path, describe(path))]
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    except OSError as error:
        raise UsageError(
            f"video folder {str(path)!r} cannot be read: {error.strerror}",
            next_move="check that the folder exists and that you may read it",
        ) from None
    if not files:
        raise UsageError(
            f"video folder {str(path)!r} contains no pictures",
            next_move="put the frames into it, as pictures in the order of their names",
        )
    frames: list[Any] = []
    pixels = 0
    for file in files:
        frames.append(load_picture(file, mode))
        pixels += frames[-1].width * frames[-1].height
        check_film(pixels, f"video folder {str(path)!r}")
    return frames
