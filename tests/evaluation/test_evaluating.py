"""What is reported is what was trained on: one pool, one alignment, one fusion."""

from __future__ import annotations

import json
import math

import datasets
import evaluate
import numpy as np
import pytest
import torch
from transformers import pipeline

from conftest import make_bert, make_student
from hf_distill import Ensemble, EvaluationReport, LinearPool, LogPool, Teacher, evaluate_ensemble
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.evaluation.evaluating import compute_metrics_from
from hf_distill.evaluation.metrics import METRICS
from hf_distill.evaluation.results import SystemResult

LABELS = ["negative", "positive"]


def probabilities(teachers, texts):
    """Each teacher through its own pipeline, in the order of LABELS."""
    found = []
    for teacher in teachers:
        pipe = pipeline(
            "text-classification", model=teacher.model, tokenizer=teacher.view.tokenizer, top_k=None
        )
        answers = [{a["label"].lower(): a["score"] for a in answer} for answer in pipe(list(texts))]
        found.append([[answer[label] for label in LABELS] for answer in answers])
    return np.array(found)


def test_every_system_against_the_pipelines(teachers, held_out, bert_tokenizer):
    student = make_student(bert_tokenizer, LABELS)
    student.classifier.weight.data *= 30
    baseline = make_student(bert_tokenizer, LABELS, seed=8)
    report = evaluate_ensemble(
        teachers, held_out, student=student, baseline=baseline, processing_class=bert_tokenizer, batch_size=8,
        metrics=["accuracy", "nll", "agreement", "kl_to_ensemble"],
    )  # fmt: skip
    labels = np.array(held_out["label"][:])
    each = probabilities(teachers, held_out["text"][:])
    wrapped = Teacher(student, bert_tokenizer, name="student")
    own = probabilities([wrapped], held_out["text"][:])
    pooled = each.mean(0)
    expected = {
        "ensemble": pooled,
        "student": own[0],
        "student+teachers": np.concatenate([own, each]).mean(0),
        **{f"teacher:{t.name}": p for t, p in zip(teachers, each, strict=True)},
    }
    assert set(report.systems) == {*expected, "baseline"} and report.rows == 33
    for name, p in expected.items():
        metrics = report.systems[name].metrics
        assert metrics["accuracy"] == pytest.approx(np.mean(p.argmax(1) == labels))
        assert metrics["nll"] == pytest.approx(-np.mean(np.log(p[np.arange(33), labels])), rel=1e-4)
        if name != "ensemble":
            assert metrics["agreement"] == pytest.approx(np.mean(p.argmax(1) == pooled.argmax(1)))
            assert metrics["kl_to_ensemble"] == pytest.approx(
                np.mean((pooled * np.log(pooled / p)).sum(1)), rel=1e-3, abs=1e-6
            )
    assert "agreement" not in report.systems["ensemble"].metrics
    sizes = [t.num_parameters for t in teachers]
    assert report.systems["ensemble"].parameters == sum(sizes)
    assert report.systems["student+teachers"].parameters == sum(sizes) + student.num_parameters()


def test_temperature_one_and_no_labels_reach_the_fusion(teachers, held_out):
    seen = []

    def fusion(teacher_logits, *, temperature=1.0, labels=None, mask=None):
        seen.append((temperature, labels))
        return LinearPool()(teacher_logits, temperature=temperature)

    evaluate_ensemble(teachers, held_out, fusion=fusion, metrics=["accuracy"])
    assert set(seen) == {(1.0, None)}


def test_rows_without_labels_are_said_and_not_counted(teachers, held_out):
    labels = [label if i < 20 else -100 for i, label in enumerate(held_out["label"][:])]
    partly = datasets.Dataset.from_dict({"text": held_out["text"][:], "label": labels})
    report = evaluate_ensemble(teachers, partly, label_names=LABELS, metrics=["accuracy", "agreement"])
    whole = evaluate_ensemble(teachers, held_out.select(range(20)), metrics=["accuracy"])
    assert report.rows == 33 and "13 of 33 rows have no label" in report.notes[0]
    for name in whole.systems:
        assert report.systems[name].metrics["accuracy"] == whole.systems[name].metrics["accuracy"]
    none = evaluate_ensemble(
        teachers, held_out.remove_columns("label"), label_names=LABELS, metrics=["accuracy", "agreement"]
    )
    assert none.systems["teacher:bert"].metrics.keys() == {"agreement"}


def test_teacher_that_lacks_a_class(bert_tokenizer, held_out):
    plain = held_out.cast_column("label", datasets.Value("int64"))
    two = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="two")
    three = Teacher(make_bert(bert_tokenizer, [*LABELS, "neutral"], seed=5), bert_tokenizer, name="three")
    student = make_student(bert_tokenizer, [*LABELS, "neutral"])
    report = evaluate_ensemble(
        [two, three], plain, student=student, processing_class=bert_tokenizer, label_names=[*LABELS, "neutral"], metrics=["nll"]
    )  # fmt: skip
    assert all(math.isfinite(system.metrics["nll"]) for system in report.systems.values())


