"""Which figures a verdict has, and how they are drawn: as SVG for the page, as PNG for report.md and the model card.

Names are shown as they are written; long ones lose their middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..evaluation.document import Picture, Section
from ..evaluation.formats import percent, signed_points, tells
from ..evaluation.plots import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    NARROW,
    ORANGE,
    PURPLE,
    WIDE,
    Mark,
    empty_figure,
    log_ticks,
    name_marks,
    reliability_diagram,
)
from ..evaluation.report_files import CLASSES, LEARNING, QUALITY, RELIABILITY
from ..evaluation.statistics import Interval
from ..markdown import shortened
from ..tasks.row_scores import ReliabilityBin
from .numbers import TRAINED, Group, Training
from .wording import metric_name

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
        measure: What the accuracy is: of numbers the share within the task's tolerance.
    """

    name: str
    latency: float
    accuracy: Interval
    kind: str
    measure: str = "accuracy"


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
        caption = f"{bars(points)} Dotted: what no other system beats in both. Left is faster, up is more often right."
        made.append(quality_picture(points, caption, QUALITY))
    if reliability:
        caption = "Below the diagonal: surer than right. All seeds together; a point's area is its share of the rows."
        made.append(
            Picture(
                "Is it right as often as it is sure?",
                RELIABILITY,
                caption,
                reliability_diagram,
                (reliability,),
                alt=_reliability_in_words(reliability),
                table=_reliability_table(reliability),
            )
        )
    if measures := measures_of(trainings):
        caption = "One line per training. The distilled student's loss on the labels is only part of what it learns from."
        made.append(curves_picture(curves_of(trainings), measures, caption, LEARNING))
    gains = [group for group in per_class if group.gain is not None]
    if gains:
        made.append(gains_picture(gains, "distilled minus fine-tuned", CLASSES))
    return made


def bars(points: Sequence[Point]) -> str:
    """What the bars of accuracies are, and which are not drawn.

    Example:
        >>> bars([Point("a", 1.0, Interval(0.5, -0.6, 1.6), "student")])
        'Bars: 95 % interval over rows and seeds; not drawn where it is so wide that it says nothing (a).'
    """
    without = ", ".join(point.name for point in points if not tells(point.accuracy))
    left_out = f"; not drawn where it is so wide that it says nothing ({without})" if without else ""
    return f"Bars: 95 % interval over rows and seeds{left_out}."


def quality_picture(points: Sequence[Point], caption: str, file: str) -> Picture:
    """The picture of quality against latency, with its words and its table.

    Args:
        points: The systems.
        caption: How to read it.
        file: Its name beside the report.
    """
    best = max(points, key=lambda point: point.accuracy.value)
    fastest = min(points, key=lambda point: (point.latency, -point.accuracy.value))
    called = metric_name(best.measure)
    what = called.partition(",")[0]
    alt = (
        f"{what[0].upper()}{what[1:]} against latency of {len(points)} systems. Most often right: {best.name}, {percent(best.accuracy.value)} % at "
        f"{best.latency:.3g} ms a row. Fastest: {fastest.name}, {fastest.latency:.3g} ms, {percent(fastest.accuracy.value)} %."
    )
    rows = [
        [
            point.name,
            f"{point.latency:.3g}",
            percent(point.accuracy.value),
            "{} to {}".format(*map(percent, point.accuracy[1:])) if tells(point.accuracy) else "says nothing",
        ]
        for point in sorted(points, key=lambda point: -point.accuracy.value)
    ]
    table = Section("", ["system", "median of one row, ms", called, "95 % interval"], rows)
    return Picture(
        "Quality against latency", file, caption, quality_against_latency, (points,), alt=alt, table=table
    )


def curves_picture(curves: Sequence[Curve], measures: Sequence[str], caption: str, file: str) -> Picture:
    """The learning curves, with their words and their table.

    Args:
        curves: The trainings.
        measures: Of `measures_of`.
        caption: How to read them.
        file: Their name beside the report.
    """
    ends, rows = [], []
    for curve in curves:
        for key in measures:
            if line := _line(curve.log, key):
                every = max(1, math.ceil(len(line) / 8))
                shown = line if len(line) <= 9 else [*line[:-1:every], line[-1]]
                values = ", ".join(f"{step:g}: {value:.3g}" for step, value in shown)
                rows.append([curve.name, measure_name(key), values])
                ends.append(f"{curve.name}, {measure_name(key)}: from {line[0][1]:.3g} to {line[-1][1]:.3g}")
    alt = f"Learning curves of {len(curves)} trainings. {'; '.join(ends[:8])}."
    table = Section("", ["training", "what", "step: value"], rows, words=3)
    return Picture(
        "Learning curves", file, caption, learning_curves, (curves, measures), alt=alt, table=table
    )


