"""The grafted embedder: what it encodes, saves, loads and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omni_models import picture, tiny_backbone, tone
from safetensors import safe_open

from taskmerge.embedders import graft, open_embedder
from taskmerge.errors import CheckpointError, OutputError, TaskmergeError, UsageError

AUDIO = {"kind": "log_mel", "mels": 16, "layers": 1, "width": 24}
VISION = {"kind": "patches", "height": 16, "patch_height": 8, "max_width": 32, "width": 24}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def folder(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("grafted")
    graft(backbone, "audio", AUDIO, "linear", home / "audio")
    graft(home / "audio", "image", VISION, "mlp", home / "omni")
    return home / "omni"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return open_embedder(folder).module


def everything() -> list[Any]:
    wave = tone(440)
    return [
        "a dog",
        picture(200),
        {"array": wave, "sampling_rate": 16000},
        wave[:4000],
        "rain",
        {"text": "sound of rain", "audio": wave},
        {"video": [picture(shade) for shade in (10, 120, 250)]},
    ]


def test_mixed_batch_equals_one_by_one(model: Any) -> None:
    items = everything()
    together = model.encode(items)
    alone = np.stack([model.encode([item])[0] for item in items])
    assert together.shape == (len(items), 32)
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert np.linalg.norm(together[2] - together[3]) > 1e-3


def test_loads_as_plain_sentence_transformer(model: Any, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(plain.encode(everything()), model.encode(everything()))


def test_text_is_the_backbones_own(model: Any, backbone: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(backbone).eval(), AutoTokenizer.from_pretrained(backbone)
    texts = ["a dog", "sound of rain"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = network(**batch).last_hidden_state.double().numpy()
    mask = batch["attention_mask"].numpy()[..., None]
    pooled = (states * mask).sum(axis=1) / mask.sum(axis=1)
    np.testing.assert_allclose(model.encode(texts), pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_placeholders_are_replaced_by_the_projected_vectors(tmp_path: Path, causal: bool) -> None:
    """The sequence, built by hand and fed to the backbone, gives the embedder's token embeddings."""
    home = tiny_backbone(tmp_path / "backbone", causal)
    grafted = graft(home, "audio", AUDIO, "mlp", start="<|s|>", end="<|e|>", pooling="mean", normalize=False)
    embedder: Any = grafted[0]
    wave = tone(300)
    features = grafted.preprocess([{"audio": wave, "text": "a dog"}, "rain"])
    with torch.no_grad():
        output = grafted(dict(features))
        prepared = embedder.prepare(wave, "audio")
        vectors = embedder.projector("audio")(embedder.encoder("audio")(prepared[None], torch.tensor([len(prepared)])))
        ids = embedder.tokenizer.convert_tokens_to_ids
        table = embedder.backbone.get_input_embeddings()
        before, after = ([], []) if causal else ([ids("[CLS]")], [ids("[SEP]")])
        start = table(torch.tensor([*before, ids("<|s|>")]))
        end = table(torch.tensor([ids("<|e|>"), ids("a"), ids("dog"), *after]))
        sequence = torch.cat([start, vectors[0], end])[None]
        expected = embedder.backbone(inputs_embeds=sequence).last_hidden_state[0]
    got = output["token_embeddings"][0][features["attention_mask"][0].bool()]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert int(features["audio_mask"][1].sum()) == 0
    torch.testing.assert_close(output["audio_projected"], vectors[0], atol=1e-6, rtol=1e-6)


def test_tensor_names_and_config_say_the_components(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "np") as file:
        parts = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118  (no mapping)
    assert parts == {"backbone", "audio_encoder", "audio_projector", "vision_encoder", "vision_projector"}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "taskmerge_omni"
    assert [tower["name"] for tower in config["towers"]] == ["audio", "vision"]


