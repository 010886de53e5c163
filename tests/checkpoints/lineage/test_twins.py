"""Tied tensors that one file stores once and another under each of their names: whole state dicts beside saved models.

The reference is transformers: it loads what it saved and what was merged, and the formula is taken in between.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from taskmerge import fuse
from taskmerge.checkpoints.lineage.twins import match_twins
from taskmerge.checkpoints.memory import MemoryStateDict

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {"d_model": 32, "max_position_embeddings": 40} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
CLASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "one table of encoder and decoder": ("t5", "T5ForConditionalGeneration", T5),
    "tables inside a model": ("bart", "BartForConditionalGeneration", BART),
    "a head's bias": ("bert", "BertForMaskedLM", zoo.BERT),
    "a head called decoder": ("modernbert", "ModernBertForMaskedLM", zoo.BERT | {"pad_token_id": 0}),
    "a table called embeddings": ("mamba", "MambaForCausalLM", MAMBA),
}  # fmt: skip


@pytest.mark.parametrize("whole", ["base", "specialist"])
@pytest.mark.parametrize("case", CLASSES)
def test_tied_tensors_are_one_tensor_however_they_are_stored(case: str, whole: str, tmp_path: Path) -> None:
    import transformers

    model_type, class_name, config = CLASSES[case]
    kind = zoo.Kind(case, model_type, (class_name,), config | {"vocab_size": zoo.VOCABULARY})
    models = {"base": kind.build(), "specialist": zoo.perturb(kind.build(), 1)}
    for name, model in models.items():
        zoo.save(model, tmp_path / name)
        if name == whole:
            (tmp_path / name / "model.safetensors").unlink()
            torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")

    fuse(tmp_path / "base", {"a": tmp_path / "specialist"}, weights=0.5).save(tmp_path / "out")

    merged, said = getattr(transformers, class_name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    base, specialist = (model.state_dict() for model in models.values())
    for name, value in merged.state_dict().items():
        if value.is_floating_point():
            want = (base[name].double() + specialist[name].double()) / 2
            assert torch.allclose(value.double(), want, rtol=0, atol=1e-6), name


def table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, 4)).astype("f4")


def test_a_table_that_differs_is_nobodys_twin() -> None:
    base = MemoryStateDict({"shared.weight": table(0)}, "base")
    both = {"shared.weight": table(1), "encoder.embed_tokens.weight": table(2)}
    found = match_twins({"base": base, "a": MemoryStateDict(both, "a")})
    assert not found.same and set(found.inputs["a"].tensors) == set(both)
    found = match_twins({"base": MemoryStateDict(both, "base"), "a": base})
    assert set(found.inputs["a"].tensors) == {"shared.weight"}


def test_what_is_left_out_is_said() -> None:
    base = MemoryStateDict({"shared.weight": table(0)}, "base")
    twice = MemoryStateDict({"shared.weight": table(1), "decoder.embed_tokens.weight": table(1)}, "a")
    fused = fuse({name: torch.from_numpy(base.read(name).reshape(6, 4)) for name in base.tensors},
                 {"a": {name: torch.from_numpy(twice.read(name).reshape(6, 4)) for name in twice.tensors}})  # fmt: skip
    assert list(fused) == ["shared.weight"]
    assert any("decoder.embed_tokens.weight" in note and "shared.weight" in note for note in fused.notes)
