"""The sections of a recipe besides `merge`: a field is a key, its annotation is its check, help and schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from taskmerge.declarations import (
    Between,
    Doc,
    EntryOf,
    FreeText,
    Glob,
    Gradient,
    NewName,
    Size,
    name_field,
    place_field,
)
from taskmerge.errors import Problem, UsageError, did_you_mean
from taskmerge.words.modalities import NAMES, modality, modality_of_column
from taskmerge.words.places import is_pattern, output_place
from taskmerge.words.precisions import Half, Precision

GradedNumber = float | tuple[float, ...]
"""A number, or a gradient over depth."""
Sources = str | Mapping[str, str]
"""One data source, or several by name: a path (jsonl, parquet) or a `datasets` id, NAME:SPLIT, NAME:SPLIT:streaming."""

SpecialistName = Annotated[str, EntryOf("specialists")]
BaseOrSpecialist = Annotated[str, EntryOf("specialists", ("base",))]
NewSpecialist = Annotated[str, NewName(("base", "union"))]
NamePattern = Annotated[str, Glob()]
PromptText = Annotated[str, FreeText()]
Positive = Between(0, None, open="low")
MeasuredIn = Annotated[
    Precision | None, Doc("precision that models are run in to be measured; left out: each one's own")
]
LookedAtIn = Annotated[Half | None, Doc("precision that held-out pairs are scored in; left out: the model's own")]
ItemsAtOnce = Annotated[int, Between(1, None), Doc("items that run at once")]


@dataclass(frozen=True)
class Specialist:
    """One model fine-tuned from the base, or the base with an adapter."""

    shorthand: ClassVar[str] = "model"

    model: Annotated[
        str,
        Doc(
            "path, hub id[@revision], hf:// uri or a task vector's folder; `base` for the base itself; a pattern "
            "(run/checkpoint-*) for the mean of all that it names"
        ),
    ]
    adapter: Annotated[
        str | None, Doc("a PEFT adapter to lay over the model: path or hub id, or a pattern for the mean of several")
    ] = None
    also: Annotated[
        tuple[str, ...],
        Doc("files or folders whose tensors take the place of the model's, or are added: a projector saved alone"),
    ] = ()
    last: Annotated[int | None, Between(1, None), Doc("of a pattern: how many, the latest; left out: all")] = None
    ema: Annotated[
        float | None,
        Between(0, 1, open="both"),
        Doc("of a pattern: decay of a moving average, oldest first; left out: all count the same"),
    ] = None
    base: Annotated[
        str | None,
        Doc("what it was fine-tuned from, where that is not the recipe's base: its task vector is taken"),
    ] = None
    weight: Annotated[GradedNumber, Gradient(), Doc("what its task vector is multiplied by")] = 1.0
    name: str = name_field()
    place: str = place_field()

    @property
    def is_soup(self) -> bool:
        """Whether it is the mean of several checkpoints."""
        return is_pattern(self.model) or is_pattern(self.adapter or "")

    @property
    def made_of_parts(self) -> str | None:
        """What it is, where no folder holds all of it; None where `model` does."""
        if self.is_soup:
            return "the mean of several checkpoints"
        if self.adapter is not None:
            return "an adapter"
        return "a model with tensors of other files" if self.also else None

    def problems(self) -> Iterator[Problem]:
        for key in ("last", "ema"):
            if getattr(self, key) is not None and not self.is_soup:
                what = f"{self.name}: {key}: {getattr(self, key)} is for a pattern of checkpoints"
                yield Problem(what, self.place, "name them all: model: run/checkpoint-*")


@dataclass(frozen=True)
class TokenRow:
    """Where one token's row of the embedding, and of the head, comes from."""

    shorthand: ClassVar[str] = "source"

    source: Annotated[
        str | None,
        EntryOf("specialists", ("base", "zero")),
        Doc("whose row: `base`, a specialist, or `zero` for zeros; left out: as for any other token"),
    ] = None
    token: Annotated[str | None, Doc("which of the source's tokens; left out: the same one")] = None
    row: Annotated[int | None, Between(0, None), Doc("which of the source's rows, by its number")] = None
    force: Annotated[bool, Doc("take that row for all inputs, also for those that have the token")] = False
    place: str = place_field()


