"""The names transformers itself gives a file's tensors when it loads them, without loading them.

transformers renames on load and reverses on save, by class and load history. The functions used here are not
documented as public; every failure means "no answer" (None), and the caller matches names by structure instead.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from taskmerge.checkpoints.components import is_token_table

# Tried in this order for the class that holds every tensor its config allows.
_FULL_CLASSES = (
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_RETRIEVAL_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_MAPPING",
)


def canonical_names(
    names: Iterable[str], config: Mapping[str, Any], architectures: Iterable[str] = ()
) -> dict[str, str] | None:
    """Map each file name to the parameter of the base model or head that it becomes in memory.

    Only names that some class of this config knows are included; "bert." and the like are left out, so that results for
    several classes agree.
    """
    names = list(names)
    best: dict[str, str] | None = None
    for model in _meta_models(config, architectures):
        try:
            found = _renamed(names, model)
        except Exception:  # private functions of another library: any failure is "no answer"
            continue
        if best is None or len(found) > len(best):
            best = found
        if len(found) == len(names):
            break
    return best


def memory_modules(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Map each file name to its parameter in the class that has most of them, and the kind of the module that owns it.

    The parameter is named as in `named_parameters`; the kind is "embedding", "conv1d" (a linear layer stored in × out)
    or "other".
    """
    names = list(names)
    best: dict[str, tuple[str, str]] = {}
    for model in _meta_models(config, ()):
        try:
            loaded = _loaded_as(names, model)
        except Exception:  # as in canonical_names
            continue
        own = {name: renamed for name, (renamed, source) in loaded.items() if source is None}
        found = {name: (renamed, _kind(model, renamed)) for name, renamed in own.items()}
        best = max(best, found, key=len)
        if len(best) == len(names):
            break
    return best or {name: (name, "embedding" if is_token_table(name) else "other") for name in names}


def _kind(model: Any, parameter: str) -> str:
    import torch

    module = model.get_submodule(parameter.rpartition(".")[0])
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return "conv1d" if type(module).__name__ == "Conv1D" else "other"


def _meta_models(config: Mapping[str, Any], architectures: Iterable[str]) -> Iterable[Any]:
    try:
        import torch
        import transformers
        from transformers.models.auto import modeling_auto
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        settings = CONFIG_MAPPING[str(config["model_type"])].from_dict(dict(config))
    except Exception:  # not installed, a type it does not know, a config it cannot read
        return
    wanted = [getattr(transformers, name, None) for name in (*architectures, *(config.get("architectures") or ()))]
    for table in _FULL_CLASSES:
        try:
            wanted.append(getattr(modeling_auto, table)[type(settings)])
        except (KeyError, AttributeError):
            continue
    for own in dict.fromkeys(one for one in wanted if isinstance(one, type)):
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                yield own(settings)
        except Exception:  # this class does not go with this config
            continue


def _renamed(names: list[str], model: Any) -> dict[str, str]:
    found = {}
    for name, (renamed, source) in _loaded_as(names, model).items():
        inner = renamed.removeprefix(f"{model.base_model_prefix}.")
        found[name] = f"{inner}|{source}|{re.findall('[0-9]+', name)}" if source else inner
    return found


def _loaded_as(names: list[str], model: Any) -> dict[str, tuple[str, str | None]]:
    """Name -> (the parameter it becomes, the pattern of the converter that packs it), for names the model knows."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    state = model.state_dict()
    found = {}
    for name in names:
        renamed, source = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if renamed not in state and name in state:
            renamed, source = name, None
        if renamed in state:
            found[name] = (renamed, source)
    return found
