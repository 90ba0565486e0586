"""The command line. Heavy packages are imported by the commands that need them, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .errors import ConfigurationError, HfDistillError

if TYPE_CHECKING:
    from .recipe import Recipe
    from .trainer import MultiTeacherDistillationTrainer

app = typer.Typer(
    name="hf-distill",
    help="Distils several fine-tuned checkpoints into one small student, and says what it gained.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback is for errors of ours; Python's own says more than a box with every local variable.
    pretty_exceptions_enable=False,
)

_LAST = "last"

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Replace values of the recipe: training.num_train_epochs=1 teachers.models.0.name=bert",
        show_default=False,
    ),
]


class _TrainCommand(TyperCommand):
    """`--resume` takes a value or none, which typer's options cannot; the value is put in before it parses."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Writes `--resume [CHECKPOINT]` as `--resume=…`."""
        rewritten: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--resume":
                # The recipe and overrides may follow the option too; a checkpoint is a folder, they are not.
                named = bool(rest) and "=" not in rest[0] and not rest[0].startswith("-")
                named = named and Path(rest[0]).suffix not in (".yaml", ".yml")
                word = f"--resume={rest.pop(0) if named else _LAST}"
            rewritten.append(word)
        return super().parse_args(ctx, rewritten)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from . import __version__

        typer.echo(f"hf-distill {__version__}")
        raise typer.Exit


@app.command()
def validate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    load: Annotated[
        bool,
        typer.Option("--load", help="Also load data and teachers, and print how their labels are matched."),
    ] = False,
) -> None:
    """Check a recipe, all problems at once, and print what would run. Loads no model and no data."""
    with _reporting():
        from .recipe.summary import loaded_summary, recipe_summary

        checked = _load(recipe, overrides)
        _say(recipe_summary(checked))
        if load:
            _say(loaded_summary(checked))


@app.command(cls=_TrainCommand)
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[CHECKPOINT]",
            help="Continue from a checkpoint folder; without one, from the last in the output folder.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="With --resume: what may differ from the interrupted run, as its refusal names it: data, losses, …",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train the student and, without teachers, its baseline; save it, and say whether distillation was worth it."""
    with _reporting():
        from .recipe import build_baseline, build_trainer, evaluation_split, load_data
        from .recipe.pushing import check_recipe_repository, pushes
        from .recipe.verdict import open_verdict
        from .verdict import show_losses

        checked = _load(recipe, overrides)
        checkpoint = _checkpoint(resume, checked)
        if _process() == 0:
            check_recipe_repository(checked)
        rows = load_data(checked)
        refit = "fusion" in (allow or ())
        trainer = build_trainer(checked, rows=rows, resume=None if refit else checkpoint)
        baseline = build_baseline(
            checked, trainer.student_labels
        )  # now: a wrong one is not worth hours of waiting
        if checked.student.from_teacher is not None and _process() == 0:
            from .student_speed import describe_student

            _say(f"\n{describe_student(trainer.student, trainer.teachers)}\n")
        verdict = open_verdict(checked, rows, trainer)
        restored = verdict is not None and checkpoint is None and verdict.restore(trainer)
        if restored:
            _say(f"The student in {trainer.args.output_dir} is of this recipe, and is not trained again")
        else:
            show_losses(trainer, "student")
            trainer.train(resume_from_checkpoint=checkpoint, allow_changes=allow or ())
            trainer.save_model(_internal_call=True)  # the report is pushed with it, at the end
            trainer.save_state()
            _say(f"The student is saved in {trainer.args.output_dir}")
        split = evaluation_split(checked, rows)
        if verdict is not None:
            judged = verdict.judge(trainer, given=baseline, restored=restored)
            _say(f"\n{judged}\n\nThe report is in {verdict.folder}: report.html, report.md and report.json")
        elif split is not None:
            report = trainer.evaluate_ensemble(
                rows[split],
                baseline=baseline,
                metrics=checked.evaluation.metrics,
                dataset_name=split,
            )
            _say(f"\n{report}\n\nThe report is in {Path(trainer.args.output_dir, 'report.md')}")
        if pushes(checked) and _process() == 0:
            _push(trainer, checked)


