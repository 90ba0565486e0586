"""A verdict that is read back is the one that was saved, and damage is said in a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from test_verdict import judged, run  # noqa: F401 - the fixture of three seeds on 300 rows
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.errors import CorruptStateError
from hf_distill.evaluation.results import EvaluationReport, SystemResult
from hf_distill.evaluation.statistics import Interval
from hf_distill.verdict.reading import load_report


@pytest.fixture(scope="module")
def report(run):  # noqa: F811
    return judged(run)


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    report.save(folder)
    return folder


@pytest.mark.pictures
def test_what_is_read_is_what_was_saved(report, saved):
    again = load_report(saved)
    assert again == report
    assert again.to_dict() == json.loads((saved / "report.json").read_text())
    assert f"{again.document().markdown()}\n" == (saved / "report.md").read_text()
    assert f"{again.document().html()}\n" == (saved / "report.html").read_text()
    assert again.files() == {
        path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()
    }


def test_without_baseline_costs_or_seeds(run, tmp_path):  # noqa: F811
    one = judged(
        dataclasses.replace(Run(**vars(run)), students=run.students[:1], baselines=[]), costs={}, texts=None
    )
    one.save(tmp_path)
    assert load_report(tmp_path) == one
    assert one.claim.gain is None and one.costs == {} and one.disagreements == ()


@dataclasses.dataclass
class Run:
    students: list
    baselines: list
    teachers: object
    labels: object
    ids: object


def test_a_number_that_was_not_finite_is_not_a_number(report, tmp_path):
    systems = {**report.evaluation.systems, "ensemble": SystemResult({"nll": math.inf}, None)}
    odd = dataclasses.replace(
        report,
        evaluation=dataclasses.replace(report.evaluation, systems=systems),
        differences=(report.differences[0]._replace(value=Interval(0.5, math.nan, math.nan)),),
        trainings=(report.trainings[0]._replace(log=({"step": 1, "eval_nll": math.nan},)),),
        disagreements=(report.disagreements[0]._replace(kl=math.inf),),
    )
    odd.save(tmp_path)
    again = load_report(tmp_path)
    assert again.to_dict() == odd.to_dict()
    assert math.isnan(again.evaluation.systems["ensemble"].metrics["nll"])
    assert again.evaluation.systems["ensemble"].parameters is None
    assert math.isnan(again.differences[0].value.low) and not again.differences[0].value.beyond_chance
    assert math.isnan(again.trainings[0].log[0]["eval_nll"]) and math.isnan(again.disagreements[0].kl)
    again.save(tmp_path)  # can be drawn and written
    assert load_report(tmp_path).to_dict() == odd.to_dict()


def test_what_is_no_verdict_is_none(tmp_path):
    assert load_report(tmp_path) is None
    EvaluationReport("text-classification", "test", 2, {"student": SystemResult({"a": 0.5}, 9)}).save(
        tmp_path
    )
    assert load_report(tmp_path) is None


def damage(key, value):
    def change(content):
        *path, last = key.split(".")
        for part in path:
            content = content[int(part) if isinstance(content, list) else part]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage("version", 3), "version 3 is newer than this package, which knows 2"),
        (damage("version", None), "'version' is missing"),
        (damage("claim", None), "missing 1 required positional argument: 'claim'"),
        (damage("cost", None), "'cost' is missing"),
        (damage("systems.student.std", None), "'std' is missing"),
        (damage("differences.0.value.low", None), "missing 1 required positional argument: 'low'"),
        (damage("differences.0.value.low", "much"), "could not convert string to float"),
        (damage("sentences", "one"), "expected a list, found 'one'"),
        (damage("seeds", [1.5]), "expected int, found 1.5"),
        (damage("disagreements.0.student", ["cold"]), "shorter than argument"),
        (damage("systems", [1]), "cannot be read"),
        (damage("reliability", 3), "cannot be read"),
    ],
)
def test_damage_is_said(saved, tmp_path, change, words):
    content = json.loads((saved / "report.json").read_text())
    change(content)
    (tmp_path / "report.json").write_text(json.dumps(content))
    refused(tmp_path, words)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b"null"])
def test_what_is_no_json_object_is_damaged(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    refused(tmp_path, "")


def refused(folder, words):
    with pytest.raises(CorruptStateError) as raised:
        load_report(folder)
    said = str(raised.value)
    assert said.startswith(f"{folder / 'report.json'} cannot be read (") and words in said, said
    assert said.endswith("): evaluate again, or remove it.") and "\n" not in said


def test_keys_of_a_later_package_of_the_same_version_are_passed_over(report, saved, tmp_path):
    content = json.loads((saved / "report.json").read_text())
    content["more"] = content["systems"]["student"]["more"] = content["claim"]["more"] = 1
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert load_report(tmp_path) == report


def test_a_verdict_of_an_older_package_is_refused_in_a_sentence(tmp_path):
    """It does not say of what answers it is, nor what its systems are but for their names."""
    shutil.copy(Path(__file__).parent / "stored" / "report-1.json", tmp_path / "report.json")
    refused(tmp_path, "version 1 is older than this package, which knows 2")
    done = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert done.exit_code == 5 and len(done.stderr.strip().splitlines()) == 1
