"""`hf-distill push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..processes import say


def push(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a run, its training.output_dir.", show_default=False
        ),
    ],
    repo: Annotated[
        str | None,
        typer.Argument(metavar="REPO", help="user/name; made where it is missing.", show_default=False),
    ] = None,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would leave, and push nothing.")
    ] = False,
) -> None:
    """Push a run's student to the Hub in one commit, with its card, recipe and reports; again: only what is missing."""
    from ..publishing.push import prepare_push, push_run

    if dry_run:
        say(_listed(run, prepare_push(run, repo)))
        return
    if repo is None:
        raise ConfigurationError(
            f"REPO, where {run} is to be pushed, is missing: name user/name, or list what would leave with --dry-run."
        )
    commit = push_run(run, repo, private=private, revision=revision, pull_request=pull_request)
    say(f"The student is pushed to {repo}: {commit.pr_url or commit}")


def _listed(run: Path, places: dict[str, Path]) -> str:
    """What would leave, with its size and where it lies now."""
    from ..evaluation.terminal import prose, table
    from ..publishing.pushed_files import PUBLISH

    rows = [
        [name, f"{path.stat().st_size:,}", f"{PUBLISH}/" if path.relative_to(run).parts[0] == PUBLISH else ""]
        for name, path in places.items()
    ]
    total = sum(path.stat().st_size for path in places.values())
    count = sum(bool(where) for *_, where in rows)
    return "\n\n".join(
        [
            table(["file", "bytes", "to look at in"], rows),
            prose(
                f"{len(rows)} files, {total:,} bytes would leave, nothing else, and no text of a row; {count} of them are for "
                f"people and lie in {run / PUBLISH} as they would leave. Nothing was pushed."
            ),
        ]
    )
