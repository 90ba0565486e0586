"""A finished run, found in its folder: what its students, their baselines and its teachers answered, and the verdict on them.

Shapes: N rows, n rows that fitted the fusion.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CorruptStateError, DataError
from ..files import run_folder
from ..fusion.alignment import labelled as with_label
from ..tasks import known_family
from ..teachers.held_out import FUSION_FILE
from .answers import FOLDER, SavedRows, load_rows, rows_file
from .reading import load_report
from .report import VerdictReport
from .systems import STUDENT


@dataclass(frozen=True, eq=False)
class FoundRun:
    """A run with a verdict.

    Attributes:
        folder: Its output folder.
        students: What the student of each seed answered, the run's own first.
        baselines: What the same student without teachers answered, of the same seeds; empty where there is none.
        teachers: What teachers and ensemble answered; None where that is not there.
        fitted_on: (n,) int64 ids of the rows that fitted the fusion.
        report: The verdict on these answers; None where there is none.
        notes: What is missing.
    """

    folder: Path
    students: tuple[SavedRows, ...]
    baselines: tuple[SavedRows, ...]
    teachers: SavedRows | None
    fitted_on: np.ndarray
    report: VerdictReport | None
    notes: tuple[str, ...]


def saved_verdict(run: str | os.PathLike[str]) -> VerdictReport:
    """The verdict in a run's folder; nothing is trained or timed again.

    Args:
        run: Output folder of `hf-distill train`.

    Raises:
        DataError: It has none.
        CorruptStateError: It cannot be read.
    """
    report = load_report(run_folder(run))
    if report is None:
        raise DataError(
            f"{run} has no verdict, which `hf-distill train` writes with evaluation.verdict=true: name the output folder of "
            "such a run."
        )
    return report


def find_run(run: str | os.PathLike[str]) -> FoundRun:
    """Read what a run answered: of files of several recipes those that its verdict is on, or that its teachers are of.

    Args:
        run: Output folder of `hf-distill train`.

    Raises:
        DataError: It has no answers of students, or says nowhere which are its own, or which rows fitted its fusion.
        CorruptStateError: One of its files cannot be read.
    """
    folder, notes = run_folder(run), []
    students, baselines = _seeds(folder, STUDENT), _seeds(folder, "baseline")
    if not students:
        raise DataError(
            f"{folder} has no {FOLDER}/rows-student-*.npz, which `hf-distill train` writes with evaluation.verdict=true: "
            "name the output folder of such a run."
        )
    file, report = rows_file(folder, "teachers", None), load_report(folder)
    teachers = load_rows(file) if file.is_file() else None
    key = _own_key(folder, students, teachers, report)
    students, baselines = ([s for s in own if s.key == key] for own in (students, baselines))
    both = {s.seed for s in students} & {s.seed for s in baselines}
    if both and len(both) < len(students):
        notes.append(f"{len(students) - len(both)} seeds have no fine-tuned student yet and are left out.")
        students = [s for s in students if s.seed in both]
    if teachers is None or teachers.key != key:
        teachers = None
        notes.append("what its teachers answered is not there.")
    fitted, ids = fitted_on(folder), students[0].rows.example_ids
    if fitted is None and report is not None and report.evaluation.rows < len(ids):
        raise DataError(
            f"The verdict of {folder} is on {report.evaluation.rows} of {len(ids)} rows, and {FUSION_FILE}, which names the "
            "others, those that fitted its fusion, is not there: train that run again."
        )
    fitted = np.empty(0, np.int64) if fitted is None else fitted
    judged = next((s for s in students if report is not None and s.seed == report.seeds[0]), None)
    if report is None or judged is None or not is_of(report, judged, fitted):
        what = "has no verdict yet" if report is None else "its report.json is of other answers"
        notes.append(f"{what}: what its models cost is not known.")
        report = None
    if report is not None:  # the run's own seed first, and none that a verdict of more seeds has left
        place = {seed: i for i, seed in enumerate(report.seeds)}
        students, baselines = (
            sorted((s for s in own if s.seed in place), key=lambda saved: place[saved.seed])
            for own in (students, baselines)
        )
    return FoundRun(
        folder,
        tuple(students),
        tuple(s for s in baselines if s.seed in both),
        teachers,
        fitted,
        report,
        tuple(notes),
    )


def _own_key(
    folder: Path, students: Sequence[SavedRows], teachers: SavedRows | None, report: VerdictReport | None
) -> str:
    """What decided the trainings that are compared: of its verdict, else of the training that its teachers answered for."""
    keys = {saved.key for saved in students}
    if report is not None and any((s.key, s.seed) == (report.key, report.seeds[0]) for s in students):
        return report.key
    if teachers is not None and teachers.key in keys:
        return teachers.key
    if len(keys) > 1:
        raise DataError(
            f"{folder} has answers of students of {len(keys)} recipes, and no verdict that says which are its own: finish "
            "that run, or remove the others."
        )
    return keys.pop()


def _seeds(folder: Path, part: str) -> list[SavedRows]:
    """One training's answers after another, by seed."""
    files = (folder / FOLDER).glob(f"rows-{part}-*.npz")
    return [load_rows(path) for path in sorted(files, key=lambda path: int(path.stem.rpartition("-")[2]))]


def fitted_on(folder: Path) -> np.ndarray | None:
    """(n,) ids of the rows that fitted a run's fusion; of the fusion itself, which may be a user's own, nothing is read.

    Args:
        folder: Of the run.

    Returns:
        None where the run keeps no fusion.

    Raises:
        CorruptStateError: They cannot be read.

    Example:
        >>> fitted_on(getfixture("tmp_path")) is None
        True
    """
    path = folder / FUSION_FILE
    if not path.is_file():
        return None
    try:
        return np.array(json.loads(path.read_text(encoding="utf-8"))["fitted_on"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CorruptStateError(
            f"{path} does not say which rows fitted the fusion ({' '.join(str(error).split())[:200]}): train that run again."
        ) from error


def is_of(report: VerdictReport, student: SavedRows, fitted: np.ndarray) -> bool:
    """Whether a verdict is on these answers: of this training, on as many rows, with this NLL of the run's own seed.

    Args:
        report: The verdict.
        student: What the run's own student answered.
        fitted: (n,) ids of the rows that fitted the fusion.
    """
    kept = ~np.isin(student.rows.example_ids, fitted)
    rows = np.flatnonzero(kept & with_label(student.rows.labels))
    family = known_family(report.evaluation.task)
    if family is None:
        return report.key == student.key and report.evaluation.rows == kept.sum()
    said = report.by_seed.get(STUDENT, {}).get(student.seed or 0, {}).get(family.proper)
    if report.key != student.key or report.evaluation.rows != kept.sum() or said is None or not len(rows):
        return False
    answers = student.rows.log_probs[STUDENT][rows].astype(np.float64)
    nll = dict(zip(family.measures[1:], family.scores(answers, student.rows.labels[rows]), strict=True))[
        family.proper
    ].mean()
    # In the file, a number that is not finite is not a number.
    return bool(np.isclose(nll, said, rtol=1e-4) if np.isfinite(nll) else not np.isfinite(said))
