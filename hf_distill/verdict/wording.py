"""What people read where files have keys: the names of systems and metrics, and each metric's unit."""

from __future__ import annotations

import math

from ..evaluation.formats import number
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
}


def system_name(role: Role) -> str:
    """What people read of a system.

    Example:
        >>> system_name(Role("together")), system_name(Role("teacher", "bert")), system_name(Role("baseline", "last", True))
        ('student + teachers', 'teacher bert', 'fine-tuned, last step, calibrated')
    """
    return _SYSTEMS[role.kind].format(role.of) + f", {CALIBRATED}" * role.calibrated


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
