"""What is said before a training: what it would take, that nothing is wrong, and that a finished run would be replaced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.recipe import Setup, load_recipe
from hf_distill.runs import outlook
from hf_distill.runs.outlook import look_ahead
from hf_distill.runs.replacing import differences, refuse_replacing
from hf_distill.runs.train import train_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoints, rows, held_out):
    folder = tmp_path_factory.mktemp("before")
    rows.to_json(folder / "train.jsonl")
    held_out.to_json(folder / "test.jsonl")
    (folder / "mine.yaml").write_text(f"""
data: {{files: {{train: train.jsonl, test: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
training: {{use_cpu: true, num_train_epochs: 2, disable_tqdm: true, save_strategy: no, report_to: none}}
evaluation: {{split: none}}
""")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_validate_that_finds_nothing_says_what_it_would_take(here):
    done = run("validate", "mine.yaml", "teachers.cache_dir=cache", "evaluation={split: test, seeds: 3}")
    assert done.exit_code == 0, done.output
    said = done.stdout.replace("\n" + " " * 12, " ")  # lines that were wrapped
    lines = {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in said.splitlines()}
    assert lines["rows"] == "64 train, 33 test"
    assert lines["labelled"] == "64 train, 33 test of 2 classes"
    assert re.fullmatch(r"student 0\.0 M, bert 0\.0 M, roberta 0\.0 M", lines["sizes"])
    assert lines["steps"] == "16, 8 in an epoch"
    # Distinct rows, of each two logits of two bytes and an id, twice.
    texts = {row["text"] for name in ("train", "test") for row in _rows(name)}
    assert lines["cache"] == f"about {len(texts) * 2 * (8 + 2 * 2) / 1000:.1f} kB when it holds all rows"
    assert re.match(
        r"about \d+:\d\d \(a rough estimate\): teachers .*, 5 more for the verdict", lines["time"]
    )
    assert (
        "Nothing is wrong with it" in done.stdout
        and "hf-distill train mine.yaml teachers.cache_dir=cache" in done.stdout
    )


def _rows(name: str):
    import json

    return [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]


def test_labels_that_do_not_fit_are_found_without_loading_a_model(here, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForSequenceClassification.from_pretrained", None)
    with pytest.raises(DataError, match="looks like a checkpoint of another task"):
        look_ahead(Setup(load_recipe("mine.yaml", ["data.label_names=[cold, warm]"])))
    Path("odd.jsonl").write_text('{"text": "a film", "label": 5}\n')
    with pytest.raises(DataError, match="5"):
        look_ahead(Setup(load_recipe("mine.yaml", ["data.files.test=odd.jsonl"])))


def test_a_dry_run_runs_all_and_writes_nothing(here):
    done = run(
        "train", "mine.yaml", "--dry-run", "training.output_dir=runs/dry", "teachers.cache_dir=drycache"
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"^time +about .* \(measured on a few rows\)", done.stdout, re.MULTILINE)
    assert "the same command without --dry-run" in done.stdout
    assert not Path("runs/dry").exists() and not Path("drycache").exists()


def test_a_dry_run_of_a_training_that_stops_early(here):
    more = [
        "early_stopping_patience=3",
        "load_best_model_at_end=true",
        "eval_strategy=epoch",
        "save_strategy=epoch",
    ]
    more = ["data.files.validation=test.jsonl", *(f"training.{one}" for one in [*more, "output_dir=runs/early"])]  # fmt: skip
    done = run("train", "mine.yaml", "--dry-run", *more)
    assert done.exit_code == 0, done.output
    assert "measured on a few rows" in done.stdout


def test_evaluations_are_counted_as_the_trainer_counts_them(here):
    more = ["data.files.validation=test.jsonl", "training.eval_strategy=steps"]
    for given, evaluations in (("4", 4), ("0.25", 4), ("0.01", 16)):
        setup = Setup(load_recipe("mine.yaml", [*more, f"training.eval_steps={given}"]))
        assert outlook._evaluations(setup, 16) == evaluations


def test_a_narrower_student_is_a_smaller_one(here, checkpoints):
    student = f"student={{model: {checkpoints['student']}, layers: 1}}"
    whole = look_ahead(Setup(load_recipe("mine.yaml", [student]))).sizes["student"]
    narrow = look_ahead(Setup(load_recipe("mine.yaml", [student, "student.hidden_size=8"])))
    assert narrow.sizes["student"].parameters < 0.8 * whole.parameters
    assert narrow.sizes["student"].body < 0.8**2 * whole.body


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_recipe(
            Setup(load_recipe("mine.yaml", ["training.max_steps=1", "training.output_dir=runs/done"]))
        )
    return folder / "runs" / "done"


def test_another_recipes_run_is_not_replaced_without_a_word(here, finished):
    before = (finished / "model.safetensors").stat().st_mtime_ns
    other = [
        "training.max_steps=1",
        "training.output_dir=runs/done",
        "losses.temperature=4",
        "training.seed=7",
    ]
    done = run("train", "mine.yaml", *other)
    assert done.exit_code == 2
    assert "runs/done holds a run of another recipe" in done.stderr
    assert re.search(r"\| losses.temperature \| 2(\.0)? +\| 4(\.0)? +\|", done.stderr)
    assert re.search(r"\| training.seed +\| – +\| 7 +\|", done.stderr)
    assert "training.output_dir=…" in done.stderr and "--overwrite" in done.stderr
    assert (finished / "model.safetensors").stat().st_mtime_ns == before
    assert run("train", "mine.yaml", *other, "--dry-run").exit_code == 2


def test_more_seeds_logs_and_pushes_are_the_same_run(here, finished):
    same = ["training.max_steps=1", "training.output_dir=runs/done"]
    more = ["evaluation.seeds=3", "training.logging_steps=1", "teachers.cache_dir=c", "hub={repo: a/b}"]
    refuse_replacing(Setup(load_recipe("mine.yaml", [*same, *more])))
    with pytest.raises(ConfigurationError, match="student.max_length"):
        refuse_replacing(Setup(load_recipe("mine.yaml", [*same, "student.max_length=9"])))


def test_what_is_replaced_leaves_nothing_that_would_be_taken_for_the_new(here, finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    for name in ("checkpoint-9", "seed-3/baseline", "verdict", "onnx", "notes"):
        (tmp_path / "run" / name).mkdir(parents=True)
    setup = Setup(load_recipe("mine.yaml", [f"training.output_dir={tmp_path}/run"]))
    with pytest.raises(ConfigurationError):
        refuse_replacing(setup)
    refuse_replacing(setup, overwrite=True)
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"notes"}


def test_differences_go_by_keys():
    before = {"a": {"b": 1, "c": [1]}, "search": {"x": 1}}
    assert differences(before, {"a": {"b": 1, "c": [2], "d": None}}) == [("a.c", [1], [2])]


def test_differences_say_which_teacher(here, finished):
    """A list of teachers is compared entry by entry: cut to the table's width, two long lists look the same."""
    other = ["training.max_steps=1", "training.output_dir=runs/done", "teachers.models.1.name=other"]
    with pytest.raises(ConfigurationError, match=r"teachers.models.1.name +\| – +\| other"):
        refuse_replacing(Setup(load_recipe("mine.yaml", other)))
