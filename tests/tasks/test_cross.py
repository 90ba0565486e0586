"""Classifiers and regressors teach one student: one alignment, one fusion of the student's family, the whole path."""

from __future__ import annotations

import json
import math
from html import unescape

import datasets
import numpy as np
import pytest
import torch
import yaml
from several_labels import CLASSES, class_dataset, cross_checkpoints, score_dataset, task_recipe
from torch import nn
from typer.testing import CliRunner

from conftest import make_bert, make_roberta, make_student
from hf_distill import (
    DistillationArguments,
    Ensemble,
    MultiTeacherDistillationTrainer,
    Teacher,
    audit_teachers,
    evaluate_ensemble,
)
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion import GaussianPool
from hf_distill.fusion.alignment import TeacherOutputs
from hf_distill.recipe import Setup, load_recipe
from hf_distill.runs.train import train_recipe
from hf_distill.teachers.cache.build import TeacherCache
from hf_distill.teachers.held_out import load_choice
from hf_distill.teachers.teacher import TeacherSpec


@pytest.fixture(scope="module")
def made(tmp_path_factory, bert_tokenizer, roberta_tokenizer):
    return cross_checkpoints(tmp_path_factory.mktemp("cross"), bert_tokenizer, roberta_tokenizer)


def dataset(count, seed, *, classes):
    rows = class_dataset(count, seed)
    return rows if classes else score_dataset(count, seed).rename_column("score", "label")


def settings(folder, **options):
    return DistillationArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none",
        **{"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no", **options},
    )  # fmt: skip


def trainer_of(made, folder, teachers, *, classes, **options):
    return MultiTeacherDistillationTrainer(
        **{
            "model": made["student" if classes else "scores"],
            "teachers": teachers,
            "args": settings(folder),
            "train_dataset": dataset(24, 0, classes=classes),
            "task": "text-classification" if classes else "regression",
            "label_names": CLASSES if classes else ("score",),
            **options,
        }
    )


def classifier(made, **options):
    return TeacherSpec(made["bert"], task="text-classification", **options)


def regressor(made, **options):
    return TeacherSpec(made["roberta"], task="regression", **options)


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_a_student_of_classes_learns_from_both(made, tmp_path, capsys, cached):
    trainer = trainer_of(
        made, tmp_path, [classifier(made), regressor(made)], classes=True, eval_dataset=dataset(90, 1, classes=True),
        **({"cache_dir": tmp_path / "cache"} if cached else {}),
    )  # fmt: skip
    (rule,) = trainer.teacher_pool.conversions
    ids = trainer.eval_dataset["example_id"][:]
    two_thirds = [i for i, own in enumerate(ids) if own % 3 != 0]
    assert rule.rows == len(two_thirds) and set(trainer.fusion_choice.fitted_on.tolist()) == {
        ids[i] for i in two_thirds
    }
    # By hand: as many scores below each edge as labels.
    live = Teacher.from_pretrained(made["roberta"], task="regression")
    texts = [dataset(90, 1, classes=True)["text"][i] for i in two_thirds]
    truth = [int(dataset(90, 1, classes=True)["label"][i]) for i in two_thirds]
    with torch.no_grad():
        scores = sorted(
            live.model(**live.view.tokenizer(text, return_tensors="pt")).logits.item() for text in texts
        )
    below = [sum(label <= c for label in truth) for c in (1, 2, 3)]
    expected = [(scores[n - 1] + scores[n]) / 2 for n in below]
    assert rule.edges == pytest.approx(expected, abs=2e-3 if cached else 1e-5)
    trainer.train()
    printed = capsys.readouterr().out
    assert "by name, or converted" in printed and "is binned into the classes 1 < 2 < 3 < 4" in " ".join(
        printed.split()
    )
    trainer.save_model()
    assert load_choice(tmp_path).conversions == (rule,)
    trainer.create_model_card()
    card = unescape((tmp_path / "README.md").read_text())
    assert "is binned into the classes 1 < 2 < 3 < 4" in card and "McCullagh" in card
    report = trainer.evaluate_ensemble(dataset(20, 2, classes=True))
    assert any("is binned into the classes" in note for note in report.notes)
    assert report.systems["teacher:roberta"].metrics["accuracy"] >= 0
    if cached:  # the cache holds the score itself, and serves a student of scores too
        assert trainer.teachers[1].label_names == ("stars",)
        cache = TeacherCache([made["roberta"]], tmp_path / "cache", task="regression")
        assert cache.add(dataset(24, 0, classes=True), ("text",)) == 0


