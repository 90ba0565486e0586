"""Figures: matplotlib's objects without its global state, in colours that everybody can tell apart.

Shapes: K teachers, L tokens. Names are shown as they are written, also those with $ or _ in them; long ones lose their middle.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..files import whole
from ..markdown import shortened
from ..tasks.row_scores import ReliabilityBin
from .statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

# Okabe, Ito: Color Universal Design, 2008.
BLUE, ORANGE, GREEN, GREY, GRID = "#0072b2", "#d55e00", "#009e73", "#666666", "#dddddd"
PURPLE = "#b5588c"  # theirs is too light for words on white
BACK = "#fffffe"  # that no colour of a text is taken for it

WIDE, NARROW = 7.2, 3.7
"""Inches: of a figure beside text, and of one on a phone, where letters must keep their size."""

_MOST_STEPS = 40  # lines that a name may stand above or below its mark

STYLE = {"text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
"""Of figures in a document, on its page and as PNG. A $ in a name is no formula."""


def save_figure(draw: Callable[..., Figure], path: Path, *arguments: Any) -> Path:
    """Draw a figure and write it as PNG, whatever the user's own matplotlib settings are.

    Args:
        draw: One of the functions below.
        path: Of the PNG.
        arguments: For `draw`.

    Returns:
        The path.
    """
    with whole(path, "wb") as file:
        file.write(png(draw, *arguments))
    return path


def png(draw: Callable[..., Figure], *arguments: Any, style: Mapping[str, Any] | None = None) -> bytes:
    """Draw a figure as PNG, on white; see `save_figure`.

    Args:
        draw: Makes the figure.
        arguments: For `draw`.
        style: Settings of matplotlib's that the figure is drawn with.

    Example:
        >>> png(reliability_diagram, {"bert": [ReliabilityBin(0.9, 0.8, 40)]})[1:4]
        b'PNG'
    """
    return drawn(draw, arguments, style or {}, format="png", dpi=150)


def drawn(
    draw: Callable[..., Figure], arguments: Iterable[Any], style: Mapping[str, Any], **options: Any
) -> bytes:
    """Draw a figure with settings of its own, and save it.

    Args:
        draw: Makes the figure.
        arguments: For `draw`.
        style: Settings of matplotlib's that the figure is drawn with.
        options: For matplotlib's ``savefig``.
    """
    import matplotlib.style

    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.style.context(["default", dict(style)]):
        # A name in a script that the font lacks becomes boxes, which its reader understands without a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        draw(*arguments).savefig(file, **options)
    return file.getvalue()


def empty_figure(width: float, height: float) -> Figure:
    """A figure without matplotlib's global state, which lays its axes out itself.

    Args:
        width: In inches, as the height.
        height: See `width`.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def reliability_diagram(systems: Mapping[str, Sequence[ReliabilityBin]], *, narrow: bool = False) -> Figure:
    """How often each system is right against how sure it is, one panel each, with the share of rows per bin.

    Points below the diagonal are over-confident; a point's area tells how many rows it stands for.

    Args:
        systems: Bins of `reliability_bins` by the system's name.
        narrow: Whether it is for a phone: two panels beside each other.

    Example:
        >>> len(reliability_diagram({"bert": [ReliabilityBin(0.9, 0.8, 40)]}).axes)
        1
    """
    columns = {5: 3, 6: 3}.get(len(systems), min(len(systems), 4 if len(systems) <= 8 else 5))
    columns = min(columns, 2) if narrow else columns
    rows = math.ceil(len(systems) / columns)
    figure = (
        empty_figure(NARROW, 1.85 * rows + 1.2)
        if narrow
        else empty_figure(2.5 * columns + 0.6, 2.6 * rows + 0.9)
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (name, bins) in zip(grid, systems.items(), strict=False):
        confidence, accuracy, counts = (np.array(values, float) for values in zip(*bins, strict=True))
        share = counts / counts.sum()
        axes.bar(confidence, share, width=0.05, color=ORANGE, alpha=0.35, label="share of the rows")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
        axes.plot(confidence, accuracy, color=BLUE, linewidth=0.8, alpha=0.5)
        # Area by rows: a bin of two rows is no evidence and must not look like any.
        axes.scatter(confidence, accuracy, 8 + 130 * share, color=BLUE, zorder=3)
        _plainly(axes.set_title(shortened(name, 24 if narrow else 34), fontsize=8 if narrow else 9))
        axes.set(xlim=(0, 1.04), ylim=(-0.03, 1.04), aspect="equal")
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.tick_params(labelsize=8)
    for axes in grid[len(systems) :]:
        figure.delaxes(axes)
    for i, axes in enumerate(grid[: len(systems)]):
        axes.xaxis.set_tick_params(labelbottom=i + columns >= len(systems))
    handles, labels = grid[0].get_legend_handles_labels()
    handles += grid[0].plot([], [], color=BLUE, marker="o", markersize=5, linewidth=0.8)
    labels.append("share of them right")
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(3, columns), fontsize=8, frameon=False
    )
    figure.supxlabel("confidence in the first answer", fontsize=9)
    figure.supylabel("share", fontsize=9)
    return figure


