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
from hf_distill.markdown import escaped
from hf_distill.verdict.numbers import Group, Training
from hf_distill.verdict.pictures import (
    Point,
    bars,
    class_gains,
    curves_of,
    gains_picture,
    learning_curves,
    measures_of,
    quality_against_latency,
    quality_picture,
)
from hf_distill.verdict.systems import Role

pytestmark = pytest.mark.pictures

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
    assert html.count("<svg") == 2 * len(made)  # each for a desk and for a phone
    assert html.count("The numbers behind this figure") == len(made)
    places = []
    for picture in made:
        assert (
            f"## {picture.title}\n\n![{escaped(picture.alt)}]({picture.file})\n\n{picture.caption}\n" in text
        )
        label = picture.alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        assert html.count(f'aria-label="{" ".join(label.split())}"') == 2 or "\x1b" in label
        caption = escape(picture.caption).replace("&#x27;", "&#39;")
        assert f"<figcaption>{caption}<" in html.replace("\u00a0", " ")
        places.append(text.index(picture.file))
    assert text.index("## At a glance") < places[0] and sorted(places) == places
    assert places[-1] < text.index("## Systems") < text.index("## Differences")
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
    assert hidden.about is None
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
        "distilled student": ("student", 1.0),
        "distilled student, int8": ("exported", 2.0),
        "student of bert alone": ("single", 1.0),  # it costs what the student costs
        "fine-tuned, last step": ("baseline", 1.0),
        "ensemble": ("ensemble", 5.0),
        "teacher big": ("teacher", 6.0),
    }
    figure = quality_against_latency(points)
    styles = {
        (line.get_marker(), line.get_color()) for line in figure.axes[0].lines if line.get_marker() != "None"
    }
    assert len(styles) == len(names)
    assert {text.get_text() for text in figure.axes[0].texts} == {point.name for point in points}


@pytest.mark.parametrize("narrow", [False, True])
def test_no_name_covers_another_or_a_mark_or_leaves_the_picture(narrow):
    """Nine systems, most of one size and nearly alike, as students of several trainings are."""
    kinds = (
        "student",
        "exported",
        "single",
        "baseline",
        "baseline",
        "ensemble",
        "teacher",
        "teacher",
        "given",
    )
    points = [
        Point(
            f"a system of a name {i}",
            2.0 if i < 6 else 6.0 + i,
            Interval(v := 0.70 + 0.004 * (i % 5), v - 0.02, v + 0.02),
            kind,
        )
        for i, kind in enumerate(kinds)
    ]
    figure = quality_against_latency(points, narrow=narrow)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    places = [line.get_transform().transform(line.get_xydata())[0] for line in marks]
    assert len(boxes) == len(points) == len(places)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*place) for place in places)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height


def test_an_interval_that_says_nothing_is_said_and_not_drawn():
    wide = Point("student", 1.0, Interval(0.7, -0.3, 1.7), "student")
    points = [wide, Point("big", 9.0, Interval(0.9, 0.88, 0.92), "teacher")]
    figure = quality_against_latency(points)
    low, high = figure.axes[0].get_ylim()
    assert low > 60 and high < 100
    picture = quality_picture(points, bars(points), QUALITY)
    assert "not drawn where it is so wide that it says nothing (student)" in picture.caption
    assert picture.table.rows[1] == ["student", "1", "70.0", "says nothing"]
    groups = [
        Group("good", 9, {}, Interval(0.1, -0.9, 1.0), {}),
        Group("bad", 90, {}, Interval(0.0, -0.1, 0.1), {}),
    ]
    assert class_gains(groups).axes[0].get_xlim()[0] > -15
    made = gains_picture(groups, "a minus b", CLASSES)
    assert "No interval is drawn where it is so wide that it says nothing: good." in made.caption
    assert (
        made.alt
        == "What each of 2 classes gains, a minus b. Most: good, +10.0 points. Least: bad, +0.0 points."
    )


def test_every_figure_says_what_it_shows_and_has_its_numbers(report):
    for picture in report.pictures():
        assert len(picture.alt) > 40 and picture.table.rows
        assert all(len(row) == len(picture.table.header) for row in picture.table.rows)
        assert "viewBox" in picture.svg(narrow=True) and picture.svg(narrow=True) != picture.svg()


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
    figure = learning_curves(curves_of(trainings), ["loss_task", "eval_nll"])
    left, right = figure.axes
    assert right.get_title() == "validation NLL, nats"
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["distilled", "fine-tuned", "distilled from one teacher"]
    assert len({line.get_color() for line in left.lines}) == 3 and len(left.lines) == 4


def test_a_log_without_numbers_draws_no_learning_curves(report):
    odd = dataclasses.replace(report, trainings=(Training("student", 4, 2, 1.0, None, ({"epoch": 1.0},)),))
    assert LEARNING not in {picture.file for picture in odd.pictures()}
    assert HOSTILE not in odd.document().html()
