"""The folder of a search: the study's journal, the scores of every point, the model that trials are put into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock

from taskmerge import __version__
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.hashing import fingerprint
from taskmerge.errors import OutputError, RecipeError
from taskmerge.merging import execute
from taskmerge.merging.bench import Bench
from taskmerge.merging.identity import identity
from taskmerge.pipeline.report_folder import claim_report
from taskmerge.recipes import Recipe
from taskmerge.recipes.writing import dump
from taskmerge.searching.study import JOURNAL
from taskmerge.whole_files import write_whole
from taskmerge.words.places import output_path
from taskmerge.words.system_errors import writing

ABOUT = "search.json"
START = "start"
POINTS = "points"


class _About(TypedDict):
    """What a search was begun with. said: hash of models, ranges, objective and pairs. start: of the start model."""

    said: str
    start: str
    version: str


def folder_of(recipe: Recipe, out: Path | None = None) -> Path:
    """Return the folder of a recipe's search. Raises RecipeError if no setting names it."""
    if out is not None:
        return output_path(out)
    if recipe.search is not None and recipe.search.path is not None:
        return output_path(recipe.search.path, recipe.folder)
    if recipe.output.path is None:
        move = "give --out FOLDER, search: {path: …} or output: {path: …}"
        raise RecipeError("there is no folder for the search", recipe.place or None, move)
    fused = output_path(recipe.output.path, recipe.folder)
    return fused.with_name(f"{fused.name}-search")


class SearchFolder:
    """A folder that several processes may share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self) -> None:
        """Make the folder, or take one of ours. Raises OutputError for any other folder."""
        claim_report(self.path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Admit one process at a time to the block; others wait."""
        with FileLock(str(self.path / ".lock-search")):
            yield

    def begin(self, said: str, fresh: bool) -> None:
        """Take up the search that was begun with the same, or begin one.

        Args:
            said: hash of what decides every score.
            fresh: forget another search's trials.

        Raises:
            OutputError: when the folder holds the trials of another search.
        """
        place = self.path / ABOUT
        if fresh:
            self._forget()
        if place.is_file():
            about: _About = read_json(place, _About, "--fresh starts from scratch", own=True)
            if about["said"] != said:
                raise OutputError(
                    "contains a search of other models, ranges, objectives or pairs",
                    str(self.path),
                    "--fresh discards its trials and starts from scratch, --out uses another folder",
                )
            return
        self._write({"said": said, "start": "", "version": __version__})

    def _forget(self) -> None:
        for path in (self.path / JOURNAL, self.path / ABOUT, *(self.path / POINTS).glob("*.npz")):
            path.unlink(missing_ok=True)

    def _write(self, about: _About) -> None:
        place = self.path / ABOUT
        with writing(place):
            write_whole(place, json.dumps(about, indent=1) + "\n")

    def start_model(self, bench: Bench, recipe: Recipe) -> Path:
        """Return the folder of the recipe's own merge, written once: the model in which trials are run."""
        place = self.path / START
        made_from = identity(bench.plan, recipe)
        about: _About = read_json(self.path / ABOUT, _About, "--fresh starts from scratch", own=True)
        if not (made_from and about["start"] == made_from and place.is_dir()):
            execute(bench.plan, recipe, place, fresh=True)
            self._write({**about, "start": made_from})
        return place

    def point(self, name: str) -> Path:
        """Return the file of a point's scores."""
        return self.path / POINTS / f"{name.replace('/', '-').replace(' ', '-')}.npz"


def digest(bench: Bench, recipe: Recipe, vary: Mapping[str, Any], maximize: Sequence[str], more: Sequence[Any]) -> str:
    """Return a hash of everything that decides the scores of a search. more: data sources by name, floors, scorer."""
    found = hashlib.sha256()
    for part in (identity(bench.plan, recipe), dump(dict(vary)), repr(list(maximize)), repr(recipe.seed)):
        found.update(part.encode() + b"\0")
    for one in more:
        found.update((_said(one) + "\0").encode())
    return found.hexdigest()


def _said(one: Any) -> str:
    if isinstance(one, Mapping):
        return repr({name: _said(value) for name, value in one.items()})
    if isinstance(one, Path) and one.is_file():
        return f"{one.name}:{fingerprint(one)}"
    return repr(one)
