"""Live models in, a live model out: the same bits as their folders make, and nothing else touched."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from live_models import MAKERS, TEXTS, Plain, causal, check_same, moved, opened, save, without_warnings
from omni_models import tiny_backbone, tone
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from taskmerge import Checkpoint, fuse
from taskmerge.errors import MergeError, TaskmergeError, UsageError
from taskmerge.merging.fused_model import FusedModel

METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "linear": {},
    "ties": {"density": 0.4},
    "dare_ties": {"density": 0.5},
    "iso_c": {},
}
WEIGHTS: dict[str, Any] = {"one": 0.5, "two": [0.25, 0.75]}


def held(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """kind -> (base, one, two, their folder), made once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            room = tmp_path_factory.mktemp(kind)
            with without_warnings():
                base = MAKERS[kind](room).eval()
            each = {"base": base, "one": moved(base, 1), "two": moved(base, 2)}
            for name, module in each.items():
                save(module, room / name)
            made[kind] = (*each.values(), room)
        return made[kind]

    return get


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("untied", method) for method in METHODS), *zip(MAKERS, METHODS, strict=True), ("SparseEncoder", "dare_ties")],
)
def test_a_live_result_has_the_bits_of_the_folders(kind: str, method: str, models: Any, tmp_path: Path) -> None:
    base, one, two, room = models(kind)
    before = [held(module) for module in (base, one, two)]
    config: Any = copy.deepcopy(getattr(base, "config", None))
    with without_warnings():
        live = fuse(base, {"one": one, "two": room / "two"}, method, weights=WEIGHTS, seed=3, **METHODS[method])
    folders = {name: str(room / name) for name in ("one", "two")}
    fuse(str(room / "base"), folders, method, weights=WEIGHTS, seed=3, **METHODS[method]).save(tmp_path / "out")
    assert type(live) is type(base)
    check_same(live, opened(type(base), tmp_path / "out"))
    for module, was in zip((base, one, two), before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in module.state_dict().items())
    assert not hasattr(base, "config") or base.config.to_dict() == config.to_dict()
    ours = {id(parameter) for parameter in base.parameters()} | {
        parameter.data_ptr() for parameter in base.parameters()
    }
    assert not any(id(one) in ours or one.data_ptr() in ours for one in live.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_number_formats_and_what_is_asked_for(dtype: torch.dtype, method: str, tmp_path: Path) -> None:
    base = causal(dtype=dtype)
    specialists = {"one": moved(base, 1), "two": moved(causal(), 2)}  # the second in float32
    save(base, tmp_path / "base")
    folders = {name: str(save(module, tmp_path / name)) for name, module in specialists.items()}
    for asked in (None, "float32", "bfloat16"):
        live = fuse(base, specialists, method, density=0.5, dtype=asked)
        fuse(str(tmp_path / "base"), folders, method, density=0.5, dtype=asked).save(tmp_path / f"out {asked}")
        check_same(live, opened(type(base), tmp_path / f"out {asked}"))
        wanted = getattr(torch, asked) if asked else dtype
        assert live.dtype == wanted and str(live.config.dtype).endswith(str(wanted).removeprefix("torch."))
        assert live.lm_head.weight is live.model.embed_tokens.weight
    assert base.dtype == dtype and base.model.rotary_emb.inv_freq.dtype == live.model.rotary_emb.inv_freq.dtype


@pytest.mark.parametrize("kind", ["SentenceTransformer", "CrossEncoder", "SparseEncoder"])
def test_a_drop_in_for_the_librarys_own_merge(kind: str, models: Any) -> None:
    base, one, two, _ = models(kind)
    base._model_card_text = "# the base's card"
    base.train()
    live = fuse(base, {"one": one, "two": two}, weights=0.5)
    base.eval()
    assert live.training and live.device == base.device and live.prompts == base.prompts
    assert live.max_seq_length == base.max_seq_length and live._model_card_text is None
    assert live.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    if kind == "SentenceTransformer":
        assert live.similarity_fn_name == base.similarity_fn_name == "dot"
        assert live.encode(TEXTS, prompt_name="query").shape == (3, 12)
    elif kind == "CrossEncoder":
        assert live.predict([(TEXTS[0], TEXTS[1])]).shape == (1,)
    else:
        assert live.encode(TEXTS).shape[0] == 3
    for name, start in base.state_dict().items():
        if start.is_floating_point():
            moves = (other.state_dict()[name].double() - start.double() for other in (one, two))
            torch.testing.assert_close(live.state_dict()[name].double(), start.double() + 0.5 * sum(moves), rtol=2e-7,
                                       atol=1e-9)  # fmt: skip


def test_in_place_the_base_becomes_the_result_or_stays(models: Any) -> None:
    base, one, two, _ = models("tied")
    mine = copy.deepcopy(base)
    parameters = list(mine.parameters())
    assert fuse(mine, {"one": one, "two": two}, "ties", density=0.4, in_place=True) is mine
    assert all(own is now for own, now in zip(parameters, mine.parameters(), strict=True))
    check_same(mine, fuse(base, {"one": one, "two": two}, "ties", density=0.4))
    mine, broken = copy.deepcopy(base), copy.deepcopy(one)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(MergeError, match="NaN"):
        fuse(mine, {"one": broken}, in_place=True)
    check_same(mine, base)
    with pytest.raises(UsageError, match="in_place"):
        fuse(dict(base.state_dict()), {"one": one}, in_place=True)


@pytest.mark.parametrize("method", ["linear", "dare_linear"])
def test_a_network_of_no_library(method: str, tmp_path: Path) -> None:
    base = Plain().train()
    one, two = moved(base, 1), moved(base, 2)
    for module, name in ((base, "base"), (one, "one"), (two, "two")):
        save_model(module, str(tmp_path / f"{name}.safetensors"))
    options: dict[str, Any] = {"density": 0.5} if method == "dare_linear" else {}
    live = fuse(base, {"one": one, "two": tmp_path / "two.safetensors"}, method, **options)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("one", "two")}
    stored = fuse(tmp_path / "base.safetensors", paths, method, **options)
    assert type(live) is Plain and live.training and live.again.weight is live.first.weight
    for name in stored:
        assert torch.equal(live.state_dict()[name], stored[name]), name
    assert torch.equal(live.get_buffer("unsaved"), torch.arange(6.0)) and not live.turned.is_contiguous()
    assert live(torch.randn(3, 6)).shape == (3, 4)


