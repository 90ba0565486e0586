"""The seam between tasks: all that the rest of the package asks of one.

Shapes: N prediction units, C outputs of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import datasets
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig

from ..errors import DataError
from ..fusion.alignment import is_generic
from ..rows.content import Content
from ..rows.labels import LabelReader


class Task(Protocol):
    """What differs between tasks; no other room asks which task it is.

    Attributes:
        name: What users call it.
        pipeline: The pipeline of `transformers` by which the finished student is asked, and by which the Hub sorts it.
        auto_class: The `transformers` auto class that loads a model with the task's head.
        architecture: What the class name of such a model contains; a checkpoint saved by another class has another
            head and is refused.
        peft_type: What `peft` calls the task; None: it knows no adapters for it.
        family: How predictions are distributed, a name of `FAMILIES`. ``categorical``: one of C classes per unit;
            ``bernoulli``: C labels that each hold or not; ``gaussian``: C numbers. What follows from it alone is a `Family`'s.
        content: What rows hold for models to read: text, images…; it says how it is read, known and told.
        text_columns: The columns that hold it where the user names none.
        metrics: The metrics of a report where the user names none (names of `hf_distill.evaluation.metrics.METRICS`).
        loss: The distillation loss where the user names none (a name of `ALL_LOSSES`).
        fusion: The fusion of teachers for whom nothing is fitted, where the user names none (a name of
            `ALL_FUSIONS`).

    Example:
        >>> from hf_distill import TASKS
        >>> TASKS["text-classification"].auto_class
        'AutoModelForSequenceClassification'
    """

    name: str
    pipeline: str
    auto_class: str
    architecture: str
    peft_type: str | None
    family: Literal["categorical", "bernoulli", "gaussian"]
    content: Content
    text_columns: tuple[str, ...]
    metrics: tuple[str, ...]
    loss: str
    fusion: str

    def label_names(
        self,
        given: Sequence[str] | None,
        dataset: datasets.Dataset | datasets.IterableDataset | None,
        label_column: str,
        config: PretrainedConfig | None,
    ) -> tuple[str, ...]:
        """The names of the student's outputs, in the order of its logits.

        Args:
            given: What the caller says, or None.
            dataset: Raw rows, training rows where there are some.
            label_column: The column of the labels.
            config: The student's config, where there is one already.

        Raises:
            DataError: Nothing names them, or what does cannot be meant.
        """

    def label_reader(self, label_column: str, label_names: Sequence[str]) -> LabelReader:
        """How raw labels become what a batch holds of them.

        Args:
            label_column: The column of the labels.
            label_names: What `label_names` returned.
        """

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """What the config of a model with a head for these outputs says of them, ``num_labels`` included."""

    def refuse_other_head(self, config: PretrainedConfig, what: str) -> None:
        """Refuse a head of the task's class that was made for something else.

        Args:
            config: Of the model.
            what: Who it is, for messages.

        Raises:
            DataError: It is so.
        """

    def refuse_other_labels(self, config: PretrainedConfig, label_names: Sequence[str], what: str) -> None:
        """Refuse a head that was trained for other outputs, or another order of them.

        Args:
            config: Of the model.
            label_names: The outputs that are wanted, in their order.
            what: Who it is, for messages.

        Raises:
            DataError: It is so.
        """

    def label_loss(self, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """What is learnt from the labels; a task of classes also takes ``class_weights=``, (C,), where the user gives some.

        Args:
            logits: (N, C).
            labels: (N,) class ids, -100 where a unit has none; or (N, C) numbers, NaN where it has none.
            label_smoothing: As in `TrainingArguments`.

        Returns:
            (N,), 0 where a unit has no label.
        """

    def log_probs(self, logits: Tensor) -> Tensor:
        """(N, C) what a model says of each unit, from its logits (N, C): log-probabilities of classes, log-odds of labels that
        each hold or not, or numbers, by the family."""

    def right(self, log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,) whether an answer is right: what paired tests compare.

        Args:
            log_probs: (N, C).
            labels: (N,) or (N, C), each unit labelled.
        """


def head_config(label_names: Sequence[str], problem_type: str) -> dict[str, Any]:
    """What a model's config says of a head with an output per name.

    Args:
        label_names: In the order of its logits.
        problem_type: What `transformers` calls the task; pipelines go by it.

    Example:
        >>> head_config(["score"], "regression")
        {'num_labels': 1, 'id2label': {0: 'score'}, 'label2id': {'score': 0}, 'problem_type': 'regression'}
    """
    ids = dict(enumerate(label_names))
    return {
        "num_labels": len(ids),
        "id2label": ids,
        "label2id": {name: i for i, name in ids.items()},
        "problem_type": problem_type,
    }


def output_names(config: PretrainedConfig) -> tuple[str, ...]:
    """The names that a model's config gives its outputs, in the order of its logits.

    Example:
        >>> output_names(bert.config)
        ('negative', 'positive')
    """
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def refuse_contradiction(config: PretrainedConfig, what: str, way_out: str) -> None:
    """Refuse a config whose two tables of labels disagree: nothing says which of them was trained.

    Args:
        config: Of the model.
        what: Who it is, for messages.
        way_out: The argument that says how it is.

    Raises:
        DataError: It is so.
    """
    ids = config.label2id or {}
    if any(is_generic(str(name)) for name in (*ids, *config.id2label.values())):
        return  # transformers' placeholders, which stay in one table where only the other is set
    for name, i in ids.items():
        if str(config.id2label.get(int(i))) != str(name):
            raise DataError(
                f"{what}: its config's label2id gives {str(name)!r} the number {i}, which id2label calls "
                f"{config.id2label.get(int(i))!r}: correct the config, or name the labels in the order of its logits with {way_out}."
            )
