"""A prompted embedder under mteb: the same numbers as mteb's own wrapper of sentence-transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omni_models import WORDS, picture, tiny_backbone

from taskmerge.embedders import graft, open_embedder
from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation import evaluate_retrieval
from taskmerge.measuring.evaluation.mteb_adapter import as_mteb_model, evaluate_mteb, local_task

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")

WORD_PAIRS = [
    {"query": f"{first} {second}", "text": f"{third} {second} {first}"}
    for first in WORDS[:6]
    for second, third in zip(WORDS[6:], WORDS[:7], strict=True)
]
PROMPTS: dict[str, dict[str, str]] = {
    "roles": {"query": "red low ", "document": "blue left "},
    "only a passage": {"query": "red low ", "passage": "blue left "},
    "of the task": {"query": "red ", "document": "blue ", "LocalWords-query": "bird rain ", "LocalWords": "left "},
    "of the type": {"query": "red ", "Retrieval-document": "high high ", "Retrieval": "dog "},
    "none": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("text") / "plain")


ROUNDED = 5.1e-6
"""mteb rounds scores to five digits."""


def sentence_transformer(folder: Path, prompts: dict[str, str], **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", prompts=prompts, **options)


def mteb_score(model: Any, task: Any) -> float:
    found = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return float(found.task_results[0].get_score())


@pytest.mark.parametrize("direction", ["to_text", "from_text"])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_a_prompted_model_scores_as_under_mtebs_own_wrapper(
    folder: Path, prompts: dict[str, str], direction: str
) -> None:
    model = sentence_transformer(folder, prompts)
    task = local_task("LocalWords", WORD_PAIRS, direction)
    ours = evaluate_mteb({"tiny": model}, [task])["tiny"]["LocalWords"]
    assert ours == pytest.approx(mteb_score(model, task), abs=1e-6)


@pytest.mark.parametrize("prompt_type", ["query", "document", None])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_embeddings_are_those_of_mtebs_own_wrapper(folder: Path, prompts: dict[str, str], prompt_type: Any) -> None:
    from mteb._create_dataloaders import create_dataloader
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType

    model = sentence_transformer(folder, prompts)
    task = local_task("LocalWords", WORD_PAIRS)
    task.load_data()
    rows = task.dataset["default"]["test"]["queries"]
    kind = PromptType(prompt_type) if prompt_type else None
    said = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "prompt_type": kind}

    def embed(wrapper: Any) -> np.ndarray:
        inputs = create_dataloader(rows, task_metadata=task.metadata, prompt_type=kind, batch_size=7)
        return np.asarray(wrapper.encode(inputs, **said, batch_size=7))

    own = embed(SentenceTransformerEncoderWrapper(model))
    np.testing.assert_allclose(embed(as_mteb_model(model, "tiny")), own, atol=1e-6)


def test_prompts_change_the_numbers_and_reach_local_evaluation(folder: Path) -> None:
    plain, prompted = (sentence_transformer(folder, PROMPTS[name]) for name in ("none", "roles"))
    table = evaluate_retrieval({"plain": plain, "prompted": prompted}, {"LocalWords": WORD_PAIRS})
    for direction in ("to_text", "from_text"):
        scores = evaluate_mteb(
            {"plain": plain, "prompted": prompted}, [local_task("LocalWords", WORD_PAIRS, direction)]
        )
        assert scores["plain"] != scores["prompted"]
        for variant, found in scores.items():
            local = table.get(variant, "LocalWords", "ndcg_at_10", direction).estimate
            assert found["LocalWords"] == pytest.approx(local, abs=ROUNDED)
    assert table.conditions[1].item_prompts == {"query": "red low ", "document": "blue left "}


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_the_models_own_similarity_ranks(folder: Path, similarity: str) -> None:
    model = sentence_transformer(folder, PROMPTS["roles"], similarity_fn_name=similarity)
    task = local_task("LocalWords", WORD_PAIRS)
    ours = evaluate_mteb({"tiny": model}, [task])["tiny"]["LocalWords"]
    assert ours == pytest.approx(mteb_score(model, task), abs=1e-6)
    local = evaluate_retrieval({"tiny": model}, {"words": WORD_PAIRS}).get("tiny", "words", "ndcg_at_10").estimate
    assert local == pytest.approx(ours, abs=ROUNDED)


def test_pictures_behind_a_prompt(folder: Path, tmp_path: Path) -> None:
    from mteb.models import SentenceTransformerEncoderWrapper

    model = graft(folder, "image", "patches", "linear", tmp_path / "eyes")
    model.prompts = dict(PROMPTS["roles"])
    pairs = [{"image": picture(20 * shade), "text": f"{WORDS[shade]} {WORDS[shade + 1]}"} for shade in range(10)]
    task = local_task("LocalShades", pairs)
    wrapper = SentenceTransformerEncoderWrapper(model)  # of a loaded model it believes that it only reads
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    ours = evaluate_mteb({"tiny": model}, [task])["tiny"]["LocalShades"]
    assert ours == pytest.approx(mteb_score(wrapper, task), abs=1e-6)


def test_the_users_prompts_stand_in_place_of_the_models(folder: Path) -> None:
    said = {"query": "bird ", "tasks": {"LocalWords": {"document": "rain "}}, "modalities": {"text": {"query": "low "}}}
    task = local_task("LocalWords", WORD_PAIRS)
    ours = evaluate_mteb({"tiny": sentence_transformer(folder, PROMPTS["of the task"])}, [task], prompts=said)
    own = sentence_transformer(folder, {"query": "low ", "document": "rain "})
    assert ours["tiny"]["LocalWords"] == pytest.approx(mteb_score(own, task), abs=1e-6)


def test_truncated_embeddings_are_scored_as_mteb_scores_them(folder: Path) -> None:
    table = evaluate_retrieval(
        {"tiny": sentence_transformer(folder, PROMPTS["roles"])}, {"words": WORD_PAIRS}, dimensions=[8, 4]
    )
    for dimension in (4, 8, None):
        model = sentence_transformer(folder, PROMPTS["roles"], truncate_dim=dimension)
        wanted = mteb_score(model, local_task("LocalWords", WORD_PAIRS))
        assert table.get("tiny", "words", "ndcg_at_10", dimension=dimension).estimate == pytest.approx(
            wanted, abs=ROUNDED
        )
    with pytest.raises(UsageError, match="embeddings have 32 dimensions and cannot be truncated to 64"):
        evaluate_retrieval({"tiny": str(folder)}, {"words": WORD_PAIRS}, dimensions=[64])


def test_prompts_are_refused_where_nothing_puts_them_before_items() -> None:
    from oracle_embedder import Oracle

    with pytest.raises(UsageError, match="a Oracle does not use prompts"):
        Oracle().prompted({"query": "find: "})
    with pytest.raises(UsageError, match="'qurey' is unknown"):
        Oracle().prompted({"qurey": "find: "})


def test_an_embedder_around_the_same_network_keeps_its_own_prompts(folder: Path) -> None:
    first = open_embedder(sentence_transformer(folder, {}))
    second = first.prompted({"query": "red "})
    assert second.module is first.module
    assert np.abs(first.encode(["a dog"], "text", "query") - second.encode(["a dog"], "text", "query")).max() > 1e-3
