"""The trainings behind a verdict: the student and the same student without teachers, with one seed after another.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel

from ...evaluation.evaluating import compute_metrics_from, count_parameters, predict_rows, refuse_spoilt
from ...fusion import build_fusion
from ...fusion.alignment import UNLABELLED
from ...fusion.alignment import labelled as with_label
from ...publishing.facts import load_facts, save_facts
from ...recipe.sections import Losses
from ...recipe.setup import Setup
from ...students.adapters import keep_merged
from ...tasks import family_of, heard_alone
from ...tasks.task import Task
from ...teachers.held_out import FUSION_FILE, load_choice
from ...teachers.pool import TeacherPool
from ...training.arguments import DistillationArguments
from ...training.progress import show_losses
from ...training.trainer import MultiTeacherDistillationTrainer
from ...verdict.answers import Answers, SavedRows
from .digests import weights_digest
from .jobs import STEPS_FILE
from .tracking import BestWeights, StepFile

# What a training that nobody resumes, watches or publishes needs none of.
_OWN = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "push_to_hub": False,
}
# Of a stream, to see whether it has labels.
_LOOKED_AT = 1_000
_NOT_OF_BASELINES = (
    "early_stopping_patience",
    "early_stopping_threshold",
    "metric_for_best_model",
    "greater_is_better",
    "num_train_epochs",
    "run_name",
    "eval_delay",
)


class AskedRows(NamedTuple):
    """The rows that the systems of a verdict answer.

    Attributes:
        split: What reports call them.
        rows: Themselves, raw.
        validation: Those that nothing is reported on, for temperatures; None where there are none, or they are the same.
    """

    split: str
    rows: datasets.Dataset
    validation: datasets.Dataset | None


def asked_rows(setup: Setup) -> AskedRows:
    """Those of a recipe's verdict."""
    rows, split = setup.rows, setup.split
    return AskedRows(split, rows[split], None if split == "validation" else rows.get("validation"))


def part_folder(setup: Setup, part: str, seed: int) -> Path:
    """Where a training of the verdict lies: the first seed's student in the run's own folder, others in `seed-S/PART`."""
    alone = part == "student" and seed == first_seed(setup)
    return setup.folder if alone else setup.folder / f"seed-{seed}" / part


def first_seed(setup: Setup) -> int:
    """The seed of the student that the run is made for."""
    return int(setup.recipe.training.get("seed", 42))  # transformers' own default


def train_part(
    setup: Setup,
    part: str,
    seed: int,
    key: str,
    facts: Mapping[str, Any],
    teacher: str | None = None,
) -> SavedRows:
    """Train one part of the verdict with one seed, and save what it answers into the run's folder.

    Args:
        setup: Of the whole run.
        part: ``student``, ``baseline``, or ``single``, a student of one teacher alone.
        seed: Of the training.
        key: What the rows are found again by.
        facts: Of the first seed's student: the baseline takes as many `steps`, and is evaluated every `eval_steps`.
        teacher: The name of the one teacher.
    """
    if part == "baseline":
        saved = _train_baseline(setup, seed, key, facts)
    else:
        recipe, folder = setup.recipe, part_folder(setup, part, seed)
        training = {**recipe.training, "seed": seed, "output_dir": str(folder), "save_total_limit": 1}
        # Only the first seed's student is published and tracked.
        training |= {"report_to": "none", "push_to_hub": False}
        alone = recipe.evaluation.model_copy(update={"seeds": 1, "single_teacher": False})
        heard = {} if teacher is None else _taught_by(setup, teacher)
        trainer = setup.varied(training=training, evaluation=alone, **heard).trainer(
            callbacks=_step_file(folder)
        )
        _train(trainer, f"student{'' if teacher is None else f' of {teacher}'}, seed {seed}")
        saved = student_rows(trainer, asked_rows(setup), key)
        if teacher is not None:
            saved = dataclasses.replace(saved, part=part, facts={**saved.facts, "teacher": teacher})
        trainer.save_model()
        keep_plain(trainer)
        trainer.save_state()
        if trainer.is_world_process_zero():
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
    if PartialState().is_main_process:
        saved.save(setup.folder)
        (part_folder(setup, part, seed) / STEPS_FILE).unlink(missing_ok=True)
    return saved


def keep_plain(trainer: MultiTeacherDistillationTrainer) -> None:
    """Have a plain student in the folder of a run that trained one through an adapter, and have the run say so."""
    if trainer.peft_config is None or not trainer.args.should_save:
        return
    folder = trainer.args.output_dir
    merged = keep_merged(trainer.student, folder)
    if facts := load_facts(folder):
        save_facts(dataclasses.replace(facts, adapter=False, parameters=merged.num_parameters()), folder)


def _taught_by(setup: Setup, teacher: str) -> dict[str, Any]:
    """The sections of a recipe with all its teachers, of which one alone is heard."""
    losses, names = setup.recipe.losses, [spec.called for spec in setup.teachers]
    kept = (setup.folder / FUSION_FILE).is_file()
    fusion = load_choice(setup.folder, names, trust=setup.trusted).fusion if kept else None
    hidden = tuple(
        entry.model_copy(update={"teachers": (teacher,)})
        for entry in losses.hidden
        if entry.teachers is None or teacher in entry.teachers
    )
    return {
        "fusion": heard_alone(setup.task, names.index(teacher), len(names), fusion),
        "losses": losses.model_copy(update={"hidden": hidden}),
    }


