"""Runs on different data sets: the mean gain over sets, wins and losses, by hand, and what cannot be judged so."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from test_comparing import better, changed, save
from test_verdict import run  # noqa: F401 - the fixture of three seeds and two teachers on 300 rows
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.errors import DataError
from hf_distill.verdict import compare_sets


def elsewhere(own, by):
    """The same answers to other rows."""

    def moved(saved):
        return changed(saved, rows=saved.rows._replace(example_ids=saved.rows.example_ids + by))

    parts = {part: [moved(s) for s in getattr(own, part)] for part in ("students", "baselines")}
    return SimpleNamespace(**{**vars(own), **parts, "teachers": moved(own.teachers), "ids": own.ids + by})


@pytest.fixture(scope="module")
def sets(run, tmp_path_factory):  # noqa: F811
    """Three data sets: students that gain much, more, and one that is worse, of one seed."""
    folder = tmp_path_factory.mktemp("sets")
    save(folder / "a", run)
    save(folder / "b", elsewhere(better(run), 10_000))
    worse = elsewhere(better(run, quality=-1.0), 20_000)
    save(
        folder / "c",
        SimpleNamespace(**{**vars(worse), "students": worse.students[:1], "baselines": worse.baselines[:1]}),
    )
    return folder


def test_mean_gain_wins_ties_and_losses_by_hand(sets):
    found = compare_sets([sets / name for name in "abc"])
    gains = [own.gain.value.value for own in found.sets]
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found.gain == pytest.approx((np.mean(gains), low, high))
    assert (found.wins, found.ties, found.losses, found.above) == (2, 1, 0, 2)  # one seed says nothing
    assert gains[2] < 0 and found.sets[2].seeds == (4,)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(gains).pvalue)
    assert (
        "2 wins, 1 ties, 0 losses" in found.sentences[0] and "tie whatever came out: c" in found.sentences[2]
    )


def test_from_the_command_line(sets, tmp_path):
    done = CliRunner().invoke(
        app, ["compare", *(str(sets / name) for name in "ab"), "--output", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "Over 2 data sets distillation gained +" in done.stdout and "mean over sets" in done.stdout
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert (
        content["wins"] == 2 and len(content["sets"]) == 2 and content["verdict"] == content["sentences"][0]
    )
    assert "Over 2 data sets" in (tmp_path / "comparison.md").read_text()
    assert "Over 2 data sets" in (tmp_path / "comparison.html").read_text().replace("\u00a0", " ")


def test_one_data_set_is_no_sample_of_sets(run, sets, tmp_path):  # noqa: F811
    save(tmp_path / "again", better(run))
    with pytest.raises(DataError, match="rows in common or are one"):
        compare_sets([sets / "a", tmp_path / "again"])
    with pytest.raises(DataError, match="needs one run on each"):
        compare_sets([sets / "a"])
    lone = elsewhere(run, 30_000)
    save(tmp_path / "lone", SimpleNamespace(**{**vars(lone), "baselines": []}))
    with pytest.raises(DataError, match="no fine-tuned student"):
        compare_sets([sets / "a", tmp_path / "lone"])
