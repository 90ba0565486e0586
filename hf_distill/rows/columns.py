"""Rows as flat columns: the numbers of all rows one after the other, and where each row begins. No Python lists of numbers.

Shapes: B rows of a batch, T numbers of all of them together, L numbers of the longest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
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
        if len(rows) and isinstance(rows[0], np.ndarray):
            return cls(np.concatenate(rows), lengths)
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
        return self.placed(places_of(self.lengths, left=left, multiple_of=multiple_of), fill)

    def placed(self, places: np.ndarray, fill: int) -> Tensor:
        """As `padded`.

        Args:
            places: (B, L) bool of `places_of`, which columns of the same lengths share.
            fill: What stands where a row has no number.
        """
        made = np.full(places.shape, fill, dtype=np.int64)
        made[places] = self.values  # both in the order of rows, then of numbers
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


def places_of(lengths: np.ndarray, *, left: bool = False, multiple_of: int | None = None) -> np.ndarray:
    """Where rows' numbers stand when they are padded; see `Ragged.padded`.

    Args:
        lengths: (B,).
        left: Whether padding stands before the numbers.
        multiple_of: L is rounded up to a multiple of it.

    Returns:
        (B, L) bool.

    Example:
        >>> places_of(np.array([2, 1])).tolist()
        [[True, True], [True, False]]
    """
    longest = int(lengths.max(initial=0))
    width = longest if multiple_of is None else -(-longest // multiple_of) * multiple_of
    places = np.arange(width) < lengths[:, None]
    return places[:, ::-1] if left else places


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
        main, masked, left, fills = self._rules
        if fills is None:
            pad = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)
            return dict(pad(as_rows(encoded)))
        if masked and "attention_mask" not in encoded:
            tokens = encoded[main]
            encoded = {**encoded, "attention_mask": tokens._replace(values=np.ones_like(tokens.values))}
        batch, places, lengths = {}, None, None
        for name, column in encoded.items():
            if not isinstance(column, Ragged):
                batch[name] = torch.from_numpy(column)
                continue
            if column.lengths is not lengths:
                lengths = column.lengths
                places = places_of(lengths, left=left, multiple_of=self.pad_to_multiple_of)
            batch[name] = column.placed(places, fills.get(name, 0))
        return batch

    @functools.cached_property
    def _rules(self) -> tuple[str, bool, bool, dict[str, int] | None]:
        # A tokenizer looks its padding up in its tables whenever it is asked, so it is asked once.
        tokenizer, names = self.tokenizer, self.tokenizer.model_input_names
        fills = {
            "token_type_ids": tokenizer.pad_token_type_id,
            "special_tokens_mask": 1,
            names[0]: tokenizer.pad_token_id,
        }
        own_way = tokenizer.pad_token_id is None or type(tokenizer)._pad is not PreTrainedTokenizerBase._pad
        left = tokenizer.padding_side == "left"
        return names[0], "attention_mask" in names, left, None if own_way else fills


def student_padding(collator: Any, view: Any) -> Any:
    """What makes the student's part of a batch where a user gives a data collator, or none.

    Args:
        collator: The user's; a `DataCollatorWithPadding` that pads to the longest row is known, and is given no lists.
        view: The student's.
    """
    if collator is None:
        return view
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
        mapped, starts, _, _ = self._stored
        places = np.asarray(indices) if mapped is None else mapped[indices]
        numbers = np.searchsorted(starts, places, side="right") - 1
        rows = (places - starts[numbers]).tolist()
        parts = [self._part(number) for number in numbers.tolist()]
        if any(part.names != parts[0].names for part in parts):  # alike in one part alone, by chance
            parts = [self._part(number, apart=True) for number in numbers.tolist()]
        found: dict[str, Ragged | np.ndarray] = {}
        for i, names in enumerate(parts[0].names):
            groups = [part.groups[i] for part in parts]
            found.update(_gathered(names, list(zip(groups, rows, strict=True))))
        return {name: found[name] for name in self.rows.column_names}

    @functools.cached_property
    def _stored(
        self,
    ) -> tuple[np.ndarray | None, np.ndarray, list[pa.RecordBatch], dict[tuple[int, bool], _Part]]:
        # Which stored row each row is, where each stored part begins, the parts, none of them copied, and those that were used.
        indices, parts = self.rows._indices, self.rows.data.table.to_batches()
        mapped = None if indices is None else indices.column(0).to_numpy().astype(np.int64)
        return mapped, np.cumsum([0, *(part.num_rows for part in parts)])[:-1], parts, {}

    def _part(self, number: int, *, apart: bool = False) -> _Part:
        _, _, parts, used = self._stored
        if (number, apart) not in used:
            used[number, apart] = _Part.of(parts[number], self.rows.column_names, apart=apart)
        return used[number, apart]

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker maps the files itself; pickled, the maps would be copied whole.
        return {"rows": self.rows}


class _Group(NamedTuple):
    """Columns whose rows are of the same lengths, as a tokenizer's are.

    Attributes:
        offsets: Where each row begins; None where it has one number.
        values: The numbers of all rows, column by column.
        constants: Of each column the number that all of its numbers are, as those of a mask; None where they differ.
    """

    offsets: memoryview | None  # of which Python reads numbers faster than of an array
    values: tuple[np.ndarray, ...]
    constants: tuple[Any, ...]

    @classmethod
    def of(cls, offsets: np.ndarray | None, values: tuple[np.ndarray, ...]) -> _Group:
        """Where columns lie, nothing of them copied."""
        if offsets is None:
            return cls(None, values, (None,) * len(values))
        constants = (v[0] if len(v) and v.min() == v.max() else None for v in values)
        return cls(memoryview(offsets), values, tuple(constants))


class _Part(NamedTuple):
    """Rows that are stored together: the names of the columns of each group, and the groups, in place."""

    names: tuple[tuple[str, ...], ...]
    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, stored: pa.RecordBatch, columns: Sequence[str], *, apart: bool = False) -> _Part:
        """Where the columns lie, nothing of them copied; each in a group of its own where they are to stay apart."""
        groups: list[tuple[np.ndarray | None, dict[str, np.ndarray]]] = []
        for name in columns:
            column = stored.column(name)
            if not isinstance(column, (pa.ListArray, pa.LargeListArray)):
                groups.append((None, {name: column.to_numpy(zero_copy_only=False)}))
                continue
            offsets, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
            for known, same in groups:
                if not apart and known is not None and np.array_equal(known, offsets):
                    same[name] = values
                    break
            else:
                groups.append((offsets, {name: values}))
        return cls(
            tuple(tuple(same) for _, same in groups),
            tuple(_Group.of(offsets, tuple(same.values())) for offsets, same in groups),
        )


def _gathered(
    names: Sequence[str], where: Sequence[tuple[_Group, int]]
) -> Iterator[tuple[str, Ragged | np.ndarray]]:
    """A group's columns, by the part that each row lies in and its place there."""
    if where[0][0].offsets is None:
        yield names[0], np.array([group.values[0][row] for group, row in where])
        return
    cut = [(values, offsets[row], offsets[row + 1]) for (offsets, values, _), row in where]
    lengths = np.array([end - start for _, start, end in cut])
    total, groups = int(lengths.sum()), {id(group): group for group, _ in where}.values()
    for i, name in enumerate(names):
        alike = {group.constants[i] for group in groups}
        if len(alike) == 1 and None not in alike:  # nothing to be looked up
            yield name, Ragged(np.full(total, alike.pop()), lengths)
            continue
        yield name, Ragged(np.concatenate([values[i][start:end] for values, start, end in cut]), lengths)


def indexed(rows: Any) -> Any:
    """Prepared rows as a loader is to read them; a stream stays as it is."""
    return IndexedRows(rows) if isinstance(rows, datasets.Dataset) else rows
