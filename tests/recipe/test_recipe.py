"""Recipes: what they may say, what is said about the ones that are wrong, and what becomes of them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from enum import Enum
from pathlib import Path

import datasets
import pytest

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.recipe import Recipe, load_recipe, yaml12
from hf_distill.recipe.data_section import load_data
from hf_distill.recipe.sections import Section

BASE = """
data:
  dataset: org/data
  label_names: [negative, positive]
teachers: {models: [org/bert, {model: org/roberta, name: second}]}
student: {model: org/student}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe into an empty working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "mine.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write


def problems(file: str, overrides=(), error=ConfigurationError) -> list[str]:
    with pytest.raises(error) as raised:
        load_recipe(file, overrides)
    assert type(raised.value) is error
    return str(raised.value).splitlines()


# ---- YAML ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("+3", 3),
        ("-1.5e+3", -1500.0),
        ("0o17", 15),
        ("0x1F", 31),
        ("0123", 123),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        # Booleans, dates and base-60 numbers in YAML 1.1, which PyYAML reads otherwise.
        ("yes", "yes"),
        ("no", "no"),
        ("On", "On"),
        ("off", "off"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1e", "1e"),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(text, value):
    content, _, unreadable = yaml12.read(f"key: {text}")
    assert unreadable == []
    assert content == {"key": value}
    assert type(content["key"]) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        "no",
        "on",
        "1e-4",
        "1E5",
        "0o17",
        "",
        "~",
        "null",
        "true",
        "1:30",
        "2024-01-01",
        "<<",
        "=",
        "a: b",
        "#x",
    ]
    + ["two\nlines", " space", "é", "\U0001f600", "'", 1e-5, 1e22, 3, -0.5, None, True, math.inf],
)
def test_what_is_written_is_read_back(value):
    content = {"key": value, "list": [value]}
    read, _, _ = yaml12.read(yaml12.write(content))
    assert read == content
    assert type(read["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "line 1, column 6: while parsing a flow sequence, expected ',' or ']'"),
        ("a: 1\n\tb: 2", "line 2, column 1"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor for the tag"),
        ("a: !!float high", "a value does not fit its tag"),
        ("a: &x [*x]", "an alias contains itself"),
        ("a: *x", "undefined alias"),
        ("a: 1\n---\nb: 2", "found another document"),
        ("? [a]\n: b", "unhashable key"),
        ("[" * 3000, "nested too deeply"),
        ("a: " + "9" * 5000, "line 1, column 4: Exceeds the limit"),
        (b"\xff\xfe\xfa", "unacceptable character"),
    ],
)
def test_what_is_not_yaml_is_one_line(text, sentence, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    (line,) = problems(str(file))
    assert line.startswith(f"{file}: this is not YAML: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("text", "shown"), [("", "nothing"), ("- a", "['a']"), ("3", "3"), ("# only a comment", "nothing")]
)
def test_a_recipe_is_a_mapping(write, text, shown):
    (line,) = problems(write(text))
    assert line.startswith("mine.yaml: a recipe is a mapping with the sections task, data, teachers")
    assert line.endswith(f"found {shown}")


def test_a_file_that_cannot_be_read(write, tmp_path):
    assert problems("none.yaml") == [
        f"none.yaml: the recipe cannot be read: no such file or directory ({tmp_path / 'none.yaml'})"
    ]
    (line,) = problems(str(tmp_path))
    assert "is a folder; name the YAML file in it" in line


# ---- What is right ----


@pytest.mark.parametrize(
    ("overrides", "seeds"),
    [
        ([], 1),
        (["teachers.cache_dir=cache"], 3),
        (["teachers.cache_dir=cache", "evaluation.metrics=[nll]"], 3),
        (["teachers.cache_dir=cache", "evaluation.seeds=1"], 1),
        (["teachers.cache_dir=cache", "evaluation.verdict=false"], 1),
        (["teachers.cache_dir=cache", "evaluation.split=none"], 1),
        (["evaluation.seeds=5"], 5),
    ],
)
def test_cached_teachers_have_three_seeds(write, overrides, seeds):
    assert load_recipe(write(BASE), overrides).evaluation.seeds == seeds


def test_defaults(write):
    recipe = load_recipe(write(BASE))
    assert recipe.task == "text-classification"
    assert recipe.data.text_columns == ("text",)
    assert recipe.data.label_column == "label"
    assert [entry.model for entry in recipe.teachers.models] == ["org/bert", "org/roberta"]
    assert recipe.fusion == "auto"
    assert recipe.losses.model_dump() == {
        "distill": "forward_kl",
        "temperature": 2.0,
        "task_weight": 0.5,
        "distill_weight": 0.5,
        "label_share": 0.0,
        "row_weight": None,
        "hidden": (),
    }
    assert recipe.training == {"output_dir": "runs/mine"}
    assert recipe.evaluation.split is None
    assert recipe.hub.push is False


def test_labels_that_yaml_1_1_takes_for_booleans(write):
    recipe = load_recipe(write(BASE.replace("[negative, positive]", "[no, yes, on, off]")))
    assert recipe.data.label_names == ("no", "yes", "on", "off")


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(write):
    recipe = load_recipe(write(BASE + "losses:\n  # temperature: 4\ntraining:\nhub:\n"))
    assert recipe.losses.temperature == 2.0
    assert recipe.training == {"output_dir": "runs/mine"}


def test_anchors_and_merges_are_not_duplicates(write):
    lengths = (
        "teachers: {models: [&first {model: org/bert, max_length: 64}, {<<: *first, model: org/roberta}]}"
    )
    recipe = load_recipe(write(BASE.partition("teachers:")[0] + lengths + "\nstudent: {model: org/student}"))
    assert [(entry.model, entry.max_length) for entry in recipe.teachers.models] == [
        ("org/bert", 64),
        ("org/roberta", 64),
    ]


def test_a_recipe_cannot_be_changed(write):
    recipe = load_recipe(write(BASE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.task = "other"
    with pytest.raises(ValueError, match="frozen"):
        recipe.losses.temperature = 3.0


def test_every_section_is_frozen_and_strict():
    assert {model.__name__ for model in Section.__subclasses__()} >= {"Data", "Teachers", "Losses", "Hub"}
    for model in Section.__subclasses__():
        assert model.model_config["frozen"] and model.model_config["strict"]
        assert model.model_config["extra"] == "forbid"


def test_nothing_is_loaded(write, monkeypatch):
    import transformers

    def refuse(*arguments, **options):
        raise AssertionError("loaded")

    for name in ("AutoModelForSequenceClassification", "AutoTokenizer", "AutoConfig"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    load_recipe(write(BASE))


# ---- What is wrong ----


def changed(**sections: str) -> str:
    """The base recipe with some sections replaced (or added) as YAML."""
    content, _, _ = yaml12.read(BASE)
    for section, text in sections.items():
        content[section] = yaml12.read(text)[0]
    return yaml12.write({key: value for key, value in content.items() if value != "(left out)"})


BAD = [
    # unknown keys
    ({"tsk": "x"}, "tsk: unknown key, found 'x' (did you mean 'task'?)"),
    ({"temperature": "3"}, "temperature: unknown key, found 3 (did you mean 'losses.temperature'?)"),
    ({"seed": "3"}, "seed: unknown key, found 3 (did you mean 'training.seed'?)"),
    (
        {"data": "{dataset: a/b, text_column: x}"},
        "data.text_column: unknown key, found 'x' (did you mean 'text_columns'?)",
    ),
    (
        {"teachers": "{models: [a/b], model: x}"},
        "teachers.model: unknown key, found 'x' (did you mean 'models'?)",
    ),
    (
        {"teachers": "{models: [{model: a/b, nmae: x}]}"},
        "teachers.models.0.nmae: unknown key, found 'x' (did you mean 'name'?)",
    ),
    ({"losses": "{temprature: 2}"}, "losses.temprature: unknown key, found 2 (did you mean 'temperature'?)"),
    (
        {"evaluation": "{splits: test}"},
        "evaluation.splits: unknown key, found 'test' (did you mean 'split'?)",
    ),
    (
        {"hub": "{zzz: 1}"},
        "hub.zzz: unknown key, found 1 (known here: push, repo, private, revision, pull_request)",
    ),
    ({"5": "5"}, None),
    # missing
    ({"data": "(left out)"}, "data: is missing, and there is no default"),
    ({"teachers": "{}"}, "teachers.models: is missing, and there is no default"),
    ({"teachers": "{models: []}"}, "teachers.models: expected at least 1 of them, found []"),
    # types: nothing is converted
    ({"task": "3"}, "task: expected text, found 3; write it in quotes if it is text"),
    (
        {"data": "{dataset: a/b, revision: 1234567}"},
        "data.revision: expected text, found 1234567; write it in quotes",
    ),
    ({"data": "{dataset: ''}"}, "data.dataset: expected text, found an empty string"),
    (
        {"data": "{dataset: a/b, text_columns: text}"},
        "data.text_columns: expected a list, found 'text'; write [text]",
    ),
    (
        {"data": "{dataset: a/b, text_columns: [a, b, c]}"},
        "data.text_columns: expected at most 2 of them, found ['a', 'b', 'c']",
    ),
    (
        {"data": "{dataset: a/b, label_names: [a, 3]}"},
        "data.label_names.1: expected text, found 3; write it in quotes if it is text",
    ),
    (
        {"data": "{dataset: a/b, label_names: [a]}"},
        "data.label_names: expected at least 2 of them, found ['a']",
    ),
    ({"data": "[]"}, "data: expected a mapping, found []"),
    ({"teachers": "{models: [3]}"}, "teachers.models.0: expected a mapping, found 3"),
    (
        {"teachers": "{models: [{model: a/b, trust_remote_code: yes}]}"},
        "teachers.models.0.trust_remote_code: expected true or false, found 'yes' (did you mean 'true'?)",
    ),
    (
        {"teachers": "{models: [{model: a/b, max_length: true}]}"},
        "teachers.models.0.max_length: expected a whole number, found true",
    ),
    (
        {"teachers": "{models: [{model: a/b, max_length: 0}]}"},
        "teachers.models.0.max_length: expected a number of at least 1, found 0",
    ),
    (
        {"teachers": "{models: [{model: a/b, dtype: bfloat}]}"},
        "teachers.models.0.dtype: expected one of float32, bfloat16, float16; found 'bfloat' (did you mean 'bfloat16'?)",
    ),
    (
        {"teachers": "{models: [{model: a/b, labels: {0: negative}}]}"},
        "teachers.models.0.labels: expected a mapping from the checkpoint's label names to yours",
    ),
    (
        {"losses": "{temperature: '3'}"},
        "losses.temperature: expected a number, found '3'; write it without quotes",
    ),
    ({"losses": "{temperature: hot}"}, "losses.temperature: expected a number, found 'hot'"),
    ({"losses": "{task_weight: true}"}, "losses.task_weight: expected a number, found true"),
    ({"hub": "{push: no}"}, "hub.push: expected true or false, found 'no' (did you mean 'false'?)"),
    ({"fusion": "3"}, "fusion: expected a name, a path pkg.mod:Name, or a mapping"),
    ({"fusion": "{weights: [1]}"}, "fusion: expected a name, a path pkg.mod:Name, or a mapping"),
    # ranges
    ({"losses": "{temperature: 0}"}, "losses.temperature: expected a number above 0, found 0"),
    ({"losses": "{task_weight: -1}"}, "losses.task_weight: expected a number of at least 0, found -1"),
    ({"losses": "{distill_weight: .nan}"}, "losses.distill_weight: expected a finite number, found nan"),
    ({"losses": "{temperature: .inf}"}, "losses.temperature: expected a finite number, found inf"),
    ({"evaluation": "{batch_size: 0}"}, "evaluation.batch_size: expected a number of at least 1, found 0"),
    ({"evaluation": "{batch_size: 1.5}"}, "evaluation.batch_size: expected a whole number, found 1.5"),
    (
        {"evaluation": "{split: dev}"},
        "evaluation.split: expected one of train, validation, test, none; found 'dev'",
    ),
    # names
    (
        {"task": "text-clasification"},
        "task: unknown task 'text-clasification'; known: text-classification, multi-label-classification, regression, image-classification (did you mean",
    ),
    ({"fusion": "linear_pol"}, "fusion: there is no fusion named 'linear_pol'"),
    (
        {"fusion": "{use: log_pool, weigths: [1, 2]}"},
        "fusion: fusion 'log_pool' has no option 'weigths' (did you mean",
    ),
    ({"fusion": "{use: log_pool, weights: [1, -2]}"}, "fusion: Fusion weights are [1, -2]"),
    (
        {"fusion": "{use: linear_pool, weights: [1]}"},
        "fusion.weights: expected one weight per teacher, 2; found 1",
    ),
    ({"losses": "{distill: forward_lk}"}, "losses.distill: there is no distillation loss named 'forward_lk'"),
    ({"losses": "{distill: 'os:sep'}"}, "losses.distill: 'os:sep' is a str, which cannot be called"),
    # what two keys say together
    ({"data": "{text_columns: [x]}"}, "data: exactly one of dataset and files"),
    ({"data": "{dataset: a/b, files: {train: a.csv}}"}, "data: exactly one of dataset and files"),
    (
        {"data": "{files: {train: a.csv}, revision: main}"},
        "data.revision: it is for a Hub dataset, not for files",
    ),
    (
        {"data": "{files: {train: a.csv}, splits: {test: x}}"},
        "data.splits: it is for a Hub dataset, not for files; found {'test': 'x'}",
    ),
    ({"data": "{files: {train: a.txt}}"}, "data.files.train: the format is known by the suffix"),
    ({"data": "{files: {train: a.parquet.gz}}"}, "data.files.train: the format is known by the suffix"),
    ({"data": "{files: {train: csv}}"}, "data.files.train: the format is known by the suffix"),
    (
        {"data": "{dataset: a/b, text_columns: [x, x]}"},
        "data.text_columns: the two columns of a pair must differ",
    ),
    (
        {"data": "{dataset: a/b, text_columns: [x], label_column: x}"},
        "data.label_column: it cannot be a text column too",
    ),
    ({"data": "{dataset: a/b, label_names: [a, b, a]}"}, "data.label_names: 'a' stands more than once"),
    ({"teachers": "{models: [a/x, b/x]}"}, "teachers.models.1.name: teacher 0 is called 'x' too"),
    ({"student": "(left out)"}, "student: is missing, and there is no default"),
    ({"student": "{}"}, "student: exactly one of model (start from it), from_teacher (keep"),
    ({"student": "{model: a/b, config: {model_type: bert}}"}, "student: exactly one of model"),
    ({"student": "{config: {model_type: bert}}"}, "student.tokenizer: is missing"),
    (
        {"student": "{config: {model_type: distilbrt}, tokenizer: a/b}"},
        "student.config.model_type: expected a model type of transformers (distilbert, bert, …), found 'distilbrt' (did you",
    ),
    ({"student": "{config: {dim: 3}, tokenizer: a/b}"}, "student.config.model_type: expected a model type"),
    (
        {"student": "{config: {model_type: distilbert, n_layer: 2}, tokenizer: a/b}"},
        "student.config.n_layer: unknown key of distilbert, found 2 (did you mean 'n_layers'?)",
    ),
    (
        {"student": "{config: {model_type: distilbert, num_labels: 2}, tokenizer: a/b}"},
        "student.config.num_labels: it follows from the labels of the data; leave it out",
    ),
    (
        {"student": "{config: {model_type: distilbert, n_layers: two}, tokenizer: a/b}"},
        "student.config: Validation error for field 'n_layers'",
    ),
    ({"losses": "{task_weight: 0, distill_weight: 0}"}, "losses: task_weight and distill_weight are both 0"),
    (
        {"data": "{files: {train: a.csv}}", "evaluation": "{split: test}"},
        "evaluation.split: there is no data.files.test",
    ),
    (
        {"data": "{files: {train: a.csv}}", "training": "{eval_strategy: epoch}"},
        "training.eval_strategy: 'epoch' needs data.files.validation",
    ),
    ({"hub": "{push: true}"}, "hub.repo: is missing; a push needs the repository, as user/name"),
    (
        {"hub": "{push: true, repo: a/b}", "training": "{push_to_hub: true}"},
        "training.push_to_hub: it pushes while training, hub.push pushes once at the end; choose one",
    ),
    (
        {"hub": "{repo: a/b}", "training": "{hub_model_id: c/d}"},
        "training.hub_model_id: hub.repo says it already",
    ),
    (
        {"hub": "{repo: a/b, revision: v2}", "training": "{hub_revision: v3}"},
        "training.hub_revision: hub.revision says it already; keep one",
    ),
    (
        {"hub": "{push: true, repo: a/b, revision: v2, pull_request: true}"},
        "hub.pull_request: it is opened against main, but hub.revision is 'v2'; keep one",
    ),
    (
        {"hub": "{push: true, repo: a/b, pull_request: true}", "training": "{hub_revision: v2}"},
        "hub.pull_request: it is opened against main, but training.hub_revision is 'v2'; keep one",
    ),
    (
        {"hub": "{repo: a/b, pull_request: true}", "training": "{push_to_hub: true}"},
        "hub.pull_request: training.push_to_hub pushes to a branch while training; a pull request needs hub.push",
    ),
    (
        {"evaluation": "{batch_size: 8}", "training": "{per_device_eval_batch_size: 8}"},
        "training.per_device_eval_batch_size: evaluation.batch_size says it already; keep one",
    ),
    # training
    ({"training": "3"}, "training: expected a mapping, found 3"),
    (
        {"training": "{learnin_rate: 1e-4}"},
        "training.learnin_rate: unknown key, found 0.0001 (did you mean 'learning_rate'?)",
    ),
    (
        {"training": "{learning_rate: '1e-4'}"},
        "training.learning_rate: expected a number, found '1e-4'; write it without",
    ),
    ({"training": "{seed: 1.5}"}, "training.seed: expected a whole number, found 1.5"),
    ({"training": "{seed: true}"}, "training.seed: expected a whole number, found true"),
    ({"training": "{use_cpu: yes}"}, "training.use_cpu: expected true or false, found 'yes'"),
    ({"training": "{use_cpu: 1}"}, "training.use_cpu: expected true or false, found 1"),
    ({"training": "{report_to: 3}"}, "training.report_to: expected null or text or a list of text, found 3"),
    (
        {"training": "{report_to: [3]}"},
        "training.report_to: expected null or text or a list of text, found [3]",
    ),
    (
        {"training": "{eval_strategy: epochs}"},
        "training.eval_strategy: expected one of no, steps, epoch; found 'epochs' (did you mean 'epoch'?)",
    ),
    (
        {"training": "{eval_strategy: false}"},
        "training.eval_strategy: expected one of no, steps, epoch; found false",
    ),
    ({"training": "{log_level: loud}"}, "training.log_level: expected one of"),
    ({"training": "{optim: adamw_hf}"}, "training.optim: expected one of"),
    (
        {"training": "{per_device_train_batch_size: 0}"},
        "per_device_train_batch_size: expected a number of at least 1",
    ),
    ({"training": "{num_train_epochs: 0}"}, "training.num_train_epochs: expected a number above 0, found 0"),
    (
        {"training": "{learning_rate: -1e-4}"},
        "training.learning_rate: expected a number of at least 0, found -0.0001",
    ),
    ({"training": "{learning_rate: .nan}"}, "training.learning_rate: expected a number, found nan"),
    ({"training": "{adam_beta2: 1}"}, "training.adam_beta2: expected a number below 1, found 1"),
    ({"training": "{max_steps: 0}"}, "training.max_steps: expected a number of at least 1, or -1, found 0"),
    (
        {"training": "{evaluation_strategy: epoch}"},
        "evaluation_strategy: unknown key, found 'epoch'; write eval_strategy",
    ),
    ({"training": "{save_safetensors: true}"}, "training.save_safetensors: is no longer a training argument"),
    (
        {"training": "{temperature: 2}"},
        "training.temperature: does not belong here, it is losses.temperature",
    ),
    ({"training": "{hub_token: hf_x}"}, "training.hub_token: does not belong here, a recipe is published"),
    (
        {"training": "{resume_from_checkpoint: x}"},
        "training.resume_from_checkpoint: does not belong here, it is the",
    ),
    # what TrainingArguments itself refuses
    (
        {"training": "{load_best_model_at_end: true, eval_strategy: epoch, save_strategy: steps}"},
        "training: --load_best_model_at_end requires the save and eval strategy to match",
    ),
    ({"training": "{accelerator_config: {split_batch: true}}"}, "training: "),
    ({"training": "{deepspeed: none.json}"}, "training: "),
]


@pytest.mark.parametrize(("sections", "line"), BAD, ids=[str(line or "key 5")[:60] for _, line in BAD])
def test_what_is_wrong_is_said_in_its_line(write, sections, line):
    text = changed(**sections)
    if line is None:
        text, line = BASE + "5: x\n", "5: a key must be text; write it in quotes"
    lines = [found for found in problems(write(text)) if "there is no file" not in found]
    assert [found for found in lines if found.startswith("mine.yaml: ") and line in found], lines
    # Nothing else is wrong with these: one mistake, one line.
    assert len(lines) == 1, lines


def test_all_problems_are_told_at_once(write):
    text = """
data: {files: {train: a.csv}, text_column: [text], label_column: label, label_column: klass}
teachers: {models: [org/bert, {model: org/roberta, nmae: x}]}
student: {model: org/student, max_length: '64'}
losses: {temperature: 0, distill: kl}
training: {learnin_rate: 1e-4, seed: one, num_train_epochs: -1}
evaluation: {split: dev}
"""
    lines = problems(write(text))
    assert [line.split(": ")[1] for line in lines] == [
        "data.label_column",
        "data.text_column",
        "teachers.models.1.nmae",
        "student.max_length",
        "losses.temperature",
        "evaluation.split",
        "training.learnin_rate",
        "training.seed",
        "training.num_train_epochs",
        "losses.distill",
        "data.files.train",
    ]
    assert all(line.startswith("mine.yaml: ") for line in lines)
    assert "the key stands twice, in lines 2 and 2; keep one" in lines[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "training: {seed: 1}\ntraining: {seed: 2}",
            "training: the key stands twice, in lines 7 and 8; keep one",
        ),
        (
            "training:\n  seed: 1\n  max_steps: 3\n  seed: 1",
            "training.seed: the key stands twice, in lines 8 and 10",
        ),
        ("losses: {distill: {use: jsd, beta: 0.1, beta: 0.2}}", "losses.distill.beta: the key stands twice"),
    ],
)
def test_duplicate_keys_have_their_lines(write, text, line):
    assert [found for found in problems(write(BASE + text)) if line in found]


def test_missing_files_are_a_data_error_with_absolute_paths(write, tmp_path):
    text = changed(
        data="{files: {train: [a.csv, b/c.csv], test: /nowhere/d.csv}}",
        teachers="{models: [runs/teachers/x/bert, ./here, org/name]}",
        evaluation="{baseline: ../baseline}",
    )
    assert problems(write(text), error=DataError) == [
        f"mine.yaml: data.files.train: there is no file {tmp_path}/a.csv",
        f"mine.yaml: data.files.train: there is no file {tmp_path}/b/c.csv",
        "mine.yaml: data.files.test: there is no file /nowhere/d.csv",
        f"mine.yaml: teachers.models.0.model: there is no folder {tmp_path}/runs/teachers/x/bert",
        f"mine.yaml: teachers.models.1.model: there is no folder {tmp_path}/here",
        f"mine.yaml: evaluation.baseline: there is no folder {tmp_path}/../baseline",
    ]
    assert load_recipe("mine.yaml", check_files=False).data.files.train == ("a.csv", "b/c.csv")


# ---- The command line's overrides ----


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("losses.temperature=4", "losses.temperature", 4),
        ("training.learning_rate=3e-5", "training.learning_rate", 3e-5),
        ("training.run_name=a=b", "training.run_name", "a=b"),
        ("data.text_columns=[a, b]", "data.text_columns", ("a", "b")),
        ("data.label_names=[no, yes]", "data.label_names", ("no", "yes")),
        ("teachers.models.1.name=x", "teachers.models.1.name", "x"),
        ("teachers.models.0.name=x", "teachers.models.0.name", "x"),
        ("teachers.models.0=org/new", "teachers.models.0.model", "org/new"),
        ("teachers.models.0.labels.LABEL_0=bad", "teachers.models.0.labels", {"LABEL_0": "bad"}),
        ("teachers.models=[org/one]", "teachers.models.0.model", "org/one"),
        ("fusion=log_pool", "fusion", "log_pool"),
        ("fusion.weights=[1, 2]", "fusion", {"use": "linear_pool", "weights": [1, 2]}),
        ("losses.distill.beta=0.1", "losses.distill", {"use": "jsd", "beta": 0.1}),
        ("hub.repo=me/mine", "hub.repo", "me/mine"),
        ("data.label_names=", "data.label_names", None),
        ("task=text-classification", "task", "text-classification"),
    ],
)
def test_an_override_replaces_one_value(write, override, path, value):
    here = load_recipe(write(BASE + "losses: {distill: jsd}"), [override])
    for part in path.split("."):
        here = (
            here[int(part)]
            if part.isdigit()
            else here[part]
            if isinstance(here, dict)
            else getattr(here, part)
        )
    assert here == value


def test_overrides_reach_the_checks_and_are_told_apart(write):
    file = write(BASE + "losses: {temperature: 0}")
    lines = problems(file, ["losses.task_weight=-1", "training.seeed=3", "data.dataset=3", "hub.push=true"])
    assert lines == [
        "command line: data.dataset: expected text, found 3; write it in quotes if it is text",
        "mine.yaml: losses.temperature: expected a number above 0, found 0",
        "command line: losses.task_weight: expected a number of at least 0, found -1",
        "command line: training.seeed: unknown key, found 3 (did you mean 'seed'?)",
        "command line: hub.repo: is missing; a push needs the repository, as user/name",
    ]


def test_an_override_can_repair_the_file(write):
    assert (
        load_recipe(write(BASE + "losses: {temperature: 0}"), ["losses.temperature=1"]).losses.temperature
        == 1
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.seed", "command line: training.seed: an override is written section.key=value"),
        ("=3", "command line: =3: an override is written section.key=value"),
        ("training..seed=3", "command line: training..seed=3: an override is written section.key=value"),
        ("training.seed=[1", "command line: training.seed: the value '[1' is not YAML: line 1, column 3"),
        ("training.optim_args={a: 1, a: 2}", "the value '{a: 1, a: 2}' is not YAML: the key stands twice"),
        ("teachers.models.2.name=x", "teachers.models has 2 items, counted from 0; found '2'"),
        ("teachers.models.-1.name=x", "teachers.models has 2 items, counted from 0; found '-1'"),
        ("teachers.models.x=y", "teachers.models has 2 items, counted from 0; found 'x'"),
        ("task.x=1", "command line: task.x: task is 'text-classification', which has no parts to set"),
        ("nowhere.x=1", "command line: nowhere: unknown key, found {'x': 1}"),
    ],
)
def test_overrides_that_fit_nowhere(write, override, line):
    file = write(BASE + "task: text-classification")
    lines = problems(file, [override])
    assert len(lines) == 1
    assert line in lines[0]


