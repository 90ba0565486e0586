"""The trainer: exactness of the loss, its parts, and all that `Trainer` promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import numpy as np
import optuna
import pytest
import torch
from accelerate import PartialState
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
    set_seed,
)
from transformers.trainer_pt_utils import LabelSmoother

from conftest import make_bert, make_student
from hf_distill import (
    DistillationArguments,
    LinearPool,
    LogPool,
    MultiTeacherDistillationTrainer,
    Teacher,
    forward_kl,
)
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.teachers import pool

LABELS = ["negative", "positive"]


def arguments(folder, **options) -> DistillationArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
    }
    return DistillationArguments(**{**defaults, **options})


def make_trainer(folder, teachers, tokenizer, rows, student=None, **options):
    # label_names= of the constructor are the classes; the arguments' field of that name are the batch's keys.
    fields = set(DistillationArguments.__dataclass_fields__) - {"label_names"}
    own = {k: options.pop(k) for k in list(options) if k in fields}
    return MultiTeacherDistillationTrainer(
        model=student or make_student(tokenizer),
        teachers=teachers,
        args=arguments(folder, **own),
        train_dataset=rows,
        processing_class=tokenizer,
        **options,
    )


def first_update(folder, teachers, tokenizer, rows, **options):
    """The first logged loss and the gradients of the first update."""
    gradients = {}

    class Capture(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})

    options = {"max_steps": 1, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential", **options}
    trainer = make_trainer(folder, teachers, tokenizer, rows, callbacks=[Capture()], **options)
    trainer.train()
    return trainer.state.log_history[0], gradients


def assert_close(first, second, relative):
    """Relative to the largest gradient: some are zero but for rounding, as those of the keys' biases."""
    first, second = flat(first), flat(second)
    assert (first - second).abs().max().item() <= relative * first.abs().max().item()


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.fixture(scope="module")
def uneven(rows):
    """Rows of which an uneven part has labels: 3 of the first four, none of the next four."""
    labels = [row["label"] if i in (0, 1, 3) or i > 8 else -100 for i, row in enumerate(rows)]
    return datasets.Dataset.from_dict({"text": rows["text"][:], "label": labels})


