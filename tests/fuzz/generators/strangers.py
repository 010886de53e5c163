"""A folder from a hub that is full of code and of words that lead to code: no command may run a line of it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator

EVIL = """\
import pathlib
pathlib.Path({place!r}).write_text("run")

def load(*a, **k):
    return None
run = Evil = load
"""
RECIPE = """\
base: .
embedder: evil.py:load
specialists: {one: .}
merge: {method: evil.py:run}
evaluate: {retrieval: {a: evil.py:load}}
"""
CODE = (
    "modeling_evil.py",
    "configuration_evil.py",
    "tokenization_evil.py",
    "__init__.py",
    "sitecustomize.py",
    "conftest.py",
    "usercustomize.py",
    "torch.py",
    "json.py",
    "evil.py",
    "custom_st.py",
    "1_Pooling/__init__.py",
    "setup.py",
    "numpy.py",
    "sentence_transformers.py",
)
AUTO = {
    "AutoModel": "modeling_evil.Evil",
    "AutoConfig": "configuration_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", None],
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoProcessor": "modeling_evil.Evil",
    "AutoImageProcessor": "modeling_evil.Evil",
}
TYPES = (
    "modeling_evil.Evil",
    "evil.Evil",
    "custom_st.Transformer",
    "os.system",
    "taskmerge.OmniEmbedder",
    "./evil.py:load",
    "sentence_transformers.models.Pooling",
)


def _merge(path: Path, **more: Any) -> None:
    if path.is_file() and not path.is_symlink():
        table = json.loads(path.read_text())
        if isinstance(table, dict):
            path.write_text(json.dumps(table | more))


def _poison(rng: Random, folder: Path, room: Path) -> None:
    for name in rng.sample(CODE, rng.randint(4, len(CODE))):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(EVIL.format(place=str(room / "canary")))
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if rng.random() < 0.8:
            _merge(folder / name, auto_map=AUTO, trust_remote_code=True, **_odd(rng))
    listing = folder / "modules.json"
    if listing.is_file() and rng.random() < 0.7:
        rows = json.loads(listing.read_text())
        rng.choice(rows)["type"] = rng.choice(TYPES)
        rows += [{"idx": 9, "name": "9", "path": "9_Evil", "type": rng.choice(TYPES)}] if rng.random() < 0.4 else []
        listing.write_text(json.dumps(rows))
    elif rng.random() < 0.4:
        rows = [{"idx": 0, "name": "0", "path": "", "type": rng.choice(TYPES)}]
        listing.write_text(json.dumps(rows))
    if rng.random() < 0.6:
        (folder / "recipe.yaml").write_text(RECIPE)


def _odd(rng: Random) -> dict[str, Any]:
    return rng.choice(
        (
            {},
            {"model_type": "evil"},
            {"tokenizer_class": "Evil"},
            {"architectures": ["Evil"]},
            {"custom_pipelines": {"x": {"impl": "evil.Evil"}}},
            {"quantization_config": {"quant_method": "evil"}},
            {"attn_implementation": "kernels-community/evil"},
            {"_attn_implementation": "evil/x"},
            {"processor_class": "Evil"},
            {"kernel_config": "evil/x"},
            {"image_processor_type": "Evil"},
        )
    )


def _in_record(rng: Random, folder: Path) -> None:
    """The record of a fused model names code of its own."""
    path = folder / "taskmerge.json"
    if path.is_file():
        text = path.read_text().replace(
            "task_arithmetic", rng.choice(("evil.py:run", "./out/evil.py:run", "out/evil.py:run", "evil:run"))
        )
        path.write_text(text)


@generator("fused", share=5)
def strangers_models(rng: Random, room: Path) -> list[Command]:
    """A stranger's merge, its record included: looked at, verified, diffed, fused, applied."""
    _poison(rng, room / "out", room)
    _in_record(rng, room / "out")
    (room / "mine.yaml").write_text(
        "base: base\nspecialists: {one: {model: out, weight: 0.5}}\nmerge: {method: task_arithmetic}\n"
    )
    every = [
        command("inspect", "out"),
        command("verify", "out"),
        command("verify", "out", "--hashes-only"),
        command("verify", "out", "--recipe-folder", "out"),
        command("diff", "base", "out"),
        command("compare", "base", "out"),
        command("fuse", "mine.yaml", "--out", "made", writes=["made"]),
        command("extract", "base", "out", "--out", "vector", writes=["vector"]),
        command("apply", "base", "out", "--out", "applied", writes=["applied"]),
        command("soup", "[bo]*", "--out", "soup", writes=["soup"]),
        command("check-model", "out"),
        command("methods"),
        command("push", "out", "a/b"),
    ]
    return rng.sample(every, 6)


@generator("hearing", share=5)
def strangers_embedders(rng: Random, room: Path) -> list[Command]:
    """A stranger's embedder: evaluated, measured, checked, grafted, with data of his own."""
    _poison(rng, room / "model", room)
    (room / "dog.py").write_text(EVIL.format(place=str(room / "canary")))
    every = [
        command("check-model", "model"),
        command("inspect", "model"),
        command("evaluate", "model", "--retrieval", "a=sounds.jsonl"),
        command("evaluate", "model", "--retrieval", "a=texts.jsonl", "--json"),
        command("verify", "model"),
        command("stats", "model", "--probes", "texts.jsonl", writes=["model/statistics", "model/taskmerge.json"]),
        command(
            "diagnose-drift", "--fused", "model", "--specialist", "model", "--base", "model", "--probes", "sounds.jsonl"
        ),
        command("graft", "model", "--modality", "video", "--encoder", "patches", "--out", "made", writes=["made"]),
    ]
    return rng.sample(every, 3)
