"""The models of a run that can be scored: the base, whole specialists, and what the stages leave."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from taskmerge.checkpoints.lineage.adapters import is_adapter
from taskmerge.errors import CheckpointError
from taskmerge.pipeline.state import Run


def variants(run: Run) -> dict[str, Path]:
    """Return the folder of every existing model of the run by name: base, specialists, fused, recovered, rehearsed."""
    return {name: path for name, path in _models(run).items() if _is_run(run, path)}


def _models(run: Run) -> dict[str, Path]:
    """Do the same as `variants`, also for models that do not exist or cannot be run."""
    own = [name for name, row in run.recipe.specialists.items() if not row.made_of_parts and row.model != "base"]
    named: dict[str, Path] = {}
    with suppress(CheckpointError):  # gone since it was fused
        named["base"] = run.base
    for name in own:
        with suppress(CheckpointError):
            named[f"specialist {name}"] = run.specialist(name)
    return named | {"fused": run.places.fused, "recovered": run.places.recovered, "rehearsed": run.places.rehearsed}


def _is_run(run: Run, path: Path) -> bool:
    """Whether a folder of the recipe holds a model that embeds: sentence-transformers', or one for its own embedder."""
    if (path / "modules.json").is_file():
        return True
    return run.recipe.embedder is not None and path.is_dir() and not is_adapter(path)


def plain(run: Run) -> list[str]:
    """Models that no table has a row of because nothing says how they embed: transformers' own folders."""
    scored = variants(run)
    return [
        name
        for name, path in _models(run).items()
        if name not in scored and (path / "config.json").is_file() and not is_adapter(path)
    ]


def unscored(run: Run) -> list[str]:
    """Return the specialists without a row in any table: adapters, and models made of several files."""
    rows = {name.removeprefix("specialist ") for name in (*variants(run), *plain(run))}
    return [name for name, row in run.recipe.specialists.items() if name not in rows and row.model != "base"]
