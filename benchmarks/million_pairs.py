"""One million pairs through recovery and rehearsal: memory, time to the first step, and a kill in the middle.

python benchmarks/million_pairs.py .bench/million --pairs 1000000

The pairs are small (a drawn picture of 16 x 16 and four words), the model is tiny, the count is real. The
first run of rehearsal starts with nothing encoded and is killed, the second goes on; recovery embeds every text of the
million; then both start again with all of it kept. Each run takes the first of its thousand steps; with --whole the
second run takes all, so that every pair goes through a step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import _watch, machine

HERE = Path(__file__).parent
WORDS = 1000
BATCH = 1000
HELD_OUT = 1000
SOME = 20
"""Steps of a run that is stopped early."""
STAGES = ("recover", "rehearse")


def text_of(number: int) -> str:
    """Four words that no other number has."""
    words = [(number // WORDS**place) % WORDS for place in range(2)]
    return f"w{words[0]} and w{words[1]} w{(words[0] * 7 + words[1]) % WORDS}"


_ROWS = np.random.default_rng(0).integers(0, 256, (2, WORDS, 8, 16), dtype=np.uint8)


def picture_of(number: int) -> bytes:
    """A picture file of 16 x 16 grey values: the upper half speaks of one word, the lower of the other."""
    upper, lower = _ROWS[0, number % WORDS], _ROWS[1, number // WORDS % WORDS]
    return b"P5 16 16 255\n" + upper.tobytes() + lower.tobytes()


def make(folder: Path, pairs: int) -> None:
    """The model, and parquet files of `pairs` and of held-out ones."""
    import pyarrow
    import pyarrow.parquet
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from taskmerge.embedders import graft

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]", "[unused1]", "and"]
    vocabulary = {token: index for index, token in enumerate(special + [f"w{number}" for number in range(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    size: dict[str, Any] = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    BertModel(BertConfig(**size)).save_pretrained(folder / "backbone")
    fast.save_pretrained(folder / "backbone")
    eyes = {"kind": "patches", "height": 16, "patch_height": 16, "max_width": 16, "width": 24}
    graft(folder / "backbone", "image", eyes, "mlp", folder / "start", fresh=True)
    for name, numbers in {"train": range(pairs), "held_out": range(pairs, pairs + HELD_OUT)}.items():
        with pyarrow.parquet.ParquetWriter(folder / f"{name}.parquet", _batch(range(1)).schema) as writer:
            for start in range(numbers.start, numbers.stop, 10_000):
                writer.write_batch(_batch(range(start, min(start + 10_000, numbers.stop))))


def _batch(numbers: range) -> Any:
    import pyarrow

    rows = [{"image": {"bytes": picture_of(n), "path": None}, "text": text_of(n)} for n in numbers]
    item = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", item), ("text", pyarrow.string())])
    return pyarrow.RecordBatch.from_pylist(rows, schema=schema)


def work(folder: Path, stage: str, pairs: int, stop: int) -> None:
    """One stage in this process; says on standard output what happens when. stop: after so many steps of this run."""
    began = _started()
    from taskmerge.embedders.encodings import Keeping
    from taskmerge.training import TrainingSettings, recover, rehearse
    from taskmerge.words.progress import Progress, Said, watching

    steps = pairs // BATCH
    checkpoints = folder / f"work-{stage}"
    settings = TrainingSettings(
        steps=steps, batch_size=BATCH, learning_rate=1e-3, evaluate_every=max(1, steps // 10), device="cpu",
        encodings=Keeping(str(folder / "encodings")), keep_checkpoints=True, resume=checkpoints.is_dir(),
    )  # fmt: skip
    data = {"image": folder / "train.parquet"}
    held_out = {"image": folder / "held_out.parquet"}
    first: list[int] = []

    def hear(told: Progress | Said) -> None:
        if isinstance(told, Said):
            print(json.dumps({"said": told.text}), flush=True)
        elif told.unit == "steps" and "loss" in told.facts:
            first[:] = first or [told.done]
            now = {"step": told.done, "seconds": time.time() - began, "loss": told.facts["loss"], "over": told.over}
            print(json.dumps(now), flush=True)
            if stop and told.done - first[0] + 1 >= stop:
                os._exit(0)

    with watching(hear):
        if stage == "recover":
            report = recover(
                folder / "start", data, ["vision_projector"], settings, held_out=held_out, work=checkpoints
            )
        else:
            report = rehearse(
                folder / "start", data, ["backbone", "vision_projector"], settings, held_out=held_out, work=checkpoints
            )
    found = {"before": report.before, "after": report.after, "steps": report.steps, "seconds": report.seconds}
    print(json.dumps({"report": found}), flush=True)


def _started() -> float:
    """When this process was started, as time.time() says it."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def run(folder: Path, stage: str, pairs: int, kill: int = 0, stop: int = 0) -> dict[str, Any]:
    """A stage as a process: first and last step, memory, what it said. kill: after that many steps, with SIGKILL."""
    import threading

    command = [sys.executable, __file__, str(folder), "--pairs", str(pairs), "--stage", stage, "--stop", str(stop)]
    private = [0]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(folder / "log").open("a"), text=True)
    threading.Thread(target=_watch, args=(process.pid, private), daemon=True).start()
    found: dict[str, Any] = {"stage": stage, "said": [], "killed": False}
    for line in _lines(process):
        if "said" in line:
            found["said"].append(line["said"])
        elif "report" in line:
            found["report"] = line["report"]
        else:
            found.setdefault("first_step", line)
            found["last_step"] = line
            if kill and line["step"] - found["first_step"]["step"] + 1 >= kill:
                process.send_signal(signal.SIGKILL)
                found["killed"], kill = True, 0
    process.wait()
    if process.returncode and not found["killed"]:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    found |= {"wall": time.perf_counter() - began, "private": private[0]}
    found["entries"], found["bytes"] = kept(folder / "encodings")
    return found


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)


