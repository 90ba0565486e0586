"""What `validate` does: a checked recipe described, and, where it is asked for, its data and teachers loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..evaluation.terminal import aligned, fitted
from ..fusion.alignment import plan_table
from ..lookup import refuse_untrusted
from ..processes import say
from ..recipe.sections import Losses
from ..recipe.setup import Setup
from ..recipe.summary import recipe_summary
from ..teachers.hub_ids import doubtful_id
from ..teachers.pool import TeacherPool
from .outlook import Outlook, announce, look_ahead


def validate_recipe(
    setup: Setup, *, load: bool = False, unchecked: Sequence[tuple[str, str]] = (), command: str = ""
) -> None:
    """Print what would run, a line per section, and what it would take.

    Args:
        setup: Of a checked recipe.
        load: Whether to load data and teachers, and to print how many rows there are and how labels are matched.
        unchecked: The recipe's own code that nobody trusted, (place, name): nothing of it is imported.
        command: What would run it.

    Raises:
        UnsafeFileError: Models are to be loaded with their own code, which nobody trusted.
        DataError: The rows of local files, or the labels that local teachers name, do not fit.
    """
    say(recipe_summary(setup.recipe))
    for place, name in unchecked:
        sentence = f"{place}: {name} is not built in; --trust {name} checks it too, which runs it"
        say(aligned({"unchecked": sentence}))
    named = {f"{spec.place}.model": spec.id_or_path for spec in setup.teachers}
    for place, source in {**named, "student.model": setup.recipe.student.model}.items():
        if source is not None and (sentence := doubtful_id(source)):
            say(aligned({"CHECK": f"{place}: {sentence}"}))
    if load:
        loaded = [
            found for found in unchecked if found[0] == "task" or found[0].endswith("trust_remote_code")
        ]
        refuse_untrusted(loaded, setup.trust, "The recipe")
        if any(place == "fusion" for place, _ in unchecked):
            setup = setup.varied(fusion="auto")  # which labels are matched does not depend on it
    places = {place for place, _ in unchecked}
    # Of one's own task nobody knows what its rows and labels are without running it.
    outlook = (
        Outlook() if "task" in places else look_ahead(setup.varied(**_without(setup, places)), load=load)
    )
    if load:
        say(f"\n{fitted(_label_plan(setup))}\n")
    announce(outlook, command or "hf-distill train")


def _without(setup: Setup, places: Collection[str]) -> dict[str, Any]:
    """Sections that name code of nobody's trust, without it: what a run takes does not depend on it."""
    sections = {place.partition(".")[0] for place in places}
    kept: dict[str, Any] = {}
    if "losses" in sections:
        kept["losses"] = Losses(hidden=())
    if "fusion" in sections:
        kept["fusion"] = "linear_pool"
    student = setup.recipe.student
    if student.config is not None and "student" in sections:
        config = {
            key: value for key, value in student.config.items() if f"student.config.{key}" not in places
        }
        kept["student"] = student.model_copy(update={"config": config})
    return kept


def _label_plan(setup: Setup) -> str:
    """The table of how the teachers' labels are matched by name."""
    return plan_table(
        TeacherPool(
            [spec.load(setup.recipe.task) for spec in setup.teachers],
            setup.label_names,
            setup.fusion,
            task=setup.task,
        ).label_maps
    )
