"""Estimate of the needs of every stage of a recipe before it runs: pairs, parameters, bytes, disk, hours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import InputError, UsageError, first_line
from taskmerge.pipeline.state import Run, training_settings
from taskmerge.pipeline.steps import STAGES, STEPS
from taskmerge.recipes import Specialize, Training
from taskmerge.training.planning import Load, Machine, Needs, Tensor, needs
from taskmerge.words.modalities import TEXT, tower_of
from taskmerge.words.sizes import parse_size, show_bytes

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "specialize": {"steps": 1000, "learning_rate": 2e-5},
    "recover": {"steps": 300, "learning_rate": 1e-3, "evaluate_every": 25, "patience": 4},
    "rehearse": {"steps": 2000, "learning_rate": 1e-5},
}
"""What training stages do where the recipe is silent."""
TOKENS = {"text": 64, "audio": 384, "image": 1024, "document": 1024, "video": 2048}
"""Tokens of one item that are reckoned with; data is not opened for a plan."""
SPEED = 120e12
"""Operations a second that a device is taken to do: about two fifths of an A100's in bfloat16."""
_ASSUMED = re.compile(r"(\d+)\s*[xX×]\s*([^@]+)(?:@\s*(\d+(?:\.\d+)?)\s*(?:TFLOPS?)?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One stage. pairs: set -> number, None if they are missing. note: an assumption or an obstacle."""

    stage: str
    runs: bool
    pairs: Mapping[str, int | None]
    steps: int = 0
    batch: str = ""
    needs: Needs | None = None
    disk: int = 0
    hours: float | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = asdict(self)
        if self.needs is not None:
            found["needs"]["total"] = self.needs.total
        return found


def machine_of(text: str) -> Machine:
    """Return the devices that `4x80GB` means; `4x80GB@400` states the real TFLOP/s of each."""
    match = _ASSUMED.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise UsageError(
            f"--assume: {text!r} is not a number of devices and their memory",
            next_move="write --assume 4x80GB, or 4x80GB@400 (TFLOP/s)",
        )
    return Machine(int(match[1]), parse_size(match[2].strip()), float(match[3]) * 1e12 if match[3] else SPEED)


def planned(current: Run, machine: Machine, stages: tuple[str, ...] = STAGES) -> list[Row]:
    """Return a row for every stage of the recipe."""
    shapes = _Shapes(current)
    recipe, found = current.recipe, []
    for stage in stages:
        for step in STEPS[stage](current):
            runs = not current.is_done(step)
            if stage == "specialize":
                name = step.name.removeprefix("specialize-")
                section = (recipe.specialize or {})[name]
                found.append(_trained(current, machine, step.name, section, shapes, name, runs))
            elif stage in ("recover", "rehearse"):
                found.append(_trained(current, machine, stage, getattr(recipe, stage), shapes, None, runs))
            else:
                found.append(_other(current, stage, shapes, runs))
    return found


def _trained(
    current: Run, machine: Machine, title: str, section: Training, shapes: _Shapes, name: str | None, runs: bool
) -> Row:
    from taskmerge.checkpoints.components import Components
    from taskmerge.checkpoints.selector import Selector
    from taskmerge.training.components import texts_learn

    stage = title.partition("-")[0]
    settings = training_settings(section, current, Path(), **DEFAULTS[stage])
    source: Any = section.data  # type: ignore[attr-defined]
    sets = source if isinstance(source, Mapping) else {name or "data": source}
    pairs = {one: _count(current, text) for one, text in sets.items()}
    batch = f"{settings.batch_size} x {settings.accumulation} x {machine.count}"
    try:
        tensors = shapes.specialist(name) if name is not None else shapes.fused()
    except InputError as error:
        unknown = (f"the shapes are unknown: {error.problems[0].what}",)
        return Row(title, runs, pairs, settings.steps, batch, notes=unknown)
    components = {one: tensor.component for one, tensor in tensors.items()}
    modalities = [_modality(current, section, one, text) for one, text in sets.items()]
    wanted = section.train or ["backbone", *(f"{tower_of(one)}_*" for one in modalities if one != TEXT)]  # type: ignore[attr-defined]
    present = [one for one in wanted if any(_named(one, part) for part in set(components.values())) or "." in one]
    trained = Selector(Components(components, components)).names(present, list(components)) if present else []
    parts = {components[one] for one in trained}
    learn = texts_learn(parts)
    towers = [one.rpartition("_")[0] for one in sorted(parts) if one.endswith(("_encoder", "_projector"))]
    if modalities == [TEXT] and towers:  # the data is not here, and its name says nothing
        modalities = ["audio" if tower == "audio" else "image" for tower in towers]
    apart = sorted({one for one in components.values() if one.endswith("_encoder") and one not in parts})
    way = sorted({one for one in components.values() if not one.endswith(("_encoder", "_projector"))} | parts)
    width = 2 if settings.bf16 or all(tensor.size == 2 for tensor in tensors.values()) else 4
    items = min(settings.gradient_cache or settings.batch_size, settings.batch_size)
    longest = max((TOKENS.get(one, TOKENS["image"]) for one in modalities), default=TOKENS[TEXT])
    load = Load(items, longest, TOKENS[TEXT], learn, width, 2 if settings.bf16 else 4)
    shards = machine.count if settings.fsdp else 1
    found = needs(
        tensors, trained, load, way=way, apart=apart, shards=shards,
        lora_rank=settings.lora.rank if settings.lora else None,
        recomputed=settings.gradient_checkpointing, twice=settings.gradient_cache is not None,
    )  # fmt: skip
    rounds = settings.steps * settings.accumulation * settings.batch_size / items
    hours = found.operations * rounds / machine.speed / 3600
    whole = sum(tensor.count * tensor.size for tensor in tensors.values())
    disk = whole + 2 * found.trained * (4 + 8)  # the model, and two checkpoints with moments
    reckoned = ", ".join(f"{one} {TOKENS.get(one, TOKENS['image'])}" for one in dict.fromkeys([*modalities, TEXT]))
    notes = [
        f"tokens of an item: {reckoned}",
        f"in addition to its device, each process holds {show_bytes(found.host)}: a copy of the initial "
        "values of the trained tensors",
    ]
    if found.widened:
        computed = "" if settings.bf16 else ", and computed in it unless `bf16: true`"
        notes.append(
            "half-precision weights that are trained are held in float32 until the end"
            f"{computed}: {show_bytes(found.widened)} more"
        )
    if found.total > machine.memory:
        notes.append(_move(settings, machine))
    return Row(title, runs, pairs, settings.steps, batch, found, disk, hours, tuple(notes))


def _move(settings: Any, machine: Machine) -> str:
    moves = []
    if not settings.fsdp and machine.count > 1:
        moves.append("fsdp: true")
    if not settings.gradient_checkpointing:
        moves.append("gradient_checkpointing: true")
    if settings.gradient_cache is None or settings.gradient_cache > 1:
        moves.append("gradient_cache: 1")
    return f"does not fit; try {', '.join(moves) or 'larger devices'}"


def _other(current: Run, stage: str, shapes: _Shapes, runs: bool) -> Row:
    recipe = current.recipe
    source: Any = None
    if stage == "diagnose" and recipe.drift is not None:
        source = recipe.drift.probes
    elif stage == "evaluate" and recipe.evaluate is not None:
        source = recipe.evaluate.retrieval
    sets = source if isinstance(source, Mapping) else {"probes": source} if source else {}
    pairs = {one: _count(current, text) for one, text in sets.items()}
    try:
        size = sum(tensor.count * tensor.size for tensor in shapes.fused().values())
    except InputError as error:
        return Row(stage, runs, pairs, notes=(f"the shapes are unknown: {error.problems[0].what}",))
    return Row(stage, runs, pairs, disk=size if stage == "fuse" else 0)


def _count(current: Run, source: str) -> int | None:
    """Pairs of a source; None where it is not here. Lines and rows are counted, nothing is read.

    Raises UsageError for a file that cannot be read.
    """
    from taskmerge.embedders.rows import open_rows

    place = current.path(source) if not source.startswith("hf:") else None
    if place is None or not place.exists():
        return None
    try:
        if place.suffix == ".parquet":  # `open_rows` would unpack it
            import pyarrow.parquet

            return int(pyarrow.parquet.ParquetFile(place).metadata.num_rows)
        return len(open_rows(place)[1])
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UsageError(f"cannot be read: {first_line(error)}", str(place), "get or write the file again") from None
    except ImportError:  # what reads such files is not installed
        return None
    except InputError:
        if place.is_file():
            raise
        return None  # a data set's own layout


def _modality(current: Run, section: Training, name: str, source: str) -> str:
    """Of a set: as the recipe says, as its first row says, or as it is called."""
    from taskmerge.embedders.pairs import ITEM_COLUMNS
    from taskmerge.embedders.rows import open_rows
    from taskmerge.words.modalities import COLUMNS, modality_of_column

    said = getattr(section, "modality", None)
    place = current.path(source)
    if said is None and place.exists():
        try:
            row = open_rows(place)[1][0]
            said = next((column for column in ITEM_COLUMNS if column in row), None)
        except (InputError, IndexError):
            said = None
    said = said or name
    return said if said in TOKENS else modality_of_column(said) if said in COLUMNS else TEXT


def _named(pattern: str, component: str) -> bool:
    from taskmerge.checkpoints.selector import may_name

    return may_name(pattern, component)


class _Shapes:
    """Names, shapes and components of the models of a run, of those too that no stage has made yet."""

    def __init__(self, current: Run) -> None:
        self.current = current

    def specialist(self, name: str) -> dict[str, Tensor]:
        """Of a specialist that is trained: its base's, with what is grafted."""
        section = (self.current.recipe.specialize or {})[name]
        found = self._of(self.current.recipe.base)
        return found if section.graft is None else found | dict(self._grafted(name, section, found))

    def fused(self) -> dict[str, Tensor]:
        """Of the fused model: the base's, and what specialists add."""
        if self.current.places.fused.exists():
            return self._of(str(self.current.places.fused))
        found = self._of(self.current.recipe.base)
        for name, row in self.current.recipe.specialists.items():
            if name in (self.current.recipe.specialize or {}):
                found |= {one: tensor for one, tensor in self.specialist(name).items() if one not in found}
            elif not row.is_soup and row.adapter is None and row.model != "base":
                found |= {one: tensor for one, tensor in self._of(row.model).items() if one not in found}
        return found

    def _of(self, text: str) -> dict[str, Tensor]:
        from taskmerge.checkpoints.formats.reading import open_stored

        folder = self.current.path(text)
        if folder.is_dir() and (folder / "config.json").exists() and not any(folder.glob("*.safetensors")):
            return self._from_config(folder)
        return self._described(open_stored(text, self.current.recipe.folder))

    def _described(self, stored: StateDict) -> dict[str, Tensor]:
        from taskmerge.embedders.anatomy import components_of

        parts = components_of(stored, self.current.recipe.components)
        return {
            name: Tensor(tuple(info.shape), max(1, info.format.bits // 8), parts[name])
            for name, info in stored.tensors.items()
        }

    def _from_config(self, folder: Path) -> dict[str, Tensor]:
        """Of a model of which only the config is here: as transformers would make it, without values."""
        import torch
        from transformers import AutoConfig, AutoModel

        from taskmerge.checkpoints.memory import MemoryStateDict

        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            network = AutoModel.from_config(config, dtype=getattr(config, "dtype", None) or torch.float32)
        return self._described(MemoryStateDict(network.state_dict(), str(folder), config.to_dict()))

    def _grafted(self, name: str, section: Specialize, base: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The encoder and the projector that grafting adds."""
        import torch

        from taskmerge.embedders.encoders import build_encoder, encoder_kinds
        from taskmerge.embedders.towers import Projector

        assert section.graft is not None
        said = self.current.encoder(section.graft)
        first = next(iter(section.data.values())) if isinstance(section.data, Mapping) else section.data
        tower = tower_of(_modality(self.current, section, name, first))
        own = {one: tensor for one, tensor in base.items() if not tensor.component.endswith(("_encoder", "_projector"))}
        hidden = _width(own)
        if said in encoder_kinds():
            with torch.device("meta"):
                encoder = build_encoder({"kind": said})
            output, tensors = encoder.output_size, encoder.state_dict()
        else:
            folder = Path(said)
            found = {
                one: tensor for one, tensor in self._of(str(folder.absolute())).items() if ".decoder." not in f".{one}"
            }
            output = _width(found)
            yield from ((f"{tower}_encoder.{one}", _moved(tensor, f"{tower}_encoder")) for one, tensor in found.items())
            tensors = {}
        for one, value in tensors.items():
            yield f"{tower}_encoder.{one}", Tensor(tuple(value.shape), value.element_size(), f"{tower}_encoder")
        with torch.device("meta"):
            projector = Projector(output, hidden, section.graft.projector)
        size = min(tensor.size for tensor in base.values())
        for one, value in projector.state_dict().items():
            yield f"{tower}_projector.{one}", Tensor(tuple(value.shape), size, f"{tower}_projector")


def _moved(tensor: Tensor, component: str) -> Tensor:
    return Tensor(tensor.shape, tensor.size, component)


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Of a transformer: the inner length that most of its matrices have."""
    counts: dict[int, int] = {}
    for tensor in tensors.values():
        if len(tensor.shape) == 2:
            counts[tensor.shape[1]] = counts.get(tensor.shape[1], 0) + 1
    return max(counts, key=lambda length: counts[length], default=0)
