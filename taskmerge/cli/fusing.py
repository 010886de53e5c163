"""fuse, verify."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taskmerge.cli.options import DEVICE, JSON, OUT_PLACE
from taskmerge.cli.output import announce_preparing, note, print_json, print_table, progress, say
from taskmerge.errors import UsageError
from taskmerge.words.places import StoreUri, output_place
from taskmerge.words.sizes import parse_size, show_bytes

if TYPE_CHECKING:
    from taskmerge.checkpoints.output.checking import Checked
    from taskmerge.merging import Plan, Written
    from taskmerge.merging.parts import Job
    from taskmerge.words.parts import Part

ON = typer.Option(None, "--on", help="ray, or ray:ADDRESS: have a Ray cluster do it, one task a file (extra [ray]).")
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
    as_json: bool = JSON,
) -> None:
    """Fuse the specialists of a recipe into one model.

    With --sweep every point of a grid is merged in memory and told in a table, scored on the pairs of the recipe's
    `search` or `evaluate` where it has some; nothing is written without --keep best.
    """
    from taskmerge.checkpoints.output.replacing import absolute
    from taskmerge.merging import execute, plan
    from taskmerge.merging.on_ray import parse_launcher
    from taskmerge.merging.parts import Job
    from taskmerge.recipes import load_all
    from taskmerge.words.devices import parse_device

    allowed, device = parse_size(memory), parse_device(device)
    share = _share(part, measure, finish, dry_run, resume)
    if sweep or keep is not None:
        from taskmerge.cli.sweeping import swept

        if share is not None or finish:
            raise UsageError("--sweep tries merges, --part writes one", next_move="sweep first, then write the winner")
        chosen = swept(recipe, sweep, keep, device, as_json)
        if chosen is None:
            return
    if on is not None:
        parse_launcher(on)
        if share is not None or finish:
            raise UsageError("--on writes all parts and publishes them", next_move="leave out --part and --finish")
    place = absolute(out if isinstance(out, Path) else recipe.with_suffix(""))
    merges = [chosen] if sweep else load_all(recipe, place.parent / f"{place.stem}-documents")
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
        began = time.monotonic()
        announce_preparing()
        if on is not None:
            _write_on_ray(Job(decided, said, target, device, fresh), on, allowed, as_json)
        if share is not None:
            _fuse_part(Job(decided, said, target, device, fresh), share, measure, allowed, as_json)
            return
        with progress(decided.bytes_written, "fusing", quiet=as_json) as advance:
            restart = fresh or not resume
            written = execute(
                decided,
                said,
                target,
                device=device,
                fresh=restart,
                progress=advance,
                memory=allowed,
                finish=finish or on is not None,
            )
        by_parts = finish or on is not None
        _show_written(written, time.monotonic() - began, decided.notes, as_json, by_parts=by_parts)


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


def _write_on_ray(job: Job, on: str, memory: int, as_json: bool) -> None:
    from taskmerge.merging.on_ray import parse_launcher, write_parts

    address = parse_launcher(on)
    with progress(job.plan.bytes_written, "fusing on Ray", quiet=as_json) as advance:
        write_parts(job, address, memory=memory, done=advance)


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


def verify(
    model: str = typer.Argument(help="A folder that taskmerge made; with --base or --recipe, anybody's merge."),
    hashes_only: bool = typer.Option(False, "--hashes-only", help="Compare sha256 and plan; do not merge again."),
    recipe_folder: Path | None = typer.Option(
        None, help="Where the recipe's relative paths start, when the model was moved away from it."
    ),
    method: list[str] = typer.Option(
        [], "--method", help="file.py:name of your own that the recorded recipe may use; repeatable."
    ),
    base: str = typer.Option(None, "--base", help="What it should have been made from; overrides the recipe's base."),
    recipe: Path = typer.Option(None, "--recipe", help="The merge that it should be, ours or mergekit's."),
    adapter: list[str] = typer.Option([], "--adapter", help="An adapter that should be in it, over --base."),
    specialist: list[str] = typer.Option([], "--specialist", help="A model that should be in it."),
    weight: list[float] = typer.Option(
        [], "--weight", help="Of each adapter, then of each specialist; one for all; 1 by default."
    ),
    part: str = typer.Option(
        None, "--part", help="Look at this share of the files only (2/8); all is as recorded when every part says so."
    ),
    on: str = ON,
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Say whether a model is the merge that it should be, and what it is instead.

    Without --base or --recipe it is compared with its own record: a fused model is derived again, of any other every
    file is hashed, and of a trained one the tensors that were not trained are compared with those of the model before.
    No code that the recorded recipe names is run, but what --method names.

    With them: any model, whoever made it. It is exact; within rounding; the base, nothing applied; the same with other
    weights; torn, of parts that fit and parts that do not; or another model. Whether the text path was left alone is
    proved by comparing its bytes. Exit 0: exact, within rounding, or as recorded; 1: anything else.
    """
    if base or recipe or adapter or specialist or weight:
        options = {"--hashes-only": hashes_only, "--recipe-folder": recipe_folder, "--method": method, "--part": part,
                   "--on": on}  # fmt: skip
        if option := next((name for name, value in options.items() if value), None):
            raise UsageError(f"{option} is of a model's own record", next_move="leave it out, or --base and --recipe")
        _judge(model, base, recipe, (adapter, specialist, weight), device, as_json)
        return
    from taskmerge.checkpoints.output.checking import check_made
    from taskmerge.checkpoints.output.record import read_record
    from taskmerge.merging.verify import model_folder
    from taskmerge.words.parts import parse_part

    share = None if part is None else parse_part(part)
    if part is not None and on is not None:
        raise UsageError("--on looks at all parts", next_move="leave out --part")
    folder = model_folder(model)
    if read_record(folder)["kind"] == "fused":
        found = _verified(model, folder, on, (not hashes_only, recipe_folder, method), share, as_json)
    elif share is not None or on is not None:
        raise UsageError(f"{model} is no fused model: it is looked at whole", next_move="leave out --part and --on")
    else:
        found = check_made(folder)
    if as_json:
        print_json({"path": model, "same": not found.differences, **found._asdict()})
    else:
        for line in found.differences:
            say(line)
        for line in found.checked:
            note(f"checked: {line}")
        for line in found.unchecked:
            note(f"not checked: {line}")
        note("differs from its record" if found.differences else "as recorded, in all that was checked")
    if found.differences:
        raise typer.Exit(1)