def test_accumulation_changes_no_gradient(tmp_path, teachers, bert_tokenizer, uneven):
    one = first_update(tmp_path, teachers, bert_tokenizer, uneven, label_names=LABELS)
    for batch, steps in ((4, 2), (1, 8)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        logged, gradients = first_update(
            tmp_path, teachers, bert_tokenizer, uneven, label_names=LABELS, **options
        )
        assert_close(one[1], gradients, 1e-5)
        for name in ("loss", "loss_task", "loss_distill", "teacher_disagreement"):
            assert logged[name] == pytest.approx(one[0][name], rel=1e-5)


def test_loss_is_the_formula(tmp_path, teachers, bert_tokenizer, uneven):
    """Independent reference: each teacher through its own pipeline-like call, everything else by hand in numpy."""
    batch = uneven.select(range(8))
    student = make_student(bert_tokenizer)
    logged, _ = first_update(
        tmp_path, teachers, bert_tokenizer, batch, student=make_student(bert_tokenizer), label_names=LABELS,
        temperature=3.0, task_weight=0.7, distill_weight=0.2,
    )  # fmt: skip
    logits = (
        student(**bert_tokenizer(batch["text"][:], padding=True, return_tensors="pt"))
        .logits.detach()
        .double()
    )
    pooled = []
    for teacher in teachers:
        inputs = teacher.view.tokenizer(batch["text"][:], padding=True, return_tensors="pt")
        inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        if teacher.name == "roberta":
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            z = teacher.model(**inputs).logits.double()
        order = [[n.lower() for n in teacher.label_names].index(label) for label in LABELS]
        pooled.append(torch.softmax(z[:, order] / 3.0, -1))
    p, q = torch.stack(pooled).mean(0).numpy(), torch.softmax(logits / 3.0, -1).numpy()
    distill = 9.0 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    has = [i for i, label in enumerate(batch["label"][:]) if label != -100]
    task = -np.mean([torch.log_softmax(logits, -1)[i, batch["label"][i]].item() for i in has])
    gaps = [np.sum(pk.numpy() * (np.log(pk.numpy()) - np.log(p)), axis=1) for pk in pooled]
    assert logged["loss_distill"] == pytest.approx(distill, rel=1e-4)
    assert logged["loss_task"] == pytest.approx(task, rel=1e-4)
    assert logged["loss"] == pytest.approx(0.7 * task + 0.2 * distill, rel=1e-4)
    assert logged["teacher_disagreement"] == pytest.approx(9.0 * np.mean(gaps), rel=1e-4)


def test_strength_does_not_grow_with_the_number_of_teachers(tmp_path, checkpoints, bert_tokenizer, rows):
    def same(count):
        return [Teacher.from_pretrained(checkpoints["bert"], name=f"bert-{i}") for i in range(count)]

    one = first_update(tmp_path, same(1), bert_tokenizer, rows)
    for count in (2, 3):
        logged, gradients = first_update(tmp_path, same(count), bert_tokenizer, rows)
        assert logged["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
        assert_close(one[1], gradients, 1e-6)


def test_temperature_squared_keeps_the_gradient_flat(tmp_path, teachers, bert_tokenizer, rows):
    gap = max(
        (
            t(t.view.tokenizer(rows["text"][:], padding=True, return_tensors="pt")).logits.diff().abs().max()
            for t in teachers
        ),
    ).item()
    for teacher in teachers:  # scale the heads so that no logit gap exceeds 2
        head = teacher.model.classifier
        for parameter in (head.out_proj if hasattr(head, "out_proj") else head).parameters():
            parameter.mul_(2.0 / gap)

    def norms(loss):
        options = {"task_weight": 0.0, "distill_weight": 1.0, "distillation_loss": loss}
        return [
            flat(first_update(tmp_path, teachers, bert_tokenizer, rows, temperature=t, **options)[1])
            .norm()
            .item()
            for t in (1.0, 2.0, 4.0, 8.0)
        ]

    with_factor = norms(forward_kl)
    assert max(with_factor) / min(with_factor) < 2
    without = norms(lambda s, t, *, temperature: forward_kl(s, t, temperature=temperature) / temperature**2)
    assert max(without) / min(without) > 5


def test_permuted_checkpoint_gives_the_same_loss(tmp_path, bert_tokenizer, rows):
    model = make_bert(bert_tokenizer, LABELS)
    permuted = make_bert(bert_tokenizer, LABELS[::-1])
    permuted.load_state_dict(model.state_dict())
    for parameter in permuted.classifier.parameters():
        parameter.data = parameter.data.flip(0)
    logged = [
        first_update(tmp_path, [Teacher(m, bert_tokenizer, name="bert")], bert_tokenizer, rows)[0]["loss"]
        for m in (model, permuted)
    ]
    assert logged[0] == pytest.approx(logged[1], rel=1e-6)


def test_zero_weight_teacher_has_no_influence(tmp_path, checkpoints, bert_tokenizer, rows):
    def of(bad):
        loaded = [Teacher.from_pretrained(checkpoints[n]) for n in ("bert", "roberta")]
        if bad:
            for parameter in loaded[1].model.parameters():
                parameter.fill_(math.nan)
        return first_update(tmp_path, loaded, bert_tokenizer, rows, fusion=LinearPool((1.0, 0.0)))

    (clean, clean_gradients), (broken, broken_gradients) = of(False), of(True)
    assert clean["loss"] == broken["loss"]
    assert all(torch.equal(clean_gradients[n], broken_gradients[n]) for n in clean_gradients)


def test_no_labels_needed_without_task_loss(tmp_path, teachers, bert_tokenizer, rows):
    unlabelled = rows.remove_columns("label")
    trainer = make_trainer(
        tmp_path,
        teachers,
        bert_tokenizer,
        unlabelled,
        label_names=LABELS,
        task_weight=0.0,
        eval_dataset=unlabelled,
    )
    trainer.train()
    assert "loss_task" not in trainer.state.log_history[0]
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(DataError, match="task_weight is 0.5, but no row of the training set has a label"):
        make_trainer(tmp_path, teachers, bert_tokenizer, unlabelled, label_names=LABELS)


def test_without_distillation_it_is_the_plain_trainer_to_the_bit(tmp_path, teachers, bert_tokenizer, rows):
    options = {"max_steps": 12, "task_weight": 1.0, "distill_weight": 0.0, "seed": 11}
    dropout = {"dropout": 0.1, "attention_dropout": 0.1, "seq_classif_dropout": 0.2}
    ours = make_trainer(
        tmp_path, teachers, bert_tokenizer, rows, make_student(bert_tokenizer, LABELS, **dropout), **options
    )
    ours.train()
    args = {
        k: getattr(ours.args, k)
        for k in ("seed", "max_steps", "learning_rate", "per_device_train_batch_size")
    }
    plain = Trainer(
        model=make_student(bert_tokenizer, LABELS, **dropout),
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1,
            dataloader_pin_memory=False, lr_scheduler_type="constant", **args,
        ),
        train_dataset=rows.map(lambda row: bert_tokenizer(row["text"])),
        processing_class=bert_tokenizer,
    )  # fmt: skip
    plain.train()
    for (name, mine), (_, theirs) in zip(
        ours.model.named_parameters(), plain.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert [log["grad_norm"] for log in ours.state.log_history[:12]] == [
        log["grad_norm"] for log in plain.state.log_history[:12]
    ]


def test_bf16_autocast_trains_with_float32_losses(tmp_path, teachers, bert_tokenizer, rows):
    seen = []

    def spy(student_logits, target_log_probs, *, temperature):
        seen.append((student_logits.dtype, target_log_probs.dtype))
        return forward_kl(student_logits, target_log_probs, temperature=temperature)

    trainer = make_trainer(tmp_path, teachers, bert_tokenizer, rows, bf16=True, distillation_loss=spy)
    trainer.train()
    assert set(seen) == {(torch.float32, torch.float32)}
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    exact = make_trainer(tmp_path, teachers, bert_tokenizer, rows)
    exact.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(exact.state.log_history[0]["loss"], rel=0.02)
    assert trainer.state.log_history[0]["loss"] != exact.state.log_history[0]["loss"]


def test_parts_of_the_loss_add_up_over_a_logging_window(tmp_path, teachers, bert_tokenizer, rows):
    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, rows, max_steps=6, logging_steps=3, gradient_accumulation_steps=2,
        per_device_train_batch_size=4, task_weight=0.3, distill_weight=0.6,
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        assert log["loss"] == pytest.approx(0.3 * log["loss_task"] + 0.6 * log["loss_distill"], rel=1e-5)


def test_evaluation_loss_does_not_depend_on_the_batch_size(
    tmp_path, teachers, bert_tokenizer, rows, held_out
):
    losses = []
    for batch in (4, 8, 32):
        trainer = make_trainer(
            tmp_path, teachers, bert_tokenizer, rows, eval_dataset=held_out, per_device_eval_batch_size=batch
        )
        losses.append(trainer.evaluate())
    for metrics in losses:
        expected = 0.5 * metrics["eval_loss_task"] + 0.5 * metrics["eval_loss_distill"]
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
        assert metrics["eval_teacher_disagreement"] > 0
        assert metrics["eval_loss"] == pytest.approx(losses[0]["eval_loss"], rel=1e-5)


def test_evaluation_counts_labelled_rows_for_the_task_loss(tmp_path, teachers, bert_tokenizer, rows, uneven):
    trainer = make_trainer(tmp_path, teachers, bert_tokenizer, rows, make_student(bert_tokenizer, LABELS))
    part = uneven.select(range(8))
    labelled = part.filter(lambda row: row["label"] != -100)
    task = trainer.evaluate(part)["eval_loss_task"]
    assert task == pytest.approx(trainer.evaluate(labelled)["eval_loss_task"], rel=1e-6)
    assert "eval_loss_task" not in trainer.evaluate(part.remove_columns("label"))


def test_saved_student_needs_nothing_of_ours(tmp_path, checkpoints, rows, held_out):
    trainer = MultiTeacherDistillationTrainer(
        model=Path(checkpoints["student"]),
        teachers=[checkpoints["bert"], Path(checkpoints["roberta"])],
        args=arguments(tmp_path, hub_token="hf_secret_of_the_test"),
        train_dataset=rows,
        eval_dataset=held_out,
    )
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == "hf_secret_of_the_test"
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "negative", 1: "positive"}
    answer = pipeline("text-classification", model=str(tmp_path))("a good film")
    assert answer[0]["label"] in LABELS
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_callbacks_best_model_early_stopping_and_resume(tmp_path, teachers, bert_tokenizer, rows, held_out):
    def build(folder, seed=4, **options):
        student = make_student(bert_tokenizer, seed=seed, dropout=0.1)
        return make_trainer(
            folder, teachers, bert_tokenizer, rows, student, eval_dataset=held_out,
            **{"max_steps": 8, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
               "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", **options},
        )  # fmt: skip

    whole = build(tmp_path / "whole", callbacks=[EarlyStoppingCallback(early_stopping_patience=9)])
    whole.train()
    assert whole.state.best_model_checkpoint
    resumed = build(tmp_path / "resumed", seed=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    ours = {log["step"]: log["loss"] for log in resumed.state.log_history if "loss" in log}
    theirs = {log["step"]: log["loss"] for log in whole.state.log_history if "loss" in log}
    assert ours == theirs
    names = {path.name for path in (tmp_path / "whole" / "checkpoint-4").iterdir()}
    assert not any("teacher" in name for name in names)
    assert (tmp_path / "whole" / "checkpoint-4" / "model.safetensors").stat().st_size < 100_000


def test_hyperparameter_fields_are_checked_when_set_later(tmp_path, teachers, bert_tokenizer, rows):
    trainer = MultiTeacherDistillationTrainer(
        model_init=lambda: make_student(bert_tokenizer),
        teachers=teachers,
        args=arguments(tmp_path),
        train_dataset=rows,
        processing_class=bert_tokenizer,
    )
    assert trainer.model.config.id2label == {0: "negative", 1: "positive"}
    trainer.args.temperature = 0.0  # as a search does, after __post_init__
    with pytest.raises(ConfigurationError, match="temperature is 0.0"):
        trainer.train()


def test_streamed_rows_train(tmp_path, teachers, bert_tokenizer, rows):
    trainer = make_trainer(tmp_path, teachers, bert_tokenizer, rows.to_iterable_dataset(num_shards=2))
    trainer.train()
    assert trainer.state.global_step == 2


def test_own_collator_own_loss_and_label_smoothing(tmp_path, teachers, bert_tokenizer, rows):
    padded = []

    def collate(features):
        padded.append(set(features[0]))
        return bert_tokenizer.pad(features, padding="max_length", max_length=40, return_tensors="pt")

    def task_loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    stock = first_update(tmp_path, teachers, bert_tokenizer, rows)
    own = first_update(
        tmp_path, teachers, bert_tokenizer, rows, data_collator=collate, compute_loss_func=task_loss
    )
    assert padded[0] == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert own[0]["loss"] == pytest.approx(stock[0]["loss"], rel=1e-5)
    smoothed = first_update(tmp_path, teachers, bert_tokenizer, rows, label_smoothing_factor=0.2)
    batch = bert_tokenizer(rows["text"][:8], padding=True, return_tensors="pt")
    outputs = {"logits": make_student(bert_tokenizer)(**batch).logits}
    expected = LabelSmoother(0.2)(outputs, torch.tensor(rows["label"][:8])).item()
    assert smoothed[0]["loss_task"] == pytest.approx(expected, rel=1e-5)


def test_classes_no_teacher_knows_get_no_distillation_gradient(tmp_path, bert_tokenizer, rows):
    labels = [*LABELS, "neutral"]
    plain = rows.cast_column("label", datasets.Value("int64"))
    teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
    _, gradients = first_update(
        tmp_path, [teacher], bert_tokenizer, plain, student=make_student(bert_tokenizer, labels),
        label_names=labels, task_weight=0.0, distill_weight=1.0,
    )  # fmt: skip
    assert gradients["classifier.weight"][2].abs().max() == 0
    assert gradients["classifier.weight"][:2].abs().max() > 0
    assert all(g.isfinite().all() for g in gradients.values())


def test_report_is_written_and_agrees_with_the_trainer(tmp_path, teachers, bert_tokenizer, rows, held_out):
    trainer = make_trainer(tmp_path, teachers, bert_tokenizer, rows, eval_dataset=held_out, fusion=LogPool())
    report = trainer.evaluate_ensemble(
        baseline=make_student(bert_tokenizer, seed=9), metrics=["accuracy", "nll", "agreement"]
    )
    written = json.loads((tmp_path / "report.json").read_text())
    assert set(written["systems"]) == {
        "student", "baseline", "ensemble", "student+teachers", "teacher:bert", "teacher:roberta", "teacher:deberta",
    }  # fmt: skip
    assert written["rows"] == 33 and written["task"] == "text-classification"
    assert "report.md" in {p.name for p in tmp_path.iterdir()} and "student+teachers" in str(report)
    nll = trainer.evaluate()["eval_loss_task"]
    assert written["systems"]["student"]["metrics"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert written["systems"]["student"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"teachers": []}, ConfigurationError, "no teachers, but distill_weight is 0.5"),
        ({"text_columns": ("sentence",)}, DataError, r"has the columns \['text', 'label'\].*\['sentence'\]"),
        (
            {"label_names": ["negative", "positive", "neutral"]},
            DataError,
            "2 outputs, but there are 3 labels",
        ),
        ({"fusion": LinearPool((1, 1))}, ConfigurationError, "2 weights for 3 teachers"),
        ({"fusion": "linear_pol"}, ConfigurationError, "did you mean 'linear_pool'"),
        ({"distillation_loss": "kl"}, ConfigurationError, "no distillation loss named 'kl'"),
        ({"processing_class": None}, ConfigurationError, "pass the student's tokenizer"),
        ({"max_length": 65}, ConfigurationError, "takes at most 64 tokens"),
        ({"teachers": [{"model": "x"}]}, ConfigurationError, "holds a dict, which is no teacher"),
        ({"train_dataset": {"train": 1}}, DataError, "training set is a dict.*pass one datasets.Dataset"),
        ({"train_dataset": datasets.Dataset.from_dict({"text": [], "label": []})}, DataError, "has no rows"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    tmp_path, teachers, bert_tokenizer, rows, options, error, message
):
    own = {k: options[k] for k in options if k == "max_length"}
    rest = {k: options[k] for k in options if k not in own}
    with pytest.raises(error, match=message):
        MultiTeacherDistillationTrainer(
            **{
                "model": make_student(bert_tokenizer),
                "teachers": teachers,
                "args": arguments(tmp_path, **own),
                "train_dataset": rows,
                "processing_class": bert_tokenizer,
                **rest,
            }
        )


def test_tokenized_rows_are_refused_with_the_reason(tmp_path, teachers, bert_tokenizer, rows):
    tokenized = rows.map(lambda row: bert_tokenizer(row["text"]), remove_columns="text")
    with pytest.raises(DataError, match="already tokenized .* each teacher needs the text"):
        make_trainer(tmp_path, teachers, bert_tokenizer, tokenized)


def test_a_student_whose_head_has_another_order_is_refused(tmp_path, teachers, bert_tokenizer, rows):
    with pytest.raises(DataError, match=r"pass label_names=\['positive', 'negative'\]"):
        make_trainer(tmp_path, teachers, bert_tokenizer, rows, make_student(bert_tokenizer, LABELS[::-1]))
    trainer = make_trainer(
        tmp_path,
        teachers,
        bert_tokenizer,
        rows,
        make_student(bert_tokenizer, LABELS[::-1]),
        label_names=LABELS[::-1],
    )
    assert trainer.train_dataset["labels"][:] == [1 - label for label in rows["label"][:]]


def test_seed_decides_a_fresh_head(tmp_path, checkpoints, teachers, rows):
    def head(seed):
        trainer = MultiTeacherDistillationTrainer(
            model=checkpoints["student"],
            teachers=teachers,
            args=arguments(tmp_path, seed=seed),
            train_dataset=rows,
        )
        return trainer.model.classifier.weight.detach().clone()

    set_seed(1)
    assert torch.equal(head(3), head(3))


def test_hyperparameter_search_over_our_own_fields(tmp_path, teachers, bert_tokenizer, rows, held_out):
    """Through optuna: every trial trains with the temperature and weights it was given."""
    seen = []

    def spy(student_logits, target_log_probs, *, temperature):
        seen.append(temperature)
        return forward_kl(student_logits, target_log_probs, temperature=temperature)

    trainer = MultiTeacherDistillationTrainer(
        model_init=lambda: make_student(bert_tokenizer),
        teachers=teachers[:1],
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=bert_tokenizer,
        distillation_loss=spy,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "temperature": trial.suggest_categorical("temperature", [1.5, 3.0]),
            "distill_weight": trial.suggest_float("distill_weight", 0.2, 0.8),
        },
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"temperature": [1.5, 3.0], "distill_weight": [0.4]}),
        compute_objective=lambda metrics: metrics["eval_loss_task"],
    )
    assert set(seen) == {1.5, 3.0} and best.hyperparameters["temperature"] in (1.5, 3.0)


