"""Raw datasets in, prepared ones out: completed in the cache, read by every view, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from transformers import TrainingArguments

from ..errors import ConfigurationError, DataError
from ..fusion.alignment import labelled
from ..rows.content import Content
from ..rows.labels import LabelReader, count_labelled
from ..rows.preparing import is_prepared, prepare_dataset
from ..rows.texts import TEXTS
from ..rows.views import View
from ..tasks.family import Family
from ..tasks.task import Task
from ..teachers.cache.build import TeacherCache
from ..teachers.cache.reading import CachedView
from ..teachers.pool import TeacherPool


@dataclass(eq=False)
class RowPreparation:
    """`prepare_dataset` with the settings of a run, remembered by the rows' fingerprints.

    Args:
        args: Says which process goes first.
        text_columns: As for the trainer.
        labels: How labels are read.
        student_view: How the student reads rows.
        pool: The teachers.
        cache: Where their outputs are kept; None: they run live.
        word_views: Names of the teachers' views whose words are matched with the student's.
        content: What rows hold.
    """

    args: TrainingArguments
    text_columns: Sequence[str]
    labels: LabelReader
    student_view: View
    pool: TeacherPool
    cache: TeacherCache | None = None
    word_views: Sequence[str] = ()
    content: Content = TEXTS
    _prepared: dict[str, Any] = field(default_factory=dict)
    _raw: list[tuple[Any, Any, str]] = field(default_factory=list)

    def refuse_other_length(self, max_length: int | None) -> None:
        """Refuse a length that was set after the rows were tokenized.

        Raises:
            ConfigurationError: It is another one.
        """
        if max_length not in (None, self.student_view.max_length):
            raise ConfigurationError(
                f"max_length was set to {max_length} after the rows were tokenized with {self.student_view.max_length}: "
                "set it before the trainer is made."
            )

    def each(self, given: Any, what: str) -> Any:
        """Prepared rows of one dataset, or of each in a dict of them."""
        return (
            {name: self(part, f"{what} {name!r}") for name, part in given.items()}
            if isinstance(given, dict)
            else self(given, what)
        )

    def of_student(self, label_names: Sequence[str], task: Task) -> RowPreparation:
        """The same for the student alone: no teacher's tokens are made, and no cache is completed.

        Args:
            label_names: The student's.
            task: The task.
        """
        return RowPreparation(
            self.args,
            self.text_columns,
            self.labels,
            self.student_view,
            TeacherPool([], label_names, task=task),
            content=self.content,
        )

    def __call__(self, dataset: Any, what: str) -> Any:
        """Prepared rows; None and prepared rows are returned as they are.

        Raises:
            DataError: The rows cannot be read.
            CorruptStateError: A cached teacher was never run over some of them.
        """
        if dataset is None or is_prepared(dataset, self.text_columns):
            return dataset
        key = getattr(dataset, "_fingerprint", None)  # None: a stream
        if key in self._prepared:
            return self._prepared[key]
        if self.cache is not None:
            self.cache.add(dataset, self.text_columns)
        with self.args.main_process_first(desc="preparing"):
            prepared = prepare_dataset(
                dataset,
                text_columns=self.text_columns,
                labels=self.labels,
                student_view=self.student_view,
                teacher_views=self.pool.views,
                word_views=self.word_views,
                content=self.content,
                what=what,
            )
        if isinstance(prepared, datasets.Dataset):
            for view in self.pool.views.values():
                if isinstance(view, CachedView):
                    view.refuse_unknown(prepared.with_format("numpy")["example_id"][:])
        if key is not None:
            self._prepared[key] = prepared
            self._raw.append((dataset, prepared, what))
        return prepared

    def row_of(self, example_id: int) -> str | None:
        """Which row that is, for messages: its number, its set and the beginning of its text; None in streams.

        Args:
            example_id: A prepared row's.
        """
        for raw, prepared, what in self._raw:
            if isinstance(prepared, datasets.Dataset):
                found = np.flatnonzero(prepared.with_format("numpy")["example_id"][:] == example_id)
                if len(found):
                    row = self.content.as_stored(raw.with_format(None), self.text_columns)[int(found[0])]
                    told = self.content.told([self.content.read(row[c]) for c in self.text_columns])
                    return f"row {found[0]} of the {what}, {told[0][:80]!r}"
        return None


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


def one_class_note(rows: Any, label_names: Sequence[str], family: Family) -> str:
    """What to say where all labels of prepared training rows are alike; "" where they are not.

    Args:
        rows: Prepared rows.
        label_names: The student's.
        family: Says what labels are.
    """
    if not isinstance(rows, datasets.Dataset) or not count_labelled(rows):
        return ""
    labels = rows.with_format("numpy", columns=["labels"])["labels"][:]
    alike = family.one_sided(labels[labelled(labels)], label_names)
    return (
        f"Note: all labels of the training set {alike}: from them alone a student learns to answer nothing else."
        if alike
        else ""
    )


def one_dataset(rows: Any) -> Any:
    """The rows to report on.

    Raises:
        DataError: There is no dataset, or several.
    """
    if rows is None or isinstance(rows, dict):
        raise DataError(
            "evaluate_ensemble needs one dataset, but the trainer has "
            f"{'none' if rows is None else f'several ({list(rows)})'}: pass dataset=."
        )
    return rows


def overlap_notes(rows: Any, *, trained: Any, selected: Any) -> list[str]:
    """What a report on some rows must say of the training.

    Args:
        rows: Prepared rows that are evaluated.
        trained: Prepared rows the student was trained on.
        selected: Prepared rows, or a dict of them, by which its checkpoint was chosen.
    """
    sentences = {
        "were also trained on, so the student's figures flatter it there.": trained,
        "also selected the student's checkpoint, so its figures are optimistic there.": selected,
    }
    notes = []
    for sentence, given in sentences.items():
        others = given.values() if isinstance(given, dict) else [given]
        known = {i for other in others if isinstance(other, datasets.Dataset) for i in other["example_id"][:]}
        ids = rows["example_id"][:] if isinstance(rows, datasets.Dataset) else []
        if count := sum(i in known for i in ids):
            notes.append(f"{count} of {len(ids)} rows {sentence}")
    return notes
