"""Student, teachers, ensemble and baseline on the same rows, through the same fusion as in training.

Shapes: K teachers, S systems, B rows of a batch, N rows of the dataset, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import ConfigurationError, DataError
from ..fusion import Fusion, FusionChoice, build_fusion, summary
from ..fusion.alignment import TeacherBatch, not_finite
from ..fusion.alignment import labelled as with_label
from ..fusion.targets import of_ensemble
from ..processes import once
from ..rows.batches import ahead
from ..rows.collator import MultiTeacherCollator
from ..rows.columns import indexed
from ..rows.preparing import prepare_dataset
from ..rows.views import named_inputs
from ..students.loading import found_processor, load_trained, student_config
from ..tasks import build_task, family_of, refuse_other_family
from ..tasks.family import Family
from ..tasks.task import Task
from ..teachers.fitting_parts import open_view, refuse_other_view
from ..teachers.held_out import finished_fusion, leave_out_fitted
from ..teachers.pool import TeacherPool
from ..teachers.teacher import TeacherSource, load_teacher
from .metrics import METRICS, compute_metric, load_metric, references_of
from .results import EvaluationReport, SystemResult


def evaluate_ensemble(
    teachers: Sequence[str | TeacherSource],
    dataset: Any,
    *,
    student: str | PreTrainedModel | None = None,
    baseline: str | PreTrainedModel | None = None,
    processing_class: Any = None,
    fusion: str | Mapping[str, Any] | Fusion | FusionChoice | None = None,
    task: str | Task = "text-classification",
    text_columns: Sequence[str] | None = None,
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    metrics: Sequence[Any] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    accelerator: Accelerator | None = None,
    dataset_name: str = "evaluation set",
    notes: Sequence[str] = (),
) -> EvaluationReport:
    """Compare every teacher, their ensemble, and, where given, a student and a baseline on the same rows.

    The ensemble is fused at temperature 1, and no label reaches the fusion.

    Args:
        teachers: As for the trainer.
        dataset: Raw rows.
        student: A model, id or folder; None: teachers and ensemble alone.
        baseline: Another model for the student's inputs, e.g. the same student trained without teachers.
        processing_class: The student's tokenizer or image processor; None: the one stored with the student.
        fusion: As for the trainer, but fitted: nothing is fitted here; None: the task's.
        task, text_columns, label_column, label_names: As for the trainer; without labels or a student the first teacher's
            names are taken.
        metrics: Names of `METRICS`, other names for `evaluate.load`, or modules; None: the task's.
        batch_size: Rows per forward and process.
        max_length: Longest student input in tokens.
        accelerator: Where and in which precision to run; None: a new one.
        dataset_name: What the report calls the rows.
        notes: Sentences to add to the report.

    Raises:
        DataError: Labels or columns that do not fit.
        ConfigurationError: A metric or fusion nobody knows.

    Example:
        >>> report = evaluate_ensemble([teacher], rows, metrics=["accuracy"])
        >>> sorted(report.systems)
        ['ensemble', 'teacher:bert']
    """
    task = build_task(task)
    # Now: a name that nobody knows is not worth loading teachers for.
    metrics = [load_metric(metric) for metric in (task.metrics if metrics is None else metrics)]
    fusion = finished_fusion(task.fusion if fusion is None else fusion, "evaluate_ensemble")
    teachers = [load_teacher(teacher, task) for teacher in teachers]
    text_columns = task.text_columns if text_columns is None else text_columns
    if student is not None or baseline is not None:
        processing_class = found_processor(student, processing_class, task, what="The student")
    given = {"student": student, "baseline": baseline}
    first = next((model for model in given.values() if model is not None), None)
    config = None if first is None else student_config(first)
    if label_names is None and config is None and teachers:
        if label_column in (dataset.features or {}):
            # Numbers without names would be matched by position, to whichever teacher comes first.
            label_names = task.label_names(None, dataset, label_column, None)
        else:
            label_names = teachers[0].label_names
    names = task.label_names(label_names, dataset, label_column, config)
    students = {
        name: load_trained(model, names, task, f"The {name}")
        for name, model in given.items()
        if model is not None
    }
    refuse_other_family(task, fusion=fusion.fusion)
    pool = TeacherPool(teachers, names, fusion, task=task)
    student_view = None
    if students:
        (name, model), *others = students.items()
        student_view = open_view(model, processing_class, max_length, what=f"The {name}", task=task)
        for name, model in others:
            refuse_other_view(model, student_view, what=f"The {name}", task=task)
    rows = prepare_dataset(
        dataset,
        text_columns=text_columns,
        labels=task.label_reader(label_column, names),
        student_view=student_view,
        teacher_views=pool.views,
        content=task.content,
        what=dataset_name,
    )
    rows, fitted = leave_out_fitted(rows, fusion)
    accelerator = accelerator or Accelerator()
    collator = MultiTeacherCollator(student_view, pool.views)
    return evaluate_loader(
        ahead(
            accelerator.prepare_data_loader(
                DataLoader(indexed(rows), batch_size=batch_size, collate_fn=collator)
            )
        ),
        pool=pool.to(accelerator.device),
        fusion=fusion,
        students=students,
        accelerator=accelerator,
        task=task,
        metrics=metrics,
        label_names=names,
        dataset_name=dataset_name,
        notes=[*notes, *fitted],
    )


def evaluate_loader(
    loader: Any,
    *,
    pool: TeacherPool,
    fusion: FusionChoice,
    students: Mapping[str, nn.Module],
    accelerator: Accelerator,
    task: Task,
    metrics: Sequence[Any] | None,
    label_names: Sequence[str],
    dataset_name: str,
    notes: Sequence[str] = (),
) -> EvaluationReport:
    """`evaluate_ensemble` for rows that are prepared and loaded already; the trainer's way in.

    Args:
        loader: Batches of `MultiTeacherCollator`, sharded by the accelerator.
        pool: The teachers, on the accelerator's device.
        fusion: The fusion of the training, and where it comes from.
        students: Models for the student's view, by the name the report gives them.
        accelerator: Runs and gathers.
        task: Says what logits mean, and names the default metrics.
        metrics: As for `evaluate_ensemble`.
        label_names: The C label names.
        dataset_name: What the report calls the rows.
        notes: Sentences to add to the report.
    """
    modules = [load_metric(metric) for metric in (task.metrics if metrics is None else metrics)]
    found = predict_rows(
        loader, pool=pool, fusion=fusion.fusion, students=students, accelerator=accelerator, task=task
    )
    # Modules of `evaluate` lock files, which processes would fight for: one computes, all learn what came of it.
    labels = found.labels
    finite = {name: values for name, values in found.log_probs.items() if name not in found.spoilt}
    family = family_of(task)
    results = once(lambda: _measure(modules, finite, labels, family), accelerator)
    sizes = count_parameters(pool.teachers, students)
    systems = {name: SystemResult(results.get(name, {}), sizes.get(name)) for name in found.log_probs}
    return EvaluationReport(
        task=task.name,
        dataset=dataset_name,
        rows=len(labels),
        systems=systems,
        labels=tuple(label_names),
        fusion=summary(fusion.fusion) if pool.teachers else "",
        notes=(
            *notes,
            *report_notes(
                fusion._replace(conversions=pool.conversions) if pool.teachers else None,
                labels,
                label_names,
                family,
            ),
            *(f"{sentence}, so it has no figures." for sentence in spoilt_systems(found)),
        ),
    )


def report_notes(
    fusion: FusionChoice | None,
    labels: np.ndarray,
    label_names: Sequence[str],
    family: Family,
) -> list[str]:
    """What the reader of any report must know of fusion and labels.

    Args:
        fusion: Of the ensemble; None where there is none.
        labels: (N,) int64, -100 where a row has none; or (N, C) numbers, NaN where it has none.
        label_names: The C label names; to say what all rows have in common.
        family: Says what labels are.
    """
    notes = [] if fusion is None or not fusion.reason else [f"Fusion: {fusion.reason}.", *fusion.warnings]
    notes += [] if fusion is None else [own.sentence for own in fusion.conversions]
    known = with_label(labels)
    if len(labels) and not known.any():
        return [*notes, "No row has a label, so metrics with labels are left out."]
    if len(labels) and len(label_names) and (alike := family.one_sided(labels[known], label_names)):
        notes.append(f"All labelled rows {alike}.")
    if unlabelled := int((~known).sum()):
        notes.append(f"{unlabelled} of {len(labels)} rows have no label; metrics with labels ignore them.")
    return notes


def _measure(
    modules: Sequence[Any], log_probs: Mapping[str, np.ndarray], labels: np.ndarray, family: Family
) -> dict[str, dict[str, float]]:
    """Every module's values for every system; those that need labels or an ensemble only where there are some."""
    labelled, ensemble = bool(with_label(labels).any()), log_probs.get("ensemble")
    results: dict[str, dict[str, float]] = {name: {} for name in log_probs}
    for module in modules:
        for name, values in log_probs.items():
            if (
                (ensemble is None or name == "ensemble")
                if references_of(module) == "ensemble"
                else not labelled
            ):
                continue
            found = compute_metric(
                module, log_probs=values, labels=labels, ensemble_log_probs=ensemble, family=family
            )
            if twice := sorted(found.keys() & results[name].keys()):
                raise ConfigurationError(
                    f"Two metrics are called {twice[0]!r}, of which a report shows one: name it once."
                )
            results[name] |= found
    return results


