"""Checks before any stage runs: readable data, and the components and modalities that the recipe refers to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.checkpoints.selector import may_name, nearest_names
from taskmerge.errors import InputError, Problem, RecipeError, UsageError
from taskmerge.pipeline.foresight import fuse_problems
from taskmerge.pipeline.outputs import check_outputs, check_room
from taskmerge.pipeline.presence import model_problems
from taskmerge.pipeline.scored import mteb_problems, prompt_problems
from taskmerge.pipeline.sets import grafted_modality
from taskmerge.pipeline.state import Run
from taskmerge.pipeline.steps import STAGES, stages_to_run
from taskmerge.recipes import Recover, Specialize, Training
from taskmerge.words.extras import TRAINING, missing
from taskmerge.words.modalities import TEXT, TOWERS, modality_of_column, through, tower_of


@dataclass(frozen=True)
class Parts:
    """Components of a model that may not have been made yet."""

    components: frozenset[str]

    def __or__(self, other: Parts) -> Parts:
        return Parts(self.components | other.components)

    @property
    def modalities(self) -> list[str]:
        """Text, and what its towers take."""
        towers = {component.rpartition("_")[0] for component in self.components}
        return [TEXT, *(modality for tower in TOWERS if tower in towers for modality in through(tower))]

    def selected(self, pattern: str) -> set[str]:
        """Components of which a pattern of `train` may name tensors."""
        return {name for name in self.components if may_name(pattern, name)}


@dataclass(frozen=True)
class Use:
    """A part of the recipe that runs data through a model.

    parts: None when they cannot be known yet.  train: what a stage trains.  ranked: whether items are to find their
    texts.  stage: the section of the recipe that trains on the data.
    """

    title: str
    place: str
    source: Any
    parts: Parts | None
    train: Sequence[str] = ()
    ranked: bool = False
    stage: Training | None = None

    @property
    def runs_in(self) -> str:
        """The stage of the run."""
        section = self.title.partition(":")[0]
        return "diagnose" if section == "drift" else section


def check(current: Run, stages: Sequence[str] = STAGES) -> None:
    """Check that every data source can be read, and that every stage's model has the components and modalities.

    stages: those that are wanted; of these, only what those read that will not be skipped is looked at.

    Raises: RecipeError with every problem, OutputError for conflicts with an output.
    """
    problems = list(model_problems(current, stages))
    if not problems:
        stages = stages_to_run(current, stages)
    if error := missing(_needed(current, stages)):
        raise error
    problems += _specialize_problems(current) if "specialize" in stages else []
    problems += mteb_problems(current) if "evaluate" in stages else []
    problems += prompt_problems(current, stages)
    for use in _uses(current) if stages else ():
        if use.runs_in not in stages:
            continue
        problems += [*_part_problems(use), *_data_problems(current, use)]
        if use.stage is not None:
            problems += _training_problems(current, use, use.stage)
    problems = problems or list(fuse_problems(current, stages))
    if problems:
        raise RecipeError(problems)
    check_outputs(current, stages)
    check_room(current, stages)


def _needed(current: Run, stages: Sequence[str]) -> list[str]:
    """The libraries that the stages need and that come with extras."""
    recipe = current.recipe
    sections = {"specialize": recipe.specialize, "diagnose": recipe.drift, "recover": recipe.recover,
                "rehearse": recipe.rehearse, "evaluate": recipe.evaluate}  # fmt: skip
    needed = list(TRAINING) if any(sections.get(stage) for stage in stages) else []
    lora = [stage.lora for stage in (*(recipe.specialize or {}).values(), recipe.rehearse) if stage is not None]
    needed += ["peft"] if any(lora) else []
    return needed + (["mteb"] if "evaluate" in stages and recipe.evaluate and recipe.evaluate.mteb else [])


def _specialize_problems(current: Run) -> Iterator[Problem]:
    from taskmerge.embedders.encoders import encoder_problems

    for name, section in (current.recipe.specialize or {}).items():
        if parts := current.recipe.specialists[name].made_of_parts:
            what = f"specialize: {name} should be trained, but its specialist is {parts}"
            yield Problem(what, section.place, "give the output folder instead: specialists: {NAME: FOLDER}")
        if section.graft is None:
            continue
        try:
            known = modality_of_column(grafted_modality(current, section))
        except RecipeError as error:
            yield from error.problems
        except UsageError:
            continue  # told as a problem of the data
        else:
            for told in encoder_problems(current.encoder(section.graft), known):
                yield Problem(f"specialize: {name}: {told.what}", section.graft.place, told.next_move)


def _uses(current: Run) -> Iterator[Use]:
    recipe = current.recipe
    base = _stored(current, recipe.base)
    specialists = {name: _specialist(current, name, base) for name in recipe.specialists}
    known = [parts for parts in (base, *specialists.values()) if parts is not None]
    fused = None
    if len(known) == 1 + len(specialists):
        fused = Parts(frozenset().union(*(parts.components for parts in known)))
    for name, section in (recipe.specialize or {}).items():
        parts, trained = specialists[name], section.train or ()
        yield Use(f"specialize: {name}", section.place, section.data, parts, trained, stage=section)
    if recipe.drift:
        probes = recipe.drift.probes
        for name in recipe.drift.specialist:
            source = probes if isinstance(probes, str) else probes.get(name)
            yield Use("drift: probes", recipe.drift.place, source, specialists[name], ranked=True)
    for title, stage in (("recover", recipe.recover), ("rehearse", recipe.rehearse)):
        if stage is not None:
            yield Use(f"{title}: data", stage.place, stage.data, fused, stage.train, stage=stage)
            yield Use(f"{title}: held_out", stage.place, stage.held_out, fused)
    if recipe.evaluate:
        yield Use("evaluate: retrieval", recipe.evaluate.place, recipe.evaluate.retrieval, fused, ranked=True)


def _stored(current: Run, text: str) -> Parts | None:
    """Components of a model, from its headers; None when it is not (yet) there or cannot be read."""
    from taskmerge.checkpoints.formats.reading import open_stored
    from taskmerge.embedders.anatomy import components_of

    try:
        return Parts(
            frozenset(components_of(open_stored(text, current.recipe.folder), current.recipe.components).values())
        )
    except InputError:
        return None  # the stage that opens it says what is wrong, in its own words


def _specialist(current: Run, name: str, base: Parts | None) -> Parts | None:
    recipe = current.recipe
    section = (recipe.specialize or {}).get(name)
    row = recipe.specialists[name]
    if row.is_soup or row.adapter is not None or row.model == "base":
        return base
    if section is None:
        return _stored(current, recipe.specialists[name].model)
    if section.graft is None or base is None:
        return base
    modality = _modality(current, section)
    if modality is None:
        return None
    tower = tower_of(modality)
    return base | Parts(frozenset({"backbone", f"{tower}_encoder", f"{tower}_projector"}))


def _modality(current: Run, section: Specialize) -> str | None:
    """What is grafted for a specialist; None where that cannot be told, which is told as a problem elsewhere."""
    try:
        return grafted_modality(current, section)
    except InputError:
        return None


def _part_problems(use: Use) -> Iterator[Problem]:
    """Patterns of `train` that mean nothing in the model."""
    if use.parts is None:
        return
    for pattern in use.train:
        # tensor names of a model that is not a graft of ours are known only to its class
        if "." in pattern and "backbone" not in use.parts.components:
            continue
        if not use.parts.selected(pattern):
            what = f"{use.title.partition(':')[0]}: train: {pattern!r} matches no tensor"
            yield Problem(what, use.place, nearest_names(pattern, use.parts.components))


def _data_problems(current: Run, use: Use) -> list[Problem]:
    from taskmerge.embedders.items import CHECKED
    from taskmerge.embedders.pairs import read_pairs

    found: list[Problem] = []
    sources = use.source.values() if isinstance(use.source, Mapping) else [use.source] if use.source else []
    for source in sources:
        try:
            pairs = read_pairs(current.data(source))
            found += _modality_problems(use, str(source), pairs.modality)
            if use.ranked and len(set(pairs.texts)) < 2:
                what = f"{use.title}: all items of {source} have the same text: they cannot be ranked"
                found.append(Problem(what, use.place, "give pairs with at least two different texts"))
            pairs.check(CHECKED)
            if len(pairs) > CHECKED:
                current.say(f"{use.title}: checked {CHECKED} of {len(pairs):,} items of {source}")
        except UsageError as error:
            for told in error.problems:
                where = f"{use.title}: {told.place}" if told.place else use.title
                found.append(Problem(f"{where}: {told.what}", use.place, told.next_move))
    return found


def _training_problems(current: Run, use: Use, stage: Training) -> Iterator[Problem]:
    """Sets that do not fill a batch or cannot spare held-out pairs, and logs that cannot be written."""
    from taskmerge.training.components import texts_learn
    from taskmerge.training.settings import TrainingSettings, batch_problems, reporting_problems
    from taskmerge.training.splitting import CROSSED, recovery_splits, split_sets
    from taskmerge.training.stages import named_sets

    found = list(reporting_problems(stage.report_to))
    # texts are known to learn only where it is known what is trained
    trained = {name for pattern in use.train for name in use.parts.selected(pattern)} if use.parts else set()
    learn = texts_learn(trained) if trained else isinstance(stage, Specialize) and not use.train
    try:
        sets = named_sets(current.data(use.source))
    except UsageError:
        sets = {}  # told as a problem of the data
    try:
        if sets and isinstance(stage, Recover) and stage.held_out is None:
            recovery_splits(sets, current.recipe.seed % 2**32)
            # these judge in turn, and their batches are as large as they allow
            sets = {name: pairs for name, pairs in sets.items() if len(pairs) > CROSSED}
        elif sets and getattr(stage, "held_out", ()) is None:
            sets, _, _ = split_sets(sets, current.recipe.seed % 2**32)
    except UsageError as error:
        sets, found = {}, [*found, *error.problems]
    if getattr(stage, "method", "") != "closed_form":
        size = stage.batch_size or TrainingSettings.batch_size
        for name, pairs in sets.items():
            found += batch_problems(f"{name} ({pairs.source})", pairs.texts, size, learn)
    title = use.title.removesuffix(": data")
    for told in found:
        yield Problem(f"{title}: {told.what}", use.place, told.next_move)


def _modality_problems(use: Use, source: str, modality: str) -> Iterator[Problem]:
    """A modality that the model does not take, or on whose way nothing is trained."""
    from taskmerge.training.components import on_the_way

    if use.parts is None:
        return
    if modality not in use.parts.modalities:
        takes = ", ".join(use.parts.modalities)
        yield Problem(
            f"{use.title}: {source} contains {modality}, for which the model has no encoder",
            use.place,
            f"it supports {takes}; `graft` in a specialize section, or `taskmerge graft`, attaches an encoder",
        )
        return
    trained = {name for pattern in use.train for name in use.parts.selected(pattern)}
    if trained and not any(on_the_way(name, modality) for name in trained):
        yield Problem(
            f"{use.title}: {source} contains {modality}, but no component that processes it is trained",
            use.place,
            f"train lists {', '.join(use.train)}",
        )
