"""Comparisons of systems: values by hand, independent implementations, and the edges where counts are zero."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest, t
from sklearn.metrics import accuracy_score, cohen_kappa_score

from hf_distill.errors import DataError
from hf_distill.evaluation import statistics as comparison
from hf_distill.evaluation.metrics import expected_calibration_error
from hf_distill.evaluation.statistics import (
    Difference,
    Interval,
    above_guessing,
    accuracy_interval,
    bootstrap_means,
    common_errors,
    difference,
    disagreement_matrix,
    holm,
    label_permutation,
    mcnemar_exact,
    paired_bootstrap,
    percentile_interval,
    q_statistics,
)
from hf_distill.tasks.row_scores import reliability_bins


@pytest.fixture
def answers():
    """Predictions of five systems over 200 rows and 4 classes, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=200)
    predictions = np.where(rng.random((5, 200)) < 0.7, labels, rng.integers(4, size=(5, 200)))
    return predictions, labels


def test_disagreement_is_one_minus_accuracy_against_each_other(answers):
    predictions, _ = answers
    found = disagreement_matrix(predictions)
    for i, j in itertools.product(range(5), repeat=2):
        assert found[i, j] == pytest.approx(1 - accuracy_score(predictions[i], predictions[j]))


def test_q_by_hand_and_where_it_is_undefined():
    # N11 = 1, N00 = 2, N10 = 1, N01 = 1: (2 - 1) / (2 + 1).
    right = np.array([[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]], bool)
    assert q_statistics(right)[0, 1] == pytest.approx(1 / 3)
    # Independent: every combination once.
    assert q_statistics(np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool))[0, 1] == 0
    # Never both right, never both wrong.
    assert q_statistics(np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool))[0, 1] == -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = q_statistics(np.array([[1, 1, 1], [1, 0, 1]], bool))
    assert np.isnan(found[0]).all() and found[1, 1] == 1


def test_common_errors_row_by_row(answers):
    predictions, labels = answers
    found = common_errors(predictions, labels)
    for i, j in itertools.product(range(5), repeat=2):
        pairs = list(zip(predictions[i], predictions[j], labels, strict=True))
        assert found.both_wrong[i, j] == pytest.approx(np.mean([a != y and b != y for a, b, y in pairs]))
        assert found.same_wrong[i, j] == pytest.approx(np.mean([a == b != y for a, b, y in pairs]))


def test_bootstrap_draws_the_rows_that_its_seed_says():
    values = np.random.default_rng(1).normal(size=(30, 3))
    found = bootstrap_means(values, resamples=7, seed=5)
    drawn = np.random.default_rng(5).integers(30, size=(7, 30))
    np.testing.assert_allclose(found, [values[rows].mean(0) for rows in drawn])


def test_bootstrap_blocks_change_memory_alone(monkeypatch):
    values = np.random.default_rng(1).normal(size=(30, 2))
    whole = bootstrap_means(values, resamples=50)
    monkeypatch.setattr(comparison, "_BLOCK", 100)  # three resamples at a time
    np.testing.assert_allclose(bootstrap_means(values, resamples=50), whole)


