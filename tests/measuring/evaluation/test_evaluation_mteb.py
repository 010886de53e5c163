"""The mteb adapter: mteb's own evaluation of our embedder gives our own scores, offline."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from drift_models import sounds, tiny_grafted

from taskmerge.errors import UsageError
from taskmerge.measuring.evaluation import evaluate_retrieval
from taskmerge.measuring.evaluation.mteb_adapter import as_mteb_model, evaluate_mteb, local_task

pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_grafted(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("direction", ["to_text", "from_text"])
def test_mteb_measures_what_we_measure(model: Any, direction: str) -> None:
    pairs = sounds(12)
    task = local_task("LocalSounds", pairs, direction)
    table = evaluate_mteb({"tiny": model}, [task])
    ours = evaluate_retrieval({"tiny": model}, {"sounds": pairs}, directions=[direction])
    wanted = ours.get("tiny", "sounds", "ndcg_at_10", direction).estimate
    assert table["tiny"]["LocalSounds"] == pytest.approx(wanted, abs=1e-5)


def test_a_variant_is_not_asked_for_what_it_cannot_take(model: Any) -> None:
    from PIL import Image

    pictures = [{"image": Image.new("RGB", (8, 8), (40 * i, 0, 0)), "text": f"shade {i}"} for i in range(3)]
    assert evaluate_mteb({"tiny": model}, [local_task("LocalShades", pictures)]) == {"tiny": {}}


def test_results_are_kept_in_the_cache(model: Any, tmp_path: Path) -> None:
    task = local_task("LocalCached", sounds(6))
    first = evaluate_mteb({"tiny": model}, [task], cache=tmp_path)
    runs = 0

    def count(*arguments: Any) -> None:
        nonlocal runs
        runs += 1

    with model.register_forward_pre_hook(count):
        assert evaluate_mteb({"tiny": model}, [task], cache=tmp_path) == first
        assert runs == 0
        assert evaluate_mteb({"tiny": model}, [task]) == first
    assert runs > 0


def test_the_adapter_says_what_it_is(model: Any) -> None:
    adapter = as_mteb_model(model, "tiny")
    assert adapter.mteb_model_meta.name == "local/tiny"
    assert adapter.mteb_model_meta.modalities == ["text", "audio"]
    assert adapter.mteb_model_meta.embed_dim == 32


def test_unknown_tasks_are_told_before_any_model_runs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError) as error:
            evaluate_mteb({"none": "no folder"}, ["MAEB(v2"])
    assert "no mteb task or benchmark 'MAEB(v2'" in str(error.value)
    assert "did you mean the benchmark 'MAEB" in str(error.value)
    with pytest.raises(UsageError, match="unknown direction 'up'"):
        local_task("x", sounds(2), "up")
