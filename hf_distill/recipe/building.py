"""From a checked recipe to the trainer that runs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, DataError
from ..lookup import build
from . import yaml12
from .loading import evaluation_split, load_data
from .sections import Recipe, Section

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..cache import CacheSettings, TeacherCache
    from ..evaluation import EvaluationReport
    from ..fusion import Fusion
    from ..teachers import TeacherSpec
    from ..trainer import MultiTeacherDistillationTrainer
    from ..training_args import DistillationArguments


def build_trainer(
    recipe: Recipe,
    *,
    rows: Mapping[str, datasets.Dataset] | None = None,
    callbacks: list[Any] | None = None,
) -> MultiTeacherDistillationTrainer:
    """Loads data, teachers and student, and returns the trainer, ready for `train()`.

    The recipe, with its overrides applied and its defaults spelled out, is written to `recipe.yaml` in the output
    folder, so that the run can be repeated.

    Args:
        recipe: a recipe of `load_recipe`.
        rows: what `load_data` returned, where that has been called already.
        callbacks: `transformers.TrainerCallback`s beyond what the recipe says.

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
        >>> trainer.student_labels
        ('negative', 'positive')
    """
    from ..evaluation import compute_metrics_from
    from ..losses import LOSSES
    from ..tasks import TASKS
    from ..trainer import MultiTeacherDistillationTrainer

    args = build_arguments(recipe)
    rows = load_data(recipe) if rows is None else rows
    model, tokenizer = _build_student(recipe, rows["train"], seed=args.seed)
    metrics = recipe.evaluation.metrics or TASKS[recipe.task].metrics
    trainer = MultiTeacherDistillationTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,
        compute_metrics=compute_metrics_from(metrics),
        callbacks=callbacks,
        teachers=teacher_specs(recipe),
        fusion=build_fusion(recipe),
        distillation_loss=build(recipe.losses.distill, LOSSES, kind="distillation loss"),
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
    from ..training_args import DistillationArguments

    hub = {"hub_model_id": recipe.hub.repo, "hub_private_repo": recipe.hub.private} if recipe.hub.repo else {}
    training = {
        "per_device_eval_batch_size": recipe.evaluation.batch_size or 32,
        **copy.deepcopy(recipe.training),
    }
    return DistillationArguments(
        temperature=recipe.losses.temperature,
        task_weight=recipe.losses.task_weight,
        distill_weight=recipe.losses.distill_weight,
        max_length=recipe.student.max_length,
        **{**hub, **training},
    )


def teacher_specs(recipe: Recipe) -> list[TeacherSpec]:
    """Returns the teachers, in the order of the recipe, none of them loaded yet."""
    from ..teachers import TeacherSpec

    return [
        TeacherSpec(entry.model, **entry.model_dump(exclude={"model"})) for entry in recipe.teachers.models
    ]


def build_cache(recipe: Recipe, device: torch.device | None = None) -> TeacherCache | None:
    """Opens the cache of `teachers.cache_dir`, or returns None where the teachers run live.

    Args:
        recipe: a recipe of `load_recipe`.
        device: where the teachers run; None: the process's own.
    """
    from ..cache import TeacherCache

    if recipe.teachers.cache_dir is None:
        return None
    return TeacherCache(
        teacher_specs(recipe),
        recipe.teachers.cache_dir,
        cache_settings(recipe),
        task=recipe.task,
        device=device,
    )


def cache_settings(recipe: Recipe) -> CacheSettings:
    """Returns how the recipe's cache computes and stores."""
    from ..cache import CacheSettings

    return CacheSettings(dtype=recipe.teachers.cache_dtype, precision=recipe.teachers.cache_precision)


def build_baseline(recipe: Recipe, label_names: Sequence[str]) -> PreTrainedModel | None:
    """Loads `evaluation.baseline`, or returns None where there is none.

    Args:
        recipe: a recipe of `load_recipe`.
        label_names: the student's; a baseline with others, or in another order, is refused.
    """
    from ..student import load_trained
    from ..tasks import TASKS

    given = recipe.evaluation.baseline
    return None if given is None else load_trained(given, label_names, TASKS[recipe.task], "The baseline")


def build_fusion(recipe: Recipe) -> Fusion:
    """Returns the fusion of the recipe."""
    from ..fusion import FUSIONS

    return build(recipe.fusion, FUSIONS, kind="fusion")


