"""Settings of a training stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from taskmerge.declarations import (
    COUNT,
    TEXTS,
    Either,
    Flag,
    Instance,
    Kind,
    Mapped,
    Nothing,
    Number,
    OneOf,
    Text,
    fields_of,
    optional,
    read_arguments,
)
from taskmerge.embedders.encodings import Keeping
from taskmerge.errors import Problem, UsageError, did_you_mean
from taskmerge.recipes.stages import Balance, Lora, Training
from taskmerge.words.devices import device_or_default
from taskmerge.words.precisions import Half

if TYPE_CHECKING:
    from taskmerge.embedders.takes import PromptSource


@dataclass(frozen=True)
class LoraSettings:
    """Settings of low-rank adapters, which are trained instead of complete matrices and merged into them at the end.

    Attributes:
        rank: of each update.
        scale: the update is multiplied by scale / rank.
        components: components whose linear layers get adapters; default: every trained component except projectors.

    Source:
        Hu et al., arXiv 2106.09685.
    """

    rank: int = 16
    scale: float = 32.0
    components: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        rank = _declared(Lora)["rank"]
        _check_fields(self, {"rank": rank, "scale": Number(0, None, low_open=True), "components": optional(TEXTS)})


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of one training stage.

    Attributes:
        steps: number of optimizer steps.
        batch_size: pairs per process and step.
        learning_rate: for every trained tensor without an entry in `learning_rates`.
        learning_rates: {part of a tensor's name: rate}, e.g. {"projector": 1e-3}.
        warmup: steps of linear increase before the cosine decay.
        temperature: of InfoNCE.
        max_gradient_norm: gradients are clipped to this norm.
        lora: train adapters instead of complete matrices.
        balance: rehearsal draws a set with p ~ share * size ** (1 / balance); a large value makes sizes irrelevant.
        shares: set -> share; default 1.
        adaptive: replace the factor of the size by the distance of a set to its target, at the latest evaluation.
        bf16: compute in bfloat16 (autocast).
        gradient_cache: pairs embedded at once if the batch does not fit (Gao et al., arXiv 2101.06983).
        accumulation: batches whose gradients are summed for one step; negatives come from one batch, of all processes.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping their outputs.
        fsdp: shard parameters over the processes (FSDP2). Each process has complete frozen encoders.
        dimensions: lengths that embeddings are truncated to, each with its own loss (Matryoshka, arXiv 2205.13147).
        dropout: of all layers; None keeps the setting in the backbone's config.
        input_noise: standard deviation of Gaussian noise on the prepared items during training.
        evaluate_every: steps between evaluations on the held-out pairs.
        looked_at_in: "bfloat16" or "float16": precision in which held-out pairs are scored (autocast); None: the
            model's own.
        patience: evaluations without improvement before the stage stops; None: it never stops early.
        stop_at: stop after this step of the schedule.
        report_to: "none", "tensorboard", "wandb", ...
        prompts: prompts that replace the model's own, see `Embedder.prompted`.
        resume: continue from the last checkpoint.
        seed: of batches, dropout, noise and new weights.
        device: "cpu", "cuda", "mps"; None: the first GPU if there is one, else the CPU.
        encodings: folder and size limit for the outputs of frozen encoders and the embeddings of frozen texts.
        keep_checkpoints: keep the last checkpoints in `work` when the stage is complete.
    """

    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    warmup: int = 20
    temperature: float = 0.02
    max_gradient_norm: float = 1.0
    lora: LoraSettings | None = None
    balance: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)
    adaptive: bool = False
    bf16: bool = False
    gradient_cache: int | None = None
    accumulation: int = 1
    gradient_checkpointing: bool = False
    fsdp: bool = False
    dimensions: tuple[int, ...] = ()
    dropout: float | None = 0.0
    input_noise: float = 0.0
    evaluate_every: int = 50
    looked_at_in: Half | None = None
    patience: int | None = None
    stop_at: int | None = None
    report_to: str = "none"
    prompts: PromptSource = None
    resume: bool = False
    seed: int = 0
    device: str | None = None
    encodings: Keeping = field(default_factory=Keeping)
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        _check_fields(self, _kinds())
        problems = [*reporting_problems(self.report_to)]
        if device_or_default(self.device) is not None and str(self.device).partition(":")[2].strip("0"):
            move = "set CUDA_VISIBLE_DEVICES to make another GPU the first one"
            problems.append(Problem(f"training runs on the first GPU, not on {self.device!r}", next_move=move))
        if problems:
            raise UsageError(problems)


