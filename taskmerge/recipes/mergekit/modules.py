"""`modules`: the parts of a model that mergekit merges apart, in our components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskmerge.declarations import At
from taskmerge.errors import did_you_mean
from taskmerge.recipes.mergekit.findings import Findings

PATTERNS: dict[str, str | None] = {
    "default": None,
    "text_decoder": "{backbone,embeddings,head}",
    "multi_modal_projector": "{projector,*_projector}",
    "vision_tower": "vision_encoder",
    "vision_model": "vision_encoder",
    "encoder": "{audio_encoder,encoder.*,*.encoder.*}",
    "decoder": "{head,decoder.*,*.decoder.*}",
    "shared": "embeddings",
}
"""mergekit's name of a module -> what names its tensors here; None: all."""
TEXT = ("default", "text_decoder", "decoder")
"""Those whose layers are the backbone's, so that they may be stacked."""


def read_modules(config: Mapping[str, Any], at: At, findings: Findings) -> dict[str, tuple[Mapping[str, Any], At]]:
    """Return each module's own section and its place; {"default": the configuration itself} without modules."""
    if config.get("modules") is None:
        return {"default": (config, at)}
    modules, here = config["modules"], at.child("modules")
    for key in ("models", "slices"):
        if config.get(key) is not None:
            findings.problem(f"a configuration has `modules` or `{key}`, not both", at.child(key).place)
    if not isinstance(modules, Mapping) or not modules:
        findings.problem("modules must be a mapping of modules", here.place, "such as text_decoder: {models: […]}")
        return {}
    found = {}
    for name, section in modules.items():
        if name not in PATTERNS:
            findings.problem(f"the module {name!r} is not supported", here.child(name).place,
                             did_you_mean(str(name), PATTERNS))  # fmt: skip
        elif not isinstance(section, Mapping):
            findings.problem(f"the module {name!r} must be a mapping", here.child(name).place)
        else:
            findings.ignored(section, ("models", "slices", "parameters"), here.child(name))
            found[name] = section, here.child(name)
    return found
