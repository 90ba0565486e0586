"""Recipes whose student is made from a teacher, and whose teachers are adapters over one base."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from conftest import make_bert
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.recipe import Recipe, Setup, load_recipe


@pytest.fixture
def write(tmp_path, monkeypatch, checkpoints, rows, held_out):
    """Writes a recipe on tiny checkpoints and real files into an empty working directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")

    def write(student: str, teachers: str | None = None) -> str:
        teachers = teachers or f"[{checkpoints['bert']}, {{model: {checkpoints['roberta']}, name: second}}]"
        Path("mine.yaml").write_text(f"""
data: {{files: {{train: train.jsonl, test: test.jsonl}}, label_names: [positive, negative]}}
teachers: {{models: {teachers}}}
student: {student}
fusion: linear_pool
training: {{use_cpu: true, max_steps: 2, disable_tqdm: true, save_strategy: no, seed: 3}}
evaluation: {{metrics: [accuracy]}}
""")
        return "mine.yaml"

    return write


def problem(file: str, error=ConfigurationError) -> str:
    with pytest.raises(error) as raised:
        load_recipe(file)
    assert type(raised.value) is error
    return str(raised.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("student", "line"),
    [
        (
            "{}",
            "student: exactly one of model (start from it), from_teacher (keep some of a teacher's layers) and config",
        ),
        ("{from_teacher: bert, model: a/b}", "student: exactly one of model"),
        ("{from_teacher: bert, config: {model_type: bert}}", "student: exactly one of model"),
        (
            "{from_teacher: secnd}",
            "student.from_teacher: there is no teacher 'secnd' (did you mean 'second'?); the teachers are called bert, second",
        ),
        ("{from_teacher: 3}", "student.from_teacher: expected text, found 3"),
        (
            "{from_teacher: bert, layers: 0}",
            "student.layers: expected how many layers to keep, or the list of which",
        ),
        ("{from_teacher: bert, layers: [0, one]}", "student.layers: expected how many layers to keep"),
        ("{from_teacher: bert, layers: []}", "student.layers: expected how many layers to keep"),
        ("{from_teacher: bert, layers: true}", "student.layers: expected how many layers to keep"),
        (
            "{from_teacher: bert, hidden_size: 0}",
            "student.hidden_size: expected a number of at least 1, found 0",
        ),
        ("{from_teacher: bert, tokenizer: a/b}", "student.tokenizer: it is the teacher's own; leave it out"),
        ("{from_teacher: bert, revision: main}", "student.revision: it is the teacher's own; leave it out"),
        (
            "{from_teacher: bert, trust_remote_code: true}",
            "student.trust_remote_code: it is the teacher's own",
        ),
        (
            "{config: {model_type: bert}, tokenizer: a/b, hidden_size: 8}",
            "student.hidden_size: it is for a student that is made of a model or from_teacher; found 8",
        ),
    ],
)
def test_what_is_wrong_is_said_in_its_line(write, student, line):
    assert problem(write(student)).startswith(line)


def test_the_student_is_made_of_the_teacher_with_its_tokenizer(write, checkpoints):
    trainer = Setup(load_recipe(write("{from_teacher: second, layers: [1], max_length: 24}"))).trainer()
    student = trainer.model
    assert type(student).__name__ == "RobertaForSequenceClassification"
    assert student.config.num_hidden_layers == 1
    assert student.config.id2label == {0: "positive", 1: "negative"}
    teacher = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    assert torch.equal(
        student.roberta.encoder.layer[0].output.dense.weight,
        teacher.roberta.encoder.layer[1].output.dense.weight,
    )
    # RoBERTa's own order is POSITIVE, NEGATIVE, as the recipe's.
    assert torch.equal(student.classifier.out_proj.weight, teacher.classifier.out_proj.weight)
    assert trainer.processing_class.get_vocab() == trainer.teachers[1].view.tokenizer.get_vocab()
    assert trainer.args.max_length == 24
    assert all(p.requires_grad for p in student.parameters())
    written = load_recipe("runs/mine/recipe.yaml").student
    assert (written.from_teacher, written.layers, written.max_length) == ("second", (1,), 24)


def test_rows_are_taken_by_name_and_six_layers_are_the_default(write, checkpoints):
    trainer = Setup(load_recipe(write("{from_teacher: bert, layers: 2, hidden_size: 16}"))).trainer()
    teacher = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    assert torch.equal(trainer.model.classifier.weight, teacher.classifier.weight[[1, 0], :16])
    with pytest.raises(ConfigurationError, match="layers is 6, but Teacher 'bert' has 2 layers"):
        Setup(load_recipe(write("{from_teacher: bert}"))).trainer()