def test_grafting_keeps_what_was_there(folder: Path, backbone: Path) -> None:
    with safe_open(backbone / "model.safetensors", "np") as old, safe_open(folder / "model.safetensors", "np") as new:
        for name in old.keys():  # noqa: SIM118
            np.testing.assert_array_equal(old.get_tensor(name), new.get_tensor(f"backbone.{name}"))
    half = folder.parent / "audio" / "model.safetensors"
    with safe_open(half, "np") as old, safe_open(folder / "model.safetensors", "np") as new:
        for name in old.keys():  # noqa: SIM118
            np.testing.assert_array_equal(old.get_tensor(name), new.get_tensor(name))


def test_audio_files_and_other_rates_are_resampled(model: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.flac", tone(440, rate=44100), 44100)
    stereo = np.stack([tone(440, rate=22050)] * 2)
    embeddings = model.encode(
        [str(tmp_path / "tone.flac"), {"array": stereo, "sampling_rate": 22050}, tone(440), tone(2500)]
    )
    similar = embeddings @ embeddings.T
    assert similar[0, 2] > 0.999 and similar[1, 2] > 0.999
    assert similar[0, 2] > similar[3, 2] and similar[1, 2] > similar[3, 2]


def test_half_precision(folder: Path, model: Any) -> None:
    half: Any = open_embedder(folder, dtype=torch.bfloat16).module
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    close = (half.encode(everything(), convert_to_tensor=True).float().numpy() * model.encode(everything())).sum(axis=1)
    assert (close > 0.995).all()


def test_hidden_states_on_request(model: Any) -> None:
    features = model.preprocess([tone(440), "a dog"])
    output = model(features, output_hidden_states=True)
    assert len(output["hidden_states"]) == 3
    torch.testing.assert_close(output["hidden_states"][-1], output["token_embeddings"])
    assert output["hidden_states"][1][features["audio_mask"]].shape == output["audio_projected"].shape


def test_encoded_items_give_the_same_as_prepared_ones(model: Any) -> None:
    embedder = model[0]
    prepared = [embedder.prepare(tone(440, seconds), "audio") for seconds in (0.3, 0.8)]
    lengths = torch.tensor([len(item) for item in prepared])
    with torch.no_grad():
        encoded = embedder.encode_media("audio", torch.nn.utils.rnn.pad_sequence(prepared, batch_first=True), lengths)
        rows = [{"audio": row[:length]} for row, length in zip(encoded, lengths.tolist(), strict=True)]
        direct = model(embedder.assemble(["", ""], [{"audio": item} for item in prepared]))["sentence_embedding"]
        cached = model(embedder.assemble(["", ""], rows, encoded=True))["sentence_embedding"]
    torch.testing.assert_close(direct, cached, atol=1e-6, rtol=1e-6)


def test_frames_are_read_one_by_one(model: Any) -> None:
    """A film of one picture is that picture; frames of different widths do not mix."""
    encoder = model[0].encoder("vision")
    frames = [picture(200, width=32), picture(20, width=64)]
    film = encoder.prepare(frames, "video")
    single = [encoder.prepare(frame, "image") for frame in frames]
    with torch.no_grad():
        together = encoder(film[None], torch.tensor([len(film)]))[0]
        alone = [encoder(part[None], torch.tensor([len(part)]))[0] for part in single]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (np.zeros(0, np.float32), "is empty"),
        ({"array": tone(440), "sampling_rate": 12}, "sampling rate of 12 Hz"),
        ({"audio": {"array": tone(440), "sampling_rate": None}}, "no sampling rate"),
        ({"array": np.full(1000, np.nan, np.float32), "sampling_rate": 16000}, "NaN"),
        ({"audio": "nowhere.wav"}, "'nowhere.wav' cannot be read: No such file"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"video": []}, "no frames"),
        ({"role": "user", "content": "hello"}, "chat messages"),
        ({"audio": tone(440, 8.0)}, "does not fit into 64 tokens"),
    ],
)
def test_bad_items_are_refused_by_name(model: Any, item: Any, words: str) -> None:
    with pytest.raises(TaskmergeError, match=words):
        model.encode([item])


