"""Weights that `search` finds, against the recipe's own: what the searches of two benchmarks have in common.

A search looks at development pairs alone; test pairs confirm its best point. Everything is kept beside the models and
not done again. Scores are MRR of an item that looks for its text; intervals are over texts, differences paired.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge import search
from taskmerge.embedders import open_embedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import UsageError
from taskmerge.metrics.retrieval import score_queries
from taskmerge.recipes import from_dict
from taskmerge.recipes.scores import parse_objective, retrieval_name
from taskmerge.searching import concluding
from taskmerge.searching.folder import POINTS, SearchFolder
from taskmerge.searching.scored import Scored

METRIC = "mrr"
MEAN = "mean"
OWN = "own"
FLOOR = -0.1
"""Most MRR that a modality may lose against its specialist, where there are floors."""
WIDE_FLOOR = -0.35
"""The same for specialists that a fusion costs much more, as the miniature's documents."""
WEIGHTS = {"specialists.*.weight": [0.1, 1.2]}
METHODS = {**WEIGHTS, "merge.method": ["task_arithmetic", "ties", "actmat", "regmean"], "merge.density": [0.1, 0.9]}
FLAT = 4
"""Points along each weight through the best, of the search over weights alone."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """One search. name: of its files.  said: in tables.  floor: of every modality, in MRR against its specialist."""

    name: str
    said: str
    vary: Mapping[str, Any]
    floor: float | None = None
    sensitivity: int = 0


SEARCHES = (
    Search("weights", "weights found", WEIGHTS, sensitivity=FLAT),
    Search("weights_floors", "weights found, with floors", WEIGHTS, floor=FLOOR),
    Search("weights_wide_floors", "weights found, with wide floors", WEIGHTS, floor=WIDE_FLOOR),
    Search("methods", "weights, method and density found", METHODS),
    Search("methods_floors", "weights, method and density found, with floors", METHODS, floor=FLOOR),
)


@dataclass(frozen=True)
class Specialists:
    """What is searched over: everything by modality. folder: where what is found is kept; weights: the paper's."""

    folder: Path
    seed: int
    base: Path
    models: Mapping[str, Path]
    weights: Mapping[str, float]
    dev: Mapping[str, Path]
    test: Mapping[str, Path]
    say: Callable[[str], None] = print

    def recipe(self) -> Any:
        """The paper's sum."""
        return from_dict(
            {
                "base": str(self.base),
                "specialists": {
                    name: {"model": str(model), "weight": self.weights[name]} for name, model in self.models.items()
                },
                "output": {"path": str(self.folder / "searched")},
                "seed": self.seed,
            },
            folder=self.folder,
        )

    # Searching

    def found(self, one: Search, trials: int) -> Facts:
        """What a search found, plain data; searched once."""
        kept = self.folder / f"{one.name}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text()))
        before = self._references(one)
        concluding.CONFIRMED = 1  # the next best on the test too would take as long as the trials
        try:
            outcome = search(
                self.recipe(),
                vary=one.vary,
                on={name: str(path) for name, path in self.dev.items()},
                confirm={name: str(path) for name, path in self.test.items()},
                floor=None if one.floor is None else dict.fromkeys(self.models, one.floor),
                trials=trials,
                sensitivity=one.sensitivity,
                out=before,
                say=self.say,
            )
        except UsageError as error:
            facts: Facts = {"best": None, "sentences": [str(error.problems[0])]}
        else:
            facts = _facts(outcome)
        kept.write_text(json.dumps(facts, indent=1, default=float))
        return facts

    def _references(self, one: Search) -> Path:
        """The folder of a search, with the specialists' and the own recipe's scores of one that ran before: they are of
        the same models on the same pairs."""
        place = SearchFolder(self.folder / one.name)
        place.claim()
        for other in SEARCHES:
            for path in sorted((self.folder / other.name / POINTS).glob("*.npz")):
                copy = place.path / POINTS / path.name
                if not copy.exists() and not path.stem.startswith(("trial-", "confirm-trial-")):
                    copy.parent.mkdir(exist_ok=True)
                    copy.write_bytes(path.read_bytes())
        return place.path

    # Measuring

    def confirmed(self, one: Search, point: str) -> Scored:
        """A point of a search on the test, query by query."""
        path = SearchFolder(self.folder / one.name).point(f"confirm {point}")
        found = Scored.load(path, self._groups())
        if found is None:
            raise SystemExit(f"{path} is missing: remove {self.folder / one.name}.json, so that it is searched again")
        return found

    def found_points(self, searches: Mapping[str, Facts]) -> dict[str, Scored]:
        """The paper's sum and the best of every search, on the test."""
        found = {"sum": self.confirmed(next(one for one in SEARCHES if one.name in searches), OWN)}
        for one in SEARCHES:
            if searches.get(one.name, {}).get("best"):
                found[one.name] = self.confirmed(one, searches[one.name]["best"])
        return found

    def measured(self, model: Path) -> Scored:
        """A model's folder on the test, query by query; measured once."""
        kept = self.folder / "measured" / f"{model.name}.npz"
        if (found := Scored.load(kept, self._groups())) is None:
            embedder = open_embedder(model)
            values = {}
            for name, path in self.test.items():
                pairs = read_pairs(path)
                texts, right = pairs.distinct()
                queries = embedder.encode(pairs.load(), pairs.modality, "query", batch_size=32)
                gallery = embedder.encode(texts, "text", "document", batch_size=32)
                scores = score_queries(queries, gallery, [[int(row)] for row in right])
                values[retrieval_name(name, METRIC)] = scores[METRIC]
            found = Scored(values, self._groups())
            found.save(kept)
        return found

    def _groups(self) -> dict[str, Any]:
        return {
            retrieval_name(name, METRIC): read_pairs(path).distinct()[1].tolist() for name, path in self.test.items()
        }


