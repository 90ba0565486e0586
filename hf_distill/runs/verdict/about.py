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
    """Say what a recipe's run was; of folders and files no more than their names.

    Args:
        setup: Of the recipe.
        trainer: The run's.
    """
    data = setup.recipe.data
    source = data.dataset or ", ".join(Path(name).name for name in (data.files.train if data.files else ()))
    about = about_trainer(trainer)
    return about._replace(
        command=shlex.join(["hf-distill", "train", str(setup.folder / RECIPE)]),
        data=source or about.data,
    )


def about_trainer(trainer: MultiTeacherDistillationTrainer) -> About:
    """Say what a training in Python was, which no command repeats.

    Args:
        trainer: The run's.
    """
    rows, student = trainer.train_dataset, trainer.student
    sized = hasattr(rows, "__len__")
    base = getattr(student.config, "_name_or_path", "") or ""
    return About(
        run=Path(trainer.args.output_dir).absolute().name,
        command="",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        data="rows given in Python",
        trained_rows=len(rows) if sized else 0,
        labelled_rows=(count_labelled(rows) or 0) if sized else 0,
        student=type(student).__name__,
        base=Path(base).name if Path(base).is_dir() else base,
        parameters=student.num_parameters(),
        teachers=tuple((teacher.name, _kind(teacher)) for teacher in trainer.teachers),
        version=__version__,
    )


def _kind(teacher: Any) -> str:
    """A teacher's class, where it is in memory: of one that is read from the cache, nothing says."""
    model = getattr(teacher, "model", None)
    return "" if model is None else type(model).__name__
