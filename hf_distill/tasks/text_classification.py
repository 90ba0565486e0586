"""One of C classes for every text or pair of texts.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from ..errors import DataError
from ..fusion.alignment import UNLABELLED, LabelMap, find_label, is_generic
from ..lookup import suggest
from ..losses.distributions import cross_entropy
from ..rows.labels import LabelReader
from .task import output_names


@dataclass(frozen=True)
class TextClassification:
    """The task ``text-classification``; see `Task` for what each attribute and method means.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["pos", "neg"]})
        >>> TextClassification().label_names(None, rows, "label", None)
        ('neg', 'pos')
    """

    name: str = "text-classification"
    pipeline: str = "text-classification"
    auto_class: str = "AutoModelForSequenceClassification"
    architecture: str = "ForSequenceClassification"
    peft_type: str = "SEQ_CLS"
    unit: Literal["row"] = "row"
    family: Literal["categorical"] = "categorical"
    text_columns: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ("accuracy", "f1", "nll", "brier", "ece", "agreement")
    loss: str = "forward_kl"
    fusion: str = "linear_pool"

    def label_names(
        self,
        given: Sequence[str] | None,
        dataset: datasets.Dataset | datasets.IterableDataset | None,
        label_column: str,
        config: PretrainedConfig | None,
    ) -> tuple[str, ...]:
        """The names of the classes, in the order of the student's logits.

        They come, in this order, from the caller, the dataset's `ClassLabel`, the student's config where it does not
        hold the placeholders ``LABEL_i``, and the sorted strings of the column.

        Raises:
            DataError: Nothing names the labels, fewer than two, or names given twice.
        """
        names = _found_names(given, dataset, label_column, config)
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(
                f"The student's label names are {list(names)}: at least two are needed, all different."
            )
        return names

    def label_reader(self, label_column: str, label_names: Sequence[str]) -> LabelReader:
        """Class indices, read from names, from ids of a `ClassLabel`, or from numbers; see `label_encoder`."""
        encoder = functools.partial(label_encoder, label_names=label_names, label_column=label_column)
        return LabelReader(label_column, list(label_names), encoder)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One logit per class, by name."""
        return {
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: i for i, name in enumerate(label_names)},
            "problem_type": "single_label_classification",
        }

    def refuse_other_head(self, config: PretrainedConfig, what: str) -> None:
        """Refuse heads for scores and for several labels at once, which are of the same class."""
        if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
            kind = config.problem_type or "one output, which is regression"
            raise DataError(
                f"{what}: its head is for another task ({kind}; {config.num_labels} output(s)), but {self.name} here "
                "means one of several classes per row."
            )

    def refuse_other_labels(self, config: PretrainedConfig, label_names: Sequence[str], what: str) -> None:
        """Refuse a head that was trained for the same labels in another order: it would have to learn to swap them."""
        own = output_names(config)
        if any(is_generic(name) for name in own):
            return
        try:
            identity = LabelMap.match(own, label_names, teacher=what).is_identity
        except DataError as error:
            raise DataError(
                f"{what}: its head was trained for the labels {list(own)}, the data has {list(label_names)}: correct "
                "label_names=, or, to train a fresh head, give the checkpoint's body with unnamed labels "
                f"(from_pretrained(…, num_labels={len(label_names)}, id2label=…))."
            ) from error
        if not identity:
            raise DataError(
                f"{what}: its head answers in the order {list(own)}, the data in the order {list(label_names)}: "
                f"pass label_names={list(own)}, and the data's labels are matched to it by name."
            )

    def label_loss(self, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The cross-entropy with the labels."""
        return cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Their softmax."""
        return F.log_softmax(logits, -1)

    def right(self, log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether the most likely class is the label."""
        return log_probs.argmax(1) == labels


def _found_names(
    given: Sequence[str] | None,
    dataset: datasets.Dataset | datasets.IterableDataset | None,
    label_column: str,
    config: PretrainedConfig | None,
) -> tuple[str, ...]:
    if given is not None:
        if isinstance(given, str):
            raise DataError(f"label_names is the single text {given!r}: give a list of names.")
        return tuple(str(name) for name in given)
    feature = ((dataset.features if dataset is not None else None) or {}).get(label_column)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if config is not None and not any(is_generic(name) for name in output_names(config)):
        return output_names(config)
    found = "there is no such column"
    if isinstance(dataset, datasets.Dataset) and label_column in dataset.column_names:
        values = set(dataset.unique(label_column)) - {None}
        if values and all(isinstance(value, str) for value in values):
            return tuple(sorted(values))
        found = f"it holds {sorted(map(str, values))[:5]}"
    raise DataError(
        f"Nothing names the student's labels: no label_names=, no ClassLabel in column {label_column!r} ({found}), and "
        'the student\'s config has only placeholders. Pass label_names=["…", "…"], in the order of the label ids.'
    )


def label_encoder(
    feature: Any, label_names: Sequence[str], label_column: str
) -> Callable[[Sequence[Any], Sequence[int]], list[int]]:
    """A function from raw labels to the student's ids.

    Names are matched as teachers' labels are; ids of a `ClassLabel` by their names; other integers are ids already.

    Args:
        feature: The column's feature.
        label_names: The student's label names.
        label_column: The column's name, for messages.

    Returns:
        ``encode(values, row_numbers) -> ids``; -100 where a row has no label (None, NaN, -100, a ClassLabel's -1).

    Raises:
        DataError: At once for class names the student lacks; from ``encode`` for a value that is no label.
    """
    by_name = functools.cache(functools.partial(find_label, labels=tuple(label_names)))
    is_class = isinstance(feature, datasets.ClassLabel)
    if is_class and tuple(feature.names) != tuple(label_names):
        matched = LabelMap.match(feature.names, label_names, teacher=f"(column {label_column!r})")
        if matched.ignored:
            raise DataError(
                f"Column {label_column!r} has the classes {list(matched.ignored)}, which are not among the student's "
                f"labels {list(label_names)}: add them to label_names=, or remove their rows."
            )
        ids = {column: i for i, column in enumerate(matched.columns) if column is not None}
    else:
        ids = {i: i for i in range(len(label_names))}

    def encode_one(value: Any, row: int) -> int:
        if value is None or value == UNLABELLED or (isinstance(value, float) and math.isnan(value)):
            return UNLABELLED
        if isinstance(value, str):
            if by_name(value) is None:
                raise DataError(
                    f"Row {row}, column {label_column!r}: {value!r} is none of the student's labels "
                    f"{list(label_names)}{suggest(value, label_names)}."
                )
            return by_name(value)
        # Column readers turn integers with gaps into floats; true and false say nothing about which class is meant.
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value != int(value)
        ):
            raise DataError(
                f"Row {row}, column {label_column!r}: found {value!r}, expected a label's name or its number from 0 to "
                f"{len(label_names) - 1}."
            )
        if is_class and value == -1:
            return UNLABELLED
        if int(value) not in ids:
            raise DataError(
                f"Row {row}, column {label_column!r}: found {value!r}, but the {len(label_names)} labels "
                f"{list(label_names)} have the numbers 0 to {len(label_names) - 1}; a row without a label has -100."
            )
        return ids[int(value)]

    return lambda values, rows: [encode_one(value, row) for value, row in zip(values, rows, strict=True)]