# ---- The section training against the installed transformers ----


def defaults() -> list[tuple[str, object]]:
    from hf_distill import DistillationArguments

    values = []
    for field in dataclasses.fields(DistillationArguments):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        values.append((field.name, default.value if isinstance(default, Enum) else default))
    return values


def test_every_training_argument_is_taken_or_has_its_place():
    from transformers import TrainingArguments

    from hf_distill.recipe.training_section import _BELONGS, _STOPPING, check_training, training_keys

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {name for name, _ in defaults()} == set(training_keys()) - set(_STOPPING) | set(_BELONGS)
    assert set(_BELONGS) & names == {"resume_from_checkpoint", "hub_token", "parallelism_config"}
    for name, value in defaults():
        if name not in _BELONGS and name != "output_dir":
            assert check_training({"output_dir": "x", name: value}) == [], name


def test_arguments_that_transformers_no_longer_has_are_answered():
    from hf_distill.recipe.training_section import _REMOVED, _RENAMED, check_training, training_keys

    # What TrainingArguments of version 4 took and that of version 5 does not.
    gone = [
        "overwrite_output_dir",
        "evaluation_strategy",
        "save_safetensors",
        "logging_dir",
        "warmup_ratio",
        "no_cuda",
        "use_mps_device",
        "per_gpu_train_batch_size",
        "per_gpu_eval_batch_size",
        "half_precision_backend",
        "fp16_backend",
        "group_by_length",
        "push_to_hub_token",
        "push_to_hub_model_id",
        "include_inputs_for_metrics",
        "jit_mode_eval",
        "use_ipex",
        "past_index",
        "dispatch_batches",
        "split_batches",
        "ray_scope",
        "torchdynamo",
        "include_tokens_per_second",
        "fsdp_min_num_params",
        "fsdp_transformer_layer_cls_to_wrap",
        "adafactor",
        "tpu_num_cores",
        "mp_parameters",
    ]
    assert set(gone) <= set(_RENAMED) | set(_REMOVED)
    for name in (*_RENAMED, *_REMOVED):
        (problem,) = check_training({"output_dir": "x", name: 1})
        assert problem.path == f"training.{name}"
        assert "write " in problem.sentence or "no longer" in problem.sentence
    for name, new in _RENAMED.items():
        first = new.split()[0].split(":")[0]
        assert first in training_keys() or first.startswith("hub."), (name, new)


