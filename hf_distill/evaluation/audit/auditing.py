"""The audit: labelled rows in, a report on teachers and fusions out, nothing trained.

Shapes: K teachers, N rows, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ...errors import ConfigurationError, DataError
from ...fusion import HeldOut
from ...fusion.alignment import UNLABELLED, LabelMap, OutputMap, is_generic, plan_table
from ...processes import once
from ...rows.batches import ahead
from ...rows.collator import MultiTeacherCollator
from ...rows.columns import indexed
from ...rows.preparing import prepare_dataset
from ...rows.views import text_batches
from ...tasks import build_task, refuse_other_family
from ...tasks.task import Task
from ...teachers.held_out import collect
from ...teachers.pool import TeacherPool
from ...teachers.teacher import Teacher, TeacherSource, TeacherSpec, load_teacher
from ..cost import Cost, device_name, rows_per_second, take_turns
from .advice import advise, verdict
from .alone import pair_figures, suspicions, teacher_figures, twins
from .numbers import BEST_TEACHER, LeaveOneOut
from .of_scores import ScoreAudit, audit_scores
from .report import AuditReport
from .rules import LEFT_OUT, advised_rule, built_rules, half, leave_one_out, oracle, rule_figures, score_rules

_FEW_ROWS = 200
_CHOICES = ("not so", "it holds")
# Enough to time a teacher: rows, and seconds where it is slow.
_TIMED_ROWS, _TIMED_SECONDS = 512, 2.0


def audit_teachers(
    teachers: Sequence[str | TeacherSpec | TeacherSource],
    dataset: Any,
    *,
    fusions: Mapping[str, Any] | Sequence[Any] | None = None,
    task: str | Task = "text-classification",
    text_columns: Sequence[str] | None = None,
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    dataset_name: str = "held-out rows",
    entries: Sequence[Any] | None = None,
    live: Sequence[TeacherSpec] = (),
    notes: Sequence[str] = (),
) -> AuditReport | ScoreAudit:
    """Say what teachers are worth before anything is trained: alone, in pairs, fused by every rule, and without each.

    Fusions are fitted on one half of the rows and scored on the other, both ways. The rows must be new to the teachers,
    and must not be those of the final report.

    Args:
        teachers: As for the trainer.
        dataset: Raw rows with labels.
        fusions: The rules to compare: a mapping from name to whatever `build_fusion` takes, or a sequence of it; None: all
            that make sense without the row's label.
        task, text_columns, label_column, label_names: As for the trainer.
        batch_size: Rows per forward and process.
        accelerator: Where and in which precision to run; None: a new one.
        dataset_name: What the report calls the rows.
        entries: What a recipe writes of each teacher; None: what ``teachers`` says.
        live: Where ``teachers`` are cached, the same ones to be loaded: one at a time, for as long as timing it takes.
        notes: Sentences to add to the report.

    Raises:
        DataError: No labelled rows, or labels or columns that do not fit.
        ConfigurationError: A fusion nobody knows, or no teacher.

    Example:
        >>> report = audit_teachers([teacher], rows)
        >>> report.rows, report.teachers[0].name
        (64, 'bert')
    """
    task, accelerator = build_task(task), accelerator or Accelerator()
    rules = built_rules(fusions)
    if not teachers:
        raise ConfigurationError("teachers= is empty: there is nothing to audit.")
    loaded = [load_teacher(given, task) for given in teachers]
    names = task.label_names(label_names, dataset, label_column, None)
    loaded, assumed = _with_assumed_labels(loaded, names)
    written = [_entry(*pair) for pair in zip(teachers, loaded, strict=True)] if entries is None else entries
    pool = TeacherPool(loaded, names, task=task).to(accelerator.device)
    text_columns = task.text_columns if text_columns is None else text_columns
    rows = prepare_dataset(
        dataset,
        text_columns=text_columns,
        labels=task.label_reader(label_column, names),
        student_view=None,
        teacher_views=pool.views,
        content=task.content,
        what=dataset_name,
    )
    loader = DataLoader(
        indexed(rows), batch_size=batch_size, collate_fn=MultiTeacherCollator(None, pool.views)
    )
    held = collect(ahead(accelerator.prepare_data_loader(loader)), pool, accelerator)
    choices = pool.family.as_choices(held)
    if choices is None and pool.family.has_classes:
        raise DataError(
            f"An audit compares answers that are right or wrong, but {task.name} has none that all these teachers give: compare them "
            "with evaluate_ensemble."
        )

    def audited() -> AuditReport | ScoreAudit:
        some = dataset[: max(2 * batch_size, _TIMED_ROWS)]
        texts = [list(map(task.content.read, some[column])) for column in text_columns]
        costs = {
            own.name: _cost(own if spec is None else spec.load(task), texts, batch_size, accelerator)
            for own, spec in zip(loaded, live or itertools.repeat(None, len(loaded)), strict=True)
        }
        told = {
            "entries": {
                t.name: _with_labels(entry, names) if t.name in assumed else entry
                for t, entry in zip(loaded, written, strict=True)
            },
            "costs": costs,
            "conditions": _conditions(costs.values(), accelerator, batch_size),
            "dataset_name": dataset_name,
            "notes": notes,
        }
        if choices is None:
            return audit_scores(held, pool.label_maps, task, rules=_fitting(rules, task), **told)
        told |= {"assumed": assumed, "task": task.name}
        if choices is held:
            return audit_held_out(held, pool.label_maps, rules=rules, **told)
        report = audit_held_out(choices, _of_choices(pool.label_maps), rules=_pools(rules), **told)
        return _of_pairs(report, pool.label_maps, pool.family.prefix)

    return once(audited, accelerator)


def _of_choices(maps: Sequence[OutputMap]) -> list[LabelMap]:
    """Label maps of teachers each of whose outputs is asked alone."""
    return [LabelMap(own.teacher, _CHOICES, _CHOICES, (0, 1)) for own in maps]


def _fitting(rules: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Those rules that are for the task's predictions."""
    found = {}
    for name, rule in rules.items():
        with contextlib.suppress(ConfigurationError):
            refuse_other_family(task, fusion=rule)
            found[name] = rule
    return found