@dataclass(frozen=True)
class Output:
    """What is written, and where."""

    path: Annotated[str | None, Doc("folder of the fused model; `--out` overrides it")] = None
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "float64"] | None,
        Doc("number format; left out: each tensor's own in the base"),
    ] = None
    quantized: Annotated[
        bool,
        Doc(
            "store weights in few bits as the base does (FP8 with scales, 4 bits of compressed-tensors): byte for byte "
            "where no specialist moves them; left out: FP8 becomes the format the model was trained in, packed tensors "
            "are copied"
        ),
    ] = False
    shard_size: Annotated[int, Size(), Doc("at most this many bytes per file")] = 5_000_000_000
    keep_previous: Annotated[
        bool, Doc("keep a model that a stage replaces, as `NAME-previous`; the one kept there before goes")
    ] = False
    tokenizer: Annotated[
        str,
        EntryOf("specialists", ("base", "union")),
        Doc("`base`, `union` (the base's and what specialists add) or the specialist whose tokenizer is taken"),
    ] = "union"
    tokens: Annotated[
        Mapping[str, TokenRow], Doc("where the rows of single tokens come from; tokens that are new are added")
    ] = field(default_factory=dict)
    new_tokens: Annotated[
        Literal["mean", "own"],
        Doc(
            "what a token that the base lacks is in the specialists that have it: the mean of theirs, or each one's "
            "own, so that weights decide (as mergekit does)"
        ),
    ] = "mean"
    pad_rows: Annotated[int | None, Between(1, None), Doc("round the rows of the token tables up to a multiple")] = None
    chat_template: Annotated[
        str | None,
        Doc(
            "the chat template to write: `alpaca`, `chatml`, `exaone`, `llama3`, `mistral`, `auto` (what most inputs "
            "have), the path of a file, or the template itself; left out: the tokenizer's own"
        ),
    ] = None
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        if self.quantized and self.dtype is not None:
            move = "leave one of them out"
            yield Problem("output: quantized keeps the base's formats, and dtype names another", self.place, move)
        try:
            if self.path is not None:
                output_place(self.path)
        except UsageError as error:
            yield from (Problem(f"output: path: {told.what}", self.place, told.next_move) for told in error.problems)


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter to train."""

    rank: Annotated[int, Between(1, None), Doc("rank of each update")] = 16
    alpha: Annotated[float | None, Doc("updates are multiplied by alpha / rank; left out: twice the rank")] = None
    place: str = place_field()


@dataclass(frozen=True)
class FailAbove:
    """What counts as drifted too far."""

    recall_drop: Annotated[float, Between(0, 1, open="low"), Doc("most that R@1 may fall against the specialist")] = (
        0.05
    )
    place: str = place_field()


@dataclass(frozen=True)
class RolePrompts:
    """What stands before items of one modality, or of one set or task."""

    query: Annotated[PromptText | None, Doc('before what searches; `""`: nothing')] = None
    document: Annotated[PromptText | None, Doc('before what is found; `""`: nothing')] = None
    default: Annotated[PromptText | None, Doc("before items of neither role, which are clustered or classified")] = None
    place: str = place_field()


@dataclass(frozen=True)
class Prompts(RolePrompts):
    """What stands before items in place of the models' own prompts, in every stage that runs a model."""

    modalities: Annotated[Mapping[str, RolePrompts], Doc("before items of a modality: `{audio: {query: …}}`")] = field(
        default_factory=dict
    )
    tasks: Annotated[
        Mapping[str, RolePrompts],
        Doc("before items of one set, by its name: of `evaluate`, of a training stage's `data`, or an mteb task"),
    ] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        for name, row in self.modalities.items():
            if modality(name) is None or modality_of_column(name) != name:
                yield Problem(f"prompts: {name!r} is no modality", row.place, did_you_mean(name, NAMES))


