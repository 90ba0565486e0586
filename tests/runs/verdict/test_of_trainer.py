"""The verdict in Python: of a trainer and of a recipe, with fresh students, and from where it was left."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from test_trainer import arguments, make_trainer

from conftest import make_student
from hf_distill import MultiTeacherDistillationTrainer, Recipe, judge_run
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.runs.verdict import judgement, of_trainer
from hf_distill.runs.verdict.digests import weights_digest
from hf_distill.runs.verdict.jobs import Place
from hf_distill.runs.verdict.trainings import best_by
from hf_distill.training.hidden import HiddenLoss
from hf_distill.verdict import load_report


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    timed = judgement.time_model
    monkeypatch.setattr(judgement, "time_model", lambda *a, **k: timed(*a, **{**k, "seconds": 0.02}))
    monkeypatch.setattr(judgement, "places", lambda device: [Place()])


def test_a_trainer_is_trained_and_judged_and_goes_on_where_it_was(
    tmp_path, teachers, bert_tokenizer, rows, held_out, monkeypatch
):
    def made(folder=tmp_path):
        return MultiTeacherDistillationTrainer(
            model_init=lambda: make_student(bert_tokenizer),
            teachers=teachers[:2],
            args=arguments(folder, eval_strategy="steps", eval_steps=1),
            train_dataset=rows,
            eval_dataset=held_out.select(range(20)),
            processing_class=bert_tokenizer,
            cache_dir=tmp_path / "cache",
        )

    report = judge_run(made(), held_out, seeds=2)
    assert report.seeds == (42, 43)
    assert set(report.by_seed["student"]) == {42, 43}
    assert {"student", "baseline", "ensemble", "teacher"} <= {role.kind for role in report.roles.values()}
    assert (tmp_path / "report.html").is_file() and load_report(tmp_path).to_dict() == report.to_dict()
    assert (tmp_path / "model.safetensors").is_file() and (
        tmp_path / "seed-43/baseline/model.safetensors"
    ).is_file()
    trained = []
    monkeypatch.setattr(
        MultiTeacherDistillationTrainer, "train", lambda self, *a, train=MultiTeacherDistillationTrainer.train, **k: (
            trained.append(self.args.output_dir), train(self, *a, **k))[1],
    )  # fmt: skip
    again = judge_run(made(), held_out, seeds=2)
    assert trained == [str(tmp_path)]  # of the others nothing was trained again
    assert again.by_seed == report.by_seed


def test_a_trained_student_needs_a_source_for_the_others(
    tmp_path, teachers, checkpoints, bert_tokenizer, rows, held_out
):
    trainer = make_trainer(tmp_path, teachers[:1], bert_tokenizer, rows, max_steps=1)
    trainer.train()
    with pytest.raises(ConfigurationError, match="pass model_init=, which makes a fresh one, or student="):
        judge_run(trainer, held_out, seeds=1)
    report = judge_run(trainer, held_out, seeds=1, student=checkpoints["student"], metrics=["accuracy"])
    assert {"student", "baseline"} <= {role.kind for role in report.roles.values()}
    with pytest.raises(DataError, match="pass test_dataset="):
        judge_run(trainer)
    with pytest.raises(DataError, match="None of the 33 test rows has a label in column 'label'"):
        judge_run(trainer, held_out.remove_columns("label"), seeds=1, student=checkpoints["student"])


def test_a_recipe_object_is_judged_on_other_rows(tmp_path, checkpoints, rows, held_out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows.to_json("train.jsonl")
    recipe = Recipe(
        data={"files": {"train": "train.jsonl"}, "label_names": ["negative", "positive"]},
        teachers={"models": [checkpoints["bert"]]},
        student={"model": checkpoints["student"]},
        training={
            "output_dir": "out",
            "use_cpu": True,
            "max_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    )
    report = judge_run(recipe, held_out, seeds=1)
    assert report.evaluation.rows == 33 and (tmp_path / "out" / "report.md").is_file()
    with pytest.raises(DataError, match="There is no verdict"):
        judge_run(recipe.model_copy(update={"training": {**recipe.training, "output_dir": "other"}}), seeds=1)


def judged(trainer, rows, **options):
    given = {"model_init": None, "student": None, "single": False, "metrics": None, **options}
    return of_trainer._Judged.of(trainer, rows, **given)


def test_what_was_finished_counts_for_the_same_trainings_alone(
    tmp_path, teachers, checkpoints, bert_tokenizer, rows, held_out
):
    def key(seed=0, student=None, validation=None, model_init=None, **arguments):
        trainer = make_trainer(
            tmp_path, teachers[:1], bert_tokenizer, rows, make_student(bert_tokenizer, seed=seed), fusion="linear_pool",
            eval_dataset=validation, **arguments,
        )  # fmt: skip
        return judged(trainer, held_out, student=student, model_init=model_init).key

    own = key()
    assert key() == own == key(logging_steps=2)
    copied = tmp_path / "copied"
    shutil.copytree(checkpoints["student"], copied)
    by_folder = key(student=str(copied))
    make_student(bert_tokenizer, seed=5).save_pretrained(copied)
    made = key(model_init=lambda: make_student(bert_tokenizer, seed=5))
    others = [
        key(seed=1), key(weight_decay=0.1), key(validation=held_out.select(range(9))), by_folder, key(student=str(copied)), made,
        key(model_init=lambda: make_student(bert_tokenizer, seed=6)),
    ]  # fmt: skip
    assert len({own, *others}) == 1 + len(others)
    before = torch.get_rng_state()
    of_trainer._weights(lambda: make_student(bert_tokenizer, seed=5), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_other_students_learn_as_the_first(tmp_path, teachers, bert_tokenizer, rows, held_out):
    peft = pytest.importorskip("peft")
    trainer = make_trainer(
        tmp_path, teachers[:2], bert_tokenizer, rows.select(range(8)), fusion="linear_pool",
        hidden_losses=[HiddenLoss(), HiddenLoss(teachers=("roberta",), weight=2.0)], teacher_placement="swap",
        peft_config=peft.LoraConfig(r=2, target_modules=["q_lin", "v_lin"]),
        preprocess_logits_for_metrics=lambda logits, labels: logits,
    )  # fmt: skip
    whole = judged(trainer, held_out)
    other = whole._student(copy.copy(trainer.args), None)
    assert [loss.teachers for loss in other.hidden.losses] == [None, ("roberta",)]
    assert other.teacher_pool.placement == "swap" and other.preprocess_logits_for_metrics is not None
    assert weights_digest(other.student) == weights_digest(trainer.student)
    alone = whole._student(copy.copy(trainer.args), "bert")
    assert alone.fusion.weights == (1.0, 0.0)
    assert [loss.teachers for loss in alone.hidden.losses] == [("bert",)]


def test_the_best_step_is_chosen_as_the_family_would(tmp_path):
    for task, metric, greater in (
        ("text-classification", "accuracy", True),
        ("multi-label-classification", "label_nll", False),
        ("regression", "mse", False),
    ):
        assert best_by(arguments(tmp_path), task, [metric]) == (metric, greater)
        assert best_by(arguments(tmp_path), task, []) == ("loss", False)
        assert best_by(arguments(tmp_path, metric_for_best_model="eval_ece"), task, [metric]) == (
            "ece",
            False,
        )
