"""The stages before and after a merge, as a recipe describes them: a field is a key, its annotation is its check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from taskmerge.declarations import Between, Doc, FreeText, fields_of, name_field, place_field
from taskmerge.errors import Problem, did_you_mean
from taskmerge.recipes.sections import NamePattern, SpecialistName
from taskmerge.words.modalities import NAMES, modality, modality_of_column
from taskmerge.words.precisions import Half, Precision

Sources = str | Mapping[str, str]
"""One data source, or several by name: a path (jsonl, parquet) or a `datasets` id, NAME:SPLIT, NAME:SPLIT:streaming."""

PromptText = Annotated[str, FreeText()]
Positive = Between(0, None, open="low")
MeasuredIn = Annotated[
    Precision | None, Doc("precision in which models run when they are measured; by default each model's own")
]
LookedAtIn = Annotated[Half | None, Doc("precision in which held-out pairs are scored; by default the model's own")]
ItemsAtOnce = Annotated[int, Between(1, None), Doc("items that run at once")]


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter to train."""

    rank: Annotated[int, Between(1, None), Doc("rank of each update")] = 16
    alpha: Annotated[float | None, Doc("updates are multiplied by alpha / rank; by default twice the rank")] = None
    place: str = place_field()


@dataclass(frozen=True)
class FailAbove:
    """Limits of drift."""

    recall_drop: Annotated[
        float, Between(0, 1, open="low"), Doc("maximum acceptable drop in R@1 against the specialist")
    ] = 0.05
    place: str = place_field()


@dataclass(frozen=True)
class RolePrompts:
    """Prompts before items of one modality, or of one set or task."""

    query: Annotated[PromptText | None, Doc('prompt before queries; `""`: none')] = None
    document: Annotated[PromptText | None, Doc('prompt before documents; `""`: none')] = None
    default: Annotated[
        PromptText | None, Doc("prompt before items that are neither, such as items to cluster or classify")
    ] = None
    place: str = place_field()


@dataclass(frozen=True)
class Prompts(RolePrompts):
    """Prompts before items, in every stage that runs a model. They replace the models' own prompts."""

    modalities: Annotated[
        Mapping[str, RolePrompts], Doc("prompts before items of one modality: `{audio: {query: …}}`")
    ] = field(default_factory=dict)
    tasks: Annotated[
        Mapping[str, RolePrompts],
        Doc(
            "prompts before items of one set, by its name in `evaluate`, in the `data` of a training stage, or in mteb"
        ),
    ] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each name that is not a modality."""
        for name, row in self.modalities.items():
            if modality(name) is None or modality_of_column(name) != name:
                yield Problem(f"prompts: {name!r} is not a modality", row.place, did_you_mean(name, NAMES))


@dataclass(frozen=True)
class Drift:
    """Drift diagnosis."""

    specialist: Annotated[tuple[SpecialistName, ...], Doc("the specialists whose modality is probed")]
    probes: Annotated[Sources, Doc("probe pairs, one source or one per specialist")]
    trained_on: Annotated[
        Sources | None,
        Doc(
            "pairs that the specialists were trained on: overlaps with the probes are reported; by default the "
            "data of `specialize`"
        ),
    ] = None
    fail_above: Annotated[FailAbove, Doc("limits beyond which the exit code is 3")] = field(default_factory=FailAbove)
    precision: MeasuredIn = None
    batch_size: ItemsAtOnce = 32
    place: str = place_field()


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of all training stages; each stage has its own defaults."""

    steps: Annotated[int | None, Between(1, None), Doc("maximum number of gradient steps")] = None
    lr: Annotated[float | None, Positive, Doc("learning rate")] = None
    projector_lr: Annotated[float | None, Positive, Doc("learning rate of projectors; by default `learning_rate`")] = (
        None
    )
    batch_size: Annotated[int | None, Between(2, None), Doc("pairs per process and step")] = None
    warmup: Annotated[int | None, Between(0, None), Doc("number of steps in which the learning rate rises")] = None
    temperature: Annotated[float, Positive, Doc("τ of InfoNCE")] = 0.02
    input_noise: Annotated[
        float, Between(0, None), Doc("standard deviation of Gaussian noise added to the prepared items in training")
    ] = 0.0
    bf16: Annotated[bool, Doc("train in bfloat16 autocast")] = False
    gradient_cache: Annotated[
        int | None,
        Between(1, None),
        Doc("pairs embedded at once, for batches that do not fit in memory (gradient caching)"),
    ] = None
    accumulation: Annotated[
        int,
        Between(1, None),
        Doc("number of batches whose gradients are summed for one step; negatives come from one batch"),
    ] = 1
    gradient_checkpointing: Annotated[
        bool, Doc("compute layers again in the backward pass instead of keeping their outputs")
    ] = False
    fsdp: Annotated[bool, Doc("shard parameters over the processes (FSDP2) if one cannot hold all of them")] = False
    dimensions: Annotated[
        tuple[Annotated[int, Between(1, 65536)], ...],
        Doc("additional dimensions to which embeddings are truncated, each with its own loss (Matryoshka)"),
    ] = ()
    report_to: Annotated[str, Doc("where to log losses: none, tensorboard, wandb, …")] = "none"


