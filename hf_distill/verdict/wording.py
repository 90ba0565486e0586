"""What people read where files have keys: the names of systems and metrics, and each metric's unit."""

from __future__ import annotations

import math
from collections.abc import Collection

from ..evaluation.formats import number
from ..tasks import FAMILIES, known_family
from .systems import CALIBRATED, Role

_SYSTEMS = {
    "student": "distilled student",
    "baseline": "fine-tuned, {} step",
    "single": "student of {} alone",
    "exported": "distilled student, {}",
    "ensemble": "ensemble",
    "together": "student + teachers",
    "teacher": "teacher {}",
    "given": "{}",
}

# Name and unit; what is not here is called as it is. Shares are written in percent, so that a page has one unit.
_METRICS = {
    "accuracy": ("accuracy", "%"),
    "f1": ("macro F1", "%"),
    "precision": ("macro precision", "%"),
    "recall": ("macro recall", "%"),
    "matthews_correlation": ("Matthews correlation", ""),
    "nll": ("NLL", "nats"),
    "brier": ("Brier score", ""),
    "ece": ("calibration error", "%"),
    "agreement": ("agreement with the ensemble", "%"),
    "kl_to_ensemble": ("divergence from the ensemble", "nats"),
    "f1_micro": ("micro F1", "%"),
    "label_nll": ("NLL per label", "nats"),
    "label_brier": ("Brier score per label", ""),
    "label_agreement": ("agreement with the ensemble per label", "%"),
    "within": ("within the tolerance", "%"),
    "squared_error": ("squared error", "label units²"),
    "absolute_error": ("absolute error", "label units"),
    "pearson": ("Pearson correlation", ""),
    "spearman": ("Spearman correlation", ""),
    "mse": ("mean squared error", "label units²"),
    "mae": ("mean absolute error", "label units"),
    "correlation_with_ensemble": ("correlation with the ensemble", ""),
}

SCORES = {"nll": ("NLL", "probabilities"), "squared_error": ("squared error", "numbers")}
"""What a proper score is called in a sentence, and what it is of."""


def system_name(role: Role) -> str:
    """What people read of a system.

    Example:
        >>> system_name(Role("together")), system_name(Role("teacher", "bert")), system_name(Role("baseline", "last", True))
        ('student + teachers', 'teacher bert', 'fine-tuned, last step, calibrated')
    """
    return _SYSTEMS[role.kind].format(role.of) + f", {CALIBRATED}" * role.calibrated


def told_first(metrics: Collection[str]) -> tuple[str, str]:
    """Which two of a system's metrics are told where there is room for two: the share that is right, and the proper score.

    Args:
        metrics: All of its metrics; whose measures are among them, of that family its answers are.

    Example:
        >>> told_first(["accuracy", "f1", "nll"]), told_first(["mse", "within", "squared_error"])
        (('accuracy', 'nll'), ('within', 'squared_error'))
    """
    pairs = [(family.measures[0], family.proper) for family in FAMILIES.values()]
    return next((pair for pair in pairs if set(pair) <= set(metrics)), pairs[0])


def score_explained(score: str) -> str:
    """What a proper score means, as a sentence.

    Example:
        >>> score_explained("squared_error")
        'Squared error: how far the numbers are from the labels; less is better.'
    """
    called, what_of = SCORES[score]
    return f"{called[0].upper()}{called[1:]}: how far the {what_of} are from the labels; less is better."


def outputs_of(task: str, count: int) -> str:
    """How many outputs a task's head has, by what they are.

    Example:
        >>> outputs_of("text-classification", 3), outputs_of("regression", 1), outputs_of("my-own", 2)
        ('3 classes', '1 score', '2 outputs')
    """
    family = known_family(task)
    one, several = ("output", "outputs") if family is None else family.output
    return f"{count} {one if count == 1 else several}"


def metric_name(metric: str) -> str:
    """What people read of a metric, with its unit.

    Example:
        >>> metric_name("kl_to_ensemble"), metric_name("ece"), metric_name("my_own")
        ('divergence from the ensemble, nats', 'calibration error, %', 'my own')
    """
    name, unit = _METRICS.get(metric, (metric.replace("_", " "), ""))
    return f"{name}, {unit}" if unit else name


def metric_value(metric: str, value: float | None, deviation: float | None = None) -> str:
    """A metric in its unit, and what it varies by over the seeds where there are several.

    Example:
        >>> metric_value("accuracy", 0.7182, 0.0041), metric_value("nll", 0.8882)
        ('71.8 ± 0.4', '0.888')
    """
    in_percent = _METRICS.get(metric, ("", ""))[1] == "%"
    scale, digits = (100, 1) if in_percent else (1, 3)
    if value is None or math.isnan(value):
        return "–"
    shown = number(scale * value, digits)
    return shown if deviation is None else f"{shown} ± {number(scale * deviation, digits)}"
