"""A value computed by hand for every fusion, with all classes and with some missing, and what theory says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hf_distill.fusion import (
    BestTeacher,
    ConfidenceWeighted,
    EntropyWeighted,
    Gate,
    GreedySelection,
    LikelihoodWeighted,
    LinearPool,
    LogPool,
    MajorityVote,
    PoolThenTemper,
    Stacking,
    StochasticTeacher,
    teacher_disagreement,
)

K, N, C = 3, 7, 5


def logits(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(K, N, C, generator=torch.Generator().manual_seed(seed)) * scale


def partial(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Teachers that each lack a class or two, connected through class 0."""
    mask = torch.ones(K, N, C, dtype=torch.bool)
    mask[0, :, 4] = mask[1, :, 1] = mask[1, :, 2] = mask[2, :, 3] = False
    return logits(seed).masked_fill(~mask, -torch.inf), mask


def of(*distributions: list[float]) -> torch.Tensor:
    """Teachers (K, 1, C) of one row whose distributions these are; 0 stands for a class that is missing."""
    return torch.tensor(distributions)[:, None].log()


def gives(fusion, teachers: torch.Tensor, expected: list[float], **options) -> None:
    assert fusion(teachers, **options).exp().tolist() == [pytest.approx(expected, abs=1e-6)]


TWO = of([0.5, 0.5], [0.1, 0.9])


def test_linear_pool():
    gives(LinearPool(), TWO, [0.3, 0.7])
    gives(LinearPool((3, 1)), TWO, [0.4, 0.6])
    # at T = 2 probabilities go to their square roots, renormalised: (0.5, 0.5) and (0.25, 0.75)
    gives(LinearPool(), TWO, [0.375, 0.625], temperature=2.0)


def test_log_pool():
    teachers = torch.tensor([[[0.0, 2.0]], [[0.0, 4.0]]])
    assert LogPool()(teachers).diff().item() == pytest.approx(3.0)
    assert LogPool(weights=(1, 3))(teachers).diff().item() == pytest.approx(3.5)
    assert LogPool(temperatures=(2.0, 1.0))(teachers).diff().item() == pytest.approx(2.5)
    assert LogPool()(teachers, temperature=2.0).diff().item() == pytest.approx(1.5)
    gives(LogPool(), TWO, [0.25, 0.75])  # odds √(1 · 9)


def test_pool_then_temper():
    gives(PoolThenTemper((3, 1)), TWO, [0.4, 0.6])
    roots = np.sqrt([0.4, 0.6])
    gives(PoolThenTemper((3, 1)), TWO, list(roots / roots.sum()), temperature=2.0)
    gives(PoolThenTemper((3, 1), pooled_temperature=4.0), TWO, list(roots / roots.sum()), temperature=0.5)
    # the second at T = 2 says (0.25, 0.75), whatever the temperature of the pool
    gives(PoolThenTemper(temperatures=(1.0, 2.0)), TWO, [0.375, 0.625])
    gives(PoolThenTemper(temperatures=(1.0, 2.0)), TWO, [9 / 34, 25 / 34], temperature=0.5)


def test_entropy_weighted():
    """Weights (1 − H_k / ΣH) / (K − 1) at temperature 1, whatever the pool's."""
    entropies = np.array([math.log(2), -0.1 * math.log(0.1) - 0.9 * math.log(0.9)])
    first = 1 - entropies[0] / entropies.sum()
    gives(EntropyWeighted(), TWO, [first * 0.5 + (1 - first) * 0.1, first * 0.5 + (1 - first) * 0.9])
    gives(EntropyWeighted(), TWO, [first * 0.5 + (1 - first) * 0.25, 0.75 - first * 0.25], temperature=2.0)
    # entropies (ln 2, ln 2, 0): weights 1/4, 1/4 and 1/2, the largest there is
    gives(EntropyWeighted(), of([0.5, 0.5], [0.5, 0.5], [1.0, 0.0]), [0.75, 0.25])
    gives(EntropyWeighted(), of([0.0, 1.0], [1.0, 0.0]), [0.5, 0.5])  # no entropy at all: equal weights


