"""A finished run's student for onnxruntime, compared with it on the rows of the run's own recipe, and in the run's verdict."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..errors import DataError, HfDistillError
from ..evaluation.cost import Cost
from ..files import refuse_file, run_folder, write_text
from ..lookup import refuse_untrusted
from ..publishing.export import ExportReport, export_student
from ..publishing.pushed_files import section_of_one_row
from ..recipe.checking import look_at_recipe
from ..recipe.sections import Recipe
from ..recipe.setup import Setup
from ..rows.preparing import identified
from ..tasks import build_task
from ..verdict import Answers
from ..verdict.exported import Judged, open_judged, with_exported
from ..verdict.systems import Role
from .evaluate import refuse_untrained

# By how many nats per row (KL, a mean) one student answers otherwise on another device, or cut to 16 bits in between.
# Two trainings of one student differ by 0.1.
_ROUNDING, _ROUNDING_OF_16_BITS = 1e-5, 1e-3


def export_run(
    folder: str | os.PathLike[str],
    *,
    format: str = "onnx",
    output: str | os.PathLike[str] | None = None,
    trust: Iterable[str] = (),
) -> ExportReport:
    """Export a run's student, compares the two on the rows of the final report, and adds it to the run's verdict.

    Args:
        folder: Of the student; with `recipe.yaml` as a run writes it, or without.
        format: ``onnx`` or ``int8``.
        output: As for `export_student`.
        trust: Metrics ``pkg.mod:Name`` of your own that the stored recipe may name.

    Raises:
        ConfigurationError, DataError, UnsafeFileError: As `export_student`; a recipe that cannot be read. Data that is
            not on this machine is no error: random tokens take its place, and the report says so. Neither is a verdict
            that the student cannot be added to: it is left alone, and the report says why.
    """
    folder = run_folder(folder)
    refuse_untrained(folder, "config.json", "adapter_config.json")
    if output is not None:
        refuse_file(output, "--output")
    path = Path(folder, "recipe.yaml")
    if not path.is_file():
        note = f"There is no {path.name} beside the student, so no metrics could be computed."
        return export_student(folder, format=format, output=output, notes=[note])
    looked = look_at_recipe(path, check_files=False, trust=trust)
    used = [
        found
        for found in looked.unchecked
        if found[0] in ("task", "register_models") or found[0].startswith("evaluation.")
    ]
    refuse_untrusted(used, (), path)
    setup = Setup(looked.recipe, trust=frozenset(trust))
    recipe = setup.recipe
    options: dict[str, Any] = {"max_length": recipe.student.max_length, "task": recipe.task}
    try:
        rows = setup.rows
    except DataError as error:
        reason = " ".join(str(error).split())[:300]
        note = f"The recipe's rows are not here ({reason}), so no metrics could be computed, and the run's verdict was left alone."
        return export_student(folder, format=format, output=output, notes=[note], **options)
    split = setup.split or "train"
    if split == "train":
        options["notes"] = ["The student was trained on these rows, so its metrics say nothing of others."]
    judged, reason, own = None, "", rows[split]
    try:
        judged = open_judged(folder)
        own = _reported(own, judged, recipe)
    except HfDistillError as error:
        reason = str(error)
    report = export_student(
        folder,
        format=format,
        output=output,
        rows=own,
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        metrics=recipe.evaluation.metrics,
        batch_size=recipe.evaluation.batch_size or 32,
        dataset_name=split,
        **options,
    )
    if judged is not None:
        try:
            _add(report, judged, setup, folder)
        except HfDistillError as error:
            reason = str(error)
    note = (
        f"The run's verdict was left alone: {reason.rstrip('.')}."
        if reason
        else f"The run's verdict (report.html, report.md, report.json) has the exported student too, as 'student, {format}'."
    )
    report = dataclasses.replace(report, notes=(*report.notes, note))
    report.save(Path(folder, format) if output is None else output)
    return report


def _reported(rows: datasets.Dataset, judged: Judged, recipe: Recipe) -> datasets.Dataset:
    """Those of the rows that the verdict is made of."""
    if not len(judged.left_out):
        return rows
    content = build_task(recipe.task).content
    ids = [own for own, _ in identified(rows, recipe.data.text_columns, content=content)]
    return rows.select(np.flatnonzero(~np.isin(np.concatenate(ids), judged.left_out)))


def _add(report: ExportReport, judged: Judged, setup: Setup, folder: str | os.PathLike[str]) -> None:
    """Write the verdict anew, with the exported student as a further system."""
    assert report.answers is not None
    parameters = judged.report.evaluation.systems["student"].parameters
    called = {"student": "student", report.format: Role("exported", report.format).name}
    training = setup.recipe.training
    cut = any(training.get(f"{kind}{when}") for kind in ("bf16", "fp16") for when in ("", "_full_eval"))
    extended = with_exported(
        judged,
        report.format,
        answers=Answers(
            report.answers.example_ids,
            report.answers.labels,
            {
                called[name]: setup.task.log_probs(torch.from_numpy(logits)).numpy()
                for name, logits in report.answers.logits.items()
            },
        ),
        label_names=report.labels,
        metrics=setup.metrics,
        task=setup.task,
        costs={
            called[name]: Cost(
                parameters, system.bytes, system.p50_ms / 1000, system.p95_ms / 1000, system.rows_per_second
            )
            for name, system in report.systems.items()
        },
        rounding=_ROUNDING_OF_16_BITS if cut else _ROUNDING,
    )
    path = Path(folder, "report.md")
    added = section_of_one_row(path.read_text(encoding="utf-8")) if path.is_file() else ""
    extended.save(folder)
    if added:
        write_text(path, f"{path.read_text(encoding='utf-8')}\n{added}")
