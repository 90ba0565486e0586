"""Commands that do something with recipes and runs beyond one training: search, export, push; and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Overrides, RecipeFile, load, reporting, say


def search(
    recipe: RecipeFile,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="How many trainings in all.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the search; by default the run's and -search.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Try temperatures, weights, fusions and learning rates, and write the recipe with the best. Goes on where it was left."""
    with reporting():
        from ..runs.search.searching import search_recipe

        checked = load(recipe, overrides)
        folder = Path(f"{checked.training['output_dir']}-search") if output is None else output
        report = search_recipe(checked, trials=trials, output=folder)
        best = folder / "best.yaml"
        say(
            f"\n{report}\n\nThe figure is in {folder / 'search.png'}. The best recipe: hf-distill train {best}"
        )


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a trained student.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help="onnx (float32) or int8; both for onnxruntime.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to write; by default RUN/onnx or RUN/int8.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a student for onnxruntime, compare it with the student itself, and measure both."""
    with reporting():
        from ..runs.export import export_run

        report = export_run(run, format=format, output=output)
        folder = run / format if output is None else output
        say(
            f"\n{report}\n\nThe exported student is {folder / report.file}, the report {folder / 'export.md'}"
        )


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
    with reporting():
        from ..publishing.push import push_run

        commit = push_run(run, repo, private=private, revision=revision, pull_request=pull_request)
        say(f"The student is pushed to {repo}: {commit.pr_url or commit}")


def demo(
    output: Annotated[Path, typer.Option(help="The folder of checkpoints and report.")] = Path("runs/demo"),
) -> None:
    """Make three teachers, distil them into a small student, offline on real text, in a few minutes."""
    with reporting():
        from ..runs.demo.run import run_demo

        run_demo(output)
