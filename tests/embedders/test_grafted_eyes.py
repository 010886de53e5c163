"""A graft on a vision-language model: what the model saw before it sees in the same way, and it hears too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omni_models import picture, tiny_backbone, tone
from vision_models import SEEING, film, processor, vision_model, whisper_folder

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.processors import without_torchvision
from taskmerge.errors import UsageError
from taskmerge.measuring.drift.capture import capture

LOG_MEL = {"kind": "log_mel", "mels": 16, "layers": 1, "width": 24}
FILMS = [name for name in SEEING if SEEING[name].films]


@dataclass
class Case:
    """base: the plain folder.  model: grafted, mean pooling without normalisation.  folder: where it is saved."""

    name: str
    base: Path
    model: Any
    folder: Path

    @property
    def network(self) -> Any:
        return self.model[0].backbone


@pytest.fixture(scope="module", params=[(name, "log_mel") for name in SEEING] + [(name, "whisper") for name in SEEING])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, encoder = request.param
    home = tmp_path_factory.mktemp("seeing")
    base = vision_model(name, home / "base")
    ears: Any = LOG_MEL if encoder == "log_mel" else {"kind": "huggingface", "model": str(whisper_folder(home / "w"))}
    model = graft(
        base, "audio", ears, "mlp", home / "grafted", pooling="mean", normalize=False, start="<|audio_start|>",
        end="<|audio_end|>",
    )  # fmt: skip
    return Case(name, base, model, home / "grafted")


def seen(case: Case) -> list[Any]:
    """What the base takes: texts, pictures, both, and films where it has eyes for them."""
    mixed = {"text": "a cat", "image": picture(30)}
    return ["a dog", picture(100), mixed, *([film(), film(6, 1)] if case.name in FILMS else [])]


def everything(case: Case) -> list[Any]:
    wave = tone(440)
    return [wave, *seen(case), {"text": "a dog", "audio": wave}, {"audio": wave[:4000], "image": picture(9)}]


def by_hand(case: Case, item: Any) -> np.ndarray:
    """The base's own embedding of an item: its processor and network from transformers, states averaged."""
    from transformers import AutoModel, AutoProcessor

    with without_torchvision():
        own = AutoProcessor.from_pretrained(case.base)
    kind = {str: "text", np.ndarray: "video"}.get(type(item), "image")
    parts = item if isinstance(item, dict) else {kind: item}
    content = [{"type": name, name: value} for name, value in parts.items()]
    with without_torchvision():
        features = own.apply_chat_template(
            [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, return_tensors="pt"
        )
    with torch.no_grad():
        states = AutoModel.from_pretrained(case.base).eval()(**features).last_hidden_state
    return states[0].mean(dim=0).numpy()


def test_it_keeps_its_eyes(case: Case) -> None:
    items = seen(case)
    expected = np.stack([by_hand(case, item) for item in items])
    np.testing.assert_allclose(case.model.encode(items), expected, atol=2e-6)
    base = open_embedder(case.base)
    own: Any = base.module
    np.testing.assert_array_equal(own.encode(items), case.model.encode(items))
    assert set(open_embedder(case.folder).modalities) == {*base.modalities, "audio"}


def test_mixed_batches_equal_one_by_one(case: Case) -> None:
    items = everything(case)
    together = case.model.encode(items)
    np.testing.assert_allclose(together, np.stack([case.model.encode([item])[0] for item in items]), atol=3e-6)
    assert np.linalg.norm(together[0] - together[-2]) > 1e-3  # the text beside the sound counts


def test_saved_and_opened_it_is_the_same(case: Case, tmp_path: Path) -> None:
    opened = open_embedder(case.folder)
    opened.save(tmp_path / "again")
    module: Any = opened.module
    items = everything(case)
    np.testing.assert_array_equal(module.encode(items), case.model.encode(items))
    for file in ("config.json", "tokenizer.json", "processor_config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (case.folder / file).read_bytes(), file
    kept = json.loads((case.folder / "processor_config.json").read_text())
    assert kept == json.loads((case.base / "processor_config.json").read_text())


def projected(case: Case, wave: np.ndarray) -> torch.Tensor:
    """The vectors of one sound, from encoder and projector alone."""
    first = case.model[0]
    prepared = first.prepare(wave, "audio")
    encoder = first.encoder("audio")
    vectors = encoder(prepared[None], torch.tensor([len(prepared)]))[0, : encoder.token_count(len(prepared))]
    return first.projector("audio")(vectors)


@pytest.mark.parametrize("words", ["", "a dog"])
def test_sounds_are_a_forward_put_together_by_hand(case: Case, words: str) -> None:
    wave = tone(300)
    tokenizer, network = case.model[0].tokenizer, case.network
    with torch.no_grad():
        vectors = projected(case, wave)
        message = {"role": "user", "content": [{"type": "text", "text": f"HERE{words}"}]}
        around = processor(case.name).apply_chat_template([message])
        before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in around.split("HERE"))
        start, end = tokenizer.convert_tokens_to_ids(["<|audio_start|>", "<|audio_end|>"])
        table = network.get_input_embeddings()
        sequence = [table(torch.tensor([*before, start])), vectors, table(torch.tensor([end, *after]))]
        states = network.language_model(inputs_embeds=torch.cat(sequence)[None]).last_hidden_state[0]
    item = {"audio": wave, "text": words} if words else wave
    np.testing.assert_allclose(case.model.encode([item])[0], states.mean(dim=0).numpy(), atol=3e-6)


def test_gradients_and_other_values_reach_the_projector(case: Case) -> None:
    """As in a forward that is given the vectors directly, and as when the values are written into the model."""
    embedder = open_embedder(case.folder)
    first: Any = embedder.module[0]  # type: ignore[index]
    name = "audio_projector.layers.2.weight"
    features = embedder.prepare([{"array": tone(300), "sampling_rate": 16000}], "audio")
    embedder.embed(features).square().sum().backward()
    weight = embedder.state_dict.values[name]
    assert weight.grad is not None
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    full = open_embedder(case.folder, dtype=torch.float64)
    inputs = full.prepare([{"array": tone(300), "sampling_rate": 16000}], "audio")
    own = full.state_dict.values[name].detach()
    step = 1e-5 * direction.double()
    with torch.no_grad():
        sides = [full.embed_with({name: own + sign * step}, inputs).square().sum() for sign in (1, -1)]
    torch.testing.assert_close(
        (weight.grad * direction).sum().double(), (sides[0] - sides[1]) / 2e-5, rtol=2e-3, atol=1e-4
    )
    with torch.no_grad():
        swapped = embedder.embed_with({name: weight.detach() + direction}, features)
        weight += direction
        torch.testing.assert_close(embedder.embed(features), swapped)
    assert not first.backbone.get_input_embeddings()._forward_hooks  # nothing is left hanging on the backbone


def test_positions_of_sound_and_picture_together_are_the_bases_own(case: Case) -> None:
    """A sound's tokens count as text in Qwen's three-dimensional positions, a picture's as the grid they are."""
    if case.name not in FILMS:
        pytest.skip("one-dimensional positions")
    first, network = case.model[0], case.network
    wave = tone(300)
    features = first.preprocess([{"audio": wave, "image": picture(60), "text": "a dog"}])
    with torch.no_grad():
        embeddings = network.get_input_embeddings()(features["input_ids"])
        embeddings[features["audio_mask"]] = projected(case, wave)
        eyes = network.get_image_features(features["pixel_values"], features["image_grid_thw"])
        where = features["input_ids"] == network.config.image_token_id
        embeddings[where] = torch.cat(list(eyes.pooler_output))
        grid = features["image_grid_thw"]
        positions, _ = network.get_rope_index(features["input_ids"], features["mm_token_type_ids"], grid)
        deep = {}
        if case.name == "Qwen3-VL":
            layers = [torch.cat(list(layer)) for layer in eyes.deepstack_features]
            deep = {"visual_pos_masks": where, "deepstack_visual_embeds": layers}
        states = network.language_model(inputs_embeds=embeddings, position_ids=positions, **deep).last_hidden_state
        got = first(dict(features))["token_embeddings"]
    torch.testing.assert_close(got, states, atol=3e-6, rtol=1e-5)
    sound = positions[:, 0, features["audio_mask"][0]]
    assert torch.equal(sound[0], sound[1]) and torch.equal(sound[0], sound[2])
    assert torch.equal(sound[0].diff(), torch.ones(sound.shape[1] - 1, dtype=torch.long))


def test_drift_looks_at_the_tokens_of_the_modality_it_probes(case: Case) -> None:
    embedder = open_embedder(case.folder)
    anatomy = embedder.anatomy()
    wave = {"array": tone(300), "sampling_rate": 16000}
    heard = capture(embedder, [wave, {"array": tone(500)[:3000], "sampling_rate": 16000}], anatomy, "audio")
    vectors = torch.cat([projected(case, tone(300)), projected(case, tone(500)[:3000])]).detach().numpy()
    assert heard.fed is not None
    np.testing.assert_allclose(heard.fed, vectors, atol=1e-6)
    np.testing.assert_allclose(heard.hidden[0], vectors, atol=1e-6)
    looked = capture(embedder, [picture(100)], anatomy, "image")
    token = case.network.config.image_token_id
    count = int((case.model[0].preprocess([picture(100)])["input_ids"] == token).sum())
    assert len(anatomy.layers) == 2 and looked.hidden[1].shape[0] == count
    assert looked.fed is not None
    np.testing.assert_allclose(looked.fed, looked.hidden[0], atol=1e-6)


def test_chat_messages_hold_sounds_too(case: Case) -> None:
    wave = tone(440)
    content = [{"type": "audio", "audio": wave}, {"type": "text", "text": "a dog"}]
    conversation = [{"role": "user", "content": content}]
    np.testing.assert_allclose(
        case.model.encode([conversation]), case.model.encode([{"audio": wave, "text": "a dog"}]), atol=1e-6
    )
    own = [{"role": "user", "content": [{"type": "image", "image": picture(4)}]}]
    np.testing.assert_array_equal(case.model.encode([own]), case.model.encode([picture(4)]))


def test_what_it_cannot_take_is_refused(case: Case) -> None:
    with pytest.raises(UsageError, match="contains the token"):
        case.model.encode([f"a {case.model[0].towers['audio'].placeholder} dog"])
    if case.name not in FILMS:
        with pytest.raises(UsageError, match="no encoder for video"):
            case.model[0].preprocess([{"video": film()}])
    with pytest.raises(UsageError, match=r"already supports image.*"):
        graft(case.folder, "image", "patches")
    with pytest.raises(UsageError, match="already has a tower 'audio'"):
        graft(case.folder, "audio", "log_mel")


def test_too_long_a_sound_is_refused(tmp_path: Path) -> None:
    model = graft(vision_model("Qwen3-VL", tmp_path / "base"), "audio", LOG_MEL, max_seq_length=20)
    assert model.max_seq_length == 20 and model.encode([tone(300, 0.05)]).shape == (1, 32)
    with pytest.raises(UsageError, match="vectors does not fit into 20 tokens"):
        model.encode([tone(300, 3.0)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_stays_what_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    base = vision_model("Qwen3-VL", tmp_path / "base", dtype=dtype)
    graft(base, "audio", LOG_MEL, "mlp", tmp_path / "grafted", pooling="mean", normalize=False)
    plain, grafted = (open_embedder(folder).module for folder in (base, tmp_path / "grafted"))
    kinds = {name.partition(".")[0]: tensor.dtype for name, tensor in grafted[0].named_parameters()}  # type: ignore[index]
    assert kinds == {"backbone": dtype, "audio_encoder": torch.float32, "audio_projector": torch.float32}
    items = ["a dog", picture(100), film()]
    own = [model.encode(items, convert_to_tensor=True) for model in (plain, grafted)]  # type: ignore[operator]
    assert torch.equal(*own) and own[0].dtype == dtype
    full: Any = open_embedder(tmp_path / "grafted", dtype=torch.float64).module
    exact = full.encode([tone(300)], convert_to_tensor=True)
    near: Any = grafted
    rounded = near.encode([tone(300)], convert_to_tensor=True)
    torch.testing.assert_close(rounded.double(), exact, atol=0.05, rtol=0.05)


def test_nothing_is_drawn_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, ears = vision_model("Qwen3-VL", tmp_path / "base"), whisper_folder(tmp_path / "ears")
    capfd.readouterr()
    graft(base, "audio", str(ears), out=tmp_path / "grafted")
    open_embedder(base)
    open_embedder(tmp_path / "grafted").save(tmp_path / "again")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", list(SEEING))
def test_without_a_chat_template(name: str, tmp_path: Path) -> None:
    """The processor is called on texts that hold its own marks for pictures."""
    base = vision_model(name, tmp_path / "base", template=False)
    model: Any = graft(base, "audio", LOG_MEL, pooling="mean", normalize=False)
    wave = tone(440)
    items = ["a dog", picture(100), {"image": picture(5), "text": "a dog"}, wave, {"audio": wave, "image": picture(9)}]
    items += [film()] if name in FILMS else []
    together = model.encode(items)
    np.testing.assert_allclose(together, np.stack([model.encode([item])[0] for item in items]), atol=3e-6)
    own = processor(name, template=False)
    mark = SEEING[name].marks["PICTURE"]
    with torch.no_grad():
        features = own(text=[f"{mark}a dog"], images=[[picture(5)]], return_tensors="pt")
        states = model[0].backbone(**features).last_hidden_state[0]
    np.testing.assert_allclose(together[2], states.mean(dim=0).numpy(), atol=2e-6)
    np.testing.assert_allclose(together[:1], open_embedder(base).encode(["a dog"]), atol=2e-6)


@pytest.mark.parametrize("name", FILMS)
def test_frames_are_prepared_as_pictures_are(name: str) -> None:
    """Two equal frames make the patches that the image processor makes of one picture, which it shows twice."""
    own = processor(name)
    still = picture(80, 24, 16)
    frames = np.stack([np.asarray(still)] * 2)
    budget = {"shortest_edge": 64, "longest_edge": 512 if name == "Qwen3-VL" else 256}  # of a film, or of a frame
    colours = {"image_mean": own.image_processor.image_mean, "image_std": own.image_processor.image_std}
    films = own.video_processor([frames], size=budget, do_sample_frames=False, return_tensors="pt", **colours)
    pictures = own.image_processor([still], return_tensors="pt")
    assert torch.equal(films["video_grid_thw"], pictures["image_grid_thw"])
    torch.testing.assert_close(films["pixel_values_videos"], pictures["pixel_values"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_folders_saved_before_still_open_and_give_the_same(tmp_path: Path, causal: bool) -> None:
    """Their config says neither the backbone's class nor how it takes its inputs; vectors went in as inputs_embeds."""
    home = tiny_backbone(tmp_path / "backbone", causal)
    graft(home, "audio", LOG_MEL, "mlp", tmp_path / "saved", pooling="mean", normalize=False)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config.pop("backbone_class") in ("BertModel", "LlamaModel") and "inputs" not in config
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    model: Any = open_embedder(tmp_path / "saved").module
    items = [tone(300), "rain", {"audio": tone(500)[:4000], "text": "a dog"}]
    features = model.preprocess(items)
    first = model[0]
    with torch.no_grad():
        embeddings = first.backbone.get_input_embeddings()(features["input_ids"])
        vectors = first._projected("audio", features)
        embeddings = embeddings.masked_scatter(features["audio_mask"][..., None], vectors)
        mask = features["attention_mask"]
        states = first.backbone(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    expected = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    np.testing.assert_allclose(model.encode(items), expected.numpy(), atol=1e-6)
