"""The table of docs/extending.md, tried: what is added lies in one file, takes one line of its table, and is used by its name."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_student
from hf_distill import (
    FUSIONS,
    HIDDEN_LOSSES,
    LOSSES,
    DistillationArguments,
    MultiTeacherDistillationTrainer,
    load_recipe,
)
from hf_distill.errors import ConfigurationError
from hf_distill.evaluation.metrics import METRICS
from hf_distill.fusion import build_fusion, describe
from hf_distill.rows.preparing import example_id

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_distill"

# One file each, as a stranger would write it.
FILES = {
    "fusion": '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Sharpened:
    """The mean of the teachers' log-probabilities, times a power."""

    power: float = 2.0

    def __call__(self, teacher_logits, *, temperature=1.0, labels=None, mask=None):
        return ((teacher_logits / temperature).log_softmax(-1).mean(0) * self.power).log_softmax(-1)
''',
    "loss": '''
def overlap(student_logits, target_log_probs, *, temperature):
    """One minus what the two distributions have in common (N,)."""
    student = (student_logits.float() / temperature).softmax(-1)
    return 1 - (student.sqrt() * (0.5 * target_log_probs).exp()).sum(-1)
''',
    "hidden": '''
def hidden_l1(student, teacher, mask):
    """Mean absolute difference of states (N, D), or over valid positions of (N, L, D)."""
    values = (student.float() - teacher.float()).abs().mean(-1)
    return values if mask is None else (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
''',
    "metric": '''
import numpy as np

from hf_distill.evaluation.metrics import Accuracy


class ErrorRate(Accuracy):
    """Share of rows that are wrong."""

    name = "error_rate"

    def _compute(self, predictions, references):
        return {self.name: float(np.mean(np.asarray(predictions) != np.asarray(references)))}
''',
    "source": '''
import torch

from hf_distill.fusion.alignment import TeacherOutputs


class Lookup:
    """A teacher that reads its logits from a dictionary by the rows' ids; it needs no tokens."""

    name, label_names, view = "lookup", ("positive", "negative"), None

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, view, example_ids):
        return TeacherOutputs(torch.tensor([self.logits[i] for i in example_ids.tolist()]))
''',
}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The modules of the files above; where the docs say so, with one line in a table."""
    folder = tmp_path / "added"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"added_{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    modules = {name: importlib.import_module(f"added_{name}") for name in FILES}
    monkeypatch.setitem(FUSIONS, "sharpened", modules["fusion"].Sharpened)
    monkeypatch.setitem(LOSSES, "overlap", modules["loss"].overlap)
    monkeypatch.setitem(HIDDEN_LOSSES, "hidden_l1", modules["hidden"].hidden_l1)
    monkeypatch.setitem(METRICS, "error_rate", modules["metric"].ErrorRate)
    yield modules
    for name in FILES:
        sys.modules.pop(f"added_{name}", None)


RECIPE = """
data: {files: {train: train.jsonl, validation: test.jsonl}, label_names: [negative, positive]}
teachers: {models: [bert]}
student: {model: student}
fusion: {use: sharpened, power: 3}
losses: {distill: overlap, hidden: [hidden_l1]}
evaluation: {metrics: [accuracy, error_rate]}
"""


def test_a_recipe_takes_the_new_names(added, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(path, check_files=False)
    assert build_fusion(recipe.fusion) == added["fusion"].Sharpened(power=3)
    assert describe(added["fusion"].Sharpened(power=3)) == {"use": "sharpened", "power": 3}
    with pytest.raises(ConfigurationError, match="did you mean 'sharpened'"):
        load_recipe(path, ["fusion=sharpend"], check_files=False)


def test_one_run_uses_all_of_them_by_name(
    added, tmp_path, rows, held_out, checkpoints, bert_tokenizer, capsys, monkeypatch
):
    """A training and its evaluation, with a teacher source of one's own beside a checkpoint."""
    monkeypatch.setenv("COLUMNS", "160")
    known = {
        example_id([row["text"]]): [2.0, -2.0] if row["label"] else [-2.0, 2.0]  # its order: positive first
        for part in (rows, held_out)
        for row in part
    }
    trainer = MultiTeacherDistillationTrainer(
        model=make_student(bert_tokenizer),
        teachers=[checkpoints["bert"], added["source"].Lookup(known)],
        fusion={"use": "sharpened", "power": 3},
        distillation_loss="overlap",
        hidden_losses=[{"loss": "hidden_l1", "teachers": ["bert"]}],
        args=DistillationArguments(
            output_dir=str(tmp_path / "out"), max_steps=1, logging_steps=1, use_cpu=True, disable_tqdm=True
        ),
        train_dataset=rows,
        processing_class=bert_tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert 0 < logged["loss_distill"] < 1 and logged["loss_hidden_l1/bert"] > 0
    table = capsys.readouterr().out
    assert "hidden_l1" in table and "same tokens" in table
    trainer.save_model()
    report = trainer.evaluate_ensemble(held_out, metrics=["accuracy", "error_rate"])
    for system in report.systems.values():
        assert system.metrics["error_rate"] == pytest.approx(1 - system.metrics["accuracy"])
    assert report.systems["teacher:lookup"].metrics["accuracy"] == 1.0
    assert report.fusion == "sharpened(power=3)"
    assert '"use": "sharpened"' in (tmp_path / "out" / "fusion.json").read_text(encoding="utf-8")


RUN = '''
"""How many rows a recipe has."""


