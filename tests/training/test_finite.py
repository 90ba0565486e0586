"""What is not finite never reaches the weights, is named, and is not written."""

from __future__ import annotations

import contextlib
import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from conftest import make_bert, make_roberta, make_student
from hf_distill import (
    DistillationArguments,
    Ensemble,
    LinearPool,
    MultiTeacherDistillationTrainer,
    Teacher,
    evaluate_ensemble,
    forward_kl,
)
from hf_distill.errors import DataError
from hf_distill.files import checksum
from hf_distill.fusion.alignment import TeacherBatch, TeacherOutputs
from hf_distill.rows.preparing import example_id
from hf_distill.teachers.cache import store
from hf_distill.training import finite
from hf_distill.training.accounting import LossTerm
from hf_distill.training.finite import FiniteUpdates, first_not_finite

VALUES = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
LOGGING = pytest.mark.parametrize("logging_steps", [1, 500])
SPOILT_ROW = 20  # sequential batches of 8: in the third update


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays():
    gc.collect()
    gc.freeze()  # every training collects garbage
    yield
    gc.unfreeze()


class SpoiltOnOneRow:
    """A live teacher that says one thing that is not finite of one row."""

    def __init__(self, teacher, row, value):
        self.teacher, self.row, self.value = teacher, row, value
        self.name, self.label_names, self.view = teacher.name, teacher.label_names, teacher.view

    def __call__(self, view, example_ids):
        logits = self.teacher(view, example_ids).logits
        logits[example_ids == self.row, 1] = self.value
        return TeacherOutputs(logits)


class SetAt(TrainerCallback):
    """Does something to the student before an update."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step - 1:
            self.act(model)


@pytest.fixture
def pair(bert_tokenizer, roberta_tokenizer):
    return [
        Teacher(make_bert(bert_tokenizer, ["negative", "positive"]), bert_tokenizer, name="bert"),
        Teacher(make_roberta(roberta_tokenizer, ["POSITIVE", "NEGATIVE"]), roberta_tokenizer, name="roberta"),
    ]


@pytest.fixture
def build(tmp_path, pair, bert_tokenizer, rows):
    def build(teachers=None, name="out", **options):
        fields = set(DistillationArguments.__dataclass_fields__)
        own = {key: options.pop(key) for key in list(options) if key in fields}
        defaults = {
            "output_dir": str(tmp_path / name),
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "per_device_train_batch_size": 8,
            "max_steps": 5,
            "save_steps": 1,
            "save_total_limit": 1,
            "learning_rate": 1e-3,
            "train_sampling_strategy": "sequential",
        }
        return MultiTeacherDistillationTrainer(
            model=make_student(bert_tokenizer),
            teachers=pair if teachers is None else teachers,
            args=DistillationArguments(**{**defaults, **own}),
            train_dataset=rows,
            processing_class=bert_tokenizer,
            fusion=options.pop("fusion", LinearPool()),
            **options,
        )

    return build


@pytest.fixture
def after_two(build):
    """The student's weights after two healthy updates."""
    trainer = build(name="healthy", max_steps=2, lr_scheduler_type="constant", save_strategy="no")
    trainer.train()
    return {name: value.clone() for name, value in trainer.student.state_dict().items()}


def saved(folder: Path) -> list[str]:
    """The checkpoints there, none of which may hold anything that is not finite."""
    for path in folder.rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def equal(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in others)


def spoilt_row(rows, number=SPOILT_ROW) -> int:
    return example_id([rows[number]["text"]])


# ---- Where it may come from, logged every step and never ----


@VALUES
@LOGGING
def test_a_teachers_weights(tmp_path, build, pair, value, logging_steps):
    pair[1].model.classifier.out_proj.bias[0] = value
    trainer = build(logging_steps=logging_steps)
    before = {name: weight.clone() for name, weight in trainer.student.state_dict().items()}
    with pytest.raises(
        DataError, match=r"Teacher 'roberta' gives .* for 8 row\(s\) \(e\.g\. row 0 of the training set, '"
    ) as error:
        trainer.train()
    assert "of step 1:" in str(error.value) and error.value.exit_code == 3
    assert equal(trainer.student.state_dict(), before) and not saved(tmp_path / "out")


