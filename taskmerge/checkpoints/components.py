"""Component of each tensor (backbone, encoder, projector, head …) from header names, shapes and config.json alone.

Every tensor has exactly one component:

    backbone                         the language model; in a model with one encoder, that encoder
    embeddings                       its token embedding table(s), separate from the backbone because rows can be new
    head                             lm_head, classifiers, BERT's pooler, logit scales
    {vision,audio}_encoder           the encoder of a modality
    {vision,audio,text}_projector    the layers between an encoder and the backbone's (or the shared) space
    encoder, projector               an encoder of unknown modality; a projector of several, or of such an encoder
    speech_decoder, image_decoder    talker and vocoder of a speaking model; the generator of a drawing one
    buffers                          tensors that are not trained by gradient, in any module

Names decide first (`component_names`). For tensors that they leave open (modules of a user's own class),
shapes decide (`foreign_towers`, `foreign_projectors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskmerge.checkpoints.component_names import (
    BACKBONE,
    BUFFERS,
    COMPONENTS,
    EMBEDDINGS,
    HEAD,
    Layout,
    is_buffer,
    is_token_table,
    layer_index,
    numbered,
    with_layer,
)
from taskmerge.checkpoints.foreign_parts import Inferred, Parts, Tower
from taskmerge.checkpoints.foreign_projectors import Projectors
from taskmerge.checkpoints.foreign_towers import Towers
from taskmerge.checkpoints.selector import Selector, selected
from taskmerge.checkpoints.structure import HasHeader
from taskmerge.errors import MergeError, Problem
from taskmerge.words.numerals import is_whole

__all__ = [
    "BACKBONE",
    "BUFFERS",
    "COMPONENTS",
    "EMBEDDINGS",
    "HEAD",
    "Components",
    "component_map",
    "is_buffer",
    "is_token_table",
    "layer_index",
    "numbered",
    "with_layer",
    "with_overrides",
]


class Components(Mapping[str, str]):
    """name -> component, for every tensor of one checkpoint, and what follows from it.

    inferred: the modules that no name reveals, each with the reason. towers: the stacks of layers besides the
    backbone's.
    """

    def __init__(
        self,
        assigned: Mapping[str, str],
        homes: Mapping[str, str],
        inferred: Sequence[Inferred] = (),
        towers: Sequence[Tower] = (),
    ) -> None:
        self._assigned = dict(assigned)
        self.inferred, self.towers = tuple(inferred), tuple(towers)
        self._homes = dict(homes)
        self._roots = {component: _root(self.names(component)) for component in set(self._assigned.values())}
        self._depths: dict[str, int] = {}
        for name, component in self._assigned.items():
            if (index := layer_index(name)) is not None:
                self._depths[component] = max(self._depths.get(component, 0), index + 1)

    def __getitem__(self, name: str) -> str:
        return self._assigned[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._assigned)

    def __len__(self) -> int:
        return len(self._assigned)

    def names(self, component: str) -> list[str]:
        """Return the names of the component's tensors, in file order."""
        return [name for name, own in self._assigned.items() if own == component]

    def home(self, name: str) -> str:
        """Return the component whose module has the tensor; it differs from self[name] only for buffers."""
        return self._homes[name]

    def inner_name(self, name: str, component: str | None = None) -> str:
        """Return the name inside its component: "layers.3.mlp.up_proj.weight", without the file's prefix.

        component: the one to look from, for a buffer its home; left out: its own.
        """
        root = self._roots.get(component or self._assigned[name], "")
        return name[len(root) + 1 :] if root and name.startswith(f"{root}.") else name

    def root(self, component: str) -> str:
        """Return the common prefix of the names of a component's tensors."""
        return self._roots.get(component, "")

    def depth(self, component: str) -> int:
        """Number of numbered layers in the component, 0 when it has none."""
        return self._depths.get(component, 0)


def component_map(
    tensors: Mapping[str, HasHeader],
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
    known: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Components:
    """Return the component of every tensor, from its header and the config; no tensor is read.

    overrides: component -> patterns (`Selector`'s, in the components found without them); they win, in the order given,
    and may name components of the user's own. known: tensor -> component, where something else tells it. strict:
    raise MergeError when an override names nothing; of one input of several, it may.
    """
    config = config or {}
    layout = Layout.of(tensors, config)
    placed = layout.placed(tensors)
    homes = {name: at.component for name, at in placed.items()}
    inferred: Sequence[Inferred] = ()
    towers: Sequence[Tower] = ()
    if layout.backbone is not None:
        parts = Parts(tensors, placed, layout, config, layout.backbone)
        finder = Towers(parts)
        finder.place()
        Projectors(parts, finder).place()
        homes |= parts.components
        inferred, towers = parts.inferred, parts.towers
    homes |= _inside_a_graft(tensors, config)
    homes |= known or {}
    if not {BACKBONE, EMBEDDINGS} & set(homes.values()):
        alone = {home for home in homes.values() if home.endswith("_encoder")}
        if len(alone) == 1:  # a tower saved alone is a model of its own
            homes = {name: BACKBONE if home in alone else home for name, home in homes.items()}
    assigned = {name: BUFFERS if is_buffer(name, info) else homes[name] for name, info in tensors.items()}
    components = Components(assigned, homes, inferred, towers)
    return with_overrides(components, overrides, strict)


def _inside_a_graft(tensors: Mapping[str, HasHeader], config: Mapping[str, Any]) -> dict[str, str]:
    """The components of a grafted embedder's backbone, which is placed as the model that it is."""
    own, before = config.get(BACKBONE), f"{BACKBONE}."
    inside = {name[len(before) :]: info for name, info in tensors.items() if name.startswith(before)}
    if not isinstance(own, Mapping) or not inside:
        return {}
    parts = component_map(inside, own)
    return {before + name: parts.home(name) for name in inside}


def _root(names: Sequence[str]) -> str:
    """The longest path all names share, cut before their last part and before any numbered container."""
    if not names:
        return ""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for place, parts in enumerate(zip(*paths, strict=False)):
        followers = {path[place + 1] for path in paths if len(path) > place + 1}
        if len(set(parts)) > 1 or is_whole(parts[0]) or any(is_whole(part) for part in followers):
            break
        shared.append(parts[0])
    return ".".join(shared)


def with_overrides(found: Components, overrides: Mapping[str, Sequence[str]] | None, strict: bool = True) -> Components:
    """Return the components after a recipe's `components` reassign some tensors; arguments as for `component_map`."""
    if not overrides:
        return found
    selector = Selector(found)
    problems: list[Problem] = []
    for component, patterns in overrides.items():
        problems += selector.check(patterns, None, f"components: {component}")
    if problems and strict:
        raise MergeError(problems)
    said = {name: own for name in found if (own := selected(overrides, selector, name)) is not None}
    assigned = {name: said.get(name, component) for name, component in found.items()}
    return Components(
        assigned, {name: said.get(name, found.home(name)) for name in found}, found.inferred, found.towers
    )
