"""What the systems of a run answered, row by row, kept beside it, so that runs can be judged and compared later.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import CorruptStateError, DataError
from ..files import whole

FOLDER = "verdict"
"""Where a run keeps its rows."""

_VERSION = 1


class Answers(NamedTuple):
    """What systems say of the rows of one split.

    Attributes:
        example_ids: (N,) int64, a hash of each row's text columns.
        labels: (N,) int64, -100 where a row has none; or (N, C) numbers, NaN where it has none.
        log_probs: (N, C) float32 at temperature 1, by the system's name, as `Task.log_probs` says it.
    """

    example_ids: np.ndarray
    labels: np.ndarray
    log_probs: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class SavedRows:
    """One training's answers, or the teachers'.

    Attributes:
        part: ``student``, ``baseline``, ``single`` (a student of one teacher) or ``teachers``.
        seed: Of the training; None for teachers.
        split: Of the rows.
        label_names: The C classes.
        rows: The answers on the split.
        validation: Those on the validation rows, which nothing is reported on; None where there are none.
        lengths: (N,) int64 tokens of each row as the student reads it; None where rows have no tokens.
        facts: Steps, seconds and log of the training.
        key: What decided the training: another run's rows have another.
    """

    part: str
    seed: int | None
    split: str
    label_names: tuple[str, ...]
    rows: Answers
    validation: Answers | None = None
    lengths: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    def save(self, run: str | os.PathLike[str]) -> Path:
        """Write it into a run's folder and return the file.

        Example:
            >>> answers = Answers(np.array([7]), np.array([0]), {"student": np.log([[0.5, 0.5]])})
            >>> saved = SavedRows("student", 3, "test", ("a", "b"), answers)
            >>> path = saved.save(getfixture("tmp_path"))
            >>> path.name, load_rows(path).rows.labels
            ('rows-student-3.npz', array([0]))
        """
        path = rows_file(run, self.part, self.seed)
        arrays: dict[str, Any] = {} if self.lengths is None else {"lengths": self.lengths}
        systems: dict[str, list[str]] = {}
        for name, answers in (("rows", self.rows), ("validation", self.validation)):
            if answers is not None:
                arrays |= {f"{name}_ids": answers.example_ids, f"{name}_labels": answers.labels}
                systems[name] = list(answers.log_probs)
                arrays |= {
                    f"{name}_{i}": values.astype(np.float32)
                    for i, values in enumerate(answers.log_probs.values())
                }
        about = {
            "version": _VERSION,
            **{name: getattr(self, name) for name in ("part", "seed", "split", "label_names", "key")},
            "facts": dict(self.facts),
            "systems": systems,
        }
        with whole(path, "wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
        return path


def rows_file(run: str | os.PathLike[str], part: str, seed: int | None) -> Path:
    """Where a run keeps the rows of one training."""
    return Path(run) / FOLDER / f"rows-{part}{'' if seed is None else f'-{seed}'}.npz"


def load_rows(path: Path) -> SavedRows:
    """Read what `SavedRows.save` wrote.

    Raises:
        CorruptStateError: It is damaged, or of a newer version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["version"] > _VERSION:
                raise ValueError(f"version {about['version']} is newer than this package")

            def answers(name: str) -> Answers | None:
                if name not in about["systems"]:
                    return None
                logs = {system: file[f"{name}_{i}"] for i, system in enumerate(about["systems"][name])}
                return Answers(file[f"{name}_ids"], file[f"{name}_labels"], logs)

            rows = answers("rows")
            assert rows is not None
            return SavedRows(
                part=about["part"],
                seed=about["seed"],
                split=about["split"],
                label_names=tuple(about["label_names"]),
                rows=rows,
                validation=answers("validation"),
                lengths=file["lengths"] if "lengths" in file.files else None,
                facts=about["facts"],
                key=about["key"],
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, AssertionError, zipfile.BadZipFile) as error:
        raise CorruptStateError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): remove it, and train that seed again."
        ) from error


def differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) bool, which rows have other labels, where two that have none are alike.

    Example:
        >>> differ(np.array([[0.5], [np.nan]]), np.array([[0.5], [1.0]]))
        array([False,  True])
    """
    apart = (first != second) & ~((first != first) & (second != second))
    return apart if apart.ndim == 1 else apart.any(1)


def finished_rows(run: str | os.PathLike[str], part: str, seed: int | None, key: str) -> SavedRows | None:
    """The rows of a training that was finished before under the same key; None where there is none."""
    path = rows_file(run, part, seed)
    if not path.is_file():
        return None
    try:
        saved = load_rows(path)
    except CorruptStateError:
        return None
    return saved if saved.key == key else None


def in_order(
    saved: SavedRows,
    example_ids: np.ndarray,
    label_names: Iterable[str],
    what: str,
    labels: np.ndarray | None = None,
) -> Answers:
    """Answers on the same rows in another order, columns by the classes' names.

    Rows that stand twice are told apart by their labels where these are known, and then by which comes first.

    Args:
        saved: The answers.
        example_ids: (N,) the rows that are wanted.
        label_names: The C classes that are wanted.
        what: Whose they are, for the message.
        labels: (N,) of the rows that are wanted, as indices of their classes; None where both were read in one order.

    Raises:
        DataError: They are answers on other rows, or over other classes.

    Example:
        >>> answers = Answers(np.array([7, 9]), np.array([0, 1]), {"student": np.log([[0.9, 0.1], [0.2, 0.8]])})
        >>> saved = SavedRows("student", 3, "test", ("a", "b"), answers)
        >>> np.exp(in_order(saved, np.array([9, 7]), ["b", "a"], "run").log_probs["student"])
        array([[0.8, 0.2],
               [0.1, 0.9]])
    """
    rows, wanted = saved.rows, tuple(label_names)
    if sorted(saved.label_names) != sorted(wanted):
        raise DataError(
            f"{what} answers with the classes {list(saved.label_names)}, not with {list(wanted)}, so its rows cannot be "
            "paired: compare runs over the same classes."
        )
    columns = [saved.label_names.index(name) for name in wanted]
    number = np.array([wanted.index(name) for name in saved.label_names])
    renamed = (
        np.where(rows.labels < 0, rows.labels, number[np.clip(rows.labels, 0, None)])
        if rows.labels.ndim == 1
        else rows.labels[:, columns]  # a number for each output
    )

    def order(ids: np.ndarray, told: np.ndarray | None) -> np.ndarray:
        return np.argsort(ids, kind="stable") if labels is None else np.lexsort((*np.atleast_2d(told.T), ids))

    own, other = order(rows.example_ids, renamed), order(example_ids, labels)
    if len(own) != len(other) or not np.array_equal(rows.example_ids[own], example_ids[other]):
        common = len(np.intersect1d(rows.example_ids, example_ids))
        raise DataError(
            f"{what} was evaluated on other rows: {len(own)} of its own, {len(other)} here, {common} in common; "
            "evaluate both on the same split of the same data."
        )
    place = np.empty(len(own), dtype=np.int64)
    place[other] = own
    return Answers(
        np.asarray(example_ids),
        renamed[place],
        {name: values[place][:, columns] for name, values in rows.log_probs.items()},
    )
