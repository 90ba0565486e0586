"""A finished run's student for onnxruntime, compared with it on the rows of the run's own recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .loading import evaluation_split, load_data
from .reading import load_recipe

if TYPE_CHECKING:
    from ..export import ExportReport


def export_run(
    folder: str | os.PathLike[str],
    *,
    format: str = "onnx",
    output: str | os.PathLike[str] | None = None,
) -> ExportReport:
    """Exports a run's student and compares the two on the rows of the final report.

    Args:
        folder: of the student; with `recipe.yaml` as a run writes it, or without.
        format: `onnx` or `int8`.
        output: as for `export_student`.

    Raises:
        ConfigurationError, DataError, UnsafeFileError: as `export_student`; a recipe that cannot be read. Data that is
            not on this machine is no error: random tokens take its place, and the report says so.
    """
    from ..export import export_student

    path = Path(folder, "recipe.yaml")
    if not path.is_file():
        note = f"There is no {path.name} beside the student, so no metrics could be computed."
        return export_student(folder, format=format, output=output, notes=[note])
    recipe = load_recipe(path, check_files=False)
    options: dict[str, Any] = {"max_length": recipe.student.max_length, "task": recipe.task}
    try:
        rows = load_data(recipe)
    except DataError as error:
        reason = " ".join(str(error).split())[:300]
        options["notes"] = [f"The recipe's rows are not here ({reason}), so no metrics could be computed."]
        return export_student(folder, format=format, output=output, **options)
    split = evaluation_split(recipe, rows) or "train"
    if split == "train":
        options["notes"] = ["The student was trained on these rows, so its metrics say nothing of others."]
    return export_student(
        folder,
        format=format,
        output=output,
        rows=rows[split],
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        metrics=recipe.evaluation.metrics,
        batch_size=recipe.evaluation.batch_size or 32,
        dataset_name=split,
        **options,
    )
