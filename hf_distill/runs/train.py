"""What `train` does: the student trained and saved, judged against its baseline, and pushed where the recipe says so."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.cost import describe_student
from ..evaluation.results import EvaluationReport
from ..evaluation.terminal import fitted
from ..processes import process, say
from ..recipe.hub_section import destination, pushes
from ..recipe.setup import Setup
from ..recipe.summary import recipe_summary
from ..teachers.fitting_parts import refuse_other_view
from ..training.progress import show_losses
from ..training.resuming import find_checkpoint
from ..verdict import VerdictReport
from .outlook import Outlook, announce, try_out
from .push import check_recipe_repository, push_trained_recipe
from .replacing import refuse_replacing
from .verdict.judgement import open_verdict
from .verdict.trainings import keep_plain


def dry_run_recipe(setup: Setup, *, overwrite: bool = False) -> Outlook:
    """Do all that `train_recipe` does before it trains, and a few steps on a few rows, and say what a run would take.

    Args:
        setup: Of the recipe.
        overwrite: Whether the finished run of another recipe may lie in its folder.

    Raises:
        HfDistillError: Whatever would stop the run.
    """
    if not overwrite:
        refuse_replacing(setup)
    check_recipe_repository(setup)
    say(recipe_summary(setup.recipe))
    outlook = try_out(setup)
    announce(outlook, "the same command without --dry-run")
    return outlook


def train_recipe(
    setup: Setup,
    *,
    resume: str | None = None,
    allow: Sequence[str] = (),
    unverified: bool = False,
    overwrite: bool = False,
) -> EvaluationReport | VerdictReport | None:
    """Train the student and, without teachers, its baseline; save it, and say whether distillation was worth it.

    Args:
        setup: Of the recipe.
        resume: A checkpoint to go on from; ``last``: the newest in the output folder that is whole.
        allow: What may differ from the interrupted run, as its refusal names it.
        unverified: Whether a checkpoint that is named may have no manifest, or other files than were saved.
        overwrite: Whether the finished run of another recipe may be replaced, which is else refused.

    Returns:
        The report; None where `evaluation.split` is none.

    Raises:
        HfDistillError: Data, teachers and student do not fit together, the push cannot be, and whatever else stops a run.
    """
    found = find_checkpoint(
        True if resume == "last" else resume,
        setup.folder,
        unverified=unverified,
        best=setup.arguments.load_best_model_at_end,
    )
    checkpoint = None if found is None else str(found)
    if checkpoint is None:
        refuse_replacing(setup, overwrite=overwrite)
    check_recipe_repository(setup)
    trainer = setup.trainer(resume=None if "fusion" in allow else checkpoint)
    baseline = setup.baseline(trainer.student_labels)  # now: a wrong one is not worth hours of waiting
    if baseline is not None:
        refuse_other_view(baseline, trainer.student_view, what="The baseline")
    if setup.recipe.student.from_teacher is not None and process() == 0:
        say(f"\n{fitted(describe_student(trainer.student, trainer.teachers))}\n")
    verdict = open_verdict(setup, trainer)
    restored = verdict is not None and checkpoint is None and verdict.restore(trainer)
    if restored:
        say(f"The student in {setup.folder} is of this recipe, and is not trained again")
    else:
        show_losses(trainer, "student")
        trainer.train(
            resume_from_checkpoint=checkpoint,
            allow_changes=allow,
            unverified=unverified,
            trust=sorted(setup.trusted),
        )
        trainer.save_model(_internal_call=True)  # the report is pushed with it, at the end
        keep_plain(trainer)
        trainer.save_state()
        say(f"The student is saved in {setup.folder}")
    report = None
    if verdict is not None:
        report = verdict.judge(trainer, given=baseline, restored=restored)
        say(f"\n{report}\n\nThe report is in {setup.folder}: report.html, report.md and report.json")
    elif setup.split is not None:
        report = trainer.evaluate_ensemble(
            setup.rows[setup.split],
            baseline=baseline,
            metrics=setup.recipe.evaluation.metrics,
            dataset_name=setup.split,
        )
        say(f"\n{report}\n\nThe report is in {setup.folder / 'report.md'}")
    if pushes(setup.recipe) and process() == 0:
        commit = push_trained_recipe(setup, trainer)
        say(f"The student is pushed to {destination(setup.recipe).repo}: {commit.pr_url or commit}")
    return report