def test_labels_come_from_the_teacher_where_the_data_names_none(rows, checkpoints, tmp_path):
    """And fresh rows are drawn from the recipe's seed."""

    def head(seed: int, names=None) -> tuple[torch.Tensor, dict[int, str]]:
        recipe = Recipe(
            data={"dataset": "org/data", "label_names": names},
            teachers={"models": [{"model": checkpoints["roberta"], "name": "t", "labels": ["yes", "no"]}]},
            student={"from_teacher": "t", "layers": 1},
            fusion="linear_pool",
            losses={"task_weight": 0.0, "distill_weight": 1.0},
            training={"output_dir": str(tmp_path), "use_cpu": True, "seed": seed},
        )
        unlabelled = rows.remove_columns("label")
        model = Setup(recipe, {"train": unlabelled}).trainer().model
        return model.classifier.out_proj.weight, model.config.id2label

    assert head(0)[1] == {0: "yes", 1: "no"}
    (first, names), (again, _), (other, _) = (head(seed, ("no", "maybe", "yes")) for seed in (0, 0, 1))
    assert names == {0: "no", 1: "maybe", 2: "yes"}
    assert torch.equal(first, again) and not torch.equal(first[1], other[1])
    assert torch.equal(first[[0, 2]], other[[0, 2]])


def test_a_recipe_made_in_python_is_refused_too(checkpoints, rows, tmp_path):
    recipe = Recipe(
        data={"dataset": "org/data"},
        teachers={"models": [checkpoints["bert"]]},
        student={"from_teacher": "nobody"},
        training={"output_dir": str(tmp_path), "use_cpu": True},
    )
    with pytest.raises(
        ConfigurationError, match="there is no teacher 'nobody'; the teachers are called bert"
    ):
        Setup(recipe, {"train": rows}).trainer()


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_validate_and_train_say_what_the_student_is(write):
    file = write("{from_teacher: bert, layers: 1, hidden_size: 16}")
    shown = run("validate", file).stdout
    assert re.search(r"^student +made from bert, layers 1, hidden size 16$", shown, re.MULTILINE)
    assert run("validate", file, "--load").exit_code == 0
    done = run("train", file)
    assert done.exit_code == 0, done.output
    for name in ("student", "bert", "second"):
        (row,) = re.findall(rf"^{name} +[\d,]+ +[\d,]+ +[\d.]+ ms\b.*$", done.stdout, re.MULTILINE)
        assert row.endswith(" x") == (name != "student")
    assert " ".join(done.stdout.split()).count("medians of 5 round(s) in turns") == 1
    model = AutoModelForSequenceClassification.from_pretrained("runs/mine")
    assert model.config.hidden_size == 16 and model.config.id2label == {0: "positive", 1: "negative"}
    assert run("evaluate", file).exit_code == 0


@pytest.mark.slow
def test_cached_teachers_are_listed_without_figures(write):
    done = run(
        "train", write("{from_teacher: bert, layers: 1}"), "teachers.cache_dir=cache", "evaluation.seeds=1"
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"^bert +[\d,]+ +–.*$", done.stdout, re.MULTILINE)
    assert "in turns" not in done.stdout


@pytest.mark.slow
def test_other_students_are_not_measured(write, checkpoints):
    assert "student is faster" not in run("train", write(f"{{model: {checkpoints['student']}}}")).stdout


# ---- Teachers that are adapters ----


@pytest.fixture
def adapters(write, bert_tokenizer) -> str:
    """A base and two adapters in the working directory."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = make_bert(bert_tokenizer, ["negative", "positive"])
    model.save_pretrained("base")
    bert_tokenizer.save_pretrained("base")
    for name in ("one", "two"):
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2, init_lora_weights=False)
        adapted = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained("base"), config)
        adapted.save_pretrained(name)
    return "[{model: ./base, adapter: ./one}, {model: ./base, adapter: ./two, name: other, labels: [positive, negative]}]"


@pytest.mark.slow
def test_adapters_over_one_base_train_a_student_made_of_one(write, adapters):
    file = write("{from_teacher: one, layers: 1}", adapters)
    shown = run("validate", file).stdout
    assert (
        "./base with adapter ./one\n" in shown and "./base with adapter ./two as other with labels" in shown
    )
    trainer = Setup(load_recipe(file)).trainer()
    assert [teacher.name for teacher in trainer.teachers] == ["one", "other"]
    weight = "base_model.model.bert.embeddings.word_embeddings.weight"
    first, second = (teacher.model.get_parameter(weight) for teacher in trainer.teachers)
    assert first is second
    assert type(trainer.model).__name__ == "BertForSequenceClassification"
    own = trainer.model.bert.embeddings.word_embeddings.weight
    before = first.clone()
    assert torch.equal(own, before)
    trainer.train()
    assert torch.equal(first, before) and not torch.equal(own, before)
    assert run("train", file, "teachers.cache_dir=cache", "evaluation.seeds=1").exit_code == 0


def test_an_adapters_folder_must_be_there(write, adapters, tmp_path):
    file = write("{from_teacher: one}", adapters.replace("./one", "./gone/one"))
    assert (
        problem(file, DataError)
        == f"teachers.models.0.adapter: there is no folder {tmp_path / 'gone' / 'one'} (did you mean 'one'?)"
    )
    twice = adapters.replace(", name: other", "").replace("./two", "./elsewhere/one")
    assert "teachers.models.1.name: teacher 0 is called 'one' too" in problem(
        write("{from_teacher: one}", twice)
    )
    assert problem(write("{from_teacher: one}", adapters.replace("./one", "3"))).startswith(
        "teachers.models.0.adapter: expected text, found 3"
    )