def test_checking_does_not_change_the_recipe(write):
    """TrainingArguments renames the keys of the mappings that it is given."""
    settings = "{fsdp: true, fsdp_config: {fsdp_min_num_params: 3}, accelerator_config: {even_batches: true}}"
    recipe = load_recipe(write(BASE + f"training: {settings}"))
    assert recipe.training["fsdp_config"] == {"fsdp_min_num_params": 3}
    assert recipe.training["accelerator_config"] == {"even_batches": True}


def test_several_processes_that_would_each_train_alone_are_refused(write, monkeypatch):
    from hf_distill import DistillationArguments

    file = write(BASE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    # One process is what accelerate makes of a launch on a machine without accelerator unless use_cpu is set.
    monkeypatch.setattr(DistillationArguments, "world_size", 1)
    (line,) = problems(file)
    assert line.startswith("mine.yaml: training.use_cpu: 2 processes were launched")
    assert "training.use_cpu=true" in line


# ---- Data ----

ROWS = [("a fine film", "positive"), ("NA", "negative"), ('said "no, never"', "negative")]


def write_rows(path: Path, rows=ROWS) -> None:
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    table = datasets.Dataset.from_dict({"text": [r[0] for r in rows], "label": [r[1] for r in rows]})
    if kind == "parquet":
        table.to_parquet(path)
        return
    plain = path.with_name("plain")
    if kind in ("csv", "tsv"):
        table.to_csv(plain, sep="," if kind == "csv" else "\t", index=False)
    else:
        table.to_json(plain, lines=kind == "jsonl")
    data = plain.read_bytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    plain.unlink()


def of_files(**files: str) -> str:
    return changed(data=json.dumps({"files": files, "label_names": ["negative", "positive"]}))


@pytest.mark.parametrize(
    "name",
    [
        "r.csv",
        "r.tsv",
        "r.json",
        "r.jsonl",
        "r.csv.gz",
        "r.tsv.gz",
        "r.json.gz",
        "r.jsonl.gz",
        "r.parquet",
        "R.CSV",
    ],
)
def test_every_format_gives_the_same_rows(write, name):
    write_rows(Path(write("", name)).absolute())
    rows = load_data(load_recipe(write(of_files(train=name))))
    assert list(rows) == ["train"]
    assert list(zip(rows["train"]["text"], rows["train"]["label"], strict=True)) == ROWS


def test_splits_and_several_files(write):
    for name in ("a.csv", "b.csv", "c.csv"):
        write_rows(Path(write("", name)).absolute())
    recipe = load_recipe(write(changed(data="{files: {train: [a.csv, b.csv], validation: c.csv}}")))
    assert {split: len(rows) for split, rows in load_data(recipe).items()} == {"train": 6, "validation": 3}


def test_words_that_pandas_takes_for_missing_are_text_and_empty_labels_are_missing(write):
    write("text,label\nnull,None\nnan,\n,NA\n", "r.csv")
    rows = load_data(load_recipe(write(of_files(train="r.csv"))))["train"]
    assert rows["text"][:] == ["null", "nan", ""]
    assert rows["label"][:] == ["None", None, "NA"]


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        ("text,label\na,b\nc,d,e,f\n", "r.csv", "data.files: r.csv, line 3: found 4 fields, but"),
        ('{"text": "a"}\n{"text": ', "r.jsonl", "data.files: r.jsonl, line 2: it is no JSON"),
        ("", "r.csv", "data.files: r.csv is empty"),
        ("text,label\na,b\n", "r.csv.gz", "data.files: r.csv.gz cannot be loaded: Not a gzipped file"),
        ("no parquet", "r.parquet", "data.files: r.parquet cannot be loaded: "),
        (
            "txt,label\na,b\n",
            "r.csv",
            "data.text_columns: the train rows have no column 'text' (did you mean 'txt'?)",
        ),
        (
            "text,lable\na,b\n",
            "r.csv",
            "data.label_column: the train rows have no column 'label' (did you mean 'lable'?)",
        ),
    ],
)
def test_data_that_cannot_be_used(write, content, name, sentence):
    write(content, name)
    recipe = load_recipe(write(of_files(train=name)))
    with pytest.raises(DataError) as raised:
        load_data(recipe)
    assert sentence in str(raised.value)
    if "column" in sentence:
        assert "their columns are: " in str(raised.value)