def _facts(outcome: Any) -> Facts:
    """What is kept of an outcome."""
    confirmed, table = outcome.confirmed[0], outcome.recipe.to_dict()
    return {
        "best": outcome.best.name,
        "weights": {name: row.weight for name, row in outcome.recipe.specialists.items()},
        "merge": {key: value for key, value in table.get("merge", {}).items() if key != "weight"},
        "scored": sum(point.state == "scored" for point in outcome.points),
        "stopped": sum(point.state == "stopped early" for point in outcome.points),
        "dev": {name: value for name, value in outcome.best.scores.items() if name.endswith(f".{METRIC}")},
        "gain": confirmed.gain.as_dict(),
        "gain_where_searched": confirmed.dev_gain.as_dict(),
        "floors": {name: left.as_dict() for name, left in confirmed.floors.items()},
        "sentences": outcome.sentences(),
        "notes": list(outcome.notes),
    }


def merge_of(facts: Facts) -> dict[str, Any]:
    """A recipe's `merge` section of what was found."""
    return {"method": "task_arithmetic", **facts["merge"]}


def row(scored: Scored, others: Mapping[str, Scored]) -> Facts:
    """One model in numbers: MRR of every modality and their mean, and its gain over other models, pair by pair."""
    columns = {name.split(".")[1]: parse_objective(name) for name in scored.values if name.endswith(f".{METRIC}")}
    columns[MEAN] = parse_objective(f"mean(retrieval.*.{METRIC})")
    return {
        "scores": {name: scored.interval(objective).as_dict() for name, objective in columns.items()},
        "over": {
            other: {name: scored.minus(held, objective).as_dict() for name, objective in columns.items()}
            for other, held in others.items()
        },
    }


def specialists_row(own: Specialists) -> Facts:
    """Each specialist alone on its own modality."""
    names = {name: retrieval_name(name, METRIC) for name in own.models}
    one = next(one for one in SEARCHES if (own.folder / f"{one.name}.json").is_file())
    values = {key: own.confirmed(one, f"only {name}").values[key] for name, key in names.items()}
    return row(Scored(values, own._groups()), {})


# Tables


def page(seeds: Mapping[int, Facts], rows: Mapping[str, str], title: str, about: str) -> str:
    """The results of all seeds as Markdown. rows: name -> what it is called."""
    lines = [f"# {title}", "", about, "", *_medians(seeds, rows), "", *_gains(seeds, rows)]
    for number, found in seeds.items():
        lines += ["", f"## Seed {number}", "", *_of_seed(found, rows), "", *_searches(found)]
    return "\n".join(lines) + "\n"


