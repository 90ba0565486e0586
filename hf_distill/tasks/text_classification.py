"""One of C classes for every text or pair of texts.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from ..errors import DataError
from ..fusion.alignment import UNLABELLED, LabelMap, alike_names, find_label, is_generic, unclear_names
from ..lookup import suggest
from ..losses.distributions import cross_entropy
from ..rows.content import Content
from ..rows.labels import LabelReader
from ..rows.texts import TEXTS
from .task import head_config, output_names, refuse_contradiction


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
    peft_type: str | None = "SEQ_CLS"
    family: Literal["categorical"] = "categorical"
    content: Content = TEXTS
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
        if unclear := "there are fewer than two" * (len(names) < 2) or unclear_names(names):
            raise DataError(
                f"The student's label names are {list(names)}, but {unclear}: at least two are needed, all different."
            )
        return names

    def label_reader(self, label_column: str, label_names: Sequence[str]) -> LabelReader:
        """Class indices, read from names, from ids of a `ClassLabel`, or from numbers, see `label_encoder`; where the column holds
        lists of numbers or mappings, distributions over the classes, see `soft_label_encoder`."""

        def encoder(feature: Any) -> Callable[[Sequence[Any], Sequence[int]], list[Any]]:
            items = getattr(feature, "feature", None)
            numbers = getattr(items, "dtype", "").startswith(("float", "int", "uint"))
            listed = numbers and not isinstance(items, datasets.ClassLabel)
            made = soft_label_encoder if listed or isinstance(feature, Mapping) else label_encoder
            return made(feature, label_names, label_column)

        return LabelReader(label_column, list(label_names), encoder)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One logit per class, by name."""
        return head_config(label_names, "single_label_classification")

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
        refuse_contradiction(config, what, "id2label= and label2id=")
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

    def label_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """The cross-entropy with the labels."""
        return cross_entropy(logits, labels, label_smoothing=label_smoothing, class_weights=class_weights)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Their softmax."""
        return F.log_softmax(logits, -1)

    def right(self, log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether the most likely class is the label."""
        return log_probs.argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))


def _found_names(
    given: Sequence[str] | None,
    dataset: datasets.Dataset | datasets.IterableDataset | None,
    label_column: str,
    config: PretrainedConfig | None,
) -> tuple[str, ...]:
    if given is not None:
        return given_names(given)
    feature = ((dataset.features if dataset is not None else None) or {}).get(label_column)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if isinstance(feature, Mapping):  # a probability for each class, by its name
        return tuple(feature)
    if config is not None and not any(is_generic(name) for name in output_names(config)):
        return output_names(config)
    found = "there is no such column"
    if isinstance(dataset, datasets.Dataset) and label_column in dataset.column_names:
        values = set(dataset.unique(label_column)) - {None}
        found = f"it holds {sorted(map(str, values))[:5]}"
        if values and all(isinstance(value, str) for value in values):
            names = tuple(sorted(value for value in values if value.strip()))
            # The numbers 0 to n-1 written as text are ids, as they would be as numbers.
            if names != tuple(sorted(map(str, range(len(names))))):
                return _refuse_unclear_column(names, label_column)
    raise DataError(
        f"Nothing names the student's labels: no label_names=, no ClassLabel in column {label_column!r} ({found}), and "
        'the student\'s config has only placeholders. Pass label_names=["…", "…"], in the order of the label ids.'
    )


