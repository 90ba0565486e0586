"""The section `hub`: what is wrong with it, and where a recipe pushes to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .problems import Problem, applying, found
from .sections import Recipe


def check_hub(hub: Mapping[str, Any], training: Mapping[str, Any]) -> list[Problem]:
    """Check the section `hub`, and what `training` says of the Hub besides.

    Args:
        hub: The section as it was written.
        training: Likewise.
    """
    at_end, meanwhile, request = (
        section.get(key) is True
        for section, key in ((hub, "push"), (training, "push_to_hub"), (hub, "pull_request"))
    )
    same = {"hub_model_id": "repo", "hub_private_repo": "private", "hub_revision": "revision"}
    branches = {
        "hub.revision": hub.get("revision"),
        "training.hub_revision": training.get("hub_revision"),
    }
    return applying(
        (
            at_end and not hub.get("repo"),
            "hub.repo",
            "is missing; a push needs the repository, as user/name",
        ),
        (
            at_end and meanwhile,
            "training.push_to_hub",
            "it pushes while training, hub.push pushes once at the end; choose one",
        ),
        *(
            (key in training and hub.get(own), f"training.{key}", f"hub.{own} says it already; keep one")
            for key, own in same.items()
        ),
        *(
            (
                request and branch is not None,
                "hub.pull_request",
                f"it is opened against main, but {key} is {found(branch)}; keep one",
            )
            for key, branch in branches.items()
        ),
        (
            request and meanwhile,
            "hub.pull_request",
            "training.push_to_hub pushes to a branch while training; a pull request needs hub.push",
        ),
    )


def pushes(recipe: Recipe) -> bool:
    """Whether anything is pushed: once at the end (`hub.push`), or also while training (`training.push_to_hub`)."""
    return recipe.hub.push or bool(recipe.training.get("push_to_hub"))


class Destination(NamedTuple):
    """Where a recipe pushes to, as the arguments of `push_run` say it."""

    repo: str
    private: bool
    revision: str | None
    pull_request: bool


def destination(recipe: Recipe) -> Destination:
    """Where a recipe pushes to: what `hub` says, or else what `training` says in transformers' own names.

    Example:
        >>> destination(Recipe(data={}, teachers={"models": ["org/a"]}, student={}, hub={"repo": "me/small"}))
        Destination(repo='me/small', private=False, revision=None, pull_request=False)
    """
    hub, training = recipe.hub, recipe.training
    return Destination(
        repo=hub.repo or training.get("hub_model_id") or Path(training["output_dir"]).absolute().name,
        private=hub.private or bool(training.get("hub_private_repo")),
        revision=hub.revision or training.get("hub_revision"),
        pull_request=hub.pull_request,
    )
