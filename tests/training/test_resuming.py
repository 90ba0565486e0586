"""A run that was interrupted goes on as if it had not been, or is refused with what differs."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification, TrainerCallback

from conftest import make_bert, make_roberta
from hf_distill import DistillationArguments, LinearPool, MultiTeacherDistillationTrainer, Teacher
from hf_distill.errors import ConfigurationError, CorruptStateError
from hf_distill.teachers.held_out import load_choice
from hf_distill.training.callbacks import ScheduleCallback
from hf_distill.training.hidden import HiddenLoss
from hf_distill.training.resuming import RUN_FILE, described, seconds_behind
from hf_distill.training.schedules import Linear

STEPS = 24


def make_student(tokenizer, seed):
    """A tiny student with dropout."""
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        dim=8,
        hidden_dim=8,
        n_layers=1,
        n_heads=2,
        dropout=0.2,
    )
    return DistilBertForSequenceClassification(config)


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays():
    """Every training collects garbage, among all that other modules have left; these would spend most of their time so."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def two_teachers(bert_tokenizer, roberta_tokenizer):
    return [
        Teacher(make_bert(bert_tokenizer, ["negative", "positive"]), bert_tokenizer, name="bert"),
        Teacher(make_roberta(roberta_tokenizer, ["positive", "negative"]), roberta_tokenizer, name="roberta"),
    ]


@pytest.fixture(scope="module")
def build(two_teachers, bert_tokenizer, rows, held_out):
    """Trainers of one run: two teachers, dropout, accumulation 2, hidden losses with projections, a fitted fusion, evaluation."""
    fields = set(DistillationArguments.__dataclass_fields__) - {"label_names"}

    def make(folder, student_seed=0, **options):
        own = {name: options.pop(name) for name in list(options) if name in fields}
        args = {
            "output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": STEPS, "logging_steps": 1,
            "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
            "load_best_model_at_end": True, "metric_for_best_model": "eval_loss_task", "learning_rate": 1e-2,
            "greater_is_better": True,  # the worst one, which comes neither first nor last
            "lr_scheduler_type": "linear", "warmup_steps": 5, "dataloader_pin_memory": False,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        }  # fmt: skip
        given = {
            "teachers": two_teachers, "fusion": {"use": "log_pool", "fit": True}, "hidden_losses": [HiddenLoss()],
            "train_dataset": rows.select(range(22)), "eval_dataset": held_out.select(range(8)), **options,
        }  # fmt: skip
        return MultiTeacherDistillationTrainer(
            model=make_student(bert_tokenizer, student_seed),
            args=DistillationArguments(**{**args, **own}),
            processing_class=bert_tokenizer,
            **given,
        )

    return make


class StopAt(TrainerCallback):
    """Ends a training early, after its checkpoint."""

    step = STEPS

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def curve(trainer):
    """All that was logged, without times."""
    times = ("runtime", "per_second", "total_flos", "train_loss")
    return [
        {name: value for name, value in log.items() if not name.endswith(times)}
        for log in trainer.state.log_history
    ]


