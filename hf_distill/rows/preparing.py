"""From raw rows to prepared rows: what every view keeps of them, and the labels, each made once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ..errors import DataError
from ..lookup import suggest
from .content import Content, hashed
from .labels import LabelReader
from .texts import TEXTS
from .views import VIEWS, WORD_OF, BreakingRow, TokenView, View, view_column
from .words import align_words

# Part of the key under which `datasets` caches prepared rows: raise it whenever this module makes other rows.
_FORMAT = 2
# What the description of prepared rows says: their columns have whatever names a student's inputs have.
_PREPARED = "Prepared by hf_distill."


def example_id(texts: Sequence[str]) -> int:
    """Which example a row is: 63 bits of a hash of its text columns, the same wherever the row stands.

    Example:
        >>> example_id(["a good film"]) == example_id(["a good film"]) != example_id(["a good", "film"])
        True
    """
    return hashed(list(texts))


def encode_views(texts: Sequence[Sequence[Any]], views: Mapping[str, View]) -> dict[str, list[Any]]:
    """The columns of the teachers' views: each distinct view runs once.

    Args:
        texts: B values of each content column: one list of texts, or two for pairs.
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
    for name, word_of in zip((None, *word_views), aligned.word_of, strict=True):
        ids, column = (key if name is None else view_column(name, key) for key in ("input_ids", WORD_OF))
        columns[column] = [row[: len(own)] for row, own in zip(word_of.tolist(), columns[ids], strict=True)]
    others = {name: view for name, view in teacher_views.items() if name not in word_views}
    return columns | encode_views(texts, others)


