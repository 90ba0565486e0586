"""The figures of a verdict: the same on the page and beside report.md, none left over, and none with a text of a row."""

from __future__ import annotations

import dataclasses
import io
import re
from html import escape

import matplotlib
import numpy as np
import pytest
from PIL import Image
from test_verdict import HOSTILE, judged, run  # noqa: F401 - the fixture of three seeds on 300 rows

from hf_distill.evaluation.cost import Cost
from hf_distill.evaluation.report_files import CLASSES, LEARNING, PICTURE_FILES, QUALITY, RELIABILITY
from hf_distill.evaluation.statistics import Interval
from hf_distill.verdict.numbers import Training
from hf_distill.verdict.pictures import Point, learning_curves, measures_of, quality_against_latency
from hf_distill.verdict.systems import Role

LOG = ({"step": 10, "loss_task": 1.0, "eval_nll": 0.7}, {"step": 20, "loss_task": 0.5, "eval_nll": 0.6})


@pytest.fixture(scope="module")
def report(run):  # noqa: F811
    return judged(run)


def test_the_page_and_the_folder_have_the_same_figures(report, tmp_path):
    report.save(tmp_path)
    made = report.pictures()
    assert (
        [picture.file for picture in made] == [QUALITY, RELIABILITY, LEARNING, CLASSES] == list(PICTURE_FILES)
    )
    text, html = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert html.count("<svg") == len(made)
    places = []
    for picture in made:
        assert f"## {picture.title}\n\n![{picture.title}]({picture.file})\n\n{picture.caption}\n" in text
        assert f'aria-label="{picture.title}"' in html and f"<figcaption>{escape(picture.caption)}<" in html
        places.append(text.index(picture.file))
    assert text.index("## Systems") < places[0] and sorted(places) == places
    assert places[-1] < text.index("## Differences")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")} == set(PICTURE_FILES)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_they_are_opaque_and_show_something(report):
    for picture in report.pictures():
        image = Image.open(io.BytesIO(picture.png()))
        assert 700 < image.width < 2000 and 300 < image.height < 2000
        pixels = np.asarray(image.convert("RGBA"))
        assert (pixels[..., 3] == 255).all() and (pixels[0, 0] == 255).all()
        assert pixels[..., :3].std() > 10


def test_the_users_settings_do_not_matter(report):
    usual = [picture.png() for picture in report.pictures()]
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "figure.dpi": 31}):
        assert [picture.png() for picture in report.pictures()] == usual


def test_figures_that_no_longer_apply_go(report, tmp_path):
    report.save(tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"x")
    quiet = tuple(training._replace(log=()) for training in report.trainings)
    groups = tuple(group._replace(gain=None) for group in report.per_class)
    less = dataclasses.replace(report, costs={}, trainings=quiet, per_class=groups)
    less.save(tmp_path)
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert left == {"reliability.png", "mine.png"}
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", text) == [RELIABILITY]
    dataclasses.replace(less, reliability={}).save(tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"mine.png"}


def test_without_texts_nothing_of_a_row_is_left_but_its_answers(report):
    hidden = report.without_texts()
    whole, files = report.files(), hidden.files()
    assert set(files) == set(whole)
    # The teacher has the hostile name too, so the rows' own part tells them.
    assert sum(b"row " in content and b"evil" in content for content in whole.values()) == 3
    for row in report.disagreements:
        words = row.text.split(" / ")[0]
        assert not any(re.search(rf"\b{words}\b".encode(), content) for content in files.values())
        assert re.search(rf"\b{words}\b".encode(), whole["report.md"])
    assert [row[1:] for row in hidden.disagreements] == [row[1:] for row in report.disagreements]
    note = "Texts of rows are not published"
    assert (
        note in hidden.document().markdown()
        and note in hidden.document().html()
        and note not in report.document().markdown()
    )
    section = hidden.sections()[-1]
    assert section.header == ["label", "ensemble", "student", "KL"] and len(section.rows) == 20
    assert all(len(row) == 4 for row in section.rows)
    assert hidden.without_texts() == hidden
    kept = [name for name in PICTURE_FILES if files[name] == whole[name]]
    assert kept == list(PICTURE_FILES)


