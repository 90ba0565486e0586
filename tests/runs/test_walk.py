"""The walk of the quickstart, from three checkpoints of one's own to a page, as it is written there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.runs.verdict import judgement
from hf_distill.runs.verdict.jobs import Place

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"


def walk() -> list[list[str]]:
    (block,) = re.findall(r"^```walk\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


def test_the_walk_goes_from_files_to_a_page():
    assert [words[0] for words in walk()] == [
        *("init", "validate", "train", "train", "predict", "predict", "train", "compare")
    ]


@pytest.mark.slow
def test_the_walk_arrives(tmp_path, checkpoints, rows, held_out, monkeypatch):
    for name, folder in checkpoints.items():
        shutil.copytree(folder, tmp_path / (name if name == "student" else f"teachers/{name}"))
    rows.to_json(tmp_path / "train.jsonl")
    held_out.to_json(tmp_path / "test.jsonl")
    monkeypatch.chdir(tmp_path)
    # In this process, and timed shortly: an import of torch costs seconds.
    monkeypatch.setattr(judgement, "places", lambda device: [Place()])
    timed = judgement.time_model
    monkeypatch.setattr(judgement, "time_model", lambda *a, **k: timed(*a, **{**k, "seconds": 0.02}))
    said = []
    for words in walk():
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output[-3000:], done.exception)
        said.append(done.stdout)
    assert "CHECK" in said[0] and "Nothing is wrong with it" in said[0]
    assert "0 negative  0 'negative'  1 'NEGATIVE'" in said[1]
    assert "measured on a few rows" in said[2]
    assert "report.html" in said[3]
    page = Path("runs/first/report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html") and "student" in page
    assert '"label": ' in said[4] and len(said[5].splitlines()) == 33