def test_a_student_of_scores_learns_from_both(made, tmp_path, capsys):
    trainer = trainer_of(
        made, tmp_path, [classifier(made), regressor(made)], classes=False, eval_dataset=dataset(90, 1, classes=False)
    )  # fmt: skip
    (rule,) = trainer.teacher_pool.conversions
    assert rule.teacher_labels == ("4", "2", "1", "3") and rule.rows > 50
    trainer.train()
    assert "whose expected score is Σ p × mean" in " ".join(capsys.readouterr().out.split())
    inputs = next(iter(trainer.get_train_dataloader()))
    said = trainer.teacher_pool(inputs).logits
    own = [t(inputs["teacher_views"][t.name]).logits for t in trainer.teachers]
    assert torch.allclose(said[0], own[0].softmax(-1) @ torch.tensor(rule.means), atol=1e-6)
    assert torch.equal(said[1], own[1])


def test_a_regressor_is_the_classifier_whose_logit_is_its_distance_from_the_edge(
    made, tmp_path, bert_tokenizer, roberta_tokenizer
):
    """With two classes σ((score − edge) / spread) is the classifier with the head [0, w / spread], [0, (b − edge) / spread]."""
    edge, spread = 0.02, 0.05
    scorer = make_bert(bert_tokenizer, ["LABEL_0"], problem_type="regression")
    same = make_bert(bert_tokenizer, ["low", "high"], problem_type="single_label_classification")
    state = {key: value.clone() for key, value in scorer.state_dict().items() if "classifier" not in key}
    same.load_state_dict(state, strict=False)
    with torch.no_grad():
        same.classifier.weight.copy_(
            torch.cat([torch.zeros_like(scorer.classifier.weight), scorer.classifier.weight / spread])
        )
        same.classifier.bias.copy_(torch.tensor([0.0, (scorer.classifier.bias.item() - edge) / spread]))
    names = {"label_names": ("low", "high")}
    convert = {"edges": [edge], "spread": spread, "order": ["low", "high"]}
    other = Teacher(make_roberta(roberta_tokenizer, ["low", "high"]), roberta_tokenizer, name="other")
    rows = dataset(24, 0, classes=True).map(lambda row: {"label": "high" if row["label"] > "2" else "low"})
    found = []
    for teacher in (
        Teacher(scorer, bert_tokenizer, name="t", task="regression", convert=convert),
        Teacher(same, bert_tokenizer, name="t"),
    ):
        trainer = trainer_of(
            made, tmp_path / str(len(found)), [teacher, other], classes=True, train_dataset=rows, fusion="log_pool",
            model=make_student(bert_tokenizer, ["low", "high"]), processing_class=bert_tokenizer,
            args=settings(tmp_path, max_steps=4, learning_rate=1e-3), **names,
        )  # fmt: skip
        trainer.train()
        report = trainer.evaluate_ensemble(rows)
        found.append((nn.utils.parameters_to_vector(trainer.student.parameters()), report.systems))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    for name, system in found[0][1].items():
        assert system.metrics == pytest.approx(found[1][1][name].metrics, abs=1e-4), name


def test_a_converted_classifier_is_a_teacher_that_says_the_expected_score(made, tmp_path):
    """A source of one's own that answers Σ p_c m_c itself trains the same student, to the bit."""
    means = {"1": 1.25, "2": 2.25, "3": 3.25, "4": 4.25}

    class Expected:
        name, label_names = "bert", ("score",)

        def __init__(self):
            self.inner = Teacher.from_pretrained(made["bert"])
            self.view = self.inner.view

        def __call__(self, view, example_id):
            said = self.inner(view).logits.softmax(-1)
            return TeacherOutputs(said @ torch.tensor([[means[name]] for name in self.inner.label_names]))

    found = []
    for teacher in (Teacher.from_pretrained(made["bert"], convert={"means": means}), Expected()):
        trainer = trainer_of(
            made, tmp_path / str(len(found)), [teacher, made["roberta"]], classes=False, fusion=GaussianPool((0.75, 0.25)),
            args=settings(tmp_path, max_steps=4, learning_rate=1e-3),
        )  # fmt: skip
        trainer.train()
        found.append(nn.utils.parameters_to_vector(trainer.student.parameters()))
    assert torch.equal(found[0], found[1])


