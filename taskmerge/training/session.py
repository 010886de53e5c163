"""One run of training: freeze, bank or batch, look, keep the best, prove what did not move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import EMBEDDING, Embedder
from taskmerge.embedders.opening import quiet
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import UsageError
from taskmerge.training.components import (
    adaptable_layers,
    assert_unchanged,
    dropout_set_to,
    freeze_all_but,
    frozen_hashes,
    inject_lora,
    passed,
    select,
    texts_learn,
)
from taskmerge.training.held_out import HeldOutRetrieval
from taskmerge.training.items import TrainingItems
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.usable import check_batches, check_rates, check_ways, drawn, last_checkpoint, looked_at
from taskmerge.training.watching import DECIDES, Watch
from taskmerge.words.processes import process_count
from taskmerge.words.progress import tell, work


class Session:
    """One training run: making it checks everything; `run` only trains.

    embedder: trained in place.  sets, held_out: {name: Pairs}.  train: components or globs.  folder: for checkpoints.
    stage: what the progress is called. Raises UsageError for data that cannot be used and components that do not exist.
    """

    def __init__(
        self,
        embedder: Embedder,
        sets: Mapping[str, Pairs],
        held_out: Mapping[str, Pairs],
        train: Sequence[str],
        settings: TrainingSettings,
        folder: Path,
        stage: str = "training",
        watch: Watch | None = None,
    ) -> None:
        self.embedder, self.settings, self.folder, self.stage = embedder, settings, folder, stage
        self.trained = select(embedder, train)
        self.components = components_of(embedder.state_dict, embedder.components)
        components = {self.components[name] for name in self.trained}
        self.text_is_frozen = not texts_learn(components)
        check_ways(sets, components)
        self.trained = passed(self.trained, self.components, (pairs.modality for pairs in sets.values()))
        self.processes = process_count()
        batch = settings.batch_size * self.processes
        check_batches(sets, batch, not self.text_is_frozen)
        check_rates(settings, [embedder.parameter_names()[name] for name in self.trained])
        self.adapted, self.layers = self._adaptable()
        self.sizes = [len(pairs) for pairs in sets.values()]
        sets = drawn(sets, settings.steps * settings.accumulation * batch, batch, settings.seed)
        self.items = TrainingItems(embedder, sets, settings.input_noise, settings.encodings)
        self.held_out: HeldOutRetrieval | None = None
        if looked := looked_at(held_out, settings.seed):
            own = TrainingItems(embedder, looked, keeping=settings.encodings, precision=settings.looked_at_in)
            self.held_out = HeldOutRetrieval(own, sets, watch)
        self.is_main = True
        self.encoders_learn = any(name.endswith("_encoder") for name in components)
        if not self.encoders_learn and not settings.input_noise:
            self.items.encode()
            if self.held_out is not None:
                self.held_out.items.encode()

    def run(self) -> dict[str, Any]:
        """Train; returns the fields of a StageReport that only training knows."""
        import torch

        before_hashes = frozen_hashes(self.embedder, self.trained)
        self.scores: list[dict[str, float]] = []
        values = self.embedder.state_dict.values
        original = {name: values[name].detach().to("cpu", copy=True) for name in self.trained}
        with dropout_set_to(self.embedder.module, self.settings.dropout):
            steps, losses = self._train()
        before, after = self.scores if self.held_out is not None else ({}, {})
        assert_unchanged(before_hashes, frozen_hashes(self.embedder, self.trained))
        values = self.embedder.state_dict.values
        moved = sum(not torch.equal(values[name].cpu(), tensor) for name, tensor in original.items())
        kept = moved > 0 and (not before or after[DECIDES] > before[DECIDES])
        if not kept:
            self._restore(original)
        return {
            "steps": steps,
            "trained": len(self.trained),
            "moved": moved,
            "frozen": len(before_hashes),
            "before": before,
            "after": after if kept else before,
            "curves": self.held_out.history if self.held_out is not None else [],
            "losses": losses,
            "kept": kept,
            "barred": self.held_out.barred() if self.held_out is not None and not kept else [],
            "below": self.held_out.fallen(self.held_out.latest) if self.held_out is not None and kept else [],
        }

    def _look(self) -> None:
        """Score the held-out pairs: once before anything is learnt, once at the end."""
        if self.held_out is None:
            return
        first = not self.scores
        if self.text_is_frozen and first:
            self.held_out.freeze_texts()
        self.scores.append(self.held_out.begin() if first else self.held_out.scores())

    def _restore(self, original: Mapping[str, Any]) -> None:
        import torch

        values = self.embedder.state_dict.values
        with torch.no_grad():
            for name, tensor in original.items():
                values[name].copy_(tensor)

    def _train(self) -> tuple[int, list[tuple[int, float]]]:
        from taskmerge.training.columns import trainable
        from taskmerge.training.masters import in_float32
        from taskmerge.training.recomputing import recomputed
        from taskmerge.training.sharding import layer_classes, plain_again
        from taskmerge.training.trainer import build_trainer

        sharded = self.settings.fsdp and self.processes > 1
        freeze_all_but(self.embedder, self.trained)
        model = trainable(self.embedder)
        layers = layer_classes(self.embedder) if sharded else []
        adapters = self._adapters()
        loss, labels = self._loss(model)
        collator, sampler = self._batches(labels)
        trainer = build_trainer(
            model, loss, collator, sampler, self.held_out, self.settings, self.folder, layers,
            self.items.prepared.encoders(),
        )  # fmt: skip
        self.is_main = trainer.is_world_process_zero()
        trainer.first = self._look
        resumed = last_checkpoint(self.folder) if self.settings.resume else None
        if resumed is not None and self.held_out is not None:
            self.held_out.restore(resumed.logged)
        with ExitStack() as around:
            masters = around.enter_context(in_float32(self.embedder.module))
            if len(masters):
                computed = "" if self.settings.bf16 else " and computed"
                tell(f"{len(masters)} half-precision tensors are stored{computed} in float32 while they are trained")
            around.enter_context(plain_again(self.embedder.module))
            if sharded and self.held_out is not None:  # what is sharded runs from its outermost module
                self.held_out.items.run = lambda features: model(dict(features))[EMBEDDING]
            if self.settings.gradient_checkpointing:
                around.enter_context(recomputed(self.embedder))
            around.enter_context(quiet())
            done = 0 if resumed is None else resumed.step
            trainer.told = around.enter_context(work(self.stage, self.settings.steps, "steps", done))
            trainer.train(resume_from_checkpoint=None if resumed is None else resumed.folder)
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # bf16: it would continue in autocast
            masters.round()
            self._look()
        if self.held_out is not None:
            self.held_out.items.run = self.embedder.embed
        if adapters is not None:
            adapters.merge_and_unload()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(True)
        model.eval()
        steps = int(trainer.state.global_step)
        return steps, _thinned(trainer.step_losses, steps - len(trainer.step_losses))

    def _adaptable(self) -> tuple[set[str], list[str]]:
        """(tensors of the components that LoRA is wanted for, their linear layers); none without LoRA.

        Raises UsageError where there is no linear layer.
        """
        lora = self.settings.lora
        if lora is None:
            return set(), []
        wanted = lora.components or [
            part for part in sorted({self.components[name] for name in self.trained}) if not part.endswith("projector")
        ]
        adapted = set(select(self.embedder, list(wanted))) & set(self.trained) if wanted else set()
        layers = adaptable_layers(self.embedder, sorted(adapted))
        if not layers:
            parts = ", ".join(sorted({self.components[name] for name in self.trained}))
            move = f"list the projectors in LoRA's `components` to adapt them; trained: {parts}"
            raise UsageError("LoRA has no linear layer to adapt", next_move=move)
        return adapted, layers

    def _adapters(self) -> Any:
        """LoRA on the linear layers it is wanted for; other trained tensors of those components stay frozen."""
        import torch

        lora = self.settings.lora
        if lora is None:
            return None
        places = self.embedder.parameter_names()
        full = {places[name] for name in self.trained if name not in self.adapted}
        module = self.embedder.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            adapters = inject_lora(module, self.layers, lora.rank, lora.scale)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(".lora_" in name or name in full)
        return adapters

    def _loss(self, model: Any) -> tuple[Any, Mapping[str, np.ndarray] | None]:
        """The loss, and the rows of its bank that are each set's texts; None where texts learn."""
        from taskmerge.training.losses import LossSettings, against_bank, in_batch

        settings = self.settings
        how = LossSettings(settings.temperature, settings.dimensions, settings.gradient_cache)
        if not self.text_is_frozen:
            return in_batch(model, how), None
        self.items.freeze_texts()
        bank = self.items.bank()
        return against_bank(model, bank, how, settings.seed), bank.labels

    def _batches(self, labels: Mapping[str, np.ndarray] | None) -> tuple[Any, Any]:
        """What makes batches of numbers, and what draws the numbers."""
        from taskmerge.training.sampling import balanced_sampler, draw_probabilities
        from taskmerge.training.trainer import ColumnCollator

        settings, sets = self.settings, self.items.sets
        shares = [settings.shares.get(name, 1.0) for name in sets]
        counted = [1] * len(sets) if settings.adaptive else self.sizes
        probabilities = draw_probabilities(counted, settings.balance, shares)
        texts = [None if self.text_is_frozen else pairs.spellings() for pairs in sets.values()]
        draws = settings.steps * settings.accumulation
        follows = self._missing if settings.adaptive and self.held_out is not None else None
        sampler = balanced_sampler(probabilities, texts, draws, settings.batch_size, self.processes, follows)
        collator = ColumnCollator(preprocess_fn=_unused, items=self.items, labels=labels)
        return collator, sampler

    def _missing(self, draw: int) -> list[float]:
        """What every set still misses when a batch is drawn, which its share follows."""
        assert self.held_out is not None
        return self.held_out.shares_at(draw // self.settings.accumulation, list(self.items.sets))


def _unused(*_: Any, **__: Any) -> None:
    raise UsageError("items are prepared by their own collator", next_move="leave the collator of the trainer")


def _thinned(losses: Sequence[float], done: int, most: int = 200) -> list[tuple[int, float]]:
    """(step, mean loss since the point before), at most `most` points."""
    if not losses:
        return []
    parts = np.array_split(np.asarray(losses, dtype=np.float64), min(most, len(losses)))
    ends = done + np.cumsum([len(part) for part in parts])
    return [(int(end), float(part.mean())) for end, part in zip(ends, parts, strict=True)]
