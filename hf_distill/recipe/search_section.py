"""The section `search`: checked, and the knobs that become of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..fusion import build_fusion
from ..tasks import TASKS, known_family
from .problems import Problem, found
from .sections import Recipe

# Knob → its least value, whether it may have it, and its largest.
_NUMBERS: dict[str, tuple[float, bool, float]] = {
    "temperature": (0, False, math.inf),
    "distill_weight": (0, True, math.inf),
    "task_weight": (0, True, math.inf),
    "label_share": (0, True, 1),
    "learning_rate": (0, False, math.inf),
}

# What is searched where the section names no knob. The weights matter by their ratio, so one of them is enough.
_USUAL: dict[str, tuple[Any, ...]] = {"temperature": (1.0, 8.0), "distill_weight": (0.1, 2.0, "log")}
# The learning rate is searched so far below and above the recipe's, or above transformers' own.
_FACTOR, _LEARNING_RATE = 5.0, 5e-5


@dataclass(frozen=True)
class Knob:
    """One thing that a trial draws: a number from a range, or one of some fusions.

    Attributes:
        name: Its key in the section.
        low, high, log: Of a range.
        choices: Of a list, by the names that tables show.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def draw(self, trial: Any) -> Any:
        """The value of an `optuna.Trial`."""
        return (
            trial.suggest_categorical(self.name, self.choices)
            if self.choices
            else trial.suggest_float(self.name, self.low, self.high, log=self.log)
        )

    def __contains__(self, value: Any) -> bool:
        return (
            value in self.choices
            if self.choices
            else isinstance(value, (int, float)) and self.low <= value <= self.high
        )


def fusion_name(spec: Any) -> str:
    """What tables call a fusion, and what it is told apart by.

    Example:
        >>> fusion_name("auto"), fusion_name({"use": "log_pool", "fit": True})
        ('auto', 'log_pool(fit=true)')
    """
    if isinstance(spec, str):
        return spec
    options = ", ".join(f"{key}={json.dumps(value)}" for key, value in spec.items() if key != "use")
    return f"{spec['use']}({options})" if options else spec["use"]


def search_knobs(recipe: Recipe) -> list[Knob]:
    """What a search of a recipe varies: what its section `search` names, or the usual where it names nothing.

    Args:
        recipe: A recipe of `load_recipe`.

    Example:
        >>> recipe = Recipe(data={"dataset": "org/data"}, teachers={"models": ["org/a", "org/b"]},
        ...                 student={"model": "org/small"}, search={"temperature": [1, 4]})
        >>> search_knobs(recipe)
        [Knob(name='temperature', low=1.0, high=4.0, log=False, choices=())]
    """
    given = {name: getattr(recipe.search, name, None) for name in (*_NUMBERS, "fusion")}
    given = {name: value for name, value in given.items() if value is not None} or _usual(recipe)
    return [
        Knob(name, choices=tuple(map(fusion_name, value)))
        if name == "fusion"
        else Knob(name, value[0], value[1], "log" in value)
        for name, value in given.items()
    ]


def _usual(recipe: Recipe) -> dict[str, Any]:
    """What is searched where nothing is named, without what a schedule of the recipe changes."""
    changing = {name for name in _USUAL if isinstance(getattr(recipe.losses, name), Mapping)}
    rate = recipe.training.get("learning_rate", _LEARNING_RATE)
    usual: dict[str, Any] = {name: value for name, value in _USUAL.items() if name not in changing}
    family = known_family(recipe.task)
    if family is not None and not family.has_classes:  # a number has no temperature
        usual.pop("temperature", None)
    usual["learning_rate"] = (rate / _FACTOR, rate * _FACTOR, "log")
    return usual | ({"fusion": _fusions(recipe)} if len(recipe.teachers.models) > 1 else {})


def search_fusions(recipe: Recipe) -> dict[str, Any]:
    """The fusions that a search of a recipe may choose, by their names."""
    given = None if recipe.search is None else recipe.search.fusion
    return {fusion_name(spec): spec for spec in given or _fusions(recipe)}


def _fusions(recipe: Recipe) -> list[Any]:
    """The recipe's own, and the usual."""
    own, task = fusion_name(recipe.fusion), TASKS.get(recipe.task)
    usual = ("auto", "linear_pool" if task is None else task.fusion)
    return [recipe.fusion, *(spec for spec in usual if fusion_name(spec) != own)]


def check_search(search: Mapping[str, Any], losses: Mapping[str, Any], teachers: int) -> Iterator[Problem]:
    """Check the section beyond the types of its keys.

    Args:
        search: The section.
        losses: The section `losses`, as it was written.
        teachers: How many the recipe has.
    """
    for name, (least, inclusive, most) in _NUMBERS.items():
        written = search.get(name)
        ends = written[:2] if isinstance(written, (list, tuple)) else []
        if len(ends) != 2 or not all(isinstance(end, (int, float)) for end in ends):
            continue  # it has its own line
        where = f"search.{name}"
        if min(ends) < least or max(ends) > most or (min(ends) == least and not inclusive):
            limits = f"{'from' if inclusive else 'above'} {least:g}"
            limits += f" to {most:g}" if most < math.inf else ""
            yield Problem(where, f"expected numbers {limits}, found {found(list(written))}")
        elif "log" in written and min(ends) <= 0:
            yield Problem(where, f"a logarithmic range begins above 0, found {found(list(written))}")
        if isinstance(losses.get(name), Mapping):
            yield Problem(
                where,
                f"losses.{name} is a schedule, which no single number replaces; keep one of the two",
            )
    yield from _check_fusions(search.get("fusion"), teachers)


def _check_fusions(fusions: Any, teachers: int) -> Iterator[Problem]:
    seen = {}
    for index, spec in enumerate(fusions if isinstance(fusions, (list, tuple)) else []):
        where = f"search.fusion.{index}"
        if not isinstance(spec, str) and not (isinstance(spec, Mapping) and isinstance(spec.get("use"), str)):
            continue  # it has its own line
        if fusion_name(spec) in seen:
            yield Problem(where, f"it is number {seen[fusion_name(spec)]} too, counted from 0")
        seen.setdefault(fusion_name(spec), index)
        try:
            weights = getattr(build_fusion(spec), "weights", None)
        except ConfigurationError as error:
            yield Problem(where, str(error))
            continue
        if isinstance(weights, tuple) and teachers and len(weights) != teachers:
            yield Problem(where, f"expected one weight per teacher, {teachers}; found {len(weights)}")
