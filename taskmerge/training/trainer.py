"""The one trainer behind all stages: SentenceTransformerTrainer, checkpoints of what is trained alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.errors import TaskmergeError
from taskmerge.training.held_out import HeldOutRetrieval
from taskmerge.training.items import TrainingItems
from taskmerge.training.sampling import BalancedSampler
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.sharding import in_pieces, like, load_optimizer_state, optimizer_state, whole
from taskmerge.training.watching import DECIDES, METRIC
from taskmerge.training.work import CHECKPOINTS_KEPT, LOSSES_FILE, OPTIMIZER_FILE, SCHEDULER_FILE, TRAINED_FILE
from taskmerge.words.processes import process_count
from taskmerge.words.progress import Work
from taskmerge.words.system_errors import writing

_BETWEEN = "|"  # column and name of a feature


class StageTrainer(SentenceTransformerTrainer):
    """A trainer that saves and restores only tensors that require gradients, so that checkpoints are small.

    A checkpoint has complete tensors by name, so that any number of processes can resume it.

    Attributes:
        apart: frozen parts that are run by themselves: they are not sharded.
        first: called once when the initial model is on its device, before training or resuming.
        step_losses: of every step, the mean over processes; a resumed run continues the earlier list.
        told: the progress.
    """

    apart: Sequence[torch.nn.Module] = ()
    first: Callable[[], None] | None = None
    told: Work | None = None
    step_losses: list[float]

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add no model card during training: the stages write their own."""

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator as transformers does.

        accelerate forgets an FSDP plugin on machines without an accelerator, so it is passed again.
        """
        super().create_accelerator_and_postprocess()
        if not self.args.fsdp:
            return
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.ignored_modules = self.apart
            return
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        state: Any = self.accelerator.state
        plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        plugin.ignored_modules = self.apart
        self.is_fsdp_enabled = True

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """Columns of a batch in their order, whatever a model calls its features."""
        columns: dict[str, dict[str, Any]] = {}
        for key, value in inputs.items():
            column, between, name = key.partition(_BETWEEN)
            if between:
                columns.setdefault(column, {})[name] = value
        return list(columns.values()), inputs.get("label")

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Run one batch, and record its loss."""
        loss = super().training_step(*arguments, **options)
        self.step_losses[-1] += self._mean(loss)
        return loss

    def _mean(self, loss: torch.Tensor) -> float:
        mean = loss.detach().float().clone()
        if process_count() > 1:
            torch.distributed.all_reduce(mean)
            mean /= process_count()
        return float(mean)

    def look_first(self) -> None:
        """Call `first`, once."""
        call, self.first = self.first, None
        if call is not None:
            call()

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        in_pieces(self.model)
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors, gathered from all processes, in one process."""
        tensors = {name: whole(tensor) for name, tensor in self._trained().items()}
        folder = Path(output_dir or self.args.output_dir or ".")
        if self.args.should_save:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / TRAINED_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = optimizer_state(self._bare_optimizer(), self._trained())
        if self.args.should_save:
            assert self.lr_scheduler is not None
            with writing(Path(output_dir)):
                torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)
                (Path(output_dir) / LOSSES_FILE).write_text(json.dumps(self.step_losses), "utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        load_optimizer_state(self._bare_optimizer(), state, self._trained())
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True))
        if (losses := Path(checkpoint) / LOSSES_FILE).is_file():
            self.step_losses[:] = read_json(losses, list[float], own=True)
        for group, rate in zip(self._bare_optimizer().param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _bare_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(self._get_output_dir(trial=trial)):  # optimizer, random state and more are the library's to write
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.look_first()
        saved = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        trained = self._trained()
        if saved.keys() != trained.keys():
            strange = sorted(saved.keys() ^ trained.keys())
            raise TaskmergeError(
                f"the checkpoint trained other tensors: {', '.join(strange[:3])}",
                resume_from_checkpoint,
                "start from scratch, or use the settings of the checkpoint",
            )
        with torch.no_grad():
            for name, tensor in saved.items():
                trained[name].copy_(like(tensor, trained[name]))

    def _load_best_model(self) -> None:
        if best := self.state.best_model_checkpoint:  # a path of where the run was begun, which may have moved
            self._load_from_checkpoint(str(Path(self.args.output_dir or ".") / Path(best).name))


class Telling(TrainerCallback):
    """Tells how far training is, and that the model is ready to be looked at."""

    trainer: StageTrainer
    pairs: int

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Before the first step of this run."""
        self.trainer.look_first()

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Before a step."""
        self.trainer.step_losses.append(0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """After a step."""
        if self.trainer.told is not None:
            self.trainer.told.advance(1, loss=self.trainer.step_losses[-1], pairs=float(self.pairs))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **options: Any) -> None:
        """After a look."""
        if not metrics or f"eval_{METRIC}" not in metrics:
            return
        looks = self.trainer.evaluator
        if not state.is_world_process_zero and not self.trainer.is_fsdp_enabled:
            # not sharded, the first process looks alone; what the others draw follows what it saw
            assert isinstance(looks, HeldOutRetrieval)
            seen = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
            looks.history.append({"step": float(state.global_step), **seen})
        if self.trainer.told is not None:
            self.trainer.told.advance(0, held_out=float(metrics[f"eval_{METRIC}"]))


class StopAt(TrainerCallback):
    """A callback that stops after a step; the schedule remains that of all steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the training after the given step."""
        if state.global_step >= self.step:
            control.should_training_stop = True


@dataclass
class ColumnCollator(SentenceTransformerDataCollator):
    """A collator from numbers of items to features of all columns, and the items' rows of a bank.

    labels: set -> rows of a bank (pairs, columns); None: texts are embedded with the items.
    """

    items: TrainingItems | None = None
    labels: Mapping[str, Any] | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.items is not None
        numbers = [int(row["item"]) for row in features]
        columns = self.items.columns(numbers, texts=self.labels is None)
        batch = {f"{name}{_BETWEEN}{key}": value for name, column in columns.items() for key, value in column.items()}
        if self.labels is not None:
            name, rows = self.items.rows(numbers)
            batch["label"] = torch.from_numpy(self.labels[name][rows])
        return batch


def build_trainer(
    model: Any,
    loss: Any,
    collator: ColumnCollator,
    sampler: type[BalancedSampler],
    held_out: HeldOutRetrieval | None,
    settings: TrainingSettings,
    folder: Path,
    layers: list[str],
    apart: Sequence[torch.nn.Module] = (),
) -> StageTrainer:
    """Return a trainer ready to run.

    collator: of the items.  sampler: of their numbers.  folder: for checkpoints.  layers: classes to shard by.
    apart: what is not sharded.
    """
    assert collator.items is not None
    arguments = _arguments(settings, folder, sampler, held_out is not None, layers)
    telling = Telling()
    callbacks: list[TrainerCallback] = [telling]
    if settings.stop_at is not None:
        callbacks.append(StopAt(settings.stop_at))
    if held_out is not None and settings.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    kind = type("StageTrainer", (StageTrainer,), {"apart": list(apart)})  # it is asked for while a trainer is made
    trainer: StageTrainer = kind(
        model=model,
        args=arguments,
        train_dataset=DatasetDict(item_rows(collator.items)),
        loss=loss,
        evaluator=held_out,
        data_collator=collator,
        callbacks=callbacks,
    )
    trainer.step_losses = []
    telling.trainer, telling.pairs = trainer, settings.batch_size * settings.accumulation * process_count()
    trainer.remove_callback(PrinterCallback)  # it prints every look on standard output, which belongs to results
    return trainer


def _arguments(
    settings: TrainingSettings, folder: Path, sampler: type[BalancedSampler], looks: bool, layers: list[str]
) -> SentenceTransformerTrainingArguments:
    on_cpu = settings.device is not None and settings.device.startswith("cpu")
    on_gpu = torch.cuda.is_available() and not on_cpu
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
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
        eval_strategy="steps" if looks else "no",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=CHECKPOINTS_KEPT,
        load_best_model_at_end=looks,
        metric_for_best_model=f"eval_{DECIDES}",
        greater_is_better=True,
        multi_dataset_batch_sampler=sampler,
        dataloader_drop_last=True,
        dataloader_pin_memory=on_gpu,
        **_distributed(settings, on_gpu, layers),
    )


def _distributed(settings: TrainingSettings, on_gpu: bool, layers: list[str]) -> Mapping[str, Any]:
    """What several processes need, sharded or not."""
    if process_count() == 1:
        return {}
    # rehearsal leaves the other modalities' towers without gradients: without finding these it hangs
    found: dict[str, Any] = {"ddp_backend": "nccl" if on_gpu else "gloo"}
    if not settings.fsdp:
        return {**found, "ddp_find_unused_parameters": True}
    config = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": layers,
        "reshard_after_forward": True,
    }
    return {**found, "fsdp": True, "fsdp_config": config}


def item_rows(items: TrainingItems) -> dict[str, Dataset]:
    """Return rows {item} of every set: the numbers of its items."""
    return {name: Dataset.from_dict({"item": list(items.numbers(name))}) for name in items.sets}
