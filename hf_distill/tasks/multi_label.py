"""Several labels for every text or pair of texts, each of which holds or not.

Shapes: N rows, C labels.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig

from ..errors import DataError
from ..fusion.alignment import LabelMap, find_label, is_generic, unclear_names
from ..lookup import suggest
from ..losses.separate_labels import binary_cross_entropy
from ..rows.content import Content
from ..rows.labels import LabelReader
from ..rows.texts import TEXTS
from .task import head_config, output_names, refuse_contradiction
from .text_classification import given_names

_SEPARATORS = re.compile(r"[;|,]")
_TRUE = frozenset({"1", "1.0", "true", "yes", "t", "y"})
_FALSE = frozenset({"0", "0.0", "false", "no", "f", "n"})


@dataclass(frozen=True)
class MultiLabel:
    """The task ``multi-label-classification``; see `Task` for what each attribute and method means.

    A row's labels are a list of names or ids, text in which names are separated by commas, semicolons or bars, a list of C
    numbers 0.0 and 1.0, or a mapping from each label to whether it holds (see `joined_labels` for a column per label). A row
    without labels (None, blank text) is unlabelled; an empty list says that none holds.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [["pos", "long"], []]})
        >>> MultiLabel().label_names(None, rows, "label", None)
        ('long', 'pos')
    """

    name: str = "multi-label-classification"
    pipeline: str = "text-classification"
    auto_class: str = "AutoModelForSequenceClassification"
    architecture: str = "ForSequenceClassification"
    peft_type: str = "SEQ_CLS"
    family: Literal["bernoulli"] = "bernoulli"
    content: Content = TEXTS
    text_columns: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ("f1", "f1_micro", "accuracy", "label_nll", "label_brier", "label_agreement")
    loss: str = "bernoulli_kl"
    fusion: str = "bernoulli_linear_pool"

    def label_names(
        self,
        given: Sequence[str] | None,
        dataset: datasets.Dataset | datasets.IterableDataset | None,
        label_column: str,
        config: PretrainedConfig | None,
    ) -> tuple[str, ...]:
        """The names of the labels, in the order of the student's logits.

        They come, in this order, from the caller, the column's `ClassLabel` or the keys of its mappings, the student's config
        where it does not hold the placeholders ``LABEL_i``, and the sorted names in the column.

        Raises:
            DataError: Nothing names the labels, or names given twice.
        """
        names = _found_names(given, dataset, label_column, config)
        if unclear := "there is none" * (not names) or unclear_names(names):
            raise DataError(
                f"The student's label names are {list(names)}, but {unclear}: each label needs a name of its own."
            )
        return names

    def label_reader(self, label_column: str, label_names: Sequence[str]) -> LabelReader:
        """(C,) 0.0 or 1.0 per row; see `several_labels_encoder`."""
        encoder = functools.partial(
            several_labels_encoder, label_names=label_names, label_column=label_column
        )
        return LabelReader(label_column, ["several", *label_names], encoder)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One logit per label, by name; pipelines of `transformers` then take the sigmoid of each."""
        return head_config(label_names, "multi_label_classification")

    def refuse_other_head(self, config: PretrainedConfig, what: str) -> None:
        """Refuse heads that were trained for one of several classes, and for scores."""
        if config.problem_type in ("regression", "single_label_classification"):
            raise DataError(
                f"{what}: its head is for another task ({config.problem_type}; {config.num_labels} output(s)), but {self.name} "
                "here means several labels that each hold or not: name a checkpoint with "
                "problem_type=multi_label_classification."
            )

    def refuse_other_labels(self, config: PretrainedConfig, label_names: Sequence[str], what: str) -> None:
        """Refuse a head that was trained for the same labels in another order: it would have to learn to swap them."""
        refuse_contradiction(config, what, "id2label= and label2id=")
        own = output_names(config)
        if any(is_generic(name) for name in own):
            return
        if not LabelMap.match(own, label_names, teacher=what, least=1).is_identity or len(own) != len(
            label_names
        ):
            raise DataError(
                f"{what}: its head answers in the order {list(own)}, the data has {list(label_names)}: pass "
                f"label_names={list(own)}, and the data's labels are matched to it by name."
            )

    def label_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """The binary cross-entropy with the labels, summed over them."""
        return binary_cross_entropy(
            logits, labels, label_smoothing=label_smoothing, class_weights=class_weights
        )

    def log_probs(self, logits: Tensor) -> Tensor:
        """The log-odds themselves."""
        return logits

    def right(self, log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether all labels of a row are right: subset accuracy."""
        return ((log_probs > 0) == (labels > 0.5)).all(1)


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
    if isinstance(inner := _items(feature), datasets.ClassLabel):
        return tuple(inner.names)
    if config is not None and not any(is_generic(name) for name in output_names(config)):
        return output_names(config)
    found = "there is no such column"
    if isinstance(dataset, datasets.Dataset) and label_column in dataset.column_names:
        names: set[str] = set()
        values = dataset.with_format(None)[label_column][:]
        for value in values:
            names |= {str(name).strip() for name in _parts(value) if not _is_id(name)}
        found = f"it holds {sorted(map(str, values[:3]))}"
        if names:
            return tuple(sorted(names))
    raise DataError(
        f"Nothing names the student's labels: no label_names=, no ClassLabel in column {label_column!r} ({found}), and "
        'the student\'s config has only placeholders. Pass label_names=["…", "…"], in the order of the label ids.'
    )


def _items(feature: Any) -> Any:
    """What a list's items are; None where it is none."""
    return getattr(feature, "feature", None)


def _is_id(value: Any) -> bool:
    return (isinstance(value, (int, np.integer)) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.strip().isdecimal()
    )


def _parts(value: Any) -> list[Any]:
    """The labels that a value lists, whatever they are called."""
    if value is None or value != value:
        return []
    if isinstance(value, Mapping):
        return list(value)
    if isinstance(value, str):
        if value.strip()[:1] in ("[", "{"):
            with contextlib.suppress(ValueError):  # no JSON: text that begins with a bracket
                return _parts(json.loads(value))
        return [part.strip() for part in _SEPARATORS.split(value) if part.strip()]
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def several_labels_encoder(
    feature: Any, label_names: Sequence[str], label_column: str
) -> Callable[[Sequence[Any], Sequence[int]], list[list[float]]]:
    """A function from raw labels to 0.0 and 1.0 for each of the student's labels.

    Args:
        feature: The column's feature; None where there is no such column.
        label_names: The student's.
        label_column: The column's name, for messages.

    Returns:
        ``encode(values, row_numbers) -> (n, C)``; NaN for each label where a row is unlabelled.

    Raises:
        DataError: From ``encode`` for a value that is no label.

    Example:
        >>> several_labels_encoder(None, ("a", "b"), "label")([["b"], "a; b", [], None], range(4))
        [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [nan, nan]]
    """
    names, count = tuple(label_names), len(label_names)
    classes = tuple(inner.names) if isinstance(inner := _items(feature), datasets.ClassLabel) else None
    by_name = functools.cache(functools.partial(find_label, labels=names))

    def refuse(value: Any, row: int, why: str) -> DataError:
        return DataError(f"Row {row}, column {label_column!r}: {value!r} {why}.")

    def number_of(part: Any, row: int) -> int:
        if classes is not None and isinstance(part, int):
            part = classes[part] if 0 <= part < len(classes) else part
        if isinstance(part, str) and (found := by_name(part)) is not None:
            return found
        if _is_id(part) and 0 <= int(part) < count:
            return int(part)
        if _is_id(part):
            raise refuse(
                part, row, f"is no id: the {count} labels {list(names)} have the numbers 0 to {count - 1}"
            )
        raise refuse(part, row, f"is none of the student's labels {list(names)}{suggest(part, names)}")

    def truth(value: Any, name: str, row: int) -> float:
        said = str(value).strip().lower()
        if said in _TRUE or said in _FALSE:
            return float(said in _TRUE)
        raise refuse(value, row, f"says nothing of the label {name!r}: expected 1 or 0, true or false")

    def encode_one(value: Any, row: int) -> list[float]:
        if isinstance(value, str) and value.strip()[:1] in ("[", "{") and by_name(value) is None:
            try:
                value = json.loads(value)
            except ValueError as error:
                raise refuse(value, row, "begins as a list does, but is none") from error
        if isinstance(value, Mapping):
            return encode_mapping(value, row)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            return [float("nan")] * count
        if isinstance(value, list) and value and all(isinstance(part, float) for part in value):
            return encode_vector(value, row)
        parts = [value] if isinstance(value, str) and by_name(value) is not None else _parts(value)
        if isinstance(value, (bool, float)):
            raise refuse(value, row, "is no list of labels")
        numbers = [number_of(part, row) for part in parts]
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise refuse(
                value,
                row,
                f"names {names[twice]!r} twice: a list of ids or names has each once; 0.0 and 1.0 for each label are floats",
            )
        row_of = [0.0] * count
        for number in numbers:
            row_of[number] = 1.0
        return row_of

    def encode_mapping(value: Mapping[str, Any], row: int) -> list[float]:
        empty = [own is None or own != own or own == "" for own in value.values()]
        if all(empty):
            return [float("nan")] * count
        if any(empty):
            missing = [name for name, gone in zip(value, empty, strict=True) if gone]
            raise DataError(
                f"Row {row}: it says nothing of the label {missing[0]!r}, but of others: a row has all its labels or none; write 0 where a "
                "label does not hold."
            )
        made: dict[int, float] = {}
        for name, own in value.items():
            if (number := by_name(name)) is None:
                raise refuse(
                    name, row, f"is none of the student's labels {list(names)}{suggest(name, names)}"
                )
            made[number] = truth(own, name, row)
        if len(made) < count:
            gone = [name for i, name in enumerate(names) if i not in made]
            raise DataError(
                f"Row {row}: it says nothing of the label {gone[0]!r}: a row has all its labels or none."
            )
        return [made[i] for i in range(count)]

    def encode_vector(value: Sequence[float], row: int) -> list[float]:
        if len(value) != count:
            raise refuse(value, row, f"has {len(value)} numbers for the {count} labels {list(names)}")
        if all(part != part for part in value):
            return [float("nan")] * count
        if wrong := [part for part in value if not 0 <= part <= 1]:
            raise refuse(wrong[0], row, "is no probability that a label holds")
        return list(value)

    return lambda values, rows: [encode_one(value, row) for value, row in zip(values, rows, strict=True)]


def joined_labels(
    dataset: datasets.Dataset, columns: Sequence[str], *, into: str = "label"
) -> datasets.Dataset:
    """Rows whose labels stand in a column each, with one column that maps each of these names to its value.

    Args:
        dataset: Raw rows.
        columns: One for each label, or for each number.
        into: The new column.

    Returns:
        The rows without these columns.

    Raises:
        DataError: A column is missing.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a"], "toxic": [1], "insult": [0]})
        >>> joined_labels(rows, ["toxic", "insult"])[0]["label"]
        {'toxic': 1, 'insult': 0}
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"The rows have the columns {dataset.column_names}, but no {missing[0]!r}{suggest(missing[0], dataset.column_names)}: name the "
            "columns of the labels."
        )
    values = dataset.with_format(None)
    rows = [
        dict(zip(columns, row, strict=True)) for row in zip(*(values[c][:] for c in columns), strict=True)
    ]
    feature = {column: dataset.features[column] for column in columns}
    return dataset.remove_columns(list(columns)).add_column(into, rows, feature=feature)
