"""mteb's results folder, written so that a kill at any moment leaves every finished result whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskmerge.errors import OutputError
from taskmerge.words.extras import require
from taskmerge.words.places import output_path

Say = Callable[[str], None]


def results_folder(folder: str | Path | None, revisions: Mapping[str, str | None], say: Say) -> Any:
    """Return mteb's ResultCache of a folder.

    Results are only taken again when their file is whole and the task's data have the revision they were made of; mteb
    itself asks for neither.

    Args:
        folder: results are below it in ``results/MODEL/REVISION/TASK.json``; None: mteb's own ($MTEB_CACHE).
        revisions: task -> revision of its data.
        say: told of every result that is there and not taken.

    Raises:
        UsageError: for a folder that is none of this disk.
    """
    require("mteb")
    from mteb.cache import ResultCache

    class Scratch(ResultCache):  # type: ignore[misc]
        """Writes what belongs into one folder of results into another."""

        def __init__(self, path: Path, scratch: Path) -> None:
            super().__init__(path)
            self.scratch = scratch

        def get_task_result_path(self, task_name: str, *arguments: Any, **keywords: Any) -> Path:
            return self.scratch / f"{task_name}.json"

    class Results(ResultCache):  # type: ignore[misc]
        """Results that are complete or missing."""

        def load_task_result(self, task_name: str, *arguments: Any, **keywords: Any) -> Any:
            path = self.get_task_result_path(task_name, *arguments, **keywords)
            try:
                found = super().load_task_result(task_name, *arguments, **keywords)
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # invalid results have many forms
                say(f"{task_name}: the result in {path} cannot be read ({type(error).__name__}): it is computed again")
                return None
            if found is not None and found.dataset_revision != revisions.get(task_name, found.dataset_revision):
                say(f"{task_name}: the result in {path} was made from other data: it is computed again")
                return None
            return found

        def save_to_cache(self, task_result: Any, *arguments: Any, **keywords: Any) -> None:
            model = [value for value in arguments if value is not None]
            path = self.get_task_result_path(task_result.task_name, *model)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(prefix=".writing-", dir=self.cache_path) as scratch:
                    settings = path.parent / "run_settings.jsonl"
                    if settings.is_file():
                        shutil.copyfile(settings, Path(scratch) / settings.name)
                    Scratch(self.cache_path, Path(scratch)).save_to_cache(task_result, *arguments, **keywords)
                    for file in sorted(Path(scratch).iterdir(), key=lambda one: one.name == path.name):  # it comes last
                        file.replace(path.parent / file.name)
            except OSError as error:
                raise OutputError(
                    f"mteb's results cannot be written: {error.strerror}",
                    str(path.parent),
                    "choose another folder: --results FOLDER",
                ) from None

    return Results(folder if folder is None else output_path(folder))