def _pools(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules that mean the same of one label alone as of two classes: pools."""
    return {
        name: rule for name, rule in rules.items() if name.partition(",")[0] in ("linear_pool", "log_pool")
    }


def _of_pairs(report: AuditReport, maps: Sequence[OutputMap], prefix: str) -> AuditReport:
    """The report on (row, label) pairs, with the fusions as a recipe of these predictions writes them."""

    def named(text: str) -> str:
        return re.sub(r"(?<![\w])(linear_pool|log_pool)\b", rf"{prefix}\1", text)

    advice = report.advice
    if advice is not None:
        advice = dataclasses.replace(
            advice,
            lines=named(advice.lines),
            alternative=named(advice.alternative),
            settings={**advice.settings, "use": named(str(advice.settings["use"]))},
        )
    note = (
        "Each (row, label) pair is asked alone, of the labels that all teachers have: accuracy is the share of pairs that are right, "
        f"and the classes are 'not so' and 'it holds'. linear_pool and log_pool are {prefix}linear_pool and {prefix}log_pool. Pairs of "
        "one row go together, so that intervals are narrower than they should be."
    )
    return dataclasses.replace(
        report,
        alignment=plan_table(maps),
        advice=advice,
        verdict=tuple(named(sentence) for sentence in report.verdict),
        notes=(note, *report.notes),
    )


def audit_held_out(
    held: HeldOut,
    label_maps: Sequence[OutputMap],
    *,
    rules: Mapping[str, Any] | None = None,
    entries: Mapping[str, Any] | None = None,
    assumed: Sequence[str] = (),
    costs: Mapping[str, Cost] | None = None,
    conditions: str = "",
    task: str = "text-classification",
    dataset_name: str = "held-out rows",
    notes: Sequence[str] = (),
) -> AuditReport:
    """`audit_teachers` for outputs that are there already.

    Args:
        held: What the teachers say of the rows.
        label_maps: How the labels of each were matched; they name the teachers.
        rules: As `audit_teachers` takes ``fusions``.
        entries: What a recipe writes of each teacher, by name; None: the name.
        assumed: Names of teachers whose labels are placeholders that were taken in order.
        costs: Of each teacher, by name.
        conditions: Under what the throughput was measured.
        task: The task's name.
        dataset_name: What the report calls the rows.
        notes: Sentences to add to the report.

    Raises:
        DataError: No labelled rows.

    Example:
        >>> label_map = LabelMap.match(["a", "b"], ["a", "b"], teacher="bert")
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(1, 9, 1)
        >>> held = HeldOut(logits, torch.tensor([0, 1] * 9), None, torch.arange(18) // 2)
        >>> audit_held_out(held, [label_map]).teachers[0].accuracy
        1.0
    """
    names, labels = [label_map.teacher for label_map in label_maps], label_maps[0].student_labels
    held, remarks = _usable(held)
    rules = built_rules(rules)
    figures = teacher_figures(held, names, costs or {})
    pairs = pair_figures(held, names)
    found = suspicions(held, figures, label_maps, assumed)
    scores, reasons = score_rules(rules, held, names, what="Fusion rules")
    without, advice = {}, None
    compared = {"linear_pool", BEST_TEACHER} <= scores.keys()
    if compared and len(names) > 1:
        shown = dict.fromkeys([advised_rule(scores), "linear_pool"])
        without = leave_one_out({name: rules[name] for name in shown}, held, names)
    if compared:
        broken = {name: suspicion.broken for name, suspicion in found.items() if suspicion.broken}
        advice = advise(held, names, rules, broken, entries or {name: name for name in names}, scores)
    words = verdict(advice, held.logits.shape[1], {own.name: own.cost.parameters for own in figures})
    if not compared:
        why = reasons.get(BEST_TEACHER) or reasons["linear_pool"]
        words = [f"Fusions cannot be compared on these rows: {why}."]
    if trained := [name for name, suspicion in found.items() if suspicion.remembers]:
        words = [f"Audit on other rows: probably trained on these: {', '.join(map(repr, trained))}.", *words]
    truth, first = held.labels.numpy(), int(half(held).sum())
    return AuditReport(
        task=task,
        dataset=dataset_name,
        rows=len(truth),
        halves=(first, len(truth) - first),
        labels=tuple(labels),
        label_rows=tuple(np.bincount(truth, minlength=len(labels)).tolist()),
        alignment=plan_table(label_maps),
        conditions=conditions,
        teachers=tuple(figures),
        pairs=tuple(pairs),
        oracle=oracle(held),
        rules=tuple(rule_figures(name, scores, truth) for name in scores) if compared else (),
        left_out={**reasons, **{name: why for name, why in LEFT_OUT.items() if name not in rules}},
        leave_one_out=tuple(
            LeaveOneOut(name, {rule: own.over(scores[rule]) for rule, own in each.items()})
            for name, each in without.items()
        ),
        advice=advice,
        verdict=tuple(words),
        warnings=(*(text for own in found.values() for text in own.warnings), *twins(pairs)),
        notes=(*notes, *remarks),
    )


def _usable(held: HeldOut) -> tuple[HeldOut, list[str]]:
    """The rows that have a label which some teacher knows, and what is to be said of the others."""
    labelled = held.labels != UNLABELLED
    usable = labelled.clone()
    if held.mask is not None:
        usable &= held.mask.any(0).gather(-1, held.labels.clamp(min=0)[:, None])[:, 0]
    count = int(usable.sum())
    if not count:
        raise DataError(
            f"None of the {len(usable)} rows has a label that a teacher knows, and an audit compares with labels: name "
            "the column that holds them with label_column=, or label some rows."
        )
    unlabelled, unknown = int((~labelled).sum()), int((labelled & ~usable).sum())
    remarks = [
        (unlabelled, f"{unlabelled} of {len(usable)} rows have no label and are left out."),
        (unknown, f"{unknown} rows have a label that no teacher knows and are left out."),
        (
            len(held.labels[usable].unique()) == 1,
            "All rows have the same label, so nothing can be told from guessing: these rows judge nobody.",
        ),
        (
            count < _FEW_ROWS,
            f"{count} rows are few: the intervals are wide, and little is told from chance. Label some hundred more.",
        ),
    ]
    notes = [text for applies, text in remarks if applies]
    if count == len(usable):
        return held, notes
    mask = None if held.mask is None else held.mask[:, usable]
    return HeldOut(held.logits[:, usable], held.labels[usable], mask, held.example_ids[usable]), notes


def _with_assumed_labels(
    teachers: Sequence[TeacherSource], labels: Sequence[str]
) -> tuple[list[TeacherSource], list[str]]:
    """Teachers with placeholders for labels get the labels in order: the audit then finds out whether that is right.

    Training refuses such teachers, since nothing says what their outputs mean; here the rows' labels can.
    """
    result, assumed = [], []
    for teacher in teachers:
        own = teacher.label_names
        if len(own) == len(labels) and any(map(is_generic, own)) and not any(map(is_generic, labels)):
            teacher = copy.copy(teacher)
            teacher.label_names = tuple(labels)
            assumed.append(teacher.name)
        result.append(teacher)
    return result, assumed


def _entry(given: Any, teacher: TeacherSource) -> Any:
    """What a recipe writes of a teacher."""
    if isinstance(given, TeacherSpec):
        options = {
            field.name: value
            for field in dataclasses.fields(given)
            if (value := getattr(given, field.name)) != field.default and field.name != "id_or_path"
        }
        return {"model": given.id_or_path, **options} if options else given.id_or_path
    return (
        str(given)
        if isinstance(given, (str, os.PathLike))
        else getattr(teacher, "source", "") or teacher.name
    )


def _with_labels(entry: Any, labels: Sequence[str]) -> dict[str, Any]:
    return {**(entry if isinstance(entry, Mapping) else {"model": entry}), "labels": list(labels)}


def _cost(
    teacher: TeacherSource, texts: Sequence[Sequence[str]], batch_size: int, accelerator: Accelerator
) -> Cost:
    """Size, and rows per second of the forward alone."""
    if not isinstance(teacher, Teacher):
        return Cost(getattr(teacher, "num_parameters", None))
    size = sum(parameter.numel() * parameter.element_size() for parameter in teacher.model.parameters())
    teacher.to(accelerator.device)
    batches = [
        {key: value.to(accelerator.device) for key, value in batch.items()}
        for batch in text_batches(teacher.view, texts, batch_size)
    ]
    with torch.no_grad(), accelerator.autocast():
        times = take_turns(
            {"": lambda inputs: teacher(inputs, None)},
            batches,
            seconds=_TIMED_SECONDS,
            most=len(batches),
            least=1,
        )[""]
    return Cost(teacher.num_parameters, size, throughput=rows_per_second(times, batches))


def _conditions(costs: Collection[Cost], accelerator: Accelerator, batch_size: int) -> str:
    timed = [cost.throughput for cost in costs if cost.throughput]
    precision = {"bf16": ", bf16 autocast", "fp16": ", fp16 autocast"}.get(accelerator.mixed_precision, "")
    figures = (
        f"rows/s: forwards alone on {device_name(accelerator.device)}, batches of {batch_size}{precision}."
    )
    stored = "Teachers that were read from a cache, and not loaded, have no MB and no rows/s."
    return " ".join([figures] * bool(timed) + [stored] * (len(timed) < len(costs)))
