"""From a checked recipe to the trainer that runs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..lookup import build
from . import yaml12
from .loading import evaluation_split, load_data
from .loss_section import build_callbacks, starting_values
from .sections import Recipe, Section
from .student_section import build_recipe_student, label_names, teacher_spec

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel

    from ..evaluation.results import EvaluationReport
    from ..fusion import Fusion, FusionChoice, FusionRule
    from ..teachers.cache.build import TeacherCache
    from ..teachers.cache.settings import CacheSettings
    from ..teachers.teacher import TeacherSpec
    from ..training.arguments import DistillationArguments
    from ..training.hidden import HiddenLoss
    from ..training.trainer import MultiTeacherDistillationTrainer


def build_trainer(
    recipe: Recipe,
    *,
    rows: Mapping[str, datasets.Dataset] | None = None,
    callbacks: list[Any] | None = None,
    resume: str | None = None,
) -> MultiTeacherDistillationTrainer:
    """Loads data, teachers and student, and returns the trainer, ready for `train()`.

    The recipe, with its overrides applied and its defaults spelled out, is written to `recipe.yaml` in the output
    folder, so that the run can be repeated.

    Args:
        recipe: a recipe of `load_recipe`.
        rows: what `load_data` returned, where that has been called already.
        callbacks: `transformers.TrainerCallback`s beyond what the recipe says.
        resume: a checkpoint that the run is to go on from: its fusion is not fitted again.

    Raises:
        ConfigurationError, DataError: data, teachers and student do not fit together.

    Example:
        >>> recipe = Recipe(
        ...     data={"dataset": "org/data"},
        ...     teachers={"models": [{"model": bert_folder, "name": "bert"}]},
        ...     student={"model": bert_folder},
        ...     training={"output_dir": str(getfixture("tmp_path")), "use_cpu": True},
        ... )
        >>> trainer = build_trainer(recipe, rows={"train": rows})
        Fusion: uniform linear_pool, because no evaluation rows were given.
        >>> trainer.student_labels
        ('negative', 'positive')
    """
    from ..evaluation.evaluating import compute_metrics_from
    from ..losses import LOSSES
    from ..tasks.task import TASKS
    from ..training.trainer import MultiTeacherDistillationTrainer

    args = build_arguments(recipe)
    rows = load_data(recipe) if rows is None else rows
    model, tokenizer = build_recipe_student(recipe, rows["train"], seed=args.seed)
    metrics = recipe.evaluation.metrics or TASKS[recipe.task].metrics
    trainer = MultiTeacherDistillationTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,
        compute_metrics=compute_metrics_from(metrics),
        callbacks=[*build_callbacks(recipe.losses), *(callbacks or [])],
        teachers=teacher_specs(recipe),
        fusion=_fitted_before(recipe, resume) or recipe_fusion(recipe, evaluation_split(recipe, rows)),
        distillation_loss=build(recipe.losses.distill, LOSSES, kind="distillation loss"),
        row_weight=recipe.losses.row_weight,
        hidden_losses=hidden_losses(recipe),
        task=recipe.task,
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        label_names=recipe.data.label_names,
        cache_dir=recipe.teachers.cache_dir,
        cache_settings=cache_settings(recipe),
        teacher_placement=recipe.teachers.placement,
    )
    if trainer.is_world_process_zero():
        write_recipe(recipe, Path(args.output_dir))
    return trainer


def build_arguments(recipe: Recipe) -> DistillationArguments:
    """Returns the training arguments: the section `training`, and what other sections say of training."""
    from ..training.arguments import DistillationArguments

    hub = {"hub_model_id": recipe.hub.repo, "hub_private_repo": recipe.hub.private} if recipe.hub.repo else {}
    hub |= {"hub_revision": recipe.hub.revision} if recipe.hub.revision else {}
    training = {
        "per_device_eval_batch_size": recipe.evaluation.batch_size or 32,
        **copy.deepcopy(recipe.training),
    }
    return DistillationArguments(
        **starting_values(recipe.losses),
        max_length=recipe.student.max_length,
        **{**hub, **training},
    )


def teacher_specs(recipe: Recipe) -> list[TeacherSpec]:
    """Returns the teachers, in the order of the recipe, none of them loaded yet."""
    return [teacher_spec(entry) for entry in recipe.teachers.models]


def hidden_losses(recipe: Recipe) -> list[HiddenLoss]:
    """Returns the hidden losses of the recipe."""
    from ..training.hidden import HiddenLoss

    return [HiddenLoss(**entry.model_dump()) for entry in recipe.losses.hidden]


def _fitted_before(recipe: Recipe, checkpoint: str | None) -> FusionChoice | None:
    """Returns the fusion that a checkpoint holds, where the recipe's would have to be fitted or chosen."""
    from ..fusion import build_fusion
    from ..teachers.held_out import FUSION_FILE, load_choice

    fitted = checkpoint is not None and hasattr(build_fusion(recipe.fusion), "choose")
    return load_choice(checkpoint) if fitted and Path(checkpoint, FUSION_FILE).is_file() else None


def build_cache(
    recipe: Recipe, train: datasets.Dataset, device: torch.device | None = None
) -> TeacherCache | None:
    """Opens the cache of `teachers.cache_dir`, or returns None where the teachers run live.

    Args:
        recipe: a recipe of `load_recipe`.
        train: the training rows, which may name the labels of a student whose hidden losses need more than logits.
        device: where the teachers run; None: the process's own.
    """
    from ..students.loading import student_config
    from ..tasks.task import TASKS
    from ..teachers.cache.build import TeacherCache

    if recipe.teachers.cache_dir is None:
        return None
    settings, losses = cache_settings(recipe), hidden_losses(recipe)
    if losses:
        from ..training.opening import cache_settings_for

        student, _ = build_recipe_student(recipe, train, seed=0)
        settings = cache_settings_for(
            losses, settings, teacher_specs(recipe), student_config(student), TASKS[recipe.task]
        )
    return TeacherCache(
        teacher_specs(recipe),
        recipe.teachers.cache_dir,
        settings,
        task=recipe.task,
        device=device,
    )


