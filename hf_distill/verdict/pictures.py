"""Which figures a verdict has, and how they are drawn: as SVG for the page, as PNG for report.md and the model card.

Names are shown as they are written; long ones lose their middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..evaluation.document import Picture
from ..evaluation.plots import (
    BACK,
    BLUE,
    GREEN,
    GREY,
    GRID,
    ORANGE,
    PURPLE,
    empty_figure,
    reliability_diagram,
    shortened,
)
from ..evaluation.report_files import CLASSES, LEARNING, QUALITY, RELIABILITY
from ..evaluation.statistics import Interval
from ..tasks.row_scores import ReliabilityBin
from .numbers import TRAINED, Group, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour and mark of each kind of system; an ensemble is one with the student in it too.
_MARKS = {
    "student": (ORANGE, "o"),
    "exported": (ORANGE, "P"),
    "baseline": (BLUE, "s"),
    "single": (PURPLE, "v"),
    "ensemble": (GREEN, "D"),
    "together": (GREEN, "D"),
    "teacher": (GREY, "^"),
    "given": (GREY, "^"),
}

_MOST_GROUPS = 24


class Point(NamedTuple):
    """A system in the picture of quality against latency.

    Attributes:
        name: The system's.
        latency: Median of one row, in milliseconds.
        accuracy: With its interval, as shares of one.
        kind: Of its `Role`.
    """

    name: str
    latency: float
    accuracy: Interval
    kind: str


def pictures(
    points: Sequence[Point],
    reliability: Mapping[str, Sequence[ReliabilityBin]],
    trainings: Sequence[Training],
    per_class: Sequence[Group],
) -> list[Picture]:
    """The figures that there are numbers for, the one that matters most first; nothing is drawn yet.

    Args:
        points: Systems whose latency is known.
        reliability: Confidence against accuracy, by system.
        trainings: How they went.
        per_class: What each class gains.
    """
    made = []
    if len(points) > 1:
        caption = "Bars: 95 % interval over rows and seeds. Dotted: what no other system beats in both. Left and up is better."
        made.append(Picture("Quality against latency", QUALITY, caption, quality_against_latency, (points,)))
    if reliability:
        caption = "Below the diagonal: surer than right. All seeds together; a point's area is its share of the rows."
        made.append(Picture("Reliability", RELIABILITY, caption, reliability_diagram, (reliability,)))
    if measures := measures_of(trainings):
        caption = "One line per training. The distilled student's loss on the labels is only part of what it learns from."
        made.append(Picture("Learning curves", LEARNING, caption, learning_curves, (trainings, measures)))
    gains = [group for group in per_class if group.gain is not None]
    if gains:
        caption = "Coloured where the gain is beyond chance, corrected for the number of classes (Holm)."
        made.append(Picture("Gains by class", CLASSES, caption, class_gains, (gains,)))
    return made


def quality_against_latency(points: Sequence[Point]) -> Figure:
    """Accuracy against the median latency of a row, with the frontier: what no other system beats in both.

    Args:
        points: The systems.

    Example:
        >>> figure = quality_against_latency([Point("student", 2.0, Interval(0.9, 0.88, 0.92), "student")])
        >>> figure.axes[0].get_xscale()
        'log'
    """
    from matplotlib.transforms import ScaledTranslation

    figure = empty_figure(7.2, 4.2)
    axes = figure.subplots()
    best, frontier = -math.inf, []
    for point in sorted(points, key=lambda p: (p.latency, -p.accuracy.value)):
        if point.accuracy.value > best:
            best = point.accuracy.value
            frontier.append(point)
    axes.step(
        [p.latency for p in frontier],
        [100 * p.accuracy.value for p in frontier],
        where="post",
        color=GREY,
        linewidth=1,
        linestyle=":",
        zorder=1.5,
    )
    # Systems of one size stand above each other: they are moved apart on the paper so that each can be seen.
    axes.set_xscale("log")
    aside = [sum(_near(point, other) for other in points[:i]) for i, point in enumerate(points)]
    for point, steps in sorted(zip(points, aside, strict=True), key=lambda pair: pair[0].kind == "student"):
        shift = ScaledTranslation(steps * 7 / 72, 0, figure.dpi_scale_trans)
        value, low, high = (100 * part for part in point.accuracy)
        colour, mark = _MARKS[point.kind]
        style = {"color": colour, "transform": axes.transData + shift}
        axes.plot([point.latency] * 2, [low, high], linewidth=1.2, alpha=0.6, zorder=1.6, **style)
        axes.plot(point.latency, value, marker=mark, markersize=6, **style)
    axes.set_ylim(*_with_room(points))
    for y, point in _labels(points):
        right = max(steps for other, steps in zip(points, aside, strict=True) if _near(point, other))
        axes.annotate(
            shortened(point.name, 28),
            (point.latency, y),
            xytext=(7 + 7 * right, 0),
            textcoords="offset points",
            fontsize=9,
            va="center",
            color=_MARKS[point.kind][0],
            # Names hide frontier and bars that would strike them out, and no point.
            bbox={"facecolor": BACK, "edgecolor": "none", "pad": 0.5},
            zorder=1.8,
        )
    low, high = axes.get_xlim()
    axes.set_xlim(low * 0.95, high * (high / low) ** 0.35)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(f"{value:e}")[0] in "25" else "")
    axes.set_xlabel("median latency of one row, ms (logarithmic)", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)
    _tidy(axes)
    return figure


def _near(one: Point, other: Point) -> bool:
    return abs(math.log(one.latency / other.latency)) < 0.05


def _with_room(points: Sequence[Point]) -> tuple[float, float]:
    low, high = min(p.accuracy.low for p in points), max(p.accuracy.high for p in points)
    room = 0.08 * max(high - low, 0.01)
    return 100 * (low - room), 100 * (high + room)


def _labels(points: Sequence[Point]) -> list[tuple[float, Point]]:
    """At which height the names stand: beside their points, moved up where another stands near."""
    low, high = _with_room(points)
    room, made = 0.045 * (high - low), []
    # A long name takes a third of the axis, which is a third longer than they lie apart.
    wide = max(0.5, 0.45 * math.log(max(p.latency for p in points) / min(p.latency for p in points)))
    for point in sorted(points, key=lambda p: p.accuracy.value):
        y = 100 * point.accuracy.value
        for other, neighbour in sorted(made, key=lambda pair: pair[0]):
            if abs(math.log(neighbour.latency / point.latency)) < wide and abs(other - y) < room:
                y = other + room
        made.append((y, point))
    return made


def learning_curves(trainings: Sequence[Training], measures: Sequence[str]) -> Figure:
    """How the trainings went, a panel for each measure and a line per training.

    Args:
        trainings: Of student, baseline and the student of one teacher.
        measures: What to draw of their logs, see `measures_of`.

    Example:
        >>> log = ({"step": 1, "loss_task": 1.0}, {"step": 2, "loss_task": 0.5, "eval_nll": 0.7})
        >>> len(learning_curves([Training("student", 0, 2, 1.0, None, log)], ["loss_task", "eval_nll"]).axes)
        2
    """
    from matplotlib.ticker import MaxNLocator

    titles = {"loss_task": "cross-entropy with the training labels, nats", "eval_nll": "validation NLL, nats"}
    panels = [(name, titles.get(name, name.replace("eval_", "validation "))) for name in measures]
    figure = empty_figure(3.5 * len(panels) + 0.4, 3.2)
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        named = set()
        for training in trainings:
            line = _line(training, key)
            if not line:
                continue
            label = TRAINED.get(training.part, training.part)
            axes.plot(
                *zip(*line, strict=True),
                color=_MARKS[training.part][0],
                linewidth=1.3,
                alpha=0.85,
                marker="." if len(line) < 3 else "",
                label="" if label in named else label,
            )
            named.add(label)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        _tidy(axes)
        axes.legend(fontsize=8, frameon=False)
    return figure


def _line(training: Training, key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in training.log if math.isfinite(entry.get(key, math.nan))]


def class_gains(groups: Sequence[Group], what: str = "distilled minus fine-tuned") -> Figure:
    """What each class gains in the share of its rows that is right, with its interval, largest gain on top.

    Args:
        groups: Classes with a gain; of many, those that gain and lose most.
        what: Which student minus which.

    Example:
        >>> figure = class_gains([Group("good", 30, {}, Interval(0.1, 0.0, 0.2), {})])
        >>> figure.axes[0].get_yticklabels()[0].get_text()
        'good (30)'
    """
    order = sorted(groups, key=lambda group: group.gain.value if group.gain else 0.0)
    if len(order) > _MOST_GROUPS:
        order = [*order[: _MOST_GROUPS // 2], *order[-_MOST_GROUPS // 2 :]]
    figure = empty_figure(7.2, 1.2 + 0.3 * len(order))
    axes = figure.subplots()
    for y, group in enumerate(order):
        assert group.gain is not None
        value, low, high = (100 * part for part in group.gain)
        colour = GREY if not group.beyond_chance else ORANGE if value > 0 else BLUE
        axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
        axes.plot(value, y, color=colour, marker="o", markersize=5)
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.set_yticks(range(len(order)), [f"{shortened(g.name, 32)} ({g.rows})" for g in order], fontsize=8)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(f"points: share of the class's rows that is right, {what}; 95 % interval", fontsize=9)
    _tidy(axes)
    return figure


def _tidy(axes: Axes) -> None:
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def measures_of(trainings: Sequence[Training]) -> list[str]:
    """What learning curves can show of the logs: the loss on the labels, and what validation rows said of the student.

    Example:
        >>> measures_of([Training("student", 0, 2, 1.0, None, ({"step": 1, "eval_nll": 0.7, "eval_loss": 2.0},))])
        ['eval_nll']
    """
    there = [
        name
        for name in ("loss_task", "eval_nll", "eval_accuracy", "eval_loss")
        if any(_line(training, name) for training in trainings)
    ]
    # The loss of an evaluation is made of several terms, and says less than a metric.
    metrics = {"eval_nll", "eval_accuracy"} & set(there)
    return [name for name in there if not (metrics and name == "eval_loss")]