def _names(seeds: Mapping[int, Facts]) -> list[str]:
    return list(next(iter(next(iter(seeds.values()))["rows"].values()))["scores"])


def _medians(seeds: Mapping[int, Facts], rows: Mapping[str, str]) -> Iterator[str]:
    names = _names(seeds)
    numbers = ", ".join(map(str, seeds))
    yield f"MRR on the test, medians of seeds {numbers}. Gain: of the mean over the paper's sum, mean of the seeds, and"
    yield "in how many its paired 95 % interval lies above zero (better) or below (worse)."
    yield ""
    yield f"| model | {' | '.join(names)} | gain | better | worse |"
    yield "|---" * (len(names) + 4) + "|"
    for name, said in rows.items():
        having = [found["rows"][name] for found in seeds.values() if name in found["rows"]]
        if having:
            cells = [f"{statistics.median(one['scores'][own]['estimate'] for one in having):.3f}" for own in names]
            cells += _summed([one["over"].get("sum", {}).get(MEAN) for one in having])
            yield f"| {said} | {' | '.join(cells)} |"


def _summed(gains: Sequence[Facts | None]) -> list[str]:
    known = [gain for gain in gains if gain is not None]
    if not known:
        return ["", "", ""]
    mean = statistics.mean(gain["estimate"] for gain in known)
    above, below = sum(gain["low"] > 0 for gain in known), sum(gain["high"] < 0 for gain in known)
    return [f"{mean:+.4f}", f"{above} of {len(known)}", f"{below} of {len(known)}"]


def _gains(seeds: Mapping[int, Facts], rows: Mapping[str, str]) -> Iterator[str]:
    """Does one repair make the other needless: what each brings by itself, and on top of the other."""
    yield "What each step brings, by itself and on top of the other; mean of the seeds, and in how many it is sure."
    yield ""
    yield "| step | of | gain of the mean | better | worse | gain of audio | better | worse |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, said in rows.items():
        for other in rows:
            gains = [
                found["rows"][name]["over"][other]
                for found in seeds.values()
                if other in found["rows"].get(name, {}).get("over", {})
            ]
            if gains and "recovered" in f"{name} {other}":
                cells = [cell for own in (MEAN, "audio") for cell in _summed([gain[own] for gain in gains])]
                yield f"| {said} | {rows[other]} | {' | '.join(cells)} |"


def _of_seed(found: Facts, rows: Mapping[str, str]) -> Iterator[str]:
    names = list(next(iter(found["rows"].values()))["scores"])
    yield f"| model | {' | '.join(names)} | mean, over the paper's sum | {' | '.join(names[:-1])} |"
    yield "|---" * (2 * len(names) + 1) + "|"
    for name, said in rows.items():
        if (one := found["rows"].get(name)) is None:
            continue
        cells = [f"{one['scores'][own]['estimate']:.3f}" for own in names]
        over = one["over"].get("sum", {})
        cells += [_interval(over[own]) if over else "" for own in (MEAN, *names[:-1])]
        yield f"| {said} | {' | '.join(cells)} |"


def _interval(gain: Facts) -> str:
    return f"{gain['estimate']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"


def _searches(found: Facts) -> Iterator[str]:
    for one in SEARCHES:
        if (facts := found["searches"].get(one.name)) is None:
            continue
        if facts["best"] is None:
            yield f"- {one.said}: {facts['sentences'][0]}"
            continue
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in facts["weights"].items())
        method = ", ".join(f"{key} {_shown(value)}" for key, value in merge_of(facts).items())
        broken = [line for line in facts["sentences"] if line.startswith("floor ")]
        told = [line for line in facts["sentences"][1:] if line not in broken]
        floors = f"; floors on the test: {'; '.join(broken) or 'all kept'}" if one.floor is not None else ""
        yield f"- {one.said} ({facts['scored']} points, {facts['stopped']} stopped early): {weights}; {method}{floors}"
        yield from (f"  - {line}" for line in told if not line.startswith("agreement."))  # its mean alone


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