def test_bootstrap_of_infinite_values_says_so_without_touching_the_others():
    values = np.array([[1.0, 2.0], [np.inf, 4.0], [3.0, 6.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_means(values, resamples=20)
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[:, 1], bootstrap_means(values[:, 1:], resamples=20)[:, 0])


def test_paired_interval_is_that_of_scipy_and_of_the_normal_law():
    rng = np.random.default_rng(2)
    first = rng.normal(size=400)
    second = first - 0.1 + 0.5 * rng.normal(size=400)
    found = paired_bootstrap(first, second)
    assert found.value == pytest.approx(first.mean() - second.mean())
    theirs = stats.bootstrap(
        (first - second,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    half = 1.96 * (first - second).std() / 20
    for low, high in ((theirs.low, theirs.high), (found.value - half, found.value + half)):
        assert found.low == pytest.approx(low, abs=0.1 * half)
        assert found.high == pytest.approx(high, abs=0.1 * half)
    # What makes rows hard for both cancels: unpaired, the interval would be several times as wide.
    assert found.beyond_chance
    assert paired_bootstrap(second, first) == pytest.approx((-found.value, -found.high, -found.low))


def test_levels_are_nested():
    replicates = np.random.default_rng(0).normal(size=1000)
    wide, narrow = (percentile_interval(0, replicates, level=level) for level in (0.99, 0.9))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert Interval(0.1, float("nan"), float("nan")).beyond_chance is False


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (3, 3), (5, 1), (0, 9), (40, 22)])
def test_mcnemar_is_the_two_sided_binomial_test(one, other):
    first = np.array([1] * one + [0] * other + [1, 1, 0], bool)
    second = np.array([0] * one + [1] * other + [1, 1, 0], bool)
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected)
    assert mcnemar_exact(second, first) == pytest.approx(expected)


def test_above_guessing_is_cohens_kappa_and_its_null_spread(answers):
    predictions, labels = answers
    kappa, z = above_guessing(predictions[0], labels)
    assert kappa == pytest.approx(cohen_kappa_score(predictions[0], labels))
    rng = np.random.default_rng(0)
    shuffled = [cohen_kappa_score(rng.permutation(predictions[0]), labels) for _ in range(400)]
    assert kappa / z == pytest.approx(np.std(shuffled), rel=0.1)


def test_a_constant_answer_is_a_guess_however_frequent_its_class():
    labels = np.array([0] * 95 + [1] * 5)
    assert above_guessing(np.zeros(100, int), labels) == (0.0, 0.0)
    assert above_guessing(np.zeros(100, int), np.zeros(100, int)) == (0.0, 0.0)


def test_label_permutation_is_the_best_of_all(answers):
    predictions, labels = answers
    wrong = np.array([2, 0, 3, 1])[predictions[0]]
    found = label_permutation(wrong, labels, 4)
    best = max(
        (np.mean(np.array(order)[wrong] == labels), order) for order in itertools.permutations(range(4))
    )
    assert (found.accuracy, found.classes) == best
    assert found.classes == (1, 3, 0, 2)


def test_classes_without_evidence_keep_their_names():
    assert label_permutation(np.array([0, 3]), np.array([0, 3]), 5).classes == (0, 1, 2, 3, 4)
    assert label_permutation(np.array([0, 1]), np.array([1, 0]), 4).classes == (1, 0, 2, 3)
    assert label_permutation(np.array([0, 1]), np.array([1, 1]), 3).classes == (0, 1, 2)  # one row each way
    assert label_permutation(np.array([0, 1]), np.array([0, 3]), 4).classes == (0, 3, 2, 1)


def test_reliability_bins_are_the_summands_of_the_calibration_error():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(300, 5))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = rng.integers(5, size=300)
    bins = reliability_bins(log_probs, labels)
    assert sum(b.rows for b in bins) == 300
    error = sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / 300
    assert error == pytest.approx(expected_calibration_error(log_probs, labels))
    certain = reliability_bins(np.array([[0.0, -np.inf]]), np.array([0]))
    assert certain == [(1.0, 1.0, 1)]


def test_what_does_not_fit_is_refused():
    for call in (
        lambda: disagreement_matrix(np.array([0, 1])),
        lambda: q_statistics(np.empty((2, 0))),
        lambda: bootstrap_means(np.empty((0, 2))),
        lambda: paired_bootstrap(np.ones(3), np.ones(4)),
        lambda: mcnemar_exact(np.ones(3, bool), np.ones(4, bool)),
    ):
        with pytest.raises(DataError):
            call()


# ---- Rows and trainings, both drawn anew ----


def test_one_seed_is_a_paired_t_interval():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 2, (2, 1, 80)).astype(float)
    found = difference("accuracy", ("a", "b"), first, second)
    low, high = stats.ttest_rel(first[0], second[0]).confidence_interval(0.95)
    assert found.value == pytest.approx((first.mean() - second.mean(), low, high))
    assert found.value == pytest.approx(paired_bootstrap(first[0], second[0]), abs=0.03)
    wins, losses = ((first > second).sum(), (second > first).sum())
    assert found.mcnemar == (pytest.approx(binomtest(int(wins), int(wins + losses)).pvalue),)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_seeds_decide_it_is_a_t_interval_over_them(seeds):
    effect = np.random.default_rng(seeds).normal(size=seeds)
    values = np.repeat(effect[:, None], 50, axis=1)
    found = difference("nll", ("a", "b"), values, np.zeros((seeds, 50)))
    low, high = stats.ttest_1samp(effect, 0).confidence_interval(0.95)
    assert found.value == pytest.approx((effect.mean(), low, high))