def test_without_a_task_loss_no_label_column_is_needed(write):
    write("text\na\n", "r.csv")
    recipe = load_recipe(write(of_files(train="r.csv")), ["losses.task_weight=0"])
    assert load_data(recipe)["train"].column_names == ["text"]


@pytest.fixture
def hub_dataset(tmp_path):
    """A folder that load_dataset takes, with the splits that a Hub dataset may have."""
    folder = tmp_path / "hub"
    for split in ("train", "validation_matched", "test"):
        file = folder / f"{split}.jsonl"
        file.parent.mkdir(exist_ok=True)
        write_rows(file)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - {{split: {s}, path: {s}.jsonl}}\n" for s in ("train", "validation_matched", "test"))
        + "---\n"
    )
    return str(folder)


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        ("{}", {"train": 3, "test": 3}),
        ("{validation: validation_matched}", {"train": 3, "validation": 3, "test": 3}),
        ("{test: null}", {"train": 3}),
        (
            "{train: 'train[:2]', validation: 'train[2:]', test: train+test}",
            {"train": 2, "validation": 1, "test": 6},
        ),
    ],
)
def test_splits_of_a_dataset_are_taken_by_their_names(write, hub_dataset, splits, counts):
    recipe = load_recipe(write(changed(data=f"{{dataset: {hub_dataset}, splits: {splits}}}")))
    assert {split: len(rows) for split, rows in load_data(recipe).items()} == counts