def test_two_trainers_on_one_cache_see_each_others_rows(tmp_path, teachers, bert_tokenizer, rows, held_out):
    first = make_trainer(
        tmp_path / "a", teachers[:1], bert_tokenizer, rows, cache_dir=tmp_path / "c", max_steps=1
    )
    make_trainer(tmp_path / "b", teachers[:1], bert_tokenizer, held_out, cache_dir=tmp_path / "c")
    assert first.evaluate(held_out)["eval_loss"] > 0


def test_a_diverged_student_is_never_the_best(tmp_path, teachers, bert_tokenizer, rows, held_out):
    class Diverge(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.classifier.weight.data.fill_(math.nan)

    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, rows, eval_dataset=held_out, callbacks=[Diverge()], max_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", **options,
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"student's outputs are not finite .* its weight 'classifier.weight'"
    ):
        trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_persistent_workers_do_not_evaluate_the_previous_dataset(
    tmp_path, teachers, bert_tokenizer, rows, held_out
):
    trainer = make_trainer(
        tmp_path, teachers[:1], bert_tokenizer, rows, eval_dataset=held_out, dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )  # fmt: skip
    trainer.evaluate()
    assert trainer.evaluate_ensemble(rows, metrics=["accuracy"]).rows == 64


def test_no_labels_reach_the_fusion_in_evaluation(tmp_path, teachers, bert_tokenizer, rows, held_out):
    seen = []

    def fusion(teacher_logits, *, temperature=1.0, labels=None, mask=None):
        seen.append(labels is None)
        return LinearPool()(teacher_logits, temperature=temperature)

    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, rows, eval_dataset=held_out, fusion=fusion, max_steps=1
    )
    trainer.train()
    assert seen == [False]
    trainer.evaluate()
    assert all(seen[1:])


