"""The verdict of a training in Python: of a trainer, or of a recipe as an object."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash
from transformers import EarlyStoppingCallback, PreTrainedModel

from ...errors import ConfigurationError, DataError, HfDistillError
from ...evaluation.cost import Cost, busy, conditions, measure_costs, place, time_model, timed_rows
from ...evaluation.evaluating import (
    compute_metrics_from,
    count_parameters,
    predict_rows,
    refuse_spoilt,
    report_notes,
)
from ...evaluation.metrics import load_metric
from ...fusion import LinearPool, summary
from ...fusion.alignment import labelled as with_label
from ...processes import say
from ...recipe.sections import Recipe
from ...recipe.setup import Setup
from ...rows.collator import MultiTeacherCollator
from ...rows.columns import Padding
from ...rows.preparing import distinct_rows
from ...teachers.cache.reading import CachedTeacher
from ...teachers.pool import TeacherPool
from ...teachers.teacher import Teacher
from ...training.callbacks import AdaptiveStrength, ScheduleCallback
from ...training.objective import direction_of, is_loss
from ...training.preparation import overlap_notes
from ...training.resuming import describe_run, in_one_order
from ...training.trainer import MultiTeacherDistillationTrainer
from ...verdict import Answers, SavedRows, VerdictReport, best_teacher, judge
from ...verdict.answers import finished_rows
from ...verdict.report import teacher_share
from ...verdict.systems import ENSEMBLE, STUDENT, TEACHER, TOGETHER
from ..train import train_recipe
from .about import about_trainer
from .digests import weights_digest
from .tracking import BestWeights
from .trainings import _eval_steps, _lengths, _merged

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
        test: Raw rows.
        fresh: Arguments of a trainer with a fresh student.
        single: Whether the best single teacher's student is judged too.
        metrics: What is reported.
        key: What decides the trainings.
        note: What a reader must know of where the students began.
    """

    trainer: MultiTeacherDistillationTrainer
    test: datasets.Dataset
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
        if model_init is not None:
            fresh = lambda: {"model_init": model_init}  # noqa: E731
        elif source is not None:
            fresh = lambda: {"model": source}  # noqa: E731
        elif trainer.state.global_step == 0:
            start = copy.deepcopy(trainer.student).cpu()
            fresh = lambda: {"model": copy.deepcopy(start)}  # noqa: E731
            note = "All students begin from the very same weights, so seeds differ in the order of rows and in dropout alone."
        else:
            raise ConfigurationError(
                "The student was given as a model and is trained by now, so nothing says where the others begin: pass "
                "model_init=, which makes a fresh one, or student=, its id or folder; or judge an untrained trainer."
            )
        described = {k: v for k, v in describe_run(trainer, trainer._asked_fusion).items() if k != "seed"}
        prepared = trainer.get_eval_dataloader(test).dataset.rows.with_format("numpy")
        labels = prepared["labels"][:]
        if not with_label(labels).any():
            raise DataError(
                f"None of the {len(labels)} test rows has a label in column {trainer.label_column!r}, so nothing can be "
                "judged."
            )
        digest = xxhash.xxh3_128(json.dumps(described, sort_keys=True, default=str).encode())
        digest.update(
            json.dumps(
                [trainer.args.max_steps, trainer.args.num_train_epochs, trainer.args.learning_rate]
            ).encode()
        )
        for column in ("example_id", "labels"):
            digest.update(in_one_order(prepared[column][:]).tobytes())
        given = trainer.task.metrics if metrics is None else metrics
        return cls(trainer, test, fresh, single, given, digest.hexdigest(), note)

    @property
    def folder(self) -> Path:
        return Path(self.trainer.args.output_dir)

    def report(self, seeds: Sequence[int]) -> VerdictReport:
        trainer = self.trainer
        if trainer.state.global_step == 0:
            trainer.train()
            trainer.save_model()
            trainer.save_state()
        own = _saved(trainer, self.test, "student", self.key, None)
        self._keep(own)
        fixed = self._teachers()
        self._keep(fixed)
        teacher = best_teacher(fixed.rows, trainer.task) if self.single else None
        baselines = (
            bool(with_label(np.asarray(trainer.train_dataset["labels"][:])).any())
            if isinstance(trainer.train_dataset, datasets.Dataset)
            else trainer.args.task_weight > 0
        )
        found = {("student", seeds[0]): own}
        parts = [
            (part, seed)
            for seed in seeds
            for part in ("student", *(["baseline"] if baselines else []), *(["single"] if teacher else []))
        ]
        for number, (part, seed) in enumerate(parts[1:], 1):
            saved = finished_rows(self.folder, part, seed, self.key)
            if saved is None:
                say(f"Verdict: training {number} of {len(parts) - 1}: {part}, seed {seed}")
                saved = self._trained(part, seed, own.facts, teacher)
                self._keep(saved)
            found[part, seed] = saved
        report = self._judged(seeds, found, fixed)
        if trainer.is_world_process_zero():
            report.save(self.folder)
        return report

    def _keep(self, saved: SavedRows) -> None:
        if self.trainer.is_world_process_zero():
            saved.save(self.folder)

    def _teachers(self) -> SavedRows:
        trainer = self.trainer
        found = predict_rows(
            trainer.get_eval_dataloader(self.test),
            pool=trainer.teacher_pool.to(trainer.args.device),
            fusion=trainer.fusion,
            students={},
            accelerator=trainer.accelerator,
            task=trainer.task,
        )
        refuse_spoilt(found, _SPLIT)
        return SavedRows(
            part="teachers",
            seed=None,
            split=_SPLIT,
            label_names=tuple(trainer.student_labels),
            rows=Answers(found.example_ids, found.labels, found.log_probs),
            facts={"sizes": count_parameters(trainer.teachers, {"student": trainer.student})},
            key=self.key,
        )

    def _trained(self, part: str, seed: int, facts: Mapping[str, Any], teacher: str | None) -> SavedRows:
        folder = self.folder / f"seed-{seed}" / part
        args = copy.copy(self.trainer.args)
        args.data_seed = seed + (args.data_seed - args.seed)
        args.seed, args.output_dir = seed, str(folder)
        args.report_to, args.push_to_hub, args.save_total_limit = [], False, 1
        trainer, best = (
            self._baseline(args, facts) if part == "baseline" else (self._student(args, teacher), None)
        )
        trainer.train()
        if best is not None and best.seen != trainer.state.global_step:
            trainer.evaluate()  # the last step is a step too
        saved = _saved(trainer, self.test, part, self.key, best)
        if teacher is not None and part == "single":
            saved.facts["teacher"] = teacher  # type: ignore[index]
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
        return saved

    def _student(self, args: Any, teacher: str | None) -> MultiTeacherDistillationTrainer:
        of = self.trainer
        names = [source.name for source in of.teachers]
        fusion = (
            of.fusion_choice
            if teacher is None
            else LinearPool(weights=tuple(float(name == teacher) for name in names))
        )
        return type(of)(
            **self.fresh(),
            **self._common(args),
            eval_dataset=of.eval_dataset,
            compute_loss_func=of.compute_loss_func,
            compute_metrics=of.compute_metrics,
            callbacks=_copied(of.callback_handler.callbacks),
            teachers=of.teachers,
            fusion=fusion,
            distillation_loss=of.distillation_loss,
            row_weight=of.row_weight,
            hidden_losses=() if of.hidden is None else of.hidden.losses,
        )

    def _baseline(
        self, args: Any, facts: Mapping[str, Any]
    ) -> tuple[MultiTeacherDistillationTrainer, BestWeights | None]:
        """The same student, as many steps, on the labelled rows, without teachers; its best step by the validation rows."""
        of = self.trainer
        args.max_steps, args.task_weight, args.distill_weight = int(facts["steps"]), 1.0, 0.0
        args.label_share = 0.0
        args.save_strategy, args.load_best_model_at_end = "no", False
        selects = isinstance(of.eval_dataset, datasets.Dataset)
        args.eval_strategy, args.eval_steps = ("steps" if selects else "no"), facts["eval_steps"]
        best = BestWeights(*self._choice()) if selects else None
        args.metric_for_best_model = None
        trainer = MultiTeacherDistillationTrainer(
            **self.fresh(),
            **self._common(args),
            eval_dataset=of.eval_dataset if selects else None,
            compute_metrics=compute_metrics_from(of.task.metrics, of.task),
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
            "data_collator": None if isinstance(padding, Padding) else padding,
            "optimizer_cls_and_kwargs": of.optimizer_cls_and_kwargs,
            "peft_config": of.peft_config,
            "task": of.task,
            "text_columns": of.text_columns,
            "label_column": of.label_column,
            "label_names": of.student_labels,
        }

    def _choice(self) -> tuple[str, bool]:
        args = self.trainer.args
        name = args.metric_for_best_model
        if name is not None and not is_loss(name):
            way = direction_of(name, args.greater_is_better)
            return name.removeprefix("eval_"), way == "maximize"
        if name is not None:
            return "loss", False
        return ("accuracy", True) if "accuracy" in self.trainer.task.metrics else ("loss", False)

    def _judged(
        self, seeds: Sequence[int], found: Mapping[tuple[str, int], SavedRows], fixed: SavedRows
    ) -> VerdictReport:
        trainer = self.trainer
        texts = distinct_rows(self.test, trainer.text_columns).by_id()
        chosen = trainer.args.load_best_model_at_end and trainer.state.best_metric is not None
        prepared = trainer.get_eval_dataloader(self.test).dataset.rows
        notes = overlap_notes(
            prepared, trained=trainer.train_dataset, selected=trainer.eval_dataset if chosen else None
        )
        baselines, singles = (
            [found[part, seed] for seed in seeds for part in (name,) if (part, seed) in found]
            for name in ("baseline", "single")
        )
        costs, failed = self._costs(timed_rows(texts.values()))
        alone = ["No teacher has every class, so there is no student of the best single teacher."]
        notes += [
            *([self.note] if self.note and len(seeds) > 1 else []),
            *(alone if self.single and not singles else []),
            *(["No training row has a label, so there is no fine-tuned baseline."] if not baselines else []),
            *failed,
        ]
        own, device = found["student", seeds[0]], trainer.args.device
        cached = all(isinstance(teacher, CachedTeacher) for teacher in trainer.teachers)
        seen = (
            trainer.state.global_step
            * trainer.args.train_batch_size
            * trainer.args.gradient_accumulation_steps
        )
        rows = len(trainer.train_dataset) if isinstance(trainer.train_dataset, datasets.Dataset) else seen
        report = judge(
            [found["student", seed] for seed in seeds],
            baselines,
            fixed,
            singles=singles,
            task=trainer.task,
            metrics=self.metrics,
            fusion=summary(trainer.fusion),
            texts=texts,
            left_out=trainer.fusion_choice.fitted_on.numpy(),
            costs=costs,
            conditions=conditions(device, _SPLIT, len(timed_rows(texts.values()))),
            place=place(device) if costs else "",
            teachers_share=teacher_share(
                costs, seen, rows if cached else None, float(own.facts.get("seconds") or 0)
            ),
            busy=busy(),
            sizes=dict(fixed.facts["sizes"]),
            notes=[
                *notes,
                *report_notes(
                    trainer.fusion_choice, fixed.rows.labels, trainer.student_labels, trainer.family
                ),
            ],
        )
        return replace(report, about=about_trainer(trainer))

    def _costs(self, rows: Sequence[Any]) -> tuple[dict[str, Cost], list[str]]:
        """Student and live teachers timed alone; those of a cache are loaded for it, one at a time."""
        trainer, failed = self.trainer, []
        device = trainer.args.device

        def timing(teacher: Any) -> Any:
            try:
                live = (
                    teacher
                    if isinstance(teacher, Teacher)
                    else Teacher.from_pretrained(
                        teacher.source, name=teacher.name, labels=list(teacher.label_names), task=trainer.task
                    )
                )
                return time_model(live.model, live.view, rows, device=device)
            except (HfDistillError, OSError, RuntimeError, AttributeError) as error:
                failed.append(
                    f"Teacher {teacher.name!r} could not be timed: {' '.join(str(error).split())[:300]}"
                )
                return None

        own = {STUDENT: lambda: time_model(trainer.student, trainer.student_view, rows, device=device)}
        each = {f"{TEACHER}{t.name}": (lambda t=t: timing(t)) for t in trainer.teachers}
        together = {ENSEMBLE: [*each], TOGETHER: [*own, *each] if each else []}
        return measure_costs({**own, **each}, together), failed


