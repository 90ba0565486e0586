"""Fusions of several labels at once and of numbers: values by hand, and fits against independent numpy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion import BernoulliLinearPool, BernoulliLogPool, GaussianPool, build_fusion, describe

K, N, C = 3, 80, 4
BERNOULLI = (BernoulliLinearPool, BernoulliLogPool)
FAMILIES = (*BERNOULLI, GaussianPool)
every_bernoulli = pytest.mark.parametrize("rule", BERNOULLI)
every_family = pytest.mark.parametrize("rule", FAMILIES)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def labels_and_logits(seed: int = 0, skill=(2.0, 1.0, 0.2)) -> tuple[torch.Tensor, torch.Tensor]:
    """Multi-label teachers: logits (K, N, C) and labels (N, C) of 0 and 1."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(2, size=(N, C))
    logits = draw.normal(size=(len(skill), N, C)) + np.array(skill)[:, None, None] * (2 * labels - 1)
    return torch.from_numpy(logits), torch.from_numpy(labels).double()


def some_missing() -> torch.Tensor:
    mask = torch.ones(K, N, C, dtype=torch.bool)
    mask[0, :, 3] = mask[1, :, 0] = mask[2, :, 0] = False
    return mask


def test_bernoulli_linear_pool():
    teachers = torch.tensor([[[0.2, 0.5]], [[0.8, 0.1]]]).logit()
    assert BernoulliLinearPool()(teachers).sigmoid().tolist() == [pytest.approx([0.5, 0.3])]
    assert BernoulliLinearPool((3, 1))(teachers).sigmoid().tolist() == [pytest.approx([0.35, 0.4])]
    # at T = 2 odds go to their square roots: 1/2 and 2, 1 and 1/3
    assert BernoulliLinearPool()(teachers, temperature=2.0).sigmoid().tolist() == [
        pytest.approx([0.5, 0.375])
    ]


def test_bernoulli_log_pool():
    teachers = torch.tensor([[[1.0, -2.0]], [[4.0, 2.0]]])
    assert BernoulliLogPool()(teachers).tolist() == [[2.5, 0.0]]
    assert BernoulliLogPool((1, 3), (0.5, 2.0))(teachers, temperature=2.0).tolist() == [[1.0, -0.125]]


def test_gaussian_pool():
    teachers = torch.tensor([[[1.0, 0.0]], [[5.0, 2.0]]])
    assert GaussianPool()(teachers).tolist() == [[3.0, 1.0]]
    assert GaussianPool((3, -1))(teachers, temperature=9.0).tolist() == [[-1.0, -1.0]]
    assert GaussianPool((3, -1)).weights == (1.5, -0.5)


@every_family
def test_missing_labels_are_the_others_alone(rule):
    """... in the ratio of their weights; what nobody has is NaN."""
    teachers = torch.tensor([[[1.0, 2.0, 0.0]], [[1.0, torch.nan, torch.nan]], [[1.0, 4.0, torch.inf]]])
    mask = torch.tensor([[[1, 1, 0]], [[1, 0, 0]], [[1, 1, 0]]], dtype=torch.bool)
    fused = rule(weights=(0.6, 0.2, 0.2))(teachers, mask=mask)[0]
    assert fused[0].item() == pytest.approx(1.0)
    if rule is BernoulliLinearPool:
        assert fused[1].sigmoid().item() == pytest.approx(0.75 * sigmoid(2.0) + 0.25 * sigmoid(4.0))
    else:
        assert fused[1].item() == pytest.approx(2.5)
    assert fused[2].isnan()
    rounded = rule(weights=(0.6, 0.2, 0.2))(teachers.half(), mask=mask)
    assert rounded.dtype == torch.float32
    np.testing.assert_allclose(rounded[0, :2], fused[:2], rtol=1e-6)


@every_family
def test_invariants(rule):
    z = labels_and_logits()[0].float()
    fused = rule()(z, mask=torch.ones(z.shape, dtype=torch.bool))
    np.testing.assert_allclose(fused, rule()(z), atol=1e-5)
    np.testing.assert_allclose(fused, rule()(z.flip(0)), atol=1e-5)
    np.testing.assert_allclose(rule()(z[:1]), z[0], atol=1e-5)
    np.testing.assert_allclose(rule()(z[:1].expand(4, N, C)), z[0], atol=1e-5)
    np.testing.assert_allclose(rule()(z[:, [3, 1]]), fused[[3, 1]], atol=1e-5)
    without = rule(weights=(0.5, 0.0, 0.5))
    worse = z.clone()
    worse[1] = torch.nan
    for mask in (None, some_missing()):
        assert torch.equal(without(worse, mask=mask), without(z, mask=mask))
    with pytest.raises(ConfigurationError, match="2 weights for 3 teachers"):
        rule(weights=(1, 1))(z)
    with pytest.raises(ConfigurationError, match="must be finite"):
        rule(weights=(1.0, math.nan, 1.0))
    with pytest.raises(AttributeError):
        rule().weights = (1.0,)