def given_names(given: Any) -> tuple[str, ...]:
    """What the caller says: a sequence in the order of the ids, or a mapping between ids and names.

    Raises:
        DataError: It has no order, or ids that are none.
    """
    if isinstance(given, str):
        raise DataError(f"label_names is the single text {given!r}: give a list of names.")
    if isinstance(given, Mapping):
        names = [key for key in given if _is_id(given[key])]
        by_id = {int(given[name]): name for name in names}
        if not names:  # {0: "negative"}, or as JSON writes it {"0": "negative"}
            by_id = {int(key): name for key, name in given.items() if _is_id(key) or str(key).isdecimal()}
        if len(by_id) < len(given) or sorted(by_id) != list(range(len(given))):
            raise DataError(
                f"label_names is the mapping {dict(given)!r}, which does not give each name one of the ids 0 to "
                f"{len(given) - 1}: give {{name: id}}, {{id: name}}, or the names in the order of their ids."
            )
        given = [by_id[i] for i in range(len(by_id))]
    elif hasattr(given, "tolist"):  # an array
        given = given.tolist()
    if not isinstance(given, Sequence):
        raise DataError(
            f"label_names is a {type(given).__name__} ({given!r}), which has no order, but the order says which id a name has: "
            "give a list of names."
        )
    wrong = [name for name in given if not isinstance(name, (str, int))]
    if wrong:
        raise DataError(f"label_names holds {wrong[0]!r}, a {type(wrong[0]).__name__}: give names.")
    return tuple(str(name) for name in given)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


_MISSING = frozenset({"nan", "<na>", "null", "nat", "#n/a"})
"""Words that programs write where a value is missing, in small letters."""


def _may_be_missing(value: str) -> bool:
    return value.strip().lower() in _MISSING or value.strip() == "None"


def _refuse_unclear_column(names: tuple[str, ...], label_column: str) -> tuple[str, ...]:
    """Names that a column itself gives, once it is clear that they are meant.

    Raises:
        DataError: One of them is what programs write for a missing value, or two differ by what matching ignores.
    """
    missing = next((name for name in names if _may_be_missing(name)), None)
    if missing is not None:
        raise DataError(
            f"Column {label_column!r} holds {missing!r}, which programs write where a value is missing: leave the label empty "
            "where a row has none; if it is a class, pass label_names= with it."
        )
    if alike := alike_names(names):
        raise DataError(
            f"Column {label_column!r} holds {alike[0]!r} and {alike[1]!r}, which only case, spaces or punctuation tells apart: pass "
            "label_names= with one of them, and the other is read as that; or with both, if they are two classes."
        )
    if len(names) == 1:
        raise DataError(
            f"All labels in column {label_column!r} are {names[0]!r}: at least two classes are needed to tell apart; pass "
            "label_names= if other rows have others."
        )
    return names


# As files write ids: no sign but for -100, and no zero in front, which makes a name (007).
_WRITTEN_AS_ID = re.compile(r"(0|[1-9]\d{0,17}|-100|-1)(\.0+)?")


def _number(name: str) -> float | None:
    """The number that a name is."""
    try:
        return float(name) if math.isfinite(float(name)) else None
    except ValueError:
        return None


