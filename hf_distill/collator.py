"""From tokenized rows to a batch: the student's view padded as ever, each teacher view by its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .views import VIEWS, View, view_column


class MultiTeacherCollator:
    """Pads the student's view and lets every teacher view make its own part of a batch.

    Args:
        student: Collator of the student's columns: any data collator of `transformers`; it also gets the labels.
            None where only teachers are run.
        views: The teacher views by name.

    Returns:
        Called on B prepared rows: the student's batch plus ``example_id`` (B,) int64 and ``teacher_views``
        ``{view: {input: (B, L_view)}}``.

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
        columns = [key for key in rows[0] if key != "example_id" and not key.startswith(VIEWS)]
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
            encoded = [{short: row[key] for short, key in inputs.items()} for row in rows]
            views[name] = view.collate(encoded, example_id)
        return {**batch, "example_id": example_id, VIEWS: views}