def evaluate_recipe(recipe: Recipe) -> EvaluationReport:
    """Evaluates the student that a recipe trained, as `train` does at its end, and writes the report beside it.

    Args:
        recipe: a recipe of `load_recipe`; the student is read from its output folder.

    Raises:
        DataError: there is no student yet, or `evaluation.split` is none.
    """
    from accelerate import Accelerator

    from ..evaluation import evaluate_ensemble
    from ..student import student_config

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
    cache = build_cache(recipe, accelerator.device)
    if cache is not None:
        cache.add(rows[split], recipe.data.text_columns)
    report = evaluate_ensemble(
        teacher_specs(recipe) if cache is None else cache.teachers,
        rows[split],
        student=str(folder),
        baseline=build_baseline(recipe, names),
        fusion=build_fusion(recipe),
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
        report.save(folder)
    return report


def label_plan(recipe: Recipe, rows: Mapping[str, datasets.Dataset]) -> str:
    """Loads the teachers and returns the table of how their labels are matched by name.

    Args:
        recipe: a recipe of `load_recipe`.
        rows: what `load_data` returned.
    """
    from ..alignment import plan_table
    from ..pool import TeacherPool

    names = _label_names(recipe, rows["train"])
    teachers = [spec.load(recipe.task) for spec in teacher_specs(recipe)]
    return plan_table(TeacherPool(teachers, names, build_fusion(recipe)).label_maps)


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """Writes `recipe.yaml` into a run's folder and returns its path."""
    from .. import __version__

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    header = f"# Written by hf_distill {__version__}: what this run used, overrides applied and defaults spelled out.\n"
    path.write_text(header + yaml12.write(_plain(recipe)), encoding="utf-8")
    return path


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


def _build_student(
    recipe: Recipe, train: datasets.Dataset, *, seed: int
) -> tuple[str | PreTrainedModel, PreTrainedTokenizerBase]:
    from ..teachers import load_tokenizer

    student = recipe.student
    options = {"revision": student.revision, "trust_remote_code": student.trust_remote_code}
    if student.tokenizer is not None:
        # The revision is one of the model's repository; a tokenizer named on its own has its own history.
        options["revision"] = None
    source = student.tokenizer or student.model
    assert source is not None
    tokenizer = load_tokenizer(source, what="The student", **options)
    if student.config is not None:
        return _from_scratch(recipe, train, tokenizer, seed), tokenizer
    if student.revision is None and not student.trust_remote_code:
        return student.model, tokenizer
    return _at_revision(recipe, train, seed), tokenizer


def _at_revision(recipe: Recipe, train: datasets.Dataset, seed: int) -> PreTrainedModel:
    """The student's checkpoint where more than an id says which; the trainer loads the others itself."""
    import transformers

    from ..tasks import TASKS
    from ..teachers import load_with_head

    student = recipe.student
    assert student.model is not None
    names = _label_names(recipe, train)
    transformers.set_seed(seed)
    return load_with_head(
        student.model,
        TASKS[recipe.task],
        what="The student",
        require_head=False,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
        **_labels(names),
    )


def _label_names(recipe: Recipe, train: datasets.Dataset) -> tuple[str, ...]:
    """The student's label names, found as the trainer finds them."""
    import transformers

    from ..data import resolve_label_names

    student, config = recipe.student, None
    if student.model is not None:
        options = {"revision": student.revision, "trust_remote_code": student.trust_remote_code}
        try:
            config = transformers.AutoConfig.from_pretrained(student.model, **options)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:400]
            raise DataError(f"student.model: {student.model} cannot be loaded: {reason}") from error
    return resolve_label_names(recipe.data.label_names, train, recipe.data.label_column, config)


def _labels(names: Sequence[str]) -> dict[str, Any]:
    """What a configuration says of its labels."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _from_scratch(
    recipe: Recipe, train: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    import transformers

    from ..tasks import TASKS

    names = _label_names(recipe, train)
    given = dict(recipe.student.config or {})
    size = given.get("vocab_size", len(tokenizer))
    if size < len(tokenizer):
        raise ConfigurationError(
            f"student.config.vocab_size is {size}, but the tokenizer has {len(tokenizer)} tokens; leave it out"
        )
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"student.tokenizer: {tokenizer.name_or_path} has no padding token, so rows cannot be batched"
        )
    config = transformers.AutoConfig.for_model(
        **{"vocab_size": size, "pad_token_id": tokenizer.pad_token_id, **given},
        **_labels(names),
    )
    # The Trainer seeds when it is made; the weights are drawn before that.
    transformers.set_seed(seed)
    auto_class = getattr(transformers, TASKS[recipe.task].auto_class)
    try:
        return auto_class.from_config(config)
    except (ValueError, KeyError) as error:  # sizes that do not divide, a type without such a head
        raise ConfigurationError(f"student.config: {' '.join(str(error).split())[:500]}") from error
