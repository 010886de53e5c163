"""Files that trainers leave beside or around a model: read as PyTorch reads them, or refused with the way on."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import save_file

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.errors import CheckpointError
from taskmerge.numbers.rounding import decode

Tensors = dict[str, torch.Tensor]


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyperparameters: a class that this program must not import."""


def tensors(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.0.weight": torch.randn(5, 3, generator=generator),
        "layers.0.turned": torch.randn(4, 6, generator=generator).T,
        "layers.1.weight": torch.randn(7, generator=generator).bfloat16(),
        "layers.1.cut": torch.randn(6, 6, generator=generator)[1:5, 2:4],
        "scale": torch.tensor(2.5, dtype=torch.float64),
        "steps": torch.arange(3),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
    }


def adam() -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer.state_dict()


WRAPPED: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "plain": ("pytorch_model.bin", dict, ""),
    "parameters": (
        "model.pth", lambda own: {n: torch.nn.Parameter(v, v.is_floating_point()) for n, v in own.items()}, "",
    ),
    "ordered": ("model.pt", OrderedDict, ""),
    "state_dict": ("model.pt", lambda own: {"state_dict": own}, "['state_dict']"),
    "Lightning": (
        "last.ckpt",
        lambda own: {
            "state_dict": own, "epoch": 2, "global_step": 9, "pytorch-lightning_version": "2.0",
            "optimizer_states": [adam()], "lr_schedulers": [], "callbacks": {"C": {"best": torch.tensor(1.0)}},
            "hyper_parameters": AttributeDict(lr=1.0, path=Path("a"), args=argparse.Namespace(b=1)),
        },
        "['state_dict'], not 'epoch', 'global_step', 'pytorch-lightning_version', 'optimizer_states', 'lr_schedulers'",
    ),
    "model_state_dict": (
        "model.pt",
        lambda own: {"epoch": 1, "model_state_dict": own, "loss": torch.tensor(0.1)}, "not 'epoch', 'loss'",
    ),
    "model": (
        "checkpoint.pth",
        lambda own: {"model": own, "optimizer": adam(), "args": argparse.Namespace(a=1)}, "['model']",
    ),
    "module": ("model.pt", lambda own: {"module": own, "ds_version": "0.1"}, "['module']"),
    "twice": (
        "model.pt",
        lambda own: {"model": {"state_dict": own, "ema": {"a": torch.ones(1, 2)}}}, "['model']['state_dict']",
    ),
    "with an average": (
        "model.pt", lambda own: {"state_dict": own, "state_dict_ema": tensors(1)}, "not 'state_dict_ema'",
    ),
    "another key": ("model.pt", lambda own: {"student": own, "teacher_ema": tensors(1)}, "['student']"),
    "numbers among them": (
        "model.pt", lambda own: {**own, "epoch": 3, "note": "x"}, "left out, not tensors: 'epoch', 'note'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("case", WRAPPED)
def test_every_wrapping_gives_the_tensors(tmp_path: Path, case: str, zipped: bool) -> None:
    name, wrap, said = WRAPPED[case]
    own = tensors()
    torch.save(wrap(own), tmp_path / name, _use_new_zipfile_serialization=zipped)
    for source in (tmp_path / name, tmp_path):
        weights = open_stored(source)
        assert set(weights.tensors) == set(own)
        assert said in " ".join(weights.beside.notes) if said else not weights.beside.notes
        for tensor, value in own.items():
            info, flat = weights.tensors[tensor], value.reshape(-1)
            assert info.shape == tuple(value.shape)
            if value.is_floating_point():
                got, flat = decode(weights.read(tensor), info.dtype), flat.double()
            else:
                got = weights.read(tensor)
            np.testing.assert_array_equal(got, flat.numpy(), err_msg=tensor)
            part = weights.read(tensor, 1, 3)
            np.testing.assert_array_equal(part, weights.read(tensor)[1:3])


def test_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    table = torch.randn(6, 4)
    torch.save({"embed.weight": table, "head.weight": table, "part": table[2:4]}, tmp_path / "model.pt")
    weights = open_stored(tmp_path / "model.pt")
    np.testing.assert_array_equal(weights.read("head.weight"), table.numpy().reshape(-1))
    np.testing.assert_array_equal(weights.read("part"), table[2:4].numpy().reshape(-1))


def test_eight_bit_floats_come_as_bits(tmp_path: Path) -> None:
    value = torch.randn(4, 4).to(torch.float8_e4m3fn)
    torch.save({"a": value}, tmp_path / "model.pt")
    weights = open_stored(tmp_path / "model.pt")
    assert weights.tensors["a"].dtype == "F8_E4M3"
    np.testing.assert_array_equal(weights.read("a"), value.view(torch.uint8).numpy().reshape(-1))


# ----------------------------------------------------------------------------------------------------- folders


def trainers_folder(folder: Path) -> None:
    """All that transformers' Trainer writes beside a model."""
    folder.mkdir(exist_ok=True)
    torch.save(adam(), folder / "optimizer.pt")
    for name in ("scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"):
        torch.save({"state": torch.ones(2)}, folder / name)
    (folder / "trainer_state.json").write_text("{}")


@pytest.mark.parametrize(
    "name", ["model.pt", "model.pth", "pytorch_model.bin", "best.ckpt", "open_clip_pytorch_model.bin"]
)
def test_the_only_model_of_a_folder_is_it(tmp_path: Path, name: str) -> None:
    trainers_folder(tmp_path / "run")
    torch.save(tensors(), tmp_path / "run" / name)
    assert set(open_stored(tmp_path / "run").tensors) == set(tensors())


def test_a_trainers_own_files_are_no_model(tmp_path: Path) -> None:
    trainers_folder(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no readable weights"):
        open_stored(tmp_path / "run")


def test_two_models_in_a_folder_are_told_apart_by_the_user(tmp_path: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        torch.save(tensors(), tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"2 PyTorch files .* best\.ckpt, last\.ckpt\n    give the path of the file"
    ):
        open_stored(tmp_path)
    assert open_stored(tmp_path / "last.ckpt").tensors


def test_a_whole_file_goes_before_a_stale_index(tmp_path: Path) -> None:
    """As transformers, which looks for the whole file first."""
    from transformers import AutoModelForCausalLM

    model = zoo.BY_NAME["Llama"].build()
    zoo.save(model, tmp_path / "model")
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), "model-00001-of-00002.safetensors")}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = open_stored(tmp_path / "model")
    assert "model.safetensors.index.json next to it is ignored; it lists model-00001-of-00002.safetensors" in str(
        weights.beside.notes
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name in weights.tensors:
        np.testing.assert_array_equal(weights.read(name), loaded[name].numpy().reshape(-1))


def test_an_index_that_names_the_whole_file_among_others_holds(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "extra.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": "extra.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_stored(tmp_path).tensors) == {"a", "b"}


def test_names_without_what_libraries_put_into_them(tmp_path: Path) -> None:
    own = {
        "_orig_mod.layers.0._checkpoint_wrapped_module.weight": torch.ones(2),
        "_orig_mod.head.weight": torch.ones(3),
    }
    save_file(own, tmp_path / "model.safetensors")
    weights = open_stored(tmp_path)
    assert set(weights.tensors) == {"layers.0.weight", "head.weight"}
    assert "names are read without '_checkpoint_wrapped_module', '_orig_mod'" in str(weights.beside.notes)
    save_file({"_orig_mod.a": torch.ones(2), "a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert set(open_stored(tmp_path).tensors) == {"_orig_mod.a", "a"}


# ----------------------------------------------------------------------------------------------------- whisper


def openai_names(state: Tensors) -> Tensors:
    """transformers' Whisper under openai-whisper's names."""
    pairs = [
        ("layers", "blocks"), ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("final_layer_norm", "mlp_ln"),
        ("encoder_attn_layer_norm", "cross_attn_ln"), ("self_attn_layer_norm", "attn_ln"),
        ("encoder_attn.q_proj", "cross_attn.query"), ("encoder_attn.k_proj", "cross_attn.key"),
        ("encoder_attn.v_proj", "cross_attn.value"), ("encoder_attn.out_proj", "cross_attn.out"),
        ("self_attn.q_proj", "attn.query"), ("self_attn.k_proj", "attn.key"), ("self_attn.v_proj", "attn.value"),
        ("self_attn.out_proj", "attn.out"), ("decoder.layer_norm.", "decoder.ln."),
        ("encoder.layer_norm.", "encoder.ln_post."), ("embed_tokens", "token_embedding"),
        ("embed_positions.weight", "positional_embedding"),
    ]  # fmt: skip
    renamed = {}
    for name, value in state.items():
        if name == "proj_out.weight":
            continue
        for theirs, ours in pairs:
            name = name.replace(theirs, ours)
        renamed[name.removeprefix("model.")] = value
    return renamed


def test_openai_whisper_is_transformers_whisper(tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    model = zoo.BY_NAME["Whisper"].build("WhisperForConditionalGeneration")
    config = model.config
    dims = {
        "n_mels": config.num_mel_bins, "n_vocab": config.vocab_size, "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model, "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers, "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model, "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }  # fmt: skip
    torch.save({"dims": dims, "model_state_dict": openai_names(model.state_dict())}, tmp_path / "tiny.pt")
    weights = open_stored(tmp_path / "tiny.pt")
    expected = {name: value for name, value in model.state_dict().items() if name != "proj_out.weight"}
    assert set(weights.tensors) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(weights.read(name), value.numpy().reshape(-1), err_msg=name)
    tokens = {key: value for key, value in config.to_dict().items() if key.endswith("token_id")}
    settings = {**weights.config, **tokens}
    settings |= {"encoder_ffn_dim": config.encoder_ffn_dim, "decoder_ffn_dim": config.decoder_ffn_dim}
    again = WhisperForConditionalGeneration(type(config).from_dict(settings))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert "openai-whisper's names are read as those of transformers' Whisper" in str(weights.beside.notes)


# ---------------------------------------------------------------------------------------------------- refusals


class Quantised:
    """Stands for a tensor class of a quantising library."""


def write(path: Path, case: str) -> None:
    whole = tensors()
    if case == "TorchScript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    elif case == "whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif case == "several":
        torch.save({"encoder": whole, "decoder": whole}, path)
    elif case == "two levels":
        torch.save({**whole, "inner": whole}, path)
    elif case == "an optimizer":
        torch.save(adam(), path)
    elif case == "complex":
        torch.save({"a": torch.ones(2, dtype=torch.complex128)}, path)
    elif case == "quantised":
        torch.save({"a": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)}, path)
    elif case == "sparse":
        torch.save({"a": torch.eye(3).to_sparse()}, path)
    elif case == "a plain pickle":
        path.write_bytes(pickle.dumps({"a": np.ones(3)}))
    elif case == "cut off":
        torch.save(whole, path)
        path.write_bytes(path.read_bytes()[:700])
    elif case == "cut off, old":
        torch.save(whole, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-20])
    elif case == "repeating":
        torch.save({"a": torch.ones(1).expand(1 << 40)}, path)
    elif case == "GGUF":
        path.write_bytes(b"GGUF" + bytes(600))


REFUSED = {
    "TorchScript": "a TorchScript program",
    "whole module": "a complete torch.nn.modules.linear.Linear was saved",
    "several": "contains several tables of tensors: 'encoder', 'decoder'",
    "two levels": "contains more than a table of named tensors: 'inner'",
    "an optimizer": "contains no named tensors: its keys are 'state', 'param_groups'",
    "complex": "'a' is complex128",
    "quantised": "no tensors can be read from it as a PyTorch file",
    "sparse": "contains more than a table of named tensors",
    "a plain pickle": "no tensors can be read from it as a PyTorch file",
    "cut off": "no tensors can be read from it as a PyTorch file",
    "cut off, old": "no tensors can be read from it as a PyTorch file",
    "repeating": "would repeat a few stored numbers",
    "GGUF": "its format: GGUF",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_with_the_way_on(tmp_path: Path, case: str) -> None:
    path = tmp_path / ("model.gguf" if case == "GGUF" else "model.pt")
    write(path, case)
    with pytest.raises(CheckpointError) as caught:
        open_stored(path)
    assert REFUSED[case] in str(caught.value)
    assert all(problem.next_move for problem in caught.value.problems)


def test_hugging_face_and_open_clip_side_by_side(tmp_path: Path) -> None:
    """As in laion's repositories: transformers' file is the one that is meant."""
    save_file({"text_model.a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"transformer.a": torch.ones(2)}, tmp_path / "open_clip_model.safetensors")
    torch.save({"transformer.a": torch.ones(2)}, tmp_path / "open_clip_pytorch_model.bin")
    assert set(open_stored(tmp_path).tensors) == {"text_model.a"}
    assert set(open_stored(tmp_path / "open_clip_model.safetensors").tensors) == {"transformer.a"}
    (tmp_path / "model.safetensors").unlink()
    assert set(open_stored(tmp_path).tensors) == {"transformer.a"}


def test_a_pickle_cannot_change_what_the_next_is_read_with(tmp_path: Path) -> None:
    """A pickle may set attributes of what it names; each file gets stand-ins of its own."""
    build = b"\x80\x02ctorch\nfloat32\nN}X\x04\x00\x00\x00textX\x04\x00\x00\x00int8s\x86b0}."
    shutil.copy(Path(__file__), tmp_path / "own.py")
    torch.save({"a": torch.ones(3)}, tmp_path / "model.pt")
    (tmp_path / "hostile.bin").write_bytes(build)
    with pytest.raises(CheckpointError):
        open_stored(tmp_path / "hostile.bin")
    from io import BytesIO

    from taskmerge.checkpoints.formats.unpickling import Unpickler

    Unpickler(BytesIO(build)).load()
    np.testing.assert_array_equal(open_stored(tmp_path / "model.pt").read("a"), np.ones(3, "f4"))


@pytest.mark.parametrize("words", [("inspect",), ("diff",), ("compare",)])
def test_every_command_says_it(tmp_path: Path, command: Callable[..., Any], words: tuple[str, ...]) -> None:
    own = {"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3), "model.norm.weight": torch.ones(3)}
    moved = {name: value + 1 for name, value in own.items()}
    torch.save({"state_dict": moved, "epoch": 3}, tmp_path / "last.ckpt")
    save_file(own, tmp_path / "base.safetensors")
    paths = [tmp_path / "base.safetensors", tmp_path / "last.ckpt"]
    ran = command(*words, *(paths[1:] if words == ("inspect",) else paths))
    assert "warning: " in ran.err and "the model is taken from ['state_dict'], not 'epoch'" in ran.err
    assert ran.err.count("['state_dict']") == 1
