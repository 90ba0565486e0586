"""The verdict of a recipe: its baseline and its other seeds trained, every system measured, the report written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import xxhash
from transformers import PreTrainedModel, TrainerState

from ... import __version__
from ...errors import DataError, HfDistillError
from ...evaluation.cost import Cost, busy, conditions, measure_costs, place, time_model, timed_rows
from ...evaluation.evaluating import report_notes
from ...fusion import summary
from ...processes import once, say
from ...recipe.setup import Setup
from ...rows.preparing import distinct_rows
from ...students.adapters import ADAPTER_FOLDER, with_saved_adapter
from ...students.loading import load_trained
from ...teachers.cache.reading import CachedTeacher
from ...teachers.teacher import Teacher
from ...training.preparation import overlap_notes
from ...training.resuming import describe_run, in_one_order
from ...training.trainer import MultiTeacherDistillationTrainer
from ...verdict import SavedRows, VerdictReport, best_teacher, judge
from ...verdict.answers import finished_rows, load_rows, rows_file
from ...verdict.report import teacher_share
from ...verdict.systems import ENSEMBLE, STUDENT, TEACHER, TOGETHER
from .about import about_run
from .digests import module_digests, rows_digest, weights_digest
from .jobs import Job, places, run_jobs
from .trainings import (
    AskedRows,
    answers_of_all,
    asked_rows,
    first_seed,
    has_labels,
    part_folder,
    spread_out,
    student_rows,
    train_part,
)

# What of `training` decides neither the weights nor what they are evaluated on; whatever the Hub is told neither. Which
# steps are evaluated and which may be kept is looked up where the arguments are complete.
_IRRELEVANT = {
    "output_dir", "seed", "disable_tqdm", "log_level", "logging_dir", "logging_first_step", "logging_steps",
    "logging_strategy", "report_to", "run_name", "save_steps", "save_total_limit", "dataloader_num_workers",
    "dataloader_pin_memory", "per_device_eval_batch_size", "push_to_hub",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Verdict:
    """A run whose student is about to be trained, and judged afterwards.

    Args:
        setup: Of the recipe.
        key: What decides its trainings: those that were finished under it before are not made again.
    """

    setup: Setup
    key: str

    @property
    def seeds(self) -> list[int]:
        """Of student and baseline, the run's own first."""
        return [first_seed(self.setup) + i for i in range(self.setup.recipe.evaluation.seeds)]

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.setup.folder

    def restore(self, trainer: MultiTeacherDistillationTrainer) -> bool:
        """Give the trainer the student that the run's folder has, where that was finished by this very recipe.

        Only with several seeds: these are what an interrupted verdict should not pay for twice. A run of one seed is
        trained whenever it is started.

        Args:
            trainer: Not trained yet.
        """

        def is_there() -> bool:
            found = finished_rows(self.folder, "student", self.seeds[0], self.key)
            return found is not None and (self.folder / "trainer_state.json").is_file()

        if len(self.seeds) == 1 or not once(is_there, trainer.accelerator):
            return False
        try:
            known = load_rows(rows_file(self.folder, "student", self.seeds[0])).facts.get("weights")
            if trainer.peft_config is None:
                trained = load_trained(str(self.folder), trainer.student_labels, trainer.task, "The student")
            else:
                trained = with_saved_adapter(trainer.student, self.folder / ADAPTER_FOLDER)
            if known is not None and weights_digest(trained) != known:
                return False  # of another training, which left the rows of this one behind
            trainer.student.load_state_dict(trained.state_dict())
            trainer.state = TrainerState.load_from_json(str(self.folder / "trainer_state.json"))
        except (HfDistillError, OSError, RuntimeError, ValueError, KeyError):
            return False  # whatever lies there, training it again mends it
        return True

    def judge(
        self,
        trainer: MultiTeacherDistillationTrainer,
        *,
        given: PreTrainedModel | None = None,
        restored: bool = False,
    ) -> VerdictReport:
        """Train what is missing, measure every system, and write report.json, report.md and report.html.

        Args:
            trainer: The run's, with the trained student.
            given: `evaluation.baseline`, loaded.
            restored: Whether the student was there before.
        """
        own = self._own_rows(trainer, restored)
        digest = rows_digest(self.setup.rows, (*trainer.text_columns, trainer.label_column))
        teachers = answers_of_all(trainer, asked_rows(self.setup), self.key, given, rows=digest)
        once(lambda: str(teachers.save(self.folder)), trainer.accelerator)
        found = self._trainings(trainer, own, teachers)

        def judged() -> VerdictReport:
            report = self._report(trainer, found, teachers)
            report.save(self.folder)
            return report

        return once(judged, trainer.accelerator)

    def _own_rows(self, trainer: MultiTeacherDistillationTrainer, restored: bool) -> SavedRows:
        """Of the student in the run's folder."""
        if restored:
            return load_rows(rows_file(self.folder, "student", self.seeds[0]))
        own = student_rows(trainer, asked_rows(self.setup), self.key)
        if trainer.is_world_process_zero():
            own.save(self.folder)
        return own

    def _trainings(
        self, trainer: MultiTeacherDistillationTrainer, own: SavedRows, teachers: SavedRows
    ) -> dict[tuple[str, int], SavedRows]:
        """All students and baselines: those that are there, and those that are trained now."""
        setup = self.setup
        teacher = best_teacher(teachers.rows, setup.task) if setup.recipe.evaluation.single_teacher else None
        others = ["baseline"] if has_labels(setup, setup.rows["train"], trainer.student_labels) else []
        others += ["single"] if teacher is not None else []
        parts = [(part, seed) for seed in self.seeds for part in ("student", *others)][1:]
        found = {("student", self.seeds[0]): own}

        def finished() -> list[tuple[str, int]]:
            return [part for part in parts if finished_rows(self.folder, *part, self.key) is not None]

        there = once(finished, trainer.accelerator)
        missing = [part for part in parts if part not in there]
        if missing:
            _release(trainer)
        if there:
            named = ", ".join(f"{part} of seed {seed}" for part, seed in there)
            say(f"Finished before, and not trained again: {named}.")
        where = places(trainer.args.device.type)
        if trainer.accelerator.num_processes == 1 and len(where) > 1 and len(missing) > 1:
            run_jobs([self._job(trainer, own, *part) for part in missing], where)
        else:
            for i, (part, seed) in enumerate(missing):
                say(f"Verdict: training {i + 1} of {len(missing)}: {part}, seed {seed}")
                alone = teacher if part == "single" else None
                found[part, seed] = train_part(setup, part, seed, self.key, own.facts, alone)
        return {part: load_rows(rows_file(self.folder, *part)) for part in parts if part not in found} | found

    def _job(self, trainer: MultiTeacherDistillationTrainer, own: SavedRows, part: str, seed: int) -> Job:
        arguments = ["train-part", str(self.folder / "recipe.yaml"), part, str(seed), self.key]
        for name in sorted(self.setup.trusted):
            arguments += ["--trust", name]
        if trainer.args.n_gpu > 1:
            # What this process spread over its GPUs, one of them does in as many turns.
            turns = trainer.args.gradient_accumulation_steps * trainer.args.n_gpu
            arguments.append(f"training.gradient_accumulation_steps={turns}")
        return Job(
            f"The training of the {part} with seed {seed}",
            tuple(arguments),
            part_folder(self.setup, part, seed),
            int(own.facts["steps"]),
        )

    def _report(
        self,
        trainer: MultiTeacherDistillationTrainer,
        found: Mapping[tuple[str, int], SavedRows],
        teachers: SavedRows,
    ) -> VerdictReport:
        setup = self.setup
        live = {teacher.name: teacher for teacher in trainer.teachers if isinstance(teacher, Teacher)}
        report = judged_report(
            trainer,
            asked_rows(setup),
            self.seeds,
            found,
            teachers,
            metrics=setup.metrics,
            single_teacher=setup.recipe.evaluation.single_teacher,
            load={
                spec.called: lambda spec=spec: live.get(spec.called) or spec.load(setup.recipe.task)
                for spec in setup.teachers
            },
        )
        return dataclasses.replace(report, about=about_run(setup, trainer))


