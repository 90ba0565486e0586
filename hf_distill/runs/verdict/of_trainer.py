"""The verdict of a training in Python: of a trainer, or of a recipe as an object."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed
from transformers.trainer_utils import number_of_arguments

from ... import __version__
from ...errors import ConfigurationError, DataError
from ...evaluation.evaluating import compute_metrics_from
from ...evaluation.metrics import load_metric
from ...fusion import build_fusion
from ...fusion.alignment import labelled as with_label
from ...processes import once, say
from ...recipe.sections import Recipe
from ...recipe.setup import Setup
from ...rows.collator import MultiTeacherCollator
from ...rows.labels import count_labelled
from ...tasks import heard_alone
from ...teachers.cache.key import folder_identity
from ...teachers.cache.reading import CachedTeacher
from ...teachers.teacher import Teacher, TeacherSpec
from ...training.callbacks import AdaptiveStrength, ScheduleCallback
from ...training.resuming import describe_run
from ...training.trainer import MultiTeacherDistillationTrainer
from ...verdict import SavedRows, VerdictReport, best_teacher
from ...verdict.answers import finished_rows, load_rows, rows_file
from ..train import train_recipe
from .about import about_trainer
from .digests import weights_digest
from .judgement import _IRRELEVANT, add_rows, judged_report
from .tracking import BestWeights
from .trainings import AskedRows, answers_of_all, baseline_rows, best_by, spread_out, student_rows

_SPLIT = "test"


def judge_run(
    run: MultiTeacherDistillationTrainer | Recipe,
    test_dataset: datasets.Dataset | None = None,
    *,
    seeds: int = 3,
    model_init: Callable[[], PreTrainedModel] | None = None,
    student: str | None = None,
    single_teacher: bool = False,
    metrics: Sequence[Any] | None = None,
) -> VerdictReport:
    """Say whether distillation was worth it: student and the same student fine-tuned, with several seeds, on test rows.

    Of a trainer that was not trained yet the training comes first. Its student is the first seed's; the others, and the
    fine-tuned ones, begin where it began: from ``model_init``, from the id or folder that the trainer was given, or from
    the weights that an untrained trainer has. They have the trainer's arguments but the seed, the teachers' answers by its
    fusion, its losses, and of its callbacks schedules and early stopping. They run one after another in this process.

    Args:
        run: A trainer, or a recipe, which is trained as `hf-distill train` does it, into its output folder.
        test_dataset: Raw rows with labels that nothing was chosen by; None: the recipe's own.
        seeds: How many of student and fine-tuned student; with one, no claim about the method is made.
        model_init: Makes a fresh student; None: the trainer's.
        student: Id or folder of the fresh students, where the trainer was given a model.
        single_teacher: Whether a student of the best single teacher is trained and judged too.
        metrics: What is reported, as for `evaluate_ensemble`; None: the task's.

    Returns:
        The report, as `hf-distill train` ends with; also written into ``args.output_dir`` (report.html, report.md,
        report.json). What was finished is found again: the same call goes on where it was interrupted.

    Raises:
        ConfigurationError: Nothing says what a fresh student is.
        DataError: The test rows have no labels.

    Example:
        >>> trainer = MultiTeacherDistillationTrainer(
        ...     model=student, teachers=[teacher], args=args, train_dataset=rows, processing_class=bert_tokenizer
        ... )  # doctest: +ELLIPSIS
        Fusion: ...
        >>> report = judge_run(trainer, rows, seeds=1)  # doctest: +ELLIPSIS
        How ...
        >>> {"student", "ensemble"} <= set(report.evaluation.systems)
        True
    """
    if seeds < 1:
        raise ConfigurationError(f"seeds is {seeds!r}: a verdict has one student at least.")
    if isinstance(run, Recipe):
        if model_init is not None or student is not None:
            raise ConfigurationError(
                "A recipe says itself what its student is: leave model_init= and student= out."
            )
        return _of_recipe(run, test_dataset, seeds, single_teacher, metrics)
    if test_dataset is None:
        raise DataError("A trainer has no test rows: pass test_dataset=, rows that nothing was chosen by.")
    judged = _Judged.of(run, test_dataset, model_init, student, single_teacher, metrics)
    return judged.report([run.args.seed + i for i in range(seeds)])


def _of_recipe(
    recipe: Recipe,
    test: datasets.Dataset | None,
    seeds: int,
    single_teacher: bool,
    metrics: Sequence[Any] | None,
) -> VerdictReport:
    changed: dict[str, Any] = {"verdict": True, "seeds": seeds, "single_teacher": single_teacher}
    changed |= {} if metrics is None else {"metrics": tuple(metrics)}
    if test is not None:
        given = {**Setup(recipe).rows, _SPLIT: test}
        changed["split"] = _SPLIT
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=changed)})
    report = train_recipe(Setup(recipe) if test is None else Setup(recipe, given))
    if not isinstance(report, VerdictReport):
        raise DataError(
            "There is no verdict, since the recipe's data has no test or validation rows with labels: pass test_dataset=."
        )
    return report


@dataclass(frozen=True, eq=False)
class _Judged:
    """A trainer, and what its students are judged on.

    Attributes:
        trainer: Of the first seed.
        asked: The rows, and the trainer's evaluation rows where they are one set.
        fresh: Arguments of a trainer with a fresh student.
        single: Whether the best single teacher's student is judged too.
        metrics: What is reported.
        key: What decides the trainings.
        note: What a reader must know of where the students began.
    """

    trainer: MultiTeacherDistillationTrainer
    asked: AskedRows
    fresh: Callable[[], Mapping[str, Any]]
    single: bool
    metrics: Sequence[Any]
    key: str
    note: str

    @classmethod
    def of(
        cls,
        trainer: MultiTeacherDistillationTrainer,
        test: datasets.Dataset,
        model_init: Callable[[], PreTrainedModel] | None,
        student: str | None,
        single: bool,
        metrics: Sequence[Any] | None,
    ) -> _Judged:
        note = ""
        for metric in metrics or ():
            load_metric(metric)  # now: a name that nobody knows is not worth any training
        model_init = model_init or trainer.model_init
        source = student or trainer.student_source
        fresh: Callable[[], Mapping[str, Any]]
        if model_init is not None:
            fresh, start = lambda: {"model_init": model_init}, _weights(model_init, trainer.args.seed)
        elif source is not None:
            fresh, start = lambda: {"model": source}, folder_identity(TeacherSpec(source), None) or source
        elif trainer.state.global_step == 0:
            kept = copy.deepcopy(trainer.student).cpu()
            # It has its adapter, where there is to be one.
            fresh, start = lambda: {"model": copy.deepcopy(kept), "peft_config": None}, weights_digest(kept)
            note = "All students begin from the very same weights, so seeds differ in the order of rows and in dropout alone."
        else:
            raise ConfigurationError(
                "The student was given as a model and is trained by now, so nothing says where the others begin: pass "
                "model_init=, which makes a fresh one, or student=, its id or folder; or judge an untrained trainer."
            )
        validation = trainer.eval_dataset if isinstance(trainer.eval_dataset, datasets.Dataset) else None
        asked = AskedRows(_SPLIT, test, validation)
        labels = trainer.get_eval_dataloader(test).dataset.rows.with_format("numpy")["labels"][:]
        if not with_label(labels).any():
            raise DataError(
                f"None of the {len(labels)} test rows has a label in column {trainer.label_column!r}, so nothing can be "
                "judged."
            )
        given = trainer.task.metrics if metrics is None else metrics
        return cls(trainer, asked, fresh, single, given, _key(trainer, asked, start), note)

    @property
    def folder(self) -> Path:
        return Path(self.trainer.args.output_dir)

    def report(self, seeds: Sequence[int]) -> VerdictReport:
        trainer = self.trainer
        if trainer.state.global_step == 0:
            trainer.train()
            trainer.save_model()
            trainer.save_state()
        own = student_rows(trainer, self.asked, self.key)
        self._keep(own)
        teachers = answers_of_all(trainer, self.asked, self.key)
        self._keep(teachers)
        teacher = best_teacher(teachers.rows, trainer.task) if self.single else None
        baselines = (
            count_labelled(trainer.train_dataset) != 0
            if isinstance(trainer.train_dataset, datasets.Dataset)
            else trainer.args.task_weight > 0
        )
        others = [*(["baseline"] if baselines else []), *(["single"] if teacher else [])]
        parts = [(part, seed) for seed in seeds for part in ("student", *others)][1:]
        found = {("student", seeds[0]): own}
        there = once(
            lambda: [part for part in parts if finished_rows(self.folder, *part, self.key) is not None],
            trainer.accelerator,
        )
        for number, (part, seed) in enumerate(parts, 1):
            if (part, seed) in there:
                found[part, seed] = load_rows(rows_file(self.folder, part, seed))
                continue
            say(f"Verdict: training {number} of {len(parts)}: {part}, seed {seed}")
            found[part, seed] = self._trained(part, seed, own.facts, teacher)
            self._keep(found[part, seed])

        def judged() -> VerdictReport:
            report = judged_report(
                trainer,
                self.asked,
                seeds,
                found,
                teachers,
                metrics=self.metrics,
                single_teacher=self.single,
                load={
                    source.name: lambda source=source: _live(source, trainer) for source in trainer.teachers
                },
                notes=[self.note] if self.note and len(seeds) > 1 else [],
            )
            report = replace(report, about=about_trainer(trainer))
            report.save(self.folder)
            return report

        return once(judged, trainer.accelerator)

    def _keep(self, saved: SavedRows) -> None:
        if self.trainer.is_world_process_zero():
            saved.save(self.folder)

    def _trained(self, part: str, seed: int, facts: Mapping[str, Any], teacher: str | None) -> SavedRows:
        folder = self.folder / f"seed-{seed}" / part
        args = copy.copy(self.trainer.args)
        args.data_seed = seed + (args.data_seed - args.seed)
        args.seed, args.output_dir = seed, str(folder)
        args.report_to, args.push_to_hub, args.save_total_limit = [], False, 1
        if part == "baseline":
            trainer, best = self._baseline(args, facts)
            trainer.train()
            saved = baseline_rows(trainer, self.asked, self.key, best)
        else:
            trainer = self._student(args, teacher if part == "single" else None)
            trainer.train()
            saved = student_rows(trainer, self.asked, self.key)
            if part == "single":
                saved = replace(saved, part=part, facts={**saved.facts, "teacher": teacher})
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
        return saved

    def _student(self, args: Any, teacher: str | None) -> MultiTeacherDistillationTrainer:
        of = self.trainer
        fusion, hidden = of.fusion_choice, () if of.hidden is None else of.hidden.losses
        if teacher is not None:  # it alone is heard
            number = [source.name for source in of.teachers].index(teacher)
            alone = build_fusion(heard_alone(of.task, number, len(of.teachers), of.fusion))
            fusion = fusion._replace(fusion=alone, reason="")
            hidden = [
                replace(loss, teachers=(teacher,))
                for loss in hidden
                if loss.teachers is None or teacher in loss.teachers
            ]
        return type(of)(
            **{**self._common(args), **self.fresh()},
            eval_dataset=of.eval_dataset,
            compute_loss_func=of.compute_loss_func,
            compute_metrics=of.compute_metrics,
            preprocess_logits_for_metrics=of.preprocess_logits_for_metrics,
            callbacks=_copied(of.callback_handler.callbacks),
            teachers=of.teachers,
            fusion=fusion,
            distillation_loss=of.distillation_loss,
            row_weight=of.row_weight,
            hidden_losses=hidden,
            teacher_placement=of.teacher_pool.placement,
            teacher_precision=of.teacher_pool.precision,
        )

    def _baseline(
        self, args: Any, facts: Mapping[str, Any]
    ) -> tuple[MultiTeacherDistillationTrainer, BestWeights | None]:
        """The same student, as many steps, on the labelled rows, without teachers; its best step by the validation rows."""
        of = self.trainer
        args.max_steps, args.task_weight, args.distill_weight = int(facts["steps"]), 1.0, 0.0
        args.label_share = 0.0
        args.save_strategy, args.load_best_model_at_end = "no", False
        selects = self.asked.validation is not None and count_labelled(of.eval_dataset) != 0
        selects = selects and not spread_out(of)  # no process could keep the weights aside
        args.eval_strategy, args.eval_steps = ("steps" if selects else "no"), facts["eval_steps"]
        best = BestWeights(*best_by(of.args, of.task, of.task.metrics)) if selects else None
        own = of.args.metric_for_best_model is not None  # which may be the user's
        args.metric_for_best_model = None
        trainer = MultiTeacherDistillationTrainer(
            **{**self._common(args), **self.fresh()},
            eval_dataset=of.eval_dataset if selects else None,
            compute_metrics=of.compute_metrics if own else compute_metrics_from(of.task.metrics, of.task),
            preprocess_logits_for_metrics=of.preprocess_logits_for_metrics if own else None,
            callbacks=[] if best is None else [best],
            teachers=[],
        )
        rows = trainer.train_dataset
        if isinstance(rows, datasets.Dataset):
            kept = np.flatnonzero(with_label(np.asarray(rows["labels"][:])))
            trainer.train_dataset = rows if len(kept) == len(rows) else rows.select(kept)
        else:
            trainer.train_dataset = rows.filter(lambda row: bool(with_label(np.asarray([row["labels"]]))[0]))
        return trainer, best

    def _common(self, args: Any) -> dict[str, Any]:
        of = self.trainer
        padding = of.data_collator.student if isinstance(of.data_collator, MultiTeacherCollator) else None
        return {
            "args": args,
            "train_dataset": of.train_dataset,
            "processing_class": of.processing_class,
            "data_collator": None if hasattr(padding, "collate") else padding,
            "optimizer_cls_and_kwargs": of.optimizer_cls_and_kwargs,
            "peft_config": of.peft_config,
            "task": of.task,
            "text_columns": of.text_columns,
            "label_column": of.label_column,
            "label_names": of.student_labels,
            "augment": None if of.augment is None else of.augment.augmentation,
        }


def _copied(callbacks: Sequence[Any]) -> list[Any]:
    """Those that are of the training itself, not of its log or of where it runs."""
    return [
        copy.deepcopy(callback)
        for callback in callbacks
        if isinstance(callback, (ScheduleCallback, AdaptiveStrength, EarlyStoppingCallback))
    ]


def _live(source: Any, trainer: MultiTeacherDistillationTrainer) -> Teacher:
    """A teacher that can be timed: itself, or the one that the cache has asked."""
    if isinstance(source, Teacher):
        return source
    if not isinstance(source, CachedTeacher):
        raise ConfigurationError(f"it is a {type(source).__name__}, which shows no model.")
    names = list(source.label_names)
    return Teacher.from_pretrained(
        source.source, revision=source.revision, name=source.name, labels=names, task=trainer.task
    )


def _key(trainer: MultiTeacherDistillationTrainer, asked: AskedRows, start: str) -> str:
    """What decides the trainings: the run as a checkpoint describes it, its arguments, the start, and the rows."""
    run = {k: v for k, v in describe_run(trainer, trainer._asked_fusion).items() if k != "seed"}
    args = trainer.args
    about = {
        "version": __version__,
        "run": run,
        "training": {
            name: value
            for name, value in args.to_dict().items()
            if name not in _IRRELEVANT and name != "data_seed" and not name.startswith("hub_")
        },
        "kept": [str(args.save_strategy), args.save_steps] if args.load_best_model_at_end else None,
        "start": start,
    }
    digest = xxhash.xxh3_128(json.dumps(about, sort_keys=True, default=str).encode())
    add_rows(digest, trainer, asked)
    return once(digest.hexdigest, trainer.accelerator)


def _weights(model_init: Callable[..., PreTrainedModel], seed: int) -> str:
    """What the weights are known by that it makes with a seed; whoever draws numbers afterwards draws what he would have."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(seed)
        made = model_init(*[None][: number_of_arguments(model_init)])
    random.setstate(states[0])
    np.random.set_state(states[1])
    return weights_digest(made)
