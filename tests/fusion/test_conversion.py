"""Scores as classes and classes as scores: the numbers, what is fitted, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion import GaussianPool, LinearPool
from hf_distill.fusion.alignment import LabelMap, TeacherOutputs, align, plan_table
from hf_distill.fusion.conversion import (
    ClassMeans,
    ScoreBins,
    restored,
    stored,
    without_rows,
)

THREE = ("0", "1", "2")


def bins(**options):
    return ScoreBins.planned(["score"], THREE, "stars", options)


def test_a_score_becomes_classes_by_proportional_odds():
    found = bins(edges=[1, 3], spread=0.5).apply(torch.tensor([[2.0], [1.0], [9.0]])).exp()
    low, high = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))  # σ((1 − 2) / 0.5), σ((3 − 2) / 0.5)
    assert found[0].tolist() == pytest.approx([low, high - low, 1 - high], rel=1e-5)
    assert found[1].tolist() == pytest.approx(
        [0.5, 1 / (1 + math.exp(-4)) - 0.5, 1 / (1 + math.exp(4))], rel=1e-5
    )
    assert found.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert bins(edges=[1, 3], spread=1e-3).apply(torch.tensor([[2.0]])).exp().tolist() == [
        [0.0, 1.0, 0.0]
    ]  # a hard bin


def test_a_score_far_from_every_bin_says_finite_numbers():
    said = bins(edges=[1, 3], spread=0.01).apply(torch.tensor([[1e6], [-1e6]]))
    assert said.isfinite().all() and said.argmax(1).tolist() == [2, 0]
    assert said[0].tolist() == pytest.approx([-1e8, -1e8, 0.0], rel=1e-3)


def test_two_classes_are_the_logit_of_one_edge():
    made = ScoreBins.planned(
        ["score"], ["low", "high"], "t", {"edges": [2.5], "spread": 0.4, "order": ["low", "high"]}
    )
    scores = torch.linspace(-3, 8, 50)[:, None]
    said = made.apply(scores)
    assert torch.allclose(said[:, 1] - said[:, 0], (scores[:, 0] - 2.5) / 0.4, atol=1e-4)


def test_classes_are_in_the_student_s_order_whatever_the_scores_are():
    plain = bins(edges=[1, 3], spread=0.5)
    mixed = ScoreBins.planned(["score"], ("2", "0", "1"), "stars", {"edges": [1, 3], "spread": 0.5})
    scores = torch.tensor([[0.3], [2.0]])
    assert mixed.order == (1, 2, 0)
    assert torch.equal(mixed.apply(scores), plain.apply(scores)[:, [2, 0, 1]])
    words = ScoreBins.planned(["score"], ("good", "bad"), "t", {"edges": [1], "order": ["bad", "good"]})
    assert words.order == (1, 0)
    assert ScoreBins.planned(["score"], ("10", "9"), "t", {}).order == (1, 0)  # numbers, not text


def test_quantiles_leave_as_many_scores_below_as_labels():
    scores = torch.tensor([[5.0], [1.0], [2.0], [4.0], [8.0], [-100.0]])
    labels = torch.tensor([1, 0, 0, 1, 2, -100])  # the last row has no label
    found = bins(spread=0.5).fit(scores, labels)
    assert found.edges == (3.0, 6.5) and found.rows == 5 and found.fitted == ("edges",)
    assert bins(spread=0.5).fit(scores.flip(0), labels.flip(0)) == found


def test_the_spread_is_of_the_highest_likelihood():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=4000) * 2
    noise = draw.logistic(size=4000) * 0.3
    labels = torch.from_numpy(np.digitize(truth + noise, [-1.0, 1.0]))
    found = bins(edges=[-1, 1]).fit(torch.from_numpy(truth)[:, None], labels)
    assert found.spread == pytest.approx(0.3, rel=0.1) and found.fitted == ("spread",)

    def nll(spread):
        said = bins(edges=[-1, 1], spread=spread).apply(torch.from_numpy(truth)[:, None])
        return -said.gather(1, labels[:, None]).mean().item()

    assert nll(found.spread) <= min(nll(found.spread * 1.01), nll(found.spread / 1.01))
    given = bins(edges=[-1, 1], spread=0.7)
    assert given.fit(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)) is given  # nothing to fit


def test_means_are_those_of_the_rows_it_answers_and_of_the_others_by_probability():
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]).log()
    labels = torch.tensor([[1.0], [2.0], [4.0]])
    found = ClassMeans.planned(["a", "b", "c"], ["score"], "t", {}).fit(logits, labels)
    last = (0.1 * 1 + 0.1 * 2 + 0.1 * 4) / 0.3
    assert [m[0] for m in found.means] == pytest.approx([1.5, 4.0, last]) and found.rows == 3
    expected = 0.6 * 1.5 + 0.3 * 4 + 0.1 * last
    assert found.apply(logits)[0].item() == pytest.approx(expected)
    two = ClassMeans.planned(["a", "b", "c"], ["ease", "tone"], "t", {}).fit(
        logits, torch.cat([labels, -labels], 1)
    )
    assert two.means[1] == pytest.approx((4.0, -4.0))


def test_the_mean_of_expected_scores_is_that_of_the_pooled_classes():
    """Σ_k w_k Σ_c p_kc m_c = Σ_c p̄_c m_c: a Gaussian pool of converted teachers is the linear pool, converted."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 20, 4, generator=draw)
    rule = ClassMeans.planned(list("abcd"), ["score"], "t", {"means": {"a": 0, "b": 1, "c": 2.5, "d": 5}})
    weights = (0.5, 0.2, 0.3)
    each = torch.stack([rule.apply(own) for own in logits])
    pooled = rule.apply(LinearPool(weights)(logits))
    assert torch.allclose(GaussianPool(weights)(each), pooled, atol=1e-5)


