"""`diagnose_drift`: from models and probes to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.opening import open_state_dict
from taskmerge.checkpoints.state_dict import HasTensors, StateDict
from taskmerge.declarations import COUNT, Number, checked_arguments
from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder, open_to_measure
from taskmerge.embedders.pairs import Pairs, read_pairs, spelling
from taskmerge.embedders.sources import COMPONENTS, ModelSource
from taskmerge.errors import Problem, UsageError
from taskmerge.measuring.drift.comparison import Comparison, Embedded, compare, embed_pairs, probe_changes
from taskmerge.measuring.drift.examples import changed_examples, embedding_plane
from taskmerge.measuring.drift.forecast import Forecast, forecast_drift
from taskmerge.measuring.drift.null_band import Band, between_halves, named_references, null_bands, precision_twin
from taskmerge.measuring.drift.probes import probe_notes
from taskmerge.measuring.drift.report import DriftReport, ModalityDrift
from taskmerge.measuring.drift.statistics import PairMoments, gallery_statistics
from taskmerge.measuring.drift.verdict import DEFAULT_LIMIT, Verdict, judge
from taskmerge.metrics.bootstrap import mean_intervals
from taskmerge.metrics.retrieval import collapse, score_queries
from taskmerge.words.devices import device_or_default
from taskmerge.words.modalities import TEXT, through
from taskmerge.words.precisions import precision_name

if TYPE_CHECKING:
    from taskmerge.embedders.takes import Model, PairSets, PromptSource


BATCH_SIZE = 32


@checked_arguments(limit=Number(0, 1, low_open=True), batch_size=COUNT, components=COMPONENTS)
def diagnose_drift(
    fused: Model,
    specialist: Model | Mapping[str, Model],
    base: Model | StateDict | None = None,
    probes: PairSets | None = None,
    *,
    limit: float = DEFAULT_LIMIT,
    references: Mapping[str, Sequence[Model]] | Sequence[Model] = (),
    batch_size: int = BATCH_SIZE,
    components: Mapping[str, Sequence[str]] | None = None,
    device: str | None = None,
    precision: str | None = None,
    prompts: PromptSource = None,
    trained_on: PairSets | None = None,
) -> DriftReport:
    """Measure how a merge changed the abilities of a specialist, and judge the change.

    Args:
        fused: a model that `open_embedder` takes.
        specialist: the same; {name: model} for several grafted projectors.
        base: the same, or a `StateDict`; used for the forecast only. Optional if there are probes.
        probes: pairs that `read_pairs` takes, {name: pairs} for several specialists, with the same names. Optional if
            `base` is given: then there is only a forecast.
        limit: the drop of R@1 that matters, 0 to 1.
        references: models that did not drift, such as the specialist trained from another seed; {name: models} for
            several specialists. They widen the null band, which otherwise comes from the specialist in another
            precision.
        batch_size: probes per batch.
        components: component -> patterns of tensor names, if the names and the config do not decide it.
        device: device that the models run on; default: the CPU for a path, else the model's own device.
        precision: precision that the models run in; default: their own.
        prompts: prompts that replace the models' own, see `Embedder.prompted`. Items are queries, texts are documents.
        trained_on: pairs that the specialist was trained on, {name: pairs} for several specialists. The report lists
            probes that are among them.

    Returns:
        The verdict, statistics and forecast of each modality.

    Raises:
        UsageError: with all problems of the probes, before any model runs.

    Source:
        Projector drift of Conan-embedding-v3 (arXiv 2606.09331).
    """
    device = device_or_default(device)
    specialists, sets = _by_name(specialist, probes)
    if not sets and base is None:
        raise UsageError("nothing to diagnose", next_move="give probes to measure, or a base to forecast from")
    if not sets and not isinstance(specialist, Mapping):
        specialists = {_grafted(specialist, base, components): specialist}
    pairs = _checked(sets)
    by_name = isinstance(specialist, Mapping)
    forecasts = {
        name: _forecast(fused, own, base, pairs[name].modality if name in pairs else name, components)
        for name, own in specialists.items()
        if base is not None
    }
    modalities = {}
    seen = _trained_on(trained_on, specialist, pairs)

    def opened(source: Any) -> Embedder:
        found = open_to_measure(source, device=device, precision=precision, components=components)
        return found.prompted(prompts)

    fused_model = opened(fused) if pairs else None
    for name, own_pairs in pairs.items():
        given: Any = references.get(name, ()) if by_name and isinstance(references, Mapping) else references
        assert fused_model is not None
        modalities[name] = diagnose_modality(
            fused_model,
            opened(specialists[name]),
            own_pairs,
            {title: opened(model) for title, model in named_references(given).items()},
            limit=limit,
            batch_size=batch_size,
            trained_on=seen.get(name, ()),
        )
    return DriftReport(modalities, forecasts)


def diagnose_modality(
    fused: Embedder,
    specialist: Embedder,
    pairs: Pairs,
    references: Mapping[str, Embedder],
    *,
    limit: float = DEFAULT_LIMIT,
    batch_size: int = BATCH_SIZE,
    trained_on: Sequence[Pairs] = (),
) -> ModalityDrift:
    """Compare one specialist and its probes with the fused model. See `diagnose_drift`."""
    for model in (fused, specialist, *references.values()):
        model.check_takes(pairs.modality, pairs.source)
    found = compare(specialist, fused, pairs, batch_size=batch_size)
    changes = probe_changes(found.reference, found.other, found.right)
    twin_name, twin = precision_twin(specialist)
    undrifted = {
        title: embed_pairs(model, pairs, batch_size) for title, model in {twin_name: twin, **references}.items()
    }
    bands = bands_of(found.reference, undrifted, found.right)
    relevant = [[row] for row in found.right]
    scores = {
        title: score_queries(side.probes, side.texts, relevant).means()
        for title, side in (("specialist", found.reference), ("fused", found.other))
    }
    verdict = judge(
        changes,
        bands,
        texts=found.right.tolist(),
        specialist_recall=scores["specialist"]["recall_at_1"],
        control_identical=found.control.passed if pairs.modality != TEXT else True,
        limit=limit,
    )
    return ModalityDrift(
        pairs.modality,
        pairs.source,
        len(pairs),
        len(found.reference.texts),
        verdict,
        scores,
        mean_intervals(changes, groups=found.right.tolist()),
        bands,
        found.control,
        found.depths,
        _explanations(found),
        probe_notes(pairs, found.reference.probes, found.reference.texts, trained_on),
        changed_examples(found, pairs),
        embedding_plane(found, pairs),
        {"specialist": precision_name(specialist.dtype), "fused": precision_name(fused.dtype)},
    )


def bands_of(reference: Embedded, undrifted: Mapping[str, Embedded], right: np.ndarray) -> dict[str, Band]:
    """Return the null band of every statistic: `undrifted` models, by name, against the specialist."""
    return null_bands({name: probe_changes(reference, side, right) for name, side in undrifted.items()})


def judged(
    reference: Embedded,
    other: Embedded,
    undrifted: Mapping[str, Embedded],
    texts: Sequence[str],
    limit: float = DEFAULT_LIMIT,
) -> Verdict:
    """Return the verdict from embeddings alone. texts: one per probe; the distinct ones are embedded, in order."""
    right = collapse([spelling(text) for text in texts])[1]
    scores = score_queries(reference.probes, reference.texts, [[row] for row in right])
    return judge(
        probe_changes(reference, other, right),
        bands_of(reference, undrifted, right),
        texts=texts,
        specialist_recall=float(scores["recall_at_1"].mean()),
        limit=limit,
    )


def _explanations(found: Comparison) -> dict[str, float]:
    """Statistics of the final embeddings, by name; "…_specialist" and "…_fused" where each model has its own."""
    moments = PairMoments()
    moments.update(found.reference.probes, found.other.probes)
    values = {
        "debiased_cka": moments.debiased_cka(),
        "representation_bias": float(np.abs(found.reference.probes - found.other.probes).mean()),
    }
    if moments.count > 3:
        values |= {
            "mean_shift": moments.mean_shift(),
            "covariance_shift": moments.covariance_shift(),
            "frechet_distance": moments.frechet_distance(),
            "frechet_distance_between_halves": between_halves(found.reference.probes),
        }
        values |= dict(
            zip(("effective_rank_specialist", "effective_rank_fused"), moments.effective_ranks(), strict=True)
        )
    for title, side in (("specialist", found.reference), ("fused", found.other)):
        gallery = gallery_statistics(side.probes, side.texts, found.right)
        values |= {
            f"modality_gap_{title}": gallery.modality_gap,
            f"alignment_{title}": gallery.alignment,
            f"uniformity_{title}": gallery.uniformity,
            f"margin_{title}": float(gallery.margins.mean()),
        }
    return values


def _by_name(specialist: Any, probes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name -> specialist, name -> probes); a single pair takes the probes' modality as its name."""
    if isinstance(specialist, Mapping):
        if probes is not None and not isinstance(probes, Mapping):
            raise UsageError(
                "several specialists need probes by name", next_move="give probes={'audio': …, 'image': …}"
            )
        unknown = set(probes or {}) - set(specialist)
        if unknown:
            raise UsageError(
                f"there are probes for {', '.join(sorted(unknown))}, but no such specialist",
                next_move=f"specialists: {', '.join(specialist)}",
            )
        return dict(specialist), dict(probes or {})
    if probes is None:
        return {"specialist": specialist}, {}
    pairs = read_pairs(probes)
    return {pairs.column: specialist}, {pairs.column: pairs}


