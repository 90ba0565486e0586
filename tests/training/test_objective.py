"""By what trials and checkpoints are chosen: what the plain Trainer would choose by, and what is said where nothing can."""

from __future__ import annotations

import optuna
import pytest
from test_trainer import arguments, make_trainer
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.trainer_utils import default_compute_objective

from conftest import make_student
from hf_distill import MultiTeacherDistillationTrainer
from hf_distill.errors import ConfigurationError
from hf_distill.evaluation.evaluating import compute_metrics_from
from hf_distill.training.arguments import missing_trackers
from hf_distill.training.objective import objective


def plain_metrics(folder, tokenizer, held_out, compute_metrics):
    """What the plain Trainer finds of the very same student."""
    tokens = held_out.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns=["text"])
    trainer = Trainer(
        model=make_student(tokenizer, ["negative", "positive"]),
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            per_device_eval_batch_size=33,
        ),
        eval_dataset=tokens.rename_column("label", "labels"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    return {key: value for key, value in trainer.evaluate().items() if not key.endswith("preparation_time")}


@pytest.mark.parametrize("metrics", [None, ["accuracy"], ["accuracy", "f1"]])
def test_the_default_objective_is_the_plain_trainers(
    tmp_path, teachers, bert_tokenizer, rows, held_out, metrics
):
    compute = None if metrics is None else compute_metrics_from(metrics)
    trainer = make_trainer(
        tmp_path, teachers[:2], bert_tokenizer, rows, student=make_student(bert_tokenizer, ["negative", "positive"]),
        eval_dataset=held_out, compute_metrics=compute,
    )  # fmt: skip
    found = trainer.evaluate()
    plain = plain_metrics(tmp_path, bert_tokenizer, held_out, compute)
    # Temperature and weights are drawn: the evaluation losses of two trials are then no longer of one kind.
    ours = objective(found, parts=trainer._parts, chosen_by=None, drawn=["temperature"])
    assert ours == pytest.approx(default_compute_objective(plain), rel=1e-6)
    fixed = objective(found, parts=trainer._parts, chosen_by=None, drawn=["learning_rate"])
    assert fixed == pytest.approx(found["eval_loss"] if metrics is None else ours, rel=1e-6)


def test_a_search_by_accuracy_takes_the_best_trial(tmp_path, teachers, bert_tokenizer, rows, held_out):
    """By default Trainer adds all that an evaluation says, four losses among it: the worst trial won."""
    learnt = {}

    def compute(prediction):
        # The trial with the higher rate is the better one, and its losses are the lower ones.
        return {"accuracy": learnt["rate"]}

    trainer = MultiTeacherDistillationTrainer(
        model_init=lambda: make_student(bert_tokenizer),
        teachers=teachers[:1],
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=bert_tokenizer,
        compute_metrics=compute,
    )

    def draw(trial):
        learnt["rate"] = trial.suggest_categorical("learning_rate", [1e-6, 1e-1])
        return {"learning_rate": learnt["rate"]}

    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-6, 1e-1]})
    best = trainer.hyperparameter_search(
        draw, n_trials=2, direction="maximize", backend="optuna", sampler=sampler
    )
    assert best.hyperparameters["learning_rate"] == best.objective == 1e-1


def test_a_sum_that_means_nothing_is_refused():
    found = {"eval_loss": 1.0, "eval_accuracy": 0.5, "eval_nll": 0.6}
    with pytest.raises(ConfigurationError, match="more accuracy is better and more nll is worse"):
        objective(found, parts=[], chosen_by=None, drawn=[])
    assert objective(found, parts=[], chosen_by="nll", drawn=[]) == 0.6
    with pytest.raises(
        ConfigurationError, match="which the evaluation does not give: it gives loss, accuracy, nll"
    ):
        objective(found, parts=[], chosen_by="acc", drawn=[])


def test_more_is_not_better_of_every_metric(tmp_path):
    assert arguments(tmp_path, metric_for_best_model="nll").greater_is_better is False
    assert arguments(tmp_path, metric_for_best_model="accuracy").greater_is_better is True
    assert arguments(tmp_path, metric_for_best_model="ece", greater_is_better=True).greater_is_better is True


def test_a_metric_of_ours_chooses_the_checkpoint_without_compute_metrics(
    tmp_path, teachers, bert_tokenizer, rows, held_out
):
    trainer = make_trainer(
        tmp_path, teachers[:1], bert_tokenizer, rows, eval_dataset=held_out, max_steps=1, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == trainer.state.log_history[-2]["eval_accuracy"]


@pytest.mark.parametrize("given", [None, compute_metrics_from(["accuracy", "nll"])], ids=["none", "ours"])
def test_a_metric_that_no_evaluation_gives_is_refused_before_anything_runs(
    tmp_path, bert_tokenizer, rows, held_out, given
):
    with pytest.raises(
        ConfigurationError,
        match=r"metric_for_best_model: no evaluation gives 'acc' \(did you mean 'accuracy'\?\)",
    ):
        make_trainer(
            tmp_path, ["no/teacher-is-opened"], bert_tokenizer, rows, eval_dataset=held_out,
            compute_metrics=given, metric_for_best_model="acc",
        )  # fmt: skip


def test_ones_own_compute_metrics_is_asked_before_the_first_step(
    tmp_path, teachers, bert_tokenizer, rows, held_out
):
    trainer = make_trainer(
        tmp_path, teachers[:1], bert_tokenizer, rows, eval_dataset=held_out, eval_strategy="steps", eval_steps=1,
        compute_metrics=lambda prediction: {"acc": 1.0}, metric_for_best_model="accuracy",
    )  # fmt: skip
    with pytest.raises(
        ConfigurationError, match="no evaluation gives 'accuracy'; known: loss, acc; these compute_met"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_tracker_that_is_not_there_is_said_before_anything_runs(
    tmp_path, bert_tokenizer, rows, monkeypatch
):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(
        ConfigurationError, match="report_to: 'wandb' needs a package .*: pip install wandb, or write"
    ):
        make_trainer(tmp_path, ["no/teacher-is-opened"], bert_tokenizer, rows, report_to=["wandb"])
    (said,) = missing_trackers(["tensorboard"])
    assert (
        "pip install 'tensorboard>=2.20' (or, in the folder of the hf-distill repository, pip install '.[tensorboard]')"
        in said
    )