@pytest.mark.parametrize(
    ("splits", "more", "sentence"),
    [
        ("{train: trian}", {}, "data.splits.train: {} has no split 'trian' (did you mean 'train'?)"),
        (
            "{validation: dev}",
            {},
            "data.splits.validation: {} has no split 'dev'; it has: train, validation_matched, test",
        ),
        (
            "{}",
            {"evaluation": "{split: validation}"},
            "evaluation.split is 'validation', but the data has only train, test",
        ),
        (
            "{}",
            {"training": "{eval_strategy: epoch}"},
            "training.eval_strategy is 'epoch', but the data has no validation",
        ),
    ],
)
def test_splits_that_are_not_there(write, hub_dataset, splits, more, sentence):
    recipe = load_recipe(write(changed(data=f"{{dataset: {hub_dataset}, splits: {splits}}}", **more)))
    with pytest.raises(DataError) as raised:
        load_data(recipe)
    assert sentence.format(hub_dataset) in str(raised.value)


def test_a_dataset_that_cannot_be_reached(write):
    recipe = load_recipe(write(BASE))
    with pytest.raises(DataError, match=r"data\.dataset: org/data cannot be loaded: "):
        load_data(recipe)


# ---- From recipe to trainer ----


@pytest.fixture
def local(write, checkpoints, rows, held_out):
    """The text of a recipe on tiny checkpoints and real files; its folder is the working directory."""
    write("")
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")
    return f"""
data: {{files: {{train: train.jsonl, validation: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {{model: {checkpoints["roberta"]}, name: second, max_length: 32}}]}}
student: {{model: {checkpoints["student"]}, max_length: 24}}
fusion: {{use: log_pool, weights: [3, 1]}}
losses: {{distill: {{use: jsd, beta: 0.25}}, temperature: 3, task_weight: 0.25, distill_weight: 0.75}}
training: {{use_cpu: true, max_steps: 2, learning_rate: 1e-3, disable_tqdm: true, save_strategy: no}}
evaluation: {{metrics: [accuracy, nll]}}
"""


