"""State that the stages of one run share: the places of their results, and notes of their inputs.

Every stage writes a note of its inputs: its section of the recipe, and the files that were opened while it
ran. While the note is still valid, the stage is skipped; a stage that was killed resumes from its own last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from taskmerge import __version__
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.reading import local_folder
from taskmerge.checkpoints.output.replacing import absolute
from taskmerge.embedders.encodings import Keeping
from taskmerge.embedders.sources import ModelSource
from taskmerge.errors import Problem, RecipeError, UsageError, clipped
from taskmerge.opened import recording
from taskmerge.pipeline.inputs import Inputs
from taskmerge.pipeline.report_folder import claim_report
from taskmerge.recipes import Graft, Lora, Recipe, Training
from taskmerge.recipes.writing import dump
from taskmerge.training.work import clear_work
from taskmerge.whole_files import write_whole
from taskmerge.words.json_text import as_read
from taskmerge.words.places import output_path, parse_place
from taskmerge.words.processes import say_to_all
from taskmerge.words.system_errors import writing

Say = Callable[[str], None]


@dataclass(frozen=True)
class Places:
    """The places of the results of a recipe's stages, all derived from `output.path`: OUT is the fused model itself."""

    fused: Path

    @classmethod
    def of(cls, recipe: Recipe, out: Path | None = None) -> Places:
        """Derive the places from the output. Raises RecipeError if neither the recipe nor `out` names it."""
        if out is not None:
            return cls(output_path(out) if output_path(out).name not in ("", "..") else absolute(out))
        if recipe.output.path is None:
            raise RecipeError("no output folder", recipe.place, "give --out FOLDER, or output: {path: ...}")
        return cls(output_path(recipe.output.path, recipe.folder))

    def beside(self, name: str) -> Path:
        """OUT-name."""
        return self.fused.with_name(f"{self.fused.name}-{name}")

    @property
    def recovered(self) -> Path:
        """The folder of the recovered model."""
        return self.beside("recovered")

    @property
    def rehearsed(self) -> Path:
        """The folder of the rehearsed model."""
        return self.beside("rehearsed")

    @property
    def report(self) -> Path:
        """Folder of notes, results and the report."""
        return self.beside("report")


_NOTED = ("fuse", "diagnose", "recover", "rehearse", "evaluate")
"""Stages with one note; each specialist has its own."""


class Note(TypedDict, total=False):
    """The note of a stage in the report folder: its inputs, and its result when it is complete.

    section: hash of its section of the recipe. inputs: files that were opened, path relative to the recipe -> identity.
    version: of taskmerge, which made it.
    """

    section: str
    inputs: dict[str, str]
    version: str
    done: bool
    result: Any


@dataclass(frozen=True)
class Step:
    """A unit of work that runs once.

    name: of its note. section: the recipe's part that decides it. outputs: its results.
    """

    name: str
    section: Any
    outputs: tuple[Path, ...] = ()


def read_note(path: Path) -> Note:
    """Read a stage's note. Raises CheckpointError for an invalid one."""
    note: Note = read_json(path, Note, NOTE_MOVE, own=True)
    return note


NOTE_MOVE = "remove this file: the stage then runs again"


