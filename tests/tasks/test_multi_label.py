"""Several labels per row: read from what people write, trained, judged, exported and asked, through one path."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from several_labels import LABELS, label_checkpoints, label_dataset, several_rows, task_recipe
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
from hf_distill.fusion import AutoFusion, AutoGaussian
from hf_distill.losses import binary_cross_entropy
from hf_distill.recipe import Setup, load_recipe
from hf_distill.runs.train import train_recipe
from hf_distill.tasks import family_of
from hf_distill.tasks.bernoulli import fitted_thresholds
from hf_distill.tasks.multi_label import joined_labels, several_labels_encoder

TASK, FAMILY = TASKS["multi-label-classification"], family_of("multi-label-classification")
NAN = [pytest.approx(float("nan"), nan_ok=True)] * 3


@pytest.fixture(scope="module")
def made(tmp_path_factory, bert_tokenizer, roberta_tokenizer):
    return label_checkpoints(tmp_path_factory.mktemp("several"), bert_tokenizer, roberta_tokenizer)


def encode(*values, names=("a", "b", "c; d"), feature=None):
    return several_labels_encoder(feature, names, "label")(values, range(len(values)))


# ---- Labels ----


def test_labels_are_lists_text_or_vectors():
    assert encode(["b"], ["A", 2], [], "a", "a, b", "c; d", "[]", '["a", "c; d"]') == [
        [0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1],
    ]  # fmt: skip
    assert encode([0.0, 1.0, 0.5], np.array([1.0, 0.0, 0.0])) == [[0, 1, 0.5], [1, 0, 0]]
    assert encode(None, "", "  ", float("nan"), [float("nan")] * 3) == [NAN] * 5
    classes = datasets.Sequence(datasets.ClassLabel(names=["b", "a", "c; d"]))
    assert encode([0], [1, 2], feature=classes) == [[0, 1, 0], [1, 0, 1]]


def test_a_column_per_label():
    rows = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "a": [1, 0, None], "b": [True, False, None]})
    joined = joined_labels(rows, ["a", "b"])
    assert joined.column_names == ["text", "label"]
    assert TASK.label_names(None, joined, "label", None) == ("a", "b")
    found = encode(*joined["label"][:], names=("b", "a"))
    assert found == [[1, 1], [0, 0], NAN[:2]]
    with pytest.raises(DataError, match=r"no 'c'"):
        joined_labels(rows, ["a", "c"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nobody", "'nobody' is none of the student's labels"),
        ([3], "3 is no id: the 3 labels"),
        (["a", "a"], "names 'a' twice"),
        ([0, 1, 0], "a list of ids or names has each once"),
        ([0.0, 1.0], "has 2 numbers for the 3 labels"),
        ([0.0, 1.0, 2.0], "2.0 is no probability that a label holds"),
        (1.5, "is no list of labels"),
        ("[a", "begins as a list does, but is none"),
        ({"a": 1, "b": None, "c; d": 0}, "says nothing of the label 'b', but of others"),
        ({"a": 1, "b": 1}, "says nothing of the label 'c; d'"),
        ({"a": 1, "b": 1, "x": 1}, "'x' is none of the student's labels"),
        ({"a": "maybe", "b": 1, "c; d": 0}, "says nothing of the label 'a': expected 1 or 0"),
    ],
)
def test_what_is_no_label_is_said_with_its_row(value, said):
    with pytest.raises(DataError) as raised:
        encode(["a"], value)
    assert "Row 1" in str(raised.value) and said in str(raised.value)


def test_names_come_from_the_column_and_ids_need_some():
    rows = datasets.Dataset.from_dict({"label": ["b; a", None, "c"]})
    assert TASK.label_names(None, rows, "label", None) == ("a", "b", "c")
    with pytest.raises(DataError, match="Nothing names the student's labels"):
        TASK.label_names(None, datasets.Dataset.from_dict({"label": [[0, 1]]}), "label", None)


# ---- Numbers ----


def test_thresholds_by_hand():
    odds = np.log([[0.1 / 0.9], [0.3 / 0.7], [0.2 / 0.8], [0.05 / 0.95]])
    # 0.3 and 0.2 hold: the best cut is half-way between 0.2 and 0.1
    assert fitted_thresholds(odds, np.array([[0], [1], [1], [0]])) == (0.15,)
    assert fitted_thresholds(odds, np.zeros((4, 1))) == (0.5,)
    sure = np.array([[3.0], [-3.0]])
    assert fitted_thresholds(sure, np.array([[1], [0]])) == (0.5,)  # nothing does better


def test_scores_temperature_and_distance_by_hand():
    odds = np.log(np.array([[0.7 / 0.3, 0.2 / 0.8]]))
    f1, nll, brier = FAMILY.scores(odds, np.array([[1.0, 0.0]]))
    assert f1.tolist() == [0.5]  # the label that neither has counts 0, as in scikit-learn
    assert nll == pytest.approx([-np.log(0.7) - np.log(0.8)]) and brier == pytest.approx([0.09 + 0.04])
    assert TASK.right(odds, np.array([[1, 0]])).tolist() == [True]
    assert TASK.right(odds, np.array([[1, 1]])).tolist() == [False]
    target = np.log(np.array([[0.8 / 0.2, 0.2 / 0.8]]))
    # KL(0.8 ‖ 0.7) as of two classes, and 0
    assert FAMILY.apart(target, odds) == pytest.approx([0.8 * np.log(8 / 7) + 0.2 * np.log(2 / 3)])
    generator = np.random.default_rng(0)
    z = generator.normal(size=(4000, 2)) * 2
    labels = (generator.random(z.shape) < 1 / (1 + np.exp(-z))).astype(float)
    assert FAMILY.temperature(3 * z, labels) == pytest.approx(3, rel=0.1)


def test_a_label_that_is_a_probability_counts_as_what_is_likelier():
    generator = np.random.default_rng(0)
    odds = generator.normal(size=(60, 3))
    soft = generator.random((60, 3))
    hard = (soft > 0.5).astype(float)
    assert TASK.right(odds, soft).tolist() == TASK.right(odds, hard).tolist()
    assert TASK.right(odds, soft).mean() == compute_metric(
        load_metric("accuracy"), log_probs=odds, labels=soft, family=FAMILY
    )["accuracy"]  # fmt: skip
    for of in (
        FAMILY.scores,
        FAMILY.temperature,
        fitted_thresholds,
        lambda _, y: FAMILY.holds(y, 1),
        lambda _, y: FAMILY.balanced(y, 3),
        lambda _, y: [FAMILY.told_label(row, LABELS) for row in y],
        lambda _, y: FAMILY.of_fits(torch.tensor(y)).numpy(),
    ):
        assert np.array_equal(of(odds, soft), of(odds, hard))


def test_metrics_against_scikit_learn():
    from sklearn.metrics import f1_score, log_loss

    generator = np.random.default_rng(1)
    z, labels = generator.normal(size=(50, 4)), generator.integers(2, size=(50, 4)).astype(float)

    def value(name):
        (found,) = compute_metric(load_metric(name), log_probs=z, labels=labels, family=FAMILY).values()
        return found

    assert value("f1") == pytest.approx(f1_score(labels, z > 0, average="macro"))
    assert value("f1_micro") == pytest.approx(f1_score(labels, z > 0, average="micro"))
    assert value("accuracy") == pytest.approx(((z > 0) == labels).all(1).mean())
    assert value("label_nll") == pytest.approx(log_loss(labels.ravel(), 1 / (1 + np.exp(-z.ravel()))))
    with pytest.raises(ConfigurationError, match="'ece' is for predictions of the family categorical"):
        value("ece")


def test_the_disagreement_is_that_of_two_classes_label_by_label():
    from hf_distill.fusion import teacher_disagreement

    z = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(0))
    two = torch.cat([torch.zeros_like(z), z], -1)
    for weights in (None, (0.2, 0.3, 0.5)):
        own = FAMILY.disagreement(z, temperature=2.0, weights=weights)
        assert torch.allclose(own, teacher_disagreement(two, temperature=2.0, weights=weights), atol=1e-5)


# ---- The whole path ----


def settings(folder, **options):
    return DistillationArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no",
        **{"max_steps": 2, "per_device_train_batch_size": 8, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = MultiTeacherDistillationTrainer(
        model=made["student"],
        teachers=[made["bert"], made["roberta"]],
        args=settings(folder, max_steps=6, learning_rate=1e-2, logging_steps=1),
        train_dataset=label_dataset(48, 0),
        eval_dataset=label_dataset(64, 1),
        task="multi-label-classification",
        cache_dir=folder / "cache",
    )
    trainer.train()
    trainer.save_model()
    return trainer, folder


def test_training_matches_by_name_fuses_and_keeps_thresholds(trained, made):
    trainer, folder = trained
    assert trainer.student_labels == LABELS
    assert [m.columns for m in trainer.teacher_pool.label_maps] == [(1, 0, 2), (0, 1, None)]
    assert "bernoulli" in trainer.fusion_choice.reason
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    config = json.loads((folder / "config.json").read_text())
    assert len(config["thresholds"]) == 3 and config["problem_type"] == "multi_label_classification"
    answers = pipeline("text-classification", model=str(folder), device="cpu")("a good film", top_k=None)
    assert {answer["label"] for answer in answers} == set(LABELS)
    assert sum(answer["score"] for answer in answers) != pytest.approx(1)  # each label alone
    facts = json.loads((folder / "distillation.json").read_text())
    assert facts["thresholds"] == pytest.approx(config["thresholds"])
    trainer.create_model_card()
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "Each label is answered from a probability" in card


def test_the_loss_is_that_of_the_formulas(made, tmp_path):
    teachers = [Teacher.from_pretrained(made["bert"], task="multi-label-classification")]
    trainer = MultiTeacherDistillationTrainer(
        model=made["student"],
        teachers=teachers,
        args=settings(tmp_path, temperature=2.0),
        train_dataset=label_dataset(8, 0),
        task=TASK,
        fusion="bernoulli_linear_pool",
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    z = outputs["logits"].double()
    t = teachers[0](inputs["teacher_views"]["bert"]).logits.double()[:, [1, 0, 2]] / 2
    y = inputs["labels"].double()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    task = bce(z, y, reduction="none").sum(-1).mean()
    p = t.sigmoid()
    distill = 4 * (bce(z / 2, p, reduction="none") - bce(t, p, reduction="none")).sum(-1).mean()
    assert loss.item() == pytest.approx((0.5 * task + 0.5 * distill).item(), rel=1e-5)


def test_a_label_that_no_teacher_has_is_learnt_from_labels_alone(made, tmp_path):
    trainer = MultiTeacherDistillationTrainer(
        model=made["student"],
        teachers=[made["roberta"]],
        args=settings(tmp_path, task_weight=0.0, distill_weight=1.0),
        train_dataset=label_dataset(8, 0),
        task=TASK,
    )
    trainer.model.eval()
    inputs = next(iter(trainer.get_train_dataloader()))
    outputs = trainer.model(**trainer._student_inputs(inputs))
    outputs.logits.retain_grad()
    terms = trainer.loss_terms(outputs, trainer.teacher_targets(inputs), inputs)
    terms["distill"].values.sum().backward()
    gradient = outputs.logits.grad
    assert gradient.isfinite().all() and (gradient[:, 2] == 0).all() and (gradient[:, :2] != 0).any()


def test_rows_without_labels_teach_by_the_teachers_alone_and_accumulation_changes_nothing(made, tmp_path):
    rows = several_rows(8, 0)
    features = label_dataset(1, 0).features
    given = [{"text": r["text"], "label": None if i % 3 == 0 else r["label"]} for i, r in enumerate(rows)]
    dataset = datasets.Dataset.from_list(given, features=features)

    def gradient(batch, accumulation):
        trainer = MultiTeacherDistillationTrainer(
            model=made["student"],
            teachers=[made["bert"]],
            args=settings(
                tmp_path, max_steps=1, per_device_train_batch_size=batch, learning_rate=0.1, optim="sgd",
                gradient_accumulation_steps=accumulation, max_grad_norm=0.0, train_sampling_strategy="sequential",
            ),
            train_dataset=dataset,
            task=TASK,
        )  # fmt: skip
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])

    assert torch.allclose(gradient(8, 1), gradient(2, 4), atol=1e-6)


def test_soft_targets_class_weights_and_label_share(made, tmp_path):
    trainer = MultiTeacherDistillationTrainer(
        model=made["student"],
        teachers=[made["bert"], made["roberta"]],
        args=settings(tmp_path, class_weights="balanced", label_share=0.3),
        train_dataset=label_dataset(40, 0),
        task=TASK,
    )
    labels = np.array(trainer.train_dataset["labels"][:])
    assert trainer.class_weights == pytest.approx((1 - labels.mean(0)) / labels.mean(0), rel=1e-4)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert "classes count" in trainer.training_notes[0]


def test_the_ensemble_answers_each_label_alone(made):
    ensemble = Ensemble([made["bert"], made["roberta"]], label_names=LABELS, task=TASK)
    answers = ensemble("a good film", top_k=None)[0]
    assert {answer["label"] for answer in answers} == set(LABELS)
    assert all(0 < answer["score"] < 1 for answer in answers)


def test_a_label_that_no_teacher_has_is_answered_by_none(made, tmp_path):
    ensemble = Ensemble([made["roberta"]], label_names=LABELS, task=TASK)  # it has no "long"
    answers = ensemble("a good film", top_k=None)[0]
    assert answers[-1] == {"label": "long", "score": 0.0} and answers[0]["label"] != "long"
    assert ensemble.log_probs(["a good film"])[0, 2] == -np.inf
    rows = label_dataset(20, 1)
    trainer = MultiTeacherDistillationTrainer(
        model=made["student"], teachers=[made["roberta"]], args=settings(tmp_path), train_dataset=rows,
        eval_dataset=rows.filter(lambda row: "long" not in row["label"]), fusion="bernoulli_linear_pool", task=TASK,
    )  # fmt: skip
    found = trainer.evaluate()
    assert np.isfinite(found["eval_loss_ensemble"]) and np.isfinite(found["eval_loss_distill"])
    sure = binary_cross_entropy(torch.tensor([[-torch.inf]] * 2), torch.tensor([[0.0], [1.0]]))
    assert sure.tolist() == [0.0, np.inf]


def test_evaluation_compares_student_teachers_and_ensemble(made, trained):
    _, folder = trained
    report = evaluate_ensemble(
        [made["bert"], made["roberta"]], label_dataset(20, 2), student=str(folder), task=TASK
    )
    assert set(report.systems) == {
        "student", "ensemble", "student+teachers", "teacher:bert", "teacher:roberta",
    }  # fmt: skip
    for system in report.systems.values():
        assert {"f1", "f1_micro", "accuracy", "label_nll", "label_brier"} <= set(system.metrics)
    assert "bernoulli_linear_pool()" in str(report)


# ---- What does not fit ----


def test_what_does_not_fit_is_refused(made, checkpoints, bert_tokenizer, tmp_path):
    def trainer(**options):
        return MultiTeacherDistillationTrainer(
            **{
                "model": made["student"], "teachers": [made["bert"]], "args": settings(tmp_path),
                "train_dataset": label_dataset(8, 0), "task": TASK, **options,
            }
        )  # fmt: skip

    with pytest.raises(ConfigurationError, match="LinearPool is for predictions of the family categorical"):
        trainer(fusion="linear_pool")
    with pytest.raises(ConfigurationError, match="AutoFusion is for predictions of the family categorical"):
        trainer(fusion=AutoFusion())
    with pytest.raises(ConfigurationError, match="AutoGaussian is for predictions of the family gaussian"):
        trainer(fusion=AutoGaussian())
    with pytest.raises(ConfigurationError, match="family categorical, but multi-label.* take bernoulli_kl"):
        trainer(distillation_loss="forward_kl")
    with pytest.raises(ConfigurationError, match="family bernoulli, but text-classification"):
        MultiTeacherDistillationTrainer(
            model=checkpoints["student"], teachers=[checkpoints["bert"]], args=settings(tmp_path),
            distillation_loss="bernoulli_kl", label_names=["negative", "positive"],
            train_dataset=datasets.Dataset.from_dict({"text": ["a"], "label": [0]}),
        )  # fmt: skip
    single = make_bert(bert_tokenizer, list(LABELS), problem_type="single_label_classification")
    with pytest.raises(DataError, match="its head is for another task"):
        trainer(teachers=[Teacher(single, bert_tokenizer, name="one", task=TASK)])
    with pytest.raises(DataError, match="so it has nothing to teach"):
        trainer(
            teachers=[Teacher(make_bert(bert_tokenizer, ["x", "y"]), bert_tokenizer, name="x", task=TASK)]
        )


# ---- A recipe, from validate to export ----


def recipe(folder, made, **sections):
    return task_recipe(
        folder,
        made,
        "multi-label-classification",
        "label",
        validation=64,
        data={"label_names": list(LABELS)},
        **sections,
    )


def test_a_recipe_is_checked_for_its_family(made, tmp_path):
    path = recipe(tmp_path, made, fusion="log_pool", losses={"row_weight": "student_entropy"})
    with pytest.raises(ConfigurationError) as raised:
        load_recipe(path)
    assert "fusion: The fusion LogPool is for predictions of the family categorical" in str(raised.value)
    assert "losses.row_weight: it compares distributions over classes" in str(raised.value)
    assert load_recipe(recipe(tmp_path, made)).losses.distill == "bernoulli_kl"


def test_the_whole_path_of_a_recipe(made, tmp_path):
    path = recipe(tmp_path, made)
    run = CliRunner().invoke(app, ["validate", str(path), "--load"])
    assert run.exit_code == 0 and "2 long " in run.output, run.output
    train_recipe(Setup(load_recipe(path)))
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert report["task"] == "multi-label-classification" and report["claim"]["measure"] == "accuracy"
    assert {"student", "fine-tuned, last step", "ensemble", "teacher:bert"} <= set(report["systems"])
    assert {"f1", "accuracy", "nll", "brier"} <= set(report["systems"]["student"]["metrics"])
    assert [group["name"] for group in report["per_class"]] == list(LABELS)
    assert {d["measure"] for d in report["differences"]} == {"accuracy", "f1", "nll", "brier"}
    macro = [d for d in report["differences"] if d["measure"] == "f1"]
    for one in macro:
        first, second = (report["systems"][one[k]]["metrics"]["f1"] for k in ("first", "second"))
        assert one["value"]["value"] == pytest.approx(first - second, abs=1e-9)
        assert one["value"]["low"] <= one["value"]["value"] <= one["value"]["high"]
    assert "student, calibrated" in report["systems"] and report["disagreements"]
    run = CliRunner().invoke(app, ["evaluate", str(out / "recipe.yaml")])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["audit", str(path), "--output", str(tmp_path / "audit")])
    assert run.exit_code == 0 and "Each (row, label) pair is asked alone" in run.output, run.output
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert audit["rows"] == 2 * 64 and audit["labels"] == ["not so", "it holds"]  # "long" is not everybody's
    run = CliRunner().invoke(app, ["card", str(out)])
    assert run.exit_code == 0, run.output
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification" and "thresholds" in card.text
    told = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert told["f1"] == pytest.approx(report["systems"]["student"]["metrics"]["f1"])
    assert {one.task_type for one in card.data.eval_results} == {"text-classification"}


def test_a_wrong_label_ends_with_3(made, tmp_path):
    path = recipe(tmp_path, made)
    (tmp_path / "train.jsonl").write_text('{"text": "a good film", "label": ["nobody"]}\n')
    run = CliRunner().invoke(app, ["train", str(path)])
    assert run.exit_code == 3 and "'nobody' is none of the student's labels" in run.output


@pytest.mark.slow
def test_a_student_of_the_best_single_teacher_is_judged_too(made, tmp_path):
    train_recipe(Setup(load_recipe(recipe(tmp_path, made, evaluation={"seeds": 1, "single_teacher": True}))))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any(name.startswith("student of ") for name in report["systems"])


@pytest.mark.slow
def test_a_search_chooses_by_the_label_s_likelihood_and_an_export_answers_alike(made, tmp_path):
    path = recipe(tmp_path, made)
    run = CliRunner().invoke(
        app, ["search", str(path), "--trials", "2", "--output", str(tmp_path / "search")]
    )
    assert run.exit_code == 0 and "label_nll" in (tmp_path / "search" / "search.md").read_text(), run.output
    assert "bernoulli" in (tmp_path / "search" / "search.md").read_text()
    train_recipe(Setup(load_recipe(path)))
    run = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--format", "onnx"])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "out" / "onnx" / "export.json").read_text())
    assert report["agreement"] == 1.0 and "f1" in report["systems"]["onnx"]["metrics"]
    assert report["max_difference"] < 1e-4
    verdict = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "student, onnx" in verdict["systems"]