def test_a_teacher_without_finite_outputs_ends_the_training(tmp_path, teachers, bert_tokenizer, rows):
    teachers[0].model.classifier.weight.fill_(math.nan)
    with pytest.raises(DataError, match="'bert' gives outputs that are not finite"):
        make_trainer(tmp_path, teachers, bert_tokenizer, rows).train()


def test_swap_holds_one_teacher_at_a_time(tmp_path, teachers, bert_tokenizer, rows, monkeypatch):
    moves = []
    monkeypatch.setattr(Teacher, "to", lambda self, device: moves.append((self.name, device.type)) or self)
    trainer = make_trainer(tmp_path, teachers, bert_tokenizer, rows, teacher_placement="swap", max_steps=1)
    trainer.train()
    assert moves[:3] == [(name, "cpu") for name in ("bert", "roberta", "deberta")]
    assert [name for name, _ in moves[3:]] == ["bert", "bert", "roberta", "roberta", "deberta", "deberta"]
    with pytest.raises(ConfigurationError, match="choose resident, swap or auto"):
        make_trainer(tmp_path, teachers, bert_tokenizer, rows, teacher_placement="disk")


def test_one_process_says_what_auto_placement_chose(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8_000_000_000, 9_000_000_000))
    device = torch.device("cuda")
    assert pool._placement(5_000_000_000, device) == "swap"
    assert capsys.readouterr().out == "Teachers take 5.00 GB of 8.00 GB free on cuda: placement swap.\n"
    monkeypatch.setattr(PartialState, "is_main_process", False)
    assert pool._placement(4_000_000_000, device) == "resident"
    assert capsys.readouterr().out == ""


