"""Only what moved is embedded again, and scores are those of a model that was opened afresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_projects import TEXTS, base_model, write_sound

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.embedder import OmniEmbedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.measuring.evaluation import evaluate_retrieval
from taskmerge.merging import FusedStateDict, execute
from taskmerge.merging.bench import Bench
from taskmerge.recipes import from_dict
from taskmerge.searching.live import LiveModel
from taskmerge.searching.scorer import Scorer


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that sees, a specialist that hears, one that reads, and pairs of sounds and of texts."""
    folder = tmp_path_factory.mktemp("heard")
    base_model(folder / "base")
    graft(folder / "base", "audio", "log_mel", "linear", folder / "audio")
    for name, source, seed in (("audio", "audio", 1), ("text", "base", 2)):
        model = open_embedder(folder / source)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in model.state_dict.values.items():
                if key.startswith("backbone.encoder") and tensor.is_floating_point():
                    tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        model.save(folder / f"{name}-trained")
    rows = []
    for number, word in enumerate(TEXTS):
        write_sound(folder / f"{word}.wav", 300 + 200 * number)
        rows.append({"audio": f"{word}.wav", "text": f"a {word}"})
    (folder / "audio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"query": f"the {word}", "text": f"a {word}"} for word in TEXTS]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


def recipe_of(folder: Path, audio: float, text: float, merge: dict[str, Any] | None = None) -> Any:
    rows = {"audio": {"model": "audio-trained", "weight": audio}, "text": {"model": "text-trained", "weight": text}}
    return from_dict({"base": "base", "specialists": rows, "merge": merge or {}}, folder)


def scorer_of(folder: Path, out: Path) -> tuple[Bench, LiveModel, Scorer]:
    bench = Bench(recipe_of(folder, 0.4, 0.6))
    execute(bench.plan, bench.recipe, out)
    live = LiveModel(bench, open_embedder(out), own=True)
    live.check(FusedStateDict(bench.plan))
    sets = {name: read_pairs(folder / f"{name}.jsonl") for name in ("audio", "text")}
    return bench, live, Scorer(live, sets, ["to_text", "from_text"], 4)


def test_scores_of_a_live_model_are_those_of_the_written_one(project: Path, tmp_path: Path) -> None:
    bench, live, scorer = scorer_of(project, tmp_path / "start")
    for number, (audio, text) in enumerate([(0.4, 0.6), (1.0, 0.1), (0.2, 0.9)]):
        recipe = recipe_of(project, audio, text)
        decided = bench.planned(recipe)
        scorer.moved(live.become(decided))
        found = scorer.score()
        execute(decided, recipe, tmp_path / str(number))
        sets = {name: project / f"{name}.jsonl" for name in ("audio", "text")}
        table = evaluate_retrieval({"model": tmp_path / str(number)}, sets)
        for name in sets:
            for way, tail in (("to_text", ""), ("from_text", ".from_text")):
                expected = table.get("model", name, "mrr", way).estimate
                assert found.means()[f"retrieval.{name}.mrr{tail}"] == pytest.approx(expected, abs=1e-9)


def test_only_what_moved_runs_again(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders run once; a projector that moves leaves texts; nothing that moves leaves all."""
    encoded: list[int] = []
    encode = OmniEmbedder.encode_media

    def encoding(self: OmniEmbedder, *rest: Any) -> Any:
        encoded.append(1)
        return encode(self, *rest)

    monkeypatch.setattr(OmniEmbedder, "encode_media", encoding)
    _, live, scorer = scorer_of(project, tmp_path / "start")
    embedded: list[tuple[str, ...]] = []
    model: Any = type(live.model)
    embed = model.embed

    def embedding(self: Any, given: Any) -> Any:
        embedded.append(tuple(given))
        return embed(self, given)

    monkeypatch.setattr(model, "embed", embedding)

    def runs(names: list[str]) -> int:
        embedded.clear()
        scorer.moved(names)
        scorer.score()
        return len(embedded)

    whole, encodings = runs([]), len(encoded)
    assert whole and runs([]) == 0
    projector = [name for name, home in live.homes.items() if home == "audio_projector"]
    with_sounds = runs(projector)
    assert 0 < with_sounds < whole and all(any("audio" in key for key in keys) for keys in embedded)
    assert runs([name for name, home in live.homes.items() if home == "backbone"][:1]) == whole
    assert runs([name for name, home in live.homes.items() if home == "vision_projector"]) == 0
    assert len(encoded) == encodings
