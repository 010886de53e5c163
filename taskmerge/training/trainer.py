"""The one trainer behind all stages: SentenceTransformerTrainer, checkpoints of what is trained alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from taskmerge.errors import TaskmergeError
from taskmerge.training.held_out import METRIC, HeldOutRetrieval
from taskmerge.training.items import TrainingItems, tagged, untagged
from taskmerge.training.masters import MasterAdamW
from taskmerge.training.sampling import balanced_sampler
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.work import CHECKPOINTS_KEPT, TRAINED_FILE
from taskmerge.words.system_errors import writing


class StageTrainer(SentenceTransformerTrainer):
    """Saves and restores only tensors that require gradients: a checkpoint is as large as what it trains."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card while training: the stages write their own."""

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """The optimizer that transformers would take, AdamW with float32 masters."""
        kind, options = super().get_optimizer_cls_and_kwargs(args, model)
        return (MasterAdamW if kind is torch.optim.AdamW else kind), options

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._trained().items()}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / TRAINED_FILE)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(self._get_output_dir(trial=trial)):  # optimizer, random state and more are the library's to write
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        trained = self._trained()
        if saved.keys() != trained.keys():
            strange = sorted(saved.keys() ^ trained.keys())
            raise TaskmergeError(
                f"the checkpoint trained other tensors: {', '.join(strange[:3])}",
                resume_from_checkpoint,
                "start afresh, or go back to the settings it was made with",
            )
        with torch.no_grad():
            for name, tensor in saved.items():
                trained[name].copy_(tensor)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


@dataclass
class PairCollator(SentenceTransformerDataCollator):
    """Items and texts as one batch, for `OneForwardInfoNCE`."""

    items: TrainingItems | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.items is not None
        texts = [untagged(row["text"])[1] for row in features]
        batch = self.items.batch([row["item"] for row in features], True, texts)
        return {f"pair_{name}": value for name, value in batch.items()}


def process_count() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def build_trainer(
    model: Any,
    loss: Any,
    data: DatasetDict,
    items: TrainingItems,
    held_out: HeldOutRetrieval | None,
    settings: TrainingSettings,
    folder: Path,
    unique_texts: bool,
) -> StageTrainer:
    """A trainer ready to run. data: {set: Dataset(item numbers, text or label)}; folder: for checkpoints.

    unique_texts: no text twice in a batch, for losses with in-batch negatives.
    """
    arguments = _arguments(settings, folder, data, held_out is not None, unique_texts)
    callbacks: list[TrainerCallback] = []
    if held_out is not None and settings.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    trainer = StageTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=loss,
        evaluator=held_out,
        data_collator=_collator(items, unique_texts),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints every look on standard output, which belongs to results
    return trainer


def _collator(items: TrainingItems, unique_texts: bool) -> SentenceTransformerDataCollator:
    if unique_texts and process_count() > 1:
        return PairCollator(preprocess_fn=items.collate, items=items)
    return SentenceTransformerDataCollator(preprocess_fn=items.collate)


def _arguments(
    settings: TrainingSettings, folder: Path, data: DatasetDict, looks: bool, unique_texts: bool
) -> SentenceTransformerTrainingArguments:
    processes = process_count()
    on_cpu = settings.device is not None and settings.device.startswith("cpu")
    on_gpu = torch.cuda.is_available() and not on_cpu
    strategy = "steps" if looks else "no"
    shares = [settings.shares.get(name, 1.0) for name in data]
    distributed: dict[str, Any] = {}
    if processes > 1:  # rehearsal leaves the other modalities' towers without gradients: without this it hangs
        distributed = {"ddp_find_unused_parameters": True, "ddp_backend": "nccl" if on_gpu else "gloo"}
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        learning_rate_mapping={re.escape(part): rate for part, rate in settings.learning_rates.items()},
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_gradient_norm,
        bf16=settings.bf16,
        use_cpu=on_cpu or (settings.device is None and not on_gpu),
        seed=settings.seed,
        report_to=settings.report_to,
        logging_steps=settings.evaluate_every,
        disable_tqdm=True,
        eval_strategy=strategy,
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=CHECKPOINTS_KEPT,
        load_best_model_at_end=looks,
        metric_for_best_model=f"eval_{METRIC}",
        greater_is_better=True,
        batch_sampler="no_duplicates" if unique_texts else "batch_sampler",
        multi_dataset_batch_sampler=balanced_sampler(settings.balance, shares, settings.steps, processes),
        dataloader_drop_last=True,
        dataloader_pin_memory=on_gpu,
        **distributed,
    )


def pair_rows(items: TrainingItems, name: str) -> Dataset:
    """Rows {item, text} of one set, for losses with in-batch negatives."""
    pairs = items.sets[name]
    texts = [tagged(pairs.roles[1], text) for text in pairs.texts]
    return Dataset.from_dict({"item": list(items.numbers(name)), "text": texts})


def labelled_rows(items: TrainingItems, name: str, labels: list[int]) -> Dataset:
    """Rows {item, label} of one set, for losses against a bank."""
    return Dataset.from_dict({"item": list(items.numbers(name)), "label": labels})