@every_family
def test_written_and_read(rule):
    for raw in np.random.default_rng(0).random((50, 3)).tolist():
        fusion = rule(weights=raw)
        assert build_fusion(json.loads(json.dumps(describe(fusion)))) == fusion
    assert build_fusion({"use": "hf_distill.fusion:GaussianPool"}) == GaussianPool()


def test_far_logits_stay_finite():
    fused = BernoulliLinearPool()(torch.tensor([[[200.0, -200.0]], [[200.0, 200.0]]]))
    assert 80 < fused[0, 0] < 200 and fused[0, 1].abs() < 1e-5


def test_gaussian_weights_that_cancel():
    for weights in ((1, -1), (math.inf, 1), ()):
        with pytest.raises(ConfigurationError, match="with a sum other than zero"):
            GaussianPool(weights)


@pytest.mark.parametrize("masked", [False, True])
def test_bernoulli_linear_fit_is_the_maximum(masked):
    logits, labels = labels_and_logits()
    mask = some_missing() if masked else None
    has = np.ones((K, N, C)) if mask is None else mask.numpy()
    likelihood = sigmoid(np.where(labels == 1, logits, -logits))

    def loss(weights):
        w = weights[:, None, None] * has
        return -np.log((w * likelihood).sum(0) / w.sum(0)).mean()

    found = minimize(lambda x: loss(np.exp(x - np.log(np.exp(x).sum()))), np.zeros(K), method="Nelder-Mead")
    fusion = BernoulliLinearPool.fit(logits, labels, mask=mask)
    assert loss(np.array(fusion.weights) + 1e-12) < found.fun + 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_bernoulli_log_fit_is_the_minimum(masked):
    logits, labels = labels_and_logits()
    mask = some_missing() if masked else None
    has = np.ones((K, N, C)) if mask is None else mask.numpy()
    z, y = logits.numpy(), labels.numpy()

    scale = np.sqrt((has * z**2).sum((1, 2)) / has.sum((1, 2)))

    def loss(beta):
        b = beta[:, None, None]
        fused = (b * has * z).sum(0) / (b * has).sum(0) * beta.sum()
        bce = np.logaddexp(0, np.where(y == 1, -fused, fused)).mean()
        return bce, bce + 0.01 / (N * C) * ((beta * scale) ** 2).sum()

    found = minimize(
        lambda beta: loss(beta)[1], np.full(K, 0.3), bounds=[(1e-9, None)] * K, method="L-BFGS-B"
    )
    fusion = BernoulliLogPool.fit(logits, labels, mask=mask)
    beta = np.array(fusion.weights) / np.array(fusion.temperatures)
    assert loss(beta + 1e-12)[1] < found.fun + 1e-8
    np.testing.assert_allclose(beta, found.x, atol=1e-3)
    fused = fusion(logits, mask=mask).numpy()
    assert np.logaddexp(0, np.where(y == 1, -fused, fused)).mean() == pytest.approx(loss(beta + 1e-12)[0])


@every_bernoulli
class TestBernoulliFits:
    def test_unknown_labels_do_not_count(self, rule):
        logits, labels = labels_and_logits()
        expected = rule.fit(logits[:, :40], labels[:40])
        for unknown in (-100, torch.nan):
            partly = labels.clone()
            partly[40:] = unknown
            worse = logits.clone()
            worse[:, 40:] = torch.nan
            assert rule.fit(worse, partly) == expected
        with pytest.raises(DataError, match="none of the 320 labels given is one that a teacher has"):
            rule.fit(logits, torch.full_like(labels, -100))

    def test_repeatable_in_any_order(self, rule):
        logits, labels = labels_and_logits()
        order = torch.from_numpy(np.random.default_rng(0).permutation(N))
        fusion = rule.fit(logits, labels)
        assert rule.fit(logits, labels) == fusion
        np.testing.assert_allclose(
            rule.fit(logits[:, order], labels[order])(logits), fusion(logits), atol=1e-5
        )
        np.testing.assert_allclose(
            rule.fit(logits.flip(0), labels)(logits.flip(0)), fusion(logits), atol=1e-4
        )

    def test_a_bad_teacher_weighs_nothing_unless_it_alone_has_a_label(self, rule):
        logits, labels = labels_and_logits(skill=(2.0, 1.5, -2.0))
        assert rule.fit(logits, labels).weights[2] == 0.0
        mask = torch.ones(logits.shape, dtype=torch.bool)
        mask[:2, :, 3] = False
        fusion = rule.fit(logits, labels, mask=mask)
        assert 0 < fusion.weights[2] < 1e-3 and fusion(logits, mask=mask).isfinite().all()

    def test_teachers_that_cannot_be_fitted(self, rule):
        logits, labels = labels_and_logits()
        logits[1, 3, 2] = torch.nan
        with pytest.raises(DataError, match="outputs that are not finite"):
            rule.fit(logits, labels)
        mask = some_missing()
        mask[1, 3, 2] = False
        rule.fit(logits, labels, mask=mask)

    def test_separable_labels_stay_finite(self, rule):
        logits, labels = labels_and_logits(skill=(9.0, 9.0))
        fusion = rule.fit(logits, labels)
        assert fusion(logits).isfinite().all() and np.isfinite(fusion.weights).all()


