"""Finished runs compared on the same rows: whose student is better, beyond chance?

Shapes: S seeds of a run, N rows, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigurationError, DataError
from ..evaluation.formats import interval, signed_points
from ..evaluation.statistics import Difference, accuracy_interval
from ..fusion.alignment import labelled as with_label
from ..tasks import TASKS, family_of
from ..tasks.family import Family
from .answers import Answers, SavedRows, differ, in_order
from .comparison import Compared, ComparedRun, RunComparison
from .finding import FoundRun, find_run
from .judging import better_baseline, corrected, group_of
from .numbers import Group
from .recipes_apart import recipe_differences
from .sentences import detectable
from .systems import (
    ENSEMBLE,
    STUDENT,
    Measured,
    Role,
    System,
    best_teacher,
    fixed_systems,
    gain_over,
    means,
    measure,
    metric_modules,
    student_systems,
)
from .wording import metric_name

# Systems of two runs are the same one where no probability of any row differs by more: a cache keeps logits in float16.
_ROUNDING = 1e-3

# Made with the run's own ensemble.
_OF_THE_ENSEMBLE = ("agreement", "kl_to_ensemble")

# Runs that need so many times as long for the same system were not timed under the same conditions, whatever they say.
_APART = 1.25


@dataclass(frozen=True, eq=False)
class _Run:
    """A run's systems on the rows of all runs, by their names in a verdict."""

    name: str
    opened: FoundRun
    systems: Mapping[str, System]
    found: Mapping[str, Measured]
    teacher: str | None
    task: str

    @property
    def measures(self) -> tuple[str, ...]:
        """What is compared row by row."""
        return self.found[STUDENT].measures

    def shown(self) -> list[str]:
        """The student, the baselines that it is compared with, the ensemble and the best of several teachers."""
        baselines = [better_baseline(self.found, kind) for kind in self.measures]
        others = [ENSEMBLE, *([] if self.teacher is None else [self.teacher])]
        return [name for name in dict.fromkeys([STUDENT, *baselines, *others]) if name in self.found]


