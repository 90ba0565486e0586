"""Whenever a process is killed, the run goes on from what is left, to the bit."""

from __future__ import annotations

import os

import kill_points
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize("seed", [1])
def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path, bert_tokenizer, seed):
    scenes = ["a save, one checkpoint kept"]
    for what, points, tried, wrong in kill_points.killed_everywhere(
        bert_tokenizer, tmp_path, 2, scenes, seed
    ):
        assert points > 100 and tried == 2, what
        assert not wrong, (what, wrong)


@pytest.mark.slow
def test_kills_at_a_hundred_points(tmp_path, bert_tokenizer):
    results = list(kill_points.killed_everywhere(bert_tokenizer, tmp_path, 17))
    assert sum(tried for _, _, tried, _ in results) > 100
    assert not [wrong for *_, wrong in results if wrong]
