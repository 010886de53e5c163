"""A mergekit configuration -> the plain values of a recipe that gives its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskmerge.declarations import At
from taskmerge.errors import Problem, RecipeError, did_you_mean
from taskmerge.recipes.depth import at_depth, layer_depth
from taskmerge.recipes.mergekit.methods import KNOWN_PARAMETERS, PEERS, Named, Peer
from taskmerge.recipes.mergekit.models import (
    Model,
    Slice,
    Source,
    check_layout,
    names_for,
    read_model,
    read_slices,
    refuse_others,
)
from taskmerge.recipes.mergekit.values import MOST_FILTERS, Setting, Value, patterns, setting, situations

KEYS = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "name",
)
LAYERS = "{layers,layer,h,blocks,block}"


def translate(config: Mapping[str, Any], at: At, results: Mapping[str, str]) -> dict[str, Any]:
    """The values of a recipe with the configuration's result. Raises RecipeError with everything it cannot do.

    results: the folders of models that earlier documents made, by name.
    """
    problems: list[Problem] = []
    refuse_others(config, KEYS, at, problems)
    peer = _peer(config, at, problems)
    base = read_model(config["base_model"], at.child("base_model"), problems) if config.get("base_model") else None
    slices = read_slices(config, at, problems)
    layers = check_layout(slices, problems)
    if not isinstance(config.get("parameters") or {}, Mapping):
        problems.append(Problem("parameters must be a mapping", at.child("parameters").place))
    recipe: dict[str, Any] = {}
    if peer is not None and slices and not problems:
        recipe = _Translation(config, at, peer, base, slices, layers, problems).recipe()
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    for named in (recipe, *recipe["specialists"].values()):
        key = "base" if named is recipe else "model"
        named[key] = results.get(named[key], named[key])
    return recipe


def _peer(config: Mapping[str, Any], at: At, problems: list[Problem]) -> Peer | None:
    name = config.get("merge_method")
    if isinstance(name, str) and name in PEERS:
        return PEERS[name]
    what = f"mergekit's merge method {name!r} is not done here" if name else "the configuration lacks 'merge_method'"
    problems.append(Problem(what, at.child("merge_method").place, did_you_mean(str(name), PEERS)))
    return None


@dataclass
class _Translation:
    """One configuration on its way. settings: each parameter of each model, by (slice, model, parameter)."""

    config: Mapping[str, Any]
    at: At
    peer: Peer
    base: Model | None
    slices: list[Slice]
    layers: int | None
    problems: list[Problem]

    def recipe(self) -> dict[str, Any]:
        """The recipe's plain values."""
        self._check_parameters()
        models, base = self._cast()
        if base is None:
            return {}
        self.names = names_for(models)
        recipe: dict[str, Any] = {"base": base.path, "specialists": {}}
        for model, name in self.names.items():
            # `base` alone would mean the recipe's base.
            path = "./base" if model.path == "base" else model.path
            recipe["specialists"][name] = {"model": path} | ({"adapter": model.adapter} if model.adapter else {})
        merge = {"method": self.peer.method, "edges": "first", **self.peer.fixed}
        if self._of_models and self.peer.method in ("slerp", "nuslerp", "karcher"):
            merge["space"] = "model"
        if self.config["merge_method"] == "passthrough" and len(self.slices) > 1:
            merge["rules"] = self._stacked(base)
        elif len(self.slices) > 1:
            merge |= self._by_slice()
        else:
            merge |= self._by_filter(self.slices[0])
        recipe["merge"] = merge
        if self.layers is not None:
            recipe["layers"] = self.layers
        return recipe | {"output": self._output()}

    @property
    def _of_models(self) -> bool:
        """Whether the models themselves are combined, the base among them."""
        return self.peer.models or (self.peer.method == "nuslerp" and self.base is None)

    def _cast(self) -> tuple[list[Model], Model | None]:
        """The models that are merged, in order, and the one their task vectors start from."""
        listed = list(dict.fromkeys(source.model for part in self.slices for source in part.sources))
        peer, place = self.peer, self.at.child("merge_method").place
        name = self.config["merge_method"]
        if not self._of_models:
            if self.base is None:
                self.problems.append(Problem(f"{name} needs a base_model", place, "add base_model:"))
            return [model for model in listed if model != self.base], self.base
        if self.base is not None and self.base not in listed and name not in ("slerp", "passthrough"):
            if peer.weight:
                self.problems.append(
                    Problem("base_model has no weight", place, "list it among the models, or remove it")
                )
            listed.append(self.base)
        if name == "slerp":
            if self.base is None:
                self.problems.append(Problem("slerp needs a base_model: where t is 0", place, "add base_model:"))
            listed = [model for model in (self.base, *listed) if model is not None]
            listed = list(dict.fromkeys(listed))
        if any(model.adapter for model in listed[:1]):
            self.problems.append(Problem("the first model may not carry an adapter here", place, "name it later"))
        return listed, Model(listed[0].path)

    def _output(self) -> dict[str, Any]:
        output: dict[str, Any] = {"tokenizer": self._tokenizer()}
        dtype = self.config.get("out_dtype") or self.config.get("dtype")
        if dtype is not None:
            output["dtype"] = dtype
        return output

    def _tokenizer(self) -> str:
        source, where = self.config.get("tokenizer_source"), self.at.child("tokenizer_source")
        tokenizer = self.config.get("tokenizer")
        if isinstance(tokenizer, Mapping):
            where = self.at.child("tokenizer")
            plain = {key: value for key, value in tokenizer.items() if value is not None}
            refuse_others(plain, {"source"}, where, self.problems)
            source = tokenizer.get("source", "union")
        if source in (None, "base"):
            return "base"
        if source == "union":
            return "union"
        path = source.removeprefix("model:") if isinstance(source, str) else source
        for model, name in self.names.items():
            if path == model.path:
                return name
        if self.base is not None and path == self.base.path:
            return "base"
        self.problems.append(
            Problem(f"no model is called {source!r}", where.place, "base, union, or one of the models")
        )
        return "base"

    # --- parameters ---------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        levels = [(self.config.get("parameters") or {}, self.at.child("parameters"))]
        levels += [(part.parameters, part.at) for part in self.slices if part.at]
        levels += [(source.parameters, source.at) for part in self.slices for source in part.sources]
        for parameters, at in levels:
            for key, value in parameters.items():
                if key not in KNOWN_PARAMETERS:
                    move = did_you_mean(str(key), KNOWN_PARAMETERS)
                    self.problems.append(Problem(f"unknown parameter {str(key)!r}", at.child(key).place, move))
                harmless = self.peer.unsupported.get(key)
                if harmless is not None and value != harmless:
                    what = f"{key}: {value} is not done here"
                    self.problems.append(Problem(what, at.child(key).place, f"only {key}: {harmless} is"))

    def _setting(self, name: str, default: Value | None, part: Slice, source: Source | None) -> Setting:
        levels = [(source.parameters, source.at)] if source else []
        levels += [(part.parameters, part.at or self.at)]
        levels += [(self.config.get("parameters") or {}, self.at.child("parameters"))]
        given = [(values[name], at.child(name)) for values, at in levels if values.get(name) is not None]
        return setting(given, default, self.problems)

    def _settings(self, part: Slice) -> dict[tuple[str | None, str], Setting]:
        """Every parameter of a slice, by specialist (None: of the whole merge) and name."""
        found: dict[tuple[str | None, str], Setting] = {}
        for source in part.sources:
            name = self.names.get(source.model)
            if name is None:
                continue
            if self.peer.weight:
                found[name, "weight"] = self._setting("weight", None, part, source)
            for parameter, named in self.peer.own.items():
                found[name, parameter] = self._setting(parameter, named.default, part, source)
        for parameter, named in self.peer.options.items():
            found[None, parameter] = self._setting(parameter, named.default, part, None)
        return found

    def _said(
        self, settings: Mapping[tuple[str | None, str], Setting], contained: frozenset[str], at: float | None = None
    ) -> dict[str, Any]:
        """What holds for tensors whose names contain these filters, as keys of a rule. at: depth to settle lists at."""
        values: dict[tuple[str | None, str], Any] = {}
        for (name, parameter), one in settings.items():
            value = one.under(contained)
            if value is None:
                place = self.at.child("merge_method").place
                what = f"{name or 'the merge'} has no {parameter}"
                self.problems.append(Problem(what, place, f"give it parameters: {{{parameter}: …}}"))
                continue
            values[name, parameter] = at_depth(value, at) if isinstance(value, tuple) and at is not None else value
        said: dict[str, Any] = {"weight": {}} if self.peer.weight else {}
        for (name, parameter), value in values.items():
            if parameter == "weight":
                said["weight"][name] = value
            else:
                self._add(said, name, parameter, value)
        self._check_meaning(said)
        return said

    def _add(self, said: dict[str, Any], name: str | None, parameter: str, value: Any) -> None:
        named: Named = (self.peer.options if name is None else self.peer.own)[parameter]
        if isinstance(value, tuple):
            converted: Any = list(value)
        else:
            converted = named.convert(value)
        if name is None:
            said[named.option] = converted
        else:
            said.setdefault(named.option, {})[name] = converted

    def _check_meaning(self, said: Mapping[str, Any]) -> None:
        """What mergekit does with some values and we do not."""
        place = self.at.child("merge_method").place
        negative = any(_lowest(weight) < 0 for weight in said.get("weight", {}).values())
        if negative and self.peer.method in ("ties", "dare_ties", "della", "breadcrumbs_ties"):
            move = "use a method without sign election, or a recipe of ours"
            self.problems.append(Problem("negative weights elect signs differently in mergekit", place, move))
        for name, epsilon in said.get("epsilon", {}).items():
            density = said["density"][name]
            if density == 1.0:
                said["epsilon"][name] = 0.0
            elif _highest(density) + _highest(epsilon) >= 1.0 or _lowest(density) - _highest(epsilon) <= 0.0:
                what = f"density of {name} plus or minus epsilon ({epsilon:g}) leaves (0, 1)"
                self.problems.append(Problem(what, place, "lower epsilon"))
        for name, outliers in said.get("outliers", {}).items():
            density = said["density"][name]
            if density == 1.0:
                said["outliers"][name] = 0.0
            elif _highest(density) + _highest(outliers) > 1.0:
                what = f"density and gamma of {name} add up to more than 1"
                self.problems.append(Problem(what, place, "mergekit then shrinks gamma; lower one of them"))

    # --- shapes -------------------------------------------------------------------------------------------------

    def _by_filter(self, part: Slice) -> dict[str, Any]:
        """One slice of all layers: a rule for each combination of filters that a name can contain."""
        settings = self._settings(part)
        filters = {text for one in settings.values() for text in one.filters}
        if len(filters) > MOST_FILTERS:
            what = f"{len(filters)} different filters are more than the {MOST_FILTERS} that are read"
            self.problems.append(Problem(what, self.at.child("parameters").place))
            return {}
        *filtered, rest = situations(list(settings.values()))
        rules = [
            {"match": patterns(contained), "optional": True, **self._said(settings, contained)}
            for contained in filtered
        ]
        merge = self._said(settings, rest)
        return {**merge, "rules": rules} if rules else merge

    def _by_slice(self) -> dict[str, Any]:
        """Several slices: a rule for each layer, one for the embeddings (first slice), the last slice for the rest."""
        rules: list[dict[str, Any]] = []
        for part in self.slices:
            settings = self._settings(part)
            if any(one.filters for one in settings.values()):
                self.problems.append(
                    Problem("filters together with several slices are not read", part.sources[0].at.place)
                )
            first, end = part.layers or (0, 0)
            for layer in range(first, end):
                said = self._padded(self._said(settings, frozenset(), layer_depth(layer - first, end - first)))
                rules.append({"match": _layer(layer), **said})
        opening = self._padded(self._said(self._settings(self.slices[0]), frozenset(), 0.0))
        rules.append({"match": ["embeddings"], "optional": True, **opening})
        closing = self._padded(self._said(self._settings(self.slices[-1]), frozenset(), 0.0))
        return {**closing, "rules": rules}

    def _padded(self, said: dict[str, Any]) -> dict[str, Any]:
        """Models that a slice leaves out weigh nothing there."""
        if "weight" not in said:
            return said
        return {**said, "weight": {**dict.fromkeys(self.names.values(), 0.0), **said["weight"]}}

    def _stacked(self, base: Model) -> list[dict[str, Any]]:
        """passthrough: each run of layers from one model, embeddings from the first, the rest from the last."""

        def owner(part: Slice) -> str:
            if len(part.sources) != 1:
                place = part.sources[1].at.place
                self.problems.append(Problem("passthrough takes one model for each slice", place))
            model = part.sources[0].model
            return "base" if model == base else self.names[model]

        rules: list[dict[str, Any]] = []
        for part in self.slices:
            first, end = part.layers or (0, 0)
            rules += [{"match": _layer(layer), "keep": owner(part)} for layer in range(first, end)]
        rules.append({"match": ["embeddings"], "optional": True, "keep": owner(self.slices[0])})
        return [*rules, {"match": ["*"], "optional": True, "keep": owner(self.slices[-1])}]


def _layer(layer: int) -> list[str]:
    return [f"*.{LAYERS}.{layer}.*"]  # a component stands before the name, so there is always a dot


def _lowest(value: Any) -> float:
    return float(min(value)) if isinstance(value, (list, tuple)) else float(value)


def _highest(value: Any) -> float:
    return float(max(value)) if isinstance(value, (list, tuple)) else float(value)
