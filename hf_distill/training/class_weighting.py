"""How much each class counts in the task loss: as the user says, or by how many training rows it has.

Shapes: C classes or labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from ..errors import ConfigurationError
from ..fusion.alignment import labelled
from ..lookup import suggest
from ..tasks.family import Family


def class_weights(given: Any, rows: Any, names: Sequence[str], family: Family) -> tuple[float, ...] | None:
    """The weights of the classes.

    Args:
        given: ``balanced``; a number for each class, in the order of their names; a mapping from names to them; or None.
        rows: Prepared training rows.
        names: Of the classes.
        family: Says what balance is.

    Returns:
        C weights; None where all count alike.

    Raises:
        ConfigurationError: They are not one number from 0 for each class, or nothing says which rows there are.

    Example:
        >>> from hf_distill.tasks import family_of
        >>> class_weights({"no": 1, "yes": 3}, None, ("no", "yes"), family_of("text-classification"))
        (1.0, 3.0)
    """
    if given is None:
        return None
    if not family.has_classes:
        raise ConfigurationError(
            "class_weights are for classes and labels, but here numbers are learnt: leave them out."
        )
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):  # as command lines deliver it
        given = json.loads(given)
    if given == "balanced":
        return _balanced(rows, names, family)
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        missing = [name for name in names if name not in given]
        if unknown or missing:
            wrong = (unknown or missing)[0]
            raise ConfigurationError(
                f"class_weights {'names' if unknown else 'lacks'} {wrong!r}{suggest(wrong, names) if unknown else ''}: give each of the "
                f"classes {list(names)} a weight."
            )
        given = [given[name] for name in names]
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(names):
        raise ConfigurationError(
            f"class_weights is {given!r}, expected balanced, or a weight for each of the {len(names)} classes {list(names)}."
        )
    numbers = [
        isinstance(w, (int, float)) and not isinstance(w, bool) and math.isfinite(w) and w >= 0 for w in given
    ]
    if not all(numbers) or not any(given):
        raise ConfigurationError(
            f"class_weights are {list(given)}, but each must be a finite number from 0, not all 0."
        )
    return tuple(float(w) for w in given)


def _balanced(rows: Any, names: Sequence[str], family: Family) -> tuple[float, ...]:
    if not isinstance(rows, datasets.Dataset):
        raise ConfigurationError(
            "class_weights=balanced counts the training rows of each class, but there are none that could be counted: give a weight "
            "for each class."
        )
    labels = rows.with_format("numpy", columns=["labels"])["labels"][:]
    known = labels[labelled(labels)]
    if not len(known):
        raise ConfigurationError(
            "class_weights=balanced counts the training rows of each class, but no row has a label."
        )
    return tuple(round(float(w), 6) for w in family.balanced(known, len(names)))