def test_teachers_are_aligned_each_in_its_own_way():
    own = LabelMap.match(["2", "1", "0"], THREE, teacher="classes")
    rule = bins(edges=[1, 3], spread=0.5)
    outputs = [
        TeacherOutputs(torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.bfloat16)),
        TeacherOutputs(torch.tensor([[2.0]])),
    ]
    batch = align(outputs, [own, rule])
    assert batch.logits.shape == (2, 1, 3) and batch.mask is None and batch.logits.dtype == torch.float32
    assert batch.logits[0, 0].tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(batch.logits[1], rule.apply(torch.tensor([[2.0]])))
    table = plan_table([own, rule])
    assert "1 < score ≤ 3" in table and table.endswith("spread 0.5 (given).")
    assert "quantiles" in plan_table([own, bins()]) and "to be fitted" in plan_table([own, bins()])


def test_what_is_stored_is_read_as_it_was():
    fitted = bins().fit(torch.arange(9.0)[:, None], torch.arange(9) // 3)
    means = ClassMeans.planned(["a", "b"], ["x", "y"], "t", {"means": {"a": [1, 2], "b": [3, 4]}})
    for rule in (fitted, means):
        assert restored(json.loads(json.dumps(stored(rule)))) == rule


def test_the_rule_is_said_with_where_its_numbers_come_from():
    fitted = bins().fit(torch.arange(9.0)[:, None], torch.arange(9) // 3).sentence
    assert "0 < 1 < 2" in fitted and "edges 2.5, 5.5 (quantiles" in fitted and "9 held-out rows" in fitted
    assert "edges 1, 3 (given)" in bins(edges=[1, 3], spread=0.5).sentence
    assert "bad 1, good 5 (given)" in ClassMeans("t", ("bad", "good"), ("s",), ((1.0,), (5.0,))).sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"edges": [1]}, "gives 1 edge (1), but the student's 3 classes (0, 1, 2) need 2"),
        ({"edges": [3, 1]}, "edges are 3, 1, but each must be above"),
        ({"edges": [1, 1]}, "each must be above"),
        ({"edges": [1, float("nan")]}, "expected quantiles, or numbers"),
        ({"edges": "quantile"}, "expected quantiles, or numbers"),
        ({"edges": [1, True]}, "expected quantiles, or numbers"),
        ({"spread": 0}, "expected a number above 0"),
        ({"spread": "0.5"}, "expected a number above 0"),
        ({"order": ["0", "1"]}, "expected each of the student's classes once"),
        ({"means": {"0": 1}}, "no option 'means' here"),
        ({"edge": [1, 2]}, "did you mean 'edges'"),
    ],
)  # fmt: skip
def test_edges_that_cannot_be_meant(options, said):
    with pytest.raises(ConfigurationError) as raised:
        bins(**options)
    assert "Teacher 'stars'" in str(raised.value) and said in str(raised.value)


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ({"good": 1}, "lacks 'bad'"),
        ({"good": 1, "bda": 2}, "names 'bda' (did you mean 'bad'?)"),
        ({"good": 1, "bad": "low"}, "expected a mapping from each class to its score"),
        ({"good": [1, 2], "bad": [1, 2]}, "gives 2 number(s) per class, but the student has 1 score(s)"),
    ],
)
def test_means_that_cannot_be_meant(means, said):
    with pytest.raises(ConfigurationError) as raised:
        ClassMeans.planned(["bad", "good"], ["stars"], "t", {"means": means})
    assert said in str(raised.value)


def test_what_rows_do_not_say_is_refused():
    scores, labels = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 2, 2, 2])
    with pytest.raises(DataError, match="none of the 6 held-out rows is of the class '1'"):
        bins().fit(scores, labels)
    with pytest.raises(DataError, match="do not increase"):
        bins().fit(torch.ones(6, 1), torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(DataError, match="not finite"):
        bins().fit(torch.full((6, 1), torch.nan), torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(ConfigurationError, match="none of the 6 rows given has a label"):
        bins().fit(scores, torch.full((6,), -100))
    with pytest.raises(DataError, match="nothing says which of the student's classes"):
        ScoreBins.planned(["score"], ["good", "bad"], "t", {"edges": [1]})
    with pytest.raises(DataError, match="it gives 2 scores"):
        ScoreBins.planned(["ease", "tone"], THREE, "t", {})
    with pytest.raises(DataError, match="nothing has fitted that yet"):
        bins().apply(scores)
    with pytest.raises(DataError, match="nothing has fitted that yet"):
        ClassMeans.planned(["a", "b"], ["s"], "t", {}).apply(torch.zeros(1, 2))
    assert "but no evaluation rows were given: give some, or convert: {means:" in str(
        without_rows(ClassMeans.planned(["a", "b"], ["s"], "t", {}), "no evaluation rows were given")
    )
    assert ScoreBins.named is False  # no renaming of labels is looked for