def cache_settings(recipe: Recipe) -> CacheSettings:
    """Returns how the recipe's cache computes and stores."""
    from ..teachers.cache.settings import CacheSettings

    return CacheSettings(dtype=recipe.teachers.cache_dtype, precision=recipe.teachers.cache_precision)


def build_baseline(recipe: Recipe, label_names: Sequence[str]) -> PreTrainedModel | None:
    """Loads `evaluation.baseline`, or returns None where there is none.

    Args:
        recipe: a recipe of `load_recipe`.
        label_names: the student's; a baseline with others, or in another order, is refused.
    """
    from ..students.loading import load_trained
    from ..tasks.task import TASKS

    given = recipe.evaluation.baseline
    return None if given is None else load_trained(given, label_names, TASKS[recipe.task], "The baseline")


def recipe_fusion(recipe: Recipe, report_split: str | None) -> Fusion | FusionRule | FusionChoice:
    """Returns the fusion of the recipe, or what is to be fitted on the validation rows.

    Args:
        recipe: a recipe of `load_recipe`.
        report_split: the split of the report; where that is the validation split, nothing is fitted on it.

    Raises:
        ConfigurationError: a fit is asked for, and the only rows for it are the report's.
    """
    from ..fusion import build_fusion

    made = build_fusion(recipe.fusion)
    if report_split == "validation" and hasattr(made, "choose"):
        return made.without_rows("the report is made on the validation rows, which a fit must not see")
    return made


def evaluate_recipe(recipe: Recipe) -> EvaluationReport:
    """Evaluates the student that a recipe trained, as `train` does at its end, and writes the report beside it.

    Args:
        recipe: a recipe of `load_recipe`; the student is read from its output folder.

    Raises:
        DataError: there is no student yet, or `evaluation.split` is none.
    """
    from accelerate import Accelerator

    from ..evaluation.evaluating import evaluate_ensemble
    from ..fusion import build_fusion
    from ..publishing.facts import confirm_report
    from ..students.loading import student_config
    from ..teachers.held_out import load_choice

    args = build_arguments(recipe)
    folder = Path(args.output_dir)
    if not (folder / "config.json").is_file():
        raise DataError(
            f"There is no trained student in {folder.absolute()}; train it first: hf-distill train RECIPE, "
            "or name its folder with training.output_dir=…"
        )
    rows = load_data(recipe)
    split = evaluation_split(recipe, rows)
    if split is None:
        raise DataError("evaluation.split leaves nothing to evaluate; name one of " + ", ".join(rows))
    config = student_config(str(folder))
    names = recipe.data.label_names or tuple(config.id2label[i] for i in range(config.num_labels))
    notes = []
    if split == "train":
        notes.append("The student was trained on these rows, so its figures say nothing about new ones.")
    elif split == "validation" and args.load_best_model_at_end:
        notes.append("These rows also selected the student's checkpoint, so its figures are optimistic.")
    accelerator = Accelerator(cpu=args.use_cpu)
    cache = build_cache(recipe, rows["train"], accelerator.device)
    if cache is not None:
        cache.add(rows[split], recipe.data.text_columns)
    teachers = [spec.load(recipe.task) for spec in teacher_specs(recipe)] if cache is None else cache.teachers
    fusion = build_fusion(recipe.fusion)
    if hasattr(fusion, "choose"):
        fusion = load_choice(folder, [teacher.name for teacher in teachers])
    report = evaluate_ensemble(
        teachers,
        rows[split],
        student=str(folder),
        baseline=build_baseline(recipe, names),
        fusion=fusion,
        task=recipe.task,
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        label_names=names,
        metrics=recipe.evaluation.metrics,
        batch_size=args.per_device_eval_batch_size,
        max_length=recipe.student.max_length,
        accelerator=accelerator,
        dataset_name=split,
        notes=notes,
    )
    if args.process_index == 0:
        report.save(evaluation_folder(folder))
        if evaluation_folder(folder) == folder:
            confirm_report(folder)
    return report


def evaluation_folder(run: Path) -> Path:
    """Returns where `evaluate` writes: beside the student, or in a folder of its own where a verdict is kept.

    Args:
        run: the run's folder.
    """
    return run / "evaluation" if (run / "report.html").exists() else run


def label_plan(recipe: Recipe, rows: Mapping[str, datasets.Dataset]) -> str:
    """Loads the teachers and returns the table of how their labels are matched by name.

    Args:
        recipe: a recipe of `load_recipe`.
        rows: what `load_data` returned.
    """
    from ..fusion import build_fusion
    from ..fusion.alignment import plan_table
    from ..teachers.pool import TeacherPool

    names = label_names(recipe, rows["train"])
    teachers = [spec.load(recipe.task) for spec in teacher_specs(recipe)]
    return plan_table(TeacherPool(teachers, names, build_fusion(recipe.fusion)).label_maps)


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """Writes `recipe.yaml` into a run's folder and returns its path."""
    from .. import __version__

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    header = f"# Written by hf_distill {__version__}: what this run used, overrides applied and defaults spelled out.\n"
    path.write_text(header + yaml12.write(written(recipe)), encoding="utf-8")
    return path


def written(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as mappings and lists, as a file holds it."""
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
