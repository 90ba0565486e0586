"""What differs between tasks, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Task:
    """One task of the Hub, described rather than programmed.

    Args:
        name: The task's name on the Hub, which is also the name of its pipeline.
        auto_class: The `transformers` auto class that loads a model with the task's head.
        architecture: What the class name of such a model contains; a checkpoint saved by another
            class has another head and is refused.
        family: How predictions are distributed. ``categorical``: one of C classes per unit.
        text_columns: The columns that hold the text where the user names none.
        metrics: The metrics of a report where the user names none (names of `hf_distill.evaluation.metrics.METRICS`).

    Example:
        >>> from hf_distill import TASKS
        >>> TASKS["text-classification"].auto_class
        'AutoModelForSequenceClassification'
    """

    name: str
    auto_class: str
    architecture: str
    family: Literal["categorical"]
    text_columns: tuple[str, ...]
    metrics: tuple[str, ...]


TASKS = {
    "text-classification": Task(
        name="text-classification",
        auto_class="AutoModelForSequenceClassification",
        architecture="ForSequenceClassification",
        family="categorical",
        text_columns=("text",),
        metrics=("accuracy", "f1", "nll", "brier", "ece", "agreement"),
    ),
}