def label_encoder(
    feature: Any, label_names: Sequence[str], label_column: str
) -> Callable[[Sequence[Any], Sequence[int]], list[int]]:
    """A function from raw labels to the student's ids.

    Names are matched as teachers' labels are; ids of a `ClassLabel` by their names; other integers are ids already, unless
    names are numbers: then they are names too.

    Args:
        feature: The column's feature.
        label_names: The student's label names.
        label_column: The column's name, for messages.

    Returns:
        ``encode(values, row_numbers) -> ids``; -100 where a row has no label (None, NaN, blank, -100, a ClassLabel's -1).

    Raises:
        DataError: At once for class names the student lacks; from ``encode`` for a value that is no label.
    """
    by_name = functools.cache(functools.partial(find_label, labels=tuple(label_names)))
    numbers = {i: number for i, name in enumerate(label_names) if (number := _number(name)) is not None}

    def by_number(number: float) -> int | None:
        """The one name that is a number and this one: 1.0 is 1, where columns with gaps are written so."""
        alike = [i for i, own in numbers.items() if own == number]
        return alike[0] if len(alike) == 1 else None

    is_class = isinstance(feature, datasets.ClassLabel)
    if is_class and tuple(feature.names) != tuple(label_names):
        matched = LabelMap.match(feature.names, label_names, teacher=f"(column {label_column!r})")
        if matched.ignored:
            raise DataError(
                f"Column {label_column!r} has the classes {list(matched.ignored)}, which are not among the student's "
                f"labels {list(label_names)}{suggest(matched.ignored[0], label_names)}: add them to label_names=, or remove their "
                "rows."
            )
        ids = {column: i for i, column in enumerate(matched.columns) if column is not None}
    else:
        ids = {i: i for i in range(len(label_names))}

    def encode_one(value: Any, row: int) -> int:
        if value is None or value != value:
            return UNLABELLED
        if isinstance(value, str):
            if (found := by_name(value)) is not None:
                return found
            if not value.strip():
                return UNLABELLED
            number = _number(value) if _WRITTEN_AS_ID.fullmatch(value.strip()) else None
            if number is not None:  # a file's label; that it has no type there makes it no name
                return encode_one(int(number), row)
            if _may_be_missing(value):
                raise DataError(
                    f"Row {row}, column {label_column!r}: found {value!r}, which programs write where a value is missing: leave the "
                    "label empty if the row has none; if it is a class, name it in label_names=."
                )
            raise DataError(
                f"Row {row}, column {label_column!r}: {value!r} is none of the student's labels "
                f"{list(label_names)}{suggest(value, label_names)}."
            )
        if isinstance(value, bool) and (found := by_name(str(value))) is not None:
            return found
        if numbers and not is_class and not isinstance(value, bool) and isinstance(value, (int, float)):
            # Names that are numbers are names: 1 among "1", "2", "3" is the first of them.
            if (found := by_name(str(value))) is None:
                found = by_number(value)
            if found is not None:
                return found
            if value == UNLABELLED:
                return UNLABELLED
            raise DataError(
                f"Row {row}, column {label_column!r}: {value!r} is none of the student's labels {list(label_names)}; where names "
                "are numbers, numbers are matched by name."
            )
        if value == UNLABELLED:
            return UNLABELLED
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


def soft_label_encoder(
    feature: Any, label_names: Sequence[str], label_column: str
) -> Callable[[Sequence[Any], Sequence[int]], list[list[float]]]:
    """A function from probabilities, as annotators voted, to distributions over the student's classes.

    A row's label is the list of them in the classes' order, or a mapping from each class to its own.

    Args:
        feature: The column's feature.
        label_names: The student's label names, in whose order the probabilities stand.
        label_column: The column's name, for messages.

    Returns:
        ``encode(values, row_numbers) -> (n, C)``; NaN where a row has no label.

    Raises:
        DataError: From ``encode`` for a list that is no distribution.

    Example:
        >>> soft_label_encoder(None, ("no", "yes"), "label")([[0.25, 0.75], None], range(2))
        [[0.25, 0.75], [nan, nan]]
    """
    count = len(label_names)

    def encode_one(value: Any, row: int) -> list[float]:
        where = f"Row {row}, column {label_column!r}: {value!r}"
        if isinstance(value, Mapping):
            by_name = {find_label(name, tuple(label_names)): part for name, part in value.items()}
            if set(by_name) != set(range(count)) or len(by_name) < len(value):
                raise DataError(
                    f"Row {row}, column {label_column!r}: it has the classes {list(value)}, expected {list(label_names)}."
                )
            value = [by_name[i] for i in range(count)]
        value = None if value is None else [_probability(part) for part in value]
        if value is None or all(part is None or part != part for part in value):
            return [float("nan")] * count
        if len(value) != count:
            raise DataError(
                f"{where} has {len(value)} probabilities for the {count} classes {list(label_names)}."
            )
        wrong = [part for part in value if not isinstance(part, (int, float)) or not 0 <= part <= 1]
        if wrong:
            raise DataError(f"{where} holds {wrong[0]!r}, which is no probability.")
        if abs(sum(value) - 1) > 1e-3:
            raise DataError(f"{where}: its probabilities sum to {sum(value):.6g}, not 1.")
        return [float(part) for part in value]

    return lambda values, rows: [encode_one(value, row) for value, row in zip(values, rows, strict=True)]


def _probability(part: Any) -> Any:
    """A number out of a file that has no types; None where it is blank."""
    if not isinstance(part, str):
        return part
    try:
        return float(part) if part.strip() else None
    except ValueError:
        return part
