"""Whenever a process is killed, the run goes on from what is left, to the bit."""

from __future__ import annotations

import os

import kill_builders
import kill_points
import kill_runs
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


@pytest.mark.slow
def test_two_builders_of_one_cache_that_are_killed(tmp_path, bert_tokenizer):
    for killed, shards, wrong in kill_builders.killed_builders(bert_tokenizer, tmp_path, 2):
        assert killed > 1 and shards == 20
        assert not wrong


@pytest.mark.slow
def test_two_builders_of_ten_caches_that_are_killed(tmp_path, bert_tokenizer):
    results = list(kill_builders.killed_builders(bert_tokenizer, tmp_path, 10, seed=1))
    assert sum(killed for killed, *_ in results) > 40
    assert not [wrong for *_, wrong in results if wrong]


@pytest.mark.slow
@pytest.mark.parametrize("phases", [kill_runs.PHASES[:4], kill_runs.PHASES[4:]], ids=" ".join)
def test_thirty_kills_of_whole_runs(tmp_path, bert_tokenizer, phases):
    results = list(kill_runs.killed_runs(bert_tokenizer, tmp_path, 6, phases))
    assert sum(clock + change for _, clock, change, _ in results) == 6 * len(phases)
    assert not [wrong for *_, wrong in results if wrong]
