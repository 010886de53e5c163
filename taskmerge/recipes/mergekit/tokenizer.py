"""`tokenizer`, `tokenizer_source` and `chat_template`: what becomes of the token rows and the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskmerge.declarations import At
from taskmerge.recipes.mergekit.cast import Cast
from taskmerge.recipes.mergekit.findings import Findings
from taskmerge.recipes.mergekit.models import Model, read_model


def read_output(
    config: Mapping[str, Any], at: At, cast: Cast, base: Model | None, findings: Findings
) -> dict[str, Any]:
    """Return the recipe's `output`. base: the base_model, as written."""
    return _Reader(config, at, cast, base, findings).output()


class _Reader:
    def __init__(self, config: Mapping[str, Any], at: At, cast: Cast, base: Model | None, findings: Findings) -> None:
        self.config, self.at, self.cast, self.base, self.findings = config, at, cast, base, findings

    def output(self) -> dict[str, Any]:
        tokenizer = self.config.get("tokenizer")
        at = self.at.child("tokenizer")
        if tokenizer is not None and not isinstance(tokenizer, Mapping):
            self.findings.problem("tokenizer must be a mapping", at.place, "such as {source: union}")
            tokenizer = None
        output: dict[str, Any] = {"new_tokens": "own"}
        if tokenizer is None:
            output["tokenizer"] = self._source(self.config.get("tokenizer_source"), self.at.child("tokenizer_source"))
        else:
            self.findings.ignored(tokenizer, ("source", "tokens", "pad_to_multiple_of"), at)
            output["tokenizer"] = self._source(tokenizer.get("source") or "union", at)
            if tokens := self._tokens(tokenizer.get("tokens"), at.child("tokens")):
                output["tokens"] = tokens
            if tokenizer.get("pad_to_multiple_of") is not None:
                output["pad_rows"] = tokenizer["pad_to_multiple_of"]
        if self.config.get("chat_template") is not None:
            output["chat_template"] = self.config["chat_template"]
        dtype = self.config.get("out_dtype") or self.config.get("dtype")
        return output | ({"dtype": dtype} if dtype is not None else {})

    def _source(self, source: Any, at: At) -> str:
        if source in (None, "base"):
            another = self.base is not None and self.base != self.cast.base and self.base in self.cast.names
            return self.cast.names[self.base] if another and self.base is not None else "base"
        if source == "union":
            return "union"
        return self._label(source.removeprefix("model:") if isinstance(source, str) else source, at) or "base"

    def _label(self, said: Any, at: At) -> str | None:
        """What the recipe calls a model that the configuration merges."""
        model = read_model(said, at, self.findings)
        if model is None:
            return None
        everyone = [*([self.cast.base] if self.cast.starts else []), *self.cast.names]
        for same in (lambda other: other == model, lambda other: other.path == model.path):
            for other in everyone:
                if same(other):
                    return self.cast.label(other)
        self.findings.problem(f"there is no model {model.path!r}", at.place, "use base, union, or one of the models")
        return None

    def _tokens(self, tokens: Any, at: At) -> dict[str, Any]:
        if tokens is None:
            return {}
        if not isinstance(tokens, Mapping):
            self.findings.problem("tokens must be a mapping from tokens to where their rows come from", at.place)
            return {}
        return {token: self._token(entry, at.child(token)) for token, entry in tokens.items()}

    def _token(self, entry: Any, at: At) -> dict[str, Any]:
        if not isinstance(entry, Mapping):
            entry = {} if entry is None else {"source": entry}
        self.findings.ignored(entry, ("source", "force"), at)
        row: dict[str, Any] = {"force": True} if entry.get("force") else {}
        source = entry.get("source")
        if not isinstance(source, Mapping) or "kind" not in source:
            return row if source is None else {**row, "source": self._label(source, at.child("source")) or "base"}
        kind, here = source["kind"], at.child("source")
        if kind == "zero":
            return {**row, "source": "zero"}
        if kind == "model_token":
            self.findings.ignored(source, ("kind", "model", "token", "token_id"), here)
            row["source"] = self._label(source.get("model"), here.child("model")) or "base"
            named = {"token": "token", "token_id": "row"}
            return row | {ours: source[key] for key, ours in named.items() if source.get(key) is not None}
        self.findings.problem(f"the kind {kind!r} of a token's source is not supported", here.child("kind").place,
                              "use zero, model_token, or the path of a model")  # fmt: skip
        return row
