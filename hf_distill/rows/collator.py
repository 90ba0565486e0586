"""From tokenized rows to a batch: the student's view padded as ever, each teacher view by its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..errors import DataError
from .views import VIEWS, WORD_MASK, WORD_OF, View, view_column


class MultiTeacherCollator:
    """Pads the student's view and lets every teacher view make its own part of a batch.

    Args:
        student: Collator of the student's columns: any data collator of `transformers`; it also gets the labels.
            None where only teachers are run.
        views: The teacher views by name.

    Returns:
        Called on B prepared rows: the student's batch plus ``example_id`` (B,) int64 and ``teacher_views``
        ``{view: {input: (B, L_view)}}``; where words are matched also `WORD_OF` (B, L), in the student's batch and in the
        views, -1 at padding, and `WORD_MASK` (B, W).

    Example:
        >>> from hf_distill import MultiTeacherCollator
        >>> MultiTeacherCollator(None, {})([{"example_id": 7, "labels": 1}])
        {'labels': tensor([1]), 'example_id': tensor([7]), 'teacher_views': {}}
    """

    def __init__(
        self, student: Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None, views: Mapping[str, View]
    ) -> None:
        self.student = student
        self.views = dict(views)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        # The columns are those of the first row: asking every row is what collation would mostly do.
        columns = [key for key in rows[0] if key not in ("example_id", WORD_OF) and not key.startswith(VIEWS)]
        own = [{key: row[key] for key in columns} for row in rows]
        example_id = torch.tensor([row["example_id"] for row in rows])
        if self.student is None:
            batch = {"labels": torch.tensor([row["labels"] for row in own])}
        else:
            batch = dict(self.student(own))
        views = {}
        for name, view in self.views.items():
            prefix = view_column(name, "")
            inputs = {key.removeprefix(prefix): key for key in rows[0] if key.startswith(prefix)}
            words = inputs.pop(WORD_OF, None)
            encoded = [{short: row[key] for short, key in inputs.items()} for row in rows]
            views[name] = view.collate(encoded, example_id)
            if words is not None:
                views[name][WORD_OF] = _at_tokens([row[words] for row in rows], views[name])
        batch |= {"example_id": example_id, VIEWS: views}
        if WORD_OF in rows[0]:
            batch[WORD_OF] = _at_tokens([row[WORD_OF] for row in rows], batch)
            # The same for all views, since a word counts only if each has it whole.
            counts = torch.tensor([max(row[WORD_OF], default=-1) + 1 for row in rows])
            batch[WORD_MASK] = torch.arange(int(counts.max())) < counts[:, None]
        return batch


def _at_tokens(rows: Sequence[Sequence[int]], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, L) int64: a number for each token where its row's tokens stand, -1 at padding, on whichever side that is.

    Raises:
        DataError: A batch has other tokens than the rows: a collator has cut or added some.
    """
    mask = inputs["attention_mask"].bool()
    if mask.sum(1).tolist() != [len(row) for row in rows]:
        raise DataError(
            "Hidden losses by words: the data collator returns other tokens than the rows have, so their words are not "
            'known: let it pad only, or use units="mean".'
        )
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
    return torch.full(mask.shape, -1, dtype=torch.int64).masked_scatter(mask, numbers)
