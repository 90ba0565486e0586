"""Durations in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(75), duration(3675)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
