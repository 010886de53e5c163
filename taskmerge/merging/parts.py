"""Plan -> some of its files: one process's share of a fuse that others share. `execute` publishes what they made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.output.parts import LocalParts
from taskmerge.checkpoints.output.saving import AHEAD, MEMORY, folders_of, write_weights
from taskmerge.checkpoints.output.store_folder import StoreFolder
from taskmerge.checkpoints.output.writing import check_space
from taskmerge.kernels import threads
from taskmerge.merging.execute import Progress, Written, check_same
from taskmerge.merging.few_bits import result_of, steps_in
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.identity import every_input, identity
from taskmerge.merging.measured import Measured, Measuring
from taskmerge.merging.steps import Plan
from taskmerge.recipes import Recipe
from taskmerge.words.devices import parse_device
from taskmerge.words.parts import Part
from taskmerge.words.places import StoreUri


@dataclass(frozen=True)
class Job:
    """A planned merge that several processes share. out: the model's folder. device: where the arithmetic runs. fresh:
    what was made there is to be replaced when the parts are published."""

    plan: Plan
    recipe: Recipe
    out: Path | StoreUri
    device: str = "cpu"
    fresh: bool = False

    def output(self, part: Part) -> LocalParts | StoreFolder:
        """Return the output for one part."""
        read = [*folders_of(every_input(self.plan).values()), self.recipe.folder]
        if isinstance(self.out, StoreUri):
            return StoreFolder(self.out, identity(self.plan, self.recipe), self.fresh, read, part=part)
        return LocalParts(self.out, identity(self.plan, self.recipe), part, read, self.fresh)


def measures_the_model(plan: Plan) -> bool:
    """Return whether a plan needs a measurement over the complete model, which all parts make first."""
    return bool(FusedStateDict(plan).thresholds.steps)


def measure_part(job: Job, part: Part) -> Measured:
    """Count what is measured over the whole model in a part's tensors.

    Raises what `execute_part` raises.
    """
    fused = FusedStateDict(job.plan, parse_device(job.device))
    with job.output(part) as output:
        measuring = Measuring(fused, output.notes)
        if not measuring.needed:
            return Measured(True, "this recipe needs no statistics of the complete model: write the parts")
        shards = part.share(job.plan.shards)
        return measuring.count(part, steps_in(job.plan, (name for shard in shards for name in shard.names)))


def execute_part(job: Job, part: Part, *, progress: Progress | None = None, memory: int = MEMORY) -> Written:
    """Write a part's files of the planned model, and note them as finished; nothing is published.

    What an earlier run of the part finished is read and reused. progress, memory: see `execute`.

    Raises UsageError (a device that is not available), OutputError (another process writes the same file; something is
    not measured yet; the output is another run's), MergeError, CheckpointError.
    """
    fused = FusedStateDict(job.plan, parse_device(job.device))
    shards: list[ShardLayout] = part.share(job.plan.shards)
    began = identity(job.plan, job.recipe)
    with job.output(part) as output:
        Measuring(fused, output.notes).take()
        output.take_up([shard.file for shard in shards])
        resumed = tuple(output.finished)
        unwritten = [shard for shard in shards if shard.file not in output.finished]
        if isinstance(job.out, Path):
            check_space(job.out, sum(shard.size for shard in unwritten), len(unwritten))
        fused.check_integers(steps_in(job.plan, (name for shard in shards for name in shard.names)))
        ahead = 1 if threads() == 1 else AHEAD
        write_weights(output, shards, result_of(fused).read_into, progress, memory, ahead)
        check_same(began, job.plan, job.recipe)
        finished = dict(output.finished)
    return Written(job.out, sum(shard.size for shard in shards), finished, resumed, (), tuple(output.remade))
