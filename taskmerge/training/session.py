"""One run of training: freeze, bank or batch, look, keep the best, prove what did not move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import CheckpointError, Problem, UsageError
from taskmerge.training.components import (
    adaptable_layers,
    assert_unchanged,
    dropout_set_to,
    freeze_all_but,
    frozen_hashes,
    inject_lora,
    on_the_way,
    passed,
    select,
    texts_learn,
)
from taskmerge.training.held_out import HeldOutRetrieval
from taskmerge.training.items import TrainingItems
from taskmerge.training.losses import against_bank, in_batch
from taskmerge.training.settings import TrainingSettings, batch_problems
from taskmerge.training.watching import DECIDES, Watch

STATE = "trainer_state.json"
"""What the trainer writes last into a checkpoint."""


class Session:
    """Everything is checked and prepared when a Session is made; `run` only trains.

    embedder: trained in place.  sets, held_out: {name: Pairs}.  train: components or globs.  folder: for checkpoints.
    Raises UsageError for data that cannot be used and components that do not exist.
    """

    def __init__(
        self,
        embedder: Embedder,
        sets: Mapping[str, Pairs],
        held_out: Mapping[str, Pairs],
        train: Sequence[str],
        settings: TrainingSettings,
        folder: Path,
        watch: Watch | None = None,
    ) -> None:
        self.embedder, self.settings, self.folder = embedder, settings, folder
        self.trained = select(embedder, train)
        self.model = embedder.trainable()
        self.components = components_of(embedder.state_dict, embedder.components)
        components = {self.components[name] for name in self.trained}
        self.text_is_frozen = not texts_learn(components)
        _check_ways(sets, components)
        self.trained = passed(self.trained, self.components, (pairs.modality for pairs in sets.values()))
        _check_batches(sets, settings.batch_size, not self.text_is_frozen)
        if not self.text_is_frozen:
            _check_one_prompt(embedder, sets)
        self.items = TrainingItems(embedder, sets, settings.input_noise)
        self.held_out = HeldOutRetrieval(TrainingItems(embedder, held_out), sets, watch) if held_out else None
        self.is_main = True
        _check_rates(settings, [self.embedder.parameter_names()[name] for name in self.trained])
        if not any(name.endswith("_encoder") for name in components) and not settings.input_noise:
            self.items.encode()
            if self.held_out is not None:
                self.held_out.items.encode()

    def run(self) -> dict[str, Any]:
        """Train; returns the fields of a StageReport that only training knows."""
        import torch

        before_hashes = frozen_hashes(self.embedder, self.trained)
        if self.held_out is not None and self.text_is_frozen:
            self.held_out.freeze_texts()
        before = self.held_out.begin() if self.held_out is not None else {}
        values = self.embedder.state_dict.values
        original = {name: values[name].detach().clone() for name in self.trained}
        with dropout_set_to(self.embedder.module, self.settings.dropout):
            steps = self._train()
        assert_unchanged(before_hashes, frozen_hashes(self.embedder, self.trained))
        after = self.held_out.scores() if self.held_out is not None else {}
        moved = sum(not torch.equal(values[name], tensor) for name, tensor in original.items())
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
            "kept": kept,
            "barred": self.held_out.barred() if self.held_out is not None and not kept else [],
            "below": self.held_out.fallen(self.held_out.latest) if self.held_out is not None and kept else [],
        }

    def _restore(self, original: Mapping[str, Any]) -> None:
        import torch

        values = self.embedder.state_dict.values
        with torch.no_grad():
            for name, tensor in original.items():
                values[name].copy_(tensor)

    def _train(self) -> int:
        from taskmerge.training.trainer import build_trainer

        freeze_all_but(self.embedder, self.trained)
        model = self.model
        adapters = self._adapters()
        loss, data = self._loss_and_data()
        trainer = build_trainer(
            model, loss, data, self.items, self.held_out, self.settings, self.folder, not self.text_is_frozen
        )
        self.is_main = trainer.is_world_process_zero()
        checkpoint = self._last_checkpoint()
        if checkpoint is not None and self.held_out is not None:
            self.held_out.restore(read_json(Path(checkpoint) / STATE, _TrainerState).get("log_history", []))
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # bf16: it would go on in autocast
        if adapters is not None:
            adapters.merge_and_unload()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(True)
        model.eval()
        return int(trainer.state.global_step)

    def _adapters(self) -> Any:
        """LoRA on the linear layers it is wanted for; other trained tensors of those components stay frozen."""
        import torch

        lora = self.settings.lora
        if lora is None:
            return None
        wanted = lora.components or [
            part for part in sorted({self.components[name] for name in self.trained}) if not part.endswith("projector")
        ]
        adapted = [name for name in select(self.embedder, list(wanted)) if name in set(self.trained)]
        layers = adaptable_layers(self.embedder, adapted)
        places = self.embedder.parameter_names()
        full = {places[name] for name in self.trained if name not in set(adapted)}
        module = self.embedder.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            adapters = inject_lora(module, layers, lora.rank, lora.scale)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(".lora_" in name or name in full)
        return adapters

    def _loss_and_data(self) -> tuple[Any, Any]:
        from datasets import DatasetDict

        from taskmerge.training.trainer import labelled_rows, pair_rows, process_count

        temperature, cache = self.settings.temperature, self.settings.gradient_cache
        if not self.text_is_frozen:
            data = {name: pair_rows(self.items, name) for name in self.items.sets}
            loss = in_batch(self.model, temperature, cache, process_count())
            return loss, DatasetDict(data)
        bank, labels = self.items.bank()
        data = {name: labelled_rows(self.items, name, rows) for name, rows in labels.items()}
        return against_bank(self.model, bank, temperature, cache, process_count()), DatasetDict(data)

    def _last_checkpoint(self) -> str | None:
        if not self.settings.resume:
            return None
        if not self.folder.is_dir():
            raise UsageError(f"nothing to resume in {str(self.folder)!r}")
        return last_whole_checkpoint(self.folder)


class _TrainerState(TypedDict, total=False):
    global_step: int
    log_history: list[dict[str, Any]]


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state comes last."""
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    whole = []
    for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{STATE}"):
        try:
            reached: _TrainerState = read_json(state, _TrainerState)
        except CheckpointError:  # killed while writing it
            continue
        whole.append((reached["global_step"], str(state.parent)))
    return max(whole)[1] if whole else None


