"""The systems of a verdict, built from saved rows, and what each is worth by itself.

Shapes: S seeds, N rows, n labelled rows, K teachers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation.metrics import compute_metric, load_metric
from ..evaluation.statistics import (
    Difference,
    ReliabilityBin,
    brier_rows,
    difference,
    nll_rows,
    reliability_bins,
    spread,
)
from ..evaluation.variances import f1_values
from ..fusion import LinearPool, fit_temperature
from ..fusion.alignment import UNLABELLED
from ..tasks import build_task
from .answers import Answers

JUDGED = ("accuracy", "f1", "nll", "brier")
"""The measures that differences are told in; f1 is the macro-F1."""

STUDENT = "student"
ENSEMBLE = "ensemble"
TEACHER = "teacher:"
"""Before a teacher's name in stored answers."""

CALIBRATED = "calibrated"

# What every verdict says, whatever else a recipe asks for.
MEASURES = ("nll", "brier", "ece", "agreement", "kl_to_ensemble")

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
        predictions: (S, N) classes, on all rows.
        correct: (S, n) 1.0 where the answer is the label.
        f1: (S, n) values whose mean is the macro-F1, by jackknife over rows.
        nll: (S, n) −ln p(label).
        brier: (S, n) Σ_c (p_c − [c = label])².
        reliability: Confidence against accuracy, over all seeds.
        temperatures: As of the system.
    """

    role: Role
    metrics: tuple[dict[str, float], ...]
    predictions: np.ndarray
    correct: np.ndarray
    f1: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    reliability: tuple[ReliabilityBin, ...]
    temperatures: tuple[float, ...]

    @property
    def name(self) -> str:
        """What tables and sentences call it."""
        return self.role.name

    def values(self, measure: str) -> np.ndarray:
        """(S, n) of one of `JUDGED`."""
        return {"accuracy": self.correct, "f1": self.f1, "nll": self.nll, "brier": self.brier}[measure]

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
        measure: One of `JUDGED`.
        names: What tables call the two.
        first: The system.
        second: The other, on the same rows.
        paired_seeds: As of `difference`.
    """
    # A jackknife's values differ a little on all rows, as soon as one answer does.
    apart = int((first.correct.mean(0) != second.correct.mean(0)).sum()) if measure == "f1" else None
    return difference(
        measure, names, first.values(measure), second.values(measure), paired_seeds=paired_seeds, apart=apart
    )


def metric_modules(given: Sequence[Any]) -> list[Any]:
    """The metrics of a verdict: those that are asked for, and `MEASURES`.

    Example:
        >>> [module.name for module in metric_modules(["f1", "nll"])]
        ['f1', 'nll', 'accuracy', 'brier', 'ece', 'agreement', 'kl_to_ensemble']
    """
    modules = [load_metric(metric) for metric in given]
    names = {module.name for module in modules}
    return modules + [load_metric(name) for name in ("accuracy", *MEASURES) if name not in names]


def student_systems(
    role: Role, trainings: Sequence[Answers], validation: Sequence[Answers | None], system: str
) -> list[System]:
    """A system that was trained with several seeds, as it is and, where there are validation rows, calibrated.

    Args:
        role: What it is.
        trainings: What each seed answered.
        validation: What each answered on the validation rows.
        system: Its name in the answers.
    """
    raw = System(role, tuple(_of(answers, system) for answers in trainings))
    temperatures = [_temperature(answers, system) for answers in validation]
    fitted = tuple(t for t in temperatures if t is not None)
    if len(fitted) < len(trainings):
        return [raw]
    calibrated = tuple(
        _scaled(training, temperature) for training, temperature in zip(raw.trainings, fitted, strict=True)
    )
    return [raw, System(role._replace(calibrated=True), calibrated, fitted)]


def fixed_systems(teachers: Answers) -> list[System]:
    """Who was not trained here, in the order of the answers: ensemble, teachers, and checkpoints to compare with."""

    def role(name: str) -> Role:
        if name.startswith(TEACHER):
            return Role("teacher", name.removeprefix(TEACHER))
        return Role("ensemble") if name == ENSEMBLE else Role("given", name)

    return [System(role(name), (_of(teachers, name),)) for name in teachers.log_probs]