def test_what_cannot_be_converted_is_refused_in_a_sentence(made, tmp_path, bert_tokenizer):
    both = [classifier(made), regressor(made)]
    with pytest.raises(ConfigurationError, match="'roberta': the edges .* but no evaluation rows were given"):
        trainer_of(made, tmp_path, both, classes=True)
    with pytest.raises(
        ConfigurationError, match="'bert': the score .* but the evaluation rows have no labels"
    ):
        blank = dataset(9, 1, classes=False).map(lambda row: {"label": None})
        blank = blank.cast_column("label", datasets.Value("float64"))
        trainer_of(made, tmp_path, both, classes=False, eval_dataset=blank)
    words = {"label_names": ("low", "mid", "high", "top"), "train_dataset": dataset(24, 0, classes=True).remove_columns("label"),
             "args": settings(tmp_path, task_weight=0.0), "model": make_student(bert_tokenizer, ["low", "mid", "high", "top"]),
             "processing_class": bert_tokenizer}  # fmt: skip
    with pytest.raises(DataError, match="nothing says which of the student's classes"):
        trainer_of(made, tmp_path, [regressor(made)], classes=True, **words)
    with pytest.raises(ConfigurationError, match="no rule by which its labels become the scores"):
        spec = TeacherSpec(made["bert"], task="multi-label-classification")
        trainer_of(made, tmp_path, [spec], classes=False)
    with pytest.raises(ConfigurationError, match="which are matched by name: leave it out"):
        trainer_of(made, tmp_path, [TeacherSpec(made["bert"], convert={"means": {}})], classes=True)
    with pytest.raises(DataError, match="nothing has fitted that yet"):
        evaluate_ensemble(
            [Teacher.from_pretrained(made["roberta"], task="regression")],
            dataset(9, 1, classes=True),
            label_names=CLASSES,
        )


def test_ensemble_and_evaluation_convert_as_the_training_did(made, tmp_path):
    given = {"edges": [1.5, 2.5, 3.5], "spread": 0.4}
    teachers = [
        Teacher.from_pretrained(made["bert"]),
        Teacher.from_pretrained(made["roberta"], task="regression", convert=given),
    ]
    answer = Ensemble(teachers, "linear_pool", CLASSES)("a good film", top_k=None)
    assert sum(one["score"] for one in answer[0]) == pytest.approx(1.0, abs=1e-5)
    report = evaluate_ensemble(teachers, dataset(20, 2, classes=True), label_names=CLASSES)
    assert any("edges 1.5, 2.5, 3.5 (given), spread 0.4 (given)" in note for note in report.notes)
    audit = audit_teachers(
        [classifier(made), regressor(made)], dataset(90, 1, classes=True), label_names=CLASSES
    )
    assert "is binned into the classes" in audit.alignment and audit.teachers[1].name == "roberta"


