"""Scores: read from what people write, brought to one scale, trained, judged and asked, through one path."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from scipy.stats import pearsonr, spearmanr
from several_labels import score_checkpoints, score_dataset, several_rows, task_recipe
from transformers import pipeline
from typer.testing import CliRunner

from conftest import make_bert
from hf_distill import (
    TASKS,
    DistillationArguments,
    Ensemble,
    MultiTeacherDistillationTrainer,
    Teacher,
    evaluate_ensemble,
)
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.evaluation.metrics import compute_metric, load_metric
from hf_distill.fusion import AutoGaussian, GaussianPool, HeldOut, build_fusion, describe
from hf_distill.recipe import Setup, load_recipe
from hf_distill.runs.train import train_recipe
from hf_distill.tasks import family_of
from hf_distill.tasks.regression import Regression, numbers_encoder
from hf_distill.verdict.comparing import compare_runs

TASK, FAMILY = TASKS["regression"], family_of("regression")
NAN = pytest.approx(float("nan"), nan_ok=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory, bert_tokenizer, roberta_tokenizer):
    return score_checkpoints(tmp_path_factory.mktemp("scores"), bert_tokenizer, roberta_tokenizer)


def encode(*values, names=("score",), feature=None):
    return numbers_encoder(feature, names, "score")(values, range(len(values)))


# ---- Labels ----


def test_scores_are_numbers_text_lists_or_mappings():
    assert encode(3, "4.5", " -1e2 ", [2.0], "[7]", 0) == [[3.0], [4.5], [-100.0], [2.0], [7.0], [0.0]]
    assert encode(None, "", float("nan"), [None]) == [[NAN]] * 4
    two = ("ease", "tone")
    assert encode([1, "2"], {"Tone": 4, "ease": 3}, '{"ease": 5, "tone": 6}', None, names=two) == [
        [1, 2], [3, 4], [5, 6], [NAN, NAN],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "names", "said"),
    [
        ("high", ("score",), "found 'high', expected a number"),
        (True, ("score",), "found True, expected a number"),
        (float("inf"), ("score",), "which is no finite number"),
        ([1.0, 2.0], ("score",), "expected 1 number"),
        (1.0, ("a", "b"), r"expected 2 numbers"),
        ([1.0, None], ("a", "b"), "the score 'b' is missing, but others are there"),
        ({"a": 1.0, "x": 2.0}, ("a", "b"), "it has the scores"),
        ("[1", ("score",), "begins as a list does"),
    ],
)
def test_what_is_no_score_is_said_with_its_row(value, names, said):
    with pytest.raises(DataError) as raised:
        encode([0.0] * len(names), value, names=names)
    assert "Row 1, column 'score'" in str(raised.value) and said in str(raised.value)


def test_names_of_scores():
    rows = datasets.Dataset.from_dict({"score": [1.0], "two": [[1.0, 2.0]], "by": [{"b": 1.0, "a": 2.0}]})
    assert TASK.label_names(None, rows, "score", None) == ("score",)
    assert TASK.label_names(None, rows, "by", None) == ("b", "a")
    with pytest.raises(DataError, match="nothing names the scores"):
        TASK.label_names(None, rows, "two", None)
    with pytest.raises(DataError, match="which are no numbers"):
        TASK.label_reader("label", ["score"]).encoder(datasets.ClassLabel(names=["a", "b"]))


# ---- Numbers ----


def test_scales_are_the_lines_of_least_squares_and_weights_their_inverse_errors():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=200) * 2 + 3
    noise = draw.normal(size=(2, 200)) * np.array([[0.5], [1.0]])
    teachers = np.stack([truth + noise[0], 20 * (truth + noise[1]) - 5])
    fitted = GaussianPool.fit(
        torch.from_numpy(teachers), torch.from_numpy(truth), method="inverse_mse", scale=True
    )
    errors = []
    for own, (slope, offset) in zip(teachers, fitted.scales, strict=True):
        expected = np.polyfit(own, truth, 1)
        assert (slope, offset) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
        errors.append(np.mean((slope * own + offset - truth) ** 2))
    shares = np.array([1 / e for e in errors]) / sum(1 / e for e in errors)
    assert fitted.weights == pytest.approx(shares)
    stacked = torch.from_numpy(teachers)[..., None]
    expected = sum(w * (a * t + b) for w, (a, b), t in zip(shares, fitted.scales, teachers, strict=True))
    assert fitted(stacked)[:, 0].numpy() == pytest.approx(expected, rel=1e-5)
    assert build_fusion(json.loads(json.dumps(describe(fitted)))) == fitted
    plain = GaussianPool.fit(torch.from_numpy(teachers[:1]), torch.from_numpy(truth))
    assert plain.scales is None  # unless it is asked for


def test_scales_given_and_those_that_cannot_be():
    pool = build_fusion({"use": "gaussian_pool", "weights": [1, 1], "scales": [[2, 1], [1, 0]]})
    assert pool(torch.tensor([[[1.0]], [[5.0]]])).item() == 4.0
    for wrong in ([[1]], [[0, 1], [1, 0]], [[1, float("nan")]], []):
        with pytest.raises(ConfigurationError, match="scales are"):
            GaussianPool(scales=wrong)
    with pytest.raises(ConfigurationError, match="1 scales for 2 teachers"):
        GaussianPool(scales=[(1, 0)])(torch.zeros(2, 1, 1))
    constant = GaussianPool.fit(torch.ones(1, 9), torch.arange(9.0), scale=True)
    assert constant.scales == ((1.0, 0.0),)


def test_auto_takes_the_scales_only_where_they_help():
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(90, 1, generator=draw)
    other = torch.stack([3 * truth + 1, truth + 0.1 * torch.randn(90, 1, generator=draw)])
    chosen = AutoGaussian().choose(HeldOut(other, truth, None, torch.arange(90)), ["a", "b"])
    assert chosen.fusion.scales[0] == (pytest.approx(1 / 3, rel=1e-3), pytest.approx(-1 / 3, rel=1e-3))
    assert "a × 0.333 − 0.333" in chosen.reason and (chosen.fitted_on % 3 != 0).all()
    few = AutoGaussian().choose(HeldOut(other[:, :9], truth[:9], None, torch.arange(9)), ["a", "b"])
    assert few.fusion == GaussianPool() and "only 9 held-out rows have labels" in few.reason


def test_metrics_against_scipy():
    draw = np.random.default_rng(2)
    said, truth = draw.normal(size=(40, 2)).round(1), draw.normal(size=(40, 2)).round(1)

    def value(name):
        (found,) = compute_metric(load_metric(name), log_probs=said, labels=truth, family=FAMILY).values()
        return found

    each = list(zip(said.T, truth.T, strict=True))
    assert value("pearson") == pytest.approx(np.mean([pearsonr(*pair)[0] for pair in each]))
    assert value("spearman") == pytest.approx(np.mean([spearmanr(*pair)[0] for pair in each]))
    assert value("mse") == pytest.approx(((said - truth) ** 2).mean())
    assert value("mae") == pytest.approx(np.abs(said - truth).mean())
    with pytest.raises(ConfigurationError, match="'accuracy' is for predictions of the family"):
        value("accuracy")
    assert Regression(tolerance=1.0).right(np.array([[1.0, 0.0]]), np.array([[2.0, 1.5]])).tolist() == [False]


# ---- The whole path ----


def settings(folder, **options):
    return DistillationArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no",
        **{"max_steps": 2, "per_device_train_batch_size": 8, **options},
    )  # fmt: skip


def trainer_of(made, folder, **options):
    return MultiTeacherDistillationTrainer(
        **{
            "model": made["student"],
            "teachers": [made["bert"], made["roberta"]],
            "args": settings(folder),
            "train_dataset": score_dataset(24, 0),
            "task": "regression",
            "label_column": "score",
            **options,
        }
    )


def test_training_distils_on_the_student_s_scale(made, tmp_path):
    trainer = trainer_of(
        made, tmp_path, eval_dataset=score_dataset(80, 1), cache_dir=tmp_path / "cache",
        args=settings(tmp_path, max_steps=8, learning_rate=1e-2, logging_steps=1),
    )  # fmt: skip
    assert trainer.student_labels == ("score",)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    trainer.save_model()
    (answer,) = pipeline("text-classification", model=str(tmp_path), device="cpu")("a good film")
    inputs = trainer.processing_class("a good film", return_tensors="pt")
    with torch.no_grad():
        own = trainer.student.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert answer == {"label": "score", "score": pytest.approx(own.logits.item(), abs=1e-5)}
    report = trainer.evaluate_ensemble(score_dataset(30, 2))
    assert {"pearson", "spearman", "mse", "mae"} <= set(report.systems["student"].metrics)
    trainer.create_model_card()
    assert "squared error against the labels" in (tmp_path / "README.md").read_text()


def test_the_loss_is_that_of_the_formulas(made, tmp_path):
    fusion = GaussianPool(weights=(1, 3), scales=((2.0, 1.0), (0.5, 0.0)))
    trainer = trainer_of(made, tmp_path, fusion=fusion, args=settings(tmp_path, label_share=0.25))
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()  # labels have no share of a target that is evaluated
    targets = trainer.teacher_targets(inputs)
    each = [t(inputs["teacher_views"][t.name]).logits for t in trainer.teachers]
    fused = 0.25 * (2 * each[0] + 1) + 0.75 * (0.5 * each[1])
    expected = 0.25 * inputs["labels"] + 0.75 * fused
    assert torch.allclose(targets.log_probs, expected, atol=1e-5)
    first, second = 2 * each[0] + 1, 0.5 * each[1]
    spread = 0.25 * (first - fused) ** 2 + 0.75 * (second - fused) ** 2
    assert torch.allclose(targets.disagreement, spread[:, 0], atol=1e-5)
    outputs = trainer.model(**trainer._student_inputs(inputs))
    terms = trainer.loss_terms(outputs, targets, inputs)
    assert torch.allclose(terms["task"].values, (outputs.logits - inputs["labels"])[:, 0] ** 2)
    assert torch.allclose(terms["distill"].values, (outputs.logits - expected)[:, 0] ** 2, atol=1e-4)


def test_scales_are_part_of_the_plan_the_report_and_the_card(made, tmp_path, capsys):
    fusion = GaussianPool(weights=(1, 3), scales=((2.0, 1.0), (0.5, -3.0)))
    trainer = trainer_of(made, tmp_path, fusion=fusion)
    trainer.train()
    said = "bert × 2 + 1; roberta × 0.5 − 3"
    assert f"On the student's scale: {said}." in " ".join(capsys.readouterr().out.split())
    report = trainer.evaluate_ensemble(score_dataset(20, 2))
    assert any(f"gaussian_pool as given ({said})" in note for note in report.notes)
    trainer.save_model()
    trainer.create_model_card()
    assert said in (tmp_path / "README.md").read_text()


def test_rows_without_scores_and_huber(made, tmp_path):
    rows = score_dataset(16, 0)
    rows = rows.map(lambda row, i: {"score": None if i % 2 else row["score"]}, with_indices=True)
    trainer = trainer_of(made, tmp_path, train_dataset=rows, distillation_loss={"use": "huber", "delta": 0.5})
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_the_ensemble_gives_numbers(made):
    teachers = [Teacher.from_pretrained(made[name], task=TASK) for name in ("bert", "roberta")]
    (answer,) = Ensemble(teachers, GaussianPool(weights=(1, 1)), ["score"], task=TASK)("a good film")
    assert answer["label"] == "score" and np.isfinite(answer["score"])


def test_what_does_not_fit_is_refused(made, bert_tokenizer, tmp_path):
    for options, said in (
        ({"fusion": "log_pool"}, "family categorical, but regression is gaussian"),
        ({"distillation_loss": "jsd"}, "take gaussian_mse or huber"),
        ({"args": settings(tmp_path, class_weights="balanced")}, "class_weights are for classes"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            trainer_of(made, tmp_path, **options)
    several = make_bert(bert_tokenizer, ["ease", "tone"], problem_type="regression")
    other = Teacher(several, bert_tokenizer, name="two", task=TASK)
    with pytest.raises(DataError, match="'two'"):
        trainer_of(made, tmp_path, teachers=[other])
    classes = make_bert(bert_tokenizer, ["a", "b"], problem_type="single_label_classification")
    with pytest.raises(DataError, match="its head is for another task"):
        Teacher(classes, bert_tokenizer, name="c", task=TASK)


def test_several_scores_are_matched_by_name(bert_tokenizer, tmp_path):
    one = make_bert(bert_tokenizer, ["tone", "ease"], problem_type="regression")
    two = make_bert(bert_tokenizer, ["ease", "tone"], seed=2, problem_type="regression")
    student = make_bert(bert_tokenizer, ["ease", "tone"], seed=3, problem_type="regression")
    rows = datasets.Dataset.from_list(
        [
            {"text": row["text"], "label": {"ease": row["score"], "tone": -row["score"]}}
            for row in several_rows(12, 0)
        ]
    )
    trainer = MultiTeacherDistillationTrainer(
        model=student,
        teachers=[
            Teacher(model, bert_tokenizer, name=name, task=TASK)
            for name, model in (("one", one), ("two", two))
        ],
        args=settings(tmp_path),
        train_dataset=rows,
        processing_class=bert_tokenizer,
        task=TASK,
    )
    assert [m.columns for m in trainer.teacher_pool.label_maps] == [(1, 0), (0, 1)]
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def recipe(folder, made, **sections):
    return task_recipe(
        folder, made, "regression", "score", validation=80, data={"label_column": "score"}, **sections
    )


def test_the_whole_path_of_a_recipe(made, tmp_path):
    path = recipe(tmp_path, made)
    run = CliRunner().invoke(app, ["validate", str(path), "--load"])
    assert run.exit_code == 0 and "0 score" in run.output, run.output
    train_recipe(Setup(load_recipe(path)))
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert report["task"] == "regression" and report["claim"]["measure"] == "within"
    assert "within" in report["verdict"] and report["per_class"] == [] and report["reliability"] == {}
    assert {"pearson", "spearman", "mse", "mae", "within", "squared_error"} <= set(
        report["systems"]["student"]["metrics"]
    )
    assert {d["measure"] for d in report["differences"]} == {"within", "squared_error", "absolute_error"}
    assert (out / "report.html").is_file() and report["disagreements"]
    run = CliRunner().invoke(app, ["evaluate", str(out / "recipe.yaml")])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["card", str(out)])
    assert run.exit_code == 0, run.output
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    told = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert told["spearman"] == pytest.approx(report["systems"]["student"]["metrics"]["spearman"])
    other = tmp_path / "other"
    other.mkdir()
    train_recipe(
        Setup(load_recipe(path, [f"training.output_dir={other / 'out'}", "training.learning_rate=0.001"]))
    )
    compared = compare_runs([out, other / "out"])
    assert "within" in compared.sentences[0]
    report = evaluate_ensemble(
        [made["bert"]], score_dataset(10, 3), student=str(out), task=TASK, label_column="score"
    )
    assert set(report.systems["student"].metrics) == {"pearson", "spearman", "mse", "mae"}


def test_a_wrong_score_ends_with_3(made, tmp_path):
    path = recipe(tmp_path, made)
    (tmp_path / "train.jsonl").write_text('{"text": "a good film", "score": "high"}\n')
    run = CliRunner().invoke(app, ["train", str(path)])
    assert run.exit_code == 3 and "found 'high', expected a number" in run.output


@pytest.mark.slow
def test_a_student_of_the_best_single_teacher_is_judged_too(made, tmp_path):
    train_recipe(Setup(load_recipe(recipe(tmp_path, made, evaluation={"seeds": 1, "single_teacher": True}))))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    single = [name for name in report["systems"] if name.startswith("student of ")]
    assert single and "mse" in report["systems"][single[0]]["metrics"]


@pytest.mark.slow
def test_a_search_chooses_by_the_squared_error_and_an_export_answers_alike(made, tmp_path):
    path = recipe(tmp_path, made)
    run = CliRunner().invoke(
        app, ["search", str(path), "--trials", "2", "--output", str(tmp_path / "search")]
    )
    assert run.exit_code == 0 and "mse" in (tmp_path / "search" / "search.md").read_text(), run.output
    train_recipe(Setup(load_recipe(path)))
    run = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--format", "onnx"])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "out" / "onnx" / "export.json").read_text())
    assert report["agreement"] == 1.0 and "spearman" in report["systems"]["onnx"]["metrics"]
    assert report["max_difference"] < 1e-4


def test_an_audit_says_what_teachers_of_scores_are_worth(made, tmp_path):
    run = CliRunner().invoke(app, ["audit", str(recipe(tmp_path, made)), "--output", str(tmp_path / "audit")])
    assert run.exit_code == 0 and "Pearson" in run.output, run.output
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [teacher["name"] for teacher in audit["teachers"]] == ["bert", "roberta"]
    assert audit["teachers"][0]["cost"]["rows_per_second"] > 0 and audit["labels"] == ["score"]


def test_a_student_is_made_of_a_teacher_s_layers(made, tmp_path):
    path = recipe(tmp_path, made, student={"from_teacher": "bert", "layers": 1})
    model, _ = Setup(load_recipe(path)).student(seed=0)
    assert model.config.num_hidden_layers == 1 and model.config.id2label == {0: "score"}