def refuse_other_types(dataset: Any, what: str, content: Content = TEXTS) -> None:
    """Refuse what has no named columns, or no rows.

    Raises:
        DataError: It is no dataset, several, or empty.
    """
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise DataError(
            f"The {what} is a {type(dataset).__name__}, but teachers read {content.name} from named columns: pass one "
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
    """Whether `prepare_dataset` made this dataset; raw rows may have an ``example_id`` or ``labels`` of their own.

    Example:
        >>> is_prepared(datasets.Dataset.from_dict({"example_id": [1], "sentence": ["fine"]}), ("text",))
        False
    """
    if getattr(getattr(dataset, "info", None), "description", None) == _PREPARED:
        return True
    columns = set(getattr(dataset, "column_names", None) or ())
    tokens = any(column == "input_ids" or column.startswith(f"{VIEWS}/") for column in columns)
    number = (getattr(dataset, "features", None) or {}).get("example_id") == datasets.Value("int64")
    return {"example_id", "labels"} <= columns and tokens and number and not set(text_columns) & columns


def prepare_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    *,
    text_columns: Sequence[str],
    labels: LabelReader,
    student_view: View | None,
    teacher_views: Mapping[str, View],
    word_views: Sequence[str] = (),
    content: Content = TEXTS,
    what: str = "dataset",
) -> datasets.Dataset | datasets.IterableDataset:
    """Read raw rows once for the student and once for every distinct view of the teachers.

    Args:
        dataset: Raw rows, in memory, on disk or streamed.
        text_columns: The columns that models read: of text one, or two for pairs.
        labels: How labels are read; rows may lack them, and so may the whole dataset.
        student_view: The student's tokenization; None where no student takes part.
        teacher_views: The teachers' views by name.
        word_views: Names of those whose words are matched with the student's, see `encode_with_words`.
        content: What the columns hold.
        what: Which dataset it is, for messages.

    Returns:
        Rows with the student's inputs, ``labels``, ``example_id`` and the columns of `view_column`; nothing else.

    Raises:
        DataError: Missing columns, text that is not text, or labels that are none of the student's.
    """
    text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    refuse_other_types(dataset, what, content)
    source = dataset = dataset.with_format(None)  # tensors are no texts and no labels
    if dataset.features is None:  # a stream tells its columns only with its first rows
        dataset = dataset._resolve_features()
    features = dataset.features
    missing = [column for column in text_columns if column not in features]
    if missing and "input_ids" in features:
        raise DataError(
            f"The {what} is already tokenized (columns {list(features)}) and lacks {missing}, but each teacher needs "
            "the text for its own tokenizer: pass the raw rows, the trainer tokenizes them."
        )
    if missing or not 1 <= len(text_columns) <= len(content.keys):
        number = "one or two columns that hold" if len(content.keys) > 1 else "one column that holds"
        raise DataError(
            f"The {what} has the columns {list(features)}, but text_columns={text_columns} are asked for"
            f"{suggest(missing[0], features) if missing else ''}: name the {number} the {content.name}."
        )
    dataset = content.as_stored(dataset, text_columns)
    label_feature = features.get(labels.column)
    if isinstance(dataset, datasets.IterableDataset) and getattr(label_feature, "dtype", "null") == "null":
        # What a stream's first rows lack its later ones may have, but it would drop columns that it does not know.
        label_feature = datasets.Value("string")
        dataset = dataset.cast(datasets.Features({**features, labels.column: label_feature}))
        features = dataset.features
    encode_labels = labels.encoder(label_feature)

    def prepare(batch: Mapping[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        texts = _read(content, batch, text_columns, rows, f" of the {what}")
        prepared: dict[str, list[Any]] = {
            "labels": encode_labels(
                batch[labels.column] if labels.column in batch else [None] * len(rows), rows
            ),
            "example_id": [content.example_id(row) for row in zip(*texts, strict=True)],
        }
        try:
            if word_views:
                return prepared | encode_with_words(texts, student_view, teacher_views, word_views)
            if student_view is not None:
                prepared |= student_view.encode(texts)
            return prepared | encode_views(texts, teacher_views)
        except BreakingRow as error:
            row = rows[list(zip(*texts, strict=True)).index(error.texts)]
            raise DataError(f"Row {row} of the {what}: {error}") from error

    options: dict[str, Any] = {"batched": True, "with_indices": True, "remove_columns": list(features)}
    if isinstance(dataset, datasets.Dataset):
        # Rows that another model may have, cached when it was asked for them, are asked about again.
        end_tokens = [
            rule.end_token
            for view in (student_view, *teacher_views.values())
            for rule in getattr(view, "row_rules", ())
            if rule.end_token is not None
        ]
        # The automatic key hashes `prepare` but not the functions it calls, and would miss an edit of them.
        parts = (
            _FORMAT,
            source._fingerprint,
            text_columns,
            labels.column,
            labels.key,
            student_view.key if student_view is not None else None,
            {name: view.key for name, view in teacher_views.items()},
            *([list(word_views)] if word_views else []),
            *([end_tokens] if end_tokens else []),
        )
        options |= {
            "new_fingerprint": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32],
            "desc": f"Preparing {what}",
        }
    prepared = dataset.map(prepare, **options)
    prepared._info.description = _PREPARED
    return prepared._resolve_features() if isinstance(prepared, datasets.IterableDataset) else prepared


def _read(
    content: Content,
    batch: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    rows: Sequence[int],
    of: str,
) -> list[list[Any]]:
    """The content columns of some rows.

    Raises:
        DataError: A value is nothing of the kind.
    """
    found = []
    for column in columns:
        own = []
        for row, value in zip(rows, batch[column], strict=True):
            try:
                own.append(content.read(value))
            except ValueError as error:
                raise DataError(
                    f"Row {row}{of}, column {column!r}: {error}: remove the row or fill it in."
                ) from error
        found.append(own)
    return found


@dataclass(frozen=True, eq=False)
class DistinctRows:
    """The rows of a dataset, each content once: their numbers and ids in memory, their content where it is stored.

    Attributes:
        dataset: The raw rows, their content columns alone.
        ids: (n,) int64 example ids, in the order of their first appearance.
        numbers: (n,) where each stands first.
        content: What the columns hold.
    """

    dataset: datasets.Dataset
    ids: np.ndarray
    numbers: np.ndarray
    content: Content = TEXTS

    def texts(self, which: Any) -> list[list[Any]]:
        """The content columns of some rows, as `Content.read` makes them.

        Args:
            which: Of the n rows, as numpy counts them.
        """
        numbers = self.numbers[which]
        if not len(numbers):
            return [[] for _ in self.dataset.column_names]
        one_run = numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all()
        rows = self.dataset[slice(int(numbers[0]), int(numbers[-1]) + 1) if one_run else numbers.tolist()]
        return [list(map(self.content.read, rows[column])) for column in self.dataset.column_names]

    def by_id(self) -> dict[int, tuple[Any, ...]]:
        """All content, in memory."""
        return dict(zip(self.ids.tolist(), zip(*self.texts(slice(None)), strict=True), strict=True))


def distinct_rows(
    dataset: datasets.Dataset, text_columns: Sequence[str], content: Content = TEXTS
) -> DistinctRows:
    """Which rows of a dataset differ, by their ids; no text is held.

    Args:
        dataset: Raw rows.
        text_columns: The columns that teachers read.
        content: What they hold.

    Raises:
        DataError: It is no dataset, lacks a column, or holds something else than text.

    Example:
        >>> found = distinct_rows(datasets.Dataset.from_dict({"text": ["a", "b", "a"]}), ["text"])
        >>> found.numbers.tolist(), found.texts([1])
        ([0, 1], [['b']])
    """
    ids, at = np.empty(len(dataset) if isinstance(dataset, datasets.Dataset) else 0, "<i8"), 0
    for part, _ in identified(dataset, text_columns, content=content):
        ids[at : at + len(part)] = part
        at += len(part)
    numbers = np.sort(first_places(ids)[1])
    texts = content.as_stored(dataset.select_columns(list(text_columns)).with_format(None), text_columns)
    return DistinctRows(texts, ids if len(numbers) == len(ids) else ids[numbers], numbers, content)


def first_places(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones of some ids in ascending order, and where each stands first, as `numpy.unique` gives them.

    Args:
        ids: (n,) int64. There may be very many: at most 20 bytes are held besides for each.

    Example:
        >>> [found.tolist() for found in first_places(np.array([7, 3, 7]))]
        [[3, 7], [1, 0]]
    """
    places = narrow(np.argsort(ids, kind="stable"))
    values = ids[places]
    again = values[1:] == values[:-1]
    if again.any():
        first = np.concatenate([[True], ~again])
        values, places = values[first], places[first]
    return values, places


def narrow(places: np.ndarray) -> np.ndarray:
    """Places in an array, in 32 bits where these suffice.

    Args:
        places: (n,) int64.
    """
    return places.astype(np.int32) if not len(places) or places.max() < 2**31 else places


def identified(
    dataset: datasets.Dataset | datasets.IterableDataset,
    text_columns: Sequence[str],
    size: int = 10_000,
    content: Content = TEXTS,
) -> Iterator[tuple[np.ndarray, list[list[Any]]]]:
    """The rows of a dataset or stream in their order, part by part: their ids (m,) and their content columns.

    Args:
        dataset: Raw rows.
        text_columns: The columns that teachers read.
        size: Rows of a part.
        content: What the columns hold.

    Raises:
        DataError: It is neither, lacks a column, or holds something else than text.
    """
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise DataError(
            f"The rows to cache are a {type(dataset).__name__}, but teachers read {content.name} from named columns: pass a "
            "datasets.Dataset or a stream (IterableDataset)."
        )
    columns = list(text_columns)
    if dataset.column_names is None:  # a stream tells its columns only with its first rows
        dataset = dataset._resolve_features()
    if any(column not in dataset.column_names for column in columns):
        raise DataError(f"The dataset has the columns {dataset.column_names}, but text_columns={columns}.")
    before = 0
    for part in content.as_stored(dataset.select_columns(columns).with_format(None), columns).iter(size):
        numbers = range(before, before + len(part[columns[0]]))
        texts = _read(content, part, columns, numbers, " of the rows to cache")
        yield np.fromiter(map(content.example_id, zip(*texts, strict=True)), "<i8", len(numbers)), texts
        before = numbers.stop


class SeenIds:
    """Which ids came before, in eight bytes for each.

    Example:
        >>> seen = SeenIds()
        >>> seen.new(np.array([3, 1, 3])).tolist(), seen.new(np.array([1, 2])).tolist()
        ([0, 1], [1])
    """

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def new(self, ids: np.ndarray) -> np.ndarray:
        """Where in some ids (m,) those stand that come for the first time, and note them."""
        values, first = first_places(ids)
        for known in self._sorted:
            fresh = known[np.searchsorted(known, values).clip(max=len(known) - 1)] != values
            values, first = values[fresh], first[fresh]
        if len(values):
            self._sorted.append(values)
            # Like sizes are merged: few arrays to look into, and each id is copied a logarithm of times.
            while len(self._sorted) > 1 and len(self._sorted[-2]) <= 2 * len(self._sorted[-1]):
                last = self._sorted.pop()
                self._sorted[-1] = np.sort(np.concatenate([self._sorted[-1], last]))
        return np.sort(first)


def find_row(
    dataset: Any, text_columns: Sequence[str], texts: Sequence[Any], content: Content = TEXTS
) -> int:
    """The number of the first row with these texts.

    Example:
        >>> find_row(datasets.Dataset.from_dict({"text": ["a", "b"]}), ["text"], ["b"])
        1
    """
    rows = itertools.chain.from_iterable(
        zip(*columns, strict=True) for _, columns in identified(dataset, text_columns, content=content)
    )
    return next(number for number, row in enumerate(rows) if row == tuple(texts))