@cache
def _kinds() -> dict[str, Kind]:
    """What each setting may be. Those that a recipe has too are declared there."""
    recipe, balance = _declared(Training), _declared(Balance)
    positive = Number(0, None, low_open=True)
    return {
        **{name: recipe[name] for name in (
            "steps", "batch_size", "warmup", "temperature", "input_noise", "bf16", "accumulation",
            "gradient_checkpointing", "fsdp", "report_to",
        )},
        "learning_rate": recipe["lr"],
        "learning_rates": Mapped(recipe["lr"]),
        "gradient_cache": optional(recipe["gradient_cache"]),
        "dimensions": replace(recipe["dimensions"], empty=True),
        "balance": balance["temperature"],
        "shares": balance["shares"],
        "max_gradient_norm": positive,
        "lora": optional(Instance(LoraSettings)),
        "adaptive": Flag(),
        "dropout": optional(Number(0, 1, high_open=True)),
        "evaluate_every": COUNT,
        "looked_at_in": optional(OneOf(get_args(Half))),
        "patience": optional(COUNT),
        "stop_at": optional(COUNT),
        "resume": Flag(),
        "seed": Number(0, 2**32 - 1, integer=True),
        "device": optional(Text()),
        "encodings": Instance(Keeping),
        "keep_checkpoints": Flag(),
    }  # fmt: skip


def _declared(section: type) -> dict[str, Any]:
    """The kinds of a recipe section's keys, for values that are given."""
    found = {}
    for row in fields_of(section):
        kind = row.kind
        if isinstance(kind, Either) and any(isinstance(one, Nothing) for one in kind.alternatives):
            given = tuple(one for one in kind.alternatives if not isinstance(one, Nothing))
            kind = given[0] if len(given) == 1 else Either(given)
        found[row.name] = kind
    return found


def _check_fields(settings: LoraSettings | TrainingSettings, kinds: Mapping[str, Kind]) -> None:
    """Put every field into its final form. Raises UsageError with each one that is wrong."""
    for name, value in read_arguments(type(settings).__name__, vars(settings), kinds).items():
        object.__setattr__(settings, name, value)


def reporting_problems(report_to: str) -> Iterator[Problem]:
    """Yield the reason why losses cannot be logged there: an unknown name, or a library that is not installed."""
    if report_to in ("none", "all"):
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    if report_to not in INTEGRATION_TO_CALLBACK:
        near = did_you_mean(report_to, ("none", *INTEGRATION_TO_CALLBACK))
        yield Problem(f"report_to: {report_to!r} is unknown", next_move=near)
    elif report_to not in (*get_available_reporting_integrations(), "flyte"):  # type: ignore[no-untyped-call]  # flyte is not in its list
        yield Problem(f"report_to: {report_to!r} is not installed", next_move="install its library, or write none")


def batch_problems(name: str, texts: Sequence[str], batch_size: int, texts_learn: bool) -> Iterator[Problem]:
    """Yield a problem for a set that does not fill one batch. texts_learn: no text may be twice in a batch."""
    available = len(set(texts)) if texts_learn else len(texts)
    if available < batch_size:
        what = "distinct texts" if texts_learn else "pairs"
        yield Problem(
            f"{name}: {available} {what} are too few for batches of {batch_size}",
            next_move=f"set batch_size to at most {available}" if available > 1 else "add pairs: at least 2 are needed",
        )