def test_runs_draw_their_seeds_apart():
    """Two runs with the same seed effects: paired, these cancel; of different runs they do not."""
    values = np.repeat(np.array([0.0, 0.5, 1.0])[:, None], 50, axis=1)
    paired = difference("nll", ("a", "b"), values, values)
    apart = difference("nll", ("a", "b"), values, values, paired_seeds=False)
    assert paired.value == Interval(0.0, 0.0, 0.0)
    assert apart.value.low < -0.3 and apart.value.high > 0.3
    # Welch: two variances of 0.25 with two degrees of freedom each have four together.
    assert apart.value.high == pytest.approx(t.ppf(0.975, 4) * math.sqrt(2 * 0.25 / 3), rel=0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_p_says_what_beyond_chance_says():
    """Of one seed with McNemar's test, of several, of too few rows, and of none at all."""
    generator = np.random.default_rng(3)
    for seeds, gain in ((1, 0.0), (1, 0.06), (3, 0.06), (3, 0.002)):
        second = (generator.random((seeds, 400)) < 0.7).astype(float)
        first = np.where(generator.random((seeds, 400)) < gain, 1.0, second)
        found = difference("accuracy", ("a", "b"), first, second)
        assert (found.p < 0.05) == found.beyond_chance
        assert seeds > 1 or found.p >= found.mcnemar[0]
    assert difference("accuracy", ("a", "b"), first, second, apart=5).p == 1
    assert not difference("accuracy", ("a", "b"), np.ones((3, 9)), np.zeros((3, 9)), apart=5).beyond_chance


def test_a_single_row_has_no_spread():
    assert accuracy_interval(np.array([[1.0], [1.0]])) == (1.0, 1.0, 1.0)


def test_nothing_is_detectable_from_nothing():
    same = np.ones((1, 500))
    assert difference("accuracy", ("a", "b"), same, same).detectable == 4 / 500
    with pytest.raises(DataError, match="a has 500 and b 3"):
        difference("accuracy", ("a", "b"), same, np.ones((1, 3)))


def test_a_label_held_impossible_leaves_no_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = np.array([[np.inf, 1.0], [np.inf, 2.0]])
        assert math.isnan(difference("nll", ("a", "b"), same, same).value.low)
        assert math.isnan(difference("nll", ("a", "b"), same, same[:1] + 1, paired_seeds=False).detectable)
        impossible = difference("nll", ("a", "b"), np.array([[np.inf, 1.0]]), np.array([[1.0, 1.0]]))
        assert impossible.value.value == np.inf and not impossible.beyond_chance
    found = difference("nll", ("a", "b"), np.array([[np.inf, 1.0]]), np.array([[np.inf, 1.0]]))
    assert math.isnan(found.value.value) and not found.better and not found.worse


@pytest.mark.parametrize(
    ("student", "baseline", "seeds", "proven"),
    [
        (4, 0, 1, False),  # the interval leaves zero out, p = 0.125
        (5, 0, 1, False),  # p = 0.063
        (7, 1, 1, False),  # p = 0.070
        (6, 0, 1, True),  # p = 0.031
        (9, 1, 1, True),  # p = 0.021
        (5, 0, 5, False),
        (6, 0, 5, True),
    ],
)
def test_few_rows_prove_nothing(student, baseline, seeds, proven):
    right = np.ones((2, seeds, 500))
    right[1, :, :student] = 0
    right[0, :, student : student + baseline] = 0
    found = difference("accuracy", ("a", "b"), *right)
    assert found.value.beyond_chance
    assert found.beyond_chance is found.better is proven and not found.worse
    assert (found.mcnemar[0] < 0.05) is (student >= 6 and student != 7)


def test_all_of_three_rows_prove_nothing():
    found = difference("accuracy", ("a", "b"), np.ones((5, 3)), np.zeros((5, 3)))
    assert found.value == (1.0, 1.0, 1.0) and not found.beyond_chance


def test_less_nll_is_better():
    down = Difference("nll", "a", "b", Interval(-0.2, -0.3, -0.1), 0.1)
    assert down.better and not down.worse
    assert down._replace(measure="accuracy").worse