@app.command()
def cache(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    info: Annotated[
        Path | None, typer.Option(metavar="DIR", help="List what a cache holds instead.", show_default=False)
    ] = None,
) -> None:
    """Run every teacher once over every row of a recipe's data and keep the outputs in teachers.cache_dir."""
    with _reporting():
        if (recipe is None) == (info is None):
            raise ConfigurationError("Name either a recipe or, with --info, the folder of a cache.")
        if info is not None:
            from .recipe.summary import cache_table

            _say(cache_table(info))
            return
        assert recipe is not None
        checked = _load(recipe, overrides)
        if checked.teachers.cache_dir is None:
            raise ConfigurationError(
                f"{recipe}: teachers.cache_dir is missing; name the folder of the cache, e.g. teachers.cache_dir=cache"
            )
        from .recipe import build_arguments, build_cache, load_data
        from .recipe.summary import cache_table

        rows = load_data(checked)
        built = build_cache(checked, rows["train"], build_arguments(checked).device)
        for split, dataset in rows.items():
            computed = built.add(dataset, checked.data.text_columns)
            _say(f"{split}: {len(dataset)} rows; {computed} outputs computed, the rest was there")
        _say(cache_table(Path(checked.teachers.cache_dir)))


@app.command()
def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation or test; instead of evaluation.split.", show_default=False),
    ] = None,
) -> None:
    """Evaluate the trained student, every teacher and their ensemble, and write the report."""
    with _reporting():
        from .recipe import evaluate_recipe
        from .recipe.building import evaluation_folder

        checked = _load(recipe, [*(overrides or []), *([f"evaluation.split={split}"] if split else [])])
        report = evaluate_recipe(checked)
        folder = evaluation_folder(Path(checked.training["output_dir"]))
        _say(f"\n{report}\n\nThe report is in {folder / 'report.md'}")


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of runs with a verdict.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write comparison.json and comparison.md there.", show_default=False
        ),
    ] = None,
) -> None:
    """Say whose student is better beyond chance: runs on the same rows, each compared with the first."""
    with _reporting():
        from .verdict import compare_runs

        report = compare_runs(runs)
        if output is not None:
            report.save(output)
        _say(str(report))


@app.command(name="train-part", hidden=True)
def train_part(recipe: RecipeFile, part: str, seed: int, key: str, overrides: Overrides = None) -> None:
    """Train one of the other trainings of a verdict; `train` starts this in processes of their own."""
    with _reporting():
        from .recipe.verdict import train_verdict_part

        train_verdict_part(_load(recipe, overrides), part, seed, key)


@app.command()
def audit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation or test; by default validation, if the report is made on test.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the audit; by default audit/ in the run's.", show_default=False
        ),
    ] = None,
) -> None:
    """Say what the teachers are worth before any training: which to keep, how to fuse them, whether one is enough."""
    with _reporting():
        from .recipe import audit_recipe

        checked = _load(recipe, overrides)
        report = audit_recipe(checked, split)
        folder = Path(checked.training["output_dir"], "audit") if output is None else output
        if _process() == 0:
            report.save(folder)
        _say(f"\n{report}\n\nThe audit is in {folder / 'audit.md'}, with figures beside it")


