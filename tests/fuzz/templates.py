"""The folders that cases begin with: small healthy models, vectors, data. Made once a session, copied for each case."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = """\
base: base
specialists:
  one: {model: one, weight: 0.5}
merge:
  method: task_arithmetic
output: {path: out}
"""
PITCHES = {"dog": 300, "cat": 500, "bird": 700, "rain": 900, "high": 1100, "low": 1300}


def merge(folder: Path) -> None:
    """base/ and one/ (in shards) with a tokenizer, two/ pickled, adapter/, recipe.yaml."""
    import peft
    import torch
    import zoo

    kind = zoo.BY_NAME["Qwen3"]
    zoo.save(kind.build(), folder / "base")
    zoo.save(zoo.perturb(kind.build(), 1), folder / "one", shard_size="20KB")
    for name in ("base", "one"):
        _tokenizer().save_pretrained(folder / name)
    two = zoo.perturb(kind.build(), 2)
    (folder / "two").mkdir()
    torch.save(two.state_dict(), folder / "two" / "pytorch_model.bin")
    shutil.copy(folder / "base" / "config.json", folder / "two")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        kind.build(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(str(folder / "adapter"))
    (folder / "recipe.yaml").write_text(RECIPE)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *"a dog cat red blue sound of tone high low".split()]
    core = Tokenizer(models.WordLevel({token: row for row, token in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def tiny(folder: Path) -> None:
    """base/ and one/ of a few small tensors, config and recipe: nothing that takes time to copy."""
    from checkpoint_files import random_model, write_model

    base = random_model(0)
    write_model(folder / "base", base)
    write_model(folder / "one", random_model(1, near=base))
    (folder / "recipe.yaml").write_text(RECIPE)


def vectors(folder: Path) -> None:
    """tiny, with its task vector in every stored form and an adapter made of it."""
    from taskmerge.merging.algebra import Checkpoint

    tiny(folder)
    vector = Checkpoint.open(folder / "one") - Checkpoint.open(folder / "base")
    vector.save(folder / "dense")
    vector.save(folder / "sparse", form="sparse", density=0.3)
    vector.save(folder / "low_rank", form="low_rank", rank=2)
    vector.save(folder / "sign", form="sign")
    vector.save_lora(folder / "lora", 2, base_name="base")


def fused(folder: Path) -> None:
    """tiny, fused into out/."""
    import os

    from taskmerge import recipes
    from taskmerge.merging import execute, plan

    tiny(folder)
    os.chdir(folder)
    recipe = recipes.load(Path("recipe.yaml"))
    execute(plan(recipe), recipe, Path("out"))


def hearing(folder: Path) -> None:
    """model/ that hears and sees, sounds, pictures and pairs of them with texts."""
    from omni_models import picture, tiny_backbone, tone

    from taskmerge.embedders import graft

    graft(tiny_backbone(folder / "backbone"), "image", "patches", "linear", folder / "eyes", seed=0)
    graft(folder / "eyes", "audio", "log_mel", "linear", folder / "model", seed=0)
    shutil.rmtree(folder / "backbone")
    shutil.rmtree(folder / "eyes")
    sounds, pictures, texts = [], [], []
    for number, (word, pitch) in enumerate(PITCHES.items()):
        with wave.open(str(folder / f"{word}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((16000 * tone(pitch, 0.1)).astype("<i2").tobytes())
        picture(40 * number, 16, 16).save(folder / f"{word}.png")
        sounds.append({"audio": f"{word}.wav", "text": f"a {word}"})
        pictures.append({"image": f"{word}.png", "text": f"a {word}"})
        texts.append({"query": f"the {word}", "text": f"a {word}"})
    for name, rows in (("sounds", sounds), ("pictures", pictures), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _parquet(folder, sounds, pictures)


def _parquet(folder: Path, sounds: list[dict[str, str]], pictures: list[dict[str, str]]) -> None:
    """The same pairs with the media inside, as the datasets library stores them."""
    import pyarrow
    from pyarrow import parquet

    for name, key, rows in (("sounds", "audio", sounds), ("pictures", "image", pictures)):
        held = [{"bytes": (folder / row[key]).read_bytes(), "path": row[key]} for row in rows]
        table = pyarrow.table({key: held, "text": [row["text"] for row in rows]})
        parquet.write_table(table, folder / f"{name}.parquet")


def sharded(folder: Path) -> None:
    """What sharded training saves, each layout in a folder of its own."""
    import subprocess
    import sys

    import sharded_files

    subprocess.run([sys.executable, sharded_files.__file__, str(folder)], check=True, timeout=300)


def mergekit(folder: Path) -> None:
    """Four models of one architecture and mergekit.yaml."""
    from mergekit_cases import save_models

    save_models(folder)


def project(folder: Path) -> None:
    """A recipe with every stage, its base and its data; nothing of it trained yet."""
    hearing(folder)
    shutil.rmtree(folder / "model")
    import pipeline_projects
    from omni_models import tiny_backbone

    from taskmerge.embedders import graft

    graft(tiny_backbone(folder / "backbone"), "image", "patches", "linear", folder / "base")
    (folder / "sounds.jsonl").rename(folder / "audio.jsonl")
    (folder / "texts.jsonl").rename(folder / "text.jsonl")
    for path in (*folder.glob("*.png"), *folder.glob("*.parquet"), folder / "pictures.jsonl"):
        path.unlink()
    stages = pipeline_projects.RECIPE.replace("held.jsonl", "audio.jsonl").replace("path: fused", "path: out")
    (folder / "recipe.yaml").write_text(stages)


def _run_until(stage: str, folder: Path) -> None:
    """project, run up to a stage, that stage included."""
    import os

    from taskmerge import recipes
    from taskmerge.pipeline import run

    project(folder)
    os.chdir(folder)
    run(recipes.load(Path("recipe.yaml")), until=stage, say=lambda _: None)


def repaired(folder: Path) -> None:
    """What `recover` begins with."""
    _run_until("diagnose", folder)


def recovered(folder: Path) -> None:
    """What `rehearse` begins with."""
    _run_until("recover", folder)


def rehearsed(folder: Path) -> None:
    """What `evaluate` begins with."""
    _run_until("rehearse", folder)


def layers(folder: Path) -> None:
    """base/, image/ and audio/, merge.yaml that writes four files of weights, and vector/."""
    from checkpoint_files import prepare

    from taskmerge.merging.algebra import Checkpoint

    prepare(folder, layers=4, size=16)
    (Checkpoint.open(folder / "image") - Checkpoint.open(folder / "base")).save(folder / "vector")


def older(folder: Path) -> None:
    """layers, with out/ of an older recipe."""
    import os

    from taskmerge import recipes
    from taskmerge.merging import execute, plan

    layers(folder)
    os.chdir(folder)
    recipe = recipes.loads((folder / "merge.yaml").read_text().replace("0.5", "0.25"), "merge.yaml", folder)
    execute(plan(recipe), recipe, Path("out"))


def grown(folder: Path) -> None:
    """backbone/: what `graft` begins with."""
    from omni_models import tiny_backbone

    tiny_backbone(folder / "backbone")


TEMPLATES: dict[str, Callable[[Path], None]] = {
    row.__name__: row
    for row in (
        *(merge, tiny, vectors, fused, hearing, sharded, mergekit, layers, older, grown),
        *(project, repaired, recovered, rehearsed),
    )
}


def make(folder: Path, wanted: set[str]) -> None:
    """Writes the wanted templates into folders of their names, in a child: this process must never compute."""
    import multiprocessing

    for name in sorted(wanted & TEMPLATES.keys()):
        process = multiprocessing.get_context("fork").Process(target=_make, args=(TEMPLATES[name], folder / name))
        process.start()
        process.join()
        assert process.exitcode == 0, f"the template {name} could not be made"
    (folder / "empty").mkdir(exist_ok=True)


def _make(build: Callable[[Path], None], folder: Path) -> None:
    folder.mkdir(parents=True)
    build(folder)
