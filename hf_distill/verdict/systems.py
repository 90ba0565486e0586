"""The systems of a verdict, built from saved rows, and what each is worth by itself.

Shapes: S seeds, N rows, n labelled rows, K teachers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation.metrics import compute_metric, load_metric
from ..evaluation.statistics import ReliabilityBin, brier_rows, nll_rows, reliability_bins
from ..fusion import LinearPool, fit_temperature
from ..fusion.alignment import UNLABELLED
from .answers import Answers

STUDENT = "student"
ENSEMBLE = "ensemble"
TOGETHER = "student+teachers"
TEACHER = "teacher:"
LAST = "fine-tuned, last step"
BEST = "fine-tuned, best step"
CALIBRATED = ", calibrated"
ALONE = "student of "
"""Before the name of the one teacher that a student learnt from alone."""

# What every verdict says, whatever else a recipe asks for.
MEASURES = ("nll", "brier", "ece", "agreement", "kl_to_ensemble")


class System(NamedTuple):
    """Whoever answers rows, before anything is measured.

    Attributes:
        name: What the report calls it.
        trainings: One function per seed, which returns log-probabilities (N, C).
        temperatures: T of each seed, where it was calibrated on validation rows.
    """

    name: str
    trainings: tuple[Callable[[], np.ndarray], ...]
    temperatures: tuple[float, ...] = ()


class Measured(NamedTuple):
    """What a system is worth on the labelled rows.

    Attributes:
        name: What the report calls it.
        metrics: Of each seed.
        predictions: (S, N) classes, on all rows.
        correct: (S, n) 1.0 where the answer is the label.
        nll: (S, n) −ln p(label).
        brier: (S, n) Σ_c (p_c − [c = label])².
        reliability: Confidence against accuracy, over all seeds.
        temperatures: As of the system.
    """

    name: str
    metrics: tuple[dict[str, float], ...]
    predictions: np.ndarray
    correct: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    reliability: tuple[ReliabilityBin, ...]
    temperatures: tuple[float, ...]

    def values(self, measure: str) -> np.ndarray:
        """(S, n) of ``accuracy``, ``nll`` or ``brier``."""
        return {"accuracy": self.correct, "nll": self.nll, "brier": self.brier}[measure]

    def mean(self, measure: str) -> float:
        """Over rows and seeds."""
        return float(self.values(measure).mean())


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
    name: str, trainings: Sequence[Answers], validation: Sequence[Answers | None], system: str
) -> list[System]:
    """A system that was trained with several seeds, as it is and, where there are validation rows, calibrated.

    Args:
        name: What the report calls it.
        trainings: What each seed answered.
        validation: What each answered on the validation rows.
        system: Its name in the answers.
    """
    raw = System(name, tuple(_of(answers, system) for answers in trainings))
    temperatures = [_temperature(answers, system) for answers in validation]
    fitted = tuple(t for t in temperatures if t is not None)
    if len(fitted) < len(trainings):
        return [raw]
    calibrated = tuple(
        _scaled(training, temperature) for training, temperature in zip(raw.trainings, fitted, strict=True)
    )
    return [raw, System(name + CALIBRATED, calibrated, fitted)]


def best_teacher(teachers: Answers) -> str | None:
    """The name of the teacher that is right on most rows, the first of equals; None where none has every class.

    Args:
        teachers: What the teachers answered, as ``teacher:NAME``.

    Example:
        >>> logs = {"teacher:a": np.log([[0.4, 0.6]]), "teacher:b": np.log([[0.7, 0.3]])}
        >>> best_teacher(Answers(np.array([7]), np.array([0]), logs))
        'b'
    """
    labelled = teachers.labels != UNLABELLED
    right = {
        name.removeprefix(TEACHER): int((logs.argmax(1) == teachers.labels)[labelled].sum())
        for name, logs in teachers.log_probs.items()
        # Which classes a teacher has does not depend on the row.
        if name.startswith(TEACHER) and not np.isneginf(logs).all(0).any()
    }
    return max(right, key=right.__getitem__) if right else None


def is_small(name: str) -> bool:
    """Whether a system is a training of the student, and costs what the student costs.

    Example:
        >>> is_small("student of bert"), is_small("fine-tuned, last step, calibrated"), is_small("ensemble")
        (True, True, False)
    """
    name = name.removesuffix(CALIBRATED)
    return name in (STUDENT, LAST, BEST) or name.startswith(ALONE)


def teacher_systems(students: Sequence[Answers], teachers: Answers) -> list[System]:
    """Ensemble and teachers, and the student of each seed together with its teachers."""
    names = [name for name in teachers.log_probs if name.startswith(TEACHER)]
    fixed = [
        System(name, (_of(teachers, name),)) for name in (ENSEMBLE, *names) if name in teachers.log_probs
    ]
    each = [teachers.log_probs[name] for name in names]
    together = System(TOGETHER, tuple(_together(answers, each) for answers in students))
    return [*fixed[:1], together, *fixed[1:]]


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
    system: System, labels: np.ndarray, ensemble: np.ndarray | None, modules: Sequence[Any]
) -> Measured:
    """What one system is worth, seed by seed: only one seed's probabilities are in memory at a time.

    Args:
        system: The system.
        labels: (N,) class indices, -100 where a row has none.
        ensemble: (N, C) log-probabilities of the ensemble; None where there is none.
        modules: Of `metric_modules`.
    """
    labelled = labels != UNLABELLED
    truth = labels[labelled]
    metrics, predictions, correct, nll, brier, sure, right = [], [], [], [], [], [], []
    for training in system.trainings:
        logs = np.asarray(training(), dtype=np.float64)
        found: dict[str, float] = {}
        for module in modules:
            if getattr(module, "references_from", "labels") == "ensemble" and (
                ensemble is None or system.name == ENSEMBLE
            ):
                continue
            found |= compute_metric(module, log_probs=logs, labels=labels, ensemble_log_probs=ensemble)
        metrics.append(found)
        predictions.append(logs.argmax(1))
        own = logs[labelled]
        correct.append(own.argmax(1) == truth)
        nll.append(nll_rows(own, truth))
        brier.append(brier_rows(own, truth))
        sure.append(own)
        right.append(truth)
    return Measured(
        system.name,
        tuple(metrics),
        np.stack(predictions),
        np.stack(correct).astype(np.float64),
        np.stack(nll),
        np.stack(brier),
        tuple(reliability_bins(np.concatenate(sure), np.concatenate(right))),
        system.temperatures,
    )


def means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric over the seeds."""
    return {name: float(np.mean([own[name] for own in metrics])) for name in metrics[0]}
