"""Rows without labels are in no figure, and columns of the user's own are nobody else's."""

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainerState

from conftest import make_student
from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.runs.verdict.tracking import BestWeights


@pytest.fixture
def make(bert_tokenizer, rows, tmp_path):
    def made(eval_dataset=None, train_dataset=rows, args=None, **options):
        arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
                     "max_steps": 1, "task_weight": 1.0, "distill_weight": 0.0, "per_device_eval_batch_size": 8}  # fmt: skip
        return MultiTeacherDistillationTrainer(
            model=make_student(bert_tokenizer),
            processing_class=bert_tokenizer,
            teachers=[],
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            label_names=("negative", "positive"),
            args=DistillationArguments(**(arguments | (args or {}))),
            **options,
        )

    return made


def unlabelled(rows, every):
    labels = [None if i % every == 0 else label for i, label in enumerate(rows["label"][:])]
    return datasets.Dataset.from_dict({"text": rows["text"][:], "label": labels})


def counts(prediction):
    assert (prediction.label_ids != -100).all()
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"rows": len(prediction.label_ids), "accuracy": float(right.mean())}


def test_the_users_metrics_get_labelled_rows_alone(make, rows):
    half = unlabelled(rows, 2)
    trainer = make(half, compute_metrics=counts)
    found = trainer.evaluate()
    assert found["eval_rows"] == sum(label is not None for label in half["label"])
    report = trainer.evaluate_ensemble(half, metrics=["accuracy"])
    assert found["eval_accuracy"] == report.systems["student"].metrics["accuracy"]
    assert trainer.predict(half).metrics["test_rows"] == found["eval_rows"]


def test_metrics_that_are_summed_batch_by_batch(make, rows):
    seen = []

    def summed(prediction, compute_result):
        assert (prediction.label_ids != -100).all()
        seen.append(len(prediction.label_ids))
        return {"rows": sum(seen)} if compute_result else {}

    half = unlabelled(rows, 2)
    trainer = make(half, compute_metrics=summed, args={"batch_eval_metrics": True})
    assert trainer.evaluate()["eval_rows"] == sum(label is not None for label in half["label"])


def test_no_label_no_loss_no_metric_and_a_note(make, rows, capsys):
    none = rows.remove_columns("label")
    found = make(none, compute_metrics=counts).evaluate()
    assert not {"eval_loss", "eval_rows", "eval_accuracy"} & set(found)
    assert "no row has a label" in capsys.readouterr().out
    stream = make(none.to_iterable_dataset(), compute_metrics=counts)
    assert not {"eval_loss", "eval_rows"} & set(stream.evaluate())
    report = stream.evaluate_ensemble(none, metrics=["accuracy"])
    assert "accuracy" not in report.systems["student"].metrics
    assert any("No row has a label" in note for note in report.notes)


@pytest.mark.parametrize("chosen", [None, "eval_loss", "accuracy"])
def test_the_best_checkpoint_is_not_chosen_by_rows_without_labels(make, rows, chosen):
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
            "load_best_model_at_end": True, "metric_for_best_model": chosen}  # fmt: skip
    trainer = make(rows.remove_columns("label"), compute_metrics=counts, args=best)
    with pytest.raises(DataError, match="no row of the evaluation set has a label") as refused:
        trainer.train()
    assert f"metric_for_best_model is {chosen or 'loss'!r}" in str(refused.value)
    assert trainer.state.global_step == 0  # before the work


@pytest.mark.parametrize("schedule", ["linear", "reduce_lr_on_plateau"])
def test_a_metric_that_no_evaluation_has_is_named_with_those_it_has(make, rows, schedule):
    by = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "acuracy", "lr_scheduler_type": schedule}  # fmt: skip
    with pytest.raises(ConfigurationError, match="metric_for_best_model.*'acuracy'") as refused:
        make(rows, compute_metrics=counts, args=by).train()
    assert "accuracy" in str(refused.value)
    stream = make(rows.remove_columns("label").to_iterable_dataset(), args={**by, "metric_for_best_model": "loss"})  # fmt: skip
    with pytest.raises(ConfigurationError, match="metric_for_best_model is 'loss'"):
        stream.train()


def test_a_baseline_is_not_chosen_by_rows_without_labels():
    best = BestWeights("accuracy", True)
    best.on_evaluate(None, TrainerState(global_step=3), None, {"eval_runtime": 1.0}, torch.nn.Linear(1, 1))
    assert (best.weights, best.step, best.seen) == (None, None, 3)
    best.on_evaluate(None, TrainerState(global_step=4), None, {"eval_loss": 1.0}, torch.nn.Linear(1, 1))
    assert best.step == 4


def test_one_class_is_said(make, rows, capsys):
    positive = rows.filter(lambda row: row["label"] == 1)
    trainer = make(train_dataset=positive)
    trainer.train()
    assert "all labels of the training set are of one class, 'positive'" in capsys.readouterr().out
    assert "of one class, 'positive'" in " ".join(
        trainer.evaluate_ensemble(positive, metrics=["accuracy"]).notes
    )


@pytest.mark.parametrize("first", ["absent", "null"])
def test_a_label_that_the_first_rows_of_a_stream_lack_is_read(make, rows, first):
    def stream():
        for i in range(2100):
            row = rows[i % len(rows)]
            missing = {} if first == "absent" else {"label": None}
            yield {"text": row["text"], **(missing if i < 2000 else {"label": row["label"]})}

    trainer = make(datasets.IterableDataset.from_generator(stream), compute_metrics=counts)
    labels = np.array([row["labels"] for row in trainer.eval_dataset])
    assert (labels[:2000] == -100).all() and (labels[2000:] >= 0).all()


@pytest.mark.parametrize("extra", ["example_id", "labels", "input_ids_of_mine", "teacher_views"])
def test_a_users_own_columns_clash_with_none_of_ours(make, rows, extra):
    own = rows.add_column(extra, list(range(len(rows))))
    trainer = make(own, train_dataset=own)
    assert set(trainer.train_dataset["labels"][:]) == {0, 1}
    renamed = own.rename_column("text", "sentence")
    with pytest.raises(DataError, match=r"text_columns=\['text'\] are asked for"):
        make(renamed, train_dataset=renamed)