def test_confidence_weighted():
    """Weights (1 − softmax(−ln p_k(y))) / (K − 1): of p(y) = 1/2, 1/4, 1/4 they are 0.4, 0.3, 0.3."""
    teachers = of([0.5, 0.5], [0.25, 0.75], [0.25, 0.75])
    gives(ConfidenceWeighted(), teachers, [0.35, 0.65], labels=torch.tensor([0]))
    gives(ConfidenceWeighted(), teachers, [1 / 3, 2 / 3], labels=torch.tensor([-100]))
    # weights from temperature 1; at T = 1/2 the distributions are (0.5, 0.5) and (0.1, 0.9)
    gives(ConfidenceWeighted(), teachers, [0.26, 0.74], labels=torch.tensor([0]), temperature=0.5)


def test_likelihood_weighted():
    """Weights in proportion to p_k(y)^{1/τ}."""
    teachers = of([0.8, 0.2], [0.4, 0.6])
    gives(LikelihoodWeighted(), teachers, [2 / 3, 1 / 3], labels=torch.tensor([0]))
    gives(
        LikelihoodWeighted(tau=0.5), teachers, [0.72, 0.28], labels=torch.tensor([0])
    )  # weights 4/5 and 1/5
    gives(LikelihoodWeighted(tau=0.01), teachers, [0.4, 0.6], labels=torch.tensor([1]))
    gives(LikelihoodWeighted(), teachers, [0.6, 0.4], labels=torch.tensor([-100]))


def test_greedy_selection_and_best_teacher():
    three = of([0.5, 0.5], [0.1, 0.9], [0.2, 0.8])
    gives(GreedySelection((2, 0, 1)), three, [0.4, 0.6])
    gives(BestTeacher(index=1, count=3), three, [0.1, 0.9])
    gives(BestTeacher(index=1, count=3), three, [0.25, 0.75], temperature=2.0)


def test_majority_vote():
    """Ties go to the lowest class, among a teacher's own answers and among the votes; no temperature."""
    gives(MajorityVote(), of([0.1, 0.5, 0.4], [0.2, 0.6, 0.2], [0.9, 0.1, 0.0]), [0, 1, 0], temperature=4.0)
    gives(MajorityVote(), of([0.2, 0.4, 0.4]), [0, 1, 0])
    gives(MajorityVote(), of([0.1, 0.1, 0.8], [0.1, 0.8, 0.1]), [0, 1, 0])
    assert MajorityVote.target_temperature == 1.0


def test_stacking():
    """Teacher 1 read as it is, teacher 2 with its classes swapped: centred logits (0, 0) and ±ln 3."""
    teachers = of([0.5, 0.5], [0.1, 0.9])
    fusion = Stacking(((1, 0, 0, 1), (0, 1, 1, 0)), (0.0, 0.0), (0, 1))
    gives(fusion, teachers, [0.9, 0.1])
    gives(fusion, teachers, [0.75, 0.25], temperature=2.0)
    gives(Stacking(((0,) * 4,) * 2, (math.log(3), 0.0), (0, 1)), teachers, [0.75, 0.25])
    # class 1 had no held-out row: it keeps its 0.3 of the linear pool, the others share the rest by intercepts
    three = of([0.2, 0.4, 0.4], [0.2, 0.2, 0.6])
    hardly = (1e-9, 0, 0, 1e-9, 0, 0)
    gives(Stacking((hardly, hardly), (math.log(3), 0.0), (0, 2)), three, [0.525, 0.3, 0.175])
    # ... of the linear pool of those that are heard
    second = (0, 0, 0, 1e-9, 0, 0)
    gives(Stacking((second, second), (math.log(3), 0.0), (0, 2)), three, [0.6, 0.2, 0.2])