@dataclass
class Run:
    """One run of a recipe.

    device: where models run.  fresh: whether models that are no earlier results of this recipe, but were made here, may
    be replaced.  keep_checkpoints: whether stages that are done leave their checkpoints.  encodings: where what is
    encoded once is kept.  results: stage -> plain data for the report.  outdated: stages whose results are no longer of
    this recipe.  followed: in a process that is not the first, the stage that the first has begun.
    """

    recipe: Recipe
    places: Places
    say: Say = print
    device: str | None = None
    fresh: bool = False
    keep_checkpoints: bool = False
    encodings: Keeping = field(default_factory=Keeping)
    results: dict[str, Any] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)
    downloaded: dict[str, Path] = field(default_factory=dict)
    followed: str | None = None

    def path(self, text: str) -> Path:
        """Return a file or folder that the recipe reads, relative to its folder. Raises UsageError for a uri."""
        place = parse_place(text)
        if place.kind != "path":  # the path of a uri is empty: it would be the recipe's own folder
            move = "copy it to this disk, and give its path"
            raise UsageError(f"{clipped(repr(text), 200)} is not a path on this disk", next_move=move)
        return self.recipe.folder / place.path

    def model(self, text: str) -> Path:
        """Folder of a model of the recipe; one on the hub is downloaded when it is first asked for.

        Raises CheckpointError when it is neither here nor on the hub.
        """
        if text not in self.downloaded:
            self.downloaded[text] = local_folder(text, self.recipe.folder)
        return self.downloaded[text]

    @property
    def prompts(self) -> Any:
        """The recipe's prompts, as embedders take them; None when it says nothing."""
        from taskmerge.embedders.prompts import Prompts

        return Prompts.of(self.recipe.prompts) if self.recipe.prompts is not None else None

    @property
    def base(self) -> Path:
        """Folder of the base; raises as `model`."""
        return self.model(self.recipe.base)

    def source(self, path: Path) -> ModelSource:
        """Return a model of the recipe with the recipe's own embedder and components."""
        recipe = self.recipe
        return ModelSource(path, recipe.embedder, recipe.components, recipe.folder)

    def data(self, source: Any) -> Any:
        """Return a data source of the recipe for `read_pairs`: existing files by path, others unchanged."""
        if isinstance(source, Mapping):
            return {name: self.data(text) for name, text in source.items()}
        is_path = isinstance(source, str) and parse_place(source, "a data source").kind == "path"
        return self.path(source) if is_path and self.path(source).exists() else source

    def encoder(self, section: Graft) -> str:
        """Return the encoder to graft: a kind, a folder (relative to the recipe) or a hub id."""
        from taskmerge.embedders.encoders import encoder_kinds

        if section.encoder in encoder_kinds() or parse_place(section.encoder, "an encoder").kind != "path":
            return section.encoder
        here = self.path(section.encoder)
        return str(here) if here.exists() else section.encoder

    def specialist(self, name: str) -> Path:
        """Folder of a specialist, which its own stage may not have made yet; raises as `model`.

        Raises RecipeError for one that is trained and is in a place where no stage can write.
        """
        row = self.recipe.specialists[name]
        if name not in (self.recipe.specialize or {}):
            return self.base if row.model == "base" else self.model(row.model)
        try:
            return output_path(row.model, self.recipe.folder)
        except UsageError as error:
            raise RecipeError(
                [Problem(f"specialize: {name}: {told.what}", row.place, told.next_move) for told in error.problems]
            ) from None

    def is_done(self, step: Step) -> bool:
        """Return whether a stage was made from the present recipe and files, and its outputs exist."""
        known = self._note(step)
        whole = known.get("done") and "result" in known and self._unchanged(step, known)
        return bool(whole) and all(path.exists() for path in step.outputs)

    def has_lost(self, step: Step) -> bool:
        """Return whether an output of a complete stage is missing."""
        return bool(self._note(step).get("done")) and not all(path.exists() for path in step.outputs)

    def note_of(self, stage: str) -> Path:
        """Return the path of a stage's note."""
        return self.places.report / f"{stage}.json"

    def _note(self, step: Step) -> Note:
        place = self.note_of(step.name)
        return read_note(place) if place.exists() else {}

    def _unchanged(self, step: Step, known: Note) -> bool:
        return known.get("section") == self._said(step.section) and self._inputs.same(known.get("inputs", {}))

    def once(self, step: Step, make: Callable[[], Any]) -> None:
        """Run `make` unless the stage's note shows the same inputs; store its result.

        `make` puts each of the stage's outputs in its place once it is whole.
        """
        if self.followed is not None:
            self.follow(step, make)
            return
        stage, said, outputs = step.name, self._said(step.section), list(step.outputs)
        place, known = self.note_of(stage), self._note(step)
        if self.is_done(step):
            made_by = known.get("version", __version__)
            self.say(f"{stage}: unchanged, skipped" + ("" if made_by == __version__ else f" (made by {made_by})"))
            self.results[stage] = known["result"]
            return
        if known and not self._unchanged(step, known):  # checkpoints of the same are gone on from
            clear_work(self.work(stage))
        self.say(f"{stage}: running")
        say_to_all(stage)
        note: Note = {"section": said, "inputs": {}, "version": __version__, "done": False}
        self._write(place, note)

        def heard(paths: tuple[Path, ...], media: bool) -> None:
            if found := self._inputs.identities(paths, media, outputs):
                note["inputs"] |= found
                self._write(place, note)  # now, not at the end: a killed stage resumes only from the same

        with recording(heard):
            note["result"] = self.results[stage] = as_read(make())  # as a later run will have it
        note["done"] = True
        self._write(place, note)
        if not self.keep_checkpoints:
            clear_work(self.work(stage))

    def follow(self, step: Step, make: Callable[[], Any]) -> None:
        """Take part in the stage that the first process has begun: the counterpart of `once` in the other processes."""
        if step.name == self.followed:
            make()

    def recall(self, steps: Iterable[Step]) -> None:
        """Read the results of finished stages that this run did not touch, if their notes are still valid.

        It reports those whose notes are not, so that no result of another recipe or model is shown.
        """
        known = {step.name: step for step in steps}
        for place in sorted(self.places.report.glob("*.json")):
            stage = place.stem
            if (stage not in _NOTED and not stage.startswith("specialize-")) or stage in self.results:
                continue
            note = read_note(place)
            if stage in known and self.is_done(known[stage]):
                self.results[stage] = note["result"]
            elif note.get("done"):
                self.outdated.append(stage)
                self.say(f"{stage}: belongs to another recipe, other inputs or another model; left out of the report")

    def work(self, stage: str) -> Path:
        """Folder of a stage's own checkpoints."""
        return self.places.report / "work" / stage

    @property
    def _inputs(self) -> Inputs:
        return Inputs(self.recipe.folder, self.places.report)

    def _said(self, section: Any) -> str:
        """A hash of everything that decides a stage in addition to its files."""
        text = dump({"section": section, "embedder": self.recipe.embedder, "components": dict(self.recipe.components)})
        return hashlib.sha256(f"{text}:{self.recipe.seed}".encode()).hexdigest()

    def _write(self, path: Path, table: Mapping[str, Any]) -> None:
        claim_report(path.parent)
        with writing(path):
            write_whole(path, json.dumps(table, indent=1, allow_nan=True) + "\n")