def judged_report(
    trainer: MultiTeacherDistillationTrainer,
    asked: AskedRows,
    seeds: Sequence[int],
    found: Mapping[tuple[str, int], SavedRows],
    teachers: SavedRows,
    *,
    metrics: Sequence[Any],
    single_teacher: bool,
    load: Mapping[str, Callable[[], Teacher]],
    notes: Sequence[str] = (),
) -> VerdictReport:
    """Time the models of a run, and judge what everybody answered.

    Args:
        trainer: Of the first seed.
        asked: What was answered.
        seeds: Of student and baseline, the trainer's own first.
        found: The trainings' answers by part and seed.
        teachers: The teachers' answers.
        metrics: What is reported.
        single_teacher: Whether a student of the best single teacher was asked for.
        load: Makes each teacher live, by its name.
        notes: What a reader must know besides.
    """
    choice, state, args = trainer.fusion_choice, trainer.state, trainer.args
    content = trainer.task.content
    given = distinct_rows(asked.rows, trainer.text_columns, content).by_id()
    texts = {row: content.told(own) for row, own in given.items()}
    prepared = trainer.get_eval_dataloader(asked.rows).dataset.rows
    chosen = args.load_best_model_at_end and state.best_metric is not None
    baselines, singles = (
        [found[name, seed] for seed in seeds if (name, seed) in found] for name in ("baseline", "single")
    )
    timed = timed_rows(given.values())
    costs, failed = _costs(trainer, timed, load)
    alone = single_teacher and not singles
    train = trainer.train_dataset
    sized = isinstance(train, datasets.Dataset)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    seen = round(len(train) * float(state.epoch or 0)) if sized else state.global_step * batch
    stored = sized and all(isinstance(teacher, CachedTeacher) for teacher in trainer.teachers)
    return judge(
        [found["student", seed] for seed in seeds],
        baselines,
        teachers,
        singles=singles,
        task=trainer.task,
        metrics=metrics,
        fusion=summary(choice.fusion),
        texts=texts,
        left_out=choice.fitted_on.numpy(),
        costs=costs,
        conditions=conditions(args.device, asked.split, len(timed)) if costs else "",
        place=place(args.device) if costs else "",
        teachers_share=teacher_share(
            costs,
            rows_seen=seen,
            cached_rows=len(train) if stored else None,
            seconds=float(found["student", seeds[0]].facts.get("seconds") or 0),
        ),
        busy=busy() if costs else "",
        sizes=dict(teachers.facts["sizes"]),
        notes=[
            *overlap_notes(prepared, trained=train, selected=trainer.eval_dataset if chosen else None),
            *notes,
            *(["No teacher has every class, so there is no student of the best single teacher."] * alone),
            *(["No training row has a label, so there is no fine-tuned baseline."] * (not baselines)),
            *failed,
            *trainer.training_notes,
            *report_notes(choice, teachers.rows.labels, trainer.student_labels, trainer.family),
        ],
    )