@dataclass(frozen=True, kw_only=True)
class Recover(Training):
    """Fitting of drifted projectors to the fused backbone."""

    train: Annotated[tuple[NamePattern, ...], Doc("components or name patterns to train; all others stay frozen")]
    data: Annotated[Sources, Doc("pairs, one source or one per modality")]
    held_out: Annotated[
        Sources | None, Doc("pairs that decide between the methods; by default a tenth of the data")
    ] = None
    precision: LookedAtIn = None
    method: Annotated[
        Literal["auto", "gradient", "closed_form"],
        Doc("the method; `auto` compares all methods that the data allows on held-out pairs"),
    ] = "auto"
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        given = [row.name for row in fields_of(Training) if getattr(self, row.name) != row.default]
        if self.method == "closed_form" and given:
            what = f"recover: {', '.join(given)}: the method closed_form takes no gradient steps"
            yield Problem(what, self.place, "leave it out, or set method: auto or gradient")


@dataclass(frozen=True)
class Balance:
    """The division of batches among the sets of a stage's data."""

    shorthand: ClassVar[str] = "follows"

    follows: Annotated[
        Literal["size", "adaptive"],
        Doc(
            "the source of the shares: the sizes of the sets, or (`adaptive`, in `rehearse`) how far each modality is "
            "below its specialist on its held-out pairs"
        ),
    ] = "size"
    temperature: Annotated[
        float | None,
        Positive,
        Doc(
            "a set's share of the batches is proportional to size ** (1 / temperature); by default 1; not for "
            "`adaptive`"
        ),
    ] = None
    shares: Annotated[
        Mapping[str, Annotated[float, Positive]],
        Doc("factor of a set's share: `{document: 2}` draws the set of that name twice as often"),
    ] = field(default_factory=dict)
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        if self.follows == "adaptive" and self.temperature is not None:
            what = f"balance: temperature: {self.temperature:g} applies to sizes, and adaptive shares do not use them"
            yield Problem(what, self.place, "leave out temperature, or set follows: size")

    def share_problems(self, data: Sources) -> Iterator[Problem]:
        """Yield a problem for each share of a missing set, and for shares of a single set. data: of the stage."""
        if self.temperature is not None and not isinstance(data, Mapping):
            what = f"balance: temperature: {self.temperature:g} applies to several sets, and `data` is one"
            yield Problem(what, self.place, "leave it out, or name the sets: data: {NAME: PAIRS}")
        for name in self.shares:
            if name not in (data if isinstance(data, Mapping) else ()):
                what = f"balance: shares: {name!r} is not a set of `data`"
                move = did_you_mean(name, data) if isinstance(data, Mapping) else "name the sets: data: {NAME: PAIRS}"
                yield Problem(what, self.place, move)


