"""How the generators of cases run: the same cases every time, none kept on the disk, no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings


def cases(count: int) -> Callable[[Any], Any]:
    """Settings of a test that is given so many generated cases.

    ``FAULTS_CASES=1000`` in the environment makes more of each.

    Args:
        count: How many.
    """
    import os

    return settings(
        max_examples=int(os.environ.get("FAULTS_CASES", count)),
        derandomize="FAULTS_CASES" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