def test_every_section_reaches_the_trainer(write, local):
    from hf_distill import LogPool, losses
    from hf_distill.recipe import Setup

    trainer = Setup(load_recipe(write(local))).trainer()
    assert trainer.args.output_dir == "runs/mine"
    assert trainer.args.learning_rate == 1e-3
    assert (trainer.args.temperature, trainer.args.task_weight, trainer.args.distill_weight) == (
        3,
        0.25,
        0.75,
    )
    assert trainer.args.max_length == 24
    assert [teacher.name for teacher in trainer.teachers] == ["bert", "second"]
    assert trainer.teachers[1].view.max_length == 32
    assert trainer.fusion == LogPool(weights=(3, 1))
    assert trainer.distillation_loss.func is losses.jsd
    assert trainer.distillation_loss.keywords == {"beta": 0.25}
    assert trainer.model.config.id2label == {0: "negative", 1: "positive"}
    assert set(trainer.evaluate()) >= {"eval_accuracy", "eval_nll"}


def test_the_run_can_be_repeated_from_what_it_wrote(write, local):
    from hf_distill.recipe import Setup

    recipe = load_recipe(
        write(local), ["losses.temperature=5", "data.label_names=['no', 'yes']", "fusion=linear_pool"]
    )
    recipe = recipe.model_copy(update={"data": load_recipe(write(local)).data})
    Setup(recipe).trainer()
    written = Path("runs/mine/recipe.yaml")
    assert "temperature: 5" in written.read_text()
    assert "learning_rate: 0.001" in written.read_text()
    assert "split: " not in written.read_text()
    assert load_recipe(written) == recipe


