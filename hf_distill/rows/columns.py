"""Rows as flat columns: the numbers of all rows one after the other, and where each row begins. No Python lists of numbers.

Shapes: B rows of a batch, T numbers of all of them together, L numbers of the longest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase


class Ragged(NamedTuple):
    """B rows of numbers, each of its own length.

    Attributes:
        values: (T,) the rows' numbers, one row after the other.
        lengths: (B,) how many each row has.
    """

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Rows that are lists.

        Example:
            >>> Ragged.of([[1, 2], []]).lengths.tolist()
            [2, 0]
        """
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        first = next(itertools.chain.from_iterable(rows), 0)
        kind = np.float64 if isinstance(first, float) else np.int64  # labels may be numbers, tokens never are
        return cls(np.fromiter(itertools.chain.from_iterable(rows), kind, int(lengths.sum())), lengths)

    def padded(self, fill: int, *, left: bool = False, multiple_of: int | None = None) -> Tensor:
        """The rows side by side.

        Args:
            fill: What stands where a row has no number.
            left: Whether that is before its numbers, and not after them.
            multiple_of: L is rounded up to a multiple of it.

        Returns:
            (B, L) int64.

        Example:
            >>> Ragged.of([[1, 2], [3]]).padded(0).tolist(), Ragged.of([[1, 2], [3]]).padded(0, left=True).tolist()
            ([[1, 2], [3, 0]], [[1, 2], [0, 3]])
        """
        longest = int(self.lengths.max(initial=0))
        width = longest if multiple_of is None else -(-longest // multiple_of) * multiple_of
        places = np.arange(width) < self.lengths[:, None]
        made = np.full(places.shape, fill, dtype=np.int64)
        made[places[:, ::-1] if left else places] = self.values  # both in the order of rows, then of numbers
        return torch.from_numpy(made)

    def take(self, rows: np.ndarray) -> Ragged:
        """Some rows, in a given order.

        Example:
            >>> Ragged.of([[1, 2], [], [3]]).take(np.array([2, 0])).lists()
            [[3], [1, 2]]
        """
        lengths = self.lengths[rows]
        starts, ends = (np.cumsum(self.lengths) - self.lengths)[rows], np.cumsum(lengths)
        return Ragged(
            self.values[np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())], lengths
        )

    def stacked(self) -> Tensor:
        """Rows of equal length as one tensor, (B, L) float32: labels of several numbers.

        Example:
            >>> Ragged.of([[0.0, 1.0], [0.5, 0.5]]).stacked().shape
            torch.Size([2, 2])
        """
        return torch.from_numpy(self.values.astype(np.float32)).reshape(len(self.lengths), -1)

    def lists(self) -> list[list[int]]:
        """The rows as lists."""
        return [part.tolist() for part in np.split(self.values, np.cumsum(self.lengths)[:-1])]


Columns = Mapping[str, "Ragged | np.ndarray"]
"""Of B rows by name: rows of numbers, or (B,) one number for each."""


def columns_of(rows: Sequence[Mapping[str, Any]] | Columns) -> Columns:
    """Flat columns of rows; they are those of the first row.

    Args:
        rows: Rows as mappings, as a stream gives them, or what `IndexedRows` gives, which are columns already.

    Example:
        >>> columns_of([{"input_ids": [5, 6], "labels": 1}])
        {'input_ids': Ragged(values=array([5, 6]), lengths=array([2])), 'labels': array([1])}
    """
    if isinstance(rows, Mapping):
        return rows
    given = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: Ragged.of(values) if isinstance(values[0], Sequence) else np.array(values)
        for name, values in given.items()
    }


