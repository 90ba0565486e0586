"""Callbacks: what they set at which step and evaluation, what they leave behind, resume, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from conftest import make_student
from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
from hf_distill.errors import ConfigurationError
from hf_distill.fusion.alignment import TeacherOutputs
from hf_distill.rows.preparing import example_id
from hf_distill.training.callbacks import AdaptiveStrength, ScheduleCallback, remaining_strength
from hf_distill.training.schedules import Constant, Cosine, Linear, WarmUp

FIELDS = ("temperature", "task_weight", "distill_weight", "label_share")


def arguments(folder="unused", **options) -> DistillationArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 8,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
    }
    return DistillationArguments(**{**defaults, **options})


class Recorder(TrainerCallback):
    """What the arguments were while a step, counted from 0, was computed."""

    def __init__(self):
        self.steps = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps[state.global_step - 1] = {name: getattr(args, name) for name in FIELDS}


class Stop(TrainerCallback):
    """Ends the training by an error, as an interrupt does: nobody is told that it ended."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_trainer(folder, teachers, tokenizer, rows, *, eval_dataset=None, callbacks=(), seed=4, **options):
    return MultiTeacherDistillationTrainer(
        model=make_student(tokenizer, seed=seed),
        teachers=teachers,
        args=arguments(folder, **options),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        fusion="linear_pool",
        callbacks=list(callbacks),
    )


def run(callback, args, steps, *, start=0, history=(), evaluations=None):
    """The events of a training without one: yields the step after it began, and tells of evaluations after it."""
    state, control = (
        TrainerState(global_step=start, max_steps=steps, log_history=list(history)),
        TrainerControl(),
    )
    callback.on_train_begin(args, state, control)
    for step in range(start, steps):
        state.global_step = step
        callback.on_step_begin(args, state, control)
        yield step
        state.global_step = step + 1
        if evaluations and step in evaluations:
            callback.on_evaluate(args, state, control, metrics=evaluations[step])
    callback.on_train_end(args, state, control)


# ---- Schedules ----


def test_first_step_is_the_start_and_last_the_end():
    args = arguments(temperature=3.0, task_weight=0.2, distill_weight=0.6)
    callback = ScheduleCallback(
        temperature=Linear(4, 1), distill_weight={"use": "warm_up", "value": 0.8, "until": 0.5}
    )
    seen = {step: dict(callback.values) for step in run(callback, args, 5)}
    assert [seen[i]["temperature"] for i in range(5)] == [4, 3.25, 2.5, 1.75, 1]
    assert [seen[i]["distill_weight"] for i in range(5)] == pytest.approx([0, 0.4, 0.8, 0.8, 0.8])
    assert all(set(values) == {"temperature", "distill_weight"} for values in seen.values())
    assert (args.temperature, args.distill_weight) == (3.0, 0.6), "the user's values are there again"
    assert callback.values == {}


def test_one_step_has_the_start():
    args = arguments()
    callback = ScheduleCallback(label_share=Linear(0.25, 1))
    assert [args.label_share for _ in run(callback, args, 1)] == [0.25]


def test_values_depend_on_the_step_alone():
    whole = ScheduleCallback(task_weight=Cosine(0.1, 0.9))
    args = arguments()
    values = [args.task_weight for _ in run(whole, args, 9)]
    for start in (0, 3, 8):
        resumed, args = ScheduleCallback(task_weight=Cosine(0.1, 0.9)), arguments()
        assert [args.task_weight for _ in run(resumed, args, 9, start=start)] == values[start:]


def test_they_are_set_before_an_evaluation_at_the_start():
    args = arguments(temperature=3.0)
    ScheduleCallback(temperature=Linear(4, 1)).on_train_begin(
        args, TrainerState(max_steps=5), TrainerControl()
    )
    assert args.temperature == 4