def same(first, second):
    """Whether two trees of tensors, numbers and lists are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool((first == second).all()) if hasattr(first, "all") else first == second


def checkpoint_state(folder):
    loaded = {
        name: torch.load(folder / name, weights_only=False)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    }
    state = json.loads((folder / "trainer_state.json").read_text())
    best = {
        key: state[key] for key in ("best_metric", "best_global_step", "global_step", "epoch", "total_flos")
    }
    return {
        **loaded,
        "weights": load_file(folder / "model.safetensors"),
        "projections": load_file(folder / "_projections.safetensors"),
        "fusion": json.loads((folder / "fusion.json").read_text()),
        "best": best,
    }


def test_the_time_of_a_resumed_training_counts_what_was_before(build, tmp_path):
    options = {"hidden_losses": [], "fusion": "linear_pool", "max_steps": 3}
    stop = StopAt()
    stop.step = 2
    first = build(tmp_path / "cut", callbacks=[stop], **options)
    assert first.training_seconds is None
    first.train()
    behind = seconds_behind(tmp_path / "cut" / "checkpoint-2")
    assert behind > 0
    second = build(tmp_path / "cut", **options)
    second.train(resume_from_checkpoint=True)
    last = second.state.log_history[-1]["train_runtime"]
    assert second.training_seconds == pytest.approx(behind + last)
    assert seconds_behind(tmp_path / "cut" / "checkpoint-3") > behind
    second.train()  # from the start
    assert second.training_seconds == second.state.log_history[-1]["train_runtime"]


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize(
    "steps", [(2, 12), pytest.param(range(1, STEPS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_every_step_can_be_the_last_before_an_interruption(build, tmp_path, cached, steps):
    options = {"cache_dir": tmp_path / "cache", "hidden_losses": [HiddenLoss(units="mean")]} if cached else {}
    whole = build(tmp_path / "whole", **options)
    whole.train()
    expected = curve(whole)
    assert 1 < whole.state.best_global_step < STEPS  # neither the first nor the last
    assert len(expected) == 2 * STEPS + 1
    # One object resumes from every step, which is harder than new ones: nothing may survive in it. Two steps later all that
    # a checkpoint holds is what it was, so whatever follows is too; from some steps it is seen to the end.
    stop = StopAt()
    resumed = build(tmp_path / "resumed", student_seed=7, callbacks=[stop], **options)
    for step in steps:
        stop.step = STEPS if step in (1, 12, 23) else min(step + 2, STEPS)
        torch.manual_seed(step)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        logged = curve(resumed)
        assert logged[: 2 * stop.step] == expected[: 2 * stop.step], step
        last = f"checkpoint-{stop.step}"
        found, meant = (checkpoint_state(tmp_path / run / last) for run in ("resumed", "whole"))
        for part in meant:
            assert same(found[part], meant[part]), (step, part)
        if stop.step == STEPS:
            assert logged == expected
            assert (
                Path(resumed.state.best_model_checkpoint).name == Path(whole.state.best_model_checkpoint).name
            )
            for key, value in whole.model.state_dict().items():  # of the best model, which both have loaded
                assert torch.equal(resumed.model.state_dict()[key], value), (step, key)
        shutil.rmtree(tmp_path / "resumed")


def test_a_new_trainer_goes_on_with_the_fusion_of_the_checkpoint(build, tmp_path, held_out):
    whole = build(tmp_path / "a", max_steps=4)
    whole.train()
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    # Fitted on other rows it would be another one.
    other = build(tmp_path / "b", max_steps=4, eval_dataset=held_out.select(range(8, 33)))
    assert other.fusion != whole.fusion
    other.train(resume_from_checkpoint=checkpoint)
    assert other.fusion == whole.fusion and other.fusion_choice.reason == whole.fusion_choice.reason
    # The fitted one, given as such, is no other fusion and saves the pass over the held-out rows.
    ready = build(tmp_path / "c", max_steps=4, fusion=load_choice(checkpoint))
    ready.train(resume_from_checkpoint=checkpoint)
    # One that was chosen on purpose needs permission.
    changed = build(tmp_path / "d", max_steps=4, fusion=LinearPool())
    with pytest.raises(ConfigurationError, match=r"\| fusion"):
        changed.train(resume_from_checkpoint=checkpoint)
    changed.train(resume_from_checkpoint=checkpoint, allow_changes=["fusion"])
    assert changed.fusion == LinearPool()


@pytest.fixture(scope="module")
def begun(build, tmp_path_factory):
    """A run of four steps whose checkpoints others are resumed from."""
    folder = tmp_path_factory.mktemp("begun")
    build(folder, max_steps=4, save_steps=2, eval_strategy="no", load_best_model_at_end=False).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({"temperature": 3.0}, r"losses.temperature +\| 2.0 +\| 3.0"),
        ({"distillation_loss": "jsd"}, r"losses.distill +\| forward_kl +\| jsd"),
        ({"row_weight": "teacher_confidence"}, r"losses.row_weight"),
        ({"callbacks": [ScheduleCallback(temperature=Linear(4, 1))]}, r"losses.schedules"),
        ({"seed": 7}, r"seed.0 +\| 42 +\| 7"),
        ({"per_device_train_batch_size": 4}, r"batch_size +\| 2 +\| 4"),
        ({"gradient_accumulation_steps": 1}, r"accumulation +\| 2 +\| 1"),
        ({"max_length": 9}, r"student.tokens"),
        ({"hidden_losses": [HiddenLoss(weight=2.0)]}, r"losses.hidden.0.weight +\| 1.0 +\| 2.0"),
    ],
)
def test_another_run_is_refused_with_what_differs(build, begun, tmp_path, options, row):
    if "row_weight" in options:
        from hf_distill.losses.row_weights import ROW_WEIGHTS

        options = {"row_weight": next(iter(ROW_WEIGHTS))}
    trainer = build(tmp_path, max_steps=4, eval_strategy="no", load_best_model_at_end=False, **options)
    with pytest.raises(ConfigurationError, match=row) as refused:
        trainer.train(resume_from_checkpoint=str(begun))
    field = row.partition(".")[0].partition(" ")[0]
    assert f"allow_changes=('{field}',), or --allow {field} for" in str(refused.value)
    assert trainer.state.global_step == 0


def test_other_rows_and_teachers_need_permission(build, begun, tmp_path, rows, two_teachers, bert_tokenizer):
    options = {"max_steps": 4, "eval_strategy": "no", "load_best_model_at_end": False}
    other_rows = build(tmp_path, train_dataset=rows.select(range(1, 23)), **options)
    with pytest.raises(ConfigurationError, match=r"data.content"):
        other_rows.train(resume_from_checkpoint=str(begun))
    other_rows.train(resume_from_checkpoint=str(begun), allow_changes=("data",))
    assert other_rows.state.global_step == 4
    # The same rows from elsewhere are the same.
    import datasets

    copied = datasets.Dataset.from_list(rows.select(range(22)).to_list(), features=rows.features)
    build(tmp_path, train_dataset=copied, **options).train(resume_from_checkpoint=str(begun))
    model = make_bert(bert_tokenizer, ["negative", "positive"])
    model.classifier.bias.data += 1e-3
    edited = [Teacher(model, bert_tokenizer, name="bert"), two_teachers[1]]
    with pytest.raises(ConfigurationError, match=r"\| teachers.0.is "):
        build(tmp_path, teachers=edited, **options).train(resume_from_checkpoint=str(begun))
    swapped = build(tmp_path, teachers=two_teachers[::-1], **options)
    with pytest.raises(ConfigurationError, match=r"teachers.0.name +\| bert +\| roberta"):
        swapped.train(resume_from_checkpoint=str(begun))
    with pytest.raises(ConfigurationError, match=r"no field 'date'.*did you mean 'data'"):
        swapped.train(resume_from_checkpoint=str(begun), allow_changes=["date"])


def test_an_unreadable_or_missing_state(build, begun, tmp_path, capsys):
    options = {"max_steps": 4, "eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no"}
    damaged, older = tmp_path / "damaged", tmp_path / "older"
    shutil.copytree(begun, damaged)
    shutil.copytree(begun, older)
    (damaged / RUN_FILE).write_text("{")
    (older / RUN_FILE).unlink()
    with pytest.raises(CorruptStateError, match="run_state.json cannot be read"):
        build(tmp_path / "a", **options).train(resume_from_checkpoint=str(damaged), unverified=True)
    build(tmp_path / "a", **options).train(resume_from_checkpoint=str(older), unverified=True)
    assert "has no run_state.json, so nothing says whether it is of this run" in capsys.readouterr().out


def test_scheduled_values_are_compared_as_the_user_gave_them(build, tmp_path):
    options = {
        "max_steps": 4,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
    }

    def schedule():
        return [ScheduleCallback(temperature=Linear(4, 1))]

    whole = build(tmp_path / "a", callbacks=schedule(), **options)
    whole.train()
    again = build(tmp_path / "b", callbacks=schedule(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert curve(again) == curve(whole)


def test_the_finished_student_has_no_state_of_the_run(build, begun, tmp_path):
    trainer = build(tmp_path / "out", max_steps=1)
    trainer.train()
    trainer.save_model()
    assert not {RUN_FILE, "_projections.safetensors"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert str(tmp_path) not in (begun / RUN_FILE).read_text()


def test_descriptions_hold_no_addresses():
    class Own:
        def __call__(self):
            return None

    assert described(Own()) == described(Own())
    assert described([LinearPool((1, 3)), None]) == [
        {"use": "linear_pool", "weights": [0.25, 0.75]},
        None,
    ]
