"""Processors of models that take films, where torchvision is not installed.

transformers has image processors that work with Pillow alone. Its video processors scale and normalise with
torchvision, so that a processor which holds one cannot be loaded without it. Their own code for choosing frames and
cutting patches needs no torchvision; here it runs on frames that Pillow has scaled, as pictures are.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from taskmerge.errors import CheckpointError, UsageError

_ENTRY = "video_processor"
_TORCHVISION = "torchvision.transforms.v2.functional"
_FRAMES = "pass the video's frames as pictures, or install torchvision"


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Let processors that hold a video processor load inside the block.

    Where torchvision is installed this changes nothing.
    """
    from transformers.processing_utils import MODALITY_TO_AUTOPROCESSOR_MAPPING, MODALITY_TO_BASE_CLASS_MAPPING
    from transformers.utils import is_torchvision_available

    loaders, bases = MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES, MODALITY_TO_BASE_CLASS_MAPPING
    own = loaders[_ENTRY], bases[_ENTRY]
    if not is_torchvision_available():
        loaders[_ENTRY] = (__name__, PillowVideoProcessor.__name__)
        bases[_ENTRY] = "ImageProcessingMixin"  # a base of every video processor that is not hidden
    try:
        yield
    finally:
        loaders[_ENTRY], bases[_ENTRY] = own


class PillowVideoProcessor:
    """A substitute for transformers' `AutoVideoProcessor`."""

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> Any:
        """Load the video processor of a folder.

        Raises:
            CheckpointError: when the folder does not say which, or transformers has none of that name.
        """
        from transformers.video_processing_utils import VideoProcessorMixin

        table, unused = VideoProcessorMixin.get_video_processor_dict(source, **options)
        name = table.get("video_processor_type")
        if name is None:  # folders saved before video processors had a file of their own
            image = str(table.get("image_processor_type", ""))
            name = re.sub(r"ImageProcessor(Fast|Pil)?$", "VideoProcessor", image)
        wanted = {key: value for key, value in unused.items() if key in ("use_fast",)}
        found = video_processor_class(name, str(source)).from_dict(table, **wanted)
        return found


@cache
def video_processor_class(name: str, place: str | None = None) -> Any:
    """Return the class of that name in transformers, scaling with Pillow; it is saved as transformers' own class.

    Args:
        name: of a video processor of transformers.
        place: the folder that names it, for messages.

    Raises:
        CheckpointError: when transformers has no such class.
    """
    import transformers

    # The package hides these classes where torchvision is missing; their modules can still be imported.
    models = Path(transformers.__file__).parent / "models"
    for path in sorted(models.glob("*/video_processing_*.py")) if name.isidentifier() else ():
        if f"class {name}(" in path.read_text("utf-8"):
            with _stand_in():
                module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
            return type(name, (getattr(module, name), _pillow_frames()), {})
    raise CheckpointError(
        f"no video processor {name!r} in transformers {transformers.__version__}",
        place,
        "install a version of transformers that has it",
    )


class _Missing:
    """A name of torchvision, which modules may mention but not use."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Missing:
        raise UsageError("this model's own video preparation needs torchvision", next_move=_FRAMES)


@contextmanager
def _stand_in() -> Iterator[None]:
    """Let a module that names torchvision be imported inside the block."""
    parts = _TORCHVISION.split(".")
    names = [".".join(parts[: stop + 1]) for stop in range(len(parts))]
    modules = {name: ModuleType(name) for name in names if name not in sys.modules}
    for name, module in modules.items():
        module.__getattr__ = lambda attribute: _Missing  # type: ignore[method-assign]
        outer, _, last = name.rpartition(".")
        if outer in modules:
            setattr(modules[outer], last, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


@cache
def _pillow_frames() -> type:
    """What the base class of all video processors does with torchvision, done with Pillow and torch."""
    import numpy as np
    import torch
    from transformers.image_processing_backends import PilBackend
    from transformers.image_utils import ChannelDimension
    from transformers.video_processing_utils import BaseVideoProcessor
    from transformers.video_utils import convert_to_rgb

    pillow: Any = PilBackend()

    def each_frame(frames: torch.Tensor, change: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
        """frames: (..., channels, height, width)."""
        flat = frames.reshape(-1, *frames.shape[-3:]).numpy()
        changed = torch.from_numpy(np.stack([change(frame) for frame in flat]))
        return changed.reshape(*frames.shape[:-3], *changed.shape[1:])

    class PillowFrames(BaseVideoProcessor):
        def preprocess(self, videos: Any, **options: Any) -> Any:
            try:
                return super().preprocess(videos, **options)
            except NameError as error:  # a step of the model's own that names torchvision
                what = f"{type(self).__name__} cannot prepare videos without torchvision: {error}"
                raise UsageError(what, next_move=_FRAMES) from error

        def convert_to_rgb(self, video: torch.Tensor) -> Any:  # type: ignore[override]
            video = video.expand(-1, 3, -1, -1) if video.shape[1] == 1 else video
            return convert_to_rgb(video, input_data_format=ChannelDimension.FIRST)

        def resize(self, image: torch.Tensor, size: Any, resample: Any = None, **more: Any) -> torch.Tensor:  # type: ignore[override]
            return each_frame(image, lambda frame: pillow.resize(frame, size=size, resample=resample))

        def center_crop(self, image: torch.Tensor, size: Any, **options: Any) -> torch.Tensor:  # type: ignore[override]
            return each_frame(image, lambda frame: pillow.center_crop(frame, size))

        def normalize(self, image: torch.Tensor, mean: Any, std: Any, **options: Any) -> torch.Tensor:  # type: ignore[override]
            mean, std = (torch.as_tensor(value, dtype=image.dtype)[..., None, None] for value in (mean, std))
            return (image - mean) / std

    return PillowFrames