def training_settings(section: Training, run: Run, work: Path, **defaults: Any) -> Any:
    """Return the trainer's settings for a section of the recipe; `defaults` for keys without a value.

    work: the stage's checkpoints; training continues from the last one if there are any.
    """
    from taskmerge.training import LoraSettings, TrainingSettings

    said = {
        "steps": section.steps,
        "learning_rate": section.lr,
        "batch_size": section.batch_size,
        "warmup": section.warmup,
    }
    settings = {**defaults, **{name: value for name, value in said.items() if value is not None}}
    # a short stage has learning curves too
    looks = settings.get("evaluate_every", TrainingSettings.evaluate_every)
    settings["evaluate_every"] = min(looks, max(1, settings["steps"] // 4))
    if section.projector_lr is not None:
        settings["learning_rates"] = {"projector": section.projector_lr}
    lora: Lora | None = getattr(section, "lora", None)
    if lora is not None:
        scale = 2.0 * lora.rank if lora.alpha is None else lora.alpha
        settings["lora"] = LoraSettings(rank=lora.rank, scale=scale)
    balance = getattr(section, "balance", None)
    if balance is not None:
        settings |= {"balance": balance.temperature or 1.0, "shares": balance.shares}
        settings["adaptive"] = balance.follows == "adaptive"
    return TrainingSettings(
        temperature=section.temperature,
        input_noise=section.input_noise,
        bf16=section.bf16,
        gradient_cache=section.gradient_cache,
        report_to=section.report_to,
        seed=run.recipe.seed % 2**32,
        prompts=run.prompts,
        device=run.device,
        accumulation=section.accumulation,
        gradient_checkpointing=section.gradient_checkpointing,
        fsdp=section.fsdp,
        dimensions=section.dimensions,
        looked_at_in=getattr(section, "precision", None),
        encodings=run.encodings,
        keep_checkpoints=run.keep_checkpoints,
        resume=work.is_dir(),
        **settings,
    )