def _copied(callbacks: Sequence[Any]) -> list[Any]:
    """Those that are of the training itself, not of its log or of where it runs."""
    return [
        copy.deepcopy(callback)
        for callback in callbacks
        if isinstance(callback, (ScheduleCallback, AdaptiveStrength, EarlyStoppingCallback))
    ]


def _answers(trainer: MultiTeacherDistillationTrainer, test: datasets.Dataset, system: str) -> list[Answers]:
    """The student's answers on the test rows, and on the trainer's evaluation rows where they are one set."""
    made = []
    validation = [trainer.eval_dataset] if isinstance(trainer.eval_dataset, datasets.Dataset) else []
    for rows in (test, *validation):
        with trainer.student_alone():
            found = predict_rows(
                trainer.get_eval_dataloader(rows),
                pool=TeacherPool([], trainer.student_labels, task=trainer.task),
                fusion=LinearPool(),
                students={system: trainer.student},
                accelerator=trainer.accelerator,
                task=trainer.task,
            )
        refuse_spoilt(found, _SPLIT)
        made.append(Answers(found.example_ids, found.labels, found.log_probs))
    return made


def _saved(
    trainer: MultiTeacherDistillationTrainer,
    test: datasets.Dataset,
    part: str,
    key: str,
    best: BestWeights | None,
) -> SavedRows:
    state = trainer.state
    chosen = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    step = int(Path(chosen).name.rpartition("-")[2]) if chosen else None
    answers = _answers(trainer, test, "last" if part == "baseline" else "student")
    if best is not None and best.weights is not None:
        step = best.step
        if step != state.global_step:
            trainer.student.load_state_dict(best.weights)
        pairs = zip(answers, _answers(trainer, test, "best"), strict=True)
        answers = [_merged(*pair) for pair in pairs]
    return SavedRows(
        part=part,
        seed=trainer.args.seed,
        split=_SPLIT,
        label_names=tuple(trainer.student_labels),
        rows=answers[0],
        validation=answers[1] if len(answers) > 1 else None,
        lengths=_lengths(trainer, test, answers[0].example_ids),
        facts={
            "steps": state.global_step,
            "seconds": trainer.training_seconds,
            "best_step": step,
            "eval_steps": _eval_steps(trainer),
            "weights": weights_digest(trainer.student),
            "label_names": list(trainer.student_labels),
            "log": [{k: v for k, v in entry.items() if k != "total_flos"} for entry in state.log_history],
        },
        key=key,
    )
