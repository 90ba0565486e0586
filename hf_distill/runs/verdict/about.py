"""What a run was, for whoever reads its report without having been there."""

from __future__ import annotations

import datetime
import shlex
from pathlib import Path
from typing import Any

from ... import __version__
from ...recipe.setup import Setup
from ...rows.labels import count_labelled
from ...training.trainer import MultiTeacherDistillationTrainer
from ...verdict.numbers import About
from ...verdict.report import RECIPE


def about_run(setup: Setup, trainer: MultiTeacherDistillationTrainer) -> About:
    """Say what was run; of folders and files no more than their names.

    Args:
        setup: Of the recipe.
        trainer: The run's.
    """
    data, rows, student = setup.recipe.data, trainer.train_dataset, trainer.student
    source = data.dataset or ", ".join(Path(name).name for name in (data.files.train if data.files else ()))
    base = getattr(student.config, "_name_or_path", "") or ""
    return About(
        run=setup.folder.absolute().name,
        command=shlex.join(["hf-distill", "train", str(setup.folder / RECIPE)]),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        data=source or "rows given in Python",
        trained_rows=len(rows) if hasattr(rows, "__len__") else 0,
        labelled_rows=(count_labelled(rows) or 0) if hasattr(rows, "__len__") else 0,
        student=type(student).__name__,
        base=Path(base).name if Path(base).is_dir() else base,
        parameters=student.num_parameters(),
        teachers=tuple((teacher.called, _kind(trainer, teacher.called)) for teacher in setup.teachers),
        version=__version__,
    )


def _kind(trainer: Any, name: str) -> str:
    """A teacher's class, where it is in memory: of one that is read from the cache, nothing says."""
    found = next((own for own in trainer.teachers if own.name == name), None)
    model = getattr(found, "model", None)
    return "" if model is None else type(model).__name__
