"""What a recipe says of the Hub: the repository checked before the training, the student pushed after it."""

from __future__ import annotations

import functools

from accelerate import PartialState
from huggingface_hub import CommitInfo

from ..errors import PushError
from ..processes import once
from ..publishing.push import check_repository, push_run
from ..recipe.hub_section import destination, pushes
from ..recipe.setup import Setup
from ..training.pushes import failed_pushes
from ..training.trainer import MultiTeacherDistillationTrainer


def check_recipe_repository(setup: Setup) -> None:
    """Make sure before the training that its push will be possible, where there is to be one.

    The first process asks; every process of the run gets the answer.

    Args:
        setup: Of the recipe.

    Raises:
        ConfigurationError: It will not.
    """
    if pushes(setup.recipe):
        to = destination(setup.recipe)
        once(
            functools.partial(check_repository, to.repo, private=to.private, read_only=to.pull_request),
            PartialState(),
        )


def push_trained_recipe(setup: Setup, trainer: MultiTeacherDistillationTrainer) -> CommitInfo:
    """Push the student with its card and report; on the first process alone.

    Args:
        setup: Of a recipe that pushes.
        trainer: Its trainer, after `train` and `save_model`.

    Raises:
        PushError: This push failed, or one during training did.
    """
    commit = push_run(setup.folder, **destination(setup.recipe)._asdict(), keep_edits=False)
    if failed := failed_pushes(trainer):
        raise PushError(
            f"{len(failed)} pushes during training failed, though the finished student is pushed now: {commit}\n"
            f"The last of them: {failed[-1]}"
        )
    return commit
