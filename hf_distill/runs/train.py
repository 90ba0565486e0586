"""What `train` does: the student trained and saved, judged against its baseline, and pushed where the recipe says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from ..errors import ConfigurationError
from ..evaluation.cost import describe_student
from ..evaluation.results import EvaluationReport
from ..processes import process, say
from ..recipe.hub_section import destination, pushes
from ..recipe.setup import Setup
from ..training.progress import show_losses
from ..verdict import VerdictReport
from .push import check_recipe_repository, push_trained_recipe
from .verdict.judgement import open_verdict


def train_recipe(
    setup: Setup, *, resume: str | None = None, allow: Sequence[str] = ()
) -> EvaluationReport | VerdictReport | None:
    """Train the student and, without teachers, its baseline; save it, and say whether distillation was worth it.

    Args:
        setup: Of the recipe.
        resume: A checkpoint to go on from; ``last``: the last in the output folder.
        allow: What may differ from the interrupted run, as its refusal names it.

    Returns:
        The report; None where `evaluation.split` is none.

    Raises:
        HfDistillError: Data, teachers and student do not fit together, the push cannot be, and whatever else stops a run.
    """
    checkpoint = None if resume is None else _checkpoint(resume, setup.folder)
    check_recipe_repository(setup)
    trainer = setup.trainer(resume=None if "fusion" in allow else checkpoint)
    baseline = setup.baseline(trainer.student_labels)  # now: a wrong one is not worth hours of waiting
    if setup.recipe.student.from_teacher is not None and process() == 0:
        say(f"\n{describe_student(trainer.student, trainer.teachers)}\n")
    verdict = open_verdict(setup, trainer)
    restored = verdict is not None and checkpoint is None and verdict.restore(trainer)
    if restored:
        say(f"The student in {setup.folder} is of this recipe, and is not trained again")
    else:
        show_losses(trainer, "student")
        trainer.train(resume_from_checkpoint=checkpoint, allow_changes=allow, trust=sorted(setup.trusted))
        trainer.save_model(_internal_call=True)  # the report is pushed with it, at the end
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


def _checkpoint(resume: str, folder: Path) -> str:
    found = (get_last_checkpoint(folder) if folder.is_dir() else None) if resume == "last" else resume
    if found is None:
        raise ConfigurationError(
            f"--resume: there is no checkpoint in {folder.absolute()}; leave --resume out to train from the start"
        )
    if not Path(found, "trainer_state.json").is_file():
        raise ConfigurationError(
            f"--resume: {Path(found).absolute()} is no checkpoint, it has no trainer_state.json"
        )
    return found
