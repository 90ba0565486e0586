"""Fusions fitted on held-out rows by the trainer: what they see, what the report leaves out, what is kept beside the student."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from test_trainer import LABELS, make_trainer

from conftest import make_bert, make_roberta, sentences
from hf_distill import Ensemble, LinearPool, LogPool, Teacher, evaluate_ensemble
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError
from hf_distill.fusion import FusionChoice
from hf_distill.fusion.alignment import TeacherOutputs
from hf_distill.rows.preparing import example_id
from hf_distill.teachers.held_out import load_choice

FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABELS)})


class Oracle:
    """A source that knows the label of every row, with some certainty."""

    view = None
    label_names = tuple(LABELS)

    def __init__(self, name, rows, certainty):
        self.name = name
        self.logits = {
            example_id((row["text"],)): [0.0, certainty] if row["label"] else [certainty, 0.0] for row in rows
        }

    def __call__(self, view, example_ids):
        return TeacherOutputs(torch.tensor([self.logits.get(i, [0.0, 0.0]) for i in example_ids.tolist()]))


def many(count, seed):
    unique = {row["text"]: row for row in sentences(3 * count, seed)}
    return datasets.Dataset.from_list(list(unique.values())[:count], features=FEATURES)


@pytest.fixture(scope="module")
def evaluation():
    return many(120, seed=7)


def sources(rows, tokenizer):
    """One that knows the labels, and a random model that is sure of what it says."""
    model = make_bert(tokenizer, LABELS)
    with torch.no_grad():
        model.classifier.weight.mul_(50.0)
    return [Oracle("oracle", rows, 2.0), Teacher(model, tokenizer, name="sure")]


def test_auto_hears_the_good_teacher_and_says_why(tmp_path, rows, evaluation, bert_tokenizer, capsys):
    trainer = make_trainer(
        tmp_path, sources(evaluation, bert_tokenizer), bert_tokenizer, rows, eval_dataset=evaluation
    )
    assert isinstance(trainer.fusion, LogPool)
    assert trainer.fusion.weights[0] > 0.99
    said = capsys.readouterr().out
    assert "Fusion: log_pool, because it is better: NLL" in said
    assert "Teacher 'oracle' is right on 100.0% of the 120 held-out rows" in said
    report = trainer.evaluate_ensemble(metrics=["accuracy"])
    assert report.fusion.startswith("log_pool(weights=[1, 0]")
    assert any(note.startswith("Fusion: log_pool") for note in report.notes)
    assert any("probably trained on them" in note for note in report.notes)


def test_a_report_is_never_made_on_rows_that_fitted_the_fusion(tmp_path, rows, evaluation, bert_tokenizer):
    trainer = make_trainer(
        tmp_path, sources(evaluation, bert_tokenizer), bert_tokenizer, rows, eval_dataset=evaluation
    )
    fitted = len(trainer.fusion_choice.fitted_on)
    assert 60 < fitted < 100  # two thirds
    report = trainer.evaluate_ensemble()
    assert report.rows == 120 - fitted
    assert f"{fitted} of 120 rows fitted the fusion and are left out." in report.notes
    with pytest.raises(DataError, match="All .* rows to be evaluated have fitted the fusion"):
        ids = set(trainer.fusion_choice.fitted_on.tolist())
        trainer.evaluate_ensemble(evaluation.filter(lambda row: example_id((row["text"],)) in ids))


@pytest.mark.parametrize(
    "given",
    [
        "auto",
        {"use": "log_pool", "fit": True},
        {"use": "linear_pool", "fit": True, "method": "em"},
        "gate",
        "best_teacher",
        {"use": "greedy_selection", "size": 5},
        "stacking",
        {"use": "pool_then_temper", "fit": True},
    ],
)
def test_what_was_fitted_is_kept_beside_the_student(tmp_path, rows, evaluation, bert_tokenizer, given):
    trainer = make_trainer(
        tmp_path,
        sources(evaluation, bert_tokenizer),
        bert_tokenizer,
        rows,
        eval_dataset=evaluation,
        fusion=given,
    )
    trainer.save_model()
    kept = load_choice(tmp_path, ["oracle", "sure"])
    assert kept.fusion == trainer.fusion
    assert kept.reason == trainer.fusion_choice.reason
    assert torch.equal(kept.fitted_on, trainer.fusion_choice.fitted_on)
    # and it is a fusion for every other part of the package
    again = evaluate_ensemble(
        sources(evaluation, bert_tokenizer),
        many(30, seed=9),
        fusion=kept,
        metrics=["accuracy"],
        label_names=LABELS,
    )
    assert set(again.systems) == {"ensemble", "teacher:oracle", "teacher:sure"}


def test_the_order_of_the_rows_changes_nothing(tmp_path, rows, evaluation, bert_tokenizer):
    fusions = []
    for name, part in (("one", evaluation), ("two", evaluation.shuffle(seed=3))):
        trainer = make_trainer(
            tmp_path / name, sources(evaluation, bert_tokenizer), bert_tokenizer, rows, eval_dataset=part
        )
        fusions.append(trainer.fusion)
    assert fusions[0].weights == pytest.approx(fusions[1].weights, abs=1e-6)
    assert fusions[0].temperatures == pytest.approx(fusions[1].temperatures, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "no evaluation rows were given"),
        ({"eval_dataset": {"a": many(50, 1), "b": many(50, 2)}}, "there are several evaluation sets"),
        ({"eval_dataset": many(50, 1).remove_columns("label")}, "the evaluation rows have no labels"),
        ({"eval_dataset": many(50, 1).to_iterable_dataset()}, "the evaluation rows are a stream"),
        ({"eval_dataset": many(30, 1)}, "only 30 held-out rows have labels"),
    ],
)
def test_without_held_out_rows_auto_is_the_uniform_linear_pool(
    tmp_path, rows, bert_tokenizer, capsys, options, why
):
    teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
    trainer = make_trainer(tmp_path, [teacher], bert_tokenizer, rows, **options)
    assert trainer.fusion == LinearPool()
    assert why in capsys.readouterr().out
    if "only" not in why:
        with pytest.raises(ConfigurationError, match=f"LogPool is to be fitted on held-out rows.*{why}"):
            make_trainer(
                tmp_path, [teacher], bert_tokenizer, rows, fusion={"use": "log_pool", "fit": True}, **options
            )


def test_a_teacher_that_lacks_a_class_is_fitted_too(tmp_path, bert_tokenizer, roberta_tokenizer):
    names = ["negative", "positive", "neutral"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    rows = datasets.Dataset.from_list(
        [{**row, "label": i % 3} for i, row in enumerate(many(90, seed=11).to_list())], features=features
    )
    teachers = [
        Teacher(make_bert(bert_tokenizer, names), bert_tokenizer, name="all"),
        Teacher(make_roberta(roberta_tokenizer, LABELS), roberta_tokenizer, name="two"),
    ]
    from conftest import make_student

    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, rows, eval_dataset=rows, student=make_student(bert_tokenizer, names),
        fusion={"use": "linear_pool", "fit": True},
    )  # fmt: skip
    assert sum(trainer.fusion.weights) == pytest.approx(1.0)
    trainer.train()


def test_what_fits_nothing_refuses_a_fusion_that_is_yet_to_be_fitted(evaluation, teachers):
    with pytest.raises(ConfigurationError, match="evaluate_ensemble fits nothing"):
        evaluate_ensemble(teachers, evaluation, fusion="auto")
    with pytest.raises(ConfigurationError, match="Ensemble fits nothing"):
        Ensemble(teachers, "gate")


def test_a_kept_fusion_of_other_teachers_or_a_damaged_one_is_refused(tmp_path, rows, bert_tokenizer):
    teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
    trainer = make_trainer(
        tmp_path, [teacher], bert_tokenizer, rows, fusion=FusionChoice(LinearPool(), "because")
    )
    trainer.save_model()
    assert json.loads((tmp_path / "fusion.json").read_text())["reason"] == "because"
    with pytest.raises(ConfigurationError, match=r"is a fusion of the teachers \['bert'\]"):
        load_choice(tmp_path, ["roberta"])
    (tmp_path / "fusion.json").write_text("{")
    with pytest.raises(CorruptStateError, match="does not hold the fusion of a run"):
        load_choice(tmp_path)


def test_the_card_says_how_the_teachers_were_fused(tmp_path, rows, evaluation, bert_tokenizer):
    trainer = make_trainer(
        tmp_path, sources(evaluation, bert_tokenizer), bert_tokenizer, rows, eval_dataset=evaluation
    )
    trainer.create_model_card(model_name="small")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "Fusion: log_pool, because it is better: NLL" in card
    assert "| oracle " in card
    trainer.create_model_card(model_name="small")  # a second push writes it anew
    assert (tmp_path / "README.md").read_text(encoding="utf-8").count("## Distillation") == 1


@pytest.mark.parametrize("loads_best", [True, False])
def test_a_report_says_that_rows_selected_the_checkpoint_only_where_they_did(
    tmp_path, rows, evaluation, bert_tokenizer, loads_best
):
    trainer = make_trainer(
        tmp_path, [Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")], bert_tokenizer, rows,
        eval_dataset=evaluation, fusion=LinearPool(), eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, metric_for_best_model="loss_task", greater_is_better=False, load_best_model_at_end=loads_best,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric is not None
    notes = trainer.evaluate_ensemble(metrics=["accuracy"]).notes
    assert any("selected the student's checkpoint" in note for note in notes) == loads_best