@VALUES
@LOGGING
@pytest.mark.parametrize("late", [False, True])
def test_one_row_of_one_teacher(
    tmp_path, build, pair, rows, after_two, monkeypatch, value, logging_steps, late
):
    # As where reading means to wait: the optimizer is given the mask, and reads come one update later.
    monkeypatch.setattr(finite, "late", lambda device: late)
    teachers = [pair[0], SpoiltOnOneRow(pair[1], spoilt_row(rows), value)]
    trainer = build(teachers, logging_steps=logging_steps, lr_scheduler_type="constant")
    with pytest.raises(
        DataError, match=rf"'roberta' gives .* 1 row\(s\) \(e\.g\. row {SPOILT_ROW} of "
    ) as error:
        trainer.train()
    assert "of step 3:" in str(error.value) and rows[SPOILT_ROW]["text"][:80] in str(error.value)
    assert saved(tmp_path / "out") == ["checkpoint-2"]
    assert equal(trainer.student.state_dict(), after_two)
    assert equal(load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors"), after_two)


@pytest.mark.parametrize(("max_steps", "accumulation"), [(3, 1), (5, 1), (3, 2)])
def test_nothing_is_written_between_the_mask_and_its_reading(
    build, tmp_path, pair, rows, after_two, monkeypatch, max_steps, accumulation
):
    monkeypatch.setattr(finite, "late", lambda device: True)
    teachers = [SpoiltOnOneRow(pair[0], spoilt_row(rows), math.nan), pair[1]]
    trainer = build(
        teachers, lr_scheduler_type="constant", save_steps=3, max_steps=max_steps, logging_steps=500,
        per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    with pytest.raises(DataError, match="of step 3:"):
        trainer.train()
    assert not saved(tmp_path / "out")
    if accumulation == 1:
        assert equal(trainer.student.state_dict(), after_two)
    with pytest.raises(DataError, match="of step 3:"):  # a second training begins anew
        trainer.train()


@VALUES
@LOGGING
def test_cached_logits_with_a_checksum_that_fits(tmp_path, build, pair, rows, value, logging_steps):
    cached = {"cache_dir": tmp_path / "cache", "teachers": pair}
    build(**cached)
    (manifest,) = [
        path
        for path in (tmp_path / "cache").glob("*/*.json")
        if path.name != store.DESCRIPTION and json.loads(path.read_text())["key"] == path.parent.name
    ][:1]
    shard = manifest.with_name(f"{manifest.stem}.logits.npy")
    ids, logits = np.load(manifest.with_name(f"{manifest.stem}.ids.npy")), np.load(shard)
    logits[ids == spoilt_row(rows), 0] = value
    np.save(shard, logits)
    content = json.loads(manifest.read_text())
    content["xxh3_128"]["logits"] = checksum(shard)
    manifest.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"1 row\(s\) \(e\.g\. row 20 .* of step 3: .*remove the folder"
    ) as error:
        build(**cached, logging_steps=logging_steps).train()
    assert str(manifest.parent) in str(error.value)
    assert saved(tmp_path / "out") == ["checkpoint-2"]


@VALUES
@LOGGING
def test_the_students_weights(tmp_path, build, value, logging_steps):
    def spoil(model):
        model.classifier.weight.data[0, 0] = value

    trainer = build(logging_steps=logging_steps)
    spoil(trainer.model)
    with pytest.raises(
        DataError, match=r"student's weight 'classifier\.weight' is not finite before the first"
    ):
        trainer.train()
    trainer = build(logging_steps=logging_steps, callbacks=[SetAt(3, spoil)])
    with pytest.raises(
        DataError, match=r"student's outputs are .* of step 3, and neither is its weight 'classifier\.weight'"
    ):
        trainer.train()
    assert saved(tmp_path / "out") == ["checkpoint-2"]
    with pytest.raises(DataError, match="is not finite after step"):
        trainer.save_model()
    assert not (tmp_path / "out" / "model.safetensors").exists()


@VALUES
@LOGGING
@pytest.mark.parametrize("late", [False, True])
def test_the_loss_and_its_gradient(tmp_path, build, after_two, monkeypatch, value, logging_steps, late):
    monkeypatch.setattr(finite, "late", lambda device: late)
    calls = []

    def of_value(student_logits, target_log_probs, *, temperature):
        calls.append(None)
        values = forward_kl(student_logits, target_log_probs, temperature=temperature)
        return values + (value if len(calls) == 3 else 0.0)

    def of_gradient(student_logits, target_log_probs, *, temperature):
        calls.append(None)
        values = forward_kl(student_logits, target_log_probs, temperature=temperature)
        # The root of 0 is 0, and its slope infinite.
        return values + (student_logits * 0).abs().sum(-1).sqrt() if len(calls) == 3 else values

    for loss, said in (
        (of_value, "The loss 'distill' is not finite for 8"),
        (of_gradient, "The gradient of step 3"),
    ):
        calls.clear()
        trainer = build(
            distillation_loss=loss,
            logging_steps=logging_steps,
            lr_scheduler_type="constant",
            name=loss.__name__,
        )
        with pytest.raises(DataError, match=said):
            trainer.train()
        assert equal(trainer.student.state_dict(), after_two)
        assert saved(tmp_path / loss.__name__) == ["checkpoint-2"]


@LOGGING
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_steps": 1}, {"optim": "adamw_torch"}, {"save_strategy": "no"}])
def test_a_learning_rate_of_1e20(tmp_path, build, monkeypatch, logging_steps, late, options):
    monkeypatch.setattr(finite, "late", lambda device: late)
    trainer = build(learning_rate=1e20, logging_steps=logging_steps, **options)
    with pytest.raises(DataError, match=r"student's outputs are not finite .*lower learning_rate"):
        trainer.train()
    assert not saved(tmp_path / "out")


# ---- What is no fault, and what costs nothing ----


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd", "adafactor"])
def test_a_healthy_run_is_the_same_to_the_bit(build, monkeypatch, optim):
    runs = []
    for name, late in (("now", False), ("late", True), ("unwatched", False)):
        monkeypatch.setattr(finite, "late", lambda device, late=late: late)
        trainer = build(name=name, optim=optim, save_strategy="no", logging_steps=1)
        if name == "unwatched":
            monkeypatch.setattr(FiniteUpdates, "watch", lambda self, loss, *rest: loss)
            monkeypatch.setattr(FiniteUpdates, "before_update", lambda self, *rest, **options: None)
        trainer.train()
        runs.append((trainer.student.state_dict(), [log.get("loss") for log in trainer.state.log_history]))
    assert all(equal(runs[0][0], others) and runs[0][1] == logs for others, logs in runs[1:])


def test_a_class_that_a_teacher_lacks_is_no_fault(build, pair, bert_tokenizer):
    three = Teacher(
        make_bert(bert_tokenizer, ["negative", "positive", "neutral"]), bert_tokenizer, name="three"
    )
    trainer = build([pair[0], three], label_names=["negative", "positive", "neutral"])
    trainer.train()
    assert trainer.state.global_step == 5


def watched(updates: FiniteUpdates, device="cpu", spoilt=False) -> torch.Tensor:
    teachers = torch.zeros(2, 3, dtype=torch.bool, device=device)
    if spoilt:
        teachers[1, 2] = True
    return updates.watch(
        torch.ones((), device=device),
        {"task": LossTerm(torch.ones(3, device=device), 0.5, labelled=True)},
        torch.ones(3, 2, device=device),
        TeacherBatch(torch.ones(2, 3, 2, device=device), None, speakers=(0, 1), spoilt=teachers),
        {"labels": torch.tensor([0, 1, -100], device=device), "example_id": torch.arange(3, device=device)},
        True,
    )


def test_a_micro_batch_waits_for_nothing(pair):
    updates = FiniteUpdates(pair, lambda row: None, bytes)
    assert watched(updates, device="meta").is_meta  # there is nothing on it that could be read


def test_under_fp16_single_skipped_steps_are_no_fault(pair):
    model = nn.Linear(2, 2)
    updates = FiniteUpdates(pair, lambda row: f"row {row}", bytes)

    def update(step, norm, spoilt=False):
        watched(updates, spoilt=spoilt)
        updates.before_update(torch.tensor(norm), step, None, scaled=True, model=model)

    for step, norm in enumerate([math.inf, math.nan, 1.0], 1):
        update(step, norm)
    updates.end(model)
    assert (updates.updates, updates.skipped) == (3, 2)
    updates.begin()
    for step in (1, 2):
        update(step, math.nan)
    with pytest.raises(DataError, match="All 2 updates were skipped"):
        updates.end(model)
    updates.begin()
    update(1, math.nan, spoilt=True)  # whatever the scale, a teacher's outputs stay what they are
    with pytest.raises(DataError, match=r"'roberta' gives .* 1 row\(s\) \(e\.g\. row 2\) of step 1"):
        updates.end(model)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_gradient_scaler_skips_and_the_run_goes_on(build, monkeypatch, optim):
    def train(skipped):
        trainer = build(optim=optim, save_strategy="no", logging_steps=500)
        accelerator = trainer.accelerator  # as with fp16=True, which a CPU ignores
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=1024.0), True
        monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
        monkeypatch.setattr(accelerator, "autocast", contextlib.nullcontext)
        trainer.model.classifier.weight.register_hook(
            lambda gradient: gradient * (math.inf if trainer.state.global_step < skipped else 1.0)
        )
        trainer.train()
        return trainer

    trainer = train(skipped=2)
    assert trainer.numbers.skipped == 2 and trainer.accelerator.scaler.get_scale() == 256.0
    assert first_not_finite(trainer.student) is None
    with pytest.raises(DataError, match="All 5 updates were skipped"):
        train(skipped=5)


