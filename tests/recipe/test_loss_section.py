"""The section `losses` of a recipe: schedules, label share, row weights, adaptive strength."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_distill.errors import ConfigurationError
from hf_distill.recipe import load_recipe
from hf_distill.recipe.data_section import load_data
from hf_distill.recipe.loss_section import build_callbacks, needs_labels
from hf_distill.recipe.setup import Setup, write_recipe
from hf_distill.training.callbacks import AdaptiveStrength, ScheduleCallback
from hf_distill.training.schedules import Constant, Cosine, Linear

BASE = """
data: {dataset: org/data, label_names: [negative, positive]}
teachers: {models: [org/bert, org/roberta]}
student: {model: org/student}
"""
EVERY = """
losses:
  temperature: {use: linear, start: 4, end: 1}
  task_weight: 0.4
  distill_weight: {use: cosine, start: 0.9, end: 0.1, until: 0.5}
  label_share: {use: linear, start: 0, end: 1}
  row_weight: student_entropy
"""


def halves(progress: float) -> float:
    """A schedule of the user's own."""
    return 0.5


def halving(student_logits, teacher_logits, *, mask=None):
    """A row weight of the user's own."""
    return student_logits.new_full(student_logits.shape[:1], 0.5)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe into an empty working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("mine.yaml").write_text(text, encoding="utf-8")
        return "mine.yaml"

    return write


def problems(file: str, overrides=()) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        load_recipe(file, overrides)
    return str(raised.value).splitlines()


def test_schedules_become_callbacks_and_their_start_the_arguments(write):
    recipe = load_recipe(write(BASE + EVERY))
    args = Setup(recipe).arguments
    assert (args.temperature, args.task_weight, args.distill_weight, args.label_share) == (4.0, 0.4, 0.9, 0.0)
    (callback,) = build_callbacks(recipe.losses)
    assert callback.schedules == {
        "temperature": Linear(4, 1),
        "distill_weight": Cosine(0.9, 0.1, until=0.5),
        "label_share": Linear(0, 1),
    }


def test_numbers_need_no_callback(write):
    recipe = load_recipe(write(BASE + "losses: {temperature: 3, label_share: 0.25}"))
    assert build_callbacks(recipe.losses) == []
    args = Setup(recipe).arguments
    assert (args.temperature, args.task_weight, args.distill_weight, args.label_share) == (
        3.0,
        0.5,
        0.5,
        0.25,
    )


def test_the_adaptive_weight(write):
    file = write(
        BASE + "losses: {distill_weight: {use: adaptive, start: 0.7}}\ntraining: {eval_strategy: epoch}"
    )
    recipe = load_recipe(file)
    assert Setup(recipe).arguments.distill_weight == 0.7
    (callback,) = build_callbacks(recipe.losses)
    assert isinstance(callback, AdaptiveStrength) and callback.prefix == "eval"
    both = load_recipe(file, ["losses.temperature={use: linear, start: 4, end: 1}"])
    assert [type(callback) for callback in build_callbacks(both.losses)] == [
        AdaptiveStrength,
        ScheduleCallback,
    ]
    plain = load_recipe(file, ["losses.distill_weight={use: adaptive}"])
    assert Setup(plain).arguments.distill_weight == 0.5


def test_a_schedule_of_the_users_own(write):
    recipe = load_recipe(write(BASE + f'losses: {{task_weight: {{use: "{__name__}:halves"}}}}'))
    (callback,) = build_callbacks(recipe.losses)
    assert callback.schedules["task_weight"](0.3) == 0.5


def test_overrides_reach_into_a_schedule(write):
    recipe = load_recipe(write(BASE + EVERY), ["losses.temperature.end=2", "losses.label_share=0.5"])
    (callback,) = build_callbacks(recipe.losses)
    assert callback.schedules["temperature"] == Linear(4, 2)
    assert set(callback.schedules) == {"temperature", "distill_weight"}


