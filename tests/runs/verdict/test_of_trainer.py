"""The verdict in Python: of a trainer and of a recipe, with fresh students, and from where it was left."""

from __future__ import annotations

import pytest
from test_trainer import arguments, make_trainer

from conftest import make_student
from hf_distill import MultiTeacherDistillationTrainer, Recipe, judge_run
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.runs.verdict import judgement, of_trainer
from hf_distill.runs.verdict.jobs import Place
from hf_distill.verdict import load_report


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    for module in (of_trainer, judgement):
        timed = module.time_model
        monkeypatch.setattr(
            module, "time_model", lambda *a, timed=timed, **k: timed(*a, **{**k, "seconds": 0.02})
        )
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
