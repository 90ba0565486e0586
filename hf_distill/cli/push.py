"""`hf-distill push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..processes import say


def push(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a run, its training.output_dir.", show_default=False
        ),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="user/name; made where it is missing.", show_default=False)
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Into a private repository; a public one is refused.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH", help="A branch instead of main, made where it is missing.", show_default=False
        ),
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request instead.")
    ] = False,
) -> None:
    """Push a run's student to the Hub in one commit, with its card, recipe and reports; again: only what is missing."""
    from ..publishing.push import push_run

    commit = push_run(run, repo, private=private, revision=revision, pull_request=pull_request)
    say(f"The student is pushed to {repo}: {commit.pr_url or commit}")