def test_report_files(tmp_path):
    systems = {
        "student": SystemResult({"accuracy": 0.5, "nll": math.inf}, 10),
        "ensemble": SystemResult({"accuracy": 1.0}, None),
    }
    report = EvaluationReport(
        "text-classification", "set|one", 4, systems, ("a", "b"), "LinearPool()", ("Mind this.",)
    )
    path = report.save(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "report.json").read_text())
    assert written["systems"]["student"] == {"metrics": {"accuracy": 0.5, "nll": None}, "parameters": 10}
    assert {"task", "dataset", "rows", "systems"} <= written.keys()
    assert "| student  | 0.5000   | inf | 10         |" in path.read_text()
    assert "Note: Mind this." in str(report)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.json", "report.md"]


def test_what_cannot_be_evaluated(teachers, held_out, bert_tokenizer):
    with pytest.raises(ConfigurationError, match="processing_class= is missing"):
        evaluate_ensemble(teachers, held_out, student=make_student(bert_tokenizer, LABELS))
    with pytest.raises(ConfigurationError, match="metric.*'accurracy'.*accuracy"):
        evaluate_ensemble(teachers, held_out, metrics=["accurracy"])
    with pytest.raises(ConfigurationError, match="Two metrics are called 'f1'"):
        evaluate_ensemble(teachers, held_out, metrics=["f1", {"use": "f1", "average": "micro"}])
    plain = held_out.cast_column("label", datasets.Value("int64"))
    with pytest.raises(DataError, match="Nothing names the student's labels"):
        evaluate_ensemble(teachers, plain)  # or numbers would mean the first teacher's order
    three = make_student(bert_tokenizer, ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(DataError, match="The baseline: its head has 3 outputs, but there are 2"):
        evaluate_ensemble(teachers, held_out, baseline=three, processing_class=bert_tokenizer)
    with pytest.raises(DataError, match="texts and pairs together"):
        Ensemble(teachers)(["a film", ("a film", "a plot")])
    with pytest.raises(DataError, match="has no rows"):
        evaluate_ensemble(teachers, held_out.select([]))


def test_modules_of_evaluate_are_taken(teachers, held_out):
    class ShareOfOnes(evaluate.Metric):
        def _info(self):
            features = datasets.Features(
                {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            )
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            return {"ones": float(np.mean(predictions))}

    report = evaluate_ensemble(teachers, held_out, metrics=[ShareOfOnes(), METRICS["accuracy"]()])
    assert set(report.systems["ensemble"].metrics) == {"ones", "accuracy"}


def test_compute_metrics_for_the_trainer():
    from transformers import EvalPrediction

    compute = compute_metrics_from(["accuracy", "nll", "agreement"])
    values = compute(EvalPrediction(np.log([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]]), np.array([1, 1, -100])))
    assert values == {"accuracy": 0.5, "nll": pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2)}
    assert compute(EvalPrediction(np.zeros((2, 2)), np.array([-100, -100]))) == {}


def test_ensemble_is_callable_like_a_pipeline(teachers, held_out):
    ensemble = Ensemble(teachers, LogPool(), LABELS, batch_size=5)
    texts = held_out["text"][:]
    log_probs = ensemble.log_probs(texts)
    expected = np.exp(np.log(probabilities(teachers, texts)).mean(0))
    np.testing.assert_allclose(log_probs.exp(), expected / expected.sum(1, keepdims=True), atol=1e-5)
    answers = ensemble(texts)
    assert [LABELS.index(a["label"]) for a in answers] == log_probs.argmax(1).tolist()
    assert ensemble("a good film")[0]["score"] == pytest.approx(
        ensemble.log_probs(["a good film"]).exp().max().item()
    )
    assert len(ensemble("a good film", top_k=None)[0]) == 2
    pair = ensemble.log_probs([{"text": "a good film", "text_pair": "is it"}])
    assert torch.allclose(pair, ensemble.log_probs([("a good film", "is it")])) and ensemble.log_probs(
        []
    ).shape == (0, 2)
    with pytest.raises(DataError, match="expected a text, a pair"):
        ensemble([3])
    with pytest.raises(ConfigurationError, match="at least one teacher"):
        Ensemble([])


def test_ensemble_in_the_evaluator_of_evaluate(teachers, held_out):
    ensemble = Ensemble(teachers, label_names=LABELS)
    result = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=ensemble,
        data=held_out,
        metric=METRICS["accuracy"](),
        label_mapping={name: i for i, name in enumerate(LABELS)},
    )
    report = evaluate_ensemble(teachers, held_out, metrics=["accuracy"])
    assert result["accuracy"] == report.systems["ensemble"].metrics["accuracy"]
