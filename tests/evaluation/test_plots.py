"""The figures: what they show, that names cannot break them, and that the caller's matplotlib stays as it was."""

from __future__ import annotations

import math
import struct
import warnings

import matplotlib
import numpy as np
import pytest

from hf_distill.evaluation.plots import (
    AttentionRow,
    agreement_heat_map,
    attention_grid,
    empty_figure,
    log_ticks,
    reliability_diagram,
    rule_scores,
    save_figure,
)
from hf_distill.evaluation.statistics import Interval
from hf_distill.markdown import shortened
from hf_distill.tasks.row_scores import ReliabilityBin

pytestmark = pytest.mark.pictures

HOSTILE = [
    "$\\frac{$",
    "a_b^c$x$",
    "org/" + "very-long-" * 12 + "end",
    "line\nbreak\t",
    "中文",
    "%s {0} \\n",
    "",
]
BINS = [ReliabilityBin(0.35, 0.4, 10), ReliabilityBin(0.95, 0.8, 90)]
NOTHING = Interval(math.inf, math.nan, math.nan)


def agreement(count):
    values = np.random.default_rng(0).uniform(0.7, 0.9, size=(count, count))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return values


def size(path):
    """Width and height, in pixels, of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_reliability_shows_every_bin_of_every_system():
    figure = reliability_diagram({"one": BINS, "two": BINS[1:]})
    first, second = figure.axes
    np.testing.assert_allclose(first.collections[0].get_offsets(), [[0.35, 0.4], [0.95, 0.8]])
    np.testing.assert_allclose([bar.get_height() for bar in first.patches], [0.1, 0.9])
    assert len(second.patches) == 1 and second.get_title() == "two"


def test_agreement_has_a_number_for_every_pair():
    values = agreement(3)
    axes = agreement_heat_map(["a", "b", "c"], values).axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(shown) == 6
    assert all(text == f"{values[y, x]:.3f}" for (x, y), text in shown.items())


def test_rules_are_sorted_and_what_is_far_off_is_a_number():
    scores = {f"rule {i}": (Interval(0.9, 0.88, 0.92), Interval(0.3 + i / 100, 0.2, 0.4)) for i in range(4)}
    scores["far"] = (Interval(0.2, 0.1, 0.3), Interval(9.0, 8.0, 10.0))
    scores["infinite"] = (Interval(0.89, 0.87, 0.91), NOTHING)
    left, right = rule_scores(scores, (0.9, 0.31), 0.97).axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["infinite", "far", "rule 3", "rule 2", "rule 1", "rule 0"]
    assert [text.get_text() for text in left.texts] == ["← 20"]
    assert [text.get_text() for text in right.texts] == ["∞ →", "9 →"]
    assert right.get_xlim()[1] < 1


@pytest.mark.parametrize("count", [1, 3, 16])
def test_hostile_names_are_drawn_as_they_are(count, tmp_path):
    names = (HOSTILE + [f"teacher-{i}" for i in range(16)])[:count]
    score = (Interval(0.9, 0.88, 0.92), Interval(0.3, 0.2, 0.4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw, arguments in (
            (reliability_diagram, [dict.fromkeys(names, BINS)]),
            (agreement_heat_map, [names, agreement(count)]),
            (rule_scores, [dict.fromkeys(names, score), (0.9, 0.3), 0.95]),
        ):
            path = save_figure(draw, tmp_path / f"{draw.__name__}.png", *arguments)
            width, height = size(path)
            assert 200 < width < 3000 and 200 < height < 3000
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "agreement_heat_map.png",
        "reliability_diagram.png",
        "rule_scores.png",
    ]


@pytest.mark.parametrize(("systems", "columns"), [(1, 1), (4, 4), (5, 3), (6, 3), (7, 4), (9, 5)])
def test_reliability_fills_its_lines(systems, columns):
    figure = reliability_diagram({f"system {i}": BINS for i in range(systems)})
    assert len(figure.axes) == systems and figure.axes[0].get_gridspec().ncols == columns
    (legend,) = figure.legends
    words = ["calibrated", "share of the rows", "share of them right"]
    assert [text.get_text() for text in legend.get_texts()] == words


def test_the_callers_settings_neither_matter_nor_change(tmp_path):
    with matplotlib.rc_context({"text.usetex": True, "figure.dpi": 37.0}):
        save_figure(reliability_diagram, tmp_path / "a.png", {"$": BINS})
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["figure.dpi"] == 37.0
    save_figure(reliability_diagram, tmp_path / "b.png", {"$": BINS})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    import sys

    assert "matplotlib.pyplot" not in sys.modules


def test_names_that_differ_at_the_end_stay_apart_when_shortened():
    names = [shortened("organisation/some-long-model-name-seed-" + seed, 20) for seed in ("1", "2")]
    assert len(set(names)) == 2 and all(len(name) == 20 for name in names)
    assert shortened("short", 20) == "short"


@pytest.mark.parametrize(
    "limits", [(1e-5, 1e-3), (3e-4, 8e-4), (0.9, 1.1), (2, 5000), (1e-9, 1e6), (4.9, 5.1)]
)
@pytest.mark.parametrize("most", [3, 6])
def test_ticks_of_a_logarithmic_axis_do_not_touch(limits, most):
    figure = empty_figure(2.6, 2.0)
    axes = figure.subplots()
    axes.set(xscale="log", xlim=limits)
    log_ticks(axes.xaxis, most=most)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels(which="both") if label.get_text()]
    assert 1 <= len(boxes) <= most
    boxes.sort(key=lambda box: box.x0)
    assert all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:], strict=False))


def test_a_column_that_no_model_has_anything_in_is_left_out():
    weights = np.eye(2)

    def row(name, middle):
        return AttentionRow(
            name, ["a", "b"], [("layer 1 of 2", weights), ("", middle), ("layer 2 of 2", weights)]
        )

    def titles(models):
        return [axes.get_title() for axes in attention_grid(models).axes[:-1]]

    assert titles([row("student", None), row("bert", None)]) == ["layer 1 of 2", "layer 2 of 2"] * 2
    assert len(titles([row("student", None), row("bert", weights)])) == 5  # the middle of one of them
    said = AttentionRow("student", ["a", "b"], [("layer 1 of 1", weights), ("no layer 9: it has 1", None)])
    assert len(titles([said])) == 2  # why there is none is something