def test_rows_with_a_format_or_a_column_of_our_name(tmp_path, teachers, bert_tokenizer, rows):
    expected = make_trainer(tmp_path, teachers, bert_tokenizer, rows).train_dataset["labels"][:]
    for given in (rows.with_format("torch"), rows.add_column("example_id", list(range(64)))):
        assert make_trainer(tmp_path, teachers, bert_tokenizer, given).train_dataset["labels"][:] == expected


def test_prediction_without_labels_asks_for_no_metrics(tmp_path, teachers, bert_tokenizer, rows):
    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, rows, compute_metrics=lambda p: {"called": 1.0}
    )
    assert "test_called" not in trainer.predict(rows.remove_columns("label")).metrics
    assert trainer.predict(rows).metrics["test_called"] == 1.0


def test_report_notes_rows_that_were_trained_on(tmp_path, teachers, bert_tokenizer, rows, held_out):
    trainer = make_trainer(tmp_path, teachers[:1], bert_tokenizer, rows)
    mixed = datasets.concatenate_datasets([rows.select(range(5)), held_out])
    notes = trainer.evaluate_ensemble(mixed, metrics=["accuracy"]).notes
    assert "of 38 rows were also trained on" in notes[0]


def test_max_length_cannot_change_after_tokenizing(tmp_path, teachers, bert_tokenizer, rows):
    trainer = make_trainer(tmp_path, teachers, bert_tokenizer, rows)
    trainer.args.max_length = 9
    with pytest.raises(
        ConfigurationError, match="max_length was set to 9 after the rows were tokenized with 64"
    ):
        trainer.train()