def _check_ways(sets: Mapping[str, Pairs], components: set[str]) -> None:
    for name, pairs in sets.items():
        if not any(on_the_way(component, pairs.modality) for component in components):
            raise UsageError(
                f"{name}: nothing that {pairs.modality} passes through is trained",
                pairs.source,
                f"trained: {', '.join(sorted(components))}",
            )


def _check_batches(sets: Mapping[str, Pairs], batch_size: int, unique_texts: bool) -> None:
    problems: list[Problem] = []
    for name, pairs in sets.items():
        problems += batch_problems(name, pairs.texts, batch_size, unique_texts)
    if problems:
        raise UsageError(problems)


def _check_one_prompt(embedder: Embedder, sets: Mapping[str, Pairs]) -> None:
    """Several processes run items and texts as one batch, before which one prompt stands."""
    from taskmerge.training.trainer import process_count

    for name, pairs in sets.items():
        before = [embedder.prompt(role, kind) for role, kind in zip(pairs.roles, (pairs.modality, "text"), strict=True)]
        if process_count() > 1 and before[0] != before[1]:
            raise UsageError(
                f"{name}: the prompt of its items, {before[0]!r}, is not that of its texts, {before[1]!r}",
                pairs.source,
                "train with one process, or with the same prompt for both (`prompts:` in the recipe)",
            )


def _check_rates(settings: TrainingSettings, trained: Sequence[str]) -> None:
    for pattern in settings.learning_rates:
        if not any(pattern in name for name in trained):
            parts = sorted({name.partition(".")[0] for name in trained})
            raise UsageError(
                f"learning_rates: {pattern!r} is in no trained tensor's name", next_move=f"trained: {', '.join(parts)}"
            )
