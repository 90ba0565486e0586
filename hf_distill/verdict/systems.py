"""The systems of a verdict, built from saved rows, and what each is worth by itself.

Shapes: S seeds, N rows, n labelled rows, K teachers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation.metrics import compute_metric, load_metric
from ..evaluation.statistics import SHARES, Difference, difference, spread
from ..fusion import build_fusion
from ..fusion.alignment import labelled as with_label
from ..tasks import build_task, family_of
from ..tasks.row_scores import ReliabilityBin
from ..tasks.task import Task
from .answers import Answers

STUDENT = "student"
ENSEMBLE = "ensemble"
TEACHER = "teacher:"
"""Before a teacher's name in stored answers."""

CALIBRATED = "calibrated"

_NAMES = {
    "student": STUDENT,
    "baseline": "fine-tuned, {} step",
    "single": "student of {}",
    "exported": "student, {}",
    "ensemble": ENSEMBLE,
    "together": "student+teachers",
    "teacher": TEACHER + "{}",
    "given": "{}",
}


class Role(NamedTuple):
    """What a system is: its name is made of that, and never read.

    Attributes:
        kind: ``student``; ``baseline``, the same student without teachers; ``single``, the student of one teacher;
            ``exported``, the student in another format; ``ensemble``; ``together``, the student with its teachers;
            ``teacher``; or ``given``, a checkpoint that somebody wants the student compared with.
        of: What tells it from others of its kind: the name of a teacher or of a checkpoint, ``last`` or ``best`` step of a
            baseline, the format of an export.
        calibrated: Whether its log-probabilities are divided by a temperature fitted on validation rows.

    Example:
        >>> Role("baseline", "last", calibrated=True).name, Role("teacher", "bert").name
        ('fine-tuned, last step, calibrated', 'teacher:bert')
    """

    kind: str
    of: str = ""
    calibrated: bool = False

    @property
    def name(self) -> str:
        """What tables and sentences call it."""
        return _NAMES[self.kind].format(self.of) + f", {CALIBRATED}" * self.calibrated

    @property
    def small(self) -> bool:
        """Whether it is a training of the student, and costs what the student costs."""
        return self.kind in ("student", "baseline", "single")

    @property
    def costs(self) -> str:
        """The name of the system that costs what it does."""
        return STUDENT if self.small else self._replace(calibrated=False).name


LAST, BEST = (Role("baseline", step).name for step in ("last", "best"))
TOGETHER = Role("together").name


class System(NamedTuple):
    """Whoever answers rows, before anything is measured.

    Attributes:
        role: What it is.
        trainings: One function per seed, which returns log-probabilities (N, C).
        temperatures: T of each seed, where it was calibrated on validation rows.
    """

    role: Role
    trainings: tuple[Callable[[], np.ndarray], ...]
    temperatures: tuple[float, ...] = ()


