"""The audit of a recipe's teachers on its own held-out rows; no student is loaded and nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from ..errors import DataError
from ..evaluation.audit import RULES, AuditReport, ScoreAudit, audit_teachers
from ..fusion import build_fusion
from ..recipe.sections import TeacherEntry
from ..recipe.setup import Setup
from ..tasks import family_of


def audit_recipe(setup: Setup, split: str | None = None) -> AuditReport | ScoreAudit:
    """Audit the teachers of a recipe, from its teacher cache where it names one.

    Args:
        setup: Of the recipe.
        split: "train", "validation" or "test"; None: the validation split, or the test split where the final report is
            made on the validation split.

    Raises:
        DataError: There is no such split, or no labels in it.
    """
    recipe, args, rows, own = setup.recipe, setup.arguments, setup.rows, setup.fusion
    split, notes = _audited_split(split, rows, setup.split)
    known = own == family_of(setup.task).auto or own in [build_fusion(rule) for rule in RULES.values()]
    accelerator = Accelerator(cpu=args.use_cpu)
    stored = setup.stored_teachers(split, accelerator.device)
    return audit_teachers(
        stored or setup.teachers,
        rows[split],
        fusions=RULES if known else {**RULES, "the recipe's": own},
        task=recipe.task,
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        label_names=setup.label_names,
        batch_size=args.per_device_eval_batch_size,
        accelerator=accelerator,
        dataset_name=split,
        entries=[_written(entry) for entry in recipe.teachers.models],
        live=setup.teachers if stored else (),
        notes=notes,
    )


def _audited_split(split: str | None, rows: Mapping[str, Any], report: str | None) -> tuple[str, list[str]]:
    """The split, and what the report must say of it."""
    if split is None:
        held_out = [name for name in ("validation", "test") if name in rows]
        if not held_out:
            raise DataError(
                "the data has only training rows, which the teachers may have been trained on; name held-out rows in "
                "data.files.validation, or audit these all the same with --split train"
            )
        split = next((name for name in held_out if name != report), held_out[0])
    if split not in rows:
        raise DataError(f"there is no {split} split to audit; the data has only {', '.join(rows)}")
    if split == report:
        return split, [
            f"The final report is made on the {split} rows too. What is chosen and fitted here by their labels makes that "
            "report flatter the ensemble: choose on other rows."
        ]
    note = (
        "These are training rows. Teachers that were trained on them look better, and surer, than they are."
    )
    return split, [note] if split == "train" else []


def _written(entry: TeacherEntry) -> Any:
    given = entry.model_dump(exclude_defaults=True)
    return given if len(given) > 1 else entry.model