def test_names_with_signs_of_mathematics_are_shown_as_they_are(report):
    name = "$\\frac{$"
    odd = dataclasses.replace(
        report,
        accuracies={name: Interval(0.5, 0.4, 0.6), "student": Interval(0.6, 0.5, 0.7)},
        roles={**report.roles, name: Role("given", name)},
        costs={name: Cost(p50=0.002), "student": Cost(p50=0.001)},
        reliability={name: report.reliability["student"]},
        per_class=tuple(group._replace(name=name) for group in report.per_class),
    )
    assert set(PICTURE_FILES) < set(odd.files())


def test_every_kind_of_system_has_its_place(report):
    kinds = {
        "student": "",
        "exported": "int8",
        "single": "bert",
        "baseline": "last",
        "ensemble": "",
        "teacher": "big",
    }
    roles = {role.name: role for kind, of in kinds.items() if (role := Role(kind, of))}
    names = [
        "student",
        "student, int8",
        "student of bert",
        "fine-tuned, last step",
        "ensemble",
        "teacher:big",
    ]
    assert list(roles) == names
    interval = Interval(0.5, 0.4, 0.6)
    shown = dataclasses.replace(
        report,
        accuracies=dict.fromkeys(names, interval),
        roles={**report.roles, **roles},
        costs={name: Cost(p50=0.001 * (i + 1)) for i, name in enumerate(names) if "of bert" not in name},
    )
    (points,) = shown.pictures()[0].arguments
    assert {point.name: (point.kind, point.latency) for point in points} == {
        "student": ("student", 1.0),
        "student, int8": ("exported", 2.0),
        "student of bert": ("single", 1.0),  # it costs what the student costs
        "fine-tuned, last step": ("baseline", 1.0),
        "ensemble": ("ensemble", 5.0),
        "teacher:big": ("teacher", 6.0),
    }
    figure = quality_against_latency(points)
    styles = {
        (line.get_marker(), line.get_color()) for line in figure.axes[0].lines if line.get_marker() != "None"
    }
    assert len(styles) == len(names)
    assert {text.get_text() for text in figure.axes[0].texts} == set(names)


def test_a_name_hides_lines_behind_it_and_no_point():
    points = [
        Point("a", 1.0, Interval(0.5, 0.4, 0.6), "teacher"),
        Point("b", 9.0, Interval(0.9, 0.8, 1.0), "student"),
    ]
    axes = quality_against_latency(points).axes[0]
    names = {text.get_zorder() for text in axes.texts}
    assert all(text.get_bbox_patch() is not None for text in axes.texts)
    marks = {line.get_zorder() for line in axes.lines if line.get_marker() not in ("None", "")}
    lines = {line.get_zorder() for line in axes.lines if line.get_marker() in ("None", "")}
    assert max(lines) < min(names) and max(names) < min(marks)


def test_learning_curves_have_a_panel_for_each_thing_that_was_logged():
    def trained(log, part="student"):
        return Training(part, 0, 20, 1.0, None, log)

    assert measures_of([trained(LOG)]) == ["loss_task", "eval_nll"]
    assert measures_of([trained(({"step": 1, "eval_loss": 2.0},))]) == ["eval_loss"]
    assert measures_of([trained(({"step": 1, "eval_loss": 2.0, "eval_accuracy": 0.5},))]) == ["eval_accuracy"]
    assert measures_of([trained(({"step": 1, "eval_nll": float("nan"), "epoch": 1.0},)), trained(())]) == []
    trainings = [trained(LOG), trained(LOG, "baseline"), trained(LOG, "single"), trained(LOG)]
    left, right = learning_curves(trainings, ["loss_task", "eval_nll"]).axes
    assert right.get_title() == "validation NLL, nats"
    named = [text.get_text() for text in left.get_legend().get_texts()]
    assert named == ["distilled", "fine-tuned", "distilled from one teacher"]
    assert len({line.get_color() for line in left.lines}) == 3 and len(left.lines) == 4


def test_a_log_without_numbers_draws_no_learning_curves(report):
    odd = dataclasses.replace(report, trainings=(Training("student", 4, 2, 1.0, None, ({"epoch": 1.0},)),))
    assert LEARNING not in {picture.file for picture in odd.pictures()}
    assert HOSTILE not in odd.document().html()
