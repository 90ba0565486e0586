"""Schedules: values by hand and by numpy, ends, and what is refused before any training."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from hf_distill.errors import ConfigurationError
from hf_distill.training.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Linear,
    WarmUp,
    build_schedule,
    refuse_nothing_learnt,
    value_at,
)

PATH = [i / 50 for i in range(51)]
EXAMPLES = {
    "constant": Constant(0.3),
    "linear": Linear(4, 1, begin=0.2, until=0.8),
    "cosine": Cosine(0.1, 0.9, begin=0.1, until=0.5),
    "warm_up": WarmUp(0.7, until=0.3),
}


def squared(progress: float) -> float:
    """A schedule of the user's own."""
    return 1 + progress**2


def test_values_by_hand():
    assert [Linear(4, 1)(p) for p in (0, 0.25, 0.5, 1)] == [4, 3.25, 2.5, 1]
    assert [Linear(0, 1, begin=0.5)(p) for p in (0, 0.5, 0.75, 1)] == [0, 0, 0.5, 1]
    assert [WarmUp(0.8, until=0.25)(p) for p in (0, 0.125, 0.25, 1)] == [0, 0.4, 0.8, 0.8]
    # cos(π/3) = 1/2: a third of the way in time is a quarter of the way in value.
    assert Cosine(1, 0)(1 / 3) == pytest.approx(0.75, abs=1e-15)
    assert Cosine(1, 0, until=0.5)(0.25) == pytest.approx(0.5, abs=1e-15)


def test_values_by_numpy():
    path = np.linspace(0, 1, 101)
    for begin, until in ((0.0, 1.0), (0.2, 0.7), (0.0, 0.01)):
        linear, cosine = Linear(3, 0.5, begin, until), Cosine(3, 0.5, begin, until)
        share = np.interp(path, [begin, until], [0, 1])
        np.testing.assert_allclose([linear(p) for p in path], 3 - 2.5 * share, atol=1e-12)
        np.testing.assert_allclose(
            [cosine(p) for p in path], 0.5 + 2.5 * (1 + np.cos(np.pi * share)) / 2, atol=1e-12
        )


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize(("start", "end"), [(4, 1), (0.1, 0.7), (2, 2)])
def test_ends_are_exact_and_the_way_between_has_no_return(kind, start, end):
    schedule = kind(start, end, begin=0.1, until=0.9)
    values = [schedule(p) for p in PATH]
    assert values[:5] == [start] * 5 and values[-5:] == [end] * 5
    steps = np.diff(values) * (1 if end >= start else -1)
    assert (steps >= -1e-15).all()
    assert len(set(values)) == (43 - 2 if start != end else 1)


def test_every_schedule_has_an_example_and_stays_between_its_ends():
    assert set(EXAMPLES) == set(SCHEDULES)
    for name, schedule in EXAMPLES.items():
        assert type(schedule) is SCHEDULES[name]
        values = [schedule(p) for p in PATH]
        assert min(values[0], values[-1]) <= min(values) and max(values) <= max(values[0], values[-1])
        options = dataclasses.asdict(schedule)
        assert build_schedule({"use": name, **options}, "task_weight") == schedule
        with pytest.raises(dataclasses.FrozenInstanceError):
            schedule.until = 0.5


def test_the_four_spellings():
    assert build_schedule(Linear(4, 1), "temperature") == Linear(4, 1)
    assert build_schedule({"use": "linear", "start": 4, "end": 1}, "temperature") == Linear(4, 1)
    assert build_schedule(f"{__name__}:squared", "temperature")(0.5) == 1.25
    assert build_schedule(lambda p: np.float32(p), "label_share")(0.5) == 0.5


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize(("begin", "until"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 1), (0, 1.1), (math.nan, 1)])
def test_a_part_that_is_none_of_the_training(kind, begin, until):
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__} goes from .* 0 <= begin < until <= 1"):
        kind(1, 0, begin, until)


def test_other_values_that_are_refused():
    with pytest.raises(ConfigurationError, match="WarmUp goes from progress 0 to 0"):
        WarmUp(1, until=0)
    with pytest.raises(ConfigurationError, match="Linear: start is '4', but it must be a number"):
        Linear("4", 1)
    with pytest.raises(ConfigurationError, match="Cosine: end is True, but it must be a number"):
        Cosine(1, True)


@pytest.mark.parametrize(
    ("name", "spec", "sentence"),
    [
        ("temperature", Linear(2, 0), "temperature would be 0 at progress 1, but .* must be above 0"),
        # Zero is met in the middle only.
        ("temperature", lambda p: (p - 0.5) ** 2, "temperature would be 0 at progress 0.5, but"),
        ("task_weight", Linear(1, -1), "task_weight would be -0.002 at progress 0.501, .* at least 0"),
        ("distill_weight", Constant(-1), "distill_weight would be -1 at progress 0, but a loss"),
        ("label_share", Linear(0, 2), "label_share would be 1.002 at progress 0.501, .* lie in"),
        ("label_share", Constant(-0.1), "label_share would be -0.1 at"),
        ("distill_weight", Constant(math.inf), "would be inf at progress 0, but it must be a finite number"),
        ("distill_weight", Constant(math.nan), "would be nan at progress 0, but it must be a finite number"),
        ("distill_weight", lambda p: None, "would be None at progress 0"),
        ("distill_weight", lambda p: True, "would be True at progress 0"),
        ("distill_weight", "liner", "no schedule named 'liner'.*did you mean 'linear'"),
        ("distill_weight", {"use": "linear", "from": 1}, "schedule 'linear' has no option 'from'"),
        ("distill_weight", {"use": "linear", "start": 1}, "schedule 'linear' with .*missing.*'end'"),
        ("distill_weight", Linear, "found the class Linear, expected an instance"),
        ("distill_weight", 3, "a schedule is a name"),
        ("distill_weight", object(), "schedule of distill_weight is .*function of training progress"),
    ],
)  # fmt: skip
def test_schedules_that_are_refused(name, spec, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        build_schedule(spec, name)


def test_both_weights_zero_at_once():
    refuse_nothing_learnt(Linear(0, 1), Linear(1, 0))
    refuse_nothing_learnt(WarmUp(1), Constant(0.1))
    for task, distill, progress in (
        (Constant(0), Linear(1, 0), "1"),
        (Constant(0), WarmUp(1), "0"),
        (Linear(0, 1, begin=0.5), Linear(1, 0, until=0.5), "0.5"),
    ):
        with pytest.raises(ConfigurationError, match=f"both 0 at progress {progress} of the training"):
            refuse_nothing_learnt(task, distill)


def test_the_value_is_a_plain_number():
    for schedule, progress in itertools.product((Constant(1), lambda p: np.float32(2)), (0.0, 1.0)):
        assert type(value_at(schedule, "temperature", progress)) is float