def test_a_written_recipe_is_right_and_its_text_stays_text(write, local):
    from hf_distill.recipe.setup import write_recipe

    more = ["hub.repo='1e5'", "training.hub_private_repo=true", "training.per_device_eval_batch_size=4"]
    recipe = load_recipe(write(local), ["data.label_names=[no, 'true']", *more])
    assert load_recipe(write_recipe(recipe, Path("out"))) == recipe


def test_a_student_from_scratch_takes_its_sizes_from_tokenizer_and_labels(
    write, local, checkpoints, roberta_tokenizer
):
    from hf_distill.recipe import Setup

    student = {
        "config": {"model_type": "distilbert", "dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 48},
        "tokenizer": checkpoints["roberta"],  # its padding is not the id that DistilBERT has by default
    }
    content, _, _ = yaml12.read(local)
    file = write(yaml12.write({**content, "student": student}))
    first, second = (Setup(load_recipe(file)).trainer().model for _ in range(2))
    other = Setup(load_recipe(file, ["training.seed=1"])).trainer().model
    assert first.config.vocab_size == len(roberta_tokenizer)
    assert first.config.pad_token_id == roberta_tokenizer.pad_token_id == 1
    assert first.config.id2label == {0: "negative", 1: "positive"}
    assert first.config.label2id == {"negative": 0, "positive": 1}
    weights = [model.classifier.weight for model in (first, second, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    for override, sentence in [
        ("student.config.vocab_size=5", "student.config.vocab_size is 5, but the tokenizer has"),
        ("student.config.n_heads=5", "student.config: "),
    ]:
        with pytest.raises(ConfigurationError, match=sentence):
            Setup(load_recipe(file, [override])).trainer()


def test_a_student_at_a_revision_is_the_same_student(write, local, monkeypatch):
    """A folder has no revisions and takes any: what is tested is that both ways give the same weights and labels."""
    from hf_distill.recipe import Setup

    plain = Setup(load_recipe(write(local))).trainer()
    revised = Setup(load_recipe(write(local), ["student.revision=main"])).trainer()
    assert revised.model.config.id2label == plain.model.config.id2label
    for name, value in plain.model.state_dict().items():
        assert value.equal(revised.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("override", "size"),
    [("training.seed=0", 32), ("evaluation.batch_size=5", 5), ("training.per_device_eval_batch_size=6", 6)],
)
def test_one_batch_size_for_every_evaluation(write, local, override, size):
    from hf_distill.recipe.setup import Setup

    assert Setup(load_recipe(write(local), [override])).arguments.per_device_eval_batch_size == size


def test_hub_and_training_meet_in_the_arguments(write, local):
    from hf_distill.recipe.hub_section import destination
    from hf_distill.recipe.setup import Setup

    args = Setup(
        load_recipe(write(local), ["hub.push=true", "hub.repo=me/mine", "hub.private=true"])
    ).arguments
    # The push comes after the evaluation, so that the report is pushed too; not at every save.
    assert (args.push_to_hub, args.hub_model_id, args.hub_private_repo) == (False, "me/mine", True)
    assert args.hub_revision is None
    for key in ("hub.revision=v2", "training.hub_revision=v2"):
        recipe = load_recipe(write(local), ["hub.repo=me/mine", key])
        assert Setup(recipe).arguments.hub_revision == destination(recipe).revision == "v2"


def test_the_class_can_be_made_without_a_file():
    recipe = Recipe(data={"dataset": "a/b"}, teachers={"models": ["a/b"]}, student={"model": "c/d"})
    assert recipe.losses.distill == "forward_kl"