def _trained_on(said: Any, specialist: Any, pairs: Mapping[str, Pairs]) -> dict[str, list[Pairs]]:
    """name -> what that specialist was trained on, one set or {set name: set}, where it is known."""
    if said is None:
        return {}
    by_name = dict(said) if isinstance(specialist, Mapping) else dict.fromkeys(pairs, said)
    strange = sorted(set(by_name) - set(pairs))
    if strange:
        raise UsageError(
            f"trained_on: there are no probes for {strange[0]!r}", next_move=f"there are: {', '.join(pairs)}"
        )
    sets = {name: source.values() if isinstance(source, Mapping) else [source] for name, source in by_name.items()}
    return {name: [read_pairs(source) for source in own] for name, own in sets.items()}


def _grafted(specialist: Any, base: Any, components: Mapping[str, Any] | None) -> str:
    """The modality of the specialist's projector, of the one that the base has not where there are several;
    "specialist" where that leaves none or several.
    """
    own, old = (
        {name for name in components_of(side, components).values() if name.endswith("_projector")}
        for side in (_weights(specialist), _weights(base))
    )
    towers = [name.removesuffix("_projector") for name in (own - old or own)]
    return next(iter(through(towers[0])), towers[0]) if len(towers) == 1 else "specialist"


def _checked(sets: Mapping[str, Any]) -> dict[str, Pairs]:
    """Every set read and decoded once; all problems at once."""
    problems: list[Problem] = []
    checked = {}
    for name, source in sets.items():
        try:
            checked[name] = read_pairs(source).check()
            if len(checked[name].distinct()[0]) < 2:
                problems.append(
                    Problem(
                        "all probes have the same text: they cannot be ranked",
                        checked[name].source,
                        "give probes with at least two different texts",
                    )
                )
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return checked


def _forecast(fused: Any, specialist: Any, base: Any, modality: str, components: Mapping[str, Any] | None) -> Forecast:
    return forecast_drift(_weights(fused), _weights(specialist), _weights(base), modality, components)


def _weights(source: Any) -> StateDict:
    """Of a model that runs, its live tensors; of anything else what it holds."""
    if isinstance(source, ModelSource):
        return open_state_dict(source.path)
    if isinstance(source, str | Path | StateDict | HasTensors):
        return open_state_dict(source)
    return open_embedder(source).state_dict
