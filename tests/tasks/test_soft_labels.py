"""Labels that are distributions, weighted classes and losses that need labels, in a training of one class of several."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from conftest import make_bert, make_student, sentences
from hf_distill import TASKS, DistillationArguments, MultiTeacherDistillationTrainer, Teacher
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.tasks.multi_label import joined_labels

N = ("negative", "positive")


def settings(folder, **options):
    return DistillationArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no",
        **{"max_steps": 2, "per_device_train_batch_size": 8, **options},
    )  # fmt: skip


def soft_rows(count=16):
    rows = [
        {"text": row["text"], "label": [0.9, 0.1] if row["label"] == 0 else [0.2, 0.8]}
        for row in sentences(count, 0)
    ]
    rows[3]["label"] = None
    return datasets.Dataset.from_list(rows)


def trainer_of(teachers, tokenizer, folder, rows, **options):
    return MultiTeacherDistillationTrainer(
        model=make_student(tokenizer), teachers=teachers[:2], train_dataset=rows, processing_class=tokenizer,
        label_names=N, **{"args": settings(folder), "fusion": "linear_pool", **options},
    )  # fmt: skip


def test_a_column_of_probabilities_is_learnt_as_it_is(teachers, bert_tokenizer, tmp_path):
    trainer = trainer_of(
        teachers, bert_tokenizer, tmp_path, soft_rows(), args=settings(tmp_path, label_share=0.5)
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    assert inputs["labels"].shape == (8, 2) and inputs["labels"].dtype == torch.float32
    outputs = trainer.model(**trainer._student_inputs(inputs))
    terms = trainer.loss_terms(outputs, None, inputs)
    expected = -(inputs["labels"].nan_to_num(0.0) * outputs.logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(terms["task"].values, expected)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    report = trainer.evaluate_ensemble(soft_rows(12), metrics=["accuracy", "nll", "f1"])
    hard = trainer.evaluate_ensemble(
        datasets.Dataset.from_list(
            [{**row, "label": -100 if i == 3 else row["label"]} for i, row in enumerate(sentences(12, 0))]
        ),
        metrics=["accuracy", "nll", "f1"],
    )
    assert report.systems["student"].metrics == pytest.approx(hard.systems["student"].metrics)
    assert any("1 of 12 rows have no label" in note for note in report.notes)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([0.5, 0.6], "sum to 1.1"),
        ([0.5], "has 1 probabilities for the 2 classes"),
        ([1.5, -0.5], "is no probability"),
    ],
)
def test_what_is_no_distribution_is_said_with_its_row(label, said):
    feature = datasets.Sequence(datasets.Value("float64"))
    encode = TASKS["text-classification"].label_reader("label", N).encoder(feature)
    assert np.isnan(encode([None, [float("nan")] * 2], range(2))).all()
    with pytest.raises(DataError, match=said):
        encode([[0.5, 0.5], label], range(2))


def test_probabilities_are_lists_mappings_or_a_column_each():
    task, of = TASKS["text-classification"], datasets.Sequence
    whole = task.label_reader("label", N).encoder(of(datasets.Value("int64")))
    assert whole([[0, 1], [1, 0]], range(2)) == [[0.0, 1.0], [1.0, 0.0]]
    rows = joined_labels(
        datasets.Dataset.from_dict(
            {"text": ["a", "b", "c"], "positive": ["0.75", "1", ""], "negative": ["0.25", "0", ""]}
        ),
        ["positive", "negative"],
    )
    feature = rows.features["label"]
    assert task.label_names(None, rows, "label", None) == ("positive", "negative")
    found = task.label_reader("label", N).encoder(feature)(rows["label"], range(3))
    assert found[:2] == [[0.25, 0.75], [0.0, 1.0]] and np.isnan(found[2]).all()
    for value, said in (
        ({"positive": 1.0, "other": 0.0}, "it has the classes"),
        ({"positive": "high", "negative": 0.0}, "'high', which is no probability"),
    ):
        with pytest.raises(DataError, match=said):
            task.label_reader("label", N).encoder(feature)([value], range(1))
    classes = of(datasets.ClassLabel(names=list(N)))
    with pytest.raises(DataError, match="expected a label's name"):
        task.label_reader("label", N).encoder(classes)([[0, 1]], range(1))


def test_balanced_classes_weigh_the_task_loss_and_are_said(teachers, bert_tokenizer, tmp_path):
    rows = datasets.Dataset.from_list(
        [{**row, "label": int(i % 4 == 0)} for i, row in enumerate(sentences(16, 0))]
    )
    trainer = trainer_of(
        teachers, bert_tokenizer, tmp_path, rows, args=settings(tmp_path, class_weights="balanced")
    )
    assert trainer.class_weights == (pytest.approx(16 / 24, abs=1e-6), 2.0)
    inputs = next(iter(trainer.get_train_dataloader()))
    outputs = trainer.model(**trainer._student_inputs(inputs))
    own = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
    weights = torch.tensor(trainer.class_weights)[inputs["labels"]]
    assert torch.allclose(trainer.loss_terms(outputs, None, inputs)["task"].values, own * weights)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "classes weighted" in card and "positive 2" in card
    given = {"positive": 3, "negative": 1}
    trainer = trainer_of(
        teachers, bert_tokenizer, tmp_path, rows, args=settings(tmp_path, class_weights=given)
    )
    assert trainer.class_weights == (1.0, 3.0)
    for wrong in ("even", [1, 2, 3], {"positive": 1}, [0, 0], [1, -1]):
        with pytest.raises(ConfigurationError, match="class_weights"):
            trainer_of(teachers, bert_tokenizer, tmp_path, rows, args=settings(tmp_path, class_weights=wrong))


def test_losses_that_say_nothing_of_two_classes_are_refused(teachers, bert_tokenizer, tmp_path):
    rows = datasets.Dataset.from_list(sentences(8, 0))
    for loss in ("dkd", "dist", {"use": "forward_kl", "standardize": True}, [{"use": "dkd"}, "forward_kl"]):
        with pytest.raises(ConfigurationError, match="needs at least 3 classes"):
            trainer_of(teachers, bert_tokenizer, tmp_path, rows, distillation_loss=loss)


@pytest.mark.parametrize("fusion", ["confidence_weighted", "likelihood_weighted"])
def test_fusions_that_read_labels_read_the_most_likely_class(teachers, bert_tokenizer, tmp_path, fusion):
    trainer = trainer_of(teachers, bert_tokenizer, tmp_path, soft_rows(8), fusion=fusion)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    hard = {**inputs, "labels": trainer.family.of_fits(inputs["labels"])}
    assert hard["labels"].dtype == torch.int64 and (hard["labels"] == -100).sum() == 1
    soft, expected = (trainer.teacher_targets(own).log_probs for own in (inputs, hard))
    assert torch.equal(soft, expected)


def test_a_loss_that_needs_labels_reads_the_most_likely_class(bert_tokenizer, tmp_path):
    names = ("a", "b", "c")
    rows = [{"text": row["text"], "label": [0.2, 0.7, 0.1]} for row in sentences(8, 0)]
    rows[3]["label"] = None
    trainer = MultiTeacherDistillationTrainer(
        model=make_student(bert_tokenizer, names), args=settings(tmp_path), label_names=names,
        teachers=[Teacher(make_bert(bert_tokenizer, names), bert_tokenizer, name="one")], fusion="linear_pool",
        train_dataset=datasets.Dataset.from_list(rows), distillation_loss="dkd", processing_class=bert_tokenizer,
    )  # fmt: skip
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_several_losses_train(teachers, bert_tokenizer, tmp_path):
    rows = datasets.Dataset.from_list(sentences(8, 0))
    both = [{"use": "forward_kl", "weight": 0.5}, "jsd"]
    trainer = trainer_of(teachers, bert_tokenizer, tmp_path, rows, distillation_loss=both)
    trainer.train()
    trainer.create_model_card()
    assert "0.5 × forward_kl + 1 × jsd" in (tmp_path / "README.md").read_text()
