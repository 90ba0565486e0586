"""What waits for long says how long: timing on rows, and steps that do not tell how far they are."""

from __future__ import annotations

import sys

import pytest
import torch

from hf_distill.evaluation import cost
from hf_distill.evaluation.cost import Cost, Timing, measure_costs, time_rows
from hf_distill.publishing.onnx import _waiting


def test_the_bar_of_a_timing_ends_full_and_is_left_out_unless_wanted(monkeypatch, capsys):
    bars = []

    class Kept(cost.tqdm):
        def __enter__(self):
            bars.append((self, self.disable))
            return super().__enter__()

    monkeypatch.setattr(cost, "tqdm", Kept)
    rows = [{"ids": torch.ones(1, 2)}] * 8
    for show in (True, False):
        time_rows({"a": len, "b": len}, rows, rows, seconds=0.1, show=show)
    assert [disabled for _, disabled in bars] == [False, True]
    assert (bars[0][0].n, bars[0][0].total) == (pytest.approx(0.2), 0.2)
    said = capsys.readouterr().err
    assert "Timing:   0%|" in said and said.count("Timing:   0%|") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_what_cannot_say_how_far_it_is_says_how_long_it_takes(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(KeyError), _waiting("Writing the graph"):
        raise KeyError
    assert ("Writing the graph: 00:00" in capsys.readouterr().err) == terminal


def test_an_ensemble_takes_its_teachers_turns():
    timings = {
        "student": lambda: Timing((1.0, 2.0, 3.0), 10.0, 1, 4),
        "teacher:a": lambda: Timing((4.0, 6.0), 5.0, 2, 8),
    }
    together = {"ensemble": ["teacher:a"], "student+teachers": list(timings)}
    costs = measure_costs(timings, together, show=False)
    assert costs["ensemble"] == costs["teacher:a"] == Cost(2, 8, 5.0, pytest.approx(5.9), 5.0)
    assert costs["student+teachers"].p50 == 6.5 and costs["student+teachers"].bytes == 12
    assert costs["student+teachers"].throughput == pytest.approx(1 / (1 / 10 + 1 / 5))
    known = measure_costs(
        {**timings, "teacher:b": lambda: None}, {"ensemble": ["teacher:a", "teacher:b"]}, show=False
    )
    assert known.keys() == timings.keys()