def test_log_pool_of_labels_nobody_predicts():
    logits, labels = labels_and_logits(skill=(-2.0, -1.0))
    with pytest.raises(DataError, match="no teacher's logits predict them better than chance"):
        BernoulliLogPool.fit(logits, labels)


def numbers(seed: int = 0, columns: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Forecasts whose errors go together: predictions (3, 60, D) and targets (60, D)."""
    draw = np.random.default_rng(seed)
    targets = draw.normal(size=(60, columns))
    common = draw.normal(size=(60, columns))
    scale = np.array([1.0, 1.5, 0.3])[:, None, None]
    errors = scale * common + 0.5 * draw.normal(size=(3, 60, columns)) + np.array([0, 0, 1.0])[:, None, None]
    return torch.from_numpy(targets + errors), torch.from_numpy(targets)


def test_bates_granger_is_its_formula():
    for columns in (1, 2):
        predictions, targets = numbers(columns=columns)
        errors = (predictions - targets).numpy().reshape(3, -1)
        inverse = np.linalg.inv(errors @ errors.T / errors.shape[1])
        expected = inverse.sum(1) / inverse.sum()
        assert expected.min() < 0  # whose errors go together is subtracted
        fusion = GaussianPool.fit(predictions, targets)
        np.testing.assert_allclose(fusion.weights, expected, rtol=1e-4)
        best = ((expected @ errors) ** 2).mean()
        assert best < min((errors**2).mean(1)) and best < (errors.mean(0) ** 2).mean()
        np.testing.assert_allclose(((fusion(predictions).double() - targets) ** 2).mean(), best, rtol=1e-5)
    predictions, targets = numbers()
    assert GaussianPool.fit(predictions[..., 0], targets[:, 0]) == GaussianPool.fit(predictions, targets)


def test_inverse_mse_is_its_formula():
    predictions, targets = numbers()
    raw = 1 / ((predictions - targets) ** 2).mean((1, 2))
    fusion = GaussianPool.fit(predictions, targets, method="inverse_mse")
    np.testing.assert_allclose(fusion.weights, raw / raw.sum(), rtol=1e-9)
    assert GaussianPool.fit(predictions[:1], targets, method="inverse_mse").weights == (1.0,)


@pytest.mark.parametrize("method", ["bates_granger", "inverse_mse"])
def test_fits_of_numbers(method):
    predictions, targets = numbers()
    expected = GaussianPool.fit(predictions[:, :30], targets[:30], method=method)
    worse, partly = predictions.clone(), targets.clone()
    worse[:, 30:], partly[30:] = torch.nan, torch.nan
    assert GaussianPool.fit(worse, partly, method=method) == expected
    mask = torch.ones(predictions.shape, dtype=torch.bool)
    mask[1, 30:] = False
    assert GaussianPool.fit(predictions, targets, mask=mask, method=method) == expected
    copies = GaussianPool.fit(predictions[[0, 0]], targets, method=method)
    assert copies.weights == pytest.approx((0.5, 0.5))
    exact = torch.stack([targets, predictions[1]])
    assert GaussianPool.fit(exact, targets, method=method).weights[0] > 0.99
    assert GaussianPool.fit(targets.expand(2, -1, -1), targets, method=method).weights == (0.5, 0.5)
    worse = predictions.clone()
    worse[1, 2] = torch.inf
    with pytest.raises(DataError, match="predictions that are not finite"):
        GaussianPool.fit(worse, targets, method=method)
    with pytest.raises(DataError, match="none given has a known target"):
        GaussianPool.fit(predictions, torch.full_like(targets, torch.nan), method=method)
    with pytest.raises(
        ConfigurationError, match="method is 'mean', but bates_granger and inverse_mse are known"
    ):
        GaussianPool.fit(predictions, targets, method="mean")
