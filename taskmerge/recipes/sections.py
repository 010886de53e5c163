"""The sections of a recipe besides `merge`: a field is a key, its annotation is its check, help and schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from taskmerge.declarations import Between, Doc, EntryOf, Glob, Gradient, NewName, Size, name_field, place_field

GradedNumber = float | tuple[float, ...]
"""A number, or a gradient over depth."""
Sources = str | Mapping[str, str]
"""One data source, or one per modality: a path (jsonl, parquet) or a `datasets` id."""

SpecialistName = Annotated[str, EntryOf("specialists")]
BaseOrSpecialist = Annotated[str, EntryOf("specialists", ("base",))]
NewSpecialist = Annotated[str, NewName(("base", "union"))]
NamePattern = Annotated[str, Glob()]
Positive = Between(0, None, open="low")


@dataclass(frozen=True)
class Specialist:
    """One model fine-tuned from the base, or the base with an adapter."""

    shorthand: ClassVar[str] = "model"

    model: Annotated[str, Doc("path, hub id[@revision] or hf:// uri; `base` for the base itself")]
    adapter: Annotated[str | None, Doc("a PEFT adapter to lay over the model: path or hub id")] = None
    weight: Annotated[GradedNumber, Gradient(), Doc("what its task vector is multiplied by")] = 1.0
    name: str = name_field()
    place: str = place_field()


@dataclass(frozen=True)
class Output:
    """What is written, and where."""

    path: Annotated[str | None, Doc("folder of the fused model; `--out` overrides it")] = None
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "float64"] | None,
        Doc("number format; left out: each tensor's own in the base"),
    ] = None
    shard_size: Annotated[int, Size(), Doc("most bytes of one file")] = 5_000_000_000
    tokenizer: Annotated[
        str,
        EntryOf("specialists", ("base", "union")),
        Doc("`base`, `union` (the base's and what specialists add) or the specialist whose tokenizer is taken"),
    ] = "union"
    place: str = place_field()


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter to train."""

    rank: Annotated[int, Between(1, None), Doc("rank of each update")] = 16
    alpha: Annotated[float | None, Doc("updates are multiplied by alpha / rank; left out: twice the rank")] = None
    dropout: Annotated[float, Between(0, 1, open="high"), Doc("dropout before the update")] = 0.0
    place: str = place_field()


@dataclass(frozen=True)
class FailAbove:
    """What counts as drifted too far."""

    recall_drop: Annotated[float, Between(0, 1), Doc("most that R@1 may fall against the specialist")] = 0.05
    place: str = place_field()


@dataclass(frozen=True)
class Drift:
    """How drift is diagnosed."""

    specialist: Annotated[tuple[SpecialistName, ...], Doc("the specialists whose modality is probed")]
    probes: Annotated[Sources, Doc("probe pairs, one source or one per specialist")]
    fail_above: Annotated[FailAbove, Doc("limits beyond which the exit code is 3")] = field(default_factory=FailAbove)
    place: str = place_field()


@dataclass(frozen=True)
class Recover:
    """How a drifted projector is fitted to the fused backbone."""

    train: Annotated[tuple[str, ...], Doc("components to train; everything else stays frozen")]
    data: Annotated[Sources, Doc("pairs, one source or one per modality")]
    method: Annotated[
        Literal["auto", "gradient", "closed_form"], Doc("how; `auto` compares on held-out pairs what the data allows")
    ] = "auto"
    steps: Annotated[int | None, Between(1, None), Doc("most gradient steps")] = None
    lr: Annotated[float | None, Positive, Doc("learning rate")] = None
    batch_size: Annotated[int | None, Between(1, None), Doc("pairs per step")] = None
    temperature: Annotated[float, Positive, Doc("τ of InfoNCE")] = 0.02
    place: str = place_field()


@dataclass(frozen=True)
class Balance:
    """How batches are shared among modalities."""

    temperature: Annotated[
        float, Positive, Doc("a modality's share of batches goes with its size ** (1 / temperature)")
    ] = 1.0
    place: str = place_field()


@dataclass(frozen=True)
class Rehearse:
    """Balanced training of the fused model over all modalities."""

    train: Annotated[tuple[str, ...], Doc("components to train; everything else stays frozen")]
    data: Annotated[Mapping[str, str], Doc("pairs of each modality")]
    lora: Annotated[Lora | None, Doc("train low-rank updates instead of the weights themselves")] = None
    steps: Annotated[int, Between(1, None), Doc("gradient steps")] = 2000
    lr: Annotated[float, Positive, Doc("learning rate")] = 1.0e-5
    batch_size: Annotated[int | None, Between(1, None), Doc("pairs per step")] = None
    temperature: Annotated[float, Positive, Doc("τ of InfoNCE")] = 0.02
    balance: Annotated[Balance, Doc("how batches are shared among modalities")] = field(default_factory=Balance)
    place: str = place_field()


@dataclass(frozen=True)
class Specialize:
    """How one specialist is trained from the base."""

    data: Annotated[str, Doc("pairs: path (jsonl, parquet) or `datasets` id")]
    modality: Annotated[str | None, Doc("what the pairs hold besides text; left out: told from the data")] = None
    train: Annotated[tuple[str, ...] | None, Doc("components to train; left out: all")] = None
    lora: Annotated[Lora | None, Doc("train low-rank updates, merged to dense at the end")] = None
    steps: Annotated[int, Between(1, None), Doc("gradient steps")] = 1000
    lr: Annotated[float, Positive, Doc("learning rate")] = 2.0e-5
    batch_size: Annotated[int | None, Between(1, None), Doc("pairs per step")] = None
    temperature: Annotated[float, Positive, Doc("τ of InfoNCE")] = 0.02
    name: str = name_field()
    place: str = place_field()


@dataclass(frozen=True)
class Evaluate:
    """What the variants are scored on."""

    retrieval: Annotated[Mapping[str, str], Doc("local retrieval sets by name")] = field(default_factory=dict)
    mteb: Annotated[tuple[str, ...], Doc("mteb benchmarks or tasks")] = ()
    place: str = place_field()
