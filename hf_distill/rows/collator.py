"""From prepared rows to a batch: the student's view and each teacher's make their own parts of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ConfigurationError, DataError
from .columns import Columns, Padding, Ragged, as_rows, columns_of
from .views import VIEWS, WORD_MASK, WORD_OF, View, view_column


class MultiTeacherCollator:
    """Lets the student's view and every teacher view make its own part of a batch.

    Args:
        student: The student's view, or a `Padding`; or any data collator of `transformers`, which is given lists of rows,
            labels among them. None where only teachers are run.
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
        self,
        student: View | Padding | Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None,
        views: Mapping[str, View],
    ) -> None:
        self.student = student
        self.views = dict(views)

    @property
    def draws_nothing(self) -> bool:
        """Whether a batch depends on its rows alone; a data collator of the user's own may mask tokens at random."""
        return self.student is None or hasattr(self.student, "collate")

    def augmented(self, augment: Callable[[Any, int], Any]) -> MultiTeacherCollator:
        """The same of rows that are changed at random, for student and teachers alike.

        Args:
            augment: As for `View.augmented`.

        Raises:
            ConfigurationError: A view cannot have that.
        """
        if not hasattr(self.student, "augmented"):
            raise ConfigurationError(
                "Rows are augmented before the student's own view reads them: leave data_collator out, or augment."
            )
        return MultiTeacherCollator(
            self.student.augmented(augment),
            {name: view.augmented(augment) for name, view in self.views.items()},
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Columns) -> dict[str, Any]:
        columns = columns_of(rows)
        example_id = torch.from_numpy(columns["example_id"])
        own = {
            name: column
            for name, column in columns.items()
            if name not in ("example_id", WORD_OF) and not name.startswith(VIEWS)
        }
        several = own.pop("labels") if isinstance(own.get("labels"), Ragged) else None
        if self.student is None or hasattr(self.student, "collate"):
            labels = own.pop("labels", None)
            batch = {} if labels is None else {"labels": torch.from_numpy(labels)}
            inputs = {} if self.student is None else self.student.collate(own, example_id)
            batch |= inputs
        else:
            inputs, batch = {}, dict(self.student(as_rows(own)))
        if several is not None:
            batch["labels"] = several.stacked()
        views = {}
        for name, view in self.views.items():
            prefix = view_column(name, "")
            stored = {key.removeprefix(prefix): c for key, c in columns.items() if key.startswith(prefix)}
            words = stored.pop(WORD_OF, None)
            # Teachers that read as the student does are given what was made for it.
            alike = inputs and getattr(self.student, "key", None) == view.key
            views[name] = dict(inputs) if alike else view.collate(stored, example_id)
            if words is not None:
                views[name][WORD_OF] = _at_tokens(words, views[name])
        batch |= {"example_id": example_id, VIEWS: views}
        if WORD_OF in columns:
            words = columns[WORD_OF]
            batch[WORD_OF] = _at_tokens(words, batch)
            # The same for all views, since a word counts only if each has it whole.
            counts = words.padded(-1).amax(1, keepdim=True) + 1
            batch[WORD_MASK] = torch.arange(int(counts.max())) < counts
        return batch


class StudentCollator:
    """Batches of the student alone: without teachers' views, which says that none is asked.

    Args:
        student: As for `MultiTeacherCollator`.

    Example:
        >>> StudentCollator(None)([{"example_id": 7, "labels": 1}])
        {'labels': tensor([1]), 'example_id': tensor([7])}
    """

    def __init__(
        self, student: View | Padding | Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None
    ) -> None:
        self._collate = MultiTeacherCollator(student, {})

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Columns) -> dict[str, Any]:
        batch = self._collate(rows)
        return {key: value for key, value in batch.items() if key not in (VIEWS, WORD_MASK, WORD_OF)}


def _at_tokens(numbers: Ragged, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, L) int64: a number for each token where its row's tokens stand, -1 at padding, on whichever side that is.

    Raises:
        DataError: A batch has other tokens than the rows: a collator has cut or added some.
    """
    mask = inputs["attention_mask"].bool()
    if not np.array_equal(mask.sum(1).numpy(), numbers.lengths):
        raise DataError(
            "Hidden losses by words: the data collator returns other tokens than the rows have, so their words are not "
            'known: let it pad only, or use units="mean".'
        )
    values = torch.from_numpy(numbers.values.astype(np.int64))
    return torch.full(mask.shape, -1, dtype=torch.int64).masked_scatter(mask, values)