def agreement_heat_map(names: Sequence[str], agreement: np.ndarray) -> Figure:
    """Share of rows on which two teachers give the same answer, with the numbers.

    The colours span what is there between different teachers, so that small differences show too.

    Args:
        names: K names.
        agreement: (K, K), one on the diagonal.

    Example:
        >>> len(agreement_heat_map(["a", "b"], np.array([[1.0, 0.8], [0.8, 1.0]])).axes[0].texts)
        2
    """
    count = len(names)
    apart = ~np.eye(count, dtype=bool)
    shown = np.where(apart, agreement, np.nan)
    low, high = (float(agreement[apart].min()), float(agreement[apart].max())) if count > 1 else (0.0, 1.0)
    if high - low < 0.02:  # no colours for what is no difference
        low, high = high - 0.02, high
    side = 1.8 + 0.62 * max(count, 3)
    figure = empty_figure(side + 1.2, side)
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="cividis", vmin=low, vmax=high)
    axes.set_facecolor("#eeeeee")
    for i, j in zip(*np.nonzero(apart), strict=True):
        dark = (agreement[i, j] - low) / (high - low) < 0.5
        text = f"{agreement[i, j]:.3f}" if count <= 8 else f"{agreement[i, j]:.2f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    short = [shortened(name, 24) for name in names]
    axes.set_xticks(range(count), short, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(count), short, fontsize=8)
    _plain_ticks(axes)
    axes.set_title("share of rows with the same answer", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=8)
    return figure