def kept(folder: Path) -> tuple[dict[str, int], int]:
    """Whole entries by folder of encodings, and the bytes of all."""
    from taskmerge.embedders.encodings import RECORD

    counts = {
        one.name[:8]: sum(file.stat().st_size // RECORD.itemsize for file in one.glob("*.index"))
        for one in sorted(folder.glob("*"))
    }
    return counts, sum(file.stat().st_size for file in folder.glob("*/*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--stop", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="rehearse to the end: every pair goes through a step")
    given = parser.parse_args()
    folder, pairs = given.folder.absolute(), given.pairs
    if given.stage:
        work(folder, given.stage, pairs, given.stop)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "held_out.parquet").exists():
        make(folder, pairs)
    steps = pairs // BATCH
    runs = {
        "rehearse, nothing encoded, killed": run(folder, "rehearse", pairs, kill=max(1, steps * 12 // 100)),
        "rehearse, going on": run(folder, "rehearse", pairs, stop=0 if given.whole else SOME),
        "recover, items encoded, texts not": run(folder, "recover", pairs, stop=SOME),
    }
    for place in folder.glob("work-*"):
        place.rename(folder / f"done-{place.name}-{time.time_ns()}")
    runs["rehearse again, all encoded"] = run(folder, "rehearse", pairs, stop=SOME)
    runs["recover again, all encoded"] = run(folder, "recover", pairs, stop=SOME)
    result = {"machine": machine(), "pairs": pairs, "batch": BATCH, "runs": runs}
    (HERE / "results" / "million_pairs.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "million_pairs.md").write_text(table(result))
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [
        "# One million pairs", "",
        f"{result['machine']['processor']}, {result['machine']['cores']} cores. "
        f"{result['pairs']:,} pairs, {result['batch']} a step. 'private' is the peak of memory "
        "besides mapped files; 'first step' counts from the start of the process.", "",
        "| run | steps | first step s | wall s | pairs/s | private MiB | entries kept | MRR before, after |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in result["runs"].items():
        first, last = found["first_step"], found["last_step"]
        span = last["seconds"] - first["seconds"]
        rate = (last["step"] - first["step"]) * result["batch"] / span if span > 0 else float("nan")
        told = found.get("report")
        scores = f"{told['before']['mrr']:.3f}, {told['after']['mrr']:.3f}" if told else ""
        lines.append(
            f"| {name} | {first['step']} to {last['step']} | {first['seconds']:.1f} | {found['wall']:.0f} "
            f"| {rate:,.0f} | {found['private'] / 2**20:,.0f} | {sum(found['entries'].values()):,} | {scores} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