class RowPredictions(NamedTuple):
    """What systems answer, row by row.

    Attributes:
        log_probs: (N, C) float32 by the system's name, as `Task.log_probs` says it.
        labels: (N,) int64, -100 where a row has none; or (N, C) numbers, NaN where it has none.
        example_ids: (N,) int64, a hash of each row's text columns.
        spoilt: By system, the numbers of the rows on which its outputs, or those it is made of, are not finite; NaN
            stands there. Systems without such rows are left out.
    """

    log_probs: Mapping[str, np.ndarray]
    labels: np.ndarray
    example_ids: np.ndarray
    spoilt: Mapping[str, Sequence[int]] = MappingProxyType({})


def spoilt_systems(found: RowPredictions) -> list[str]:
    """Which systems give outputs that are not finite, a clause each.

    Example:
        >>> found = RowPredictions({}, np.array([0, 1]), np.array([7, 8]), {"teacher:bert": [1]})
        >>> spoilt_systems(found)
        ['teacher:bert gives outputs that are not finite on 1 of 2 rows, row 1 first']
    """
    return [
        f"{name} gives outputs that are not finite on {len(rows)} of {len(found.labels)} rows, row {rows[0]} first"
        for name, rows in found.spoilt.items()
    ]


def refuse_spoilt(found: RowPredictions, split: str) -> None:
    """Refuse answers that nothing can be judged by.

    Args:
        found: The answers.
        split: What the rows are called.

    Raises:
        DataError: Some are not finite.
    """
    if found.spoilt:
        raise DataError(
            f"On the {split} rows {'; '.join(spoilt_systems(found))}: nothing can be judged by that, so mend or drop the "
            "first of them, or its rows. The student of the training is saved."
        )