def test_every_step_has_the_loss_of_its_values(tmp_path, teachers, bert_tokenizer, rows):
    """At learning rate 0 each step equals the first one of a training with the same values and no schedule."""
    batch = rows.select(range(8))
    schedules = {
        "temperature": Linear(4, 1),
        "task_weight": Constant(0.3),
        "distill_weight": WarmUp(0.8),
        "label_share": Linear(0, 1),
    }
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, batch, callbacks=[ScheduleCallback(**schedules), recorder],
        learning_rate=0.0, max_steps=3, temperature=2.5, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer.train()
    assert [recorder.steps[i]["temperature"] for i in range(3)] == [4, 2.5, 1]
    assert [recorder.steps[i]["label_share"] for i in range(3)] == [0, 0.5, 1]
    assert trainer.args.temperature == 2.5
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for i, log in enumerate(logs):
        assert {name: log[name] for name in FIELDS} == recorder.steps[i]
        fixed = make_trainer(
            tmp_path, teachers, bert_tokenizer, batch, learning_rate=0.0, max_steps=1,
            train_sampling_strategy="sequential", **recorder.steps[i],
        )  # fmt: skip
        fixed.train()
        assert log["loss"] == pytest.approx(fixed.state.log_history[0]["loss"], rel=1e-6)
        assert log["grad_norm"] == pytest.approx(fixed.state.log_history[0]["grad_norm"], rel=1e-5)
    assert len({round(log["loss"], 6) for log in logs}) == 3


def test_resumed_training_logs_the_same_values(tmp_path, teachers, bert_tokenizer, rows):
    def build(folder, seed, *more):
        schedule = ScheduleCallback(
            temperature=Linear(4, 1), distill_weight=Cosine(0.9, 0.1), label_share=Linear(0, 1)
        )
        return make_trainer(
            folder, teachers, bert_tokenizer, rows, callbacks=[schedule, *more], seed=seed,
            max_steps=6, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2,
        )  # fmt: skip

    whole = build(tmp_path / "whole", 4)
    whole.train()
    interrupted = build(tmp_path / "cut", 4, Stop(4))
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = build(tmp_path / "cut", 5)
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = (
        {log["step"]: {name: log[name] for name in ("loss", "temperature", "distill_weight", "label_share")}
         for log in trainer.state.log_history if "loss" in log}
        for trainer in (resumed, whole)
    )  # fmt: skip
    assert ours == theirs
    assert [theirs[step]["temperature"] for step in range(1, 7)] == pytest.approx([4, 3.4, 2.8, 2.2, 1.6, 1])