def test_gate():
    gives(Gate(((0, 0, 0),) * 2, (0, math.log(3))), TWO, [0.2, 0.8])  # weights 1/4 and 3/4
    # entropies over ln 2: 1 and 0.469; margins 0 and 0.8
    entropy = (-0.1 * math.log(0.1) - 0.9 * math.log(0.9)) / math.log(2)
    for feature, values in ((0, (1.0, entropy)), (1, (0.0, 0.8))):
        slopes = [0.0, 0.0, 0.0]
        slopes[feature] = 2.0
        first = 1 / (1 + math.exp(2 * (values[1] - values[0])))
        gives(Gate((tuple(slopes),) * 2, (0, 0)), TWO, [0.1 + 0.4 * first, 0.9 - 0.4 * first])
    # the first answers of teachers 2 and 3 agree: shares of others 0, 1/2, 1/2, weights (1, 2, 2)/5
    three = of([0.9, 0.1], [0.2, 0.8], [0.4, 0.6])
    gives(Gate(((0, 0, math.log(4)),) * 3, (0, 0, 0)), three, [0.42, 0.58])


MISSING = of([0.5, 0.5, 0.0], [0.2, 0.2, 0.6])
HAS = MISSING.isfinite()
EVERY_POOL = [
    LinearPool(),
    LinearPool((1, 9)),
    LogPool((9, 1)),
    PoolThenTemper((1, 9)),
    GreedySelection((3, 1)),
    StochasticTeacher((3, 1)),
    EntropyWeighted(),
    ConfidenceWeighted(),
    LikelihoodWeighted(tau=0.5),
    Gate(((1, 2, 3), (3, 2, 1)), (0, 1)),
]


@pytest.mark.parametrize("fusion", EVERY_POOL, ids=lambda fusion: type(fusion).__name__)
@pytest.mark.parametrize("label", [-100, 0, 2])
def test_missing_class(fusion, label):
    """(0.5, 0.5, –) with (0.2, 0.2, 0.6) agree where both speak, so the second's answer stands, whatever the weights."""
    gives(fusion, MISSING, [0.2, 0.2, 0.6], mask=HAS, labels=torch.tensor([label]))


def test_missing_class_where_teachers_do_not_agree():
    """(0.5, 0.5, –) with (0.2, 0.4, 0.4): only the second knows class 2, so 0.4 stands, and the rest is what both say."""
    teachers = of([0.5, 0.5, 0.0], [0.2, 0.4, 0.4])
    mask = teachers.isfinite()
    # the second's weight on classes 0 and 1 is its mass there, 0.6: (0.5, 0.5) + 0.6 · (1/3, 2/3) = (0.7, 0.9)
    gives(LinearPool(), teachers, [0.6 * 7 / 16, 0.6 * 9 / 16, 0.4], mask=mask)
    gives(PoolThenTemper(), teachers, [0.6 * 7 / 16, 0.6 * 9 / 16, 0.4], mask=mask)
    # ln 2 between 1 and 0 for the second, 0 for the first; class 2 lies ln √2 above the second's mean of the two
    odds = 2 ** np.array([-0.25, 0.25, 0.5])
    gives(LogPool(), teachers, list(odds / odds.sum()), mask=mask)
    # p(y) = 0.5 and 0.4, weights 5/9 and 4/9: 5 · (0.5, 0.5) + 4 · (0.2, 0.4) = (3.3, 4.1)
    expected = [0.6 * 3.3 / 7.4, 0.6 * 4.1 / 7.4, 0.4]
    gives(LikelihoodWeighted(), teachers, expected, labels=torch.tensor([1]), mask=mask)


