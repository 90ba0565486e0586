"""The command line. Heavy packages are imported by the commands that need them, so that `--help` answers at once."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .errors import ConfigurationError, HfDistillError, PushError

if TYPE_CHECKING:
    from .recipe import Recipe
    from .recipe.sections import Student
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
        checked = _load(recipe, overrides)
        _say(_summary(checked))
        if load:
            _say(_loaded(checked))


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
) -> None:
    """Train the student, save it, and evaluate it against every teacher and their ensemble."""
    with _reporting():
        from .recipe import build_baseline, build_trainer, evaluation_split, load_data

        checked = _load(recipe, overrides)
        checkpoint = _checkpoint(resume, checked)
        rows = load_data(checked)
        trainer = build_trainer(checked, rows=rows)
        baseline = build_baseline(
            checked, trainer.student_labels
        )  # now: a wrong one is not worth hours of waiting
        if checked.student.from_teacher is not None and _process() == 0:
            from .student_speed import describe_student

            _say(f"\n{describe_student(trainer.model, trainer.teachers)}\n")
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
        _say(f"The student is saved in {trainer.args.output_dir}")
        split = evaluation_split(checked, rows)
        if split is not None:
            report = trainer.evaluate_ensemble(
                rows[split],
                baseline=baseline,
                metrics=checked.evaluation.metrics,
                dataset_name=split,
            )
            _say(f"\n{report}\n\nThe report is in {Path(trainer.args.output_dir, 'report.md')}")
        if checked.hub.push:
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
            _say(_cached(info))
            return
        assert recipe is not None
        checked = _load(recipe, overrides)
        if checked.teachers.cache_dir is None:
            raise ConfigurationError(
                f"{recipe}: teachers.cache_dir is missing; name the folder of the cache, e.g. teachers.cache_dir=cache"
            )
        from .recipe import build_arguments, build_cache, load_data

        rows = load_data(checked)
        built = build_cache(checked, build_arguments(checked).device)
        for split, dataset in rows.items():
            computed = built.add(dataset, checked.data.text_columns)
            _say(f"{split}: {len(dataset)} rows; {computed} outputs computed, the rest was there")
        _say(_cached(Path(checked.teachers.cache_dir)))


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

        checked = _load(recipe, [*(overrides or []), *([f"evaluation.split={split}"] if split else [])])
        report = evaluate_recipe(checked)
        _say(f"\n{report}\n\nThe report is in {Path(checked.training['output_dir'], 'report.md')}")


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


def _push(trainer: MultiTeacherDistillationTrainer, recipe: Recipe) -> None:
    folder = trainer.args.output_dir
    try:
        trainer.push_to_hub()
    except Exception as error:  # whatever fails here, hours of training are done and must not look lost
        private = " --private" if recipe.hub.private else ""
        raise PushError(
            f"The push to {recipe.hub.repo} failed: {' '.join(str(error).split())[:400]}\n"
            f"The student is complete in {folder}. This finishes the push:\n"
            f"    hf upload {recipe.hub.repo} {shlex.quote(folder)} .{private} --exclude 'checkpoint-*'"
        ) from error
    _say(f"The student is pushed to {recipe.hub.repo}")


def _summary(recipe: Recipe) -> str:
    data, student, losses, training = recipe.data, recipe.student, recipe.losses, recipe.training
    if data.files:
        source = ", ".join(name for split in data.files.model_dump().values() for name in split or ())
    else:
        source = " ".join(filter(None, [data.dataset, data.config, data.revision and f"@ {data.revision}"]))
    teachers = [
        entry.model
        + (f" with adapter {entry.adapter}" if entry.adapter else "")
        + (f" as {entry.name}" if entry.name else "")
        + (" with labels" if entry.labels else "")
        for entry in recipe.teachers.models
    ]
    lines = {
        "task": recipe.task,
        "data": source,
        "columns": f"{' + '.join(data.text_columns)} → {data.label_column}",
        "labels": _shortened(data.label_names) if data.label_names else "named by the data or the student",
        "teachers": "\n            ".join(teachers),
        "student": student.model or _made(student),
        "fusion": _spec(recipe.fusion),
        "losses": f"{_scalar(losses.task_weight)} x cross-entropy + {_scalar(losses.distill_weight)} x "
        f"{_spec(losses.distill)} at temperature {_scalar(losses.temperature)}"
        + (f", rows weighed by {_spec(losses.row_weight)}" if losses.row_weight else "")
        + (f", label's share of the target {_scalar(losses.label_share)}" if losses.label_share else ""),
        "training": ", ".join(f"{key}={value}" for key, value in training.items()),
        "evaluation": recipe.evaluation.split or "the test split, or else the validation split",
        "hub": f"push to {recipe.hub.repo}" if recipe.hub.push else "no push",
    }
    return "\n".join(f"{key:<12}{value}" for key, value in lines.items())


def _made(student: Student) -> str:
    if student.from_teacher is None:
        return f"{(student.config or {})['model_type']} from scratch, {student.tokenizer} tokens"
    kept = "" if student.layers is None else f", layers {student.layers}"
    width = "" if student.hidden_size is None else f", hidden size {student.hidden_size}"
    return f"made from {student.from_teacher}{kept}{width}"


def _spec(spec: Any) -> str:
    if isinstance(spec, str):
        return spec
    return f"{spec['use']}({', '.join(f'{key}={value}' for key, value in spec.items() if key != 'use')})"


def _scalar(value: Any) -> str:
    return _spec(value) if isinstance(value, Mapping) else f"{value:g}"


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")


def _cached(folder: Path) -> str:
    """What a cache holds, as a table."""
    from .cache import cache_info
    from .table import markdown_table

    rows = [
        [
            entry["key"][:12],
            f"{entry['teacher']} ({entry['source']}{' @ ' + entry['revision'][:8] if entry['revision'] else ''})",
            f"{entry['rows']:,}",
            f"{entry['bytes']:,}",
            entry["dtype"] + (f", {entry['precision']} autocast" if entry["precision"] else ""),
            f"{(time.time() - entry['written']) / 3600:.1f} h",
            str(len(entry["damaged"])),
        ]
        for entry in cache_info(folder)
    ]
    return markdown_table(["key", "teacher", "rows", "bytes", "stored as", "age", "damaged shards"], rows)


def _loaded(recipe: Recipe) -> str:
    """Rows per split, and the plan by which the teachers' labels are matched."""
    from .recipe import label_plan, load_data

    rows = load_data(recipe)
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in rows.items())
    return f"{'rows':<12}{counts}\n\n{label_plan(recipe, rows)}"
