"""TERMS: explanations of the words on a page, shown at their first use."""

from __future__ import annotations

import re
from collections.abc import Iterable

TERMS: dict[str, str] = {
    # of models and merges
    "task vector": "The changes made by fine-tuning: the specialist's weights minus the base's, tensor by tensor.",
    "specialist": "A model that was fine-tuned from the base for one task or modality.",
    "fused": "The merged model: the base plus the weighted task vectors of the recipe.",
    "recovered": "The fused model after a repair of only its projectors; all other tensors are frozen.",
    "rehearsed": "The model after balanced training on all modalities.",
    "projector": "The layers between an encoder of sounds or pictures and the backbone, which processes their output.",
    "backbone": "The transformer that processes texts, and the tokens that projectors make from other media.",
    "norm": "Euclidean length: the square root of the sum of squared entries.",
    "relative norm": "One length divided by another: of states, the fused model's by the specialist's; 1 is unchanged.",
    "sign conflict": "Share of the entries changed by both task vectors that one increases and the other decreases. "
    "Two unrelated task vectors conflict in half of them.",
    "density": "The share of a task vector's entries that trimming keeps.",
    # of scores
    "R@1": "Recall at 1: share of the queries whose right answer is the nearest of all.",
    "R@5": "Recall at 5: share of the queries whose right answer is among the nearest five.",
    "R@10": "Recall at 10: share of the queries whose right answer is among the nearest ten.",
    "MRR": "Mean reciprocal rank: the mean of 1 / rank of the right answer; 1 is perfect.",
    "nDCG@5": "Discounted cumulative gain of the nearest five: the nearer a right answer is, the more it counts.",
    "nDCG@10": "Discounted cumulative gain of the nearest ten: the nearer a right answer is, the more it counts.",
    "paired differences": "Differences on the same queries, query by query: more precise than two separate intervals.",
    "interval": "95 % bootstrap interval: the range of the mean in 95 of 100 random draws of the same number of "
    "queries or probes. If the interval of a difference contains zero, the difference may be chance.",
    # of drift
    "null band": "The range of a statistic without drift: the specialist against itself in another precision.",
    "probes": "Pairs of an item and its text on which both models are run.",
    "neighbour overlap": "Share of an item's nearest texts that are the same under both models.",
    "margin": "The cosine with the right text minus that with the nearest wrong one.",
    "cosine": "Cosine of the angle between two vectors: 1 the same direction, 0 unrelated, -1 opposite.",
    "text rotation": "The rotation that maps the specialist's embeddings of the texts onto the fused model's. A "
    "common rotation of items and texts is harmless; the remaining change is not.",
    "debiased CKA": "Centred kernel alignment: the similarity of two sets of vectors up to rotation and scale; 1 is "
    "the same.",
    "depth": "Number of layers passed: 0 is the input of the first layer.",
    "displacement": "Distance of the fused weights from the specialist's, divided by that of the specialist's from "
    "the base's.",
    "overlap by chance": "The share for random directions.",
    "modality gap": "Distance between the mean embedding of the items and that of the texts.",
    "alignment": "Mean squared distance of items to their own texts; lower is closer.",
    "uniformity": "How evenly embeddings fill the sphere; lower is more even.",
    "effective rank": "The number of dimensions that the embeddings effectively use.",
    "Fréchet distance": "Distance of two sets of vectors, computed from their means and covariances.",
    "principal axes": "The directions in which embeddings differ most. A map shows only two of them: items that are "
    "close on it may be far apart.",
    # of training and search
    "InfoNCE": "The contrastive loss: the cross-entropy of the right text among the texts of the batch.",
    "held-out": "Not trained on; reserved for evaluation.",
    "arm": "One of the tried repair methods.",
    "floor": "The lowest value that a score may take.",
    "Pareto front": "The points that no other point beats in all objectives.",
    "PED-ANOVA": "The share of each number in the difference between better and worse trials.",
    "mteb": "The Massive Text Embedding Benchmark.",
}  # fmt: skip
_ALIKE = {"MRR": "mean reciprocal rank"}
_PATTERNS = {
    name: re.compile(rf"(?<![\w@-])(?:{re.escape(name)}|{re.escape(_ALIKE.get(name, name))})s?(?![\w@])")
    for name in TERMS
}


def terms_in(text: str, without: Iterable[str] = ()) -> list[str]:
    """Return the names of the terms that a text uses, in the order of `TERMS`. without: names to leave out."""
    known = set(without)
    return [name for name, pattern in _PATTERNS.items() if name not in known and pattern.search(text)]
