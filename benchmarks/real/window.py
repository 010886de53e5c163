"""What cutting Whisper's window costs: the same recordings through 30 s and through the cut window.

    python benchmarks/real/window.py --seed 0 --work .bench/real

Needs the audio specialist of a seed (`run.py`), which was trained behind the cut window. Prints the time of one
recording, the cosine of the two encoders' vectors, and what the specialist finds behind either.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import download
import numpy as np
import torch
import whisper
from experiment import STRIDE, Seed
from hearing import CutWhisper

from taskmerge.embedders import open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs, spelling
from taskmerge.metrics.bootstrap import mean_interval
from taskmerge.metrics.retrieval import score_queries


def measure(seed: Seed, count: int) -> dict[str, Any]:
    """Figures of `count` recordings of the test, plain data."""
    pairs = read_pairs(seed.path("audio", "test"))
    pairs = pairs.take(sorted(random.Random(seed.seed).sample(range(len(pairs)), count)))
    texts = read_pairs(seed.path("audio", "test")).distinct()[0]
    model = open_embedder(seed.specialist("audio"))
    CutWhisper.outputs = None
    wheels = download.downloaded(seed.work) / "wheels"
    found: dict[str, Any] = {"recordings": count}
    vectors, ranks = {}, {}
    for seconds in (whisper.SECONDS, whisper.FULL):
        CutWhisper._prepared.clear()
        encoder = CutWhisper(model=str(whisper.make(wheels, seed.work / f"whisper-{seconds}s", seconds)), stride=STRIDE)
        model.graft.audio_encoder = encoder.eval()  # type: ignore[attr-defined]
        began = time.process_time()
        vectors[seconds] = _vectors(encoder, pairs)
        found[f"cpu_seconds_a_recording_{seconds}s"] = (time.process_time() - began) / count
        ranks[seconds] = _ranks(model, pairs, texts)
        found[f"mrr_{seconds}s"] = float(ranks[seconds].mean())
        found[f"recall_at_1_{seconds}s"] = float((ranks[seconds] == 1).mean())
    pairwise = zip(vectors[whisper.SECONDS], vectors[whisper.FULL], strict=True)
    cosines = [torch.nn.functional.cosine_similarity(cut, full[: len(cut)], dim=-1).mean() for cut, full in pairwise]
    found["cosine"] = float(np.mean(cosines))
    change = ranks[whisper.SECONDS] - ranks[whisper.FULL]
    found["mrr_cut_minus_full"] = mean_interval(change, groups=pairs.distinct()[1].tolist()).as_dict()
    return found


def _vectors(encoder: CutWhisper, pairs: Pairs) -> list[torch.Tensor]:
    found = []
    with torch.no_grad():
        for item in pairs.load():
            values = encoder.prepare(item, "audio")[None]
            found.append(encoder(values, torch.tensor([values.shape[1]]))[0])
    return found


def _ranks(model: Any, pairs: Pairs, texts: list[str]) -> np.ndarray:
    queries = model.encode(pairs.load(), "audio", "query", batch_size=8)
    gallery = model.encode(texts, "text", "document", batch_size=64)
    places = {spelling(text): place for place, text in enumerate(texts)}
    right = [[places[spelling(text)]] for text in pairs.texts]
    return np.asarray(score_queries(queries, gallery, right)["mrr"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".bench/real"))
    parser.add_argument("--recordings", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(Seed(arguments.seed, arguments.work), arguments.recordings)
    text = json.dumps(found, indent=1) + "\n"
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "window.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
