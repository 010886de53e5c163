"""`demo --texts`: a text embedder, two specialists of it and pairs that judge them, to try commands on in seconds."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from taskmerge.demo.folder import begin, check_folder
from taskmerge.demo.pairs import Pairs, splits
from taskmerge.demo.unpacking import BASE_PACKAGE, minilm, specialist_model
from taskmerge.words.extras import require

SHIPPED = Path(__file__).parent / "shipped_texts"
TASKS = {
    "numbers": "the base, trained to find 40,217 from its name in words",
    "typos": "the base, trained to find a sentence from one that is badly typed",
}
MARK = "texts"
"""The kind of demo, in the folder's record."""
TEST, DEV = 100, 60
"""Pairs of each task that are laid out."""
STEPS = {"numbers": 150, "typos": 100}
RANK = 2


def lay_out(out: Path, say: Callable[[str], None]) -> Path:
    """Write base, specialists and pairs into a folder; what is there already stays.

    Args:
        out: the folder: new, empty, or of an earlier call.
        say: takes a line for the reader.

    Returns:
        The folder.

    Raises:
        UsageError: the base's package is not installed.
        OutputError: the folder holds something else.
    """
    require(BASE_PACKAGE)
    check_folder(out, MARK, (".base.partial", "pairs"))
    begin(out, MARK)
    if not (out / "base").exists():
        unfinished = out / ".base.partial"
        shutil.copytree(minilm(), unfinished, dirs_exist_ok=True)
        unfinished.rename(out / "base")
    say(f"{out / 'base'}: all-MiniLM-L6-v2, a text embedder of 22 million parameters")
    for task, told in TASKS.items():
        if not (out / task).exists():
            specialist_model(out / "base", SHIPPED / task, out / task)
        say(f"{out / task}: {told}")
    (out / "pairs").mkdir(exist_ok=True)
    for task, each in splits().items():
        for split, pairs in (("test", each["test"][:TEST]), ("dev", each["dev"][:DEV])):
            path = out / "pairs" / f"{task}_{split}.jsonl"
            if not path.exists():
                path.write_text(_lines(pairs), "utf-8")
    say(f"{out / 'pairs'}: of each task {TEST} pairs to test and {DEV} to choose by; nothing was trained on them")
    return out


def train(folder: Path, say: Callable[[str], None]) -> None:
    """Train both specialists, as low-rank task vectors in a folder: how what is shipped was made. Some minutes.

    Args:
        folder: where `numbers/` and `typos/` are written.
        say: takes a line for the reader.
    """
    from taskmerge.merging.algebra import Checkpoint
    from taskmerge.training import LoraSettings, TrainingSettings, specialize

    for task, each in splits().items():
        settings = TrainingSettings(
            steps=STEPS[task], learning_rate=1e-3, temperature=0.05, lora=LoraSettings(rank=RANK, scale=2.0 * RANK)
        )
        whole = folder / f"{task}-whole"
        report = specialize(str(minilm()), _rows(each["train"]), settings=settings, out=whole)
        vector = Checkpoint.open(whole, label=f"{task} specialist") - Checkpoint.open(minilm())
        trained = vector.only("*.layer.*.dense.weight", "*.self.*.weight")  # the layers that adapters were laid over
        trained.save(folder / task, form="low_rank", rank=RANK, dtype="bfloat16")
        shutil.rmtree(whole)
        say(f"{task}: {report.steps} steps in {report.seconds:.0f} s")


def _rows(pairs: Pairs) -> list[dict[str, str]]:
    return [{"query": query, "text": text} for query, text in pairs]


def _lines(pairs: Pairs) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(pairs))


if __name__ == "__main__":
    train(Path(sys.argv[1]), print)