def _verified(
    model: str,
    folder: Path,
    on: str | None,
    said: tuple[bool, Path | None, list[str]],
    part: Part | None,
    as_json: bool,
) -> Checked:
    from taskmerge.checkpoints.formats.table import is_weight_file
    from taskmerge.checkpoints.output.record import read_record
    from taskmerge.merging.verify import verified

    if on is None:
        return verified(folder, *said, part)
    from taskmerge.merging.on_ray import parse_launcher, verify_parts

    address = parse_launcher(on)
    files = sum(map(is_weight_file, read_record(folder)["outputs"]))
    place = model if folder != Path(model) else str(folder.absolute())
    with progress(files, "verifying on Ray", quiet=as_json) as advance:
        return verify_parts(address, files, place, *said, done=lambda: advance(1))


def _judge(
    model: str,
    base: str | None,
    recipe: Path | None,
    parts: tuple[list[str], list[str], list[float]],
    device: str,
    as_json: bool,
) -> None:
    from taskmerge.merging.judging.said import as_said
    from taskmerge.merging.judging.verdict import judge
    from taskmerge.words.devices import parse_device

    found = judge(model, as_said(base, recipe, *parts), parse_device(device))
    if as_json:
        print_json({"path": model, **found.as_dict()})
    else:
        statuses = sorted({one.status for one in found.findings})
        rows = [
            (component, *(counts[status] or "" for status in statuses))
            for component, counts in sorted(found.components().items())
        ]
        print_table(("component", *statuses), rows, "tensors")
        for line in found.notes:
            note(line)
        say(f"text path {found.text_path}")
        say(found.sentence)
    if not found.fits:
        raise typer.Exit(1)


COMMANDS = (fuse, verify)
