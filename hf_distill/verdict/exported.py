"""The exported student as one more system of its run's verdict, measured on the rows of the verdict.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import DataError
from ..evaluation.cost import Cost, overload, place
from ..evaluation.formats import faster, share, signed_points
from ..evaluation.results import SystemResult
from ..evaluation.statistics import Difference, accuracy_interval, difference
from ..tasks import family_of
from ..tasks.task import Task
from .answers import Answers, SavedRows, differ, in_order, load_rows, rows_file
from .finding import fitted_on, is_of
from .numbers import Export
from .reading import load_report
from .report import VerdictReport
from .systems import ENSEMBLE, STUDENT, Measured, Role, System, measure, metric_modules

Value = TypeVar("Value")

# Nats of a row's NLL. What float32 leaves of it differs on every row to the same side, and would be called beyond chance.
_SAME = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """A run's verdict, with what its student and its ensemble answered.

    Attributes:
        report: The verdict.
        student: What the student answered that lies in the run's folder, which is the first seed's.
        teachers: What ensemble and teachers answered.
        left_out: (n,) int64 ids of the rows that are not reported on.
    """

    report: VerdictReport
    student: SavedRows
    teachers: SavedRows
    left_out: np.ndarray


def open_judged(run: str | os.PathLike[str]) -> Judged:
    """Read a run's verdict and the answers behind it.

    Args:
        run: The run's folder.

    Raises:
        DataError: There is no verdict, or the answers are not those that it was made of.
        CorruptStateError: One of the files is damaged.

    Example:
        >>> open_judged(getfixture("tmp_path"))
        Traceback (most recent call last):
        hf_distill.errors.DataError: the run has none
    """
    report = load_report(run)
    if report is None:
        raise DataError("the run has none")
    files = [rows_file(run, "student", report.seeds[0]), rows_file(run, "teachers", None)]
    if missing := [str(file.relative_to(run)) for file in files if not file.is_file()]:
        raise DataError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    student, teachers = (load_rows(file) for file in files)
    if student.key != teachers.key:
        raise DataError(f"{files[0].name} and {files[1].name} are of different trainings")
    fitted = fitted_on(Path(run))
    fitted = np.empty(0, np.int64) if fitted is None else fitted
    judged = Judged(report, student, teachers, np.intersect1d(student.rows.example_ids, fitted))
    if (rows := int(_kept(judged).sum())) != report.evaluation.rows:
        raise DataError(f"it is on {report.evaluation.rows} rows, and the answers beside it on {rows}")
    if not is_of(report, student, fitted):
        raise DataError("it is of another training than the answers beside it")
    return judged


def with_exported(
    judged: Judged,
    format: str,
    *,
    answers: Answers,
    label_names: Sequence[str],
    metrics: Sequence[Any],
    costs: Mapping[str, Cost],
    rounding: float,
    task: str | Task = "text-classification",
) -> VerdictReport:
    """The verdict with the exported student in it, in the place of an earlier export of the same format.

    Args:
        judged: Of `open_judged`.
        format: What was exported to.
        answers: What the student (``student``) and the exported one (by its `Role`'s name) say of the verdict's rows now.
        label_names: The C classes of the answers.
        metrics: What is reported besides what always is, as for `judge`.
        costs: Of both, measured in turns on the CPU.
        rounding: By how many nats of KL(as judged ‖ now), a mean over rows, the student itself may answer otherwise than it
            did in the verdict.
        task: Says what is right.

    Raises:
        DataError: They are answers on other rows, with other labels, or of another student.
    """
    report, seed, role = judged.report, judged.report.seeds[0], Role("exported", format)
    name = role.name
    kept, names = _kept(judged), judged.student.label_names
    labels, student = judged.student.rows.labels[kept], judged.student.rows.log_probs[STUDENT][kept]
    saved = SavedRows("exported", None, judged.student.split, tuple(label_names), answers)
    now = in_order(saved, judged.student.rows.example_ids[kept], names, "the export")
    if apart := int(differ(now.labels, labels).sum()):
        raise DataError(f"{apart} of its {len(labels)} rows have other labels now")
    moved = float(family_of(task).apart(student, now.log_probs[STUDENT]).mean())
    if not moved <= rounding:
        raise DataError(
            f"the student in the run's folder is not the one that was judged: KL(judged ‖ this one) is {moved:.2g} nats per "
            f"row, more than the {rounding:g} that rounding explains"
        )
    teachers = in_order(judged.teachers, judged.student.rows.example_ids, names, "the ensemble").log_probs
    ensemble = teachers[ENSEMBLE][kept] if ENSEMBLE in teachers else None
    measured = functools.partial(measure, labels=labels, task=task)
    exported = measured(
        System(role, (lambda: now.log_probs[name],)), ensemble=ensemble, modules=metric_modules(metrics, task)
    )
    own = measured(System(Role("student"), (lambda: student,)), ensemble=None, modules=[])
    # With several seeds, a row called "student" is a mean over all of them.
    differences = _differences(
        (name, STUDENT if len(report.seeds) == 1 else f"{STUDENT}, seed {seed}"), exported, own
    )
    same = float((exported.predictions == own.predictions).reshape(len(labels), -1).all(1).mean())
    evaluation = report.evaluation
    result = SystemResult(exported.metrics[0], evaluation.systems[STUDENT].parameters)
    said = Export(
        _sentence(format, seed, differences[0], exported, same, costs[name], costs[STUDENT]),
        _when(name, costs[STUDENT]),
        tuple(_notes(report.place)),
    )

    family = {key for key, own in report.roles.items() if own.kind in ("student", "exported")}

    def beside(entries: Mapping[str, Value], value: Value) -> dict[str, Value]:
        """The entries with one more behind the student and what is made of it, in the place of an earlier one."""
        others = {key: entry for key, entry in entries.items() if key != name}
        return {**{key: own for key, own in others.items() if key in family}, name: value, **others}

    return dataclasses.replace(
        report,
        evaluation=dataclasses.replace(evaluation, systems=beside(evaluation.systems, result)),
        roles=beside(report.roles, role),
        spread=beside(report.spread, {}),
        by_seed=beside(report.by_seed, {seed: exported.metrics[0]}),
        differences=(*(d for d in report.differences if d.first != name), *differences),
        costs=beside(report.costs, costs[name]),
        accuracies=beside(report.accuracies, accuracy_interval(exported.correct)),
        exports={**{key: own for key, own in report.exports.items() if key != name}, name: said},
    )


def _kept(judged: Judged) -> np.ndarray:
    """(N,) bool, which of the answers the verdict is made of."""
    return ~np.isin(judged.student.rows.example_ids, judged.left_out)


def _differences(names: tuple[str, str], exported: Measured, own: Measured) -> list[Difference]:
    pairs = {kind: (exported.values(kind), own.values(kind)) for kind in exported.told}
    return [
        difference(kind, names, np.where(np.isclose(a, b, rtol=0, atol=_SAME), b, a), b)
        for kind, (a, b) in pairs.items()
    ]


def _sentence(
    format: str, seed: int, gain: Difference, exported: Measured, same: float, own: Cost, student: Cost
) -> str:
    assert own.p50 is not None and student.p50
    return (
        f"Exported as {format}: {gain.measure} {100 * exported.mean(gain.measure):.1f} ({signed_points(gain.value)[0]} against the float "
        f"student of seed {seed}), {100 * same:.1f} % same answers, {_megabytes(own.bytes)} MB in place of "
        f"{_megabytes(student.bytes)}, {faster(own.p50 / student.p50)}."
    )


def _megabytes(size: int | None) -> str:
    """Bytes in millions, with two significant digits at least.

    Example:
        >>> _megabytes(17_316_888), _megabytes(48_300)
        ('17.3', '0.048')
    """
    assert size is not None
    return f"{size / 1e6:.1f}" if size >= 1e6 else share(size / 1e6)


def _when(name: str, student: Cost) -> str:
    """What was measured later than the rest, beside what."""
    assert student.p50 is not None and student.throughput is not None
    return (
        f"{name}: measured later, when it was exported, on {place(torch.device('cpu'))}, in turns with the student itself, "
        f"which then took {1000 * student.p50:.2f} ms (p50) and gave {student.throughput:,.0f} rows/s."
    )


def _notes(elsewhere: str) -> list[str]:
    """Why the latency of the exported student does not compare with those of the other systems."""
    found, here = [], place(torch.device("cpu"))
    if here != elsewhere:
        found.append(
            f"it was timed on {here}, the other systems elsewhere (see Cost), so that latencies compare only with the "
            "student's of that time."
        )
    if much := overload():
        found.append(
            f"the machine was busy with other work when it was timed ({much}): latencies are long, and their ratio to the "
            "student's is rough."
        )
    return found
