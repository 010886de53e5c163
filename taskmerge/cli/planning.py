"""The plan of a run: a table of the time, memory and disk space of each stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.cli.output import note, print_json, print_table
from taskmerge.cli.watching import duration
from taskmerge.words.sizes import parse_size, show_bytes
from taskmerge.words.tables import counted

if TYPE_CHECKING:
    from taskmerge.pipeline import Run
    from taskmerge.recipes import Recipe
    from taskmerge.training.planning import Machine

_HEADS = ("stage", "pairs", "steps", "batch", "trained", "frozen", "weights", "gradients", "optimizer", "activations",
          "per device", "disk", "time")  # fmt: skip


def show_run_plan(recipe: Recipe, out: Path | None, assume: str | None, processes: int, as_json: bool) -> None:
    """Print the time, memory and disk space of every stage. assume: devices to plan for; None: those of this
    machine."""
    from taskmerge.pipeline import Places, Run
    from taskmerge.pipeline.planned import machine_of, planned

    current = Run(recipe, Places.of(recipe, out))
    machine = machine_of(assume) if assume is not None else _here(current, processes)
    rows = planned(current, machine)
    if as_json:
        print_json({"devices": machine.count, "memory": machine.memory, "speed": machine.speed,
                    "stages": [row.as_dict() for row in rows]})  # fmt: skip
        return
    print_table(_HEADS, [_cells(row) for row in rows], "plan")
    for row in rows:
        for text in row.notes:
            note(f"{row.stage}: {text}")
    disk = sum(row.disk for row in rows if row.runs)
    hours = sum(row.hours or 0 for row in rows if row.runs)
    note(
        f"{counted(machine.count, 'device')} of {show_bytes(machine.memory)}, assumed to "
        f"do {machine.speed / 1e12:.3g} TFLOP/s each; {show_bytes(disk)} of disk, {duration(hours * 3600)} "
        "of training in total. The time does not include decoding, encoding with frozen towers, fusing and "
        "measuring."
    )


def _here(current: Run, processes: int) -> Machine:
    """This machine: its GPUs, else its memory shared by the processes."""
    import torch

    from taskmerge.pipeline.planned import SPEED
    from taskmerge.training.planning import Machine

    if torch.cuda.is_available():
        count = processes if processes > 1 else 1
        return Machine(count, int(torch.cuda.get_device_properties(0).total_memory), SPEED)
    import os

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else parse_size("8GiB")
    return Machine(processes, memory // processes, 20e9 * (os.cpu_count() or 1) / processes)


def _cells(row: Any) -> tuple[Any, ...]:
    pairs = ", ".join(f"{name} {count:,}" if count is not None else f"{name} ?" for name, count in row.pairs.items())
    stage = row.stage if row.runs else f"{row.stage} (done)"
    if row.needs is None:
        return (stage, pairs, row.steps or "", row.batch, *[""] * 7, show_bytes(row.disk) if row.disk else "", "")
    found = row.needs
    sizes = (found.weights, found.gradients, found.optimizer, found.activations, found.total, row.disk)
    counts = (f"{found.trained / 1e6:,.1f} M", f"{found.frozen / 1e6:,.0f} M")
    return (stage, pairs, row.steps, row.batch, *counts, *map(show_bytes, sizes), duration(row.hours * 3600))