def _costs(
    trainer: MultiTeacherDistillationTrainer,
    rows: Sequence[Any],
    load: Mapping[str, Callable[[], Teacher]],
) -> tuple[dict[str, Cost], list[str]]:
    """Student and teachers timed alone, one after another; teachers that are cached are loaded for it, one at a time.

    A teacher that cannot be loaded or run here, though its answers are in the cache, costs no more than a note.
    """
    if spread_out(trainer):
        return {}, ["No model was timed: the student's weights are spread over processes."]
    device = trainer.args.device
    failed: list[str] = []

    def timing(name: str) -> Any:
        try:
            loaded = load[name]()
            return time_model(loaded.model, loaded.view, rows, device=device)
        except (HfDistillError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            failed.append(f"Teacher {name!r} could not be timed on this machine: {reason}")
            return None

    own = {STUDENT: lambda: time_model(trainer.student, trainer.student_view, rows, device=device)}
    each = {f"{TEACHER}{name}": (lambda name=name: timing(name)) for name in load}
    together = {ENSEMBLE: [*each], TOGETHER: [*own, *each] if each else []}
    return measure_costs({**own, **each}, together), failed


def open_verdict(setup: Setup, trainer: MultiTeacherDistillationTrainer) -> Verdict | None:
    """The verdict that a run is to end with; None where there is to be none.

    There is none without a test or validation split, where that has no labels, and where `evaluation.verdict` is false.

    Args:
        setup: Of the recipe.
        trainer: The run's, not trained yet.

    Raises:
        DataError: A label of the split is none of the student's.
    """
    if not setup.recipe.evaluation.verdict or setup.split in (None, "train"):
        return None
    return (
        Verdict(setup, _key(setup, trainer))
        if has_labels(setup, setup.rows[setup.split], trainer.student_labels)
        else None
    )


def train_verdict_part(setup: Setup, part: str, seed: int, key: str) -> None:
    """Train one part of a verdict in a process of its own.

    Args:
        setup: Of the recipe that the run wrote.
        part: ``student``, ``baseline`` or ``single``.
        seed: Of the training.
        key: As the run knows it.

    Raises:
        DataError: The data are no longer those that the run has read.
    """
    run, data = setup.folder, setup.recipe.data
    own = load_rows(rows_file(run, "student", first_seed(setup)))
    teachers = load_rows(rows_file(run, "teachers", None))
    digest = rows_digest(setup.rows, (*data.text_columns, data.label_column))
    if teachers.facts.get("rows", digest) != digest:
        raise DataError(
            f"The data of {run / 'recipe.yaml'} have changed since this run read them, so the {part} of seed {seed} "
            "would learn other rows than the student it is compared with: put them back, or start the run again."
        )
    teacher = best_teacher(teachers.rows, setup.task) if part == "single" else None
    train_part(setup, part, seed, key, own.facts, teacher)


def add_rows(digest: Any, trainer: MultiTeacherDistillationTrainer, asked: AskedRows) -> None:
    """Add the rows that a verdict is on to a hash, by their content and their labels.

    Args:
        digest: Of `xxhash`.
        trainer: Prepares them.
        asked: The rows.
    """
    for rows in (asked.rows, asked.validation):
        if rows is None:
            continue
        prepared = trainer.get_eval_dataloader(rows).dataset.rows.with_format("numpy")
        for column in ("example_id", "labels"):
            digest.update(in_one_order(prepared[column][:]).tobytes())


def _key(setup: Setup, trainer: MultiTeacherDistillationTrainer) -> str:
    """What decides the trainings of a verdict: the run as a checkpoint describes it, the start, and the rows."""
    args, recipe = trainer.args, setup.recipe
    run = {k: v for k, v in describe_run(trainer, setup.target_fusion).items() if k != "seed"}
    digest = xxhash.xxh3_128(weights_digest(trainer.student).encode())
    add_rows(digest, trainer, asked_rows(setup))
    about = {
        "version": __version__,
        "run": run,
        "training": {
            k: v for k, v in recipe.training.items() if k not in _IRRELEVANT and not k.startswith("hub_")
        },
        "evaluated": [str(args.eval_strategy), args.eval_steps, args.metric_for_best_model],
        "kept": [str(args.save_strategy), args.save_steps] if args.load_best_model_at_end else None,
        "metrics": recipe.evaluation.metrics,
        "student": recipe.student.model_dump(),
        "split": setup.split,
        "sources": module_digests(recipe),
    }
    if recipe.data.streaming:  # of whose rows nobody knows the content
        about["data"] = recipe.data.model_dump()
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    # Weights may differ between processes before the first step spreads those of the main one.
    return once(digest.hexdigest, trainer.accelerator)


def _release(trainer: MultiTeacherDistillationTrainer) -> None:
    """Free what a finished training holds on its device, for those that follow."""
    if not spread_out(trainer):
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()
