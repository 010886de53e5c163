"""One planning run: every tensor decided, with every problem found on the way, and the files next to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmerge.checkpoints.components import HEAD
from taskmerge.checkpoints.lineage.alignment import Alignment
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.lineage.classes import with_task
from taskmerge.checkpoints.lineage.heads import untied_config
from taskmerge.checkpoints.lineage.prompts import joined_prompts
from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.output.layout import ShardLayout, lay_out, natural
from taskmerge.checkpoints.state_dict import BASE, Beside
from taskmerge.errors import MergeError, Problem, RecipeError, few
from taskmerge.merging.agreement import settings
from taskmerge.merging.covariances import missing, protected_specialists
from taskmerge.merging.decisions import Decisions, Takes
from taskmerge.merging.few_bits import packed_as_base
from taskmerge.merging.inputs import Inputs
from taskmerge.merging.never_merged import never_merged, torn_modules
from taskmerge.merging.notes import notes
from taskmerge.merging.steps import Dropped, Plan, Source, TensorStep
from taskmerge.merging.tokenizer import tokenizer_texts, without_tokenizer
from taskmerge.methods import MergeMethod
from taskmerge.recipes import Recipe

_MOST_PROBLEMS = 50


@dataclass
class Planner:
    """One planning run: collects steps and problems."""

    recipe: Recipe
    inputs: Inputs
    alignment: Alignment
    dtype: str | None
    bare: bool
    takes: Takes | None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def census(self) -> Census:
        """The census of the aligned inputs."""
        return self.alignment.census

    @property
    def rows(self) -> Rows | None:
        """The alignment of token rows; None without one."""
        return self.alignment.rows

    def plan(self) -> Plan:
        """Decide the step of every tensor and return the plan; raise all problems together."""
        census, recipe = self.census, self.recipe
        self._say_notes()
        decisions = self._begun()
        decided = [decisions.base_step(name) for name in census.base.tensors]
        decided += [decisions.own_step(name, owners) for name, owners in census.own.items()]
        for label, name in self.alignment.heads.same.items():
            self.dropped.append(
                Dropped(Source(label, name), "equal to its token table, to which the base ties its head")
            )
        for label, twins in self.alignment.twins.same.items():
            for name, other in twins.items():
                self.dropped.append(Dropped(Source(label, name), f"equal to its {other}, which the base stores once"))
        decisions.say_contested()
        decisions.say_unused_rules()
        self._tokens_left_out()
        self._covariances(decisions.methods)
        found = [step for step in decided if step is not None]
        problems, warnings = settings(census, self.inputs.state_dicts, found)
        self.problems += [*decisions.layers.problems(), *problems, *torn_modules(census, found)]
        self.warnings += [*decisions.layers.warnings(), *warnings]
        if self.problems:
            said_by_recipe = all(problem.place is not None for problem in self.problems)
            raise (RecipeError if said_by_recipe else MergeError)(self.problems[:_MOST_PROBLEMS])
        made = self._made(sorted(found, key=lambda step: natural(step.info.name)), decisions.methods)
        return packed_as_base(made, recipe, self.inputs.state_dicts[BASE]) if recipe.output.quantized else made

    def _begun(self) -> Decisions:
        """What decides each tensor, told what the recipe says of some of them."""
        census, recipe = self.census, self.recipe
        fixed, problems = never_merged(census)
        self.problems += problems
        copied = census.copied(recipe.copy or {}, recipe.place, self.problems)
        merge = recipe.merge
        protected = tuple(protected_specialists(census, merge.protect, merge.place, self.problems))
        self.problems += missing(census.inputs, protected, "protect", merge.place)
        return Decisions(
            recipe, self.inputs, self.alignment, self.dtype, self.bare, self.takes, fixed, copied, protected,
            self.problems, self.warnings, self.dropped,
        )  # fmt: skip

    def _made(self, steps: Sequence[TensorStep], methods: Mapping[str, MergeMethod]) -> Plan:
        census, recipe = self.census, self.recipe
        beside = self._beside(steps)
        texts, warnings = tokenizer_texts(recipe, census.inputs, self.rows, beside, census.side_order)
        self.warnings += warnings
        told = notes(census, self.alignment.heads, steps, self.dropped, beside.config)
        return Plan(
            inputs=census.inputs,
            steps=tuple(steps),
            dropped=tuple(self.dropped),
            methods=methods,
            shards=self._laid_out(steps, beside),
            beside=beside,
            side_folders=census.side_folders,
            texts=texts,
            seed=recipe.seed,
            protect_energy=recipe.merge.protect_energy,
            warnings=(*recipe.notes, *self.alignment.notes, *self.warnings),
            notes=tuple(told),
            deltas=frozenset(self.inputs.deltas),
            adapters=self.inputs.adapters,
            own_bases=self.alignment.own_bases,
            bare=self.bare,
        )

    def _say_notes(self) -> None:
        """Assumptions made when the inputs were opened; one that several share (a base under adapters), once."""
        owners = dict.fromkeys(self.inputs.state_dicts[BASE].beside.notes, BASE)
        for label, state_dict in {**self.inputs.state_dicts, **self.inputs.own_bases}.items():
            for note in state_dict.beside.notes:
                owners.setdefault(note, label)
        self.warnings += [note if note.startswith(label) else f"{label}: {note}" for note, label in owners.items()]

    def _laid_out(self, steps: Sequence[TensorStep], beside: Beside) -> tuple[ShardLayout, ...]:
        if self.recipe.output.quantized:  # laid out as the base stores them: `packed_as_base`
            return ()
        return tuple(lay_out([step.info for step in steps], self.recipe.output.shard_size, beside.module_folders))

    def _beside(self, steps: Sequence[TensorStep]) -> Beside:
        """The files next to the result's tensors; reports settings that could not be joined."""
        census = self.census
        chosen = census.inputs.get(self.recipe.output.tokenizer)
        tokenizer = (
            chosen.beside.tokenizer_folder if chosen else census.inputs[census.naming.label].beside.own_tokenizer
        )
        tokenizer = self.rows.folder if self.rows is not None else tokenizer
        place = tokenizer if tokenizer is not None else census.inputs[census.naming.label].beside.tokenizer_folder
        self.warnings += without_tokenizer(self.recipe.output, census.inputs, place)
        prompts, warnings = joined_prompts(census.inputs, census.naming.label)
        self.warnings += warnings
        return Beside(
            self._config(steps), census.base.beside.folder, census.module_folders, tokenizer, prompts,
            output_dtype=self.recipe.output.dtype,
        )  # fmt: skip

    def _config(self, steps: Sequence[TensorStep]) -> Mapping[str, Any]:
        """config.json of the result, speaking of the heads that it stores."""
        census, config = self.census, self.census.config
        if self.alignment.heads.untied in {step.info.name for step in steps}:
            config = untied_config(config)
        for step in steps:
            if step.action == "copy" and step.component == HEAD and step.info.name not in census.base.tensors:
                config = with_task(config, census.inputs[step.source.label].config, step.info.name)
        return config

    def _covariances(self, methods: Mapping[str, MergeMethod]) -> None:
        for method in methods.values():
            if "covariances" in method.inputs:
                self.problems += missing(
                    self.census.inputs, self.census.specialists, f"the method {method.name}", self.recipe.merge.place
                )

    def _tokens_left_out(self) -> None:
        for label, tokens in (self.rows.left_out if self.rows else {}).items():
            some = ", ".join(map(repr, tokens[:3])) + (", …" if len(tokens) > 3 else "")
            self.warnings.append(f"tokens of {label} without a row in the output: {len(tokens)} ({some})")
        for label, tokens in (self.rows.beyond if self.rows else {}).items():
            what = f"{label}: the ids of {len(tokens)} tokens are beyond its token table: it has no rows for them"
            self.warnings.append(f"{what} ({few(map(repr, tokens), 3)})")