def gains_picture(groups: Sequence[Group], what: str, file: str) -> Picture:
    """The gains by class, with their words and their table.

    Args:
        groups: Classes with a gain.
        what: Which student minus which.
        file: Its name beside the report.
    """
    gains = [(group, group.gain) for group in groups if group.gain is not None]
    mute = [group.name for group, gain in gains if not tells(gain)]
    caption = "Coloured where the gain is beyond chance, corrected for the number of classes (Holm)."
    if mute:
        caption += f" No interval is drawn where it is so wide that it says nothing: {', '.join(mute[:8])}."
    order = sorted(gains, key=lambda pair: -pair[1].value)
    alt = (
        f"What each of {len(gains)} classes gains, {what}. Most: {order[0][0].name}, {signed_points(order[0][1])[0]} points. "
        f"Least: {order[-1][0].name}, {signed_points(order[-1][1])[0]} points."
    )
    rows = [
        [
            group.name,
            f"{group.rows:,}",
            signed_points(gain)[0],
            "{} to {}".format(*signed_points(gain)[1:]) if tells(gain) else "says nothing",
        ]
        for group, gain in order
    ]
    table = Section("", ["class", "rows", "gain, points", "95 % interval"], rows)
    return Picture("Gains by class", file, caption, class_gains, (groups, what), alt=alt, table=table)


def _reliability_in_words(systems: Mapping[str, Sequence[ReliabilityBin]]) -> str:
    """By how much confidence and accuracy of each system differ, over all its rows."""
    said = []
    for name, bins in systems.items():
        rows = sum(own.rows for own in bins)
        off = sum(own.rows * (own.confidence - own.accuracy) for own in bins) / rows if rows else 0.0
        said.append(f"{name} is {abs(100 * off):.1f} points {'surer' if off > 0 else 'less sure'} than right")
    return f"Confidence against accuracy of {len(systems)} systems: {'; '.join(said)}."


def _reliability_table(systems: Mapping[str, Sequence[ReliabilityBin]]) -> Section:
    rows = [
        [name, percent(own.confidence), percent(own.accuracy), f"{own.rows:,}"]
        for name, bins in systems.items()
        for own in bins
    ]
    return Section("", ["system", "mean confidence, %", "right, %", "rows"], rows)


def quality_against_latency(points: Sequence[Point], *, narrow: bool = False) -> Figure:
    """Accuracy against the median latency of a row, with the frontier: what no other system beats in both.

    An interval that says nothing is not drawn: it would flatten all that does.

    Args:
        points: The systems.
        narrow: Whether it is for a phone.

    Example:
        >>> figure = quality_against_latency([Point("student", 2.0, Interval(0.9, 0.88, 0.92), "student")])
        >>> figure.axes[0].get_xscale()
        'log'
    """
    from matplotlib.transforms import ScaledTranslation

    # Names that find no place beside each other need more height.
    figure = empty_figure(NARROW if narrow else WIDE, max(4.2, 1.6 + 0.28 * len(points)))
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
        if tells(point.accuracy):
            axes.plot([point.latency] * 2, [low, high], linewidth=1.2, alpha=0.6, zorder=1.6, **style)
        axes.plot(point.latency, value, marker=mark, markersize=6, **style)
    axes.set_ylim(*_with_room(points))
    fast, slow = min(p.latency for p in points), max(p.latency for p in points)
    # Names stand right of their marks, where there is room for one of them.
    reach = max(slow / fast, 1.5)
    axes.set_xlim(fast / reach**0.08, slow * reach ** (0.9 if narrow else 0.5))
    axes.set_xlabel("median latency of one row, ms (logarithmic)", fontsize=9)
    axes.set_ylabel(metric_name(points[0].measure), fontsize=9)
    _tidy(axes)
    log_ticks(axes.xaxis, most=5 if narrow else 9)
    figure.draw_without_rendering()
    dot = figure.dpi_scale_trans.transform((7 / 72, 0))[0]
    marks = []
    for point, steps in zip(points, aside, strict=True):
        x, y = axes.transData.transform((point.latency, 100 * point.accuracy.value))
        moved = axes.transData.inverted().transform((x + steps * dot, y))
        name = shortened(point.name, 24 if narrow else 30)
        marks.append(Mark(float(moved[0]), float(moved[1]), name, _MARKS[point.kind][0]))
    name_marks(axes, marks, fontsize=8 if narrow else 9)
    return figure


def _near(one: Point, other: Point) -> bool:
    return abs(math.log(one.latency / other.latency)) < 0.05


def _with_room(points: Sequence[Point]) -> tuple[float, float]:
    ends = [end for p in points for end in (p.accuracy[1:] if tells(p.accuracy) else p.accuracy[:1])]
    low, high = min(ends), max(ends)
    room = 0.08 * max(high - low, 0.01)
    return 100 * (low - room), 100 * (high + room)


class Curve(NamedTuple):
    """What a training logged, as it is drawn.

    Attributes:
        name: In the legend, where trainings of one name stand once.
        log: The entries of the trainer's log.
        colour: Of its line.
        dashed: Whether its line is.
    """

    name: str
    log: Sequence[Mapping[str, Any]]
    colour: str
    dashed: bool = False