@app.command()
def attention(
    recipe: RecipeFile,
    overrides: Overrides = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose attention to show; twice for a pair. By default the first row of the split.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="1,3,-1",
            help="Layers from 1 on, or from -1, the last, back; by default first, middle and last.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(help="Its number from 1; by default the mean over the heads.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the pictures; by default the run's.", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation or test; by default validation, or else test.", show_default=False
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=3, help="On how many rows to compare layers.")] = 200,
) -> None:
    """Draw what student and teachers attend to, and how alike their layers are before and after training."""
    with _reporting():
        from .recipe import attention_recipe

        checked = _load(recipe, overrides)
        texts = tuple(text or ())
        report = attention_recipe(
            checked,
            (texts[0] if len(texts) == 1 else texts) or None,
            layers=_numbers(layers),
            head=head,
            split=split,
            rows=rows,
        )
        run = Path(checked.training["output_dir"])
        folder = run if output is None else output
        if _process() == 0:
            report.save(folder, report=run / "report.md")
        for note in report.notes:
            _say(note)
        _say(f"The pictures are in {folder / 'attention.md'}, attention.png and similarity.png")


@app.command()
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
    with _reporting():
        from .hub import push_run

        commit = push_run(run, repo, private=private, revision=revision, pull_request=pull_request)
        _say(f"The student is pushed to {repo}: {commit.pr_url or commit}")


@app.command()
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
    with _reporting():
        from .recipe import search_recipe

        checked = _load(recipe, overrides)
        folder = Path(f"{checked.training['output_dir']}-search") if output is None else output
        report = search_recipe(checked, trials=trials, output=folder)
        best = folder / "best.yaml"
        _say(
            f"\n{report}\n\nThe figure is in {folder / 'search.png'}. The best recipe: hf-distill train {best}"
        )


@app.command()
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
    with _reporting():
        from .recipe import export_run

        report = export_run(run, format=format, output=output)
        folder = run / format if output is None else output
        _say(
            f"\n{report}\n\nThe exported student is {folder / report.file}, the report {folder / 'export.md'}"
        )


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder of checkpoints and report.")] = Path("runs/demo"),
) -> None:
    """Make three teachers, distil them into a small student, offline on real text, in a few minutes."""
    with _reporting():
        from .demo import run_demo

        run_demo(output)


def _load(path: Path, overrides: list[str] | None) -> Recipe:
    from .recipe import load_recipe

    # `python -m` finds a user's own module in the working directory; the installed command does likewise, but last,
    # so that no file lying there replaces an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    return load_recipe(path, overrides or [])


def _process() -> int:
    return int(os.environ.get("RANK", "0"))


def _say(text: str) -> None:
    if _process() == 0:
        typer.echo(text)


@contextmanager
def _reporting() -> Iterator[None]:
    """Turns our errors into their message and exit code; any other keeps its traceback."""
    try:
        yield
    except HfDistillError as error:
        if _process() > 0:
            # The main process most likely says the same; its launcher then ends this one while it waits.
            time.sleep(10)
            typer.echo(f"process {_process()}:", err=True)
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


def _checkpoint(resume: str | None, recipe: Recipe) -> str | None:
    if resume is None:
        return None
    from transformers.trainer_utils import get_last_checkpoint

    folder = recipe.training["output_dir"]
    found = (get_last_checkpoint(folder) if Path(folder).is_dir() else None) if resume == _LAST else resume
    if found is None:
        raise ConfigurationError(
            f"--resume: there is no checkpoint in {Path(folder).absolute()}; leave --resume out to train from the start"
        )
    if not Path(found, "trainer_state.json").is_file():
        raise ConfigurationError(
            f"--resume: {Path(found).absolute()} is no checkpoint, it has no trainer_state.json"
        )
    return found


def _numbers(layers: str | None) -> list[int] | None:
    try:
        return None if layers is None else [int(number) for number in layers.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--layers: expected numbers with commas between them, as 1,3 or 1,-1, found {layers!r}"
        ) from None


def _push(trainer: MultiTeacherDistillationTrainer, recipe: Recipe) -> None:
    from .recipe.pushing import push_trained_recipe, repository

    commit = push_trained_recipe(recipe, trainer)
    _say(f"The student is pushed to {repository(recipe)[0]}: {commit}")
