"""Which figures a verdict has: the page draws them as SVG, `VerdictReport.save` as PNG for report.md and the model card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..evaluation.plots import png, reliability_diagram
from .drawing import STYLE, Point, class_gains, learning_curves, measures_of, quality_against_latency, svg
from .systems import ALONE, ENSEMBLE, STUDENT, TOGETHER, is_small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import VerdictReport


class Picture(NamedTuple):
    """One figure.

    Attributes:
        title: Its heading.
        file: The PNG's name in the run's folder.
        caption: How to read it.
        draw: Makes the figure.
        arguments: For `draw`.
    """

    title: str
    file: str
    caption: str
    draw: Callable[..., Figure]
    arguments: tuple[Any, ...]

    def svg(self) -> str:
        """For the page, in its colours."""
        return svg(self.draw, self.title, *self.arguments)

    def markdown(self) -> list[str]:
        """Its paragraphs in report.md."""
        return [f"## {self.title}", f"![{self.title}]({self.file})", self.caption]

    def png(self) -> bytes:
        """On white."""
        return png(self.draw, *self.arguments, style=STYLE)


QUALITY, RELIABILITY, LEARNING, CLASSES = FILES = (
    "figures/quality_against_latency.png",
    "figures/reliability.png",
    "figures/learning_curves.png",
    "figures/gains_by_class.png",
)
"""Every name that a picture may have; a report has those that it has numbers for."""


def pictures(report: VerdictReport) -> list[Picture]:
    """The figures that a report has numbers for, the one that matters most first; nothing is drawn yet.

    Args:
        report: The verdict.
    """
    made = []
    points = [
        Point(name, 1000 * seconds, accuracy, kind_of(name))
        for name, accuracy in report.accuracies.items()
        if (seconds := _latency(report, name)) is not None
    ]
    if len(points) > 1:
        caption = "Bars: 95 % interval over rows and seeds. Dotted: what no other system beats in both. Left and up is better."
        made.append(Picture("Quality against latency", QUALITY, caption, quality_against_latency, (points,)))
    if report.reliability:
        caption = "Below the diagonal: surer than right. All seeds together; a point's area is its share of the rows."
        made.append(Picture("Reliability", RELIABILITY, caption, reliability_diagram, (report.reliability,)))
    if measures := measures_of(report.trainings):
        caption = "One line per training. The distilled student's loss on the labels is only part of what it learns from."
        made.append(
            Picture("Learning curves", LEARNING, caption, learning_curves, (report.trainings, measures))
        )
    gains = [group for group in report.per_class if group.gain is not None]
    if gains:
        caption = "Coloured where the gain is beyond chance; of many classes some do by chance."
        made.append(Picture("Gains by class", CLASSES, caption, class_gains, (gains,)))
    return made


def _latency(report: VerdictReport, name: str) -> float | None:
    cost = report.costs.get(STUDENT if is_small(name) else name)
    return None if cost is None else cost.p50


def kind_of(name: str) -> str:
    """What a system is, as a `Point` says it.

    Example:
        >>> kind_of("student"), kind_of("fine-tuned, best step"), kind_of("teacher:bert")
        ('student', 'baseline', 'teacher')
    """
    if name == STUDENT:
        return "student"
    if name.startswith(f"{STUDENT}, "):  # as `verdict.exported` calls it
        return "exported"
    if is_small(name):
        return "single" if name.startswith(ALONE) else "baseline"
    return "ensemble" if name in (ENSEMBLE, TOGETHER) else "teacher"