def test_modality_without_encoder_is_refused(folder: Path) -> None:
    audio_only: Any = open_embedder(folder.parent / "audio").module
    with pytest.raises(ValueError, match="not supported"):
        audio_only.encode([picture(1)])
    with pytest.raises(UsageError, match="no encoder for image"):
        audio_only[0].preprocess([{"image": picture(1)}])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"modality": "smell"}, UsageError, "unknown modality 'smell'"),
        ({"encoder": {"kind": "log_mle"}}, UsageError, "did you mean 'log_mel'"),
        ({"encoder": {"kind": "log_mel", "bands": 3}}, UsageError, "bands"),
        ({"projector": "conv"}, UsageError, "projector must be linear or mlp, not the text 'conv'"),
        ({"encoder": {"kind": "log_mel", "hop": 0}}, UsageError, "must be positive"),
        ({"backbone": "nowhere"}, CheckpointError, "no file or folder 'nowhere'"),
        (
            {"backbone": "owner/nowhere"},
            CheckpointError,
            "'owner/nowhere', and it cannot be downloaded from the hub",
        ),
        ({"encoder": "logmel"}, UsageError, "unknown encoder 'logmel'\n    did you mean 'log_mel'"),
        ({"encoder": "patches"}, UsageError, "encoder 'patches' takes image, video, not audio\n    use log_mel"),
        ({"encoder": {"kind": "patches"}}, UsageError, "takes image, video, not audio"),
    ],
)
def test_graft_refuses_before_it_writes(
    backbone: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    options: dict[str, Any] = {"backbone": backbone, "modality": "audio", "encoder": AUDIO, "out": tmp_path / "out"}
    with pytest.raises(error, match=words):
        graft(**{**options, **changes})
    assert not (tmp_path / "out").exists()


def test_graft_refuses_taken_towers_and_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already has a tower 'audio'"):
        graft(folder, "audio", AUDIO)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        graft(folder.parent / "audio", "image", VISION, out=tmp_path)


def test_missing_tensors_are_told(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors["audio_projector.norm.weight"]
    save_file(tensors, tmp_path / "broken" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"audio_projector\.norm\.weight"):
        open_embedder(tmp_path / "broken")


def test_what_is_no_embedder_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model, words in (
        ("nowhere", "no file or folder 'nowhere', and it is not a hub id"),
        (tmp_path / "nowhere", "no file or folder"),
        ("owner/nowhere", "there is no file or folder 'owner/nowhere', and it cannot be downloaded from the hub"),
        (tmp_path / "empty", "the embedder cannot be loaded"),
    ):
        with pytest.raises(CheckpointError, match=words):
            open_embedder(model)


def test_any_transformers_encoder(backbone: Path, tmp_path: Path) -> None:
    """Whisper's and CLIP's encoders, tiny and random: grafted, saved, loaded, and equal to the encoders themselves."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    torch.manual_seed(0)
    whisper = WhisperModel(
        WhisperConfig(
            vocab_size=10,
            num_mel_bins=8,
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=16,
            max_source_positions=50,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )
    whisper.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(tmp_path / "whisper")
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(tmp_path / "clip")
    graft(backbone, "audio", {"kind": "huggingface", "model": str(tmp_path / "whisper"), "stride": 2},
          out=tmp_path / "a")  # fmt: skip
    graft(tmp_path / "a", "image", str(tmp_path / "clip"), out=tmp_path / "b")
    loaded: Any = open_embedder(tmp_path / "b").module
    assert loaded.encode([tone(440), picture(200), "a dog"]).shape == (3, 32)
    embedder = loaded[0]
    features = embedder.prepare(tone(440), "audio")
    with torch.no_grad():
        expected = whisper.encoder(features.T[None]).last_hidden_state.reshape(1, 25, 2, 16).mean(dim=2)
        got = embedder.encoder("audio")(features[None], torch.tensor([len(features)]))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        pixels = embedder.prepare(picture(200), "image")
        torch.testing.assert_close(
            embedder.encoder("vision")(pixels[None], torch.tensor([len(pixels)])), clip(pixels[None]).last_hidden_state
        )
