"""fuse."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taskmerge.cli.options import CACHE_SIZE, DEVICE, HTML, JSON, ON, OUT_PLACE
from taskmerge.cli.output import announce_preparing, next_move, note, print_json, print_table, progress, say
from taskmerge.cli.pages import check_html, write_fusion
from taskmerge.errors import UsageError
from taskmerge.words.places import StoreUri, output_place
from taskmerge.words.sizes import parse_size, show_bytes
from taskmerge.words.tables import counted

if TYPE_CHECKING:
    from taskmerge.merging import Plan, Written
    from taskmerge.merging.parts import Job
    from taskmerge.recipes import Recipe
    from taskmerge.words.parts import Part

RECIPE = typer.Argument(
    help="The recipe: a YAML file (`taskmerge schema` describes it; mergekit configurations are accepted too)."
)


def fuse(
    recipe: Path = RECIPE,
    out: Any = OUT_PLACE,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Check everything and print the plan, without writing anything."
    ),
    device: str = DEVICE,
    memory: str = typer.Option(
        "1GiB", "--memory", help="Memory that an elementwise merge may use, not counting mapped inputs."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Replace an existing output and discard an unfinished one."),
    resume: bool = typer.Option(
        True, "--resume/--no-resume", help="Continue from the finished files of an interrupted run (the default)."
    ),
    sweep: list[str] = typer.Option(
        [], "--sweep", help="Try a grid of values and print a table: scale=0.1:1.0:0.1, density=0.1,0.2; repeatable."
    ),
    keep: str = typer.Option(None, "--keep", help="With --sweep: `best` writes the model with the best score."),
    part: str = typer.Option(
        None,
        "--part",
        help="Write only this part of the files: 2/8 is the second of eight. Other processes write the other "
        "parts; `--finish` publishes the output.",
    ),
    measure: bool = typer.Option(
        False,
        "--measure",
        help="With --part: measure statistics of the complete model (`trim: model`) without writing files.",
    ),
    finish: bool = typer.Option(False, "--finish", help="Check the files of all parts and publish the output."),
    on: str = ON,
    cache_size: str = CACHE_SIZE,
    html: Path = HTML,
    compare: bool = typer.Option(
        False, "--compare", help="With --html: also compare the task vectors on the page (reads all inputs once more)."
    ),
    as_json: bool = JSON,
) -> None:
    """Fuse the specialists of a recipe into one model.

    With --sweep, merge every point of a grid in memory and print a table, with scores on the pairs of the recipe's
    `search` or `evaluate` section if it has one. Nothing is written without --keep best.
    """
    from taskmerge.merging import plan
    from taskmerge.words.devices import parse_device

    allowed, device = parse_size(memory), parse_device(device)
    cache = _cache(cache_size)
    share = _share(part, measure, finish, dry_run, resume)
    _check_together(share is not None or finish, bool(sweep) or keep is not None, on)
    if sweep and keep is None:
        _check_sweep({"--out": out is not None, "--fresh": fresh, "--no-resume": not resume, "--dry-run": dry_run,
                      "--on": on is not None})  # fmt: skip
    _check_page(html, compare, dry_run, share is not None, bool(sweep) and keep is None)
    chosen, before = None, None
    if sweep or keep is not None:
        from taskmerge.cli.sweeping import swept

        chosen, before = swept(recipe, sweep, keep, device, as_json)
        if chosen is None:
            return
    merges = _documents(recipe, out, share is not None or finish) if chosen is None else [chosen]
    done: list[dict[str, Any]] = []
    for said in merges:
        decided = plan(said)
        target = _output(out if said is merges[-1] else None, said.output.path, said.folder, recipe)
        for warning in decided.warnings:
            note(f"warning: {warning}")
        for line in () if as_json else decided.notes:
            note(line)
        if dry_run:
            show_plan(decided, target, allowed, as_json, len(merges) - 1)
            if len(merges) > 1:
                note(f"{counted(len(merges) - 1, 'more document')}, planned when the inputs exist")
            return
        page = html if said is merges[-1] else None
        how = _How(device, allowed, fresh, resume, share, measure, finish, on, cache, page, compare, as_json)
        done.append(_write(decided, said, target, how))
    if as_json:
        last = done[-1] if len(done) == 1 else {"merges": done}
        print_json(last if before is None else {**before, "written": last})


@dataclass(frozen=True)
class _How:
    """How to write a planned merge, according to the options."""

    device: str
    memory: int
    fresh: bool
    resume: bool
    share: Part | None
    measure: bool
    finish: bool
    on: str | None
    cache: int | None
    html: Path | None
    compare: bool
    as_json: bool


def _documents(recipe: Path, out: Path | StoreUri | None, by_parts: bool) -> list[Recipe]:
    """The merges of a file, of which only the last one may leave its output to --out."""
    from taskmerge.checkpoints.output.replacing import absolute
    from taskmerge.recipes import load_all

    place = absolute(out if isinstance(out, Path) else recipe.with_suffix(""))
    merges = load_all(recipe, place.parent / f"{place.stem}-documents")
    if len(merges) > 1 and by_parts:
        raise UsageError(
            f"{recipe} contains {len(merges)} merges; --part writes one", next_move="put each merge into its own file"
        )
    return merges


def _cache(text: str | None) -> int | None:
    """What `--cache-size` says; ranges of models in stores are kept from now on."""
    if text is None:
        return None
    from taskmerge.checkpoints.stores.cached import use_cache

    size = parse_size(text)
    kept = use_cache(size)
    place = kept.folder if kept is not None else ""
    note(f"ranges of models in s3://, gs://, az:// and hf:// are kept in {place}, at most {show_bytes(size)}")
    return size


def _write(decided: Plan, said: Recipe, target: Path | StoreUri, how: _How) -> dict[str, Any]:
    """Write one planned merge: completely, a part of it, or on a cluster. Returns what --json tells of it."""
    from taskmerge.merging import execute

    began = time.monotonic()
    announce_preparing()
    if how.on is not None or how.share is not None:
        from taskmerge.merging.parts import Job

        job = Job(decided, said, target, how.device, how.fresh)
        if how.share is not None:
            return _fuse_part(job, how.share, how.measure, how.memory, how.as_json)
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
    seconds = time.monotonic() - began
    if how.html is not None:
        write_fusion(
            how.html, decided, said, written, seconds, compare=how.compare, device=how.device, quiet=how.as_json
        )
    return _show_written(written, seconds, decided, how.as_json, by_parts=by_parts)


def _check_sweep(given: Mapping[str, bool]) -> None:
    """Raise UsageError for options of a model that is written, which a table alone does not use."""
    if ignored := [option for option, is_given in given.items() if is_given]:
        raise UsageError(
            f"--sweep without --keep best writes no model: {', '.join(ignored)} does not apply",
            next_move="add --keep best, or leave it out",
        )


def _check_together(by_parts: bool, sweeping: bool, on: str | None) -> None:
    """Raise UsageError for options that cannot be combined."""
    if sweeping and by_parts:
        raise UsageError(
            "--sweep tries several merges, --part writes one",
            next_move="run --sweep first, then write the best merge in parts",
        )
    if on is None:
        return
    from taskmerge.words.ray_cluster import parse_launcher

    parse_launcher(on)
    if by_parts:
        raise UsageError("--on writes all parts and publishes the output", next_move="leave out --part and --finish")


def _check_page(html: Path | None, compare: bool, dry_run: bool, is_part: bool, sweeping: bool) -> None:
    """Raise UsageError for a page of what is not written, OutputError for one that may not be."""
    if html is None:
        if compare:
            raise UsageError("--compare shows task vectors on a page", next_move="give the page: --compare --html FILE")
        return
    for given, option, move in (
        (
            dry_run,
            "--dry-run",
            "leave out one of them; `taskmerge compare --html` writes a page of the task vectors alone",
        ),
        (is_part, "--part", "pass --html to `taskmerge fuse --finish`"),
        (
            sweeping,
            "--sweep",
            "add --keep best: the best model is written, with its page; `taskmerge search` writes a page of all points",
        ),
    ):
        if given:
            raise UsageError(f"--html shows a complete output, and {option} does not write one", next_move=move)
    check_html(html)


def _share(part: str | None, measure: bool, finish: bool, dry_run: bool, resume: bool) -> Part | None:
    """Return the value of `--part`. Raise UsageError for options that cannot be combined."""
    from taskmerge.words.parts import parse_part

    if measure and part is None:
        raise UsageError("--measure works on one part", next_move="give the part: --measure --part 1/8")
    if finish and part is not None:
        raise UsageError(
            "--part writes one part, --finish publishes all parts", next_move="run --finish when all parts are written"
        )
    if (finish or part is not None) and (dry_run or not resume):
        option = "--dry-run" if dry_run else "--no-resume"
        raise UsageError(
            f"{option} works on the complete output", next_move=f"leave out {option}, or --part and --finish"
        )
    return None if part is None else parse_part(part)


def _write_on_ray(job: Job, on: str, memory: int, cache: int | None, as_json: bool) -> None:
    from taskmerge.merging.on_ray import write_parts
    from taskmerge.words.ray_cluster import parse_launcher

    address = parse_launcher(on)
    with progress(job.plan.bytes_written, "fusing on Ray", quiet=as_json) as advance:
        write_parts(job, address, memory=memory, cache=cache, done=advance)


def _fuse_part(job: Job, part: Part, measure: bool, memory: int, as_json: bool) -> dict[str, Any]:
    from taskmerge.merging.parts import execute_part, measure_part

    if measure:
        done, said = measure_part(job, part)
        if not as_json:
            note(f"part {part}: {said}")
        return {"part": str(part), "done": done, "next": said}
    began, size = time.monotonic(), sum(shard.size for shard in part.share(job.plan.shards))
    if not size:
        note(
            f"part {part}: nothing to write, because there are only {len(job.plan.shards)} files (`output: "
            "shard_size` makes more)"
        )
    with progress(size, f"part {part}", quiet=as_json) as advance:
        written = execute_part(job, part, progress=advance, memory=memory)
    return _show_written(written, time.monotonic() - began, job.plan, as_json, published=False)


def _output(given: Path | StoreUri | None, said: str | None, folder: Path, recipe: Path) -> Path | StoreUri:
    if given is not None:
        return given
    if said is None:
        raise UsageError("no output folder", str(recipe), "give --out FOLDER, or output: {path: ...} in the recipe")
    return output_place(said, folder)


def show_plan(plan: Plan, target: Path | StoreUri, memory: int, as_json: bool, more: int = 0) -> None:
    """Print the plan of a fuse: per component, and per tensor in JSON."""
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
            "ways": [{**way, "how": how} for how, way in _ways(plan)],
            "tensors": {step.info.name: sentence(step) for step in plan.steps},
            "dropped": {f"{drop.source.label}:{drop.source.name}": drop.rule for drop in plan.dropped},
            "warnings": list(plan.warnings),
            "notes": list(plan.notes),
            "more_documents": more,
        }
        print_json(table)
        return
    rows = [(way["component"], _DONE[way["action"]], way["method"], way["tensors"], how) for how, way in _ways(plan)]
    print_table(("component", "action", "method", "tensors", "how"), rows, "plan")
    if asked := [drop for drop in plan.dropped if drop.asked]:
        note(f"the recipe leaves out {counted(len(asked), 'input tensor')} (--json lists them)")
    note(
        f"reads {show_bytes(plan.bytes_read)}, writes {show_bytes(plan.bytes_written)} in "
        f"{counted(len(plan.shards), 'file')} to {target}; at most {show_bytes(peak)} of memory, not counting "
        f"mapped inputs"
    )


_DONE = {"merge": "merged", "keep": "kept", "copy": "copied"}


def _ways(plan: Plan) -> list[tuple[str, dict[str, Any]]]:
    """(in words, component, action, method, how many tensors) of every way in which tensors are treated."""
    from taskmerge.merging.provenance import sentence

    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for step in plan.steps:
        key = (step.component, step.action, sentence(step))
        method = step.method if step.action == "merge" else None
        row = {"component": step.component, "action": step.action, "method": method, "tensors": 0}
        found.setdefault(key, row)["tensors"] += 1
    order = list(_DONE)
    return [(key[2], found[key]) for key in sorted(found, key=lambda key: (key[0], order.index(key[1]), key[2]))]


def _show_written(
    written: Written,
    seconds: float,
    decided: Plan,
    as_json: bool,
    published: bool = True,
    by_parts: bool = False,
) -> dict[str, Any]:
    table = {
        "path": str(written.path),
        "bytes": written.bytes,
        "seconds": seconds,
        "sha256": dict(written.sha256),
        "resumed": list(written.resumed),
        "remade": list(written.remade),
        "warnings": list(decided.warnings),
        "notes": list(decided.notes),
        "left": list(written.left),
        "card": list(written.card),
        "published": published,
    }
    if as_json:
        return table
    for file in written.remade:
        note(f"{file}: changed since the interrupted run wrote it; written again")
    for path in written.left:
        note(f"left in place: {path}")
    if by_parts:
        note(f"{len(written.resumed):,} files, written by their parts")
    for file in () if by_parts else written.resumed:
        note(f"{file}: reused from the interrupted run")
    note(f"{show_bytes(written.bytes)} in {seconds:.1f} s: {written.path}")
    for line in written.card:
        note(f"model card: {line}")
    if published:
        next_move(f"taskmerge verify {written.path}, or taskmerge push {written.path} owner/name --dry-run")
        say(written.path)
    else:
        note("not published yet: run `--finish` when all parts are written")
    return table


COMMANDS = (fuse,)