@pytest.mark.parametrize("cached", [False, True])
def test_prediction_asks_no_teacher(tmp_path, teachers, bert_tokenizer, rows, held_out, monkeypatch, cached):
    """Students answer alone, as the plain Trainer's; in the cache nothing is computed for rows that are only predicted."""
    options = {"cache_dir": tmp_path / "cache"} if cached else {}
    trainer = make_trainer(
        tmp_path, teachers[:2], bert_tokenizer, rows, hidden_losses=["hidden_mse"], **options
    )
    monkeypatch.setattr(Teacher, "run", None)
    monkeypatch.setattr(pool.TeacherPool, "__call__", None)
    found = trainer.predict(held_out)
    plain = Trainer(
        model=trainer.student,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        data_collator=DataCollatorWithPadding(bert_tokenizer),
    ).predict(
        held_out.map(lambda row: bert_tokenizer(row["text"]), remove_columns=["text"]).rename_column(
            "label", "labels"
        )
    )
    np.testing.assert_allclose(found.predictions, plain.predictions, atol=1e-5)
    assert found.metrics["test_loss"] == pytest.approx(plain.metrics["test_loss"], rel=1e-4)
    assert set(found.metrics) >= {"test_loss", "test_loss_task"} and "test_loss_distill" not in found.metrics
    assert list(found.label_ids) == held_out["label"][:]
    monkeypatch.undo()
    assert trainer.evaluate(held_out)["eval_loss_distill"] > 0
