"""One score, or several, for every text or pair of texts.

Shapes: N rows, C scores.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig

from ..errors import DataError
from ..fusion.alignment import LabelMap, find_label, is_generic, unclear_names
from ..losses.separate_labels import gaussian_mse
from ..rows.content import Content
from ..rows.labels import LabelReader
from ..rows.texts import TEXTS
from .task import head_config, output_names
from .text_classification import given_names


@dataclass(frozen=True)
class Regression:
    """The task ``regression``; see `Task` for what each attribute and method means.

    A row's label is a number, in text or not; several numbers are a list, or a mapping from each score's name to it. None, NaN
    and blank are unlabelled.

    Args:
        tolerance: By how much an answer may be off to be right, in units of the label: what paired tests compare.

    Example:
        >>> Regression().right(np.array([[2.0], [3.0]]), np.array([[2.4], [4.0]]))
        array([ True, False])
    """

    name: str = "regression"
    pipeline: str = "text-classification"
    auto_class: str = "AutoModelForSequenceClassification"
    architecture: str = "ForSequenceClassification"
    peft_type: str = "SEQ_CLS"
    family: Literal["gaussian"] = "gaussian"
    content: Content = TEXTS
    text_columns: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ("pearson", "spearman", "mse", "mae")
    loss: str = "gaussian_mse"
    fusion: str = "gaussian_pool"
    tolerance: float = 0.5

    def label_names(
        self,
        given: Sequence[str] | None,
        dataset: datasets.Dataset | datasets.IterableDataset | None,
        label_column: str,
        config: PretrainedConfig | None,
    ) -> tuple[str, ...]:
        """The names of the scores, in the order of the student's outputs.

        They come from the caller, the keys of the column's mappings, the student's config where it names its outputs, and else
        the one score is called by its column.

        Raises:
            DataError: There are several scores without names, or names given twice.
        """
        names = _found_names(given, dataset, label_column, config)
        if unclear := "there is none" * (not names) or unclear_names(names):
            raise DataError(
                f"The names of the scores are {list(names)}, but {unclear}: each needs a name of its own."
            )
        return names

    def label_reader(self, label_column: str, label_names: Sequence[str]) -> LabelReader:
        """(C,) numbers per row; see `numbers_encoder`."""
        encoder = functools.partial(numbers_encoder, names=label_names, label_column=label_column)
        return LabelReader(label_column, ["numbers", *label_names], encoder)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One output per score; pipelines of `transformers` then apply no function to it."""
        return head_config(label_names, "regression")

    def refuse_other_head(self, config: PretrainedConfig, what: str) -> None:
        """Refuse heads that were trained for classes or labels."""
        if config.problem_type in ("multi_label_classification", "single_label_classification"):
            raise DataError(
                f"{what}: its head is for another task ({config.problem_type}; {config.num_labels} output(s)), but {self.name} here "
                "means numbers: name a checkpoint with problem_type=regression, or one with a single output."
            )

    def refuse_other_labels(self, config: PretrainedConfig, label_names: Sequence[str], what: str) -> None:
        """Refuse a head that was trained for other scores, or another order of several."""
        own = output_names(config)
        if len(own) == len(label_names) == 1 or any(is_generic(name) for name in own):
            return
        if (
            len(own) != len(label_names)
            or not LabelMap.match(own, label_names, teacher=what, least=1).is_identity
        ):
            raise DataError(
                f"{what}: its head gives the scores {list(own)}, the data has {list(label_names)}: pass label_names={list(own)}."
            )

    def label_loss(self, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The squared error, a mean over the scores."""
        return gaussian_mse(logits, labels)

    def log_probs(self, logits: Tensor) -> Tensor:
        """The numbers themselves."""
        return logits

    def right(self, log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether all scores of a row are within the tolerance."""
        return (np.abs(log_probs - labels) <= self.tolerance).all(1)


def _found_names(
    given: Sequence[str] | None,
    dataset: datasets.Dataset | datasets.IterableDataset | None,
    label_column: str,
    config: PretrainedConfig | None,
) -> tuple[str, ...]:
    if given is not None:
        return given_names(given)
    feature = ((dataset.features if dataset is not None else None) or {}).get(label_column)
    if isinstance(feature, Mapping):
        return tuple(feature)
    if config is not None and not any(is_generic(name) for name in output_names(config)):
        return output_names(config)
    if hasattr(feature, "feature"):
        raise DataError(
            f'Column {label_column!r} holds lists of numbers, but nothing names the scores: pass label_names=["…", "…"], in their order.'
        )
    return (label_column,)


def numbers_encoder(
    feature: Any, names: Sequence[str], label_column: str
) -> Callable[[Sequence[Any], Sequence[int]], list[list[float]]]:
    """A function from raw labels to numbers.

    Args:
        feature: The column's feature; None where there is no such column.
        names: Of the scores.
        label_column: The column's name, for messages.

    Returns:
        ``encode(values, row_numbers) -> (n, C)``; NaN for each score where a row is unlabelled.

    Raises:
        DataError: At once for a column of classes; from ``encode`` for what is no finite number.

    Example:
        >>> numbers_encoder(None, ("score",), "label")([3, "4.5", None], range(3))
        [[3.0], [4.5], [nan]]
    """
    if isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"Column {label_column!r} holds the classes {feature.names}, which are no numbers: name the column of the scores, or the "
            "task text-classification."
        )
    count = len(names)

    def number(value: Any, row: int) -> float:
        try:
            if isinstance(value, bool):
                raise ValueError
            found = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Row {row}, column {label_column!r}: found {value!r}, expected a number; leave it empty where a row has none."
            ) from error
        if not math.isfinite(found):
            raise DataError(
                f"Row {row}, column {label_column!r}: found {value!r}, which is no finite number."
            )
        return found

    def encode_one(value: Any, row: int) -> list[float]:
        if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(
                    f"Row {row}, column {label_column!r}: {value!r} begins as a list does, but is none."
                ) from error
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, Mapping):
            by_name = {find_label(name, tuple(names)): own for name, own in value.items()}
            if None in by_name or len(by_name) < count:
                raise DataError(
                    f"Row {row}, column {label_column!r}: it has the scores {list(value)}, expected {list(names)}."
                )
            value = [by_name[i] for i in range(count)]
        values = value if isinstance(value, (list, tuple)) else [value] if count == 1 else None
        if value is None:
            values = [None] * count
        if values is None or len(values) != count:
            raise DataError(
                f"Row {row}, column {label_column!r}: found {value!r}, expected {count} number{'s' * (count > 1)}, {list(names)}."
            )
        empty = [own is None or own != own or (isinstance(own, str) and not own.strip()) for own in values]
        if all(empty):
            return [float("nan")] * count
        if any(empty):
            raise DataError(
                f"Row {row}, column {label_column!r}: the score {names[empty.index(True)]!r} is missing, but others are there: a row has all its scores "
                "or none."
            )
        return [number(own, row) for own in values]

    return lambda values, rows: [encode_one(value, row) for value, row in zip(values, rows, strict=True)]