def test_missing_class_of_votes_choices_and_classifiers():
    gives(MajorityVote(), MISSING, [1, 0, 0], mask=HAS)  # votes for 0 (of equal classes) and 2
    gives(MajorityVote(), of([0.0, 0.4, 0.6], [0.0, 0.7, 0.3])[:, :, [1, 2, 0]], [1, 0, 0])
    gives(BestTeacher(0, 2), MISSING, [0.5, 0.5, 0.0], mask=HAS)
    gives(BestTeacher(1, 2), MISSING, [0.2, 0.2, 0.6], mask=HAS)
    reads_the_second = np.concatenate([np.zeros((3, 3)), np.eye(3)], 1)
    gives(
        Stacking(tuple(map(tuple, reads_the_second)), (0,) * 3, (0, 1, 2)), MISSING, [0.2, 0.2, 0.6], mask=HAS
    )
    # centred over its own classes, the first says (0, 0, –): what it lacks is 0, not −∞
    reads_both = np.concatenate([np.eye(3), np.eye(3)], 1)
    gives(Stacking(tuple(map(tuple, reads_both)), (0,) * 3, (0, 1, 2)), MISSING, [0.2, 0.2, 0.6], mask=HAS)


def test_masked_linear_pool_minimises_what_it_claims():
    """Against scipy on Σ w_k KL(p_k ‖ q restricted to L_k), with uneven weights."""
    z, mask = partial()
    weights = np.array([0.5, 0.2, 0.3])
    p = torch.softmax(z, -1).double().numpy()
    fused = LinearPool(tuple(weights))(z, mask=mask)

    def objective(theta, n):
        total = 0.0
        for k in range(K):
            known = mask[k, n].numpy()
            log_q = theta[known] - np.log(np.exp(theta[known]).sum())
            total += weights[k] * (p[k, n][known] * (np.log(p[k, n][known]) - log_q)).sum()
        return total

    for n in range(N):
        found = minimize(objective, np.zeros(C), args=(n,), tol=1e-12)
        expected = np.exp(found.x) / np.exp(found.x).sum()
        np.testing.assert_allclose(fused[n].exp(), expected, atol=2e-4)
        assert objective(fused[n].double().numpy(), n) <= found.fun + 1e-7


def test_masked_linear_pool_where_teachers_hardly_overlap():
    """Both know only class 1 in common, one calls it improbable: the closed form is by odds through that class."""
    for first in (0.5, 1e-2, 1e-8, 1e-30):
        for second in (0.5, 1e-4, 1e-12, 0.9999):
            p = torch.tensor([[[1 - first, first, 0.0]], [[0.0, second, 1 - second]]], dtype=torch.float64)
            odds = np.array([(1 - first) / first, 1.0, (1 - second) / second])
            for weights in ((0.5, 0.5), (0.99, 0.01), (1e-6, 1.0)):
                fused = LinearPool(weights)(p.log().float(), mask=p > 0).exp()[0]
                np.testing.assert_allclose(fused, odds / odds.sum(), atol=5e-6)


def test_masked_log_pool_solves_its_least_squares():
    z, mask = partial()
    weights = np.array([0.5, 0.2, 0.3])
    fused = LogPool(tuple(weights), temperatures=(1.0, 2.0, 0.5))(z, temperature=1.5, mask=mask)
    for n in range(N):
        rows, right = [], []
        for k, t in enumerate((1.0, 2.0, 0.5)):
            for c in range(C):
                if mask[k, n, c]:
                    row = np.zeros(C + K)
                    row[c], row[C + k] = 1, -1
                    rows.append(row * np.sqrt(weights[k]))
                    right.append(z[k, n, c].item() / t * np.sqrt(weights[k]))
        s = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0][:C] / 1.5
        np.testing.assert_allclose(fused[n].exp(), np.exp(s) / np.exp(s).sum(), atol=1e-5)


