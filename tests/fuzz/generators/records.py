"""What we wrote ourselves, damaged: records, journals, unfinished folders, stored task vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from fuzz.cases import Command, command, generator
from fuzz.generators.safetensors_files import joined, split
from fuzz.generators.trees import put
from fuzz.mutation import damage_bytes, damage_json, damaged_value, json_text


@generator("fused", share=4)
def records(rng: Random, room: Path) -> list[Command]:
    """taskmerge.json and what lies beside it: verify, replace and push must not believe it blindly."""
    files = sorted(path for path in (room / "out").iterdir() if path.is_file())
    record = room / "out" / "taskmerge.json"
    what = rng.random()
    if what < 0.6:
        damage_json(rng, record)
    elif what < 0.75:
        damage_bytes(rng, rng.choice(files))
    elif what < 0.9:
        put(rng, rng.choice(files), room)
    else:
        table = json.loads(record.read_text())
        record.write_text(json.dumps(_elsewhere(rng, table, room)))
    return [
        command("verify", "out"),
        command("verify", "out", "--hashes-only", "--json"),
        command("verify", "out", "--recipe-folder", "."),
        command("fuse", "recipe.yaml", *(["--fresh"] if rng.random() < 0.5 else []), writes=["out"]),
        command("inspect", "out"),
    ]


def _elsewhere(rng: Random, table: object, room: Path) -> object:
    """A record whose texts name other places."""
    text = json.dumps(table)
    for old in ("model.safetensors", "recipe.yaml", "base", "config.json"):
        if rng.random() < 0.5:
            text = text.replace(
                old, rng.choice((f"../{old}", "/etc/passwd", "../../outside/secret.json", "x\\\\y", "\\u001b[1m"))
            )
    return json.loads(text)


@generator("fused", share=4)
def unfinished(rng: Random, room: Path) -> list[Command]:
    """.out.partial as a killed run leaves it, then damaged: journal, finished files, strangers' files in it."""
    partial = room / ".out.partial"
    (room / "out").rename(partial)
    (partial / "taskmerge.json").rename(room / "record.json")
    weights = sorted(partial.glob("*.safetensors"))
    journal = {"identity": "x", "finished": {path.name: "0" * 64 for path in weights}}
    what = rng.random()
    if what < 0.5:
        (partial / ".taskmerge-journal.json").write_bytes(json_text(rng, damaged_value(rng, journal)))
    else:
        (partial / ".taskmerge-journal.json").write_text(json.dumps(journal))
        put(
            rng,
            rng.choice(
                (partial / ".taskmerge-journal.json", partial / ".lock", weights[0], partial / "notes.txt", partial)
            ),
            room,
        )
    (room / "record.json").unlink()
    fresh = ["--fresh"] if rng.random() < 0.5 else []
    return [
        command("fuse", "recipe.yaml", *fresh, writes=["out"]),
        command("fuse", "recipe.yaml", "--no-resume", writes=["out"]),
    ]


FORMS = ("dense", "sparse", "low_rank", "sign", "lora")


@generator("vectors", share=5)
def stored_vectors(rng: Random, room: Path) -> list[Command]:
    """Task vectors in every stored form: their marks, headers, shapes and bytes damaged, one form's file in another."""
    form = rng.choice(FORMS)
    folder = room / form
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix == ".json"]
    what = rng.random()
    if what < 0.4:
        damage_json(rng, rng.choice(tables))
    elif what < 0.6:
        path = rng.choice([path for path in files if path.suffix == ".safetensors"])
        table, data = split(path.read_bytes())
        names = [name for name in table if name != "__metadata__"]
        row = table[rng.choice(names)]
        row["shape"] = rng.choice((row["shape"][::-1], [*row["shape"], 1], [0], []))
        if rng.random() < 0.5:
            row["dtype"] = rng.choice(("I32", "U8", "F16", "BF16"))
        if rng.random() < 0.5:
            table[rng.choice(names) + "x"] = table.pop(rng.choice(names))
        path.write_bytes(joined(json.dumps(table).encode(), data))
    elif what < 0.75:
        damage_bytes(rng, rng.choice(files))
    elif what < 0.9:
        other = room / rng.choice(FORMS)
        path = rng.choice(files)
        if (other / path.name).is_file() and other != folder:
            shutil.copy(other / path.name, path)
    else:
        put(rng, rng.choice(files), room)
    text = f"base: base\nspecialists: {{one: {{model: {form}, weight: 0.5}}}}\nmerge: {{method: task_arithmetic}}\n"
    (room / "recipe.yaml").write_text(text)
    every = [
        command("apply", "base", form, "--out", "out", writes=["out"]),
        command("fuse", "recipe.yaml", "--out", "fused", writes=["fused"]),
        command("inspect", form),
        command("compare", "base", form),
        command("diff", "dense", form),
        command("extract", "base", form, "--out", "again", writes=["again"]),
        command("verify", form),
    ]
    return rng.sample(every, 3)


LAYOUTS = ("ranks", "mesh", "sharded", "dcp", "dcp_plain")


@generator("sharded", share=3)
def sharded_training(rng: Random, room: Path) -> list[Command]:
    """What sharded training leaves: .metadata, ranks and .distcp files damaged, missing, in one another's place."""
    name = rng.choice(LAYOUTS)
    files = sorted(path for path in (room / name).iterdir())
    path = rng.choice(files)
    what = rng.random()
    if what < 0.6:
        damage_bytes(rng, path)
    elif what < 0.75:
        path.unlink()
    elif what < 0.9:
        shutil.copy(rng.choice(files), room / "copied")
        (room / "copied").replace(path)
    else:
        put(rng, path, room)
    return [
        command("inspect", name),
        command("diff", "dcp", name),
        command("extract", "ranks", name, "--out", "out", writes=["out"]),
    ]
