"""Everything that is set up once: libraries imported before workers are forked, templates made."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz.cases import GENERATORS, Case
from fuzz.judging import Result

HELPERS = Path(__file__).parent.parent / "helpers"
SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_BEFORE = (
    "torch",
    "transformers",
    "sentence_transformers",
    "datasets",
    "safetensors.torch",
    "taskmerge.cli.app",
    "PIL.Image",
    "soundfile",
    "taskmerge.merging.algebra",
    "taskmerge.merging.fused",
    "taskmerge.kernels.compiled.backend",
    "taskmerge.pipeline",
    "taskmerge.embedders.embedder",
    "taskmerge.measuring.evaluation",
    "taskmerge.training.trainer",
    "taskmerge.reporting",
    "taskmerge.cli.fusing",
    "peft",
    "zoo",
)


def load() -> None:
    """Imports what children need before they are forked."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    sys.path.insert(0, str(HELPERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _BEFORE:
            importlib.import_module(name)


def run_session(cases: Sequence[Case], folder: Path, workers: int = 2) -> Iterator[tuple[Case, Result]]:
    """Each case's result. folder: of templates and sandboxes. This process computes nothing: workers fork from it."""
    from fuzz import templates
    from fuzz.workers import run_all

    load()
    wanted = {GENERATORS[case.generator].template for case in cases}
    if not (folder / "templates").is_dir():
        templates.make(folder / "templates", wanted)
    yield from run_all(cases, folder, workers)