def predict_rows(
    loader: Any,
    *,
    pool: TeacherPool,
    fusion: Fusion,
    students: Mapping[str, nn.Module],
    accelerator: Accelerator,
    task: Task,
) -> RowPredictions:
    """What every system answers on every row, on every process; the arguments are those of `evaluate_loader`."""
    was_training = {name: model.training for name, model in students.items()}
    forwards = {name: _forward(model.to(accelerator.device).eval()) for name, model in students.items()}
    gathered: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []
    pooled = build_fusion(task.fusion)
    try:
        for inputs in tqdm(loader, desc="Evaluating", disable=not accelerator.is_main_process, leave=False):
            with torch.no_grad(), accelerator.autocast():
                logits = {name: forward(inputs) for name, forward in forwards.items()}
                batch = pool(inputs) if pool.teachers else None
            systems = {name: task.log_probs(values) for name, values in logits.items()}
            spoilt = {name: ~values.isfinite().all(-1) for name, values in logits.items()}
            if batch is not None:
                spoilt |= _spoilt_by_teachers(pool, batch, spoilt.get("student"))
                systems["ensemble"] = of_ensemble(fusion, batch)
                if hasattr(fusion, "aligned"):
                    batch = batch._replace(logits=fusion.aligned(batch.logits))
                if "student" in logits:
                    mask = batch.mask
                    if mask is not None:
                        mask = torch.cat([torch.ones_like(mask[:1]), mask])
                    together = torch.cat([logits["student"][None], batch.logits])
                    systems["student+teachers"] = pooled(together, temperature=1.0, mask=mask)
                for k, teacher in enumerate(pool.teachers):
                    systems[f"teacher:{teacher.name}"] = task.log_probs(batch.logits[k])
            # An infinity among logits may look like a certain answer: NaN says it to all who read on.
            systems = {
                name: values.float().masked_fill(spoilt[name][:, None], torch.nan)
                for name, values in systems.items()
            }
            rows = (systems, inputs["labels"], inputs["example_id"])
            gathered.append(_to_numpy(accelerator.gather_for_metrics(rows)))
    finally:
        for name, model in students.items():
            model.train(was_training[name])
    if not gathered:
        raise DataError("The evaluation set has no rows.")
    systems, labels, example_ids = zip(*gathered, strict=True)
    log_probs = {name: np.concatenate([batch[name] for batch in systems]) for name in systems[0]}
    nan = {name: np.flatnonzero(np.isnan(values).any(-1)).tolist() for name, values in log_probs.items()}
    return RowPredictions(
        log_probs,
        np.concatenate(labels),
        np.concatenate(example_ids),
        {name: rows for name, rows in nan.items() if rows},
    )


