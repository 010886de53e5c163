"""Any pretrained encoder of transformers: Whisper, CLIP vision, SigLIP, wav2vec 2, …"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from taskmerge.checkpoints.formats.links import check_links
from taskmerge.embedders.encoders import register_encoder
from taskmerge.embedders.encoders.base import Encoder
from taskmerge.embedders.media import load_audio, load_picture
from taskmerge.embedders.opening import opening
from taskmerge.errors import UsageError

#: The name a model's main input has in its preprocessor's output.
_INPUTS = ("input_features", "input_values", "pixel_values")


@register_encoder("huggingface")
class HuggingFaceEncoder(Encoder):
    """A transformers model's hidden states, `stride` neighbours averaged into one vector.

    config: the model's config as a dict.  preprocessor: its feature extractor or image processor as a dict.
    model: a folder or hub id to take both and the weights from; saved folders leave it out.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        preprocessor: dict[str, Any] | None = None,
        model: str | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if model is not None:
            self.model, self.preprocessor = _pretrained(model)
        elif config is not None and preprocessor is not None:
            self.model, self.preprocessor = _from_config(config), _preprocessor_from(preprocessor)
        else:
            raise UsageError(
                "encoder 'huggingface' needs a model (folder or hub id)",
                next_move='give {"kind": "huggingface", "model": FOLDER}',
            )
        if stride < 1:
            raise UsageError(
                f"encoder 'huggingface': stride is {stride}", next_move="give at least 1, which keeps every vector"
            )
        self.stride = stride
        self.options = {
            "config": self.model.config.to_dict(),
            "preprocessor": self.preprocessor.to_dict(),
            "stride": stride,
        }
        is_audio = hasattr(self.preprocessor, "sampling_rate")
        self.modalities = ("audio",) if is_audio else ("image",)
        self.output_size = int(getattr(self.model.config, "hidden_size", 0) or self.model.config.d_model)
        self._tokens: dict[int, int] = {}

    def prepare(self, item: Any, modality: str) -> Tensor:
        """Return the preprocessor's output for one item, its time axis (or channels) first."""
        if modality == "audio":
            rate = int(self.preprocessor.sampling_rate)
            batch = self.preprocessor(load_audio(item, rate), sampling_rate=rate, return_tensors="pt")
        else:
            batch = self.preprocessor(load_picture(item, "RGB"), return_tensors="pt")
        values = next(batch[name] for name in _INPUTS if name in batch)[0].float()
        return rearrange(values, "mel frame -> frame mel") if modality == "audio" and values.ndim == 2 else values

    def token_count(self, length: int) -> int:
        """Return the number of vectors for an item of this length, found by a run on zeros."""
        if length not in self._tokens:
            with torch.no_grad():
                zeros = torch.zeros(1, length, *self._item_shape(), device=next(self.model.parameters()).device)
                self._tokens[length] = self._run(zeros).shape[1]
        return self._tokens[length]

    def _item_shape(self) -> tuple[int, ...]:
        """Shape of a prepared item without its first axis."""
        if self.modalities == ("audio",):
            mels = getattr(self.model.config, "num_mel_bins", None)
            return (int(mels),) if mels else ()
        size = self.model.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _run(self, values: Tensor) -> Tensor:
        if self.modalities == ("audio",) and values.ndim == 3:
            values = rearrange(values, "item frame mel -> item mel frame")
        states = self.model(values.to(self.model.dtype)).last_hidden_state
        if self.stride > 1:
            along = rearrange(states, "item token width -> item width token")
            pooled = torch.nn.functional.avg_pool1d(along, self.stride, ceil_mode=True)
            states = rearrange(pooled, "item width token -> item token width")
        return states

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Encode prepared items; lengths are not used."""
        return self._run(values)


def _encoder_of(model: Any) -> Any:
    """The tower of a model that is more than one: Whisper's encoder, CLIP's vision model."""
    for attribute in ("vision_model", "audio_tower", "encoder"):
        part = getattr(model, attribute, None)
        if part is not None and hasattr(part, "config") and hasattr(part, "dtype"):
            return part
    return model


def _pretrained(model: str) -> tuple[Any, Any]:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

    if Path(model).is_dir():
        check_links(Path(model), [])
    with opening(model, "encoder"):
        network = _encoder_of(AutoModel.from_pretrained(model))
        try:
            preprocessor: Any = AutoImageProcessor.from_pretrained(model)
        except (ValueError, OSError):
            preprocessor = AutoFeatureExtractor.from_pretrained(model)
    return network, preprocessor


def _from_config(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    options = dict(config)
    return _encoder_of(AutoModel.from_config(AutoConfig.for_model(options.pop("model_type"), **options)))


def _preprocessor_from(options: dict[str, Any]) -> Any:
    import transformers

    name = options.get("feature_extractor_type") or options.get("image_processor_type")
    if not name or not hasattr(transformers, name):
        raise UsageError(
            f"no preprocessor {name!r} in transformers {transformers.__version__}",
            next_move="install a version of transformers that has it",
        )
    return getattr(transformers, name)(**options)