def compare_runs(runs: Sequence[str | os.PathLike[str]]) -> RunComparison:
    """Compare the students of runs with the first run's, and each with its own baseline, on rows that all answered.

    Rows are paired by what is in them and by their labels, so runs may have read the data in other orders and named the
    classes in others. Rows that fitted the fusion of any run are left out for all. Seeds of different runs are drawn
    independently of each other; McNemar's test is of the first seeds.

    Args:
        runs: Output folders of `hf-distill train` with a verdict; at least two.

    Raises:
        ConfigurationError: Fewer than two runs, or one named twice.
        DataError: A run has no rows, or other rows than the first.
        CorruptStateError: One of their files cannot be read.
    """
    folders = [Path(run) for run in runs]
    if len(folders) < 2:
        raise ConfigurationError("One run has nothing to be compared with: name at least two.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        named = ", ".join(map(str, folders))
        raise ConfigurationError(f"A run is named twice, and would equal itself: {named}.")
    opened = [find_run(folder) for folder in folders]
    first = opened[0].students[0]
    for run in opened[1:]:
        if run.students[0].split != first.split:
            raise DataError(
                f"{run.folder} was evaluated on other rows: on its {run.students[0].split} split, {folders[0]} on "
                f"{first.split}; evaluate both on the same split of the same data."
            )
    ids = first.rows.example_ids
    kept = ~np.isin(ids, np.concatenate([run.fitted_on for run in opened]))
    labels = first.rows.labels[kept]
    if not with_label(labels).any():
        other = "" if kept.all() else f" that fitted no fusion ({len(ids) - len(labels)} did)"
        raise DataError(
            f"None of the {len(labels)} rows{other} has a label, so runs cannot be compared on them."
        )
    names = short_names(folders)
    found = [_measured(name, run, first, kept) for name, run in zip(names, opened, strict=True)]
    systems = _merged(found)
    differences = [*_of_students(found), *_of_baselines(found, systems)]
    rows = int(with_label(labels).sum())
    facts = {run.name: _facts(run) for run in found}
    notes = [*_notes(found, len(ids), len(ids) - len(labels)), *_timed_apart(systems, facts)]
    return RunComparison(
        split=first.split,
        rows=rows,
        left_out=len(ids) - len(labels),
        labels=first.label_names,
        runs=facts,
        systems=tuple(systems),
        differences=tuple(differences),
        per_class=tuple(_classes(found, labels, first.label_names)) if len(found) == 2 else (),
        notes=tuple(notes),
        sentences=tuple(_sentences(found, differences, rows)),
        recipes=recipe_differences(dict(zip(names, folders, strict=True))),
        task=found[0].task,
    )


def short_names(folders: Sequence[Path]) -> list[str]:
    """What tables call the runs: the last parts of their paths, where these differ."""
    last = [folder.name for folder in folders]
    return last if all(last) and len(set(last)) == len(last) else [str(folder) for folder in folders]


def _measured(name: str, run: FoundRun, first: SavedRows, kept: np.ndarray) -> _Run:
    """A run's systems and what they are worth on the kept ones of the first run's rows."""
    task = task_of(run)
    students, baselines = (
        [_ordered(saved, run, first, kept) for saved in own] for own in (run.students, run.baselines)
    )
    systems = student_systems(Role("student"), students, [None], STUDENT, task)
    validation = [saved.validation for saved in run.baselines]
    for step in ("last", "best"):
        if baselines and all(step in own.log_probs for own in baselines):
            systems += student_systems(Role("baseline", step), baselines, validation, step, task)
    teacher = None
    if run.teachers is not None:
        answers = _ordered(run.teachers, run, first, kept)
        fixed = {own.role: own for own in fixed_systems(answers)}
        best = Role("teacher", best_teacher(answers, task) or "")
        several = sum(role.kind == "teacher" for role in fixed) > 1
        teacher = best.name if several and best in fixed else None
        given = (Role("ensemble"), *([best] if teacher else []))
        systems += [fixed[role] for role in given if role in fixed]
    by_name = {system.role.name: system for system in systems}
    last, best = (Role("baseline", step).name for step in ("last", "best"))
    if {last, best} <= by_name.keys() and _same(by_name[last], by_name[best], family_of(task)):
        by_name = {name: own for name, own in by_name.items() if own.role.of != "best"}
    ensemble = by_name[ENSEMBLE].trainings[0]() if ENSEMBLE in by_name else None
    labels, modules = first.rows.labels[kept], metric_modules(family_of(task).compared, task)
    found = {own: measure(system, labels, ensemble, modules, task) for own, system in by_name.items()}
    return _Run(name, run, by_name, found, teacher, task)


def task_of(run: FoundRun) -> str:
    """The name of a run's task, which has to be built in: what a file names is not imported to look at it.

    Raises:
        DataError: It is the user's own.
    """
    name = run.report.evaluation.task if run.report else "text-classification"
    if name not in TASKS:
        raise DataError(
            f"{run.folder} is of the task {name!r}, which is not built in, so nothing here says what is right: compare its verdict by hand."
        )
    return name


def _ordered(saved: SavedRows, run: FoundRun, first: SavedRows, kept: np.ndarray) -> Answers:
    """Answers in the order of the first run's rows, without those that are left out."""
    rows = first.rows
    own = in_order(saved, rows.example_ids, first.label_names, str(run.folder), rows.labels)
    if apart := int(differ(own.labels, rows.labels).sum()):
        raise DataError(
            f"{run.folder} was evaluated on the same rows, but {apart} of them had other labels than in the first run: "
            "evaluate both on the same version of the data."
        )
    return Answers(
        own.example_ids[kept],
        own.labels[kept],
        {name: values[kept] for name, values in own.log_probs.items()},
    )


def _same(one: System, other: System, family: Family) -> bool:
    return len(one.trainings) == len(other.trainings) and all(
        np.allclose(family.probabilities(a()), family.probabilities(b()), rtol=0, atol=_ROUNDING)
        for a, b in zip(one.trainings, other.trainings, strict=True)
    )


def _merged(found: Sequence[_Run]) -> list[Compared]:
    """The rows of the table: students, baselines, ensembles, teachers; what runs have in common stands there once."""
    groups: list[tuple[str, list[_Run]]] = []
    for run in found:
        for name in run.shown():
            common = (
                own
                for called, own in groups
                if called == name != STUDENT
                and _same(own[0].systems[name], run.systems[name], family_of(run.task))
            )
            if (group := next(common, None)) is not None:
                group.append(run)
            else:
                groups.append((name, [run]))
    ensembles = {run.name: i for i, (name, own) in enumerate(groups) if name == ENSEMBLE for run in own}
    order = ("student", "baseline", "ensemble", "teacher")
    groups.sort(key=lambda group: order.index(group[1][0].found[group[0]].role.kind))
    return [
        _compared(
            name, own, everywhere=len(own) == len(found), one=len({ensembles.get(r.name) for r in own}) == 1
        )
        for name, own in groups
    ]


def _compared(name: str, runs: Sequence[_Run], *, everywhere: bool, one: bool) -> Compared:
    """A row of the table.

    Args:
        name: The system's.
        runs: Those that have it.
        everywhere: Whether that is all of them.
        one: Whether they have one ensemble, so that there is one agreement with it.
    """
    own, named = runs[0].found[name], tuple(run.name for run in runs)
    metrics = [
        {metric: value for metric, value in each.items() if one or metric not in _OF_THE_ENSEMBLE}
        for each in own.metrics
    ]
    return Compared(
        name=name if everywhere else f"{', '.join(named)}: {name}",
        system=name,
        role=own.role,
        runs=named,
        seeds=len(metrics) if own.role.small else None,
        metrics=means(metrics),
        spread={metric: value for metric, value in own.spread().items() if metric in metrics[0]},
        accuracy=accuracy_interval(own.correct),
    )


def _of_students(found: Sequence[_Run]) -> list[Difference]:
    """Each later run's student minus the first's."""
    first = found[0]
    return [
        gain_over(
            kind,
            (f"{run.name}: {STUDENT}", f"{first.name}: {STUDENT}"),
            run.found[STUDENT],
            first.found[STUDENT],
            paired_seeds=False,
        )
        for run in found[1:]
        for kind in first.measures
    ]


def _of_baselines(found: Sequence[_Run], systems: Sequence[Compared]) -> list[Difference]:
    """Each run's student minus its own baseline that is hardest to beat."""
    called = {(run, system.system): system.name for system in systems for run in system.runs}
    return [
        gain_over(
            kind,
            (called[run.name, STUDENT], called[run.name, baseline]),
            run.found[STUDENT],
            run.found[baseline],
        )
        for run in found
        for kind in run.measures
        if (baseline := better_baseline(run.found, kind)) is not None
    ]


def own_differences(name: str, run: FoundRun) -> tuple[int, tuple[Difference, ...]]:
    """What a run's student gains over its own hardest baselines, in accuracy and in NLL, on the rows that fitted no fusion.

    Args:
        name: What tables call the run.
        run: The run.

    Returns:
        The number of labelled rows, and the two differences; none where the run has no baseline.

    Raises:
        DataError: None of its rows has a label.
    """
    first = run.students[0]
    kept = ~np.isin(first.rows.example_ids, run.fitted_on)
    rows = int(with_label(first.rows.labels[kept]).sum())
    if not rows:
        raise DataError(f"None of the rows of {run.folder} has a label, so nothing can be judged on them.")
    found = _measured(name, run, first, kept).found
    made = [
        gain_over(kind, (STUDENT, baseline), found[STUDENT], found[baseline])
        for kind in found[STUDENT].told
        if (baseline := better_baseline(found, kind)) is not None
    ]
    return rows, tuple(made)


def _facts(run: _Run) -> ComparedRun:
    report = run.opened.report
    known = {} if report is None else report.costs
    return ComparedRun(
        folder=str(run.opened.folder),
        seeds=tuple(int(saved.seed or 0) for saved in run.opened.students),
        baseline=better_baseline(run.found, run.measures[0]),
        costs={name: known[name] for name in run.shown() if name in known},
        conditions="" if report is None else report.conditions,
        trainings=() if report is None else report.trainings,
    )


def _classes(found: Sequence[_Run], labels: np.ndarray, names: Sequence[str]) -> list[Group]:
    """What the second run's student gains in each class over the first's."""
    truth, students = labels[with_label(labels)], {run.name: run.found[STUDENT] for run in found}
    first, second = students
    family = family_of(found[0].task)
    return corrected(
        [
            group_of(name, inside, students, (second, first), paired_seeds=False)
            for c, name in enumerate(names)
            if (inside := family.holds(truth, c)) is not None
        ]
    )


def _notes(found: Sequence[_Run], rows: int, left_out: int) -> list[str]:
    """What a reader must know to trust the figures: what is missing, and what the runs' own verdicts say."""
    notes = []
    if left_out:
        notes.append(
            f"{left_out} of {rows} rows fitted the fusion of one of the runs and are left out for all."
        )
    said: dict[str, list[str]] = {}
    for run in found:
        report = run.opened.report
        own = [] if report is None else report.evaluation.notes
        for note in (*run.opened.notes, *own):
            said.setdefault(note, []).append(run.name)
    return notes + [
        note if len(runs) == len(found) else f"{', '.join(runs)}: {note}" for note, runs in said.items()
    ]


def _timed_apart(systems: Sequence[Compared], runs: Mapping[str, ComparedRun]) -> list[str]:
    """What is left of latencies where runs have a system in common, and timed it differently."""
    for system in systems:
        costs = {run: runs[run].costs.get(system.system) for run in system.runs}
        times = {run: cost.p50 for run, cost in costs.items() if cost is not None and cost.p50}
        if len(times) > 1 and max(times.values()) > _APART * min(times.values()):
            each = ", ".join(f"{1000 * time:.3g} ms in {run}" for run, time in times.items())
            return [
                f"The same {system.system} took {each}, so that latencies of different runs do not compare."
            ]
    return []


def _sentences(found: Sequence[_Run], differences: Sequence[Difference], rows: int) -> list[str]:
    """What came of it, the sentence to quote first."""
    called = found[0].measures[0]
    accuracies = [d for d in differences if d.measure == called]
    students, own = accuracies[: len(found) - 1], accuracies[len(found) - 1 :]
    first, sentences = found[0].name, []
    for run, d in zip(found[1:], students, strict=True):
        points = f"{metric_name(called).partition(',')[0]} {signed_points(d.value)[0]} points ({interval(d.value)})"
        taken = _taken(run, found[0])
        if d.better or d.worse:
            word = "better" if d.better else "worse"
            sentences.append(f"The student of {run.name} is {word} than that of {first}{taken}: {points}.")
        else:
            few = ", on too few of which the answers differ" if d.value.beyond_chance else ""
            sentences.append(
                f"No difference beyond chance between the students of {run.name} and {first} on these {rows:,} rows{few}: "
                f"{points}; {detectable(d)}."
            )
    if len(students) > 1:
        better, worse = (
            ", ".join(run.name for run, d in zip(found[1:], students, strict=True) if getattr(d, kind))
            or "none"
            for kind in ("better", "worse")
        )
        sentences.insert(
            0,
            f"Better than the student of {first} in {called}, beyond chance on these {rows:,} rows: {better}; worse: {worse}; "
            "with several comparisons, one may leave zero out by chance.",
        )
    gains = {d.first: d for d in own}
    sentences += [_gain(run, gains.get(f"{run.name}: {STUDENT}")) for run in found]
    if any(_one_seed(run) for run in found):
        sentences.append(
            "A run of one seed says what its models do, and nothing of how much its trainings vary, so no recipe is judged by it "
            "alone; evaluation.seeds=3 keeps what is trained."
        )
    elif any(len(run.found[STUDENT].metrics) < 5 for run in found):
        sentences.append(
            "Fewer than five seeds say little of the spread between trainings, and the intervals are as wide as that makes them."
        )
    return sentences


def _one_seed(run: _Run) -> bool:
    return len(run.found[STUDENT].metrics) == 1


def _taken(run: _Run, other: _Run) -> str:
    """What a comparison of two runs takes for granted where one seed says nothing of other trainings."""
    if _one_seed(run) and _one_seed(other):
        return ", as these trainings came out"
    if _one_seed(run) or _one_seed(other):
        one, several = (run, other) if _one_seed(run) else (other, run)
        return f", if the trainings of {one.name} vary as much as those of {several.name}"
    return ""


def _gain(of: _Run, d: Difference | None) -> str:
    """What a run's student gained over its own baseline."""
    run = of.name
    if d is None:
        return f"In {run} there is no fine-tuned student to be compared with."
    points = f"{signed_points(d.value)[0]} points ({interval(d.value)})"
    if _one_seed(of):
        what = "better than" if d.better else "worse than" if d.worse else "no different beyond chance from"
        return f"In {run}, of one seed, this student is {what} this baseline: {points}."
    if d.better:
        return f"In {run} distillation gained over its own fine-tuning: {points}."
    if d.worse:
        return f"In {run} distillation lost against its own fine-tuning: {points}."
    return f"In {run} distillation gained nothing beyond chance over its own fine-tuning: {points}; {detectable(d)}."