def test_weights_and_buffers():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor([-math.inf]))
    assert first_not_finite(model) is None
    model[1].running_mean[0] = math.nan
    assert first_not_finite(model) == "1.running_mean"


# ---- Evaluation ----


@VALUES
def test_no_figures_for_what_is_not_finite(pair, rows, bert_tokenizer, value):
    student = make_student(bert_tokenizer, ["negative", "positive"])
    options = {"student": student, "processing_class": bert_tokenizer, "metrics": ["accuracy"]}
    healthy = evaluate_ensemble(pair, rows, **options).systems
    teachers = [pair[0], SpoiltOnOneRow(pair[1], spoilt_row(rows), value)]
    report = evaluate_ensemble(teachers, rows, **options)
    spoilt = {"teacher:roberta", "ensemble", "student+teachers"}
    assert set(report.systems) == set(healthy)
    assert {name for name, result in report.systems.items() if not result.metrics} == spoilt
    assert all(
        report.systems[name].metrics == healthy[name].metrics for name in healthy if name not in spoilt
    )
    for name in spoilt:
        assert (
            f"{name} gives outputs that are not finite on 1 of 64 rows, row {SPOILT_ROW} first, so it has no figures."
            in (report.notes)
        )
    student.classifier.bias.data[0] = value
    report = evaluate_ensemble(pair, rows, **options, fusion=LinearPool((1.0, 0.0)))
    assert not report.systems["student"].metrics and report.systems["ensemble"].metrics


