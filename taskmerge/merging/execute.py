"""Plan -> files: streams the fused model into its folder. Nothing is decided here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.cards.card import card, kept_card
from taskmerge.checkpoints.cards.kinds import reading
from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.output.parts import PartsFolder
from taskmerge.checkpoints.output.record import CARD, described
from taskmerge.checkpoints.output.saving import AHEAD, MEMORY, folders_of, write_shards
from taskmerge.checkpoints.output.writing import OutputFolder, check_space
from taskmerge.checkpoints.state_dict import BASE
from taskmerge.checkpoints.stores.mirrors import mirrored
from taskmerge.errors import CheckpointError, MergeError, TaskmergeError, UsageError
from taskmerge.kernels import threads
from taskmerge.merging import provenance
from taskmerge.merging.few_bits import result_of
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.identity import every_input, identity
from taskmerge.merging.sides import add_side_files, side_bytes
from taskmerge.merging.steps import Plan
from taskmerge.recipes import Recipe
from taskmerge.words.devices import parse_device
from taskmerge.words.json_text import as_read
from taskmerge.words.places import StoreUri

if TYPE_CHECKING:
    from taskmerge.checkpoints.output.store_folder import StoreFolder

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """The result of a run.

    path: the output folder; sha256: of each weight file; resumed: files reused from the interrupted run; left: files
    that were put into the replaced folder during the run, which remain there; remade: finished files of the interrupted
    run that had changed since; card: information that the model card leaves open.
    """

    path: Path | StoreUri
    bytes: int
    sha256: Mapping[str, str]
    resumed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    remade: tuple[str, ...] = ()
    card: tuple[str, ...] = ()


def execute(
    plan: Plan,
    recipe: Recipe,
    out: Path | StoreUri,
    *,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
    memory: int = MEMORY,
    finish: bool = False,
) -> Written:
    """Write the planned model into folder `out`, completely or not at all.

    An interrupted run leaves its finished files next to `out` and the next call continues from them, and so does one
    that lacked disk space or a download. A failure that another try cannot repair (a NaN, integers that disagree)
    leaves nothing.

    Args:
        plan: the plan of the merge.
        recipe: the recipe that it was made from, for the record.
        out: the folder, or the uri of a store.
        device: device of the arithmetic.
        fresh: replace an existing folder that taskmerge made.
        progress: called with the number of bytes written since the last call.
        memory: bytes that an elementwise merge stays within, in addition to mapped input pages; other methods need
            their largest tensor completely.
        finish: every weight file was written by a part (`parts.execute_part`): check them; missing ones are reported.

    Returns:
        The output with its hashes, and notes on resumed files.

    Raises:
        UsageError: for a device that is not available.
        OutputError, MergeError, CheckpointError: if the output, the arithmetic or an input fails.
    """
    device = parse_device(device)
    fused = FusedStateDict(plan, device)
    began, read = identity(plan, recipe), [*folders_of(every_input(plan).values()), recipe.folder]
    with _output(out, began, fresh, read, recipe.output.keep_previous, plan.shards if finish else ()) as output:
        resumed = tuple(output.finished)
        try:
            if not finish:  # each part has looked at its own
                fused.check_integers()
            unwritten = [shard for shard in plan.shards if shard.file not in output.finished]
            if isinstance(out, Path):
                check_space(out, sum(shard.size for shard in unwritten) + side_bytes(plan), len(unwritten))
            hashes = _Hashes(plan)
            write_shards(
                output, list(plan.shards), result_of(fused).read_into, progress, memory, 1 if threads() == 1 else AHEAD
            )
            record, findings = _add_everything_else(output, plan, recipe, hashes.result())
            check_same(began, plan, recipe)
            left = output.publish(record)
        except TaskmergeError as error:
            if (isinstance(error, MergeError) or not output.finished) and not finish:
                output.abandon()
            raise
    return Written(
        out, plan.bytes_written, dict(output.finished), resumed, tuple(left), tuple(output.remade), tuple(findings)
    )


def _output(
    out: Path | StoreUri, identity: str, fresh: bool, read: list[Path], keep: bool, expected: Sequence[ShardLayout]
) -> OutputFolder | StoreFolder:
    """Where the model goes. expected: what parts must have written already."""
    if isinstance(out, StoreUri):
        if keep:
            what = "`output: keep_previous` renames a folder, which is not possible in a store"
            raise UsageError(what, str(out), "leave it out and write to another uri")
        from taskmerge.checkpoints.output.store_folder import StoreFolder  # loaded where there is a store

        return StoreFolder(out, identity, fresh, read, expected=expected)
    return PartsFolder(out, identity, fresh, read, keep=keep).expect(expected)


def check_same(began: str, plan: Plan, recipe: Recipe) -> None:
    """Raise CheckpointError if anything that the result depends on has changed, whether it was read or not."""
    for state_dict in every_input(plan).values():
        for file in state_dict.beside.files.values():
            file.check()
        if (far := mirrored(state_dict.beside.folder)) is not None:
            far.check()
    if began and identity(plan, recipe) != began:
        raise CheckpointError(
            "configs, tokenizers, covariances or code of the inputs were written to while they were being read",
            ", ".join(str(folder) for folder in folders_of(every_input(plan).values())),
            "run it again when no other program writes to them",
        )


def _add_everything_else(
    output: OutputFolder | StoreFolder, plan: Plan, recipe: Recipe, inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], Sequence[str]]:
    """Writes the files next to the weights; returns the record, and the information that the card leaves open."""
    add_side_files(output, plan, recipe.output.dtype)
    record = provenance.describe(plan, recipe.text, recipe.folder, output.final, inputs)
    made = card(output.final.name, record, reading(output.small), kept=kept_card(plan.inputs[BASE].beside.folder))
    output.add_text(CARD, made.text)
    return record, made.findings


class _Hashes:
    """sha256 of all inputs, and other slow parts of the record, in a thread during the merge."""

    def __init__(self, plan: Plan) -> None:
        self._table: dict[str, Any] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(plan,), daemon=True)
        self._thread.start()

    def _run(self, plan: Plan) -> None:
        try:
            provenance.versions()
            self._table = as_read(described(every_input(plan)))
        except BaseException as error:
            self._failure = error

    def result(self) -> dict[str, Any]:
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._table
