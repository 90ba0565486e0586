"""The recipes of the repository: each is right, says what it is, and is listed."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_distill.errors import ConfigurationError
from hf_distill.recipe import Setup, load_recipe
from hf_distill.recipe.setup import write_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
DATA = ROOT.parent / "shared" / "data"
every_recipe = pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
every_local_one = pytest.mark.parametrize(
    "file", [file for file in RECIPES if file.stem.startswith("local_")], ids=lambda file: file.stem
)


def test_the_promised_ones_are_there():
    names = {file.stem for file in RECIPES}
    assert names >= {"sst2", "mnli", "ag_news", "banking77"}
    assert names >= {"local_sst2", "local_trec6", "local_ag_news", "local_banking77", "local_mrpc"}


@every_recipe
def test_it_is_right(file):
    recipe = load_recipe(file, check_files=False)
    assert len(recipe.teachers.models) >= {"local_stsb_cross": 2}.get(file.stem, 3)
    assert recipe.training["output_dir"] == f"runs/{file.stem}"


@every_recipe
def test_what_a_run_would_write_is_the_same_recipe(file, tmp_path):
    recipe = load_recipe(file, ["losses.temperature=3"], check_files=False)
    own = Setup(recipe).trusted  # code beside the recipe, which a stored one may not name by itself
    assert load_recipe(write_recipe(recipe, tmp_path), check_files=False, trust=own) == recipe


@every_recipe
def test_its_header_says_what_it_is_and_how_it_runs(file):
    text = file.read_text(encoding="utf-8")
    header = re.match(r"(?:#.*\n)+", text).group()
    for word in ("# teachers ", "# student ", "# data ", "# run "):
        assert word in header
    assert f"hf-distill train recipes/{file.name}" in header
    assert ("Not run offline" in header) == (not file.stem.startswith("local_"))
    assert max(map(len, text.splitlines())) <= 120


@every_local_one
def test_its_tokens_are_as_many_as_the_tokenizer_takes(file):
    """The student reads with the tokenizer of the teacher that the header's command makes."""
    command = r"(?:train|encoder)_teachers.py \w+(?: --task[^\n]*)?(?: --max-length (\d+))?\n"
    made = re.search(command, file.read_text(encoding="utf-8"))
    recipe = load_recipe(file, check_files=False)
    if not Setup(recipe).task.content.of_tokens:
        assert recipe.student.max_length is None
        return
    student = recipe.student
    assert student.max_length <= int(made.group(1) or 64)
    assert student.config is None or student.max_length <= student.config["max_position_embeddings"]


@every_recipe
def test_it_is_listed(file):
    assert f"[{file.name}]({file.name})" in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")


@every_local_one
def test_its_data_is_what_it_says(file, monkeypatch):
    if not DATA.is_dir():
        pytest.skip(f"the data sets are not at {DATA}")
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file, check_files=False)
    meta = json.loads((Path(recipe.data.files.train[0]).parent / "meta.json").read_text(encoding="utf-8"))
    assert list(recipe.data.label_names or ()) == (meta["labels"] or [])
    setup = Setup(recipe)
    assert list(recipe.data.text_columns) == meta.get("input_columns", list(setup.task.text_columns))
    rows = setup.rows
    assert {split: len(dataset) for split, dataset in rows.items()} == {
        split: meta["splits"][split]["rows"] for split in ("train", "validation", "test")
    }
    assert setup.split == "test"
    column, names = recipe.data.label_column, recipe.data.label_names or (recipe.data.label_column,)
    encode = setup.task.label_reader(column, names).encoder(rows["train"].features[column])
    labels = np.array(encode(rows["train"][column][:], range(len(rows["train"]))))
    if labels.ndim == 1:
        assert set(labels.tolist()) == set(range(len(names)))
    else:  # a number for each output, and each of them in some row
        assert labels.shape[1] == len(names) and np.isfinite(labels).all() and (labels > 0).any(0).all()


