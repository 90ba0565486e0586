"""The column ``labels`` of prepared rows, whatever the task: who fills it, and how many rows have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import datasets

from ..fusion.alignment import labelled


class LabelReader(NamedTuple):
    """How the labels of raw rows are read; a task makes it.

    Attributes:
        column: The column that holds them.
        key: What else decides what is read, as JSON can hold it: a part of the key of prepared rows. Two tasks that
            read one column differently need different keys.
        encoder: From the column's feature, None where there is no such column, to ``encode(values, row_numbers) ->
            labels``: what the batch is to hold of each row: one number, -100 where a row has no label; or a list of as many floats as
            the head has outputs, NaN where it has none.
    """

    column: str
    key: Any
    encoder: Callable[[Any], Callable[[Sequence[Any], Sequence[int]], list[Any]]]


def count_labelled(dataset: Any) -> int | None:
    """How many prepared rows have a label; None for streams, which only the end would tell."""
    if not isinstance(dataset, datasets.Dataset):
        return None
    labels = dataset.with_format("numpy", columns=["labels"])["labels"]
    return int(labelled(labels[:]).sum())
