"""What a first recipe gets wrong is said before anything runs, with the way out; and what it may ask for besides."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from conftest import make_bert
from hf_distill import Teacher, build_student
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion.alignment import LabelMap
from hf_distill.publishing.push import prepare_push
from hf_distill.recipe import Setup, load_recipe
from hf_distill.runs.train import train_recipe


@pytest.fixture
def write(tmp_path, monkeypatch, checkpoints, rows, held_out):
    """Writes a recipe on tiny checkpoints and real files, some sections given, into an empty working directory."""
    monkeypatch.chdir(tmp_path)
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")

    def write(**sections: str) -> str:
        given = {
            "data": "{files: {train: train.jsonl, validation: test.jsonl, test: test.jsonl}, "
            "label_names: [negative, positive]}",
            "teachers": f"{{models: [{checkpoints['bert']}]}}",
            "student": f"{{model: {checkpoints['student']}}}",
            "training": "{use_cpu: true, max_steps: 2, disable_tqdm: true, save_strategy: no, report_to: none}",
            "fusion": "linear_pool",
            **sections,
        }
        Path("mine.yaml").write_text("".join(f"{key}: {text}\n" for key, text in given.items()))
        return "mine.yaml"

    return write


def problem(file: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_recipe(file)
    return str(raised.value).removeprefix(f"{file}: ")


STEPS = "{use_cpu: true, max_steps: 9, disable_tqdm: true, report_to: none, logging_steps: 1"


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"training": "{metric_for_best_model: acc}"},
            "training.metric_for_best_model: no evaluation gives 'acc' (did you mean 'accuracy'?); known: loss, accuracy",
        ),
        (
            {"training": "{report_to: wandb}"},
            "training.report_to: 'wandb' needs a package that is not installed here: pip install wandb, or write report_to: none",
        ),
        (
            {"training": "{report_to: [tensorboard]}"},
            "training.report_to: 'tensorboard' needs a package that is not installed here: pip install 'tensorboard>=2.20' "
            "(or, in the folder of the hf-distill repository, pip install '.[tensorboard]'), or write report_to: none",
        ),
        (
            {"training": "{report_to: wand}"},
            "training.report_to: there is no tracker 'wand' (did you mean 'wandb'?); known: ",
        ),
        (
            {"evaluation": "{metrics: [acc]}"},
            "evaluation.metrics.0: there is no metric named 'acc' (did you mean 'accuracy'?); known: accuracy, f1",
        ),
        (
            {"evaluation": "{seeds: 3, verdict: false}"},
            "evaluation.seeds: several are for the verdict, which evaluation.verdict: false leaves out; leave one of the two out",
        ),
        (
            {"training": "{early_stopping_patience: 2}"},
            "training.early_stopping_patience: it counts evaluations, and there are none: write eval_strategy: epoch",
        ),
        (
            {"training": "{early_stopping_patience: 2, eval_strategy: epoch}"},
            "training.early_stopping_patience: nothing says what is better: write load_best_model_at_end: true",
        ),
        (
            {"training": "{early_stopping_patience: 0}"},
            "training.early_stopping_patience: expected how many evaluations without a better one end the training, from 1",
        ),
        (
            {"training": "{early_stopping_threshold: 0.1}"},
            "training.early_stopping_threshold: it is for training.early_stopping_patience; give that too",
        ),
        (
            {"training": "{early_stoping_patience: 2}"},
            "training.early_stoping_patience: unknown key, found 2 (did you mean 'early_stopping_patience'?)",
        ),
        (
            {"data": "{files: {train: train.jsonl}, streaming: true}"},
            "training.max_steps: a stream has no end that is known; say how many steps to train",
        ),
        (
            {"data": "{files: {train: train.jsonl}, max_rows: {tain: 3}}"},
            "data.max_rows.tain: unknown key, found 3 (did you mean 'train'?)",
        ),
        ({"student": "{model: a/b, lora: {rank: 3}}"}, "student.lora.rank: unknown key, found 3"),
        (
            {"student": "{model: a/b, dtype: float16}"},
            "student.dtype: expected one of float32, bfloat16; found 'float16'",
        ),
    ],
)
def test_what_would_fail_later_is_said_by_validate(write, monkeypatch, sections, line):
    for name in ("wandb", "tensorboard"):
        monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: False)
    if "streaming" not in str(sections) and "training" in sections:
        sections = {"training": sections["training"].replace("{", "{use_cpu: true, ", 1)}
    elif "streaming" in str(sections):
        sections = {**sections, "training": "{use_cpu: true}"}
    assert problem(write(**sections)).startswith(line)


def test_a_stream_and_a_cache_are_refused(write, checkpoints):
    found = problem(
        write(
            data="{files: {train: train.jsonl}, streaming: true}",
            teachers=f"{{models: [{checkpoints['bert']}], cache_dir: cache}}",
        )
    )
    assert found.startswith("teachers.cache_dir: the rows of a stream are not known before they come")


# ---- Teachers that cannot be had, and labels that are to be named ----


def test_a_misspelt_folder_is_no_id_of_the_hub(tmp_path, checkpoints, monkeypatch):
    parent = Path(checkpoints["bert"]).parent
    with pytest.raises(
        DataError, match=r"there is no folder .*/brt \(did you mean 'bert'\?\); it must hold the files"
    ):
        Teacher.from_pretrained(str(parent / "brt"))
    monkeypatch.chdir(parent.parent)
    with pytest.raises(DataError, match=r"there is no folder .*brt \(did you mean 'bert'\?\)"):
        Teacher.from_pretrained(f"{parent.name}/brt")  # reads as an id too
    with pytest.raises(
        DataError, match=r"The student: .*stdent.* there is no folder .*\(did you mean 'student'\?\)"
    ):
        from hf_distill.students.loading import student_config

        student_config(f"./{parent.name}/stdent")


def test_a_checkpoint_of_another_task_gets_no_mapping_to_paste():
    with pytest.raises(DataError) as raised:
        LabelMap.match(["entailment", "neutral", "contradiction"], ["negative", "positive"], teacher="nli")
    assert "It looks like a checkpoint of another task: name one that was fine-tuned for yours" in str(
        raised.value
    )
    assert '"entailment": "negative"' not in str(raised.value)
    with pytest.raises(
        DataError, match="It has 3 outputs for 2 labels, so it may be a checkpoint of another task"
    ):
        LabelMap.match(["LABEL_0", "LABEL_1", "LABEL_2"], ["negative", "positive"], teacher="nli")


def test_other_names_of_the_same_labels_are_proposed():
    with pytest.raises(
        DataError,
        match=r'If they are the same by other names, say labels=\{"pos": "positive", "neg": "negative"\}',
    ):
        LabelMap.match(["pos", "neg"], ["negative", "positive"], teacher="bert")


@pytest.mark.parametrize("cached", ["", ", cache_dir: cache"])
def test_a_recipe_is_told_what_to_write_into_it(write, tmp_path, bert_tokenizer, checkpoints, cached):
    model = make_bert(bert_tokenizer, ["LABEL_0", "LABEL_1"])
    model.save_pretrained(tmp_path / "unnamed")
    bert_tokenizer.save_pretrained(tmp_path / "unnamed")
    file = write(teachers=f"{{models: [{checkpoints['bert']}, {tmp_path}/unnamed]{cached}}}")
    with pytest.raises(
        DataError, match=r"teachers\.models\.1\.labels: \{LABEL_0: negative, LABEL_1: positive\}"
    ) as raised:
        Setup(load_recipe(file)).trainer()
    assert "labels={" not in str(raised.value)
    file = write(teachers=f"{{models: [{{model: {tmp_path}/unnamed, labels: [a]}}]{cached}}}")
    with pytest.raises(DataError, match=r"teachers\.models\.0\.labels gives 1 names"):
        Setup(load_recipe(file)).trainer()


# ---- Early stopping, adapters, types, limits and streams ----


def test_early_stopping_ends_a_training_and_goes_on_counting_when_resumed(write):
    options = ", eval_strategy: steps, eval_steps: 1, save_strategy: steps, save_steps: 1, learning_rate: 0, "
    options += "load_best_model_at_end: true, early_stopping_patience: 3"
    setup = Setup(load_recipe(write(training=f"{STEPS}{options}}}", evaluation="{split: none}")))
    train_recipe(setup)
    import json

    state = json.loads((setup.folder / "trainer_state.json").read_text())
    assert state["global_step"] == 4  # the first is the best, and three are no better
    again = Setup(load_recipe("mine.yaml", ["training.output_dir=runs/mine"])).trainer()
    again.train(resume_from_checkpoint=str(setup.folder / "checkpoint-3"))
    assert again.state.global_step == 4


def test_a_student_by_an_adapter_is_a_plain_one_in_the_end(write, checkpoints):
    lora = "lora: {r: 2, target_modules: [q_lin, v_lin]}"
    file = write(student=f"{{model: {checkpoints['student']}, {lora}}}", evaluation="{metrics: [accuracy]}")
    setup = Setup(load_recipe(file))
    report = train_recipe(setup)
    assert {"student", "fine-tuned, last step"} <= set(report.evaluation.systems)
    assert (setup.folder / "adapter" / "adapter_model.safetensors").is_file()
    stored = AutoModelForSequenceClassification.from_pretrained(setup.folder)
    assert type(stored).__name__ == "DistilBertForSequenceClassification" and not hasattr(
        stored, "peft_config"
    )
    start = AutoModelForSequenceClassification.from_pretrained(checkpoints["student"])
    name = "distilbert.transformer.layer.0.attention.{}.weight"
    assert torch.equal(stored.get_parameter(name.format("k_lin")), start.get_parameter(name.format("k_lin")))
    assert not torch.equal(
        stored.get_parameter(name.format("q_lin")), start.get_parameter(name.format("q_lin"))
    )
    places = prepare_push(setup.folder)  # and so it is pushed
    assert "model.safetensors" in places and not any(name.startswith("adapter") for name in places)
    assert "library_name: transformers" in places["README.md"].read_text()


def test_layers_of_any_checkpoint_and_its_type(write, checkpoints):
    file = write(student=f"{{model: {checkpoints['roberta']}, layers: [1], dtype: bfloat16}}")
    trainer = Setup(load_recipe(file)).trainer()
    assert trainer.model.config.num_hidden_layers == 1 and trainer.model.dtype == torch.bfloat16
    whole = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    kept, own = (model.classifier.out_proj.weight for model in (trainer.model, whole))
    # The rows of its head go by the labels' names: it was trained with POSITIVE first.
    assert torch.equal(kept, own[[1, 0]].to(torch.bfloat16))
    trainer.train()
    assert trainer.model.dtype == torch.bfloat16


def test_at_most_so_many_rows_are_the_same_each_time(write):
    data = "{files: {train: train.jsonl, test: test.jsonl}, label_names: [negative, positive], max_rows: "
    some = Setup(load_recipe(write(data=data + "{train: 10}}"))).rows
    assert (len(some["train"]), len(some["test"])) == (10, 33)
    both = Setup(load_recipe(write(data=data + "10}"))).rows
    assert (len(both["train"]), len(both["test"])) == (10, 10)
    assert both["train"][:] == some["train"][:]
    assert (
        both["train"]["text"][:]
        != datasets.load_dataset("json", data_files="train.jsonl")["train"]["text"][:10]
    )


def test_a_stream_trains_and_is_judged(write):
    data = "{files: {train: train.jsonl, test: test.jsonl}, label_names: [negative, positive], streaming: true, max_rows: 40}"
    setup = Setup(load_recipe(write(data=data, evaluation="{metrics: [accuracy]}")))
    assert isinstance(setup.rows["train"], datasets.IterableDataset) and len(list(setup.rows["train"])) == 40
    report = train_recipe(setup)
    assert {"student", "fine-tuned, last step"} <= set(report.evaluation.systems)


def test_layers_of_a_checkpoint_that_was_only_pretrained(tmp_path, bert_tokenizer, capsys):
    model = make_bert(bert_tokenizer, ["a", "b"])
    model.bert.save_pretrained(tmp_path / "encoder")
    bert_tokenizer.save_pretrained(tmp_path / "encoder")
    student = build_student(str(tmp_path / "encoder"), layers=1, labels=["x", "y", "z"])
    assert student.config.num_hidden_layers == 1 and student.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert "its head is fresh" in capsys.readouterr().out
    stored = BertModel.from_pretrained(tmp_path / "encoder")
    assert torch.equal(  # of one layer it is the last
        student.bert.encoder.layer[0].attention.self.query.weight,
        stored.encoder.layer[1].attention.self.query.weight,
    )
    assert torch.equal(
        student.bert.embeddings.word_embeddings.weight, stored.embeddings.word_embeddings.weight
    )
