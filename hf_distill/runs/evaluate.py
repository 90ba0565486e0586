"""What `evaluate` does: a trained student, its teachers and their ensemble on the rows of the report."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from ..errors import DataError
from ..evaluation.evaluating import evaluate_ensemble
from ..evaluation.results import EvaluationReport
from ..publishing.facts import confirm_report
from ..recipe.setup import Setup
from ..students.loading import student_config
from ..tasks.task import output_names
from ..teachers.held_out import load_choice


def evaluate_recipe(setup: Setup) -> EvaluationReport:
    """Evaluate the student that a recipe trained, as `train` does at its end, and write the report beside it.

    Args:
        setup: Of the recipe; the student is read from its output folder.

    Raises:
        DataError: There is no student yet, or `evaluation.split` is none.
    """
    recipe, args, folder = setup.recipe, setup.arguments, setup.folder
    refuse_untrained(folder, "config.json")
    rows, split = setup.rows, setup.split
    if split is None:
        raise DataError("evaluation.split leaves nothing to evaluate; name one of " + ", ".join(rows))
    config = student_config(str(folder))
    names = recipe.data.label_names or output_names(config)
    notes = []
    if split == "train":
        notes.append("The student was trained on these rows, so its figures say nothing about new ones.")
    elif split == "validation" and args.load_best_model_at_end:
        notes.append("These rows also selected the student's checkpoint, so its figures are optimistic.")
    accelerator = Accelerator(cpu=args.use_cpu)
    teachers = setup.stored_teachers(split, accelerator.device)
    teachers = teachers or [spec.load(recipe.task) for spec in setup.teachers]
    report = evaluate_ensemble(
        teachers,
        rows[split],
        student=str(folder),
        baseline=setup.baseline(names),
        fusion=load_choice(folder, [teacher.name for teacher in teachers], trust=setup.trusted)
        if setup.fits
        else setup.fusion,
        task=recipe.task,
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        label_names=names,
        metrics=recipe.evaluation.metrics,
        batch_size=args.per_device_eval_batch_size,
        max_length=recipe.student.max_length,
        accelerator=accelerator,
        dataset_name=split,
        notes=notes,
    )
    if args.process_index == 0:
        report.save(evaluation_folder(folder))
        if evaluation_folder(folder) == folder:
            confirm_report(folder)
    return report


def refuse_untrained(folder: Path, *files: str) -> None:
    """Refuse a folder that no student was trained into.

    Args:
        folder: The run's.
        files: Any of which a trained student has.

    Raises:
        DataError: It has none of them.
    """
    if not any((folder / name).is_file() for name in files):
        raise DataError(
            f"There is no trained student in {folder.absolute()}; train it first: hf-distill train RECIPE, "
            "or name its folder with training.output_dir=…"
        )


def evaluation_folder(run: Path) -> Path:
    """Where `evaluate` writes: beside the student, or in a folder of its own where a verdict is kept.

    Args:
        run: The run's folder.
    """
    return run / "evaluation" if (run / "report.html").exists() else run