def test_what_a_run_would_write_is_the_same_recipe(write):
    recipe = load_recipe(write(BASE + EVERY))
    assert load_recipe(write_recipe(recipe, Path("out"))) == recipe
    assert recipe.losses.model_dump()["temperature"] == {"use": "linear", "start": 4, "end": 1}


@pytest.mark.parametrize(
    ("losses", "needed"),
    [
        ("{task_weight: 0}", False),
        ("{task_weight: 0, label_share: 0.1}", True),
        ("{task_weight: {use: constant, value: 0}}", False),
        ("{task_weight: {use: warm_up, value: 1, until: 1}}", True),
        ("{task_weight: 0, label_share: {use: linear, start: 0, end: 1, begin: 0.9}}", True),
    ],
)
def test_labels_are_needed_where_something_is_learnt_from_them(write, rows, losses, needed):
    rows.select_columns("text").to_json(write("").replace("mine.yaml", "train.jsonl"))
    text = f"{BASE.replace('dataset: org/data', 'files: {train: train.jsonl}')}losses: {losses}"
    recipe = load_recipe(write(text))
    assert needs_labels(recipe.losses) is needed
    if needed:
        with pytest.raises(ValueError, match="the train rows have no column 'label'"):
            load_data(recipe)
    else:
        assert load_data(recipe)["train"].column_names == ["text"]