def _spoilt_by_teachers(pool: TeacherPool, batch: TeacherBatch, student: Tensor | None) -> dict[str, Tensor]:
    """(B,) bool by system: on which rows it, or what it is made of, is not finite."""
    each = not_finite(batch.logits, batch.mask)
    spoilt = {f"teacher:{teacher.name}": each[k] for k, teacher in enumerate(pool.teachers)}
    spoilt["ensemble"] = batch.spoilt.any(0)
    if student is not None:
        spoilt["student+teachers"] = each.any(0) | student
    return spoilt


def _to_numpy(
    batch: tuple[dict[str, Tensor], Tensor, Tensor],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    systems, labels, example_ids = batch
    logs = {name: values.float().cpu().numpy() for name, values in systems.items()}
    return logs, labels.cpu().numpy(), example_ids.cpu().numpy()


def _forward(model: nn.Module) -> Callable[[Mapping[str, Any]], Tensor]:
    """Logits (B, C) in float32 of a model on the student's view of a batch."""
    known = named_inputs(model) - {"labels"}
    return lambda inputs: model(**{key: inputs[key] for key in inputs if key in known}).logits.float()


def count_parameters(teachers: Sequence[TeacherSource], students: Mapping[str, nn.Module]) -> dict[str, int]:
    """How many parameters answer one row, by system, where it is known.

    Args:
        teachers: Those of the ensemble.
        students: Models by the name the report gives them.
    """
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in students.items()}
    live = {f"teacher:{t.name}": t.num_parameters for t in teachers if hasattr(t, "num_parameters")}
    sizes |= live
    if len(live) == len(teachers):
        sizes["ensemble"] = sum(live.values())
        sizes["student+teachers"] = sum(live.values()) + sizes.get("student", 0)
    return sizes


def compute_metrics_from(
    metrics: Sequence[Any], task: str | Task = "text-classification"
) -> Callable[[Any], dict[str, float]]:
    """A Trainer's ``compute_metrics`` from metric names; those that compare with an ensemble are left out.

    Args:
        metrics: Names or modules, as for `evaluate_ensemble`.
        task: Says what logits mean.

    Returns:
        A function of `transformers.EvalPrediction`; rows without a label do not count.

    Example:
        >>> from transformers import EvalPrediction
        >>> compute = compute_metrics_from(["accuracy"])
        >>> compute(EvalPrediction(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, -100])))
        {'accuracy': 1.0}
    """
    said, family = build_task(task).log_probs, family_of(task)
    modules = [module for module in map(load_metric, metrics) if references_of(module) == "labels"]

    def compute_metrics(prediction: Any) -> dict[str, float]:
        labels = np.asarray(prediction.label_ids)
        if not with_label(labels).any():
            return {}
        log_probs = said(torch.from_numpy(np.asarray(prediction.predictions)).float()).numpy()
        values: dict[str, float] = {}
        for module in modules:
            values |= compute_metric(module, log_probs=log_probs, labels=labels, family=family)
        return values

    compute_metrics.names = computed_names(metrics)  # type: ignore[attr-defined]
    return compute_metrics


def computed_names(metrics: Sequence[Any]) -> tuple[str, ...] | None:
    """The metrics by the names that their values get; None where one is not ours, whose values may be called anything.

    Example:
        >>> computed_names(["accuracy", "agreement"]), computed_names(["my_pkg.mod:Own"])
        (('accuracy',), None)
    """
    names = [spec.get("use") if isinstance(spec, Mapping) else spec for spec in metrics]
    if not all(isinstance(name, str) and name in METRICS for name in names):
        return None
    return tuple(name for name in names if METRICS[name].references_from == "labels")