def recipe(folder, made, *, classes, **sections):
    path = task_recipe(
        folder, {**made, "student": made["student" if classes else "scores"]},
        "text-classification" if classes else "regression", "score", validation=90,
        data={"label_column": "score", **({"label_names": list(CLASSES)} if classes else {})},
        teachers={
            "models": [
                {"model": made["bert"], "task": "text-classification"},
                {"model": made["roberta"], "task": "regression"},
            ],
            "cache_dir": str(folder / "cache"),
        },
        **sections,
    )  # fmt: skip
    if classes:
        for split in ("train", "validation", "test"):
            rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
            lines = [json.dumps({"text": r["text"], "score": str(math.floor(r["score"]))}) for r in rows]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "classes", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["classes", "scores"]
)
def test_the_whole_path_of_a_recipe(made, tmp_path, classes):
    path = recipe(tmp_path, made, classes=classes)
    run = CliRunner().invoke(app, ["validate", str(path), "--load"])
    said = "to be fitted" if not classes else "quantiles of held-out scores"
    assert run.exit_code == 0 and said in " ".join(run.output.split()), run.output
    train_recipe(Setup(load_recipe(path)))
    out = tmp_path / "out"
    rule = "is binned into the classes 1 < 2 < 3 < 4" if classes else "whose expected score is Σ p × mean"
    report = json.loads((out / "report.json").read_text())
    assert any(rule in note for note in report["notes"])
    assert {"student", "ensemble", "teacher:bert", "teacher:roberta"} <= set(report["systems"])
    run = CliRunner().invoke(app, ["card", str(out)])
    assert run.exit_code == 0, run.output
    assert rule in unescape((out / "README.md").read_text())
    assert json.loads((out / "fusion.json").read_text())["conversions"]
    again = yaml.safe_load((out / "recipe.yaml").read_text())["teachers"]["models"]
    assert [entry["task"] for entry in again] == ["text-classification", "regression"]
    run = CliRunner().invoke(app, ["evaluate", str(out / "recipe.yaml")])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["predict", str(out), "--text", "a good film", "--with-teachers"])
    assert run.exit_code == 0 and "roberta" in run.output, run.output


def test_a_recipe_s_conversions_are_checked_before_anything_is_loaded(made, tmp_path):
    path = recipe(tmp_path, made, classes=True)
    wrong = {
        "teachers.models.1.convert={edges: [3, 1, 2]}": "each must be above the one before it",
        "teachers.models.1.convert={edge: [1]}": "teachers.models.1.convert.edge",
        "teachers.models.1.convert={means: {a: 1}}": "no option 'means' here",
        "teachers.models.0.convert={edges: quantiles}": "matched by name: leave it out",
        "teachers.models.1.task=regresion": "did you mean 'regression'",
        "teachers.models.1.task=multi-label-classification": "no rule by which its labels become the classes",
    }
    for override, said in wrong.items():
        run = CliRunner().invoke(app, ["validate", str(path), override])
        assert run.exit_code == 2 and said in " ".join(run.output.split()), (override, run.output)
    run = CliRunner().invoke(
        app, ["validate", str(path), "--load", "teachers.models.1.convert={edges: [1, 2]}"]
    )
    assert run.exit_code == 2 and "4 classes (1, 2, 3, 4) need 3" in " ".join(run.output.split()), run.output
    run = CliRunner().invoke(app, ["train", str(path), "student={from_teacher: roberta, layers: 1}"])
    assert run.exit_code == 2 and "its head cannot be the student's" in " ".join(run.output.split()), (
        run.output
    )


def test_a_resumed_run_converts_as_it_did(made, tmp_path):
    both = [classifier(made), regressor(made)]
    options = {"classes": True, "eval_dataset": dataset(90, 1, classes=True), "fusion": "linear_pool"}
    args = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    whole = trainer_of(
        made, tmp_path / "a", both, args=settings(tmp_path / "a", max_steps=4, **args), **options
    )
    whole.train()
    # Other held-out rows: fitted anew, the rule would be another.
    options["eval_dataset"] = dataset(60, 7, classes=True)
    again = trainer_of(
        made, tmp_path / "a", both, args=settings(tmp_path / "b", max_steps=4, **args), **options
    )
    assert again.fusion_choice.conversions != whole.fusion_choice.conversions
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert (
        again.fusion_choice.conversions == whole.fusion_choice.conversions == again.teacher_pool.conversions
    )
    assert torch.equal(
        *(nn.utils.parameters_to_vector(trainer.student.parameters()) for trainer in (whole, again))
    )
    changed = [classifier(made), regressor(made, convert={"edges": [1.0, 2.0, 3.0]})]
    other = trainer_of(made, tmp_path / "c", changed, args=settings(tmp_path / "c", **args), **options)
    with pytest.raises(ConfigurationError, match="convert"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert np.isfinite(whole.state.log_history[-1]["train_loss"])
