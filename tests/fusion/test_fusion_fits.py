"""Fits against independent numpy, scipy and scikit-learn; what all fits keep to: test_fusion_every_fit.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion import (
    BestTeacher,
    Gate,
    GreedySelection,
    LinearPool,
    LogPool,
    PoolThenTemper,
    Stacking,
    fit_temperature,
)

K, C = 3, 4


def rows(seed: int = 0, count: int = 200, skill=(2.0, 1.0, 0.3), classes: int = C):
    """Teachers of different skill: logits (K, count, C) and labels (count,), in float64."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes, size=count)
    known = np.eye(classes)[labels]
    logits = draw.normal(size=(len(skill), count, classes)) + np.array(skill)[:, None, None] * known
    return torch.from_numpy(logits), torch.from_numpy(labels)


def missing(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same teachers where each lacks a class."""
    mask = torch.ones(logits.shape, dtype=torch.bool)
    mask[0, :, 3] = mask[1, :, 0] = mask[2, :, 1] = False
    return logits.masked_fill(~mask, -torch.inf), mask


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def nll(p: np.ndarray, labels: torch.Tensor) -> float:
    return float(-np.log(p[np.arange(len(labels)), labels.numpy()]).mean())


def numpy_masked_pool(p: np.ndarray, mask: np.ndarray, weights: np.ndarray, rounds: int = 3000) -> np.ndarray:
    """The fixed point q_c ∝ Σ_{k∋c} w_k p_k(c) ÷ Σ_{k∋c} w_k / Q_k, started uniform."""
    top = (weights[:, None, None] * p).sum(0)
    q = np.full(p.shape[1:], 1 / p.shape[-1])
    for _ in range(rounds):
        share = (mask * q).sum(-1, keepdims=True)
        q = top / (weights[:, None, None] * mask / share).sum(0)
        q = np.nan_to_num(q) / np.nansum(q, -1, keepdims=True)  # 0 / 0: a class that nobody has
    return q


def test_log_pool_is_the_constrained_minimum():
    for seed in (0, 1, 2):
        logits, labels = rows(seed, skill=(2.0, 1.0, -0.5))
        z = logits.numpy()
        centred = z - z.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean((1, 2)))

        def objective(beta, z=z, labels=labels, scale=scale):
            return nll(softmax(np.tensordot(beta, z, 1)), labels) + 0.01 / 200 * ((beta * scale) ** 2).sum()

        found = minimize(objective, np.full(K, 0.3), bounds=[(0, None)] * K, method="SLSQP", tol=1e-14)
        fusion = LogPool.fit(logits, labels)
        beta = np.array(fusion.weights) / np.array(fusion.temperatures)
        np.testing.assert_allclose(beta, found.x, atol=1e-4)
        assert objective(beta) <= found.fun + 1e-10
        assert fusion.weights[2] == 0.0  # it speaks against the labels
        # what the prior costs is nothing
        free = minimize(lambda b: nll(softmax(np.tensordot(b, z, 1)), labels), beta, bounds=[(0, None)] * K)  # noqa: B023
        assert nll(softmax(np.tensordot(beta, z, 1)), labels) < free.fun + 1e-5


def test_log_pool_where_classes_are_missing():
    """Against a search over numpy's least squares."""
    logits, labels = rows(3)
    logits, mask = missing(logits)
    z, has = logits.numpy(), mask.numpy()[:, 0]
    pairs = [(k, c) for k in range(K) for c in range(C) if has[k, c]]

    def fused(beta):
        system = np.zeros((len(pairs), C + K))
        for i, (k, c) in enumerate(pairs):
            system[i, [c, C + k]] = np.sqrt(beta[k]) * np.array([1, -1])
        right = np.stack([np.sqrt(beta[k]) * z[k, :, c] for k, c in pairs])
        return softmax(np.linalg.lstsq(system, right, rcond=None)[0][:C].T * beta.sum())

    fusion = LogPool.fit(logits, labels, mask=mask)
    ours = nll(fusion(logits, mask=mask).exp().numpy(), labels)
    beta = np.array(fusion.weights) / np.array(fusion.temperatures)
    np.testing.assert_allclose(fused(beta), fusion(logits, mask=mask).exp(), atol=1e-6)
    for start in (np.full(K, 0.3), np.array([1.0, 0.1, 0.1])):
        found = minimize(
            lambda log_beta: nll(fused(np.exp(log_beta)), labels), np.log(start), method="Nelder-Mead"
        )
        assert ours < found.fun + 2e-5


def test_linear_pool_is_the_constrained_maximum():
    for seed in (0, 1, 2):
        logits, labels = rows(seed)
        p = softmax(logits.numpy())[:, np.arange(200), labels]
        found = minimize(
            lambda w: -np.log(w @ p).mean(),  # noqa: B023
            np.full(K, 1 / K),
            bounds=[(0, 1)] * K,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            tol=1e-14,
        )
        weights = np.array(LinearPool.fit(logits, labels).weights)
        np.testing.assert_allclose(weights, found.x, atol=1e-3)
        assert -np.log(weights @ p).mean() <= found.fun + 1e-9
    with pytest.raises(ConfigurationError, match="method is 'newton', but only 'em' is known"):
        LinearPool.fit(logits, labels, method="newton")


def test_a_row_that_all_teachers_hold_impossible_says_nothing():
    logits, labels = rows(21)
    expected = LinearPool.fit(logits[:, :199], labels[:199])
    logits[:, 199] = -2000.0 * torch.nn.functional.one_hot(labels[199], C)
    assert LinearPool.fit(logits, labels) == expected
    assert LinearPool.fit(logits[:, 199:], labels[199:]).weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_linear_pool_where_classes_are_missing():
    """Against a search over the fixed-point iteration that defines the pool."""
    logits, labels = rows(4, count=80, skill=(1.5, 1.0, 0.5))
    logits, mask = missing(logits)
    p, has = softmax(logits.numpy()), mask.numpy()
    fusion = LinearPool.fit(logits, labels, mask=mask)
    ours = numpy_masked_pool(p, has, np.array(fusion.weights))
    np.testing.assert_allclose(ours, fusion(logits, mask=mask).exp(), atol=1e-6)
    found = minimize(
        lambda x: nll(numpy_masked_pool(p, has, softmax(x), rounds=300), labels), np.zeros(K), method="Powell"
    )
    assert nll(ours, labels) < found.fun + 1e-5


def test_temperature_is_the_best_of_a_grid():
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    for seed, scale in ((0, 1.0), (1, 6.0), (2, 0.2)):
        logits, labels = rows(seed)
        z = scale * logits[1].numpy()
        losses = [nll(softmax(z / t), labels) for t in grid]
        found = fit_temperature(torch.from_numpy(z), labels)
        assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
        assert nll(softmax(z / found), labels) <= min(losses)


def test_temperature_of_rows_that_say_nothing_or_too_much():
    logits, labels = rows(0)
    z = logits[0]
    expected = fit_temperature(z[:150], labels[:150])
    unknown = labels.clone()
    unknown[150:] = -100
    assert fit_temperature(z, unknown) == expected
    z_without = z.clone()
    z_without[150:] = z_without[150:].scatter(-1, labels[150:, None], -torch.inf)  # labels that it lacks
    assert fit_temperature(z_without, labels) == expected
    assert fit_temperature(z.half(), labels) == pytest.approx(fit_temperature(z, labels), rel=1e-2)
    assert fit_temperature(torch.zeros(200, C), labels) == 1.0
    assert fit_temperature(10.0 * torch.nn.functional.one_hot(labels, C), labels) >= 0.01
    for broken in (torch.nan, torch.inf):
        with pytest.raises(DataError, match="outputs that are not finite"):
            fit_temperature(z.index_fill(0, torch.tensor([3]), broken), labels)
    with pytest.raises(DataError, match="none of the 200 rows given has one"):
        fit_temperature(z, torch.full_like(labels, -100))


@pytest.mark.parametrize("masked", [False, True])
def test_greedy_selection_is_the_naive_loop(masked):
    logits, labels = rows(5, count=60, skill=(1.0, 0.9, 0.8))
    mask = None
    if masked:
        logits, mask = missing(logits)
    p = softmax(logits.numpy())
    counts = np.zeros(K)
    for _ in range(7):
        losses = []
        for k in range(K):
            weights = (counts + np.eye(K)[k]) / (counts.sum() + 1)
            if masked:
                heard = weights > 0
                with np.errstate(invalid="ignore"):
                    q = numpy_masked_pool(p[heard], mask.numpy()[heard], weights[heard])
            else:
                q = np.tensordot(weights, p, 1)
            losses.append(nll(np.maximum(q, 1e-12), labels))
        counts[np.argmin(losses)] += 1
    assert GreedySelection.fit(logits, labels, size=7, mask=mask).weights == tuple(counts / 7)
    if not masked:
        assert np.count_nonzero(counts) > 1
    with pytest.raises(ConfigurationError, match="size is 0, but it counts picks"):
        GreedySelection.fit(logits, labels, size=0)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_stacking_is_scikit_learns(classes, strength):
    """... on centred logits in units of their spread."""
    logits, labels = rows(6, classes=classes)
    z = logits.numpy()
    centred = z - z.mean(-1, keepdims=True)
    features = centred / np.sqrt((centred**2).mean((1, 2), keepdims=True))
    features = features.transpose(1, 0, 2).reshape(200, -1)
    model = LogisticRegression(C=strength, max_iter=2000).fit(features, labels.numpy())
    fusion = Stacking.fit(logits, labels, strength=strength)
    np.testing.assert_allclose(fusion(logits).exp(), model.predict_proba(features), atol=1e-5)


def test_stacking_reads_a_teacher_whose_classes_are_permuted():
    logits, labels = rows(7, count=400, skill=(3.0, 3.0))
    logits[1] = logits[1][:, [1, 2, 3, 0]]
    fusion = Stacking.fit(logits[:, :200], labels[:200])
    right = (fusion(logits[:, 200:]).argmax(-1) == labels[200:]).double().mean()
    alone = (logits[0, 200:].argmax(-1) == labels[200:]).double().mean()
    assert right > alone + 0.03


def test_stacking_leaves_classes_without_rows_to_the_linear_pool():
    logits, labels = rows(8)
    fusion = Stacking.fit(logits, labels.masked_fill(labels == 2, -100))
    assert fusion.classes == (0, 1, 3)
    np.testing.assert_allclose(fusion(logits)[:, 2].exp(), LinearPool()(logits)[:, 2].exp(), atol=1e-6)
    with pytest.raises(DataError, match="have one class"):
        Stacking.fit(logits, labels.masked_fill(labels != 2, -100))


def test_best_teacher_is_the_lowest_nll():
    logits, labels = rows(9, skill=(0.5, 2.0, 2.0))
    logits[2] = 8 * logits[2]  # as right, and over-confident
    losses = [nll(softmax(z.numpy()), labels) for z in logits]
    assert BestTeacher.fit(logits, labels).index == np.argmin(losses) == 1
    without = logits.clone()
    without[1, :, 0] = -torch.inf
    assert (
        BestTeacher.fit(without, labels, mask=without.isfinite()).index == 0
    )  # a lacking label costs −ln 1e-12


def test_pool_then_temper_goes_step_by_step():
    logits, labels = rows(10)
    fusion = PoolThenTemper.fit(logits, labels)
    temperatures = [fit_temperature(z, labels) for z in logits]
    assert fusion.temperatures == tuple(temperatures)
    tempered = logits / torch.tensor(temperatures)[:, None, None].double()
    np.testing.assert_allclose(fusion.weights, LinearPool.fit(tempered, labels).weights, atol=1e-6)
    pooled = LinearPool(fusion.weights)(tempered)
    assert fusion.pooled_temperature == pytest.approx(fit_temperature(pooled, labels))
    assert fusion.pooled_temperature < 1  # the average of calibrated teachers is under-confident


def believable(seed: int, count: int):
    """Two teachers that are right where they are sure, each in half of the rows, and guess flatly in the others."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(C, size=count)
    first = draw.random(count) < 0.5
    sure = 4.0 * np.eye(C)[labels] + 0.5 * draw.normal(size=(2, count, C))
    lost = 0.5 * draw.normal(size=(2, count, C))
    logits = np.where(np.stack([first, ~first])[..., None], sure, lost)
    return torch.from_numpy(logits), torch.from_numpy(labels)


def test_gate_believes_who_is_reliable_in_the_row():
    fit, other = believable(0, 300), believable(1, 300)
    gate, pool = Gate.fit(*fit), LinearPool.fit(*fit)
    assert nll(gate(other[0]).exp().numpy(), other[1]) < 0.5 * nll(pool(other[0]).exp().numpy(), other[1])
    assert gate.coefficients[0][0] < 0  # entropy speaks against a teacher


def test_gate_is_a_minimum():
    """No step of numpy's from the fitted point goes lower."""
    logits, labels = rows(11)
    fusion = Gate.fit(logits, labels)
    p = softmax(logits.numpy())
    entropy = -(p * np.log(p)).sum(-1) / np.log(C)
    ordered = np.sort(p, -1)
    first = p.argmax(-1)
    agreement = ((first[:, None] == first[None]).sum(1) - 1) / (K - 1)
    features = np.stack([entropy, ordered[..., -1] - ordered[..., -2], agreement], -1)
    of_label = p[:, np.arange(200), labels]

    def objective(flat):
        table = flat.reshape(K, 4)
        weights = softmax(((features * table[:, None, :3]).sum(-1) + table[:, None, 3]).T).T
        return -np.log((weights * of_label).sum(0)).mean() + 1e-3 * (table**2).sum()

    fitted = np.concatenate([np.array(fusion.coefficients), np.array(fusion.intercepts)[:, None]], 1).ravel()
    assert minimize(objective, fitted).fun > objective(fitted) - 1e-8
    assert minimize(objective, np.ones(4 * K)).fun > objective(fitted) - 1e-6
