"""The audit's figures: matplotlib's objects without its global state, in colours that everybody can tell apart.

Shapes: K teachers. Names are shown as they are written, also those with $ or _ in them; long ones lose their middle.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparison import Interval, ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe, Ito: Color Universal Design, 2008.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def save_figure(draw: Callable[..., Figure], path: Path, *arguments: Any) -> Path:
    """Draw a figure and write it as PNG, whatever the user's own matplotlib settings are.

    Args:
        draw: One of the functions below.
        path: Of the PNG.
        arguments: For `draw`.

    Returns:
        The path.
    """
    import matplotlib.style

    unfinished = path.with_name(f".{path.name}.unfinished")
    with warnings.catch_warnings(), matplotlib.style.context("default"):
        # A name in a script that the font lacks becomes boxes, which its reader understands without a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = draw(*arguments)
        figure.savefig(unfinished, format="png", dpi=150)
    unfinished.replace(path)
    return path


def reliability_diagram(systems: Mapping[str, Sequence[ReliabilityBin]]) -> Figure:
    """How often each system is right against how sure it is, one panel each, with the share of rows per bin.

    Points below the diagonal are over-confident; a point's area tells how many rows it stands for.

    Args:
        systems: Bins of `reliability_bins` by the system's name.

    Example:
        >>> len(reliability_diagram({"bert": [ReliabilityBin(0.9, 0.8, 40)]}).axes)
        1
    """
    from matplotlib.figure import Figure

    columns = min(len(systems), 4) if len(systems) <= 8 else 5
    rows = math.ceil(len(systems) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.6, 2.6 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (name, bins) in zip(grid, systems.items(), strict=False):
        confidence, accuracy, counts = (np.array(values, float) for values in zip(*bins, strict=True))
        share = counts / counts.sum()
        axes.bar(confidence, share, width=0.05, color=_ORANGE, alpha=0.35, label="share of the rows")
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--", label="calibrated")
        axes.plot(confidence, accuracy, color=_BLUE, linewidth=0.8, alpha=0.5)
        # Area by rows: a bin of two rows is no evidence and must not look like any.
        sizes = 8 + 130 * share
        axes.scatter(confidence, accuracy, sizes, color=_BLUE, zorder=3, label="share of them right")
        _plainly(axes.set_title(shortened(name, 26), fontsize=9))
        axes.set(xlim=(0, 1.04), ylim=(-0.03, 1.04), aspect="equal")
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.tick_params(labelsize=8)
    for axes in grid[len(systems) :]:
        figure.delaxes(axes)
    for i, axes in enumerate(grid[: len(systems)]):
        axes.xaxis.set_tick_params(labelbottom=i + columns >= len(systems))
    handles, labels = grid[0].get_legend_handles_labels()
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
    from matplotlib.figure import Figure

    count = len(names)
    apart = ~np.eye(count, dtype=bool)
    shown = np.where(apart, agreement, np.nan)
    low, high = (float(agreement[apart].min()), float(agreement[apart].max())) if count > 1 else (0.0, 1.0)
    if high - low < 0.02:  # no colours for what is no difference
        low, high = high - 0.02, high
    side = 1.8 + 0.62 * max(count, 3)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
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
    from matplotlib.figure import Figure

    finite = {name: nll.value if math.isfinite(nll.value) else math.inf for name, (_, nll) in scores.items()}
    order = sorted(scores, key=finite.__getitem__, reverse=True)  # the axis counts from below
    figure = Figure(figsize=(9.5, 1.7 + 0.32 * len(order)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, part, scale, title in ((left, 0, 100, "accuracy, %"), (right, 1, 1, "NLL, nats")):
        values = {name: scale * scores[name][part].value for name in order}
        low, high = _window([*values.values(), scale * best_teacher[part]], lowest_is_best=part == 1)
        for y, name in enumerate(order):
            interval = [scale * bound for bound in (scores[name][part].low, scores[name][part].high)]
            if low <= values[name] <= high:
                axes.plot(interval, [y, y], color=_BLUE, linewidth=1.4)
                axes.plot(values[name], y, color=_BLUE, marker="o", markersize=5)
            elif not math.isnan(values[name]):  # far off: its number, so that the others can be told apart
                beyond = values[name] > high
                number = f"{values[name]:.3g}" if math.isfinite(values[name]) else "∞"
                text = f"{number} →" if beyond else f"← {number}"
                side, edge = ("right", 0.99) if beyond else ("left", 0.01)
                across = axes.get_yaxis_transform()
                axes.text(edge, y, text, transform=across, ha=side, va="center", fontsize=8, color=_BLUE)
        axes.axvline(scale * best_teacher[part], color=_ORANGE, linestyle="--", linewidth=1.2)
        axes.set_xlabel(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    left.axvline(100 * oracle, color=_GREEN, linestyle=":", linewidth=1.6)
    left.set_yticks(range(len(order)), [shortened(name, 34) for name in order], fontsize=8)
    left.set_ylim(-0.6, len(order) - 0.4)
    _plain_ticks(left)
    marks = [
        left.plot([], [], color=_BLUE, marker="o", markersize=5, linewidth=1.4)[0],
        left.plot([], [], color=_ORANGE, linestyle="--", linewidth=1.2)[0],
        left.plot([], [], color=_GREEN, linestyle=":", linewidth=1.6)[0],
    ]
    words = [
        "fusion rule, 95 % interval",
        "best single teacher, calibrated",
        "some teacher is right (upper bound)",
    ]
    figure.legend(marks, words, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _window(values: Sequence[float], *, lowest_is_best: bool) -> tuple[float, float]:
    """Bounds that leave out what is much further from the best than three quarters of the values are."""
    signed = np.sort([v if lowest_is_best else -v for v in values if math.isfinite(v)])
    if not len(signed):
        return -math.inf, math.inf
    worst = signed[0] + 4 * max(float(np.quantile(signed, 0.75) - signed[0]), 0.05 * abs(float(signed[0])))
    return (-math.inf, worst) if lowest_is_best else (-worst, math.inf)


def shortened(name: str, most: int) -> str:
    """A name without control characters, and without its middle where it is longer than ``most`` characters.

    Example:
        >>> shortened("organisation/a-very-long-name-v2", 16)
        'organis…-name-v2'
    """
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def _plainly(text: Text) -> None:
    """A $ in a name is no formula."""
    text.set_parse_math(False)


def _plain_ticks(axes: Axes) -> None:
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        _plainly(label)
