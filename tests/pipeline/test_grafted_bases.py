"""base + our own graft, through every stage, for every kind of base; what cannot work is told before any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from omni_models import picture, tiny_backbone
from pipeline_projects import RECIPE, TEXTS, new_project
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from vision_models import vision_model

from taskmerge.cli.app import app
from taskmerge.embedders import open_embedder
from taskmerge.embedders.opening import opening
from taskmerge.errors import RecipeError
from taskmerge.pipeline import run
from taskmerge.recipes import loads


def stored_positions(folder: Path) -> None:
    """A plain folder of an older transformers: its position ids are in the file."""
    tiny_backbone(folder)
    tensors = load_file(folder / "model.safetensors") | {"embeddings.position_ids": torch.arange(64)[None]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def untied_head(folder: Path) -> None:
    headed(folder, "LlamaForCausalLM", tie_word_embeddings=False)


def masked_language_head(folder: Path) -> None:
    """BertForMaskedLM: a head of its own, and no pooler."""
    headed(folder, "BertForMaskedLM")


def headed(folder: Path, class_name: str, **changes: Any) -> None:
    import transformers

    tiny_backbone(folder, causal="Llama" in class_name)
    made = getattr(transformers, class_name)
    config = made.config_class.from_pretrained(folder, **changes)
    torch.manual_seed(0)
    made(config).save_pretrained(folder)


def sentence_folder(folder: Path) -> None:
    """sentence-transformers': a Dense module after the pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    inner = Transformer(str(tiny_backbone(folder.with_name("plain"))))
    torch.manual_seed(0)
    modules = [inner, Pooling(32, "mean"), Dense(32, 16), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))


def seeing(folder: Path) -> None:
    vision_model("Qwen3-VL", folder)


def seeing_sentence_folder(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = vision_model("Gemma 3", folder.with_name("plain"))
    with opening(plain, "base"):
        SentenceTransformer(str(plain), device="cpu").save_pretrained(str(folder))


def encoder_of_t5(folder: Path, class_name: str = "T5EncoderModel") -> None:
    import transformers

    tiny_backbone(folder)
    (folder / "model.safetensors").unlink()
    kind = replace(zoo.BY_NAME["T5 encoder"], config={**zoo.BY_NAME["T5 encoder"].config, "vocab_size": 20})
    config = kind.build().config
    config.decoder_start_token_id = 0
    getattr(transformers, class_name)(config).save_pretrained(folder)


SHORT = RECIPE[: RECIPE.index("rehearse:")] + RECIPE[RECIPE.index("evaluate:") :]
BASES: tuple[Callable[[Path], None], ...] = (
    stored_positions, untied_head, masked_language_head, sentence_folder, seeing, seeing_sentence_folder, encoder_of_t5
)  # fmt: skip


@pytest.mark.parametrize("make", BASES, ids=lambda make: make.__name__)
def test_every_stage_runs(make: Callable[[Path], None], tmp_path: Path) -> None:
    project = new_project(tmp_path / "project", make)
    table = run(loads(SHORT, "recipe.yaml", project), say=lambda line: None)
    rows = table["stages"]["evaluate"]["retrieval"]["results"]
    assert {row["variant"] for row in rows} == {"specialist audio", "fused", "recovered"}
    fused, recovered = (load_file(project / name / "model.safetensors") for name in ("fused", "fused-recovered"))
    projector = {name for name in fused if name.startswith("audio_projector.")}
    kept = recovered.keys() - projector  # heads that no embedder runs are left behind when it is saved
    assert kept and all(torch.equal(fused[name], recovered[name]) for name in kept)
    assert (
        not (fused.keys() - recovered.keys())
        - {"lm_head.weight", "backbone.embeddings.position_ids"}
        - {name for name in fused if name.startswith(("cls.", "backbone.cls."))}
    )
    if make is seeing:
        evaluated_on_pictures(project)


def evaluated_on_pictures(project: Path) -> None:
    lines = []
    for number, word in enumerate(TEXTS):
        picture(30 * number).save(project / f"{word}.png")
        lines.append(f'{{"image": "{word}.png", "text": "a {word}"}}\n')
    (project / "image.jsonl").write_text("".join(lines))
    command = ["evaluate", str(project / "fused-recovered"), "--retrieval", f"image={project / 'image.jsonl'}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "image" in result.stdout, result.output


def test_what_cannot_be_fused_is_told_before_training(tmp_path: Path) -> None:
    """An embedder takes T5's encoder alone; a base that has the decoder too could not be summed with it."""
    project = new_project(tmp_path / "project", lambda folder: encoder_of_t5(folder, "T5ForConditionalGeneration"))
    said: list[str] = []
    with pytest.raises(RecipeError, match=r"fuse, after all are trained: .* lacks the base's tensor .*decoder") as told:
        run(loads(RECIPE, "recipe.yaml", project), say=said.append)
    assert not said and len(str(told.value).splitlines()) <= 20
    assert not list(project.glob("specialist-*")) and not list(project.glob("fused*"))


def test_a_tower_that_the_base_has_is_told_before_training(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project", seeing)
    (project / "image.jsonl").write_text(
        '{"image": "dog.png", "text": "a dog"}\n{"image": "cat.png", "text": "a cat"}\n'
    )
    for word in ("dog", "cat"):
        picture(90).save(project / f"{word}.png")
    text = """\
base: base
specialists: {image: {model: specialist-image}}
specialize: {image: {data: image.jsonl, graft: {encoder: patches}, steps: 2, batch_size: 2}}
output: {path: fused}
"""
    with pytest.raises(RecipeError, match=r"specialize: image: .* already supports image, video"):
        run(loads(text, "recipe.yaml", project), say=lambda line: None)


def test_a_model_is_foreseen_without_its_values(tmp_path: Path) -> None:
    from taskmerge.embedders.grafting import graft, graft_on_meta

    base = vision_model("Qwen3-VL", tmp_path / "base")
    foreseen, made = (
        graft_on_meta(base, "audio", "log_mel"),
        graft(base, "audio", "log_mel", placeholder="<|video_pad|>"),
    )
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (foreseen, made)]
    assert shapes[0] == shapes[1] and foreseen[0].backbone.device.type == "meta"
    assert open_embedder(foreseen).modalities == open_embedder(made).modalities