def test_a_teacher_without_weight_spoils_no_ensemble(pair, rows):
    pair[1].model.classifier.out_proj.bias[0] = math.nan
    systems = evaluate_ensemble(pair, rows, metrics=["accuracy"], fusion=LinearPool((1.0, 0.0))).systems
    assert (
        systems["ensemble"].metrics == systems["teacher:bert"].metrics
        and not systems["teacher:roberta"].metrics
    )


def test_an_evaluation_while_training_ends_it(tmp_path, build, pair, rows):
    held = rows.select(range(16, 24)).map(lambda row: {"text": row["text"] + " held out"})
    teachers = [pair[0], SpoiltOnOneRow(pair[1], spoilt_row(held, 4), math.nan)]
    trainer = build(
        teachers, eval_dataset=held, max_steps=2, eval_strategy="steps", eval_steps=2, save_steps=1
    )
    with pytest.raises(
        DataError, match=r"'roberta' gives .* 1 row\(s\) \(e\.g\. row 4 of the evaluation set, "
    ):
        trainer.train()
    assert saved(tmp_path / "out") == ["checkpoint-1"]


def test_the_ensemble_as_a_classifier_has_no_answer(pair):
    pair[1].model.classifier.out_proj.bias[0] = -math.inf
    with pytest.raises(
        DataError, match="Teacher 'roberta' gives outputs that are not finite for 'a fine film'"
    ):
        Ensemble(pair)("a fine film")
