"""What a search found: a table of its trials, and a figure of what each knob did."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluation.plots import BLUE, GREY, ORANGE, empty_figure, log_ticks, save_figure
from ...files import write_text
from ...markdown import markdown_table, shortened
from ...recipe.search_section import Knob

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE_SHARES = (
    "The learning rate suits the distilled student, and the verdict's fine-tuned baseline is trained at this learning rate "
    "too: docs/search.md says how to give the baseline one of its own."
)


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: Counted from 0; those of trainings that were interrupted or failed are left out.
        values: By knob.
        objective: The metric on the validation rows; infinite where the training diverged.
        seconds: How long it took.
    """

    number: int
    values: Mapping[str, Any]
    objective: float
    seconds: float


@dataclass(frozen=True)
class SearchReport:
    """What `search_recipe` found; ``str()`` is a table.

    Attributes:
        metric: By which it chose.
        minimize: Whether less is better.
        knobs: What was varied.
        trials: In their order.
        own: The number of the trial with the recipe's own values; None where they are not in the ranges.
        on_report: Whether the validation rows are those of the recipe's final report too.

    Example:
        >>> knobs = (Knob("temperature", 1.0, 8.0),)
        >>> trials = (Trial(0, {"temperature": 2.0}, 0.5, 3.0), Trial(1, {"temperature": 4.5}, 0.4, 3.0))
        >>> print(SearchReport("nll", True, knobs, trials, own=0))
        | trial | nll    | temperature | seconds |
        |-------|--------|-------------|---------|
        | 0     | 0.5000 | 2           | 3       |
        | 1 *   | 0.4000 | 4.5         | 3       |
        <BLANKLINE>
        * Trial 1 is the best of 2: nll 0.4000 on the validation rows, where the recipe's own values have 0.5000 (trial 0).
        The best of many trials looks better on the rows that chose it than it is: the test rows are for the verdict.
    """

    metric: str
    minimize: bool
    knobs: tuple[Knob, ...]
    trials: tuple[Trial, ...]
    own: int | None = None
    on_report: bool = False

    @property
    def best(self) -> Trial:
        """The trial with the best objective, of equal ones the first."""
        return (min if self.minimize else max)(self.trials, key=lambda trial: trial.objective)

    def table(self) -> str:
        """The trials as a Markdown table; a star marks the best."""
        names = [knob.name for knob in self.knobs]
        rows = [
            [
                f"{trial.number} *" if trial is self.best else str(trial.number),
                f"{trial.objective:.4f}" if math.isfinite(trial.objective) else "diverged",
                *(_shown(trial.values.get(name)) for name in names),
                f"{trial.seconds:.0f}",
            ]
            for trial in self.trials
        ]
        return markdown_table(["trial", self.metric, *names, "seconds"], rows)

    def __str__(self) -> str:
        best, own = self.best, next((trial for trial in self.trials if trial.number == self.own), None)
        compared = (
            ""
            if own is None
            else ", the recipe's own values"
            if own is best
            else f", where the recipe's own values have {own.objective:.4f} (trial {own.number})"
        )
        advice = (
            ", and the final report is made on these rows too: report on others, evaluation.split=test."
            if self.on_report
            else ": the test rows are for the verdict."
        )
        shared = f"\n{BASELINE_SHARES}" * any(knob.name == "learning_rate" for knob in self.knobs)
        return (
            f"{self.table()}\n\n* Trial {best.number} is the best of {len(self.trials)}: {self.metric} "
            f"{best.objective:.4f} on the validation rows{compared}.\n"
            f"The best of many trials looks better on the rows that chose it than it is{advice}{shared}"
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write search.md and search.png.

        Args:
            folder: Made if missing.

        Returns:
            The path of search.md.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(draw_search, folder / "search.png", self)
        path = folder / "search.md"
        write_text(path, f"# Search\n\n{self}\n\n![The trials](search.png)\n")
        return path


def draw_search(report: SearchReport) -> Figure:
    """Above, the objective of each trial and the best so far; below, the objective against each knob.

    Args:
        report: With one trial at least.

    Example:
        >>> trial = Trial(0, {"temperature": 2.0}, 0.5, 3.0)
        >>> len(draw_search(SearchReport("nll", True, (Knob("temperature", 1.0, 8.0),), (trial,))).axes)
        2
    """
    from matplotlib.ticker import MaxNLocator

    shown = [trial for trial in report.trials if math.isfinite(trial.objective)]
    figure = empty_figure(2.6 * max(2, len(report.knobs)), 6)
    grid = figure.add_gridspec(2, len(report.knobs))
    first = figure.add_subplot(grid[0, :])
    first.plot([t.number for t in shown], [t.objective for t in shown], "o", color=BLUE, label="trial")
    so_far = list(itertools.accumulate((t.objective for t in shown), min if report.minimize else max))
    first.step([t.number for t in shown], so_far, where="post", color=ORANGE, label="best so far")
    first.set(xlabel="trial", ylabel=report.metric)
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.set_title(
        f"{report.metric} on the validation rows ({'less' if report.minimize else 'more'} is better)"
    )
    first.legend(frameon=False)
    for column, knob in enumerate(report.knobs):
        axes = figure.add_subplot(grid[1, column], sharey=first)
        _slice(axes, knob, shown, report.best)
        axes.set_xlabel(knob.name)
        if column == 0:
            axes.set_ylabel(report.metric)
        else:
            axes.tick_params(labelleft=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GREY, alpha=0.2)
    return figure


def _slice(axes: Any, knob: Knob, trials: list[Trial], best: Trial) -> None:
    if knob.choices:
        # Names may hold $ or _, which matplotlib would read as mathematics.
        names = [shortened(name, 22).replace("$", r"\$") for name in knob.choices]
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, fontsize=7, **turned)
        axes.set_xlim(-0.5, len(knob.choices) - 0.5)
    elif knob.log:
        axes.set_xscale("log")

    def place(trial: Trial) -> float:
        value = trial.values[knob.name]
        return knob.choices.index(value) if knob.choices else value

    axes.plot([place(t) for t in trials], [t.objective for t in trials], "o", color=BLUE, alpha=0.7)
    if best in trials:
        axes.plot(place(best), best.objective, "*", color=ORANGE, markersize=14, zorder=3)
    if not knob.choices and knob.log:
        log_ticks(axes.xaxis, most=3)


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3g}"
