"""verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from taskmerge.cli.options import DEVICE, JSON, ON
from taskmerge.cli.output import note, print_json, print_table, progress, say
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from taskmerge.checkpoints.output.checking import Checked
    from taskmerge.words.parts import Part


def verify(
    model: str = typer.Argument(
        help="A folder that taskmerge made; with --base or --recipe, a merge made by any program."
    ),
    hashes_only: bool = typer.Option(
        False, "--hashes-only", help="Compare only the sha256 and the plan, without merging again."
    ),
    recipe_folder: Path | None = typer.Option(
        None, help="Folder in which the recipe's relative paths start, if the model was moved."
    ),
    method: list[str] = typer.Option(
        [], "--method", help="Your own merge method (file.py:name) that the recorded recipe may run; repeatable."
    ),
    base: str = typer.Option(
        None, "--base", help="The base that the model should be made from; overrides the recipe's base."
    ),
    recipe: Path = typer.Option(
        None, "--recipe", help="The merge that the model should be: a recipe, or a mergekit configuration."
    ),
    adapter: list[str] = typer.Option(
        [], "--adapter", help="An adapter that the model should contain, on top of --base."
    ),
    specialist: list[str] = typer.Option([], "--specialist", help="A specialist that the model should contain."),
    weight: list[float] = typer.Option(
        [], "--weight", help="Weight of each adapter, then of each specialist, or one for all; 1 by default."
    ),
    part: str = typer.Option(
        None, "--part", help="Check only this part of the files (2/8); the model is as recorded when every part is."
    ),
    on: str = ON,
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Check whether a model is the merge that it should be, or what it is instead.

    Without --base or --recipe, the model is compared with its own record. A fused model is merged again. For other
    models all files are hashed, and for trained models the frozen tensors are compared with those of the previous
    model. Code that the recorded recipe names is not run unless --method allows it.

    With these options, any model is checked, whichever program made it. The verdicts are: exact; within rounding; not
    applied (the base); other weights; torn (some parts match, others do not); another model. A comparison of bytes
    proves whether the text path is unchanged. Exit code 0: exact, within rounding, or as recorded; 1: anything else.
    """
    if base or recipe or adapter or specialist or weight:
        options = {"--hashes-only": hashes_only, "--recipe-folder": recipe_folder, "--method": method, "--part": part,
                   "--on": on}  # fmt: skip
        if option := next((name for name, value in options.items() if value), None):
            raise UsageError(
                f"{option} applies to a model's own record", next_move="leave it out, or --base and --recipe"
            )
        fits = _judge(model, base, recipe, (adapter, specialist, weight), device, as_json)
    else:
        fits = _as_recorded(model, (not hashes_only, recipe_folder, method), part, on, as_json)
    if not fits:
        raise typer.Exit(1)


def _as_recorded(
    model: str, how: tuple[bool, Path | None, list[str]], part: str | None, on: str | None, as_json: bool
) -> bool:
    """Whether a model is what its own record says, which is shown. how: merging again, the recipe's folder, methods."""
    from taskmerge.checkpoints.output.checking import check_made
    from taskmerge.checkpoints.output.record import read_record
    from taskmerge.merging.verify import model_folder
    from taskmerge.words.parts import parse_part

    share = None if part is None else parse_part(part)
    if part is not None and on is not None:
        raise UsageError("--on checks all parts", next_move="leave out --part")
    folder = model_folder(model)
    if read_record(folder)["kind"] == "fused":
        found = _verified(model, folder, on, how, share, as_json)
    elif share is not None or on is not None:
        raise UsageError(
            f"{model} is not a fused model: it cannot be checked in parts", next_move="leave out --part and --on"
        )
    elif how[1] is not None or how[2]:
        what = f"{model} is not a fused model: nothing is merged again"
        raise UsageError(what, next_move="leave out --recipe-folder and --method")
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
        note("differs from its record" if found.differences else "as recorded, in everything that was checked")
    return not found.differences


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
    from taskmerge.merging.on_ray import verify_parts
    from taskmerge.words.ray_cluster import parse_launcher

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
) -> bool:
    """Whether a model is the merge that is said, which is shown."""
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
    return found.fits


COMMANDS = (verify,)