def count_rows(setup):
    """Rows by split."""
    return {split: len(rows) for split, rows in setup.rows.items()}
'''

COMMAND = '''
from .shared import Overrides, RecipeFile, load


def count(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Say how many rows a recipe has."""
    from ..runs.count import count_rows

    print(count_rows(load(recipe, overrides)))
'''


def test_a_command_is_its_run_its_file_and_a_line(tmp_path, rows, held_out):
    """In a copy of the package."""
    package = tmp_path / "hf_distill"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "runs" / "count.py").write_text(RUN, encoding="utf-8")
    (package / "cli" / "count.py").write_text(COMMAND, encoding="utf-8")
    face = package / "cli" / "__init__.py"
    text = face.read_text(encoding="utf-8")
    face.write_text(text.replace("COMMANDS = [", 'COMMANDS = [\n    "count",', 1), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "data: {files: {train: train.jsonl, test: test.jsonl}}\n"
        "teachers: {models: [org/bert]}\nstudent: {model: org/student}\n",
        encoding="utf-8",
    )
    rows.to_json(tmp_path / "train.jsonl")
    held_out.to_json(tmp_path / "test.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "hf_distill", "count", "recipe.yaml"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "{'train': 64, 'test': 33}" in done.stdout


def opened() -> dict[str, list[str]]:
    """The table of the page: what is added, and its other cells."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (an? [^|]+) \| (\d[^|]*) \| ([^|]*) \| ([^|]*) \|$", page, flags=re.MULTILINE)
    return {name: cells for name, *cells in lines}


def test_the_table_says_how_many_files_and_which_line():
    counts = {name: count for name, (count, _, _) in opened().items()}
    assert counts == {
        "a fusion": "1 + 1",
        "a distillation loss": "1 + 1",
        "a hidden loss": "1 + 1",
        "a metric": "1 + 1",
        "a task": "1 + 1",
        "a teacher source": "1",
        "a command": "2 + 1",
    }
    for name, (count, files, line) in opened().items():
        named = re.findall(r"`([a-z_/]+(?:NAME)?(?:\.py)?)`", files)
        assert len(named) == int(count[0]), name
        for file in named:
            assert (PACKAGE / file.replace("NAME", "audit")).exists(), file
        if "+" in count:
            table, module = re.findall(r"`([\w/.]+)`", line)[:2]
            assert (PACKAGE / module).is_file()
            module = ".".join((PACKAGE / module).relative_to(ROOT).with_suffix("").parts)
            assert isinstance(
                getattr(importlib.import_module(module.removesuffix(".__init__")), table), (dict, list)
            )


@pytest.mark.parametrize(
    ("name", "definition", "table"),
    [
        ("MajorityVote", "fusion/selection.py", "fusion/table.py"),
        ("PoolThenTemper", "fusion/pool_then_temper.py", "fusion/table.py"),
        ("reverse_kl", "losses/distributions.py", "losses/__init__.py"),
        ("pkd", "losses/representations.py", "losses/__init__.py"),
        ("MatthewsCorrelation", "evaluation/metrics.py", "evaluation/metrics.py"),
    ],
)
def test_what_is_built_in_is_named_in_its_file_and_its_table_alone(name, definition, table):
    """A room's face and the public names may hand it on; nothing else in the package knows it."""
    naming = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        # It reads what was written when built-ins had other names, so it knows those of then.
        if file != PACKAGE / "training" / "resuming.py"
        and re.search(rf"\b{name}\b", file.read_text(encoding="utf-8"))
    }
    assert {definition, table} <= naming <= {definition, table, f"{definition.split('/')[0]}/__init__.py"}
