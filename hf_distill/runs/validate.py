"""What `validate` does: a checked recipe described, and, where it is asked for, its data and teachers loaded."""

from __future__ import annotations

from ..fusion.alignment import plan_table
from ..processes import say
from ..recipe.setup import Setup
from ..recipe.summary import recipe_summary
from ..teachers.pool import TeacherPool


def validate_recipe(setup: Setup, *, load: bool = False) -> None:
    """Print what would run, a line per section.

    Args:
        setup: Of a checked recipe.
        load: Whether to load data and teachers, and to print how many rows there are and how labels are matched.
    """
    say(recipe_summary(setup.recipe))
    if load:
        counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in setup.rows.items())
        say(f"{'rows':<12}{counts}\n\n{_label_plan(setup)}")


def _label_plan(setup: Setup) -> str:
    """The table of how the teachers' labels are matched by name."""
    teachers = [spec.load(setup.recipe.task) for spec in setup.teachers]
    return plan_table(TeacherPool(teachers, setup.label_names, setup.fusion).label_maps)