BAD = [
    ("{temperature: {start: 4}}", "losses.temperature: expected a number or a schedule, {use: linear, start: 4, end: 1}; found {'start': 4}"),
    ("{temperature: {use: 3}}", "losses.temperature: expected a number or a schedule"),
    ("{temperature: linear}", "losses.temperature: expected a number, found 'linear'"),
    ("{temperature: {use: liner, start: 4, end: 1}}", "losses.temperature: there is no schedule named 'liner'; known: constant, cosine, linear, warm_up (did you mean 'linear'?)"),
    ("{temperature: {use: linear, start: 4}}", "losses.temperature: schedule 'linear' with"),
    ("{temperature: {use: linear, start: 4, end: 1, stop: 1}}", "losses.temperature: schedule 'linear' has no option 'stop'"),
    ("{temperature: {use: linear, start: 4, end: 0}}", "losses.temperature: temperature would be 0 at progress 1, but logits are divided by it"),
    ("{temperature: {use: linear, start: '4', end: 1}}", "losses.temperature: Linear: start is '4', but it must be a number"),
    ("{temperature: {use: linear, start: 4, end: 1, until: 2}}", "losses.temperature: Linear goes from progress 0 to 2"),
    ("{temperature: {use: adaptive}}", "losses.temperature: there is no schedule named 'adaptive'"),
    ("{task_weight: {use: warm_up, value: -1}}", "losses.task_weight: task_weight would be -0.01 at progress 0.001"),
    ("{label_share: 1.5}", "losses.label_share: expected a number of at most 1, found 1.5"),
    ("{label_share: {use: linear, start: 0, end: 2}}", "losses.label_share: label_share would be 1.002 at"),
    ("{task_weight: 0, distill_weight: 0}", "losses: task_weight and distill_weight are both 0, so nothing would be learnt"),
    ("{task_weight: 0, distill_weight: {use: warm_up, value: 1}}", "losses: task_weight and distill_weight are both 0 at progress 0 of the training"),
    ("{row_weight: student_entrpy}", "losses.row_weight: there is no row weight named 'student_entrpy'; known: student_entropy, teacher_agreement (did you mean 'student_entropy'?)"),
    ("{row_weight: 0.5}", "losses.row_weight: expected a name, a path pkg.mod:Name, or a mapping"),
    ("{distill_weight: {use: adaptive, start: 0}}", "losses.distill_weight: adaptive: start must be a number above 0, found 0"),
    ("{distill_weight: {use: adaptive, strat: 1}}", "losses.distill_weight: schedule 'adaptive' has no option 'strat'"),
    ("{distill_weight: {use: adaptve}}", "losses.distill_weight: there is no schedule named 'adaptve'; known: adaptive, constant, cosine, linear, warm_up (did you mean 'adaptive'?)"),
    ("{tempreture: 3}", "losses.tempreture: unknown key, found 3 (did you mean 'temperature'?)"),
    ("{rowweight: 3}", "losses.rowweight: unknown key, found 3 (did you mean 'row_weight'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("losses", "line"), BAD)
def test_what_is_wrong_is_said_in_its_line(write, losses, line):
    (found,) = problems(write(BASE + f"losses: {losses}"))
    assert found.startswith(f"mine.yaml: {line}")


def test_what_the_adaptive_weight_needs_elsewhere(write):
    file = write(
        BASE
        + "losses: {distill_weight: {use: adaptive}, task_weight: 0}\ntraining: {label_smoothing_factor: 0.1}"
    )
    found = problems(file)
    assert [line.split(": ")[1] for line in found] == [
        "training.eval_strategy",
        "training.label_smoothing_factor",
        "losses.task_weight",
    ]
    falling = ["losses.task_weight={use: linear, start: 1, end: 0}", "training.label_smoothing_factor=0"]
    assert len(problems(file, [*falling, "training.eval_strategy=epoch"])) == 1
    load_recipe(file, ["losses.task_weight=0.1", *falling[1:], "training.eval_strategy=epoch"])


def test_the_evaluation_loss_cannot_choose_the_checkpoint_while_it_changes(write):
    training = "training: {load_best_model_at_end: true, eval_strategy: epoch, save_strategy: epoch}"
    (line,) = problems(write(BASE + EVERY + training))
    assert line.startswith(
        "mine.yaml: training.metric_for_best_model: the evaluation loss changes with losses.temp"
    )
    problems("mine.yaml", ["training.metric_for_best_model=eval_loss"])
    load_recipe("mine.yaml", ["training.metric_for_best_model=nll"])
    load_recipe(write(BASE + training))


def test_training_arguments_have_their_place(write):
    (line,) = problems(write(BASE + "training: {label_share: 1}"))
    assert line == "mine.yaml: training.label_share: does not belong here, it is losses.label_share"


def test_the_summary_reads_as_the_loss(write):
    from hf_distill.cli import app

    done = CliRunner().invoke(app, ["validate", write(BASE + EVERY)])
    assert done.exit_code == 0, done.output
    assert (
        "losses 0.4 x cross-entropy + cosine(start=0.9, end=0.1, until=0.5) x forward_kl at temperature "
        "linear(start=4, end=1), rows weighed by student_entropy, label's share of the target linear(start=0, end=1) "
    ) in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["validate", write(BASE + "losses: {label_share: 0.25}")])
    assert (
        "0.5 x cross-entropy + 0.5 x forward_kl at temperature 2, label's share of the target 0.25 "
        in " ".join(done.output.split())
    )


def test_all_of_it_reaches_a_training(write, checkpoints, rows, held_out):
    from hf_distill.recipe import Setup

    write("")
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")
    file = write(
        f"""
data: {{files: {{train: train.jsonl, validation: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
fusion: linear_pool
training: {{use_cpu: true, max_steps: 3, disable_tqdm: true, save_strategy: no, logging_steps: 1, report_to: none,
            eval_strategy: steps, eval_steps: 2}}
evaluation: {{split: none, metrics: [accuracy]}}
losses:
  temperature: {{use: linear, start: 4, end: 1}}
  distill_weight: {{use: adaptive, start: 0.7}}
  row_weight: {{use: "{__name__}:halving"}}
"""
    )
    trainer = Setup(load_recipe(file)).trainer()
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["temperature"] for log in logs] == [4, 2.5, 1]
    assert logs[0]["distill_weight"] == 0.7
    assert trainer.row_weight is halving
    named = Setup(load_recipe(file, ["losses.row_weight=teacher_agreement"])).trainer()
    assert named.row_weight.__name__ == "teacher_agreement"
    with_constant = load_recipe(file, ["losses.distill_weight={use: constant, value: 0.2}"])
    assert build_callbacks(with_constant.losses)[0].schedules["distill_weight"] == Constant(0.2)
