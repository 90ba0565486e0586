"""How numbers are written, wherever a report or a sentence names them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .statistics import Interval


def minus(text: str) -> str:
    """A number with a minus sign in place of a hyphen."""
    return text.replace("-", "−")


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
    return minus(f"{round(value, digits) + 0.0:{sign}.{digits}f}") if math.isfinite(value) else "∞"


def grouped(value: float | None, digits: int = 0) -> str:
    """A large number with separators, or a dash where there is none.

    Example:
        >>> grouped(1234567), grouped(17.31, 1), grouped(None)
        ('1,234,567', '17.3', '–')
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def share(value: float) -> str:
    """A ratio with two significant digits.

    Example:
        >>> share(0.2123), share(1.3), share(0.0345)
        ('0.21', '1.3', '0.035')
    """
    digits = max(0, 1 - math.floor(math.log10(value))) if value > 0 else 1
    return f"{value:.{digits}f}"


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
    shown = number(value, digits, sign=sign)
    if not math.isfinite(high - low):
        return shown
    mark = "*" if sign and interval.beyond_chance and round(value, digits) else ""
    return f"{shown} ± {(high - low) / 2:.{digits}f}{mark}"


def signed_points(value: Interval) -> tuple[str, str, str]:
    """An accuracy difference and its bounds in points, with signs, fine enough to show on which side of zero they lie.

    Example:
        >>> signed_points(Interval(0.011, 0.006, 0.016)), signed_points(Interval(0.011, 0.0003, 0.02))
        (('+1.1', '+0.6', '+1.6'), ('+1.10', '+0.03', '+2.00'))
    """
    points = [100 * part for part in value]
    digits = 2 if any(0 < abs(point) < 0.05 for point in points) else 1
    return tuple(number(point, digits, sign="+") for point in points)  # type: ignore[return-value]


MUTE = 0.25
"""An interval of accuracies, or of their differences, that reaches so far to both sides says nothing of use."""


def tells(value: Interval) -> bool:
    """Whether an interval of an accuracy or of a difference of two says anything: two seeds may give one of ±100 points.

    Example:
        >>> tells(Interval(0.7, 0.6, 0.8)), tells(Interval(0.7, -0.3, 1.7))
        (True, False)
    """
    return math.isfinite(value.high - value.low) and (value.high - value.low) / 2 < MUTE


def interval(value: Interval) -> str:
    """Its bounds, in points; where they are so far apart that they say nothing, just that.

    Example:
        >>> interval(Interval(0.0, -0.004, 0.004)), interval(Interval(0.01, -0.99, 1.01))
        ('95 % interval −0.4 to +0.4', 'the interval of ±100 points says nothing')
    """
    if math.isfinite(value.high - value.low) and not tells(value):
        return f"the interval of ±{50 * (value.high - value.low):.0f} points says nothing"
    _, low, high = signed_points(value)
    return f"95 % interval {low} to {high}"


def faster(ratio: float | None) -> str:
    """A latency as a share of another one's, in the words of people.

    Example:
        >>> faster(1 / 17), faster(0.4), faster(1.02), faster(1.3), faster(None)
        ('17× faster', '2.5× faster', 'as fast', '1.3× slower', '–')
    """
    if ratio is None or not ratio > 0:
        return "–"
    times, word = (1 / ratio, "faster") if ratio < 1 else (ratio, "slower")
    return "as fast" if times < 1.05 else f"{times:,.{0 if times >= 9.95 else 1}f}× {word}"


def as_json(value: Any) -> Any:
    """What json.dumps takes; a number that is not finite is None.

    Example:
        >>> as_json({3: (Interval(1.0, float("nan"), 2.0), "text")})
        {'3': [{'value': 1.0, 'low': None, 'high': 2.0}, 'text']}
    """
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(75), duration(3675)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
