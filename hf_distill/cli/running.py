"""Commands that train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import ConfigurationError
from .shared import Overrides, RecipeFile, load, process, reporting, say

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..training.trainer import MultiTeacherDistillationTrainer

LAST = "last"


class TrainCommand(TyperCommand):
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
                word = f"--resume={rest.pop(0) if named else LAST}"
            rewritten.append(word)
        return super().parse_args(ctx, rewritten)


def validate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    with_data: Annotated[
        bool,
        typer.Option("--load", help="Also load data and teachers, and print how their labels are matched."),
    ] = False,
) -> None:
    """Check a recipe, all problems at once, and print what would run. Loads no model and no data."""
    with reporting():
        from ..recipe.summary import loaded_summary, recipe_summary

        checked = load(recipe, overrides)
        say(recipe_summary(checked))
        if with_data:
            say(loaded_summary(checked))


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
    with reporting():
        from ..recipe import build_baseline, build_trainer, evaluation_split, load_data
        from ..recipe.hub_section import pushes
        from ..runs.push import check_recipe_repository
        from ..runs.verdict.judgement import open_verdict
        from ..training.progress import show_losses

        checked = load(recipe, overrides)
        checkpoint = _checkpoint(resume, checked)
        check_recipe_repository(checked)
        rows = load_data(checked)
        refit = "fusion" in (allow or ())
        trainer = build_trainer(checked, rows=rows, resume=None if refit else checkpoint)
        baseline = build_baseline(
            checked, trainer.student_labels
        )  # now: a wrong one is not worth hours of waiting
        if checked.student.from_teacher is not None and process() == 0:
            from ..evaluation.cost import describe_student

            say(f"\n{describe_student(trainer.student, trainer.teachers)}\n")
        verdict = open_verdict(checked, rows, trainer)
        restored = verdict is not None and checkpoint is None and verdict.restore(trainer)
        if restored:
            say(f"The student in {trainer.args.output_dir} is of this recipe, and is not trained again")
        else:
            show_losses(trainer, "student")
            trainer.train(resume_from_checkpoint=checkpoint, allow_changes=allow or ())
            trainer.save_model(_internal_call=True)  # the report is pushed with it, at the end
            trainer.save_state()
            say(f"The student is saved in {trainer.args.output_dir}")
        split = evaluation_split(checked, rows)
        if verdict is not None:
            judged = verdict.judge(trainer, given=baseline, restored=restored)
            say(f"\n{judged}\n\nThe report is in {verdict.folder}: report.html, report.md and report.json")
        elif split is not None:
            report = trainer.evaluate_ensemble(
                rows[split],
                baseline=baseline,
                metrics=checked.evaluation.metrics,
                dataset_name=split,
            )
            say(f"\n{report}\n\nThe report is in {Path(trainer.args.output_dir, 'report.md')}")
        if pushes(checked) and process() == 0:
            _push(trainer, checked)


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
    with reporting():
        if (recipe is None) == (info is None):
            raise ConfigurationError("Name either a recipe or, with --info, the folder of a cache.")
        if info is not None:
            from ..recipe.summary import cache_table

            say(cache_table(info))
            return
        assert recipe is not None
        checked = load(recipe, overrides)
        if checked.teachers.cache_dir is None:
            raise ConfigurationError(
                f"{recipe}: teachers.cache_dir is missing; name the folder of the cache, e.g. teachers.cache_dir=cache"
            )
        from ..recipe import build_arguments, build_cache, load_data
        from ..recipe.summary import cache_table

        rows = load_data(checked)
        built = build_cache(checked, rows["train"], build_arguments(checked).device)
        for split, dataset in rows.items():
            computed = built.add(dataset, checked.data.text_columns)
            say(f"{split}: {len(dataset)} rows; {computed} outputs computed, the rest was there")
        say(cache_table(Path(checked.teachers.cache_dir)))


def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation or test; instead of evaluation.split.", show_default=False),
    ] = None,
) -> None:
    """Evaluate the trained student, every teacher and their ensemble, and write the report."""
    with reporting():
        from ..recipe import evaluate_recipe
        from ..recipe.building import evaluation_folder

        checked = load(recipe, [*(overrides or []), *([f"evaluation.split={split}"] if split else [])])
        report = evaluate_recipe(checked)
        folder = evaluation_folder(Path(checked.training["output_dir"]))
        say(f"\n{report}\n\nThe report is in {folder / 'report.md'}")


def train_part(recipe: RecipeFile, part: str, seed: int, key: str, overrides: Overrides = None) -> None:
    """Train one of the other trainings of a verdict; `train` starts this in processes of their own."""
    with reporting():
        from ..runs.verdict.judgement import train_verdict_part

        train_verdict_part(load(recipe, overrides), part, seed, key)


def _checkpoint(resume: str | None, recipe: Recipe) -> str | None:
    if resume is None:
        return None
    from transformers.trainer_utils import get_last_checkpoint

    folder = recipe.training["output_dir"]
    found = (get_last_checkpoint(folder) if Path(folder).is_dir() else None) if resume == LAST else resume
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
    from ..recipe.hub_section import destination
    from ..runs.push import push_trained_recipe

    commit = push_trained_recipe(recipe, trainer)
    say(f"The student is pushed to {destination(recipe).repo}: {commit.pr_url or commit}")