@dataclass(frozen=True, kw_only=True)
class Rehearse(Training):
    """Balanced training of the fused model on all modalities."""

    train: Annotated[tuple[NamePattern, ...], Doc("components or name patterns to train; all others stay frozen")]
    data: Annotated[Mapping[str, str], Doc("pairs by name: one set per modality, or several sets of a modality")]
    held_out: Annotated[Mapping[str, str] | None, Doc("pairs for learning curves; by default a tenth of the data")] = (
        None
    )
    precision: LookedAtIn = None
    lora: Annotated[Lora | None, Doc("train low-rank updates instead of the weights themselves")] = None
    balance: Annotated[Balance, Doc("how batches are shared among modalities")] = field(default_factory=Balance)
    may_fall: Annotated[
        tuple[str, ...],
        Doc(
            "modalities whose score may fall; for all others, a 95 % interval must rule out a drop on their "
            "held-out pairs"
        ),
    ] = ()
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        for name in self.may_fall:
            if name not in self.data:
                what = f"may_fall: {name!r} is not a modality of `data`"
                yield Problem(what, self.place, did_you_mean(name, self.data))
        yield from self.balance.share_problems(self.data)


@dataclass(frozen=True)
class Graft:
    """A new encoder and projector to attach to the base before its specialist is trained."""

    encoder: Annotated[str, Doc("log_mel, patches, or a transformers encoder: folder or hub id")]
    projector: Annotated[Literal["linear", "mlp"], Doc("the projector from the encoder into the backbone")] = "mlp"
    place: str = place_field()


@dataclass(frozen=True, kw_only=True)
class Specialize(Training):
    """Training of one specialist from the base."""

    data: Annotated[Sources, Doc("pairs, one source or several sets by name; every batch comes from one set")]
    balance: Annotated[Balance, Doc("how batches are shared among several sets")] = field(default_factory=Balance)
    modality: Annotated[str | None, Doc("the modality of the pairs; by default recognised from the data")] = None
    graft: Annotated[Graft | None, Doc("encoder and projector to attach first, for a modality that the base lacks")] = (
        None
    )
    train: Annotated[tuple[NamePattern, ...] | None, Doc("components or name patterns to train; by default all")] = None
    lora: Annotated[Lora | None, Doc("train low-rank updates (LoRA), merged into the weights at the end")] = None
    name: str = name_field()
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        yield from self.balance.share_problems(self.data)
        if self.balance.follows == "adaptive":
            what = "balance: adaptive needs held-out pairs, and specialize has none"
            yield Problem(what, self.balance.place, "leave it out; to change the shares of the sets, add `shares`")


@dataclass(frozen=True)
class Evaluate:
    """Evaluation of all variants."""

    retrieval: Annotated[Mapping[str, str], Doc("local retrieval sets by name")] = field(default_factory=dict)
    mteb: Annotated[tuple[str, ...], Doc("mteb benchmarks or tasks")] = ()
    dimensions: Annotated[
        tuple[Annotated[int, Between(1, 65536)], ...],
        Doc("additional dimensions to which embeddings are truncated and scored"),
    ] = ()
    precision: MeasuredIn = None
    batch_size: ItemsAtOnce = 32
    results: Annotated[
        str | None, Doc("folder of mteb's results, which are kept and reused; by default `mteb` in the report folder")
    ] = None
    model_meta: Annotated[
        str | None,
        Doc(
            "YAML or JSON file with metadata that mteb requires and models do not contain: release_date, "
            "training_datasets, …"
        ),
    ] = None
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        if not self.retrieval and not self.mteb:
            yield Problem(
                "evaluate: there is nothing to score", self.place, "add retrieval: {NAME: PAIRS}, or mteb: [TASK]"
            )
        of_mteb = [name for name in ("results", "model_meta") if getattr(self, name) is not None]
        if of_mteb and not self.mteb:
            what = f"evaluate: {', '.join(of_mteb)}: for mteb, but there are no mteb tasks"
            yield Problem(what, self.place, "mteb: [TASK], or leave it out")
