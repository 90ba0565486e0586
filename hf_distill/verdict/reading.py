"""A verdict read back from report.json, the only one of its files that is for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import CorruptStateError
from ..evaluation.report_files import JSON
from .report import VERSION, VerdictReport


def load_report(folder: str | os.PathLike[str]) -> VerdictReport | None:
    """Rebuild the verdict of a run from its report.json; a number that was not finite comes back as NaN.

    Args:
        folder: Of the run.

    Returns:
        None where there is no report, or a plain one of `evaluate_ensemble`, which has no verdict.

    Raises:
        CorruptStateError: The report is damaged, or of another version.

    Example:
        >>> load_report(getfixture("tmp_path")) is None
        True
    """
    path = Path(folder, JSON)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        if "version" not in content and "claim" not in content:
            return None
        if (found := content["version"]) != VERSION:
            age = "newer" if found > VERSION else "older"
            raise ValueError(f"version {found} is {age} than this package, which knows {VERSION}")
        return _report(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CorruptStateError(
            f"{path} cannot be read ({' '.join(said.split())[:200]}): evaluate again, or remove it."
        ) from error


def _report(content: Mapping[str, Any]) -> VerdictReport:
    """The report's parts from where `VerdictReport.to_dict` puts them."""
    systems = content["systems"]
    moved = {
        "evaluation": content,
        "roles": {name: system["role"] for name, system in systems.items()},
        "spread": {name: system["std"] for name, system in systems.items()},
        "by_seed": {name: system["by_seed"] for name, system in systems.items()},
        "costs": content["cost"]["systems"],
        "conditions": content["cost"]["conditions"],
        "place": content["cost"]["place"],
        "accuracies": content["accuracy_intervals"],
    }
    return _read(VerdictReport, {**content, **moved})


def _read(kind: Any, value: Any) -> Any:
    """A value of a type from what JSON made of it; as the types say it, so that a new field needs no word here.

    Example:
        >>> _read(tuple[float, ...], [1, None]), _read(Mapping[int, str | None], {"3": None})
        ((1.0, nan), {3: None})
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (float, Any):
        # In a trainer's log, the one place of Any, what is missing was a number too.
        value = math.nan if value is None else value
        return float(value) if kind is float else value
    if origin in (Union, UnionType):
        return None if value is None else _read(arguments[0], value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, found {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_read(own, part) for own, part in zip(kinds, value, strict=True))
    if origin is not None:  # the mappings
        return {_read(arguments[0], key): _read(arguments[1], part) for key, part in value.items()}
    if hasattr(kind, "_fields") or dataclasses.is_dataclass(kind):
        return kind(**{n: _read(own, value[n]) for n, own in get_type_hints(kind).items() if n in value})
    if kind is int and isinstance(value, str):  # a key
        return int(value)
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, found {value!r}")
    return value