@pytest.mark.parametrize("rule", [LinearPool, LogPool, PoolThenTemper, StochasticTeacher])
def test_improbable_is_not_impossible(rule):
    """A gap of 150 nats is more than float32 holds between probabilities, but not between their logarithms."""
    fusion = rule(weights=(1, 1))
    z = torch.tensor([[[0.0, 150.0, 0.0, 0.0]], [[0.0, 150.0, 1.0, 0.0]]])
    mask = torch.tensor([[[1, 1, 0, 1]], [[1, 1, 1, 0]]], dtype=torch.bool)
    fused = fusion(z.masked_fill(~mask, -torch.inf), mask=mask)
    np.testing.assert_allclose(fused, [[-150.0, 0.0, -149.0, -150.0]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fusion(z)[:, :2], [[-150.0, 0.0]], rtol=1e-5, atol=1e-6)


def test_teachers_that_leave_no_probability_to_what_they_share():
    """Nothing says how the two groups compare then; the target is a distribution all the same."""
    z = torch.tensor([[[0.0, -300.0, 0.0]], [[0.0, -300.0, 1.0]]])
    mask = torch.tensor([[[True, True, False]], [[False, True, True]]])
    for rule in (LinearPool, LogPool):
        fused = rule()(z.masked_fill(~mask, -torch.inf), mask=mask)
        np.testing.assert_allclose(fused.exp().sum(-1), 1.0, atol=1e-6)
        assert fused[0, 1] < -80


def test_one_overconfident_teacher_takes_over_the_mean_of_logits_only():
    modest = torch.tensor([[0.0, 1.0]])
    loud = torch.tensor([[40.0, 0.0]])
    teachers = torch.stack([modest, modest, loud])
    assert LogPool()(teachers).exp()[0, 0] > 0.99
    assert LinearPool()(teachers).exp()[0, 0] < 0.55


def test_a_drawn_teacher_is_itself():
    """In training the pool runs the one that was drawn, so the fusion meets it alone, whatever its weight."""
    z = logits()
    fusion = StochasticTeacher(weights=(0.2, 0.3, 0.5))
    assert torch.equal(fusion(z[1:2]), torch.log_softmax(z[1], -1))
    assert torch.equal(fusion(z), LinearPool((0.2, 0.3, 0.5))(z))


def test_draws_follow_the_weights_and_the_generator():
    fusion = StochasticTeacher(weights=(0.2, 0.0, 0.8))
    draw = torch.Generator().manual_seed(0)
    drawn = [fusion.select(draw)[0] for _ in range(2000)]
    again = torch.Generator().manual_seed(0)
    assert drawn[:20] == [fusion.select(again)[0] for _ in range(20)]
    assert 1 not in drawn and abs(drawn.count(2) / 2000 - 0.8) < 0.03


@pytest.mark.parametrize("mask", [False, True])
def test_disagreement_is_the_constant_of_the_identity(mask):
    """Σ w_k KL(p_k‖q) − KL(p̄‖q) does not depend on q: checked at two students (full labels), and at q = p̄."""
    z, known = partial() if mask else (logits(), None)
    weights, t = (0.5, 0.2, 0.3), 2.0
    found = teacher_disagreement(z, temperature=t, weights=weights, mask=known).double().numpy()
    p = torch.softmax(z / t, -1).double().numpy()
    pooled = LinearPool(weights)(z, temperature=t, mask=known).exp().double().numpy()

    def total(q):
        value = 0.0
        for k, w in enumerate(weights):
            has = np.ones((N, C), bool) if known is None else known[k].numpy()
            restricted = np.where(has, q, 0) / np.where(has, q, 0).sum(-1, keepdims=True)
            safe = np.where(has, p[k], 1.0)
            value += w * (np.where(has, safe, 0) * np.log(safe / np.where(has, restricted, 1.0))).sum(-1)
        return t**2 * value

    np.testing.assert_allclose(found, total(pooled), atol=1e-5)
    if known is None:
        for seed in (3, 4):
            q = torch.softmax(logits(seed)[0], -1).double().numpy()
            np.testing.assert_allclose(
                found, total(q) - t**2 * (pooled * np.log(pooled / q)).sum(-1), atol=1e-5
            )
