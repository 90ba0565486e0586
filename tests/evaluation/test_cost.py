"""What waits for long says how long: timing on rows, and steps that do not tell how far they are."""

from __future__ import annotations

import sys

import pytest
import torch

from hf_distill.evaluation import timing
from hf_distill.publishing.onnx import _waiting


def test_the_bar_of_a_timing_ends_full_and_is_left_out_unless_wanted(monkeypatch, capsys):
    bars = []

    class Kept(timing.tqdm):
        def __enter__(self):
            bars.append((self, self.disable))
            return super().__enter__()

    monkeypatch.setattr(timing, "tqdm", Kept)
    rows = [{"ids": torch.ones(1, 2)}] * 8
    for show in (True, False):
        timing.time_rows({"a": len, "b": len}, rows, rows, seconds=0.1, show=show)
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