@dataclass(frozen=True, eq=False)
class Padding:
    """Pads flat columns as a tokenizer pads lists, to the very same tensors.

    Args:
        tokenizer: Its side, padding ids and model inputs decide. One that pads in a way of its own is asked itself.
        pad_to_multiple_of: As for `DataCollatorWithPadding`.

    Example:
        >>> Padding(bert_tokenizer).collate({"input_ids": Ragged.of([[7, 8], [9]])}, torch.zeros(2))["attention_mask"]
        tensor([[1, 1],
                [1, 0]])
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """Inputs of the model, each (B, L); a column of single numbers stays (B,).

        Args:
            encoded: The columns, by the names of the inputs.
            example_ids: (B,) int64; not needed here.
        """
        tokenizer, main = self.tokenizer, self.tokenizer.model_input_names[0]
        if tokenizer.pad_token_id is None or type(tokenizer)._pad is not PreTrainedTokenizerBase._pad:
            pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)
            return dict(pad(as_rows(encoded)))
        if "attention_mask" in tokenizer.model_input_names and "attention_mask" not in encoded:
            tokens = encoded[main]
            encoded = {**encoded, "attention_mask": tokens._replace(values=np.ones_like(tokens.values))}
        fills = {
            "token_type_ids": tokenizer.pad_token_type_id,
            "special_tokens_mask": 1,
            main: tokenizer.pad_token_id,
        }
        left = tokenizer.padding_side == "left"
        return {
            name: column.padded(fills.get(name, 0), left=left, multiple_of=self.pad_to_multiple_of)
            if isinstance(column, Ragged)
            else torch.from_numpy(column)
            for name, column in encoded.items()
        }


def student_padding(collator: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """How the student's columns are padded where a user gives a data collator, or none.

    Args:
        collator: The user's; a `DataCollatorWithPadding` that pads to the longest row is known, and is given no lists.
        tokenizer: The student's.
    """
    if collator is None:
        return Padding(tokenizer)
    if (
        type(collator) is DataCollatorWithPadding
        and collator.padding in (True, "longest")
        and collator.return_tensors == "pt"
    ):
        return Padding(collator.tokenizer, collator.pad_to_multiple_of)
    return collator


def as_rows(columns: Columns) -> list[dict[str, Any]]:
    """One mapping of lists per row, as data collators of `transformers` take them."""
    lists = {name: c.lists() if isinstance(c, Ragged) else c.tolist() for name, c in columns.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


@dataclass(frozen=True, eq=False)
class IndexedRows(torch.utils.data.Dataset):
    """A dataset whose loader is given the rows of a batch as flat columns, gathered from where they are stored.

    Args:
        rows: Prepared rows; those on disk stay there, mapped into memory.
    """

    rows: datasets.Dataset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __getitems__(self, indices: Sequence[int]) -> Columns:
        """What the loader asks for: B rows."""
        mapped, starts, columns = self._stored
        places = np.asarray(indices) if mapped is None else mapped[indices]
        parts = np.searchsorted(starts, places, side="right") - 1
        where = list(zip(parts.tolist(), (places - starts[parts]).tolist(), strict=True))
        return {name: _gathered(stored, where) for name, stored in columns.items()}

    @functools.cached_property
    def _stored(self) -> tuple[np.ndarray | None, np.ndarray, dict[str, list[Any]]]:
        # Which stored row each row is, where each stored part begins, and its columns, none of it copied.
        indices, parts = self.rows._indices, self.rows.data.table.to_batches()
        mapped = None if indices is None else indices.column(0).to_numpy().astype(np.int64)
        starts = np.cumsum([0, *(part.num_rows for part in parts)])[:-1]
        columns = {name: [_in_place(part.column(name)) for part in parts] for name in self.rows.column_names}
        return mapped, starts, columns

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker maps the files itself; pickled, the maps would be copied whole.
        return {"rows": self.rows}


def _in_place(column: pa.Array) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
    """Numbers and where each row of them begins, or one number for each row."""
    if isinstance(column, (pa.ListArray, pa.LargeListArray)):
        return column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    return column.to_numpy(zero_copy_only=False)


def _gathered(stored: Sequence[Any], where: Sequence[tuple[int, int]]) -> Ragged | np.ndarray:
    """Rows by the part they lie in and their place there."""
    if not isinstance(stored[0], tuple):
        return np.array([stored[part][row] for part, row in where])
    rows = []
    for part, row in where:
        values, offsets = stored[part]
        rows.append(values[offsets[row] : offsets[row + 1]])
    return Ragged(np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows)))


def indexed(rows: Any) -> Any:
    """Prepared rows as a loader is to read them; a stream stays as it is."""
    return IndexedRows(rows) if isinstance(rows, datasets.Dataset) else rows