def test_an_interrupted_training_leaves_no_values_to_the_next(tmp_path, teachers, bert_tokenizer, rows):
    stop = Stop(2)
    trainer = make_trainer(
        tmp_path,
        teachers,
        bert_tokenizer,
        rows,
        temperature=3.0,
        callbacks=[ScheduleCallback(temperature=Linear(4, 1)), stop],
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(stop)
    trainer.train()
    assert trainer.args.temperature == 3.0


def test_what_the_user_sets_after_an_interrupt_is_hers():
    args, callback = arguments(temperature=3.0), ScheduleCallback(temperature=Linear(4, 1))
    next(run(callback, args, 5))
    args.temperature = 7.0
    assert [args.temperature for _ in run(callback, args, 2)] == [4, 1]
    assert args.temperature == 7.0


@pytest.mark.parametrize(
    ("schedules", "options", "sentence"),
    [
        ({"distill_weight": Linear(1, 0)}, {"task_weight": 0.0}, "both 0 at progress 1"),
        ({"task_weight": WarmUp(1)}, {"distill_weight": 0.0}, "both 0 at progress 0"),
        ({"temperature": Linear(4, 1)}, {"load_best_model_at_end": True, "save_strategy": "steps",
          "eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}, "metric_for_best_model is 'loss', but that changes"),
        ({"temperature": Linear(4, 1)}, {"metric_for_best_model": "eval_loss"}, "metric_for_best_model is 'eval_loss'"),
    ],
)  # fmt: skip
def test_schedules_that_cannot_be_refuse_to_begin(schedules, options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        next(run(ScheduleCallback(**schedules), arguments(**options), 5))


def test_other_refusals():
    with pytest.raises(
        ConfigurationError, match="no schedule: name at least one of temperature, task_weight"
    ):
        ScheduleCallback()
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        ScheduleCallback(temprature=Linear(4, 1))
    with pytest.raises(ConfigurationError, match="temperature would be 0 at progress 1"):
        ScheduleCallback(temperature=Linear(4, 0))
    with pytest.raises(ConfigurationError, match="The number of steps is not known.*set max_steps"):
        next(run(ScheduleCallback(temperature=Linear(4, 1)), arguments(), 0))
    # Between the points that were looked at before: seen when its step comes.
    between = ScheduleCallback(distill_weight=lambda p: 0.0 if 0.3331 < p < 0.3339 else 1.0)
    with pytest.raises(ConfigurationError, match="both 0 at progress 0.333333"):
        list(run(between, arguments(task_weight=0.0), 4))


def test_two_masters_of_one_field_are_refused(tmp_path, teachers, bert_tokenizer, rows, held_out):
    pairs = [
        [ScheduleCallback(temperature=Linear(4, 1)), ScheduleCallback(temperature=Linear(2, 1))],
        [AdaptiveStrength(), ScheduleCallback(distill_weight=Linear(0.9, 0.1))],
        [ScheduleCallback(distill_weight=Linear(0.9, 0.1)), AdaptiveStrength()],
    ]
    for callbacks in pairs:
        trainer = make_trainer(
            tmp_path, teachers, bert_tokenizer, rows, callbacks=callbacks, eval_dataset=held_out,
            eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        with pytest.raises(ConfigurationError, match="two callbacks set it"):
            trainer.train()


# ---- Adaptive strength ----


def losses(student, ensemble=0.5, prefix="eval"):
    return {f"{prefix}_loss": 9.0, f"{prefix}_loss_task": student, f"{prefix}_loss_ensemble": ensemble}


def adaptive(**options):
    return arguments(eval_strategy="steps", distill_weight=0.8, **options)


def test_strength_by_hand():
    assert remaining_strength(1.5, 0.5, 2.5) == 0.5
    assert remaining_strength(2.5, 0.5, 2.5) == 1
    assert remaining_strength(9.0, 0.5, 2.5) == 1
    assert remaining_strength(0.5, 0.5, 2.5) == 0
    assert remaining_strength(0.1, 0.5, 2.5) == 0
    # A student that began as good as the ensemble: nothing to gain, all to regain.
    assert remaining_strength(0.4, 0.5, 0.4) == 0
    assert remaining_strength(0.6, 0.5, 0.4) == 1
    assert remaining_strength(0.5, 0.5, 0.5) == 0


def test_strength_falls_with_the_students_loss():
    values = [remaining_strength(student / 10, 0.5, 2.5) for student in range(30, 0, -1)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1 and values[-1] == 0


def test_the_weight_follows_the_evaluations():
    args, callback = adaptive(), AdaptiveStrength()
    evaluations = {
        0: losses(2.5),
        1: losses(1.5),
        2: losses(3.0),
        3: losses(math.nan),
        4: losses(1.0),
        5: losses(0.4),
    }
    weights = [callback.values["distill_weight"] for _ in run(callback, args, 7, evaluations=evaluations)]
    assert weights == pytest.approx([0.8, 0.8, 0.4, 0.8, 0.8, 0.2, 0.0])
    assert args.distill_weight == 0.8 and callback.values == {}


def test_without_the_ensembles_loss_the_last_one_holds():
    """Teachers of weight 0 are not run, so the evaluation says nothing of them."""
    student_alone = {"eval_loss": 1.0, "eval_loss_task": 1.5}
    args, callback = adaptive(), AdaptiveStrength()
    evaluations = {0: losses(2.5), 1: losses(0.4), 2: student_alone}
    weights = [args.distill_weight for _ in run(callback, args, 4, evaluations=evaluations)]
    assert weights == pytest.approx([0.8, 0.8, 0.0, 0.4])


def test_other_evaluation_sets_are_left_aside():
    args, callback = adaptive(), AdaptiveStrength("eval_dev")
    evaluations = {0: losses(2.5, prefix="eval_dev"), 1: losses(0.1, prefix="eval_far"), 2: losses(0.1)}
    assert [args.distill_weight for _ in run(callback, args, 4, evaluations=evaluations)] == [0.8] * 4


def test_the_weight_is_restored_from_the_log():
    history = [{"loss": 1.0, "step": 1}, losses(2.5) | {"step": 1}, losses(1.5) | {"step": 2}]
    args = adaptive()
    weights = [args.distill_weight for _ in run(AdaptiveStrength(), args, 5, start=3, history=history)]
    assert weights == pytest.approx([0.4, 0.4])
    assert args.distill_weight == 0.8


def test_an_interrupt_does_not_make_the_weakened_weight_the_users():
    args, callback = adaptive(), AdaptiveStrength()
    steps = run(callback, args, 5, evaluations={0: losses(2.5), 1: losses(1.0)})
    [next(steps) for _ in range(3)]
    assert args.distill_weight == pytest.approx(0.2)
    assert next(run(callback, args, 5)) == 0
    assert args.distill_weight == 0.8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eval_strategy": "no"}, "follows the evaluations, but eval_strategy is 'no'"),
        ({"distill_weight": 0.0}, "distill_weight is 0, but AdaptiveStrength goes from"),
        ({"task_weight": 0.0}, "task_weight is 0, but AdaptiveStrength goes from"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1 is part of the student's alone"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model is 'loss'"),
    ],
)
def test_adaptive_strength_refuses_to_begin(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        next(run(AdaptiveStrength(), arguments(**{"eval_strategy": "steps", **options}), 5))


def test_evaluations_that_say_nothing_of_it_are_refused():
    evaluations = {0: {"eval_far_loss": 1.0, "eval_far_accuracy": 0.5}}
    with pytest.raises(ConfigurationError, match=r"no evaluation has both \(their prefixes: eval_far\)"):
        list(run(AdaptiveStrength("eval_near"), adaptive(), 3, evaluations=evaluations))


class Knowing:
    """A teacher that knows the labels of some rows: loss ln(1 + e⁻²)."""

    name, label_names, view = "knowing", ("negative", "positive"), None

    def __init__(self, *datasets):
        self.labels = {example_id([row["text"]]): row["label"] for rows in datasets for row in rows}

    def __call__(self, view, example_ids):
        labels = torch.tensor([self.labels[i] for i in example_ids.tolist()])
        return TeacherOutputs(torch.nn.functional.one_hot(labels, 2) * 2.0)


def test_on_a_trainer_the_weight_is_the_formula_and_survives_resuming(
    tmp_path, bert_tokenizer, rows, held_out
):
    teachers = [Knowing(rows, held_out)]

    def build(folder, seed):
        return make_trainer(
            folder, teachers, bert_tokenizer, rows, callbacks=[AdaptiveStrength()], seed=seed, eval_dataset=held_out,
            max_steps=40, eval_strategy="steps", eval_steps=10, save_strategy="steps", save_steps=20,
            learning_rate=5e-3, per_device_train_batch_size=32, distill_weight=0.7, task_weight=0.3,
        )  # fmt: skip

    whole = build(tmp_path, 4)
    whole.train()
    evaluations = {log["step"]: log for log in whole.state.log_history if "eval_loss" in log}
    student = {step: log["eval_loss_task"] for step, log in evaluations.items()}
    ensembles = [log["eval_loss_ensemble"] for log in evaluations.values() if "eval_loss_ensemble" in log]
    assert ensembles == pytest.approx([math.log1p(math.exp(-2))] * len(ensembles))
    weights = {log["step"]: log["distill_weight"] for log in whole.state.log_history if "loss" in log}
    for step, weight in weights.items():
        if step <= 10:
            assert weight == 0.7
        else:
            last = student[(step - 1) // 10 * 10]
            expected = 0.7 * remaining_strength(last, ensembles[0], student[10])
            assert weight == pytest.approx(expected, abs=1e-6)
    assert 0 < weights[40] < weights[30] < 0.7
    resumed = build(tmp_path, 5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert {
        log["step"]: log["distill_weight"] for log in resumed.state.log_history if "loss" in log
    } == weights
    assert whole.args.distill_weight == resumed.args.distill_weight == 0.7
