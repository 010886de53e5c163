"""Every parameter of a mergekit configuration as what our methods are told, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.declarations import At
from taskmerge.recipes.depth import at_depth
from taskmerge.recipes.mergekit.findings import Findings
from taskmerge.recipes.mergekit.methods import KNOWN_PARAMETERS, Peer
from taskmerge.recipes.mergekit.models import Model
from taskmerge.recipes.mergekit.slices import Slice, Source
from taskmerge.recipes.mergekit.values import Setting, Value, setting

Level = tuple[Mapping[str, Any], At]
Settings = Mapping[tuple[str | None, str], Setting]
"""Each parameter by specialist (None: of the whole merge) and name."""


@dataclass(frozen=True)
class Reader:
    """The parameters of a mergekit configuration.

    levels: of the module and of the complete configuration, the inner first.  at: of the method.
    """

    peer: Peer
    names: Mapping[Model, str]
    levels: Sequence[Level]
    at: At
    findings: Findings

    def check(self, slices: Sequence[Slice]) -> None:
        """Note the settings that mergekit ignores; refuse those that we would apply differently."""
        levels = [*self.levels, *((part.parameters, part.at) for part in slices if part.at)]
        levels += [(source.parameters, source.at) for part in slices for source in part.sources]
        for parameters, at in levels:
            self.findings.ignored(parameters, KNOWN_PARAMETERS, at)
            for key, value in parameters.items():
                harmless = self.peer.unsupported.get(key)
                if harmless is not None and value != harmless:
                    move = f"only {key}: {str(harmless).lower()} is supported"
                    self.findings.problem(f"{key}: {value} is not supported", at.child(key).place, move)

    def settings(self, part: Slice) -> Settings:
        """Return every parameter of a slice."""
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

    def _setting(self, name: str, default: Value | None, part: Slice, source: Source | None) -> Setting:
        levels: list[Level] = [(source.parameters, source.at)] if source else []
        levels += [(part.parameters, part.at or self.at), *self.levels]
        given = [(values[name], at.child(name)) for values, at in levels if values.get(name) is not None]
        return setting(given, default, self.findings)

    def said(self, settings: Settings, contained: frozenset[str], at: float | None = None) -> dict[str, Any]:
        """Return the settings for tensors whose names contain these filters, as keys of a rule.

        at: depth at which lists are evaluated.
        """
        said: dict[str, Any] = {"weight": {}} if self.peer.weight else {}
        for (name, parameter), one in settings.items():
            value = one.under(contained)
            if value is None:
                what = f"{name or 'the merge'} lacks the parameter {parameter}"
                self.findings.problem(what, self.at.place, f"add parameters: {{{parameter}: …}}")
                continue
            self._say(
                said, name, parameter, at_depth(value, at) if isinstance(value, tuple) and at is not None else value
            )
        self._check_meaning(said)
        return said

    def _say(self, said: dict[str, Any], name: str | None, parameter: str, value: Any) -> None:
        if parameter == "weight":
            said["weight"][name] = list(value) if isinstance(value, tuple) else value
            return
        named = (self.peer.options if name is None else self.peer.own)[parameter]
        converted = list(value) if isinstance(value, tuple) else named.convert(value)
        if name is None:
            said[named.option] = converted
        else:
            said.setdefault(named.option, {})[name] = converted

    def _check_meaning(self, said: Mapping[str, Any]) -> None:
        """What mergekit does with some values and we do not."""
        for name, epsilon in said.get("epsilon", {}).items():
            density = said["density"][name]
            if density in (0.0, 1.0):
                said["epsilon"][name] = 0.0
            elif _highest(density) + _highest(epsilon) >= 1.0 or _lowest(density) - _highest(epsilon) <= 0.0:
                shown = f"{epsilon:g}" if isinstance(epsilon, float) else str(epsilon)
                what = f"density of {name} plus or minus epsilon ({shown}) is outside (0, 1)"
                self.findings.problem(what, self.at.place, "lower epsilon")


def _lowest(value: Any) -> float:
    return float(min(value)) if isinstance(value, (list, tuple)) else float(value)


def _highest(value: Any) -> float:
    return float(max(value)) if isinstance(value, (list, tuple)) else float(value)