def rule_scores(
    scores: Mapping[str, tuple[Interval, Interval]],
    best_teacher: tuple[float, float],
    oracle: float,
) -> Figure:
    """Accuracy and NLL of the ensemble under every fusion rule, with intervals, the best by NLL on top.

    Args:
        scores: Accuracy and NLL by the rule's name; one far off is a number at the edge.
        best_teacher: Accuracy and NLL of the best single teacher.
        oracle: Share of rows where some teacher is right.

    Example:
        >>> figure = rule_scores({"linear_pool": (Interval(0.9, 0.88, 0.92), Interval(0.3, 0.2, 0.4))}, (0.9, 0.3), 0.95)
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['accuracy, %', 'NLL, nats']
    """
    finite = {name: nll.value if math.isfinite(nll.value) else math.inf for name, (_, nll) in scores.items()}
    order = sorted(scores, key=finite.__getitem__, reverse=True)  # the axis counts from below
    figure = empty_figure(9.5, 1.7 + 0.32 * len(order))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, part, scale, title in ((left, 0, 100, "accuracy, %"), (right, 1, 1, "NLL, nats")):
        values = {name: scale * scores[name][part].value for name in order}
        low, high = _window([*values.values(), scale * best_teacher[part]], lowest_is_best=part == 1)
        for y, name in enumerate(order):
            interval = [scale * bound for bound in (scores[name][part].low, scores[name][part].high)]
            if low <= values[name] <= high:
                axes.plot(interval, [y, y], color=BLUE, linewidth=1.4)
                axes.plot(values[name], y, color=BLUE, marker="o", markersize=5)
            elif not math.isnan(values[name]):  # far off: its number, so that the others can be told apart
                beyond = values[name] > high
                number = f"{values[name]:.3g}" if math.isfinite(values[name]) else "∞"
                text = f"{number} →" if beyond else f"← {number}"
                side, edge = ("right", 0.99) if beyond else ("left", 0.01)
                axes.text(
                    edge,
                    y,
                    text,
                    transform=axes.get_yaxis_transform(),
                    ha=side,
                    va="center",
                    fontsize=8,
                    color=BLUE,
                )
        axes.axvline(scale * best_teacher[part], color=ORANGE, linestyle="--", linewidth=1.2)
        axes.set_xlabel(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    left.axvline(100 * oracle, color=GREEN, linestyle=":", linewidth=1.6)
    left.set_yticks(range(len(order)), [shortened(name, 34) for name in order], fontsize=8)
    left.set_ylim(-0.6, len(order) - 0.4)
    _plain_ticks(left)
    marks = {
        "fusion rule, 95 % interval": {"color": BLUE, "marker": "o", "markersize": 5, "linewidth": 1.4},
        "best single teacher, calibrated": {"color": ORANGE, "linestyle": "--", "linewidth": 1.2},
        "some teacher is right (upper bound)": {"color": GREEN, "linestyle": ":", "linewidth": 1.6},
    }
    lines = [left.plot([], [], **style)[0] for style in marks.values()]
    figure.legend(lines, list(marks), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def log_ticks(axis: Axis, most: int = 6) -> None:
    """Number the ticks of a logarithmic axis so that no two numbers touch, and none is left without one.

    Of 1, of 1 and 3, of 1, 2 and 5, … times powers of ten, the finest that has room.

    Args:
        axis: A horizontal one; its limits and all that makes its figure's layout are set.
        most: So many numbers at most.

    Example:
        >>> figure = empty_figure(3, 2)
        >>> axes = figure.subplots()
        >>> _ = axes.set(xscale="log", xlim=(2e-5, 3e-3))
        >>> log_ticks(axes.xaxis, most=4)
        >>> [f"{tick:g}" for tick in axes.get_xticks()]
        ['0.0001', '0.001']
    """
    low, high = sorted(axis.get_view_interval())
    axis.set_ticks([], minor=True)
    for ticks in _ticks_within(low, high):
        if len(ticks) <= most:
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            if len(ticks) < 2 or not _touching(axis):
                return
    powers = _ticks_within(low, high)[-1]
    for step in range(2, len(powers) + 1):  # more powers of ten than there is room for
        axis.set_ticks(powers[::step], [f"{tick:g}" for tick in powers[::step]])
        if len(powers[::step]) <= most and not _touching(axis):
            return


def _touching(axis: Axis) -> bool:
    """Whether two numbers of a horizontal axis, as it is laid out now, have less than a few points between them."""
    axis.figure.draw_without_rendering()
    boxes = sorted((label.get_window_extent() for label in axis.get_ticklabels()), key=lambda box: box.x0)
    gap = 4 * axis.figure.dpi / 72
    return any(one.x1 + gap > other.x0 for one, other in itertools.pairwise(boxes))


def _ticks_within(low: float, high: float) -> list[list[float]]:
    """Ticks between two bounds, from the finest choice to powers of ten alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[list[float]] = []
    for steps in (
        [i / 10 for i in range(10, 100)],
        [i / 2 for i in range(2, 20)],
        range(1, 10),
        (1, 2, 3, 5),
        (1, 2, 5),
        (1, 3),
        (1,),
    ):
        ticks = [step * 10.0**power for power in powers for step in steps]
        choices.append([float(f"{tick:.12g}") for tick in ticks if low <= tick <= high])
    return choices


class Mark(NamedTuple):
    """A point of a scatter plot that is to have its name beside it.

    Attributes:
        x, y: Where it is, in the units of the axes.
        name: What it is called.
        colour: Of the name.
    """

    x: float
    y: float
    name: str
    colour: str


def name_marks(axes: Axes, marks: Sequence[Mark], *, fontsize: float = 9) -> None:
    """Write the name of every mark beside it, so that no name covers another one, a mark, or the edge.

    Each name takes the nearest place that is free: right or left of its mark, or up or down from there, then with a line to
    its mark. The limits of the axes must be set, and stay as they are; what makes the layout is drawn before.

    Args:
        axes: Of the marks.
        marks: In the order of their importance: the first have the best places.
        fontsize: Of the names.
    """
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    dots = [axes.transData.transform((mark.x, mark.y)) for mark in marks]
    pixel = figure.dpi / 72
    # A mark is about seven points wide.
    taken = [Bbox.from_extents(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel) for x, y in dots]
    for mark, (x, y) in zip(marks, dots, strict=True):
        text = axes.annotate(
            mark.name,
            (mark.x, mark.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            va="center",
            color=mark.colour,
            # Names hide frontier and bars that would strike them out.
            bbox={"facecolor": BACK, "edgecolor": "none", "pad": 0.5},
            zorder=1.8,
        )
        size = text.get_window_extent()
        width, height = size.width + 2 * pixel, size.height
        place, steps = _free_place((x, y), (width, height), box, taken, 7 * pixel)
        taken.append(place)
        text.set_position(((place.x0 - x) / pixel, ((place.y0 + place.y1) / 2 - y) / pixel))
        if steps:
            near = place.x0 if place.x0 > x else place.x1
            ends = axes.transData.inverted().transform([(x, y), (near, (place.y0 + place.y1) / 2)])
            axes.plot(ends[:, 0], ends[:, 1], color=mark.colour, linewidth=0.6, alpha=0.6, zorder=1.7)


def _free_place(
    dot: tuple[float, float], size: tuple[float, float], box: Bbox, taken: Sequence[Bbox], gap: float
) -> tuple[Bbox, int]:
    """The nearest free rectangle beside a dot, and how many steps up or down it is; the last tried where none is free."""
    from matplotlib.transforms import Bbox

    (x, y), (width, height) = dot, size
    place = Bbox.from_bounds(x + gap, y - height / 2, width, height)
    for steps in range(_MOST_STEPS):
        for away in (steps, -steps) if steps else (0,):
            middle = y + away * height
            for left in (x + gap, x - gap - width):
                place = Bbox.from_bounds(left, middle - height / 2, width, height)
                inside = (
                    place.x0 >= box.x0 and place.x1 <= box.x1 and place.y0 >= box.y0 and place.y1 <= box.y1
                )
                if inside and not any(place.overlaps(other) for other in taken):
                    return place, steps
    return place, _MOST_STEPS


class AttentionRow(NamedTuple):
    """One model's line of panels.

    Attributes:
        name: The model's.
        tokens: The L tokens of the sentence as this model reads it.
        panels: Title and attention (L, L), a line per token that attends. None: the model has nothing to show, and the
            title says why; where it is empty, that goes without saying.
    """

    name: str
    tokens: Sequence[str]
    panels: Sequence[tuple[str, np.ndarray | None]]


def attention_grid(models: Sequence[AttentionRow], most_tokens: int = 40) -> Figure:
    """What each token attends to: a line of panels per model, all in the same colours, darker for more.

    Colours follow the square root, since most weights are small beside the largest.

    Args:
        models: With the same number of panels each.
        most_tokens: Longer sentences are cut there, and the model's name says so.

    Example:
        >>> row = AttentionRow("bert", ["[CLS]", "film"], [("layer 1 of 1", np.eye(2))])
        >>> len(attention_grid([row]).axes)  # the panel and the scale
        2
    """
    from matplotlib.colors import PowerNorm

    shown = [min(len(row.tokens), most_tokens) for row in models]
    # A column that no model has anything in, as the middle layer where none has three, is left out.
    kept = [
        j
        for j in range(len(models[0].panels))
        if any(row.panels[j][1] is not None or row.panels[j][0] for row in models)
    ]
    models = [row._replace(panels=[row.panels[j] for j in kept]) for row in models]
    columns = len(kept)
    side = min(max(0.17 * max(shown), 2.2), 5.6)
    figure = empty_figure(columns * (side + 0.15) + 1.5, len(models) * (side + 1.0) + 0.7)
    grid = figure.subplots(len(models), columns, squeeze=False)
    there = [weights for row in models for _, weights in row.panels if weights is not None]
    norm = PowerNorm(0.5, vmin=0, vmax=max(float(weights.max()) for weights in there))
    image = None
    for row, count, line in zip(models, shown, grid, strict=True):
        labels = [shortened(token, 14) for token in row.tokens[:count]]
        cut = "" if count == len(row.tokens) else f"\nfirst {count} of {len(row.tokens)} tokens"
        for j, (axes, (title, weights)) in enumerate(zip(line, row.panels, strict=True)):
            if weights is None and not title and j > 0:
                figure.delaxes(axes)
                continue
            axes.set_box_aspect(1)
            if j == 0:
                _plainly(axes.set_ylabel(f"{shortened(row.name, 30)}{cut}", fontsize=10, fontweight="bold"))
            if weights is None:
                axes.set(xticks=[], yticks=[], frame_on=False)
                axes.text(0.5, 0.5, title, ha="center", va="center", fontsize=9, color=GREY)
                continue
            axes.set_title(title, fontsize=9)
            image = axes.imshow(weights[:count, :count], cmap="Blues", norm=norm)
            points = 8 if count <= 24 else 7 if count <= 32 else 6.5
            axes.set_xticks(range(count), labels, rotation=90, fontsize=points)
            axes.set_yticks(range(count) if j == 0 else [], labels if j == 0 else [], fontsize=points)
            axes.tick_params(length=0, pad=2)
            _plain_ticks(axes)
    figure.align_ylabels(list(grid[:, 0]))
    scale = figure.colorbar(image, ax=figure.axes, location="top", shrink=0.6, aspect=50, pad=0.01)
    scale.ax.tick_params(labelsize=8)
    scale.set_label("attention of the token on the left to the token below", fontsize=9)
    return figure


def similarity_grid(lines: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]) -> Figure:
    """Similarity of every layer of a student with every layer of each teacher, with the numbers.

    Args:
        lines: What a line shows, such as "before training", and its panels: the teacher's name and the similarities
            (student layers, teacher layers), from the embeddings on, each in [0, 1].

    Example:
        >>> len(similarity_grid([("after training", [("bert", np.eye(3))])]).axes)  # the panel and the scale
        2
    """
    widths = [max(0.46 * values.shape[1], 1.2) for _, values in lines[0][1]]
    heights = [max(0.36 * line[0][1].shape[0], 1.3) for _, line in lines]
    figure = empty_figure(sum(widths) + 0.35 * len(widths) + 1.5, sum(heights) + 0.3 * len(lines) + 0.6)
    grid = figure.subplots(
        len(lines), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths, "height_ratios": heights}
    )
    every = [values for _, line in lines for _, values in line]
    low = math.floor(10 * min(float(values.min()) for values in every)) / 10
    high = max(math.ceil(10 * max(float(values.max()) for values in every)) / 10, low + 0.1)
    image = None
    for i, (label, line) in enumerate(lines):
        for j, (name, values) in enumerate(line):
            axes = grid[i, j]
            image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
            for (y, x), value in np.ndenumerate(values):
                color = "white" if (value - low) / (high - low) < 0.5 else "black"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
            own, theirs = (["emb", *map(str, range(1, count))] for count in values.shape)
            axes.set_yticks(range(len(own)), own, fontsize=8)
            axes.set_xticks(range(len(theirs)), theirs, fontsize=8)
            axes.tick_params(length=2)
            _plainly(axes.set_title(shortened(name, max(14, 6 * len(theirs))) if i == 0 else "", fontsize=10))
            axes.set_ylabel(f"{label}\nstudent layer".strip() if j == 0 else "", fontsize=9)
            axes.set_xlabel("teacher layer" if i == len(lines) - 1 else "", fontsize=9)
    scale = figure.colorbar(image, ax=list(figure.axes), location="right", fraction=0.03, pad=0.02)
    scale.ax.tick_params(labelsize=8)
    scale.set_label("linear CKA", fontsize=9)
    return figure


def _window(values: Sequence[float], *, lowest_is_best: bool) -> tuple[float, float]:
    """Bounds that leave out what is much further from the best than three quarters of the values are."""
    signed = np.sort([v if lowest_is_best else -v for v in values if math.isfinite(v)])
    if not len(signed):
        return -math.inf, math.inf
    worst = signed[0] + 4 * max(float(np.quantile(signed, 0.75) - signed[0]), 0.05 * abs(float(signed[0])))
    return (-math.inf, worst) if lowest_is_best else (-worst, math.inf)


def _plainly(text: Text) -> None:
    """A $ in a name is no formula."""
    text.set_parse_math(False)


def _plain_ticks(axes: Axes) -> None:
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        _plainly(label)
