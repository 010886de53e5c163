"""Models measured in another precision: the scores are those of that precision, it is said, and no model is changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import moved, qwen2_audio, sounds, tiny_grafted
from typer.testing import CliRunner

from taskmerge import TrainingSettings, diagnose_drift, open_embedder, recover
from taskmerge.cli.app import app
from taskmerge.embedders.loading import open_to_measure
from taskmerge.errors import UsageError
from taskmerge.measuring.drift import DriftReport
from taskmerge.measuring.evaluation import EvaluationTable, evaluate_retrieval
from taskmerge.metrics.retrieval import score_queries
from taskmerge.pipeline import Places
from taskmerge.pipeline.state import Run
from taskmerge.pipeline.steps import diagnose_steps, evaluate_steps
from taskmerge.recipes import loads
from taskmerge.reporting import drift_sections, evaluated_sections
from taskmerge.training.arms import recover_by_choice
from taskmerge.training.items import TrainingItems

HALF = pytest.mark.parametrize("name", ["bfloat16", "float16"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("precision")
    tiny_grafted(home)
    return home / "grafted"


@HALF
def test_a_converted_model_is_the_one_that_transformers_loads(name: str, tmp_path: Path) -> None:
    """Rotary frequencies are in no file: transformers keeps them in float32, and so does a conversion."""
    qwen2_audio(tmp_path)
    from transformers import AutoModel

    dtype = getattr(torch, name)
    found = open_to_measure(tmp_path, precision=name)
    theirs = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    frequencies = {
        key: buffer for model in (theirs, found.module) for key, buffer in model.named_buffers() if "inv_freq" in key
    }
    assert len(frequencies) >= 2 and {buffer.dtype for buffer in frequencies.values()} == {torch.float32}
    assert {parameter.dtype for parameter in found.module.parameters()} == {dtype}
    converted = open_embedder(tmp_path).to(dtype=dtype)
    texts = ["a dog " * 40, "high rain"]
    np.testing.assert_array_equal(converted.encode(texts), found.encode(texts))


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("loaded", [False, True])
def test_scores_are_those_of_the_precision(folder: Path, name: str, loaded: bool) -> None:
    pairs = sounds(12)
    given = open_embedder(folder) if loaded else folder
    table = evaluate_retrieval({"one": given}, {"set": pairs}, precision=name, batch_size=5, directions=["to_text"])
    model = open_embedder(folder)
    model.module.to(getattr(torch, name))
    texts = list(dict.fromkeys(pair["text"] for pair in pairs))
    items = np.concatenate([model.encode([p["audio"] for p in pairs[s : s + 5]], "audio") for s in (0, 5, 10)])
    right = [[texts.index(pair["text"])] for pair in pairs]
    wanted = score_queries(items, model.encode(texts, "text", batch_size=5), right)["mrr"].mean()
    assert table.get("one", "set", "mrr").estimate == pytest.approx(wanted, abs=1e-12)
    assert [row.dtype for row in table.conditions] == [name]
    assert EvaluationTable.from_dict(table.as_dict()) == table
    if loaded:
        assert open_embedder(given).dtype == torch.float32, "a model of the user's keeps its precision"


def shown(sections: list[Any]) -> str:
    return repr(sections)


def test_precisions_that_differ_are_said(folder: Path) -> None:
    half = open_embedder(folder).to(dtype=torch.bfloat16)
    mixed = evaluate_retrieval({"one": folder, "two": half}, {"set": sounds(6)})
    assert "run in float32 and bfloat16, each in its own" in shown(evaluated_sections({"retrieval": mixed}))
    alike = evaluate_retrieval({"one": folder, "two": half}, {"set": sounds(6)}, precision="float32")
    assert "each in its own" not in shown(evaluated_sections({"retrieval": alike}))
    assert {row.dtype for row in alike.conditions} == {"float32"} and half.dtype == torch.bfloat16


def test_drift_is_measured_and_said_in_the_precision(folder: Path) -> None:
    specialist: Any = open_embedder(folder).module
    fused = moved(specialist, 0.5)
    found = diagnose_drift(fused, specialist, probes=sounds(10), precision="bfloat16", batch_size=4)
    (drift,) = found.modalities.values()
    assert drift.precisions == {"specialist": "bfloat16", "fused": "bfloat16"}
    assert drift.bands["cosine"].sources == ("float32",)  # its twin, where nothing drifted
    assert str(found).endswith("Measured in bfloat16.") and "in bfloat16." in shown(drift_sections(found))
    assert DriftReport.from_dict(found.as_dict()).modalities["audio"].precisions == drift.precisions
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
    own = diagnose_drift(fused, specialist, probes=sounds(10))
    assert own.modalities["audio"].precisions["fused"] == "float32" and "Measured in" not in str(own)


@HALF
def test_recovery_looks_in_the_precision_and_says_so(folder: Path, name: str, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=2, batch_size=4, warmup=0, evaluate_every=2, looked_at_in=name, device="cpu")  # type: ignore[arg-type]
    seen = []
    for own in (settings, replace(settings, looked_at_in=None)):
        report = recover(open_embedder(folder), sounds(12), settings=own, held_out=sounds(9, seed=3), work=tmp_path)
        seen.append(report)
    assert f"scored in {name}" in " ".join(seen[0].notes) and "scored in" not in " ".join(seen[1].notes)
    items = TrainingItems(open_embedder(folder), {"audio": sounds_of(sounds(9, seed=3))}, precision=name)
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, name)):
        wanted = items.embedder.embed(items.batch(range(9))).float()
    torch.testing.assert_close(items.embed(range(9)), torch.nn.functional.normalize(wanted, dim=-1))
    plain = TrainingItems(open_embedder(folder), items.sets)
    assert not torch.equal(plain.embed(range(9)), items.embed(range(9)))
    for one in (plain, items):
        one.freeze_texts()
    assert plain._texts is not None and items._texts is not None and plain._texts.folder != items._texts.folder


def sounds_of(rows: list[dict[str, Any]]) -> Any:
    from taskmerge.embedders.pairs import read_pairs

    return read_pairs(rows)


def test_a_choice_says_the_precision_it_was_made_in(folder: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=2, batch_size=4, looked_at_in="bfloat16", device="cpu")
    report = recover_by_choice(
        folder, sounds(15), method="closed_form", settings=settings, held_out=sounds(9, seed=3), out=tmp_path / "out"
    )
    assert "scored in bfloat16" in " ".join(report.notes)


def test_a_recipe_says_it_and_a_stage_is_measured_again(tmp_path: Path) -> None:
    text = (
        "base: base\nspecialists: {a: a}\noutput: {path: out}\n"
        "drift: {specialist: a, probes: p.jsonl}\nevaluate: {retrieval: {s: p.jsonl}}\n"
    )

    def sections(text: str) -> list[str]:
        run = Run(loads(text, str(tmp_path / "r.yaml"), tmp_path), Places(tmp_path / "out"))
        return [run._said(step.section) for step in (*diagnose_steps(run), *evaluate_steps(run))]

    plain = sections(text)
    half = sections(text.replace("}\nevaluate: {", "XX}\nevaluate: {XX, ").replace("XX", ", precision: bfloat16")
                    .replace("{, ", "{"))  # fmt: skip
    assert all(one != other for one, other in zip(plain, half, strict=True))
    with pytest.raises(UsageError, match="precision must be bfloat16, float16, float32 or float64, or left out"):
        sections(text.replace("probes: p.jsonl", "probes: p.jsonl, precision: bf16"))


def test_commands(folder: Path, tmp_path: Path) -> None:
    rows = [{"query": "a dog", "text": "dog"}, {"query": "a cat", "text": "cat"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = ["evaluate", str(folder), "--retrieval", f"set={tmp_path / 'p.jsonl'}", "--json"]
    done = CliRunner().invoke(app, [*own, "--precision", "bfloat16", "--batch-size", "1"])
    assert done.exit_code == 0, done.output
    assert [row["dtype"] for row in json.loads(done.stdout)["retrieval"]["conditions"]] == ["bfloat16"]
    done = CliRunner().invoke(app, [*own, "--precision", "bfloat61"])
    assert "did you mean 'bfloat16'?" in str(done.exception)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("base: base\nspecialists: {a: a}\nevaluate: {retrieval: {s: p.jsonl}}\noutput: {path: out}\n")
    done = CliRunner().invoke(app, ["evaluate", str(recipe), "--precision", "bfloat16"])
    assert "--precision cannot be combined with a recipe" in str(done.exception)
    done = CliRunner().invoke(app, ["check-model", str(folder), "--precision", "bfloat16", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["precision"] == "bfloat16"


def test_mteb_files_it_as_an_experiment_of_its_own(folder: Path) -> None:
    pytest.importorskip("mteb")
    from taskmerge.measuring.evaluation.mteb_model import as_mteb_model

    own, half = (as_mteb_model(folder, "mine", precision=one).mteb_model_meta for one in (None, "bfloat16"))
    assert (own.experiment_kwargs, half.experiment_kwargs) == (None, {"dtype": "bfloat16"})
    assert own.revision != half.revision