def curves_of(trainings: Sequence[Training]) -> list[Curve]:
    """The curves of one run's trainings, each part in its colour."""
    return [Curve(TRAINED.get(t.part, t.part), t.log, _MARKS[t.part][0]) for t in trainings]


def learning_curves(curves: Sequence[Curve], measures: Sequence[str], *, narrow: bool = False) -> Figure:
    """How the trainings went, a panel for each measure and a line per training.

    Args:
        curves: Of student, baseline and the student of one teacher.
        measures: What to draw of their logs, see `measures_of`.
        narrow: Whether it is for a phone: the panels stand below each other.

    Example:
        >>> log = ({"step": 1, "loss_task": 1.0}, {"step": 2, "loss_task": 0.5, "eval_nll": 0.7})
        >>> len(learning_curves([Curve("distilled", log, ORANGE)], ["loss_task", "eval_nll"]).axes)
        2
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    panels, count = [(name, measure_name(name)) for name in measures], len(measures)
    figure = empty_figure(NARROW, 2.7 * count + 0.2) if narrow else empty_figure(3.5 * count + 0.4, 3.4)
    grid = figure.subplots(*((count, 1) if narrow else (1, count)), squeeze=False).flatten()
    for axes, (key, title) in zip(grid, panels, strict=True):
        for curve in curves:
            line = _line(curve.log, key)
            if line:
                axes.plot(
                    *zip(*line, strict=True),
                    color=curve.colour,
                    linewidth=1.3,
                    linestyle="--" if curve.dashed else "-",
                    alpha=0.85,
                    marker="." if len(line) < 3 else "",
                )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        _tidy(axes)
    named = {curve.name: curve for curve in curves if any(_line(curve.log, key) for key in measures)}
    lines = [
        Line2D([], [], color=own.colour, linewidth=1.3, linestyle="--" if own.dashed else "-")
        for own in named.values()
    ]
    names = [shortened(name, 30 if narrow else 40) for name in named]
    # Above the panels, where it hides no line.
    columns = 1 if narrow and max(map(len, names)) > 16 else 2 if narrow else 3
    figure.legend(lines, names, loc="outside upper center", ncols=columns, fontsize=8, frameon=False)
    return figure


def measure_name(key: str) -> str:
    """What a figure calls an entry of a trainer's log.

    Example:
        >>> measure_name("eval_nll"), measure_name("eval_accuracy")
        ('validation NLL, nats', 'validation accuracy, %')
    """
    titles = {
        "loss_task": "cross-entropy with the training labels, nats",
        "eval_nll": "validation NLL, nats",
        "eval_accuracy": "validation accuracy, %",
    }
    return titles.get(key, key.replace("eval_", "validation "))


def _line(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    scale = 100 if key == "eval_accuracy" else 1
    return [(entry["step"], scale * entry[key]) for entry in log if math.isfinite(entry.get(key, math.nan))]


def class_gains(
    groups: Sequence[Group], what: str = "distilled minus fine-tuned", *, narrow: bool = False
) -> Figure:
    """What each class gains in the share of its rows that is right, with its interval, largest gain on top.

    An interval that says nothing is not drawn.

    Args:
        groups: Classes with a gain; of many, those that gain and lose most.
        what: Which student minus which.
        narrow: Whether it is for a phone.

    Example:
        >>> figure = class_gains([Group("good", 30, {}, Interval(0.1, 0.0, 0.2), {})])
        >>> figure.axes[0].get_yticklabels()[0].get_text()
        'good (30)'
    """
    order = sorted(groups, key=lambda group: group.gain.value if group.gain else 0.0)
    if len(order) > _MOST_GROUPS:
        order = [*order[: _MOST_GROUPS // 2], *order[-_MOST_GROUPS // 2 :]]
    figure = empty_figure(NARROW if narrow else WIDE, 1.3 + 0.3 * len(order))
    axes = figure.subplots()
    for y, group in enumerate(order):
        assert group.gain is not None
        value, low, high = (100 * part for part in group.gain)
        colour = GREY if not group.beyond_chance else ORANGE if value > 0 else BLUE
        if tells(group.gain):
            axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
        axes.plot(value, y, color=colour, marker="o", markersize=5)
    axes.axvline(0, color="#000000", linewidth=0.8)
    most = 16 if narrow else 32
    axes.set_yticks(range(len(order)), [f"{shortened(g.name, most)} ({g.rows})" for g in order], fontsize=8)
    axes.set_ylim(-0.6, len(order) - 0.4)
    said = (
        "points more of the rows right; 95 % interval"
        if narrow
        else "points: share of the class's rows that is right"
    )
    axes.set_xlabel(
        f"{said}\n{what}" if narrow else f"{said}, {what}; 95 % interval", fontsize=8 if narrow else 9
    )
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
        if any(_line(training.log, name) for training in trainings)
    ]
    # The loss of an evaluation is made of several terms, and says less than a metric.
    metrics = {"eval_nll", "eval_accuracy"} & set(there)
    return [name for name in there if not (metrics and name == "eval_loss")]
