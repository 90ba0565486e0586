"""What a recipe says of the Hub: the repository checked before the training, the student pushed after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PushError
from .sections import Recipe

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from ..trainer import MultiTeacherDistillationTrainer


def pushes(recipe: Recipe) -> bool:
    """Whether anything is pushed: once at the end (`hub.push`), or also while training (`training.push_to_hub`)."""
    return recipe.hub.push or bool(recipe.training.get("push_to_hub"))


def repository(recipe: Recipe) -> tuple[str, bool]:
    """Returns where a recipe pushes to, and whether that has to be private.

    Example:
        >>> repository(Recipe(data={}, teachers={"models": ["org/a"]}, student={}, hub={"repo": "me/small"}))
        ('me/small', False)
    """
    training = recipe.training
    repo = recipe.hub.repo or training.get("hub_model_id") or Path(training["output_dir"]).absolute().name
    return repo, recipe.hub.private or bool(training.get("hub_private_repo"))


def check_recipe_repository(recipe: Recipe) -> None:
    """Makes sure before the training that its push will be possible, where there is to be one.

    Raises:
        ConfigurationError: it will not.
    """
    from ..hub import check_repository

    if pushes(recipe):
        repo, private = repository(recipe)
        check_repository(repo, private=private)


def push_trained_recipe(recipe: Recipe, trainer: MultiTeacherDistillationTrainer) -> CommitInfo:
    """Pushes the student with its card and report; on the first process alone.

    Args:
        recipe: a recipe that pushes.
        trainer: its trainer, after `train` and `save_model`.

    Raises:
        PushError: this push failed, or one during training did.
    """
    from ..hub import push_run
    from ..trainer_pushes import failed_pushes

    repo, private = repository(recipe)
    folder, branch = trainer.args.output_dir, trainer.args.hub_revision
    commit = push_run(folder, repo, private=private, revision=branch, keep_edits=False)
    if failed := failed_pushes(trainer):
        raise PushError(
            f"{len(failed)} pushes during training failed, though the finished student is pushed now: {commit}\n"
            f"The last of them: {failed[-1]}"
        )
    return commit
