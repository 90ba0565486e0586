"""How the recipes of runs differ: which keys, and what each run has there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Every run has one of its own.
_ALWAYS_APART = frozenset({"training.output_dir"})


class RecipeDifference(NamedTuple):
    """A key in which recipes differ.

    Attributes:
        key: With dots, as on a command line.
        values: By run; None where it has none.
    """

    key: str
    values: Mapping[str, str | None]


def recipe_differences(folders: Mapping[str, Path]) -> tuple[RecipeDifference, ...] | None:
    """Compare the recipes that runs wrote into their folders, with defaults spelled out.

    Values are read as text, so that nothing is built or imported, and 1e-4 and 0.0001 differ where they are written so.

    Args:
        folders: Of the runs, by what tables call them; one without a recipe is left out.

    Returns:
        One for each key that is not the same in all; None where fewer than two have a recipe.
    """
    recipes = {run: found for run, folder in folders.items() if (found := _read(folder)) is not None}
    if len(recipes) < 2:
        return None
    return tuple(
        RecipeDifference(key, dict(zip(recipes, map(_shown, values), strict=True)))
        for key, values in apart(*recipes.values())
        if key not in _ALWAYS_APART
    )


def apart(*recipes: Mapping[str, Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """What recipes say differently.

    Args:
        recipes: As mappings and lists.

    Returns:
        Each key, with dots, and what each recipe has there; None where it has none.

    Example:
        >>> apart({"losses": {"temperature": 2}, "task": "x"}, {"losses": {"temperature": 4}, "task": "x"})
        [('losses.temperature', (2, 4))]
    """
    flat = [dict(_flat(recipe)) for recipe in recipes]
    found = []
    for key in dict.fromkeys(key for recipe in flat for key in recipe):
        values = tuple(recipe.get(key) for recipe in flat)
        if any(value != values[0] for value in values):
            found.append((key, values))
    return found


def _shown(value: Any) -> str | None:
    return None if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(folder: Path) -> dict[str, Any] | None:
    """A run's recipe, all its values texts; None where there is none that can be read."""
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, own in value.items():
            yield from _flat(own, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(own, (dict, list)) for own in value):
        for i, own in enumerate(value):
            yield from _flat(own, f"{path}.{i}")
    else:
        yield path, value