@dataclass(frozen=True)
class Drift:
    """How drift is diagnosed."""

    specialist: Annotated[tuple[SpecialistName, ...], Doc("the specialists whose modality is probed")]
    probes: Annotated[Sources, Doc("probe pairs, one source or one per specialist")]
    trained_on: Annotated[
        Sources | None,
        Doc("pairs the specialists were trained on, so that probes among them are told; left out: `specialize`'s data"),
    ] = None
    fail_above: Annotated[FailAbove, Doc("limits beyond which the exit code is 3")] = field(default_factory=FailAbove)
    precision: MeasuredIn = None
    batch_size: ItemsAtOnce = 32
    place: str = place_field()


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training stage can be told; left out: the stage's own default."""

    steps: Annotated[int | None, Between(1, None), Doc("most gradient steps")] = None
    lr: Annotated[float | None, Positive, Doc("learning rate")] = None
    projector_lr: Annotated[float | None, Positive, Doc("learning rate of projectors; left out: as the rest")] = None
    batch_size: Annotated[int | None, Between(2, None), Doc("pairs per process and step")] = None
    warmup: Annotated[int | None, Between(0, None), Doc("steps in which the learning rate rises")] = None
    temperature: Annotated[float, Positive, Doc("τ of InfoNCE")] = 0.02
    input_noise: Annotated[
        float, Between(0, None), Doc("standard deviation of Gaussian noise on the prepared items while training")
    ] = 0.0
    bf16: Annotated[bool, Doc("train in bfloat16 autocast")] = False
    gradient_cache: Annotated[
        int | None, Between(1, None), Doc("pairs embedded at once, for batches that do not fit in memory")
    ] = None
    accumulation: Annotated[
        int, Between(1, None), Doc("batches whose gradients are summed for one step; negatives are those of one batch")
    ] = 1
    gradient_checkpointing: Annotated[
        bool, Doc("compute layers again in the backward pass instead of keeping what they put out")
    ] = False
    fsdp: Annotated[bool, Doc("shard parameters over the processes (FSDP2), where one cannot hold them")] = False
    dimensions: Annotated[
        tuple[Annotated[int, Between(1, 65536)], ...],
        Doc("lengths that embeddings are cut to, each with a loss of its own beside the whole ones' (Matryoshka)"),
    ] = ()
    report_to: Annotated[str, Doc("where losses are logged: none, tensorboard, wandb, …")] = "none"


@dataclass(frozen=True, kw_only=True)
class Recover(Training):
    """How a drifted projector is fitted to the fused backbone."""

    train: Annotated[tuple[NamePattern, ...], Doc("components or name patterns to train; everything else stays frozen")]
    data: Annotated[Sources, Doc("pairs, one source or one per modality")]
    held_out: Annotated[Sources | None, Doc("pairs that decide between the ways; left out: a tenth of the data")] = None
    precision: LookedAtIn = None
    method: Annotated[
        Literal["auto", "gradient", "closed_form"], Doc("how; `auto` compares on held-out pairs what the data allows")
    ] = "auto"
    place: str = place_field()


@dataclass(frozen=True)
class Balance:
    """How batches are shared among the sets of a stage's data."""

    shorthand: ClassVar[str] = "follows"

    follows: Annotated[
        Literal["size", "adaptive"],
        Doc(
            "what shares follow: the sizes of the sets, or (`adaptive`, in `rehearse`) what each modality still misses "
            "on its held-out pairs of what its specialist scores there"
        ),
    ] = "size"
    temperature: Annotated[
        float | None,
        Positive,
        Doc("a set's share of batches goes with its size ** (1 / temperature); left out: 1, or not at all"),
    ] = None
    shares: Annotated[
        Mapping[str, Annotated[float, Positive]],
        Doc("what a set's share is multiplied by: `{document: 2}` draws the set of that name twice as often"),
    ] = field(default_factory=dict)
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        if self.follows == "adaptive" and self.temperature is not None:
            what = f"balance: temperature: {self.temperature:g} is of sizes, which adaptive shares do not follow"
            yield Problem(what, self.place, "leave temperature out, or follow size")

    def share_problems(self, data: Sources) -> Iterator[Problem]:
        """Shares of sets that are not there. data: of the stage."""
        for name in self.shares:
            if name not in (data if isinstance(data, Mapping) else ()):
                what = f"balance: shares: {name!r} is no set of `data`"
                move = did_you_mean(name, data) if isinstance(data, Mapping) else "name the sets: data: {NAME: PAIRS}"
                yield Problem(what, self.place, move)