def _step_file(folder: Path) -> list[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return [StepFile(folder / STEPS_FILE)]


def _train(trainer: MultiTeacherDistillationTrainer, name: str) -> None:
    show_losses(trainer, name)
    trainer.train()


def _train_baseline(setup: Setup, seed: int, key: str, facts: Mapping[str, Any]) -> SavedRows:
    """The same student from the same start, as many optimizer steps, on the labelled rows, without teachers."""
    recipe, rows, folder = setup.recipe, setup.rows, part_folder(setup, "baseline", seed)
    training = {k: v for k, v in recipe.training.items() if k not in _NOT_OF_BASELINES}
    training |= {**_OWN, "seed": seed, "output_dir": str(folder), "max_steps": facts["steps"]}
    # Weights that are spread over processes cannot be kept aside.
    whole = not (training.get("fsdp") or training.get("deepspeed"))
    # Where the report's own rows chose the student's step, they choose the baseline's too: both are flattered alike.
    alike = setup.split != "validation" or bool(recipe.training.get("load_best_model_at_end"))
    selects = "validation" in rows and alike and whole
    selects = selects and has_labels(setup, rows["validation"], facts["label_names"])
    training |= {"eval_strategy": "steps" if selects else "no", "eval_steps": facts["eval_steps"]}
    args = setup.varied(training=training, losses=Losses(task_weight=1.0, distill_weight=0.0)).arguments
    model, tokenizer = setup.student(args.seed)
    best = BestWeights(*best_by(setup.arguments, setup.task, setup.metrics))
    trainer = MultiTeacherDistillationTrainer(
        model=model,
        args=args,
        train_dataset=labelled_rows(setup, rows["train"], facts["label_names"]),
        eval_dataset=rows["validation"] if selects else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics_from(setup.computed, setup.task),
        callbacks=[*_step_file(folder), *([best] if selects else [])],
        teachers=[],
        peft_config=setup.peft_config,
        task=recipe.task,
        text_columns=recipe.data.text_columns,
        label_column=recipe.data.label_column,
        label_names=facts["label_names"],
        augment=setup.augment,
    )
    _train(trainer, f"without teachers, seed {seed}")
    saved = baseline_rows(trainer, asked_rows(setup), key, best if selects else None)
    trainer.save_model()
    trainer.save_state()
    return saved


def best_by(args: DistillationArguments, task: str | Task, metrics: Sequence[str]) -> tuple[str, bool]:
    """By which metric of the validation rows a step is best, and whether more of it is better: as for the student.

    Args:
        args: The student's.
        task: Whose metrics count where the arguments name none.
        metrics: Those that the evaluations have.
    """
    if args.metric_for_best_model is None:
        preferred = family_of(task).chosen_by
        return preferred if preferred[0] in metrics else ("loss", False)
    return args.metric_for_best_model.removeprefix("eval_"), bool(args.greater_is_better)


def has_labels(setup: Setup, rows: datasets.Dataset, label_names: Any) -> bool:
    """Whether any row has a label.

    Args:
        setup: Names the column.
        rows: Raw rows.
        label_names: Of the classes.

    Raises:
        DataError: A label is none of the classes.
    """
    if isinstance(rows, datasets.IterableDataset):  # its first rows speak for it
        rows = datasets.Dataset.from_list(list(rows.take(_LOOKED_AT)))
    return (setup.recipe.data.label_column in rows.column_names) and len(
        labelled_rows(setup, rows, label_names)
    ) > 0


def labelled_rows(setup: Setup, rows: datasets.Dataset, label_names: Any) -> datasets.Dataset:
    """The rows that have a label.

    Args:
        setup: Names the column, which they have.
        rows: Raw rows.
        label_names: Of the classes.

    Raises:
        DataError: A label is none of the classes.
    """
    column = setup.recipe.data.label_column
    if isinstance(rows, datasets.IterableDataset):
        return rows.filter(lambda row: row[column] not in (None, UNLABELLED, ""))
    encode = setup.task.label_reader(column, tuple(label_names)).encoder(rows.features[column])
    labels = np.asarray(encode(rows.with_format(None)[column][:], range(len(rows))))
    kept = np.flatnonzero(with_label(labels))
    return rows if len(kept) == len(rows) else rows.select(kept)


def student_rows(trainer: MultiTeacherDistillationTrainer, asked: AskedRows, key: str) -> SavedRows:
    """What a trained student answers, and how its training went.

    Args:
        trainer: After its training.
        asked: What it answers.
        key: What the rows are found again by.
    """
    chosen = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    best = int(Path(chosen).name.rpartition("-")[2]) if chosen else None
    return _saved(trainer, asked, "student", key, _answers(trainer, asked, "student"), best)


def baseline_rows(
    trainer: MultiTeacherDistillationTrainer, asked: AskedRows, key: str, best: BestWeights | None
) -> SavedRows:
    """What a student without teachers answers after its last step, and after the best one, which it then has.

    Args:
        trainer: After its training.
        asked: What it answers.
        key: What the rows are found again by.
        best: What the training was watched by; None: its validation rows choose no step.
    """
    if best is not None and best.seen != trainer.state.global_step:
        trainer.evaluate()  # the last step is a step too
    found = _answers(trainer, asked, "last")
    if best is None or best.weights is None:
        return _saved(trainer, asked, "baseline", key, found, None)
    if best.step != trainer.state.global_step:
        trainer.student.load_state_dict(best.weights)
    found = [
        last._replace(log_probs={**last.log_probs, **own.log_probs})
        for last, own in zip(found, _answers(trainer, asked, "best"), strict=True)
    ]
    return _saved(trainer, asked, "baseline", key, found, best.step)


def _answers(trainer: MultiTeacherDistillationTrainer, asked: AskedRows, system: str) -> list[Answers]:
    """The student's answers on the rows and, where they are other ones, on the validation rows."""
    made = []
    for name, rows in ((asked.split, asked.rows), ("validation", asked.validation)):
        if rows is None:
            continue
        found = predict_rows(
            trainer.get_eval_dataloader(rows),
            pool=TeacherPool([], trainer.student_labels, task=trainer.task),
            fusion=build_fusion(trainer.task.fusion),
            students={system: trainer.student},
            accelerator=trainer.accelerator,
            task=trainer.task,
        )
        refuse_spoilt(found, name)
        made.append(Answers(found.example_ids, found.labels, found.log_probs))
    return made


def answers_of_all(
    trainer: MultiTeacherDistillationTrainer,
    asked: AskedRows,
    key: str,
    given: PreTrainedModel | None = None,
    **facts: Any,
) -> SavedRows:
    """What teachers and ensemble answer, and a checkpoint to compare with, where one is given.

    Args:
        trainer: The run's.
        asked: What they answer.
        key: Of the run.
        given: `evaluation.baseline`, loaded; it is called `baseline` in the report.
        facts: What is kept beside.
    """
    others = {} if given is None else {"baseline": given}
    found = predict_rows(
        trainer.get_eval_dataloader(asked.rows),
        pool=trainer.teacher_pool.to(trainer.args.device),
        fusion=trainer.fusion,
        students=others,
        accelerator=trainer.accelerator,
        task=trainer.task,
    )
    refuse_spoilt(found, asked.split)
    return SavedRows(
        part="teachers",
        seed=None,
        split=asked.split,
        label_names=tuple(trainer.student_labels),
        rows=Answers(found.example_ids, found.labels, found.log_probs),
        facts={
            "sizes": count_parameters(trainer.teachers, {"student": trainer.student, **others}),
            **facts,
        },
        key=key,
    )


def _saved(
    trainer: MultiTeacherDistillationTrainer,
    asked: AskedRows,
    part: str,
    key: str,
    answers: Sequence[Answers],
    best_step: int | None,
) -> SavedRows:
    state = trainer.state
    return SavedRows(
        part=part,
        seed=trainer.args.seed,
        split=asked.split,
        label_names=tuple(trainer.student_labels),
        rows=answers[0],
        validation=answers[1] if len(answers) > 1 else None,
        lengths=_lengths(trainer, asked.rows, answers[0].example_ids),
        facts={
            "steps": state.global_step,
            "seconds": trainer.training_seconds,
            "best_step": best_step,
            "eval_steps": _eval_steps(trainer),
            # Of weights that are spread over processes no process has all.
            "weights": None if spread_out(trainer) else weights_digest(trainer.student),
            "label_names": list(trainer.student_labels),
            "log": [{k: v for k, v in entry.items() if k != "total_flos"} for entry in state.log_history],
        },
        key=key,
    )


def spread_out(trainer: MultiTeacherDistillationTrainer) -> bool:
    """Whether the student's weights are spread over processes, so that none can run or read it alone."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def _eval_steps(trainer: MultiTeacherDistillationTrainer) -> int:
    """After how many steps the student was evaluated, or would have been after each epoch."""
    state = trainer.state
    if trainer.args.eval_strategy == "steps" and state.eval_steps:
        return max(1, min(int(state.eval_steps), state.global_step))
    return max(1, min(round(state.global_step / (state.epoch or 1.0)), state.global_step))


def _lengths(
    trainer: MultiTeacherDistillationTrainer, rows: datasets.Dataset, example_ids: np.ndarray
) -> np.ndarray | None:
    """(N,) length of each row as the student reads it, in the order of its answers, which is the sampler's; None: they have none."""
    prepared = trainer.get_eval_dataloader(rows).dataset.rows
    lengths = trainer.student_view.lengths(prepared)
    if lengths is None:
        return None
    tokens = dict(zip(prepared.with_format(None)["example_id"][:], lengths.tolist(), strict=True))
    return np.array([tokens[row] for row in example_ids.tolist()], dtype=np.int64)
