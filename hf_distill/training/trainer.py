"""The trainer: one call per stage, student and teachers each on their own view of the batch."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from ..errors import ConfigurationError
from ..evaluation.evaluating import evaluate_loader, predict_rows
from ..evaluation.metrics import load_metric
from ..evaluation.results import EvaluationReport
from ..evaluation.terminal import fitted
from ..fusion import Fusion, FusionChoice, FusionRule, build_fusion
from ..fusion.alignment import labelled as with_label
from ..fusion.alignment import plan_table, scales_of
from ..fusion.shares import constant
from ..fusion.targets import Draws, Targets, make_targets
from ..lookup import build
from ..losses import ALL_LOSSES, build_distillation_loss
from ..losses.row_weights import ROW_WEIGHTS
from ..losses.several import call_loss
from ..publishing.facts import save_facts
from ..rows.collator import MultiTeacherCollator
from ..rows.columns import student_padding
from ..rows.images import seen_each_epoch
from ..rows.labels import count_labelled
from ..rows.preparing import sample_rows
from ..rows.views import VIEWS, View
from ..students.loading import adapted, load_trained, open_student
from ..tasks import build_task, family_of, refuse_other_family, refuse_unfit_loss
from ..tasks.task import Task
from ..teachers.cache.settings import CacheSettings
from ..teachers.fitting_parts import refuse_other_view
from ..teachers.held_out import choose_fusion, leave_out_fitted, save_choice
from ..teachers.pool import TeacherPool
from ..teachers.teacher import TeacherSource
from .accounting import EvaluationRows, LossTerm, TrainingSums, count_units, over_labelled_rows, total_loss
from .arguments import DistillationArguments, refuse_unclear
from .callbacks import AdaptiveStrength, ScheduleCallback
from .class_weighting import class_weights
from .commits import is_checkpoint
from .finite import FiniteUpdates
from .hidden import HiddenLoss, build_hidden_losses, hidden_terms, student_pass, with_projections
from .objective import direction_of, metrics_for, objective, refuse_unnamed_metric
from .opening import open_teachers_for
from .preparation import RowPreparation, one_class_note, one_dataset, overlap_notes, refuse_unlabelled
from .pushes import check_for_all
from .resuming import describe_run, find_checkpoint, resume, save_run, seconds_behind
from .run_facts import run_facts
from .student_trainer import StudentTrainer


class MultiTeacherDistillationTrainer(StudentTrainer):
    """A `transformers.Trainer` whose student learns from labels and from the fused knowledge of several teachers.

    Every argument and method of `Trainer` keeps its meaning; datasets hold raw text or images, since each teacher reads
    them through its own tokenizer or image processor. Labels are matched by name, and the plan is printed before training.

    Args:
        model: The student: Hub id, folder or `PreTrainedModel`; or ``model_init``.
        args: `DistillationArguments`.
        train_dataset, eval_dataset: `datasets.Dataset` or `IterableDataset` with raw columns; the latter also a dict
            of them. Labels may be missing (None, -100 or no column at all).
        processing_class: The student's tokenizer or image processor; None: the one stored with a student given by id or folder.
        data_collator: Pads the student's view; None: `DataCollatorWithPadding`.
        compute_loss_func: Replaces the cross-entropy: ``f(outputs, labels, num_items_in_batch=None)`` returns the mean
            over the labelled rows of a batch.
        teachers: `Teacher`s, other `TeacherSource`s, or ids and folders for `Teacher.from_pretrained`. May be empty
            where ``distill_weight`` is 0.
        fusion: A `Fusion`, or how a recipe writes one, see `build_fusion`. What is to be fitted is fitted here on the
            labelled rows of ``eval_dataset``; ``"auto"`` is `AutoFusion`.
        distillation_loss: ``f(student_logits, target_log_probs, *, temperature) -> (N,)``, or how a recipe writes it;
            None: the task's.
        row_weight: Weighs each row's distillation loss: a name of `ROW_WEIGHTS`, or
            ``f(student_logits, teacher_logits, *, mask) -> (N,)``.
        hidden_losses: What is learnt from below the teachers' logits: `HiddenLoss`es, names of `HIDDEN_LOSSES`, or
            mappings of the fields of `HiddenLoss`.
        peft_config: An adapter for the student, see `add_adapter`: it and the head are trained, and saved alone.
        task: A name of `TASKS`, or a `Task`.
        text_columns: The columns that models read, of text one, or two for pairs; None: the task's.
        label_column: The column of the labels.
        label_names: The student's label names in the order of its logits; None: see `Task.label_names`.
        cache_dir: Folder where the teachers' outputs are kept: each teacher runs once over each row of every dataset,
            and training reads the rest; None: the teachers run live.
        cache_settings: How outputs are computed and stored.
        teacher_placement, teacher_precision: Of live teachers, see `TeacherPool`.
        augment: What is done to training images at random, once per row and epoch, before student and teachers see them: an
            `Augmentation`, its fields, or ``f(image, generator) -> image``; needs live teachers.

    Raises:
        ConfigurationError, DataError: Whatever cannot work, before any training.

    Example:
        >>> trainer = MultiTeacherDistillationTrainer(
        ...     model=student, teachers=[teacher], args=args, train_dataset=rows, processing_class=bert_tokenizer
        ... )
        Fusion: uniform linear_pool, because no evaluation rows were given.
        >>> trainer.evaluate_ensemble(rows).systems["student"].parameters == student.num_parameters()
        True
    """

    # Losses are sums divided by the count of the whole update; the Trainer must not divide again by accumulation.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        args: DistillationArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        teachers: Sequence[str | TeacherSource],
        fusion: str | Mapping[str, Any] | Fusion | FusionRule | FusionChoice = "auto",
        distillation_loss: str | Mapping[str, Any] | Callable[..., Tensor] | None = None,
        row_weight: str | Callable[..., Tensor] | None = None,
        hidden_losses: Sequence[str | Mapping[str, Any] | HiddenLoss] = (),
        peft_config: Any = None,
        task: str | Task = "text-classification",
        text_columns: Sequence[str] | None = None,
        label_column: str = "label",
        label_names: Sequence[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_settings: CacheSettings = CacheSettings(),  # noqa: B008 - frozen
        teacher_placement: str = "resident",
        teacher_precision: str | None = None,
        augment: Callable[[Any, Any], Any] | Mapping[str, Any] | None = None,
    ) -> None:
        args = DistillationArguments() if args is None else args
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        refuse_unclear(model, model_init, args, teachers)
        if args.push_to_hub:  # before teachers are loaded and run
            self._repository = check_for_all(args)
        self.task, self.family = build_task(task), family_of(task)
        self.augment = seen_each_epoch(augment, args.seed, cached=cache_dir is not None)
        compute_metrics = metrics_for(args, self.task, compute_metrics, eval_dataset)
        loss = self.task.loss if distillation_loss is None else distillation_loss
        self.distillation_loss: Callable[..., Tensor] = build_distillation_loss(loss, ALL_LOSSES)
        self.row_weight = None if row_weight is None else build(row_weight, ROW_WEIGHTS, kind="row weight")
        columns = self.task.text_columns if text_columns is None else text_columns
        self.text_columns = (columns,) if isinstance(columns, str) else tuple(columns)
        self.label_column = label_column
        set_seed(args.seed)  # as Trainer does before model_init: a fresh head depends on the seed alone
        self.model_init, self.peft_config = model_init, peft_config
        self.student_source = model if isinstance(model, str) else None
        opened = open_student(
            # With model_init the Trainer makes its own student; this one only tells labels and length.
            super().call_model_init() if model is None else model,
            processing_class,
            sample_rows(train_dataset, eval_dataset),
            task=self.task,
            label_column=label_column,
            label_names=label_names,
            max_length=args.max_length,
            teachers=teachers,
            peft_config=peft_config,
        )
        processing_class, self.student_labels = opened.view.processor, opened.label_names
        self.teachers, self._cache, self.hidden = open_teachers_for(
            teachers,
            cache_dir,
            cache_settings,
            build_hidden_losses(hidden_losses),
            student=opened.model,
            view=opened.view,
            task=self.task,
            device=args.device,
        )
        refuse_unfit_loss(self.task, self.distillation_loss, len(self.student_labels))
        asked = build_fusion(fusion, self.family.auto)
        refuse_other_family(self.task, fusion=asked)
        self.teacher_pool = TeacherPool(
            self.teachers,
            self.student_labels,
            asked,
            placement=teacher_placement,
            precision=teacher_precision,
            task=self.task,
        )
        self._prepare = RowPreparation(
            args,
            self.text_columns,
            self.task.label_reader(label_column, self.student_labels),
            opened.view,
            self.teacher_pool,
            self._cache,
            () if self.hidden is None else self.hidden.word_views(self.teacher_pool.view_of),
            content=self.task.content,
        )
        train_dataset = self._prepare(train_dataset, "training set")
        eval_dataset = self._prepare.each(eval_dataset, "evaluation set")
        refuse_unlabelled(train_dataset, label_column, args.task_weight)
        self.class_weights = class_weights(
            args.class_weights, train_dataset, self.student_labels, self.family
        )
        collator = MultiTeacherCollator(student_padding(data_collator, opened.view), self.teacher_pool.views)
        if self.augment is not None:
            self._augmented = collator.augmented(self.augment)
        self._sums = TrainingSums()
        self._evaluated = EvaluationRows()
        self._parts: set[str] = set()
        self._drawn: set[str] = set()
        self.numbers = FiniteUpdates(
            self.teachers, self._prepare.row_of, getattr(processing_class, "decode", str)
        )
        self._run: dict[str, Any] | None = None
        self._began: float | None = None
        self._seconds_before = 0.0
        super().__init__(
            model=None if model is None else with_projections(self.hidden, opened.model, args.seed),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._asked_fusion = asked if self.teachers else build_fusion(self.task.fusion)
        self.fusion_choice = choose_fusion(
            self._asked_fusion,
            self.eval_dataset,
            pool=self.teacher_pool,
            loader=self.get_eval_dataloader,
            accelerator=self.accelerator,
        )
        self.teacher_pool.listen(self.fusion_choice)
        self._draws = Draws(args.seed, args.process_index)

    @property
    def student_view(self) -> View:
        """How the student reads rows."""
        return self._prepare.student_view

    @property
    def fusion(self) -> Fusion:
        """From the teachers' logits to the target: as given, or as fitted on held-out rows (``fusion_choice``)."""
        return self.fusion_choice.fusion

    @property
    def training_seconds(self) -> float | None:
        """How long the last training took, with those parts of it that were interrupted before; None where there was none."""
        took = [entry["train_runtime"] for entry in self.state.log_history if "train_runtime" in entry]
        return self._seconds_before + took[-1] if took else None

    @property
    def training_notes(self) -> list[str]:
        """What a report must say of how the student was trained."""
        if self.class_weights is None:
            return []
        each = ", ".join(
            f"{name} {weight:.3g}"
            for name, weight in zip(self.student_labels, self.class_weights, strict=True)
        )
        return [f"In the task loss the classes count {each}."]

    # ---- One batch: the picture of docs/design.md, one call per stage ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Student, teachers' targets, loss terms, one reduction; see `Trainer.compute_loss`.

        ``num_items_in_batch`` holds (2,) the labelled and all units of the whole update over all processes; None: this
        batch's. With ``return_outputs`` comes ``{"loss", "logits"}`` too.
        """
        if VIEWS not in inputs:  # of rows that no teacher is asked about
            return self._label_loss(model, inputs, return_outputs)
        outputs, states = student_pass(self.hidden, model, self.student, self._student_inputs(inputs), inputs)
        targets = self.teacher_targets(inputs) if self.args.distill_weight > 0 or self.hidden else None
        terms = self.loss_terms(outputs, targets, inputs)
        if self.hidden:
            terms |= hidden_terms(self.hidden, states, targets.teachers, inputs, self.fusion, model.training)
        loss = self._reduce(terms, inputs["labels"], num_items_in_batch, model.training)
        said = None if targets is None else targets.teachers
        loss = self.numbers.watch(loss, terms, outputs.logits, said, inputs, model.training)
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss

    def _label_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The cross-entropy with the labels, as the plain Trainer's loss is."""
        outputs, _ = student_pass(None, self.student, self.student, self._student_inputs(inputs), inputs)
        values = self.task.label_loss(outputs.logits.float(), inputs["labels"])
        terms = {"task": LossTerm(values, 1.0, labelled=True)}
        loss = self._reduce(terms, inputs["labels"], None, training=False)
        loss = self.numbers.watch(loss, terms, outputs.logits, None, inputs, False)
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss

    def teacher_targets(self, inputs: Mapping[str, Any]) -> Targets:
        """What the student is to imitate: every teacher on its own view, aligned by name, fused once at the temperature.

        Args:
            inputs: A batch of `MultiTeacherCollator`.
        """
        if not self.teachers:
            raise ConfigurationError(
                f"distill_weight has become {self.args.distill_weight}, but there are no teachers: name some."
            )
        pool, training = self.teacher_pool.to(self.args.device), self.model.training
        wanted = self.hidden.wanted_of_teachers if self.hidden else ()
        with self.accelerator.autocast():
            if training:
                batch = pool.heard(
                    inputs, self._draws(self.state.global_step) if pool.draws else None, wanted
                )
            else:
                batch = pool(inputs, wanted)
        return make_targets(
            batch,
            self.fusion,
            temperature=self.args.temperature,
            labels=inputs["labels"] if training else None,
            label_share=self.args.label_share,
            drawn=training and pool.draws,
            mix=self.family.mix_in_labels,
            disagreement_of=self.family.disagreement,
            of_fits=self.family.of_fits,
        )

    def loss_terms(
        self, outputs: Any, targets: Targets | None, inputs: Mapping[str, Any]
    ) -> dict[str, LossTerm]:
        """The summands of the loss, per unit: override to add one.

        Args:
            outputs: The student's output, with logits (N, C).
            targets: What `teacher_targets` returned; None where ``distill_weight`` is 0.
            inputs: The batch.

        Returns:
            Terms by name; each is logged, all but ``teacher_disagreement`` as ``loss_<name>``.
        """
        logits, labels = outputs.logits.float(), inputs["labels"]
        terms: dict[str, LossTerm] = {}
        weighted = (
            {}
            if self.class_weights is None
            else {"class_weights": constant(self.class_weights, logits.device)}
        )
        if self.args.task_weight > 0:
            if self.compute_loss_func is not None:
                values = self.compute_loss_func(outputs, labels, num_items_in_batch=None)
            else:
                smoothing = self.args.label_smoothing_factor
                values = self.task.label_loss(logits, labels, label_smoothing=smoothing, **weighted)
            terms["task"] = LossTerm(values, self.args.task_weight, labelled=True)
        if targets is not None:
            known = logits if targets.unknown is None else logits.masked_fill(targets.unknown, -torch.inf)
            read = self.family.of_fits(labels)
            values = call_loss(self.distillation_loss, known, targets.log_probs, targets.temperature, read)
            if self.row_weight is not None:
                values = values * self.row_weight(logits, targets.teachers.logits, mask=targets.teachers.mask)
            terms["distill"] = LossTerm(values, self.args.distill_weight)
            if targets.disagreement is not None:
                terms["teacher_disagreement"] = LossTerm(targets.disagreement, 0.0)
            if targets.ensemble is not None:
                terms["ensemble"] = LossTerm(
                    self.task.label_loss(targets.ensemble, labels, **weighted), 0.0, labelled=True
                )
        return terms

    # ---- Counting and logging ----

    def _reduce(
        self, terms: dict[str, LossTerm], labels: Tensor, counts: Tensor | None, training: bool
    ) -> Tensor:
        if not training:
            self._evaluated.add(terms, labels, self.accelerator.gather_for_metrics)
            return total_loss(terms, labels)[0]
        spans_processes = counts is not None and self.args.average_tokens_across_devices
        loss, parts = total_loss(
            terms, labels, counts, self.accelerator.num_processes if spans_processes else 1
        )
        self._sums.add(parts, self.state.global_step)
        return loss

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Tensor | None:
        """(2,) labelled and all units of an update, over its micro-batches and processes."""
        if not batch_samples:
            return None
        counts = count_units(batch_samples, device)
        return self.accelerator.reduce(counts, "sum") if self.args.average_tokens_across_devices else counts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, averaged over the updates since the last log and over all processes."""
        if "loss" in logs:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, (ScheduleCallback, AdaptiveStrength)):
                    logs |= callback.values
            mean = functools.partial(self.accelerator.reduce, reduction="mean")
            logs |= self._sums.drain(self.state.global_step, mean)
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As `Trainer.evaluation_loop`, with the loss and its parts exact over the rows, whatever the batches."""
        self._evaluated = EvaluationRows()
        self.numbers.begin_evaluation()
        compute_metrics = self.compute_metrics
        labelled = count_labelled(getattr(dataloader.dataset, "rows", dataloader.dataset)) != 0
        # None: as the plain Trainer does without labels.
        self.compute_metrics = over_labelled_rows(compute_metrics) if compute_metrics and labelled else None
        try:
            output = super().evaluation_loop(
                dataloader,
                description,
                prediction_loss_only,
                ignore_keys,
                metric_key_prefix=metric_key_prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        self.numbers.end_evaluation(f"the {description.lower()}", self.student)
        means = self._evaluated.means()
        output.metrics.pop(f"{metric_key_prefix}_loss", None)  # a mean of batches; and 0 where no row counts
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        self._parts.update(f"{metric_key_prefix}_{name}" for name in means if name != "loss")
        if not labelled and self.is_world_process_zero():
            print(f"{description}: no row has a label, so metrics and losses that need labels are left out.")
        return output

    # ---- Searching ----

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: Any = None,
        hp_name: Any = None,
        **options: Any,
    ) -> Any:
        """As `Trainer.hyperparameter_search`; by default the parts of the loss count for nothing, see `objective`.

        Args:
            hp_space, n_trials, backend, hp_name, options: As there; our own fields may be drawn too.
            compute_objective: Of an evaluation's metrics; None: the metric of ``metric_for_best_model``, else the sum of
                what ``compute_metrics`` says, else the evaluation loss, or where the trials draw temperature or weights
                the cross-entropy with the labels.
            direction: None: as ``metric_for_best_model`` counts, else "minimize".
        """
        named = self.args.metric_for_best_model if compute_objective is None else None
        said = direction or direction_of(named, self.args.greater_is_better)
        if (
            said is None
            and compute_objective is None
            and self.compute_metrics
            and self.is_world_process_zero()
        ):
            print(
                'The search takes the least of compute_metrics; where more is better, pass direction="maximize".'
            )

        def by_default(metrics: dict[str, float]) -> float:
            return objective(metrics, parts=self._parts, chosen_by=named, drawn=self._drawn)

        return super().hyperparameter_search(
            hp_space,
            by_default if compute_objective is None else compute_objective,
            n_trials,
            said or "minimize",
            backend,
            hp_name,
            **options,
        )

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        self._drawn = set(trial if isinstance(trial, dict) else getattr(trial, "params", ()))

    # ---- The student ----

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh student from ``model_init``, with the run's label names."""
        model = super().call_model_init(trial)
        model = adapted(model, self.student_labels, self.peft_config, self.task)
        refuse_other_view(model, self.student_view, what="The student", task=self.task)
        return with_projections(self.hidden, model, self.args.seed)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        *args: Any,
        allow_changes: Sequence[str] = (),
        unverified: bool = False,
        trust: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Print how outputs were matched or converted and what hidden losses compare, then train; see `Trainer.train`.

        Args:
            resume_from_checkpoint: A checkpoint of this run, or True for the newest one whose files are what was saved;
                what is passed over is named. A checkpoint of another run is refused with a table of what differs; the
                fusion is the checkpoint's and is not fitted again.
            allow_changes: What may differ all the same: names of the table's fields, such as ``("data",)``.
            unverified: Whether to go on from a checkpoint, given by its folder, that has no manifest or another file than
                was saved.
            trust: Paths ``pkg.mod:Name`` of your own that the checkpoint's files may name, beside the fusion given here.

        Raises:
            StoppedError: SIGTERM or SIGINT ended the training after a checkpoint.
            CorruptStateError: There is no checkpoint that can be relied on, or its files cannot be read.
            StorageError: A checkpoint could not be saved; those before it are whole.
        """
        self.args.check_distillation()
        self._prepare.refuse_other_length(self.args.max_length)
        refuse_unnamed_metric(self)
        self._refuse_choice_without_labels()
        self._sums = TrainingSums()
        checkpoint = find_checkpoint(
            resume_from_checkpoint,
            self.args.output_dir,
            unverified=unverified,
            best=self.args.load_best_model_at_end,
        )
        self._unverified = unverified
        # Whatever is saved when, since a signal asks for it too; a trial of a search has no student yet.
        self._run = None if self.model is None else describe_run(self, self._asked_fusion)
        self._seconds_before = 0.0
        if checkpoint is not None:
            self._seconds_before = seconds_behind(checkpoint)
            self.fusion_choice = resume(self._run, checkpoint, self.fusion_choice, allow_changes, trust)
            self.teacher_pool.listen(self.fusion_choice)
        if (
            note := one_class_note(self.train_dataset, self.student_labels, self.family)
        ) and self.is_world_process_zero():
            print(note)
        if self.teachers and self.is_world_process_zero():
            print(
                f"How the teachers' labels were matched ({'by name, or converted' if self.teacher_pool.conversions else 'by name'}):\n"
                f"{fitted(plan_table(self.teacher_pool.label_maps, scales_of(self.fusion)))}"
            )
            if self.hidden:
                table = self.hidden.table(getattr(self.fusion, "weights", None))
                print(f"What the hidden losses compare:\n{fitted(table)}")
        self._began = time.monotonic()
        output = super().train(None if checkpoint is None else str(checkpoint), *args, **options)
        self._keep_held_out_config()
        return output

    def _keep_held_out_config(self) -> None:
        """Put into the student's config what held-out rows say of it, such as thresholds, where its family has any."""
        fit, rows = self.family.held_out_config, self.eval_dataset
        if fit is None or not isinstance(rows, datasets.Dataset) or not count_labelled(rows):
            return
        found = predict_rows(
            self.get_eval_dataloader(),
            pool=TeacherPool([], self.student_labels, task=self.task),
            fusion=build_fusion(self.task.fusion),
            students={"student": self.student},
            accelerator=self.accelerator,
            task=self.task,
        )
        known = with_label(found.labels)
        for key, value in fit(found.log_probs["student"][known], found.labels[known]).items():
            setattr(self.student.config, key, value)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and self.teachers and dataclasses.is_dataclass(self.fusion):
            save_choice(self.fusion_choice, folder, [teacher.name for teacher in self.teachers])
        if self.args.should_save and is_checkpoint(folder):
            now = 0.0 if self._began is None else time.monotonic() - self._began
            run = self._run or describe_run(self, self._asked_fusion)
            save_run(run, folder, self._seconds_before + now)
        if self.args.should_save:
            save_facts(run_facts(self), folder)

    # ---- Was it worth it? ----

    def evaluate_ensemble(
        self,
        dataset: Any = None,
        *,
        baseline: str | PreTrainedModel | None = None,
        metrics: Sequence[Any] | None = None,
        dataset_name: str = "evaluation set",
    ) -> EvaluationReport:
        """Compare student, every teacher, the ensemble, student with teachers, and a baseline on the same rows.

        Args:
            dataset: Raw rows; None: the trainer's ``eval_dataset``.
            baseline: Another model (or id or folder) for the student's tokens, e.g. the student trained without teachers.
            metrics: Names, or `evaluate` modules; None: the task's.
            dataset_name: What the report calls the rows.

        Returns:
            The `EvaluationReport`, also written as report.json and report.md into ``args.output_dir``.

        Raises:
            DataError: There is no dataset, or several.
        """
        if metrics is not None:  # now: a name that nobody knows is not worth running teachers for
            metrics = [load_metric(metric) for metric in metrics]
        rows = one_dataset(self.eval_dataset if dataset is None else dataset)
        rows, fitted = leave_out_fitted(self._prepare(rows, dataset_name), self.fusion_choice)
        chosen = self.args.load_best_model_at_end and self.state.best_metric is not None
        selected = self.eval_dataset if chosen else None
        students = {"student": self.student}
        if baseline is not None:
            students["baseline"] = load_trained(baseline, self.student_labels, self.task, "The baseline")
            refuse_other_view(students["baseline"], self.student_view, what="The baseline", task=self.task)
        report = evaluate_loader(
            self.get_eval_dataloader(rows),
            pool=self.teacher_pool.to(self.args.device),
            fusion=self.fusion_choice,
            students=students,
            accelerator=self.accelerator,
            task=self.task,
            metrics=metrics,
            label_names=self.student_labels,
            dataset_name=dataset_name,
            notes=[
                *overlap_notes(rows, trained=self.train_dataset, selected=selected),
                *fitted,
                *self.training_notes,
            ],
        )
        self.keep_report(report)
        return report
