"""Which task labels and teachers look like, for whoever has to write it down: a recipe that is begun, never one that runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from . import TASKS
from .multi_label import MultiLabel
from .regression import Regression
from .text_classification import TextClassification


def likely_task(labels: Iterable[Any], problem_types: Iterable[str | None] = ()) -> str:
    """The name of the built-in task that labels are of.

    Args:
        labels: Some rows' labels as they are written, None where there is none.
        problem_types: What the configs of teachers say; it counts where they agree and the labels could be classes.

    Example:
        >>> likely_task([0, 3, None]), likely_task(["2.5", 4.0]), likely_task([["joy"], []])
        ('text-classification', 'regression', 'multi-label-classification')
        >>> likely_task([0, 3], ["regression", None])
        'regression'
    """
    labels = [label for label in labels if label is not None]
    listed = [item for label in labels if isinstance(label, list) for item in label]
    if any(isinstance(label, list) for label in labels):
        votes = all(isinstance(item, (str, int)) or 0 <= item <= 1 for item in listed)
        return (MultiLabel() if votes else Regression()).name
    if any(_is_no_id(label) for label in labels) and all(map(_is_number, labels)):
        return Regression().name
    said = {kind for kind in problem_types if kind}
    fitting = [name for name, task in TASKS.items() if {task.head(("a", "b")).get("problem_type")} == said]
    return fitting[0] if fitting else TextClassification().name


def _is_number(label: Any) -> bool:
    try:
        return math.isfinite(float(label))
    except (TypeError, ValueError):
        return False


def _is_no_id(label: Any) -> bool:
    """Whether it is a number that cannot be the place of a class."""
    return _is_number(label) and (float(label) != int(float(label)) or float(label) < -1)