def test_a_base_that_is_not_live_gives_a_checkpoint(models: Any, tmp_path: Path) -> None:
    base, one, two, room = models("SentenceTransformer")
    for start in (str(room / "base"), Checkpoint.open(str(room / "base"))):
        fused = fuse(start, {"one": one, "two": two}, "ties", density=0.4)
        assert isinstance(fused, FusedModel)
        fused.save(tmp_path / type(start).__name__)
        check_same(
            opened(type(base), tmp_path / type(start).__name__),
            fuse(base, {"one": one, "two": two}, "ties", density=0.4),
        )
    inputs = json.loads((tmp_path / "str" / "taskmerge.json").read_text())["inputs"]
    assert inputs["base"]["files"] and not inputs["one"].get("files")  # nobody can say what was in memory
    start = Checkpoint.open(base)
    assert set(start) == set(Checkpoint.open(str(room / "base")))
    lazy = fuse(start, {"one": {name: value + 1 for name, value in start.items()}})
    assert all(torch.equal(lazy[name], value + 1) for name, value in start.items())
    with pytest.raises(TaskmergeError):  # names that only this class knows
        fuse(start, {"one": dict(base.state_dict())})


# ------------------------------------------------------------------------------------------------------- adapters


def lora(base: Any, seed: int, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with without_warnings():
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["default", "own"])
def test_a_model_with_an_adapter_inside(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    base = causal(dtype=dtype)
    one, two = lora(base, 1, modules_to_save=["norm"]), moved(base, 2)
    if name == "own":
        one.load_adapter(str(_saved(one, tmp_path / "first")), adapter_name="own")
        one.set_adapter("own")
    before = held(one)
    save(base, tmp_path / "base")
    adapter = _saved(lora(base, 1, modules_to_save=["norm"]), tmp_path / "adapter")
    save(two, tmp_path / "two")
    for method in ("task_arithmetic", "ties"):
        with without_warnings():
            live = fuse(base, {"one": one, "two": two}, method)
        fuse(tmp_path / "base", {"one": adapter, "two": tmp_path / "two"}, method).save(tmp_path / method)
        check_same(live, opened(type(base), tmp_path / method))
    assert all(torch.equal(value, before[key]) for key, value in one.state_dict().items())
    assert not any("lora" in key for key in live.state_dict())


def _saved(model: Any, folder: Path) -> Path:
    with without_warnings():
        model.save_pretrained(str(folder))
    return folder


def test_an_adapter_on_weights_of_its_own(tmp_path: Path) -> None:
    base = causal()
    other = moved(base, 5)
    with without_warnings():
        live = fuse(base, {"one": lora(other, 1)}, weights=0.5)
        whole = lora(other, 1).merge_and_unload()
    for name, start in base.state_dict().items():
        expected = start.double() + 0.5 * (whole.state_dict()[name].double() - start.double())
        torch.testing.assert_close(live.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-7, msg=name)


def test_an_adapter_in_a_sentence_transformer(models: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    base, _, _, room = models("SentenceTransformer")
    one = copy.deepcopy(base)
    with without_warnings():
        one.add_adapter(LoraConfig(r=2, target_modules=["query"]))
        for name, parameter in one.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
        one[0].auto_model.save_pretrained(tmp_path / "adapter")
        live = fuse(base, {"one": one}, weights=0.5)
    fuse(room / "base", {"one": tmp_path / "adapter"}, weights=0.5).save(tmp_path / "out")
    check_same(live, opened(type(base), tmp_path / "out"))
    assert not torch.equal(live.encode(TEXTS, convert_to_tensor=True), base.encode(TEXTS, convert_to_tensor=True))


@pytest.mark.parametrize("state", ["base", "merged", "off", "by hand"])
def test_adapters_that_are_not_as_they_are_saved(state: str) -> None:
    base = causal()
    model = lora(base, 1)
    if state == "merged":
        model.merge_adapter()
    if state == "off":
        model.base_model.disable_adapter_layers()
    if state == "by hand":
        model = model.base_model.model
    with pytest.raises(UsageError, match="adapter") as caught:
        fuse(model, {"one": moved(base, 1)}) if state == "base" else fuse(base, {"one": model})
    assert "unload" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- grafts


def test_a_graft_comes_with_its_towers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from taskmerge import graft

    folder = tiny_backbone(tmp_path / "backbone")
    with without_warnings():
        base = SentenceTransformer(str(folder), device="cpu").eval()
        log_mel = {"kind": "log_mel", "mels": 16, "layers": 1, "width": 24}
        one = moved(graft(folder, "audio", log_mel, pooling="mean", normalize=False), 1)
        two = moved(base, 2)
        each = {"base": base, "one": one, "two": two}
        paths = {name: str(save(module, tmp_path / name)) for name, module in each.items()}
        live = fuse(base, {"one": one, "two": two}, "ties", density=0.5)
        fuse(paths.pop("base"), paths, "ties", density=0.5).save(tmp_path / "out")
        from taskmerge import open_embedder

        expected = open_embedder(tmp_path / "out").module
    assert isinstance(live, SentenceTransformer) and not live.training
    check_same(live, expected)
    assert live.encode([{"audio": {"array": tone(440.0), "sampling_rate": 16000}}, "a dog"]).shape[0] == 2
    with pytest.raises(UsageError, match="leave out in_place"), without_warnings():
        fuse(base, {"one": one}, in_place=True)


def test_tokens_that_a_specialist_adds(models: Any, tmp_path: Path) -> None:
    base, _, _, room = models("SentenceTransformer")
    one = moved(base, 1)
    with without_warnings():
        one.tokenizer.add_tokens(["fresh"])
        one[0].auto_model.resize_token_embeddings(len(one.tokenizer))
        save(one, tmp_path / "one")
        live = fuse(base, {"one": one})
    fuse(room / "base", {"one": tmp_path / "one"}).save(tmp_path / "out")
    check_same(live, opened(type(base), tmp_path / "out"))
    assert "fresh" in live.tokenizer.get_vocab() and "fresh" not in base.tokenizer.get_vocab()


def test_a_network_of_no_library_takes_nothing_in(tmp_path: Path) -> None:
    base, one = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(TaskmergeError) as caught:
        fuse(base, {"one": one})
    assert "taskmerge-live" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- wrapped, refused


def test_wrappers_are_taken_off(models: Any) -> None:
    base, one, two, _ = models("tied")
    expected = fuse(base, {"one": one, "two": two}, weights=0.5)
    compiled: tuple[Any, Any] = torch.compile(base), torch.compile(two)  # modules, which torch types as functions
    wrapped = fuse(compiled[0], {"one": nn.DataParallel(one), "two": compiled[1]}, weights=0.5)
    assert type(wrapped) is type(base)
    check_same(wrapped, expected)
    inside = copy.deepcopy(one)
    inside.model.layers[0] = torch.compile(inside.model.layers[0])
    check_same(fuse(base, {"one": inside, "two": two}, weights=0.5), expected)


def _quantized() -> nn.Module:
    with without_warnings():
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize(("make", "words"), [(_quantized, "quantized"), (_on_meta, "meta device")])
def test_models_without_plain_numbers_are_refused(make: Any, words: str) -> None:
    good = nn.Sequential(nn.Linear(4, 4))
    for base, specialists in ((make(), {"one": good}), (good, {"one": make()})):
        with pytest.raises(UsageError, match=words) as caught:
            fuse(base, specialists)
        assert "give its folder" in str(caught.value)


def test_other_architectures_are_refused_in_the_users_words(models: Any) -> None:
    base, *_ = models("tied")
    other, *_ = models("SentenceTransformer")
    with pytest.raises(TaskmergeError) as caught:
        fuse(base, {"mine": other})
    assert "mine (SentenceTransformer in memory)" in str(caught.value) and "taskmerge-live" not in str(caught.value)


def test_nothing_is_left_on_the_disk(models: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    base, one, two, room = models("SentenceTransformer")
    sizes = []
    stat = os.stat

    fuse(base, {"one": one, "two": two})
    lazy = fuse(room / "base", {"one": one})
    assert list(tmp_path.iterdir())  # its tokenizer and settings, while it may be saved
    sizes = [stat(path).st_blocks * 512 for path in tmp_path.rglob("*.safetensors")]
    assert sizes and max(sizes) < 32 << 10  # headers
    del lazy
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_others_save_meanwhile_is_written(tmp_path: Path) -> None:
    from taskmerge.checkpoints.live.saved import weights_caught

    (tmp_path / "ours").mkdir()
    with weights_caught(tmp_path / "ours") as caught:
        import safetensors.torch

        for folder in (tmp_path, tmp_path / "ours"):
            safetensors.torch.save_file({"a": torch.ones(3)}, str(folder / "model.safetensors"))
        safetensors.torch.save_file({"a": torch.ones(3)}, str(tmp_path / "ours" / "adapter_model.safetensors"))
    assert [path.parent.name for path in caught] == ["ours"]
    for path in (tmp_path / "model.safetensors", tmp_path / "ours" / "adapter_model.safetensors"):
        assert torch.equal(load_file(path)["a"], torch.ones(3))
    assert safetensors.torch.save_file is save_file
