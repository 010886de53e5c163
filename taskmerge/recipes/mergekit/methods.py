"""mergekit's merge methods in our words: which of ours does the same, and what its parameters are called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from taskmerge.recipes.mergekit.values import Value, flag

Convert = Callable[[Any], Any]
Base = Literal["start", "listed", "first", "either", "none"]


def same(value: Any) -> Any:
    """Return the value unchanged."""
    return value


def mean_or_sum(normalize: Any) -> str:
    """Translate mergekit's `normalize` of methods that elect signs to our `average`."""
    return "weight" if flag(normalize) else "none"


def sum_of_magnitudes(rescale: Any) -> str:
    """Translate mergekit's `rescale` to ours."""
    return "l1" if flag(rescale) else "none"


@dataclass(frozen=True)
class Named:
    """One parameter: its name here, its default there (None: it must be given), how a value is carried over."""

    option: str
    default: Value | None
    convert: Convert = same


@dataclass(frozen=True)
class Peer:
    """One method.

    base: what base_model is to it: where task vectors "start"; one of the models, "listed" or added to them; the model
    that comes "first"; "either" the start or not given; "none": it has no part.
    weight: whether each model must be given one.  own: parameters that models may have each for themselves.
    options: parameters of the whole merge.  fixed: our options that make ours the same.  unsupported: parameters that
    change what is done in ways we do not follow, with the value that is harmless.  most: of models in addition to the
    base. spaces: whether ours must be told to combine the models themselves.
    """

    method: str
    base: Base = "start"
    weight: bool = True
    own: Mapping[str, Named] = field(default_factory=dict)
    options: Mapping[str, Named] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unsupported: Mapping[str, Value] = field(default_factory=dict)
    most: int | None = None
    spaces: bool = False


_DENSITY = {"density": Named("density", 1.0)}
_LAMBDA = {"lambda": Named("scale", 1.0)}
_SUM = {"normalize": Named("normalize", False, flag), **_LAMBDA}
_ELECT = {"normalize": Named("average", False, mean_or_sum), **_LAMBDA}
_ELECT_MEAN = {"normalize": Named("average", True, mean_or_sum), **_LAMBDA}
_RESCALE = {"rescale": Named("rescale", True, sum_of_magnitudes)}
_EPSILON = {"epsilon": Named("epsilon", 0.15)}
_OUTLIERS = {"gamma": Named("outliers", 0.01)}
_ABOVE = {"epsilon": Named("above", 1e-5)}

PEERS: dict[str, Peer] = {
    "linear": Peer("linear", "listed", options={"normalize": Named("normalize", True, flag)}),
    "task_arithmetic": Peer("task_arithmetic", options=_SUM),
    "ties": Peer("ties", own=_DENSITY, options=_ELECT_MEAN),
    "dare_linear": Peer("dare_linear", own=_DENSITY, options={**_SUM, **_RESCALE}),
    "dare_ties": Peer("dare_ties", own=_DENSITY, options={**_ELECT, **_RESCALE}),
    "della_linear": Peer("della_linear", own={**_DENSITY, **_EPSILON}, options={**_SUM, **_RESCALE}),
    "della": Peer("della", own={**_DENSITY, **_EPSILON}, options={**_ELECT_MEAN, **_RESCALE}),
    "breadcrumbs": Peer("breadcrumbs", own={**_DENSITY, **_OUTLIERS}, options=_SUM),
    "breadcrumbs_ties": Peer("breadcrumbs_ties", own={**_DENSITY, **_OUTLIERS}, options=_ELECT),
    "sce": Peer("sce", weight=False, options={"select_topk": Named("select", 1.0)}),
    "model_stock": Peer("model_stock", weight=False, unsupported={"filter_wise": False}),
    "slerp": Peer("slerp", "first", weight=False, options={"t": Named("fraction", None)}, most=2, spaces=True),
    "nuslerp": Peer(
        "nuslerp",
        "either",
        fixed={"lerp_above": 1.0 - 1e-8},
        unsupported={"nuslerp_flatten": True, "nuslerp_row_wise": False},
        most=2,
        spaces=True,
    ),
    "multislerp": Peer(
        "multislerp", "either", options={"normalize_weights": Named("normalize", True, flag)}, spaces=True
    ),
    "karcher": Peer(
        "karcher",
        "listed",
        weight=False,
        options={"max_iter": Named("iterations", 10.0, int), "tol": Named("tolerance", 1e-5)},
        spaces=True,
    ),
    "nearswap": Peer("nearswap", weight=False, options={"t": Named("limit", None)}, most=1),
    "arcee_fusion": Peer("arcee_fusion", weight=False, most=1),
    "ram": Peer("ram", weight=False, options=_ABOVE),
    "ramplus_tl": Peer(
        "ramplus_tl", weight=False, options={"r": Named("boost", 0.1), "alpha": Named("most", 0.2), **_ABOVE}
    ),
    "passthrough": Peer(
        "linear", "none", weight=False, own={"scale": Named("weight", 1.0)}, fixed={"normalize": False}
    ),
}

IGNORED = frozenset({"int8_mask", "weight", "eps"})
KNOWN_PARAMETERS = IGNORED.union(*({*peer.own, *peer.options, *peer.unsupported} for peer in PEERS.values()))
"""Every parameter that some method has; those of another method are ignored, as mergekit does."""
