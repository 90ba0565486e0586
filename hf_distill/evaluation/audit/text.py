"""How an audit writes numbers, and lines to paste."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..statistics import Interval


def percent(share: float) -> str:
    """A share as percent.

    Example:
        >>> percent(0.9145)
        '91.5'
    """
    return f"{100 * share:.1f}" if math.isfinite(share) else "–"


def number(value: float | None, digits: int = 3, *, sign: str = "") -> str:
    """A number, ∞, or a dash where there is none.

    Example:
        >>> number(0.25, 2), number(math.inf), number(None)
        ('0.25', '∞', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    # + 0.0: no minus before a zero.
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−") if math.isfinite(value) else "∞"


def points(interval: Interval, *, sign: str = "+") -> str:
    """An accuracy in percent, or a difference of two in points, with half of its interval.

    Args:
        interval: As shares of one.
        sign: "+" for differences, which are marked * where beyond chance; "" for an accuracy.

    Example:
        >>> points(Interval(0.012, 0.004, 0.02))
        '+1.2 ± 0.8*'
    """
    return _with_half(Interval(*(100 * value for value in interval)), 1, sign)


def nats(interval: Interval, *, sign: str = "+") -> str:
    """An NLL, or a difference of two, with half of its interval; see `points`.

    Example:
        >>> nats(Interval(0.31, 0.29, 0.33), sign="")
        '0.310 ± 0.020'
    """
    return _with_half(interval, 3, sign)


def _with_half(interval: Interval, digits: int, sign: str) -> str:
    value, low, high = interval
    if not math.isfinite(value):
        return "∞" if value > 0 and not sign else "–"
    shown = f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace(
        "-", "−"
    )  # + 0.0: no minus before a zero
    if not math.isfinite(high - low):
        return shown
    mark = "*" if sign and interval.beyond_chance and round(value, digits) else ""
    return f"{shown} ± {(high - low) / 2:.{digits}f}{mark}"


def recipe_lines(entries: Sequence[Any], fusion: Mapping[str, Any]) -> str:
    """Teachers and fusion as a recipe writes them.

    Args:
        entries: A teacher's folder or id, or a mapping with ``model``.
        fusion: ``{"use": name, **options}``.

    Example:
        >>> print(recipe_lines(["org/bert", {"model": "org/b", "name": "yes"}], {"use": "log_pool", "weights": [0.4, 0.6]}))
        teachers:
          models:
            - org/bert
            - {model: org/b, name: "yes"}
        fusion: {use: log_pool, weights: [0.4, 0.6]}
    """
    rule = fusion["use"] if set(fusion) == {"use"} else fusion
    return "\n".join(
        [
            "teachers:",
            "  models:",
            *(f"    - {_flow(entry)}" for entry in entries),
            f"fusion: {_flow(rule)}",
        ]
    )


# What YAML of any version reads as text without quotes; it is JSON otherwise, which YAML reads too.
_BARE = re.compile(r"(\.{0,2}/|[A-Za-z_])[\w./-]*", re.ASCII)
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}" if "e" not in f"{value:.6g}" else f"{value:.10f}".rstrip("0")
    bare = isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _NO_TEXT
    return value if bare else json.dumps(value, ensure_ascii=False)
