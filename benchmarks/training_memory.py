"""The memory that a training stage was planned to take, against the peak of the process that trained.

python benchmarks/training_memory.py .bench/memory

A text model of 28 million parameters learns for two steps in a process of its own. Measured is the peak of memory
besides mapped files, less what the process held before: all libraries are loaded then, because a tiny model was
trained in the same way. The C library returns freed memory to the system at once (MALLOC_MMAP_THRESHOLD_).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from processes import _watch, machine

HERE = Path(__file__).parent
WORDS, WIDTH, LAYERS, TOKENS, BATCH = 30_000, 512, 4, 64, 8
SURROUNDINGS = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
CASES: dict[str, dict[str, Any]] = {
    "all trained, float32": {},
    "all trained, bfloat16": {"dtype": "bfloat16"},
    "upper half trained": {"train": ["backbone.encoder.layer.2.*", "backbone.encoder.layer.3.*"]},
    "LoRA of rank 16": {"lora": 16},
    "large batch": {"batch": 24},
    "large batch, layers computed again": {"batch": 24, "recomputed": True},
    "large batch, gradient cache of 8": {"batch": 24, "cache": 8},
}


def make(folder: Path) -> None:
    """The model, and pairs of texts of `TOKENS` tokens."""
    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [f"w{number}" for number in range(WORDS - len(special))]
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    for name, width in (("model", WIDTH), ("tiny", 16)):
        size: dict[str, Any] = {
            "vocab_size": WORDS, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": LAYERS,
            "num_attention_heads": 8, "max_position_embeddings": 2 * TOKENS,
        }  # fmt: skip
        BertModel(BertConfig(**size), add_pooling_layer=False).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    rows = [
        {name: " ".join(f"w{number}" for number in rng.integers(0, 20_000, TOKENS - 2)) for name in ("query", "text")}
        for _ in range(96)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def work(folder: Path, case: str) -> None:
    """One case in this process; says what is planned, and what is held before its model is."""
    train(folder, "tiny", case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(json.dumps({"before": 1024 * int(held.split()[1])}), flush=True)
    print(json.dumps(train(folder, "model", case)), flush=True)


def train(folder: Path, name: str, case: str) -> dict[str, int]:
    """Train one model in one way. Returns what is planned, in bytes."""
    import torch

    from taskmerge import LoraSettings, TrainingSettings, open_embedder, specialize
    from taskmerge.embedders.encodings import Keeping
    from taskmerge.training.components import select
    from taskmerge.training.planning import Load, Tensor, needs

    torch.set_num_threads(1)
    how = CASES[case]
    model = open_embedder(folder / name, dtype=getattr(torch, how.get("dtype", "float32")))
    for parameter in model.module.parameters():  # out of the mapped file, as on a device
        parameter.data = parameter.data.clone()
    trained = how.get("train", ["backbone"])
    batch, cache = how.get("batch", BATCH), how.get("cache")
    lora = LoraSettings(rank=how["lora"]) if "lora" in how else None
    tensors = {
        key: Tensor(tuple(value.shape), value.element_size(), "backbone")
        for key, value in model.state_dict.values.items()
    }
    load = Load(cache or batch, TOKENS, TOKENS, True, model.dtype.itemsize)
    plan = needs(
        tensors, select(model, trained), load, way=["backbone"], lora_rank=lora.rank if lora else None,
        recomputed="recomputed" in how, twice=cache is not None,
    )  # fmt: skip
    settings = TrainingSettings(
        steps=2, batch_size=batch, warmup=0, device="cpu", encodings=Keeping(limit=0), lora=lora,
        gradient_checkpointing="recomputed" in how, gradient_cache=cache,
    )  # fmt: skip
    specialize(model, folder / "pairs.jsonl", trained, settings)
    return {"planned": plan.total, "on_the_host": plan.host}


def measured(folder: Path, case: str) -> dict[str, Any]:
    """A case as a process: what was planned, and its peak."""
    peak = [0]
    command = [sys.executable, __file__, str(folder), "--case", case]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=(folder / "log").open("a"), text=True, env=SURROUNDINGS
    )
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    said, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    found: dict[str, Any] = {"case": case}
    for line in said.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return {**found, "measured": peak[0] - found["before"]}


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [
        "# Memory of training, planned and measured", "",
        f"{result['machine']['processor']}. A text model of 28 million parameters, {TOKENS} tokens an item and a "
        f"text, batches of {BATCH} unless it says otherwise; MiB. Planned: of the device, and the copy of what is "
        "trained that the host keeps (here both are one memory). Measured: the peak of the process less what it held "
        "after a tiny model was trained in the same way.",
        "",
        "| what | planned device | planned host | measured | measured / planned |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["cases"]:
        planned = row["planned"] + row["on_the_host"]
        lines.append(
            f"| {row['case']} | {row['planned'] / 2**20:,.0f} | {row['on_the_host'] / 2**20:,.0f} "
            f"| {row['measured'] / 2**20:,.0f} | {row['measured'] / planned:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", choices=CASES)
    given = parser.parse_args()
    folder = given.folder.absolute()
    if given.case:
        work(folder, given.case)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.jsonl").exists():
        make(folder)
    cases = []
    for case in CASES:
        cases.append(measured(folder, case))
        print(json.dumps(cases[-1]), flush=True)
        result = {"machine": machine(), "cases": cases}
        (HERE / "results" / "training_memory.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "results" / "training_memory.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