@dataclass(frozen=True, kw_only=True)
class Rehearse(Training):
    """Balanced training of the fused model over all modalities."""

    train: Annotated[tuple[NamePattern, ...], Doc("components or name patterns to train; everything else stays frozen")]
    data: Annotated[Mapping[str, str], Doc("pairs by name: of each modality, or several sets of one")]
    held_out: Annotated[Mapping[str, str] | None, Doc("pairs for learning curves; left out: a tenth of the data")] = (
        None
    )
    precision: LookedAtIn = None
    lora: Annotated[Lora | None, Doc("train low-rank updates instead of the weights themselves")] = None
    balance: Annotated[Balance, Doc("how batches are shared among modalities")] = field(default_factory=Balance)
    may_fall: Annotated[
        tuple[str, ...],
        Doc("modalities that may end below what they had; no other may, by a 95 % interval on its held-out pairs"),
    ] = ()
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        for name in self.may_fall:
            if name not in self.data:
                what = f"may_fall: {name!r} is no modality of `data`"
                yield Problem(what, self.place, did_you_mean(name, self.data))
        yield from self.balance.share_problems(self.data)


@dataclass(frozen=True)
class Graft:
    """A fresh encoder and projector attached to the base before its specialist is trained."""

    encoder: Annotated[str, Doc("log_mel, patches, or a transformers encoder: folder or hub id")]
    projector: Annotated[Literal["linear", "mlp"], Doc("what leads from the encoder into the backbone")] = "mlp"
    place: str = place_field()


@dataclass(frozen=True, kw_only=True)
class Specialize(Training):
    """How one specialist is trained from the base."""

    data: Annotated[Sources, Doc("pairs, one source or several sets by name; every batch is of one set")]
    balance: Annotated[Balance, Doc("how batches are shared among several sets")] = field(default_factory=Balance)
    modality: Annotated[str | None, Doc("what the pairs hold besides text; left out: told from the data")] = None
    graft: Annotated[Graft | None, Doc("encoder and projector to attach first, for a modality the base lacks")] = None
    train: Annotated[tuple[NamePattern, ...] | None, Doc("components or name patterns to train; left out: all")] = None
    lora: Annotated[Lora | None, Doc("train low-rank updates, merged to dense at the end")] = None
    name: str = name_field()
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        yield from self.balance.share_problems(self.data)
        if self.balance.follows == "adaptive":
            what = "balance: adaptive: shares follow held-out pairs, which specialize has none of"
            yield Problem(what, self.balance.place, "leave it out, and say `shares` where sizes are not meant")


@dataclass(frozen=True)
class Evaluate:
    """What the variants are scored on."""

    retrieval: Annotated[Mapping[str, str], Doc("local retrieval sets by name")] = field(default_factory=dict)
    mteb: Annotated[tuple[str, ...], Doc("mteb benchmarks or tasks")] = ()
    dimensions: Annotated[
        tuple[Annotated[int, Between(1, 65536)], ...],
        Doc("lengths that embeddings are cut to, each scored beside the whole ones"),
    ] = ()
    precision: MeasuredIn = None
    batch_size: ItemsAtOnce = 32
    results: Annotated[
        str | None, Doc("folder of mteb's results, kept and taken up again; left out: `mteb` in the report folder")
    ] = None
    model_meta: Annotated[
        str | None, Doc("YAML or JSON file with what mteb asks and no model says: release_date, training_datasets, …")
    ] = None
    place: str = place_field()
