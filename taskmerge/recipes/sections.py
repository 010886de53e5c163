"""Sections for inputs and output of a merge: a field is a key, its annotation is its check, help and schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from taskmerge.declarations import Between, Doc, EntryOf, Glob, Gradient, NewName, Size, name_field, place_field
from taskmerge.errors import Problem, UsageError
from taskmerge.words.places import is_pattern, output_place

GradedNumber = float | tuple[float, ...]
"""A number, or a gradient over depth."""

SpecialistName = Annotated[str, EntryOf("specialists")]
BaseOrSpecialist = Annotated[str, EntryOf("specialists", ("base",))]
NewSpecialist = Annotated[str, NewName(("base", "union"))]
NamePattern = Annotated[str, Glob()]


@dataclass(frozen=True)
class Specialist:
    """One model fine-tuned from the base, or the base with an adapter."""

    shorthand: ClassVar[str] = "model"

    model: Annotated[
        str,
        Doc(
            "path, hub id[@revision], hf:// uri or a task vector's folder; `base` for the base itself; a "
            "pattern (run/checkpoint-*) for the mean of all checkpoints that it matches"
        ),
    ]
    adapter: Annotated[
        str | None, Doc("a PEFT adapter to apply to the model: path or hub id, or a pattern for the mean of several")
    ] = None
    also: Annotated[
        tuple[str, ...],
        Doc(
            "files or folders whose tensors replace the model's or are added to it: for example a separately "
            "saved projector"
        ),
    ] = ()
    last: Annotated[
        int | None, Between(1, None), Doc("for a pattern: use only the latest N checkpoints; by default all")
    ] = None
    ema: Annotated[
        float | None,
        Between(0, 1, open="both"),
        Doc("for a pattern: decay of a moving average, oldest first; by default all have equal weight"),
    ] = None
    base: Annotated[
        str | None,
        Doc("the model that it was fine-tuned from, if not the recipe's base; the task vector starts from this model"),
    ] = None
    weight: Annotated[GradedNumber, Gradient(), Doc("factor of its task vector")] = 1.0
    name: str = name_field()
    place: str = place_field()

    @property
    def is_soup(self) -> bool:
        """True if it is the mean of several checkpoints."""
        return is_pattern(self.model) or is_pattern(self.adapter or "")

    @property
    def made_of_parts(self) -> str | None:
        """The kind of specialist in words, if no single folder contains it; else None."""
        if self.is_soup:
            return "the mean of several checkpoints"
        if self.adapter is not None:
            return "an adapter"
        return "a model with tensors of other files" if self.also else None

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        for key in ("last", "ema"):
            if getattr(self, key) is not None and not self.is_soup:
                what = f"{self.name}: {key}: {getattr(self, key)} needs a pattern of checkpoints"
                yield Problem(what, self.place, "write a pattern: model: run/checkpoint-*")


@dataclass(frozen=True)
class TokenRow:
    """The source of one token's row in the embedding and the head."""

    shorthand: ClassVar[str] = "source"

    source: Annotated[
        str | None,
        EntryOf("specialists", ("base", "zero")),
        Doc("the source of the row: `base`, a specialist, or `zero` for zeros; by default as for any other token"),
    ] = None
    token: Annotated[str | None, Doc("the token in the source; by default the same one")] = None
    row: Annotated[int | None, Between(0, None), Doc("the row number in the source")] = None
    force: Annotated[bool, Doc("use that row for all inputs, also for those that have the token")] = False
    place: str = place_field()


@dataclass(frozen=True)
class Output:
    """The output: where and how it is written."""

    path: Annotated[str | None, Doc("folder of the fused model; `--out` overrides it")] = None
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "float64"] | None,
        Doc("number format; by default each tensor keeps the base's"),
    ] = None
    quantized: Annotated[
        bool,
        Doc(
            "store quantised weights as the base does (FP8 with scales, 4 bits of compressed-tensors), byte "
            "for byte where no specialist changes them; by default FP8 becomes the format in which the model "
            "was trained, and packed tensors are copied"
        ),
    ] = False
    shard_size: Annotated[int, Size(), Doc("maximum number of bytes per file")] = 5_000_000_000
    keep_previous: Annotated[
        bool, Doc("keep a model that a stage replaces as `NAME-previous`; an older one there is removed")
    ] = False
    tokenizer: Annotated[
        str,
        EntryOf("specialists", ("base", "union")),
        Doc(
            "`base`, `union` (the base's tokens and those that specialists add) or the specialist whose "
            "tokenizer is used"
        ),
    ] = "union"
    tokens: Annotated[Mapping[str, TokenRow], Doc("the source of the rows of single tokens; new tokens are added")] = (
        field(default_factory=dict)
    )
    new_tokens: Annotated[
        Literal["mean", "own"],
        Doc(
            "the base row of a token that the base lacks: the mean of the specialists' rows, or each "
            "specialist's own row, so that the weights decide (as mergekit does)"
        ),
    ] = "mean"
    pad_rows: Annotated[
        int | None, Between(1, None), Doc("round the number of rows of the token tables up to a multiple of this")
    ] = None
    chat_template: Annotated[
        str | None,
        Doc(
            "the chat template to write: `alpaca`, `chatml`, `exaone`, `llama3`, `mistral`, `auto` (the most "
            "common one of the inputs), the path of a file, or the template itself; by default the "
            "tokenizer's own"
        ),
    ] = None
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        if self.quantized and self.dtype is not None:
            move = "leave one of them out"
            yield Problem("output: quantized keeps the base's formats, but dtype sets another one", self.place, move)
        try:
            if self.path is not None:
                output_place(self.path)
        except UsageError as error:
            yield from (Problem(f"output: path: {told.what}", self.place, told.next_move) for told in error.problems)
