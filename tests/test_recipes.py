"""The recipes of the repository: each is right, says what it is, and is listed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from hf_distill.recipe import evaluation_split, load_data, load_recipe
from hf_distill.recipe.building import write_recipe

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
    assert len(recipe.teachers.models) == 3
    assert recipe.training["output_dir"] == f"runs/{file.stem}"


@every_recipe
def test_what_a_run_would_write_is_the_same_recipe(file, tmp_path):
    recipe = load_recipe(file, ["fusion=log_pool"], check_files=False)
    assert load_recipe(write_recipe(recipe, tmp_path), check_files=False) == recipe


@every_recipe
def test_its_header_says_what_it_is_and_how_it_runs(file):
    text = file.read_text(encoding="utf-8")
    header = re.match(r"(?:#.*\n)+", text).group()
    for word in ("# teachers ", "# student ", "# data ", "# run "):
        assert word in header
    assert f"hf-distill train recipes/{file.name}" in header
    assert ("Not run offline" in header) == (not file.stem.startswith("local_"))
    assert max(map(len, text.splitlines())) <= 120


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
    assert list(recipe.data.label_names) == meta["labels"]
    assert list(recipe.data.text_columns) == meta["input_columns"]
    rows = load_data(recipe)
    assert {split: len(dataset) for split, dataset in rows.items()} == {
        split: meta["splits"][split]["rows"] for split in ("train", "validation", "test")
    }
    assert evaluation_split(recipe, rows) == "test"
    assert set(rows["train"]["label"][:]) == set(range(len(meta["labels"])))


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
    assert "| student " in done.stdout and "| baseline " in done.stdout
    assert (tmp_path / "runs" / "tiny-student" / "report.json").is_file()