class Measured(NamedTuple):
    """What a system is worth on the labelled rows.

    Attributes:
        role: What it is.
        metrics: Of each seed.
        predictions: (S, N) classes, or (S, N, C) of each output, on all rows.
        scores: (S, n) by measure, in the order of `Family.measures`: first 1.0 where the answer is right.
        reliability: Confidence against accuracy, over all seeds.
        temperatures: As of the system.
        hits: (S, n) where the answer is the label, or (S, n, C) where it is of each output; None where nobody asked.
    """

    role: Role
    metrics: tuple[dict[str, float], ...]
    predictions: np.ndarray
    scores: Mapping[str, np.ndarray]
    reliability: tuple[ReliabilityBin, ...]
    temperatures: tuple[float, ...]
    hits: np.ndarray | None = None

    @property
    def name(self) -> str:
        """What tables and sentences call it."""
        return self.role.name

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the scores, as of the family: the share that is right first."""
        return tuple(self.scores)

    @property
    def score(self) -> str:
        """The proper score among them."""
        return next(name for name in self.scores if name not in SHARES)

    @property
    def told(self) -> tuple[str, str]:
        """What is told of every comparison: the share that is right, and the proper score."""
        return self.measures[0], self.score

    @property
    def correct(self) -> np.ndarray:
        """(S, n) 1.0 where the answer is right."""
        return self.scores[self.measures[0]]

    def values(self, measure: str) -> np.ndarray:
        """(S, n) of one of the measures."""
        return self.scores[measure]

    def mean(self, measure: str) -> float:
        """Over rows and seeds."""
        return float(self.values(measure).mean())

    def spread(self) -> dict[str, float]:
        """Standard deviation of each metric over the seeds; empty where there is one."""
        found = {name: spread([own[name] for own in self.metrics]) for name in self.metrics[0]}
        return {name: value for name, value in found.items() if value is not None}


def of_kind(found: Mapping[str, Measured], *kinds: str, calibrated: bool = False) -> list[Measured]:
    """The systems of some kinds, in their order.

    Args:
        found: Systems by name.
        kinds: Of `Role`.
        calibrated: Whether calibrated ones are among them.
    """
    return [own for own in found.values() if own.role.kind in kinds and own.role.calibrated <= calibrated]


def gain_over(
    measure: str, names: tuple[str, str], first: Measured, second: Measured, *, paired_seeds: bool = True
) -> Difference:
    """What one system's mean measure is above another's, with its interval.

    Args:
        measure: One that both have.
        names: What tables call the two.
        first: The system.
        second: The other, on the same rows.
        paired_seeds: As of `difference`.
    """
    # A jackknife's values differ a little on all rows, as soon as one answer does.
    apart = _rows_apart(first, second) if measure == "f1" else None
    return difference(
        measure, names, first.values(measure), second.values(measure), paired_seeds=paired_seeds, apart=apart
    )


def _rows_apart(first: Measured, second: Measured) -> int:
    """On how many rows two systems are not right alike, in any label where each is answered alone."""
    several = first.hits is not None and first.hits.ndim == 3
    one, other = ((own.hits if several else own.correct).mean(0) for own in (first, second))
    differ = one != other
    return int((differ.any(-1) if several else differ).sum())


def metric_modules(given: Sequence[Any], task: str | Task = "text-classification") -> list[Any]:
    """The metrics of a verdict: those that are asked for, and those that its task always reports.

    Args:
        given: As for `evaluate_ensemble`.
        task: Whose answers they are of.

    Example:
        >>> [module.name for module in metric_modules(["f1", "nll"])]
        ['f1', 'nll', 'accuracy', 'brier', 'ece', 'agreement', 'kl_to_ensemble']
    """
    modules = [load_metric(metric) for metric in given]
    names = {module.name for module in modules}
    return modules + [load_metric(name) for name in family_of(task).always if name not in names]


def student_systems(
    role: Role,
    trainings: Sequence[Answers],
    validation: Sequence[Answers | None],
    system: str,
    task: str | Task = "text-classification",
) -> list[System]:
    """A system that was trained with several seeds, as it is and, where there are validation rows, calibrated.

    Args:
        role: What it is.
        trainings: What each seed answered.
        validation: What each answered on the validation rows.
        system: Its name in the answers.
        task: Whose answers they are.
    """
    raw = System(role, tuple(_of(answers, system) for answers in trainings))
    temperatures = [_temperature(answers, system, task) for answers in validation]
    fitted = tuple(t for t in temperatures if t is not None)
    if len(fitted) < len(trainings):
        return [raw]
    calibrated = tuple(
        _scaled(training, temperature, task)
        for training, temperature in zip(raw.trainings, fitted, strict=True)
    )
    return [raw, System(role._replace(calibrated=True), calibrated, fitted)]


def fixed_systems(teachers: Answers) -> list[System]:
    """Who was not trained here, in the order of the answers: ensemble, teachers, and checkpoints to compare with."""

    def role(name: str) -> Role:
        if name.startswith(TEACHER):
            return Role("teacher", name.removeprefix(TEACHER))
        return Role("ensemble") if name == ENSEMBLE else Role("given", name)

    return [System(role(name), (_of(teachers, name),)) for name in teachers.log_probs]


def best_teacher(teachers: Answers, task: str | Task = "text-classification") -> str | None:
    """The name of the teacher that is right on most rows, the first of equals; None where none has every class.

    Args:
        teachers: What the teachers answered, as ``teacher:NAME``.
        task: Says what is right.

    Example:
        >>> logs = {"teacher:a": np.log([[0.4, 0.6]]), "teacher:b": np.log([[0.7, 0.3]])}
        >>> best_teacher(Answers(np.array([7]), np.array([0]), logs))
        'b'
    """
    labelled, right, is_right = with_label(teachers.labels), {}, build_task(task).right
    for role, trainings, _ in fixed_systems(teachers):
        logs = trainings[0]()
        # Which classes a teacher has does not depend on the row.
        if role.kind == "teacher" and not np.isneginf(logs).all(0).any():
            right[role.of] = int(is_right(logs[labelled], teachers.labels[labelled]).sum())
    return max(right, key=right.__getitem__) if right else None


def teacher_systems(
    students: Sequence[Answers], teachers: Answers, task: str | Task = "text-classification"
) -> list[System]:
    """Checkpoints to compare with, ensemble, the student of each seed together with its teachers, and teachers."""
    by_kind: dict[str, list[System]] = {"given": [], "ensemble": [], "together": [], "teacher": []}
    for system in fixed_systems(teachers):
        by_kind[system.role.kind].append(system)
    each = [system.trainings[0]() for system in by_kind["teacher"]]
    by_kind["together"] = [System(Role("together"), tuple(_together(own, each, task) for own in students))]
    return [system for systems in by_kind.values() for system in systems]


def _of(answers: Answers, system: str) -> Callable[[], np.ndarray]:
    return lambda: answers.log_probs[system]


def _scaled(
    training: Callable[[], np.ndarray], temperature: float, task: str | Task
) -> Callable[[], np.ndarray]:
    return lambda: family_of(task).tempered(training(), temperature)


def _together(answers: Answers, teachers: Sequence[np.ndarray], task: str | Task) -> Callable[[], np.ndarray]:
    def log_probs() -> np.ndarray:
        stacked = torch.from_numpy(np.stack([answers.log_probs[STUDENT], *teachers]))
        # Which classes a system has does not depend on the row.
        has = (stacked > -torch.inf).any(1, keepdim=True).expand(stacked.shape)
        return build_fusion(family_of(task).pooled)(stacked, mask=None if has.all() else has).numpy()

    return log_probs


def _temperature(answers: Answers | None, system: str, task: str | Task) -> float | None:
    if answers is None or not (known := with_label(answers.labels)).any():
        return None
    return family_of(task).temperature(answers.log_probs[system][known], answers.labels[known])


def measure(
    system: System,
    labels: np.ndarray,
    ensemble: np.ndarray | None,
    modules: Sequence[Any],
    task: str | Task,
) -> Measured:
    """What one system is worth, seed by seed: only one seed's probabilities are in memory at a time.

    Args:
        system: The system.
        labels: (N,) class indices, -100 where a row has none; or (N, C) numbers, NaN where it has none.
        ensemble: (N, C) what the ensemble says; None where there is none.
        modules: Of `metric_modules`.
        task: Its name, or the task; it says what is right.
    """
    is_right, family = build_task(task).right, family_of(task)
    labelled = with_label(labels)
    truth = labels[labelled]
    metrics, predictions, sure, right, hits = [], [], [], [], []
    scores: dict[str, list[np.ndarray]] = {name: [] for name in family.measures}
    for training in system.trainings:
        logs = np.asarray(training(), dtype=np.float64)
        found: dict[str, float] = {}
        for module in modules:
            if getattr(module, "references_from", "labels") == "ensemble" and (
                ensemble is None or system.role.kind == "ensemble"
            ):
                continue
            found |= compute_metric(
                module, log_probs=logs, labels=labels, ensemble_log_probs=ensemble, family=family
            )
        predictions.append(family.predictions(logs))
        own = logs[labelled]
        hits.append(predictions[-1][labelled] == family.truth(truth))
        each = (is_right(own, truth), *family.scores(own, truth))
        for name, values in zip(family.measures, each, strict=True):
            scores[name].append(np.asarray(values, dtype=np.float64))
            if modules:
                found.setdefault(name, float(scores[name][-1].mean()))
        metrics.append(found)
        sure.append(own)
        right.append(truth)
    return Measured(
        system.role,
        tuple(metrics),
        np.stack(predictions),
        {name: np.stack(values) for name, values in scores.items()},
        tuple(family.reliability(np.concatenate(sure), np.concatenate(right))),
        system.temperatures,
        np.stack(hits),
    )


def means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric over the seeds."""
    return {name: float(np.mean([own[name] for own in metrics])) for name in metrics[0]}