@pytest.mark.slow
def test_the_scripts_run_on_a_small_folder(tmp_path, rows, held_out):
    """train_teachers.py, then distill.py, as their headers say, on files of the same form."""
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    plain = {"train": rows, "validation": held_out, "test": held_out}
    for split, dataset in plain.items():
        dataset.cast_column("label", datasets.Value("int64")).to_json(
            folder / f"{split}.jsonl.gz", compression="gzip"
        )
    meta = {"labels": ["negative", "positive"], "input_columns": ["text"]}
    (folder / "meta.json").write_text(json.dumps(meta))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for script, options in (("train_teachers.py", ["--output", "runs/teachers"]), ("distill.py", [])):
        done = subprocess.run(
            [sys.executable, ROOT / "recipes" / script, "tiny", "--data", "data", "--epochs", "1", *options],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^student  .*^baseline  ", done.stdout, re.MULTILINE | re.DOTALL)
    assert (tmp_path / "runs" / "tiny-student" / "report.json").is_file()


@pytest.fixture
def run_script(tmp_path, monkeypatch, capsys, checkpoints, rows, held_out):
    """Runs a script of recipes/ on a recipe with two small teachers, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")
    Path("tiny.yaml").write_text(f"""
data: {{files: {{train: train.jsonl, test: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {{model: {checkpoints["roberta"]}, name: second}}]}}
student:
  config: {{model_type: distilbert, dim: 24, n_layers: 1, n_heads: 2, hidden_dim: 48}}
  tokenizer: {checkpoints["bert"]}
  max_length: 24
fusion: {{use: log_pool, weights: [3, 1]}}
training: {{use_cpu: true, max_steps: 2, seed: 5, disable_tqdm: true, save_strategy: no, report_to: none}}
""")

    def run(script: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, "tiny.yaml", *options])
        runpy.run_path(str(ROOT / "recipes" / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_born_again_students_teach_the_next_generation(run_script):
    printed = run_script(
        "born_again.py", "--generations", "3", "--students", "2", "training.learning_rate=1e-3"
    )
    assert printed.index("Generation 1, student 1") < printed.index("Generation 3, student 2")
    root = Path("runs/tiny-born-again")
    recipes = {
        (g, s): load_recipe(root / f"generation-{g}" / f"student-{s}" / "recipe.yaml")
        for g in (1, 2, 3)
        for s in (1, 2)
    }
    assert [entry.name for entry in recipes[1, 2].teachers.models] == [None, "second"]
    for (g, s), recipe in recipes.items():
        assert (recipe.training["seed"], recipe.training["learning_rate"]) == (4 + s, 1e-3)
        assert (root / f"generation-{g}" / f"student-{s}" / "report.json").is_file()
        if g > 1:
            parents = [str(root / f"generation-{g - 1}" / f"student-{i}") for i in (1, 2)]
            assert [entry.model for entry in recipe.teachers.models] == parents
            assert {entry.max_length for entry in recipe.teachers.models} == {24}
            assert recipe.fusion == "linear_pool"
            assert f"teacher:student-{s}" in printed


@pytest.mark.parametrize("with_teachers", [False, True])
def test_the_assistant_teaches_the_student(run_script, with_teachers):
    more = ["--with-teachers", "fusion=linear_pool", "training.output_dir=here"] if with_teachers else []
    printed = run_script("teaching_assistant.py", "--assistant", "student.config.n_layers=2", *more)
    assert printed.index("The assistant") < printed.index("The student")
    root = Path("here" if with_teachers else "runs/tiny-assisted")
    assistant, student = (load_recipe(root / name / "recipe.yaml") for name in ("assistant", "student"))
    assert (assistant.student.config["n_layers"], student.student.config["n_layers"]) == (2, 1)
    assert [entry.name for entry in assistant.teachers.models] == [None, "second"]
    heard = [entry.model for entry in student.teachers.models]
    assert heard[-1] == str(root / "assistant")
    assert heard[:-1] == ([entry.model for entry in assistant.teachers.models] if with_teachers else [])
    assert json.loads((root / "student" / "config.json").read_text())["n_layers"] == 1


def test_a_second_stage_that_cannot_be_is_refused_before_the_first(run_script):
    """Two weights of fusion, and three teachers in the second stage."""
    with pytest.raises(ConfigurationError, match="expected one weight per teacher, 3; found 2"):
        run_script("teaching_assistant.py", "--with-teachers", "--assistant", "student.config.n_layers=2")
    assert not Path("runs").exists()
