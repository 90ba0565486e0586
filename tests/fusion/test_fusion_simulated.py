"""Ranks of all rules on simulated teachers whose quality is known: ten seeds, ranks and not decimals.

The simulation and the table are in benchmarks/fusion_table.py; docs/fusions.md shows what it prints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fusion_table import SEEDS, TEACHERS, exact, ranks, rules, score, scores, simulate
from hf_distill.fusion import FUSIONS, AutoFusion, HeldOut, LinearPool, LogPool
from hf_distill.fusion.fitting import mean_nll

pytestmark = pytest.mark.slow

FITTED_POOLS = (
    "log_pool, fitted",
    "pool_then_temper, fitted",
    "linear_pool, fitted",
    "greedy_selection, fitted",
)


@pytest.fixture(scope="module")
def table():
    """Scores of every rule in every seed, with the loud teacher."""
    return [scores(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def quiet():
    """The same without the loud teacher."""
    return [scores(seed, TEACHERS[:-1]) for seed in SEEDS]


def test_the_teachers_are_what_they_are_called():
    """Good, twin and different are calibrated, so their mean −ln p is their mean entropy; sure and loud are not."""
    z = torch.cat([simulate(seed).logits for seed in SEEDS], 1)
    labels = torch.cat([simulate(seed).labels for seed in SEEDS])
    surprise, right = [], []
    for logits in z:
        log_probs = logits.log_softmax(-1)
        surprise.append(
            mean_nll(log_probs.double(), labels) - (-log_probs.exp() * log_probs).sum(-1).mean().item()
        )
        right.append((logits.argmax(-1) == labels).double().mean().item())
    good, twin, different, sure, loud = range(5)
    assert all(abs(surprise[k]) < 0.03 for k in (good, twin, different))
    assert surprise[sure] > 0.5 and surprise[loud] > 5
    assert right[good] == pytest.approx(right[sure], abs=0.03) and right[good] > right[different] + 0.15
    assert right[loud] == pytest.approx(0.2, abs=0.03)
    answers = z.argmax(-1)
    assert (answers[good] == answers[twin]).double().mean() > 0.85


def test_every_rule_is_in_the_table(table):
    assert {name.partition(",")[0] for name in table[0]} == set(FUSIONS) | {"auto"}


def test_ranks(table):
    """What theory demands where errors are independent given the class: the posterior is a log pool."""
    rank = ranks(table)
    best = sorted(rank, key=rank.__getitem__)
    assert {"log_pool, fitted", "auto"} == set(best[:2]) and best[2] == "stacking, fitted"
    assert best[-1] == "majority_vote" and best[-2] == "log_pool, uniform"
    unfitted = [name for name in rank if not name.endswith("fitted") and name != "auto"]
    assert max(rank[name] for name in FITTED_POOLS) < min(rank[name] for name in unfitted)
    assert sum(rank.values()) == pytest.approx(len(rank) * (len(rank) + 1) / 2)


def test_in_every_seed(table):
    for of_rule in table:
        nll = {name: score.nll for name, score in of_rule.items()}
        assert nll["majority_vote"] == max(nll.values())
        assert nll["log_pool, uniform"] > 1.5 * nll["linear_pool, uniform"]  # the loud one takes over
        assert nll["entropy_weighted"] > nll["linear_pool, fitted"]
        for name in (*FITTED_POOLS, "stacking, fitted", "gate, fitted"):
            assert nll[name] < nll["linear_pool, uniform"]
            assert nll[name] < nll["best_teacher, fitted"]
        assert of_rule["log_pool, fitted"].accuracy > of_rule["best_teacher, fitted"].accuracy
        assert nll["pool_then_temper, fitted"] < nll["linear_pool, fitted"]  # the mean is under-confident
        # Without labels, as in evaluation, these are the uniform linear pool.
        for name in ("confidence_weighted", "likelihood_weighted", "stochastic_teacher"):
            assert nll[name] == pytest.approx(nll["linear_pool, uniform"], abs=1e-6)


def test_a_loud_teacher_costs_fitted_pools_nothing(table, quiet):
    for with_loud, without in zip(table, quiet, strict=True):
        for name in FITTED_POOLS:
            assert with_loud[name].nll < without[name].nll + 0.03
        assert with_loud["log_pool, uniform"].nll > without["log_pool, uniform"].nll + 1
        assert with_loud["linear_pool, uniform"].nll > without["linear_pool, uniform"].nll
        assert without["log_pool, uniform"].nll < without["linear_pool, uniform"].nll


def test_the_fitted_log_pool_is_near_the_exact_posterior(table):
    halves = [(rows.logits[:, 300:], rows.labels[300:]) for rows in map(simulate, SEEDS)]
    bound = [score(exact()(logits), labels).nll for logits, labels in halves]
    fitted = [of_rule["log_pool, fitted"].nll for of_rule in table]
    assert np.mean(bound) < np.mean(fitted) < np.mean(bound) + 0.03
    assert (
        np.mean([of_rule["stacking, fitted"].nll for of_rule in table]) > np.mean(bound) + 0.04
    )  # over-fits


def test_weights_tell_the_teachers_apart():
    """The loud one gets nothing; good and twin share what one of them is worth."""
    for seed in SEEDS:
        rows = simulate(seed)
        fit = HeldOut(rows.logits[:, :300], rows.labels[:300], None, rows.example_ids[:300])
        fitted = rules(fit)
        for name in ("linear_pool, fitted", "greedy_selection, fitted", "pool_then_temper, fitted"):
            assert fitted[name].weights[4] < 0.01
        pool = fitted["log_pool, fitted"]
        strength = np.array(pool.weights) / pool.temperatures[0]
        # in units of what each says: the loud one's logits are ten times as large
        assert 10 * strength[4] < 0.5 and strength[0] + strength[1] > 0.5 and strength[2] > 0.5
        assert fitted["best_teacher, fitted"].index in (0, 1)


@pytest.mark.parametrize("truth", ["posterior", "mixture"])
def test_auto_is_near_the_better_of_its_candidates(truth):
    """Also where labels follow the mean of the teachers' probabilities, so that the linear pool is the truth."""
    chosen = []
    for seed in SEEDS:
        rows = simulate(seed)
        logits, labels = rows.logits[:4], rows.labels
        if truth == "mixture":
            draw = torch.Generator().manual_seed(seed)
            labels = torch.multinomial(LinearPool()(logits).exp(), 1, generator=draw)[:, 0]
        fit = HeldOut(logits[:, :300], labels[:300], None, rows.example_ids[:300])
        auto = AutoFusion().choose(fit, TEACHERS[:4]).fusion
        part = fit.example_ids % 3 != 0
        candidates = (LinearPool(), LogPool.fit(fit.logits[:, part], fit.labels[part]))
        assert auto in candidates
        losses = [mean_nll(fusion(logits[:, 300:]).double(), labels[300:]) for fusion in (auto, *candidates)]
        assert losses[0] <= min(losses[1:]) + 0.02
        chosen.append(type(auto).__name__)
    assert chosen.count("LogPool" if truth == "posterior" else "LinearPool") >= 8


def test_the_documented_table_is_this_table(table):
    """docs/fusions.md lists the same rules in the order of these ranks; its decimals may differ by machine."""
    page = (Path(__file__).parents[2] / "docs" / "fusions.md").read_text(encoding="utf-8")
    lines = page[page.index("| rule ") :].split("\n\n")[0].splitlines()[2:]
    listed = [line.split("|")[1].strip() for line in lines]
    rank = ranks(table)
    assert set(listed) == set(rank) | {"(the exact posterior)"}
    documented = [float(line.split("|")[2]) for line in lines[:-1]]
    assert documented == pytest.approx([rank[name] for name in listed[:-1]], abs=1.0)
