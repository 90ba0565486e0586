"""From a checked recipe to its objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel

from .. import __version__
from ..evaluation.evaluating import compute_metrics_from
from ..files import write_text
from ..fusion import Fusion, FusionChoice, FusionRule, build_fusion
from ..losses import ALL_LOSSES, build_distillation_loss
from ..rows.images import Augmentation
from ..students.loading import load_trained, student_config
from ..tasks import build_task, family_of
from ..tasks.task import Task
from ..teachers.cache.build import TeacherCache
from ..teachers.cache.settings import CacheSettings
from ..teachers.held_out import FUSION_FILE, load_choice
from ..teachers.teacher import TeacherSpec
from ..training.arguments import DistillationArguments
from ..training.hidden import HiddenLoss
from ..training.objective import computable
from ..training.opening import cache_settings_for
from ..training.trainer import MultiTeacherDistillationTrainer
from . import yaml12
from .data_section import evaluation_split, load_data
from .loss_section import build_callbacks, starting_values
from .own_code import own_code
from .sections import Recipe, Section
from .student_section import build_recipe_student, label_names, lora_config, teacher_spec
from .training_section import arguments_of, stopping


@dataclass(frozen=True, eq=False)
class Setup:
    """What a checked recipe means: its objects, each made when it is first asked for, and once.

    Every run takes one of these. Nothing is loaded before it is needed.

    Args:
        recipe: Of `load_recipe`.
        given: Raw rows by split, where they are in memory already; None: those that the recipe names.
        trust: Paths ``pkg.mod:Name`` that stored files may name, beside those that the recipe names itself.

    Example:
        >>> recipe = Recipe(
        ...     data={"dataset": "org/data"},
        ...     teachers={"models": [{"model": bert_folder, "name": "bert"}]},
        ...     student={"model": bert_folder},
        ...     training={"output_dir": str(getfixture("tmp_path")), "use_cpu": True},
        ... )
        >>> trainer = Setup(recipe, {"train": rows}).trainer()
        Fusion: uniform linear_pool, because no evaluation rows were given.
        >>> trainer.student_labels
        ('negative', 'positive')
    """

    recipe: Recipe
    given: Mapping[str, datasets.Dataset] | None = None
    trust: frozenset[str] = frozenset()

    def varied(self, **sections: Any) -> Setup:
        """The setup of a recipe with other sections, on the same rows."""
        return Setup(self.recipe.model_copy(update=sections), vars(self).get("rows", self.given), self.trust)

    @cached_property
    def trusted(self) -> frozenset[str]:
        """What stored files may name that is not built in: whoever runs a recipe trusts what it names."""
        return self.trust | {name for _, name in own_code(written(self.recipe))}

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.recipe.training["output_dir"]).expanduser()

    @cached_property
    def task(self) -> Task:
        """The recipe's."""
        return build_task(self.recipe.task)

    @cached_property
    def rows(self) -> Mapping[str, datasets.Dataset]:
        """Raw rows under "train", and under "validation" and "test" where the data has them."""
        return load_data(self.recipe) if self.given is None else self.given

    @cached_property
    def split(self) -> str | None:
        """Of the final report, or None where there is to be none."""
        return evaluation_split(self.recipe, self.rows)

    @cached_property
    def arguments(self) -> DistillationArguments:
        """The section `training`, and what other sections say of training."""
        recipe, hub = self.recipe, self.recipe.hub
        pushed = {"hub_model_id": hub.repo, "hub_private_repo": hub.private} if hub.repo else {}
        pushed |= {"hub_revision": hub.revision} if hub.revision else {}
        batch_size = {"per_device_eval_batch_size": recipe.evaluation.batch_size or 32}
        return DistillationArguments(
            **starting_values(recipe.losses),
            max_length=recipe.student.max_length,
            **{**pushed, **batch_size, **arguments_of(recipe.training)},
        )

    @cached_property
    def metrics(self) -> Sequence[str]:
        """Those of the recipe, or of its task."""
        return self.recipe.evaluation.metrics or self.task.metrics

    @cached_property
    def computed(self) -> Sequence[str]:
        """The metrics of every evaluation while training: also the one that chooses the checkpoint."""
        chosen = str(self.recipe.training.get("metric_for_best_model", "")).removeprefix("eval_")
        return (*self.metrics, *({chosen}.intersection(computable(self.task)) - set(self.metrics)))

    @cached_property
    def teachers(self) -> list[TeacherSpec]:
        """In the order of the recipe, none of them loaded yet."""
        return [teacher_spec(entry, i) for i, entry in enumerate(self.recipe.teachers.models)]

    @cached_property
    def fusion(self) -> Fusion | FusionRule:
        """As the recipe says it; a rule is to be fitted on held-out rows."""
        return build_fusion(self.recipe.fusion, family_of(self.task).auto)

    @property
    def fits(self) -> bool:
        """Whether the fusion is yet to be fitted or chosen."""
        return hasattr(self.fusion, "choose")

    @cached_property
    def target_fusion(self) -> Fusion | FusionRule | FusionChoice:
        """The fusion that makes the target, or what is to be fitted on the validation rows for it.

        Raises:
            ConfigurationError: A fit is asked for, and the only rows for it are the report's.
        """
        return (
            self.fusion.without_rows("the report is made on the validation rows, which a fit must not see")
            if self.split == "validation" and self.fits
            else self.fusion
        )

    @cached_property
    def hidden_losses(self) -> list[HiddenLoss]:
        """Those of the section `losses`."""
        return [HiddenLoss(**entry.model_dump()) for entry in self.recipe.losses.hidden]

    @property
    def augment(self) -> Augmentation | None:
        """What is done to training images at random; None: nothing."""
        given = self.recipe.data.augment
        return None if given is None else Augmentation(**given.model_dump())

    @property
    def peft_config(self) -> Any:
        """The adapter that the student is trained through; None where all of it is."""
        return lora_config(self.recipe.student)

    @cached_property
    def cache_settings(self) -> CacheSettings:
        """How the teachers' cache computes and stores."""
        given = self.recipe.teachers
        return CacheSettings(dtype=given.cache_dtype, precision=given.cache_precision)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The student's, found as the trainer finds them."""
        return label_names(self.recipe, self.rows["train"])

    def student(self, seed: int) -> tuple[str | PreTrainedModel, Any]:
        """Make the student, or the id that the trainer loads it from, and its tokenizer.

        Args:
            seed: Of the weights that no checkpoint holds.

        Raises:
            ConfigurationError, DataError: There is no such student.
        """
        return build_recipe_student(self.recipe, self.rows["train"], seed=seed)

    def cache(self, device: torch.device | None = None) -> TeacherCache | None:
        """Open the cache of `teachers.cache_dir`; None where the teachers run live.

        Args:
            device: Where the teachers run; None: the process's own.
        """
        folder, settings = self.recipe.teachers.cache_dir, self.cache_settings
        if folder is None:
            return None
        if self.hidden_losses:
            settings = cache_settings_for(
                self.hidden_losses,
                settings,
                self.teachers,
                student_config(self.student(seed=0)[0]),
                self.task,
            )
        return TeacherCache(self.teachers, folder, settings, task=self.recipe.task, device=device)

    def stored_teachers(self, split: str, device: torch.device) -> list[Any] | None:
        """The teachers of the cache, which then holds their outputs on a split; None where they run live.

        Args:
            split: The rows that they are asked about.
            device: Where they run for what is not stored yet.
        """
        if (cache := self.cache(device)) is None:
            return None
        cache.add(self.rows[split], self.recipe.data.text_columns)
        return cache.teachers

    def baseline(self, label_names: Sequence[str]) -> PreTrainedModel | None:
        """Load `evaluation.baseline`; None where there is none.

        Args:
            label_names: The student's; a baseline with others, or in another order, is refused.
        """
        given = self.recipe.evaluation.baseline
        return None if given is None else load_trained(given, label_names, self.task, "The baseline")

    def trainer(
        self, *, callbacks: Sequence[Any] = (), resume: str | None = None
    ) -> MultiTeacherDistillationTrainer:
        """Load data, teachers and student, and make the trainer, ready for `train()`.

        The recipe, with its overrides applied and its defaults spelled out, is written to `recipe.yaml` in the output
        folder, so that the run can be repeated.

        Args:
            callbacks: `transformers.TrainerCallback`s beyond what the recipe says.
            resume: A checkpoint that the run is to go on from: its fusion is not fitted again.

        Raises:
            ConfigurationError, DataError: Data, teachers and student do not fit together.
        """
        recipe, args, rows = self.recipe, self.arguments, self.rows
        model, tokenizer = self.student(args.seed)
        trainer = MultiTeacherDistillationTrainer(
            model=model,
            args=args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("validation"),
            processing_class=tokenizer,
            compute_metrics=compute_metrics_from(self.computed, self.task),
            callbacks=[*build_callbacks(recipe.losses), *stopping(recipe.training), *callbacks],
            teachers=self.teachers,
            fusion=self._fitted_before(resume) or self.target_fusion,
            distillation_loss=build_distillation_loss(recipe.losses.distill, ALL_LOSSES),
            row_weight=recipe.losses.row_weight,
            hidden_losses=self.hidden_losses,
            peft_config=self.peft_config,
            task=recipe.task,
            text_columns=recipe.data.text_columns,
            label_column=recipe.data.label_column,
            label_names=recipe.data.label_names,
            cache_dir=recipe.teachers.cache_dir,
            cache_settings=self.cache_settings,
            teacher_placement=recipe.teachers.placement,
            teacher_precision=recipe.teachers.precision,
            augment=self.augment,
        )
        if trainer.is_world_process_zero():
            write_recipe(recipe, self.folder)
        return trainer

    def _fitted_before(self, checkpoint: str | None) -> FusionChoice | None:
        """The fusion that a checkpoint holds, where the recipe's would have to be fitted or chosen."""
        kept = checkpoint is not None and self.fits and Path(checkpoint, FUSION_FILE).is_file()
        return load_choice(checkpoint, trust=self.trusted) if kept else None


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """Write `recipe.yaml` into a run's folder.

    Returns:
        Its path.
    """
    path = folder / "recipe.yaml"
    header = f"# Written by hf_distill {__version__}: what this run used, overrides applied and defaults spelled out.\n"
    write_text(path, header + yaml12.write(written(recipe)))
    return path


def written(recipe: Recipe) -> dict[str, Any]:
    """A recipe as mappings and lists, as a file holds it."""
    return _plain(recipe)


def _plain(value: Any) -> Any:
    """Mappings and lists, without the keys whose null is the default anyway."""
    if isinstance(value, Section):
        return {
            key: _plain(getattr(value, key))
            for key, field in type(value).model_fields.items()
            # Which splits exist was found out while loading; splits say nothing about files.
            if not (getattr(value, key) is None and field.default is None)
            and not (key == "splits" and getattr(value, "files", None))
        }
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
