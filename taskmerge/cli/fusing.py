"""fuse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taskmerge.cli.options import CACHE_SIZE, DEVICE, JSON, ON, OUT_PLACE
from taskmerge.cli.output import announce_preparing, note, print_json, print_table, progress, say
from taskmerge.errors import UsageError
from taskmerge.words.places import StoreUri, output_place
from taskmerge.words.sizes import parse_size, show_bytes

if TYPE_CHECKING:
    from taskmerge.merging import Plan, Written
    from taskmerge.merging.parts import Job
    from taskmerge.recipes import Recipe
    from taskmerge.words.parts import Part

RECIPE = typer.Argument(help="The recipe: a YAML file (`taskmerge schema` describes it; mergekit's are read too).")


def fuse(
    recipe: Path = RECIPE,
    out: Any = OUT_PLACE,
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything and print the plan; write nothing."),
    device: str = DEVICE,
    memory: str = typer.Option("1GiB", "--memory", help="What an elementwise merge may use besides mapped inputs."),
    fresh: bool = typer.Option(False, "--fresh", help="Replace an existing output and forget an unfinished one."),
    resume: bool = typer.Option(
        True, "--resume/--no-resume", help="Go on from the finished files of an interrupted run (the default)."
    ),
    sweep: list[str] = typer.Option(
        [], "--sweep", help="A grid instead of one merge, as a table: scale=0.1:1.0:0.1, density=0.1,0.2; repeatable."
    ),
    keep: str = typer.Option(None, "--keep", help="Of a sweep: `best` writes the model that scores best."),
    part: str = typer.Option(
        None,
        "--part",
        help="Write this share of the files only: 2/8 is the second of eight. Other processes write the "
        "others, `--finish` publishes them.",
    ),
    measure: bool = typer.Option(
        False,
        "--measure",
        help="With --part: count what is measured over the whole model (`trim: model`), write nothing.",
    ),
    finish: bool = typer.Option(False, "--finish", help="Check what all parts have written, and publish it."),
    on: str = ON,
    cache_size: str = CACHE_SIZE,
    as_json: bool = JSON,
) -> None:
    """Fuse the specialists of a recipe into one model.

    With --sweep every point of a grid is merged in memory and told in a table, scored on the pairs of the recipe's
    `search` or `evaluate` where it has some; nothing is written without --keep best.
    """
    from taskmerge.checkpoints.output.replacing import absolute
    from taskmerge.merging import plan
    from taskmerge.recipes import load_all
    from taskmerge.words.devices import parse_device

    allowed, device = parse_size(memory), parse_device(device)
    cache = _cache(cache_size)
    share = _share(part, measure, finish, dry_run, resume)
    _check_together(share is not None or finish, bool(sweep) or keep is not None, on)
    chosen = None
    if sweep or keep is not None:
        from taskmerge.cli.sweeping import swept

        if (chosen := swept(recipe, sweep, keep, device, as_json)) is None:
            return
    place = absolute(out if isinstance(out, Path) else recipe.with_suffix(""))
    merges = load_all(recipe, place.parent / f"{place.stem}-documents") if chosen is None else [chosen]
    if len(merges) > 1 and (share is not None or finish):
        raise UsageError(f"{recipe} holds {len(merges)} merges", next_move="parts are of one: a file for each")
    for said in merges:
        decided = plan(said)
        target = _output(out if said is merges[-1] else None, said.output.path, said.folder, recipe)
        for warning in decided.warnings:
            note(f"warning: {warning}")
        for line in () if as_json else decided.notes:
            note(line)
        if dry_run:
            show_plan(decided, target, allowed, as_json)
            if len(merges) > 1:
                note(f"{len(merges) - 1} more documents; each is planned when what it is made from is there")
            return
        how = _How(device, allowed, fresh, resume, share, measure, finish, on, cache, as_json)
        _write(decided, said, target, how)


@dataclass(frozen=True)
class _How:
    """How a planned merge is written, as the options say."""

    device: str
    memory: int
    fresh: bool
    resume: bool
    share: Part | None
    measure: bool
    finish: bool
    on: str | None
    cache: int | None
    as_json: bool


def _cache(text: str | None) -> int | None:
    """What `--cache-size` says; ranges of models in stores are kept from now on."""
    if text is None:
        return None
    from taskmerge.checkpoints.stores.cached import use_cache

    size = parse_size(text)
    kept = use_cache(size)
    place = kept.folder if kept is not None else ""
    note(f"ranges of models in s3://, gs:// and az:// are kept in {place}, at most {show_bytes(size)}")
    return size


def _write(decided: Plan, said: Recipe, target: Path | StoreUri, how: _How) -> None:
    """Write one planned merge: whole, a part of it, or on a cluster."""
    from taskmerge.merging import execute

    began = time.monotonic()
    announce_preparing()
    if how.on is not None or how.share is not None:
        from taskmerge.merging.parts import Job

        job = Job(decided, said, target, how.device, how.fresh)
        if how.share is not None:
            _fuse_part(job, how.share, how.measure, how.memory, how.as_json)
            return
        _write_on_ray(job, str(how.on), how.memory, how.cache, how.as_json)
    by_parts = how.finish or how.on is not None
    with progress(decided.bytes_written, "fusing", quiet=how.as_json) as advance:
        written = execute(
            decided,
            said,
            target,
            device=how.device,
            fresh=how.fresh or not how.resume,
            progress=advance,
            memory=how.memory,
            finish=by_parts,
        )
    _show_written(written, time.monotonic() - began, decided.notes, how.as_json, by_parts=by_parts)


def _check_together(by_parts: bool, sweeping: bool, on: str | None) -> None:
    """Raise UsageError for options that do not go together."""
    if sweeping and by_parts:
        raise UsageError("--sweep tries merges, --part writes one", next_move="sweep first, then write the winner")
    if on is None:
        return
    from taskmerge.merging.on_ray import parse_launcher

    parse_launcher(on)
    if by_parts:
        raise UsageError("--on writes all parts and publishes them", next_move="leave out --part and --finish")


def _share(part: str | None, measure: bool, finish: bool, dry_run: bool, resume: bool) -> Part | None:
    """What `--part` says. Raises UsageError for options that do not go together."""
    from taskmerge.words.parts import parse_part

    if measure and part is None:
        raise UsageError("--measure counts in one part", next_move="say which: --measure --part 1/8")
    if finish and part is not None:
        raise UsageError(
            "--part writes one share, --finish publishes all", next_move="run --finish when all are written"
        )
    if (finish or part is not None) and (dry_run or not resume):
        option = "--dry-run" if dry_run else "--no-resume"
        raise UsageError(f"{option} is for the whole output", next_move="leave it out, or --part and --finish")
    return None if part is None else parse_part(part)


def _write_on_ray(job: Job, on: str, memory: int, cache: int | None, as_json: bool) -> None:
    from taskmerge.merging.on_ray import parse_launcher, write_parts

    address = parse_launcher(on)
    with progress(job.plan.bytes_written, "fusing on Ray", quiet=as_json) as advance:
        write_parts(job, address, memory=memory, cache=cache, done=advance)


def _fuse_part(job: Job, part: Part, measure: bool, memory: int, as_json: bool) -> None:
    from taskmerge.merging.parts import execute_part, measure_part

    if measure:
        done, said = measure_part(job, part)
        print_json({"part": str(part), "done": done, "next": said}) if as_json else note(f"part {part}: {said}")
        return
    began, size = time.monotonic(), sum(shard.size for shard in part.share(job.plan.shards))
    if not size:
        note(f"part {part}: nothing to write, there are {len(job.plan.shards)} files (`output: shard_size` makes more)")
    with progress(size, f"part {part}", quiet=as_json) as advance:
        written = execute_part(job, part, progress=advance, memory=memory)
    _show_written(written, time.monotonic() - began, job.plan.notes, as_json, published=False)


def _output(given: Path | StoreUri | None, said: str | None, folder: Path, recipe: Path) -> Path | StoreUri:
    if given is not None:
        return given
    if said is None:
        raise UsageError("no output folder", str(recipe), "give --out FOLDER, or output: {path: ...} in the recipe")
    return output_place(said, folder)


def show_plan(plan: Plan, target: Path | StoreUri, memory: int, as_json: bool) -> None:
    """What a fuse would do: per component, and per tensor in JSON."""
    from taskmerge.merging.provenance import sentence

    peak = max(memory, plan.whole_tensor_bytes)
    if as_json:
        table: dict[str, Any] = {
            "output": str(target),
            "bytes_read": plan.bytes_read,
            "bytes_written": plan.bytes_written,
            "peak_memory": peak,
            "files": {shard.file: shard.size for shard in plan.shards},
            "components": {name: dict(counts) for name, counts in plan.table().items()},
            "tensors": {step.info.name: sentence(step) for step in plan.steps},
            "dropped": {f"{drop.source.label}:{drop.source.name}": drop.rule for drop in plan.dropped},
            "warnings": list(plan.warnings),
            "notes": list(plan.notes),
        }
        print_json(table)
        return
    rows = [
        (component, counts["merge"], counts["keep"], counts["copy"], _ways(plan, component))
        for component, counts in sorted(plan.table().items())
    ]
    print_table(("component", "merged", "kept", "copied", "how"), rows, "plan")
    if asked := [drop for drop in plan.dropped if drop.asked]:
        note(f"{len(asked)} input tensors do not reach the output, as the recipe says (--json lists them)")
    note(
        f"reads {show_bytes(plan.bytes_read)}, writes {show_bytes(plan.bytes_written)} "
        f"in {len(plan.shards)} file(s) to {target}; at most {show_bytes(peak)} of memory besides mapped inputs"
    )


def _ways(plan: Plan, component: str) -> str:
    from taskmerge.merging.provenance import sentence

    ways = list(dict.fromkeys(sentence(step) for step in plan.steps if step.component == component))
    return ways[0] + (f" (and {len(ways) - 1} more)" if len(ways) > 1 else "")


def _show_written(
    written: Written,
    seconds: float,
    notes: Sequence[str],
    as_json: bool,
    published: bool = True,
    by_parts: bool = False,
) -> None:
    if as_json:
        table = {
            "path": str(written.path),
            "bytes": written.bytes,
            "seconds": seconds,
            "sha256": dict(written.sha256),
            "resumed": list(written.resumed),
            "remade": list(written.remade),
            "notes": list(notes),
            "left": list(written.left),
            "published": published,
        }
        print_json(table)
        return
    for file in written.remade:
        note(f"{file}: no longer what the interrupted run had written; made again")
    for path in written.left:
        note(f"left where it was: {path}")
    if by_parts:
        note(f"{len(written.resumed):,} files, as their parts have written them")
    for file in () if by_parts else written.resumed:
        note(f"{file}: taken over from the interrupted run")
    note(f"{show_bytes(written.bytes)} in {seconds:.1f} s: {written.path}")
    if published:
        say(written.path)
    else:
        note("not published yet: `--finish` does when all parts are written")


COMMANDS = (fuse,)
