"""From raw rows to prepared rows: label names, label ids, and every view's tokens, each made once."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
from transformers import PretrainedConfig

from ..errors import DataError
from ..fusion.alignment import UNLABELLED, LabelMap, find_label, is_generic
from ..lookup import suggest
from .views import WORD_OF, TokenView, View, view_column
from .words import align_words

# Part of the key under which `datasets` caches prepared rows: raise it whenever this module makes other rows.
_FORMAT = 1


def resolve_label_names(
    label_names: Sequence[str] | None,
    dataset: datasets.Dataset | datasets.IterableDataset | None,
    label_column: str,
    student_config: PretrainedConfig | None,
) -> tuple[str, ...]:
    """The student's label names, in the order of its logits.

    They come, in this order, from the caller, the dataset's `ClassLabel`, the student's config where it does not hold
    the placeholders ``LABEL_i``, and the sorted strings of the column.

    Args:
        label_names: What the caller says, or None.
        dataset: The training rows.
        label_column: The column of the labels.
        student_config: The student's config, where there is one already.

    Raises:
        DataError: Nothing names the labels, fewer than two, or names given twice.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["pos", "neg"]})
        >>> resolve_label_names(None, rows, "label", None)
        ('neg', 'pos')
    """
    names = _label_names(label_names, dataset, label_column, student_config)
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"The student's label names are {list(names)}: at least two are needed, all different."
        )
    return names


def _label_names(
    label_names: Sequence[str] | None,
    dataset: datasets.Dataset | datasets.IterableDataset | None,
    label_column: str,
    student_config: PretrainedConfig | None,
) -> tuple[str, ...]:
    if label_names is not None:
        if isinstance(label_names, str):
            raise DataError(f"label_names is the single text {label_names!r}: give a list of names.")
        return tuple(str(name) for name in label_names)
    feature = ((dataset.features if dataset is not None else None) or {}).get(label_column)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if student_config is not None:
        own = tuple(str(student_config.id2label[i]) for i in range(student_config.num_labels))
        if not any(is_generic(name) for name in own):
            return own
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


def example_id(texts: Sequence[str]) -> int:
    """Which example a row is: 63 bits of a hash of its text columns, the same wherever the row stands.

    Example:
        >>> example_id(["a good film"]) == example_id(["a good film"]) != example_id(["a good", "film"])
        True
    """
    digest = hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def encode_views(texts: Sequence[Sequence[str]], views: Mapping[str, View]) -> dict[str, list[list[int]]]:
    """The columns of the teachers' views: each distinct tokenizer runs once.

    Args:
        texts: One list of B texts, or two for pairs.
        views: The views by name.

    Returns:
        Lists of B rows by `view_column`.
    """
    return {
        view_column(name, key): values
        for name, view in views.items()
        for key, values in view.encode(texts).items()
    }


def encode_with_words(
    texts: Sequence[Sequence[str]],
    student_view: TokenView,
    teacher_views: Mapping[str, View],
    word_views: Sequence[str],
) -> dict[str, list[list[int]]]:
    """The columns of student and teachers, and for each token its word among those that some of the views share.

    Args:
        texts: One list of B texts, or two for pairs.
        student_view: The student's tokenization.
        teacher_views: The teachers' views by name.
        word_views: Names of the teachers' views whose words are matched with the student's.

    Returns:
        Lists of B rows, `WORD_OF` among them for the student and the views that are named.
    """
    columns, spans = student_view.encode_with_spans(texts)
    all_spans = [spans]
    for name in word_views:
        inputs, spans = teacher_views[name].encode_with_spans(texts)
        all_spans.append(spans)
        columns |= {view_column(name, key): values for key, values in inputs.items()}
    aligned = align_words(list(zip(*texts, strict=True)), all_spans)
    lengths = [[len(row) for row in columns[key]] for key in ("input_ids", *_ids_of(word_views))]
    for name, word_of, of in zip((None, *word_views), aligned.word_of, lengths, strict=True):
        column = WORD_OF if name is None else view_column(name, WORD_OF)
        columns[column] = [row[:length] for row, length in zip(word_of.tolist(), of, strict=True)]
    others = {name: view for name, view in teacher_views.items() if name not in word_views}
    return columns | encode_views(texts, others)


def _ids_of(views: Sequence[str]) -> list[str]:
    return [view_column(name, "input_ids") for name in views]


def refuse_other_types(dataset: Any, what: str) -> None:
    """Refuse what has no named columns of text, or no rows.

    Raises:
        DataError: It is no dataset, several, or empty.
    """
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise DataError(
            f"The {what} is a {type(dataset).__name__}, but teachers read text from named columns: pass one "
            "datasets.Dataset, e.g. one split, or Dataset.from_list(rows)."
        )
    if isinstance(dataset, datasets.Dataset) and not len(dataset):
        raise DataError(f"The {what} has no rows.")


def sample_rows(train: Any, evaluation: Any) -> Any:
    """Rows that show what a run's rows look like: the training rows, or else the first evaluation rows, or None.

    Raises:
        DataError: They are no dataset, or empty.
    """
    if train is not None:
        refuse_other_types(train, "training set")
        return train
    rows = next(iter(evaluation.values())) if isinstance(evaluation, dict) else evaluation
    if rows is not None:
        refuse_other_types(rows, "evaluation set")
    return rows


def is_prepared(dataset: Any, text_columns: Sequence[str]) -> bool:
    """Whether `prepare_dataset` made this dataset; raw rows may have an ``example_id`` of their own, and have text."""
    columns = getattr(dataset, "column_names", None) or ()
    return "example_id" in columns and not set(text_columns) & set(columns)


def prepare_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    *,
    text_columns: Sequence[str],
    label_column: str,
    label_names: Sequence[str],
    student_view: View | None,
    teacher_views: Mapping[str, View],
    word_views: Sequence[str] = (),
    what: str = "dataset",
) -> datasets.Dataset | datasets.IterableDataset:
    """Tokenize raw rows once for the student and once for every distinct teacher tokenizer.

    Args:
        dataset: Raw rows, in memory, on disk or streamed.
        text_columns: One column of text, or two for pairs.
        label_column: The column of labels; rows may lack them, and so may the whole dataset.
        label_names: The student's label names.
        student_view: The student's tokenization; None where no student takes part.
        teacher_views: The teachers' views by name.
        word_views: Names of those whose words are matched with the student's, see `encode_with_words`.
        what: Which dataset it is, for messages.

    Returns:
        Rows with the student's inputs, ``labels``, ``example_id`` and the columns of `view_column`; nothing else.

    Raises:
        DataError: Missing text columns, text that is not text, or labels that are none of the student's.
    """
    text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    refuse_other_types(dataset, what)
    dataset = dataset.with_format(None)  # tensors are no texts and no labels
    if dataset.features is None:  # a stream tells its columns only with its first rows
        dataset = dataset._resolve_features()
    features = dataset.features
    missing = [column for column in text_columns if column not in features]
    if missing and "input_ids" in features:
        raise DataError(
            f"The {what} is already tokenized (columns {list(features)}) and lacks {missing}, but each teacher needs "
            "the text for its own tokenizer: pass the raw rows, the trainer tokenizes them."
        )
    if missing or not 1 <= len(text_columns) <= 2:
        raise DataError(
            f"The {what} has the columns {list(features)}, but text_columns={text_columns} are asked for"
            f"{suggest(missing[0], features) if missing else ''}: name the one or two columns that hold the text."
        )
    encode_labels = label_encoder(features.get(label_column), label_names, label_column)

    def prepare(batch: Mapping[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        texts = [batch[column] for column in text_columns]
        for column, values in zip(text_columns, texts, strict=True):
            for row, value in zip(rows, values, strict=True):
                if not isinstance(value, str):
                    raise DataError(
                        f"Row {row} of the {what}, column {column!r}: found {value!r}, expected text: "
                        "remove the row or fill it in."
                    )
        prepared: dict[str, list[Any]] = {
            "labels": encode_labels(batch[label_column], rows)
            if label_column in batch
            else [UNLABELLED] * len(rows),
            "example_id": [example_id(row) for row in zip(*texts, strict=True)],
        }
        if word_views:
            return prepared | encode_with_words(texts, student_view, teacher_views, word_views)
        if student_view is not None:
            prepared |= student_view.encode(texts)
        return prepared | encode_views(texts, teacher_views)

    options: dict[str, Any] = {"batched": True, "with_indices": True, "remove_columns": list(features)}
    if isinstance(dataset, datasets.Dataset):
        # The automatic key hashes `prepare` but not the functions it calls, and would miss an edit of them.
        parts = (
            _FORMAT,
            dataset._fingerprint,
            text_columns,
            label_column,
            list(label_names),
            student_view.key if student_view is not None else None,
            {name: view.key for name, view in teacher_views.items()},
            *([list(word_views)] if word_views else []),
        )
        options |= {
            "new_fingerprint": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32],
            "desc": f"Tokenizing {what}",
        }
    prepared = dataset.map(prepare, **options)
    return prepared._resolve_features() if isinstance(prepared, datasets.IterableDataset) else prepared


def count_labelled(dataset: Any) -> int | None:
    """How many prepared rows have a label; None for streams, which only the end would tell."""
    if not isinstance(dataset, datasets.Dataset):
        return None
    labels = dataset.with_format("numpy", columns=["labels"])["labels"]
    return int((labels[:] != UNLABELLED).sum())


def refuse_unlabelled(rows: Any, label_column: str, task_weight: float) -> None:
    """Refuse prepared training rows without any label where labels are to be learnt.

    Raises:
        DataError: It is so.
    """
    if task_weight > 0 and rows is not None and count_labelled(rows) == 0:
        raise DataError(
            f"task_weight is {task_weight}, but no row of the training set has a label in column {label_column!r}: "
            "correct label_column=, or set task_weight to 0 to learn from the teachers alone."
        )


def distinct_rows(dataset: datasets.Dataset, text_columns: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Texts by example id, in the order of their first appearance.

    Args:
        dataset: Raw rows.
        text_columns: The columns that teachers read.

    Raises:
        DataError: It is no dataset, lacks a column, or holds something else than text.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise DataError(
            f"The rows to cache are a {type(dataset).__name__}, but each must be run once and found again: pass a "
            "datasets.Dataset, or run the teachers live."
        )
    missing = [column for column in text_columns if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"The dataset has the columns {dataset.column_names}, but text_columns={list(text_columns)}."
        )
    rows: dict[int, tuple[str, ...]] = {}
    for batch in _text_batches(dataset, text_columns):
        for texts in batch:
            if not all(isinstance(text, str) for text in texts):
                raise DataError(
                    f"A row to cache holds {texts!r}, expected text: remove the row or fill it in."
                )
            known = rows.setdefault(example_id(texts), texts)
            assert known == texts, "two rows share 63 bits of a hash"
    return rows


def _text_batches(dataset: datasets.Dataset, columns: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    for batch in dataset.select_columns(list(columns)).with_format(None).iter(10_000):
        yield list(zip(*(batch[column] for column in columns), strict=True))
