"""`taskmerge soup`: the mean as a model of its own, and the greedy choice against the same search done by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_model, read_model, same_bits, write_model
from omni_models import tiny_backbone
from safetensors.torch import load_file, save_file

from taskmerge.measuring.evaluation import evaluate_retrieval

Command = Callable[..., Any]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_mean_is_written_and_said(tmp_path: Path, command: Command, dtype: str | None) -> None:
    base = random_model(0)
    made = {step: random_model(step, near=base) for step in (5, 10, 20)}
    for step, tensors in made.items():
        write_model(tmp_path / f"checkpoint-{step}", tensors)
    more = ("--dtype", dtype) if dtype else ()
    ran = command("soup", tmp_path / "checkpoint-*", "--last", 2, "--out", tmp_path / "out", *more)
    assert ran.code == 0, ran.err
    assert "the mean of 2 checkpoints: checkpoint-10, checkpoint-20" in ran.err
    for name, value in read_model(tmp_path / "out").items():
        expected = (made[10][name].double() + (made[20][name].double() - made[10][name].double()) / 2).to(value.dtype)
        assert same_bits(value, expected), name


def test_checkpoints_that_are_adapters(tmp_path: Path, command: Command) -> None:
    import peft
    import zoo

    kind = zoo.BY_NAME["Qwen3"]
    zoo.save(kind.build(), tmp_path / "base")
    for step in (1, 2):
        model = peft.get_peft_model(kind.build(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(str(tmp_path / f"checkpoint-{step}"))
        zoo.save(model.merge_and_unload(), tmp_path / f"merged-{step}")
    alone = command("soup", tmp_path / "checkpoint-*", "--out", tmp_path / "out")
    assert alone.code == 2 and "give the model that it belongs to: --base MODEL" in alone.err
    ran = command("soup", tmp_path / "checkpoint-*", "--base", tmp_path / "base", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    one, two = (load_file(tmp_path / f"merged-{step}" / "model.safetensors") for step in (1, 2))
    for name, value in read_model(tmp_path / "out").items():
        torch.testing.assert_close(value, ((one[name].double() + two[name].double()) / 2).float(), rtol=1e-5, atol=1e-6)


WORDS = ("dog", "rain", "high", "low", "tone", "sound", "a")


def run_of(folder: Path) -> list[Path]:
    """Sentence-transformers checkpoints: some near a first, some far from it."""
    from sentence_transformers import SentenceTransformer

    start = folder / "checkpoint-1"
    SentenceTransformer(str(tiny_backbone(folder / "plain")), device="cpu").save_pretrained(str(start))
    tensors = load_file(start / "model.safetensors")
    for step, noise in ((2, 0.3), (3, 1.0), (10, 0.3)):
        here = folder / f"checkpoint-{step}"
        shutil.copytree(start, here)
        generator = torch.Generator().manual_seed(step)
        moved = {
            name: value + noise * value.std() * torch.randn(value.shape, generator=generator)
            if value.is_floating_point() and value.dim() > 1
            else value
            for name, value in tensors.items()
        }
        save_file(moved, here / "model.safetensors", {"format": "pt"})
    return [folder / f"checkpoint-{step}" for step in (1, 2, 3, 10)]


def recall(folder: Path, pairs: Any) -> float:
    table = evaluate_retrieval({"x": folder}, {"pairs": pairs})
    return sum(table.get("x", "pairs", direction=way).estimate for way in ("to_text", "from_text")) / 2


def mean_folder(folders: list[Path], out: Path) -> Path:
    shutil.copytree(folders[0], out)
    states = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {
        name: (sum(state[name].double() for state in states) / len(states)).float()  # type: ignore[union-attr]
        if states[0][name].is_floating_point()
        else states[0][name]
        for name in states[0]
    }
    save_file(mean, out / "model.safetensors", {"format": "pt"})
    return out


def test_the_greedy_choice_is_that_of_a_search_by_hand(tmp_path: Path, command: Command) -> None:
    folders = run_of(tmp_path)
    texts = [f"{one} {two}" for one in WORDS for two in WORDS if one != two]
    pairs = [{"query": f"{text} sound", "text": text} for text in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    alone = [recall(folder, pairs) for folder in folders]
    order = sorted(range(len(folders)), key=lambda place: (-alone[place], -place))
    chosen, best = [order[0]], alone[order[0]]
    for number, place in enumerate(order[1:]):
        tried = mean_folder([folders[one] for one in (*chosen, place)], tmp_path / f"try-{number}")
        score = recall(tried, pairs)
        if score >= best:
            chosen, best = [*chosen, place], score
    assert len(set(alone)) > 1 and len(chosen) < len(folders)  # the choice is one
    ran = command("soup", tmp_path / "checkpoint-*", "--greedy", tmp_path / "pairs.jsonl", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    by_hand = mean_folder([folders[one] for one in sorted(chosen)], tmp_path / "by-hand")
    got, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(by_hand / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-7)
    assert recall(tmp_path / "out", pairs) == pytest.approx(best)
    named = ", ".join(folders[one].name for one in sorted(chosen))
    assert f"the mean of {len(chosen)} checkpoints: {named}" in ran.err
    assert ran.err.count("R@1") == 2 * len(folders) - 1


REFUSED = {
    "one path": (["run"], "matches one path, not several"),
    "both": (["run-*", "--ema", "0.9", "--greedy", "p.jsonl"], "--greedy cannot be combined with --ema"),
    "a decay of two": (["run-*", "--ema", "2"], "is not between 0 and 1"),
    "nothing there": (["run-*"], "no folder or file matches 'run-*'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_soup_is_told(
    tmp_path: Path, command: Command, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, told = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    ran = command("soup", *words, "--out", tmp_path / "out")
    assert ran.code in (1, 2) and told in ran.err and not (tmp_path / "out").exists()