def best_teacher(teachers: Answers) -> str | None:
    """The name of the teacher that is right on most rows, the first of equals; None where none has every class.

    Args:
        teachers: What the teachers answered, as ``teacher:NAME``.

    Example:
        >>> logs = {"teacher:a": np.log([[0.4, 0.6]]), "teacher:b": np.log([[0.7, 0.3]])}
        >>> best_teacher(Answers(np.array([7]), np.array([0]), logs))
        'b'
    """
    labelled, right = teachers.labels != UNLABELLED, {}
    for role, trainings, _ in fixed_systems(teachers):
        logs = trainings[0]()
        # Which classes a teacher has does not depend on the row.
        if role.kind == "teacher" and not np.isneginf(logs).all(0).any():
            right[role.of] = int((logs.argmax(1) == teachers.labels)[labelled].sum())
    return max(right, key=right.__getitem__) if right else None


def teacher_systems(students: Sequence[Answers], teachers: Answers) -> list[System]:
    """Checkpoints to compare with, ensemble, the student of each seed together with its teachers, and teachers."""
    by_kind: dict[str, list[System]] = {"given": [], "ensemble": [], "together": [], "teacher": []}
    for system in fixed_systems(teachers):
        by_kind[system.role.kind].append(system)
    each = [system.trainings[0]() for system in by_kind["teacher"]]
    by_kind["together"] = [System(Role("together"), tuple(_together(own, each) for own in students))]
    return [system for systems in by_kind.values() for system in systems]


def _of(answers: Answers, system: str) -> Callable[[], np.ndarray]:
    return lambda: answers.log_probs[system]


def _scaled(training: Callable[[], np.ndarray], temperature: float) -> Callable[[], np.ndarray]:
    return lambda: torch.log_softmax(torch.from_numpy(training()) / temperature, -1).numpy()


def _together(answers: Answers, teachers: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
    def log_probs() -> np.ndarray:
        stacked = torch.from_numpy(np.stack([answers.log_probs[STUDENT], *teachers]))
        # Which classes a system has does not depend on the row.
        has = (stacked > -torch.inf).any(1, keepdim=True).expand(stacked.shape)
        return LinearPool()(stacked, mask=None if has.all() else has).numpy()

    return log_probs


def _temperature(answers: Answers | None, system: str) -> float | None:
    if answers is None or not (answers.labels != UNLABELLED).any():
        return None
    return fit_temperature(
        torch.from_numpy(answers.log_probs[system]), torch.from_numpy(answers.labels.astype(np.int64))
    )


def measure(
    system: System, labels: np.ndarray, ensemble: np.ndarray | None, modules: Sequence[Any], task: str
) -> Measured:
    """What one system is worth, seed by seed: only one seed's probabilities are in memory at a time.

    Args:
        system: The system.
        labels: (N,) class indices, -100 where a row has none.
        ensemble: (N, C) log-probabilities of the ensemble; None where there is none.
        modules: Of `metric_modules`.
        task: The task's name; it says what is right.
    """
    is_right = build_task(task).right
    labelled = labels != UNLABELLED
    truth = labels[labelled]
    metrics, predictions, correct, f1, nll, brier, sure, right = [], [], [], [], [], [], [], []
    for training in system.trainings:
        logs = np.asarray(training(), dtype=np.float64)
        found: dict[str, float] = {}
        for module in modules:
            if getattr(module, "references_from", "labels") == "ensemble" and (
                ensemble is None or system.role.kind == "ensemble"
            ):
                continue
            found |= compute_metric(module, log_probs=logs, labels=labels, ensemble_log_probs=ensemble)
        metrics.append(found)
        predictions.append(logs.argmax(1))
        own = logs[labelled]
        correct.append(is_right(own, truth))
        f1.append(f1_values(own.argmax(1), truth, own.shape[1]))
        nll.append(nll_rows(own, truth))
        brier.append(brier_rows(own, truth))
        sure.append(own)
        right.append(truth)
    return Measured(
        system.role,
        tuple(metrics),
        np.stack(predictions),
        np.stack(correct).astype(np.float64),
        np.stack(f1),
        np.stack(nll),
        np.stack(brier),
        tuple(reliability_bins(np.concatenate(sure), np.concatenate(right))),
        system.temperatures,
    )


def means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric over the seeds."""
    return {name: float(np.mean([own[name] for own in metrics])) for name in metrics[0]}
