"""doctor."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import typer

from taskmerge.cli.options import JSON
from taskmerge.cli.output import print_json, print_table
from taskmerge.words.sizes import show_bytes

_LIBRARIES = {
    "torch": "matrix methods, GPUs, training",
    "numba": "compiled kernels",
    "safetensors": "reading and writing",
    "huggingface_hub": "hub ids",
    "transformers": "classes, tokenizers",
    "tokenizers": "tokenizers",
    "einops": "reshaping",
    "peft": "extra [train]: low-rank training",
    "sentence-transformers": "extra [train]: embedders, training",
    "datasets": "extra [train]",
    "accelerate": "extra [train]: several processes",
    "soundfile": "extra [audio]: sound files",
    "soxr": "extra [audio]: resampling",
    "mteb": "extra [eval]",
    "matplotlib": "extra [plots]",
}
_REQUIRED = ("torch", "numba", "safetensors", "huggingface_hub", "transformers", "tokenizers", "einops")
_OFTEN_BROKEN = ("torchvision", "torchaudio")


def doctor(as_json: bool = JSON) -> None:
    """Show what works on this machine: versions, devices, disk space, and libraries that are installed but broken."""
    rows = [*_machine(), *(_library(name, use) for name, use in _LIBRARIES.items())]
    rows += [_import_works(name) for name in _OFTEN_BROKEN if importlib.util.find_spec(name)]
    if importlib.util.find_spec("torch"):
        rows.append(_devices())
    if as_json:
        table = [{"what": what, "found": found, "state": state, "note": text} for what, found, state, text in rows]
        print_json({"rows": table})
    else:
        print_table(("what", "found", "state", "note"), rows)
    if any(state == "broken" for _, _, state, _ in rows):
        raise typer.Exit(1)


Row = tuple[str, str, str, str]


def _machine() -> list[Row]:
    disk = shutil.disk_usage(Path.cwd())
    from taskmerge.kernels.threads import available_cores

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return [
        ("python", platform.python_version(), "ok" if sys.version_info >= (3, 10) else "broken", "3.10 or newer"),
        ("cores", str(available_cores()), "ok", platform.machine()),
        ("memory", show_bytes(memory), "ok", "a merge needs about 1 GB for a model of any size"),
        (
            "free disk space",
            show_bytes(disk.free),
            "ok",
            "an output is written completely next to its final path, then renamed",
        ),
        (
            "hub",
            "offline" if offline else "online",
            "ok",
            "HF_HUB_OFFLINE" if offline else "HF_HUB_OFFLINE=1: cache only",
        ),
    ]


def _library(name: str, use: str) -> Row:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return name, version(name), "ok", use
    except PackageNotFoundError:
        return name, "", "broken" if name in _REQUIRED else "absent", use


def _import_works(name: str) -> Row:
    """Import a library in a separate process: one built for another torch would fail there.

    The current folder is left out, because Python would take its files for libraries.
    """
    from importlib.metadata import version

    code = f"import sys; sys.path.remove(''); import {name}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return name, version(name), "ok", "not needed by taskmerge"
    last = found.stderr.strip().splitlines()[-1:] or ["its import ended without a message"]
    return name, version(name), "broken", f"{last[0]}: install the version for your torch, or uninstall it"


def _devices() -> Row:
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return "devices", ", ".join(["cpu", *devices]), "ok", "--device cuda" if devices else "no GPU (not required)"


COMMANDS = (doctor,)
