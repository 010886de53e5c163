"""Folders: links, pipes, devices and folders where files should be, odd names, outputs in odd places."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from random import Random

from fuzz.cases import Command, command, generator
from fuzz.generators.common import MERGE, merge_commands
from fuzz.mutation import NAMES

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "README.md",
    "model.safetensors.index.json",
    "adapter_config.json",
    "taskmerge.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "1_Pooling",
    "additional_chat_templates",
    "x",
)


@generator("merge", share=6)
def odd_files(rng: Random, room: Path) -> list[Command]:
    """A file of a model is a link (out, in, to itself, to nothing), a pipe, a folder, a device, a socket, or huge."""
    folder = room / rng.choice(("base", "one", "adapter", "two"))
    for _ in range(rng.randint(1, 2)):
        put(rng, folder / rng.choice(FILES), room)
    return merge_commands(rng) + ([rng.choice(MERGE)] if rng.random() < 0.3 else [])


def put(rng: Random, path: Path, room: Path) -> None:
    """Something odd in a file's place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    outside = room.parent / "outside"
    what = rng.randrange(8)
    if what == 0:
        path.symlink_to(outside / rng.choice(("secret.json", "precious.txt", "nowhere", "")))
    elif what == 1:
        path.symlink_to(
            rng.choice(
                (path.name, "nowhere", "..", "../base", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/passwd")
            )
        )
    elif what == 2:
        os.mkfifo(path)
    elif what == 3:
        path.mkdir()
        if rng.random() < 0.5:
            (path / "config.json").symlink_to(outside / "secret.json")
    elif what == 4:
        path.touch()
        huge(path, rng.choice((0, 1, 2**33, 2**40)))
    elif what == 5:
        other = rng.choice([file for file in sorted(room.rglob("*")) if file.is_file() and not file.is_symlink()])
        os.link(other, path)
    elif what == 6:
        import socket

        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
        os.chdir(room)
    else:
        path.write_bytes(rng.randbytes(100))


def huge(path: Path, size: int) -> None:
    """A file of that size, all hole: it takes no room."""
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, bounds[1]))
    os.truncate(path, size)
    resource.setrlimit(resource.RLIMIT_FSIZE, bounds)


@generator("tiny", share=4)
def odd_names(rng: Random, room: Path) -> list[Command]:
    """Models, files and outputs under names of markup, escape codes, other scripts, great length, leading dashes."""
    usable = [
        name
        for name in NAMES
        if 0 < len(name.encode("utf-8", "surrogatepass")) < 200
        and "/" not in name
        and "\0" not in name
        and name not in (".", "..", "\ud800")
    ]
    name = rng.choice(usable)
    (room / "one").rename(room / name)
    for _ in range(2):
        (room / "base" / rng.choice(usable)).write_bytes(b"{}")
    import yaml

    tree = {
        "base": "base",
        "specialists": {rng.choice((name, "one")): f"./{name}"},
        "merge": {"method": "ties", "density": 0.5},
    }
    (room / "recipe.yaml").write_text(yaml.safe_dump(tree))
    out = rng.choice((f"./{rng.choice(usable)}", "out"))
    every = [
        command("fuse", "recipe.yaml", f"--out={out}", writes=[out]),
        command("diff", "base", f"./{name}"),
        command("inspect", f"./{name}"),
        command("compare", "base", f"./{name}"),
        command("extract", "base", f"./{name}", f"--out={out}", writes=[out]),
        command("verify", f"./{name}"),
        command("inspect", name),
        command("compare", "base", f"{name}=./{name}"),
        command("apply", "base", f"./{name}", f"--out={out}", writes=[out]),
    ]
    return rng.sample(every, 3)


@generator("fused", share=5)
def odd_outputs(rng: Random, room: Path) -> list[Command]:
    """Outputs that are an input, its parent, a link, a file, a pipe, somebody's folder; with and without --fresh."""
    outside = room.parent / "outside"
    (room / "mine").mkdir()
    (room / "mine" / "thesis.tex").write_text("ten years")
    (room / "link").symlink_to(rng.choice((outside, room / "mine", room / "base", room / "nowhere", room / "link")))
    (room / "file").write_text("mine")
    os.mkfifo(room / "pipe")
    partial = room / rng.choice((".new.partial", ".out.partial"))
    what = rng.randrange(4)
    if what == 0:
        partial.symlink_to(outside)
    elif what == 1:
        partial.mkdir()
        (partial / "notes.txt").write_text("mine")
    elif what == 2:
        partial.write_text("mine")
    places = (
        ".",
        "..",
        "base",
        "base/new",
        "one",
        "mine",
        "mine/",
        "link",
        "link/new",
        "file",
        "file/new",
        "pipe",
        "/",
        "/proc/x",
        "/dev/null",
        "/sys/x",
        str(outside),
        "../outside/new/../../room/base",
        "recipe.yaml",
        "",
        " ",
        "s3://b/x",
        "hf://a/b",
        "x" * 300,
        "new",
        "new/a/b/c",
    )
    out = rng.choice(places)
    fresh = ["--fresh"] if rng.random() < 0.7 else []
    kind = rng.choice(
        (
            ["fuse", "recipe.yaml"],
            ["extract", "base", "one"],
            ["apply", "base", "one"],
            ["soup", "[bo]*e"],
            ["run", "recipe.yaml"],
            ["graft", "base", "--modality", "image", "--encoder", "patches"],
        )
    )
    takes = kind[0] not in ("run", "graft")
    mine = (
        [out]
        if out.startswith(("new", "base/new", "link/new", "file/new"))
        else ["out"]
        if kind[0] == "run" and out in ("", " ")
        else []
    )
    mine += [f"{out.strip('/')}-report"] if kind[0] == "run" and out.startswith(("mine", "one", "base")) else []
    return [command(*kind, "--out", out, *(fresh if takes else []), writes=mine)]
