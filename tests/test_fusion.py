"""Hand-computed values, the common invariants over FUSIONS, and independent references in numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hf_distill.errors import ConfigurationError
from hf_distill.fusion import FUSIONS, LinearPool, LogPool, teacher_disagreement

K, N, C = 3, 7, 5


def logits(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(K, N, C, generator=torch.Generator().manual_seed(seed)) * scale


def partial(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Teachers that each lack a class or two, connected through class 0."""
    mask = torch.ones(K, N, C, dtype=torch.bool)
    mask[0, :, 4] = mask[1, :, 1] = mask[1, :, 2] = mask[2, :, 3] = False
    return logits(seed).masked_fill(~mask, -torch.inf), mask


def test_linear_pool_by_hand():
    teachers = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()
    assert LinearPool()(teachers).exp().tolist() == [pytest.approx([0.3, 0.7])]
    assert LinearPool((3, 1))(teachers).exp().tolist() == [pytest.approx([0.4, 0.6])]
    # at T = 2 probabilities go to their square roots, renormalised: (0.5, 0.5) and (0.25, 0.75)
    assert LinearPool()(teachers, temperature=2.0).exp().tolist() == [pytest.approx([0.375, 0.625])]


def test_log_pool_by_hand():
    teachers = torch.tensor([[[0.0, 2.0]], [[0.0, 4.0]]])
    assert LogPool()(teachers).diff().item() == pytest.approx(3.0)
    assert LogPool(weights=(1, 3))(teachers).diff().item() == pytest.approx(3.5)
    assert LogPool(temperatures=(2.0, 1.0))(teachers).diff().item() == pytest.approx(2.5)
    assert LogPool()(teachers, temperature=2.0).diff().item() == pytest.approx(1.5)


def test_missing_class_by_hand():
    """(0.5, 0.5, –) with (0.2, 0.2, 0.6) agree where both speak, so the second's answer stands."""
    mask = torch.tensor([[[True, True, False]], [[True, True, True]]])
    teachers = torch.tensor([[[0.5, 0.5, 0.0]], [[0.2, 0.2, 0.6]]]).log()
    for fusion in (LinearPool(), LogPool()):
        assert fusion(teachers, mask=mask).exp().tolist() == [pytest.approx([0.2, 0.2, 0.6], abs=1e-6)]


@pytest.mark.parametrize("name", sorted(FUSIONS))
class TestEveryFusion:
    def test_sums_to_one(self, name):
        for z, mask in ((logits(), None), partial()):
            fused = FUSIONS[name]()(z, temperature=2.0, mask=mask)
            assert fused.shape == (N, C) and fused.dtype == torch.float32
            np.testing.assert_allclose(fused.exp().sum(-1), 1.0, atol=1e-6)

    def test_one_teacher_is_itself(self, name):
        z, mask = partial()
        np.testing.assert_allclose(
            FUSIONS[name]()(z[:1], temperature=3.0), torch.log_softmax(z[:1] / 3.0, -1)[0], atol=1e-6
        )
        np.testing.assert_allclose(
            FUSIONS[name]()(z[:1], mask=mask[:1]), torch.log_softmax(z[0], -1), atol=1e-6
        )

    def test_order_of_equal_teachers(self, name):
        for z, mask in ((logits(), None), partial()):
            turned = FUSIONS[name]()(z.flip(0), mask=None if mask is None else mask.flip(0))
            np.testing.assert_allclose(FUSIONS[name]()(z, mask=mask), turned, atol=1e-5)

    def test_equal_teachers_are_one(self, name):
        z = logits()[:1]
        np.testing.assert_allclose(FUSIONS[name]()(z.expand(4, N, C)), FUSIONS[name]()(z), atol=1e-6)

    def test_shift_of_a_teacher_changes_nothing(self, name):
        z, mask = partial()
        shifted = z + torch.tensor([5.0, -3.0, 0.0])[:, None, None]
        np.testing.assert_allclose(
            FUSIONS[name]()(z, mask=mask), FUSIONS[name]()(shifted, mask=mask), atol=1e-5
        )

    def test_float16(self, name):
        fused = FUSIONS[name]()(logits().half(), temperature=2.0)
        np.testing.assert_allclose(
            fused, FUSIONS[name]()(logits().half().float(), temperature=2.0), atol=1e-6
        )

    def test_zero_weight_teacher_is_not_heard(self, name):
        fusion = FUSIONS[name](weights=(0.25, 0.0, 0.75))
        for z, mask in ((logits(), None), partial()):
            broken = z.clone()
            broken[1] = torch.nan
            assert torch.equal(fusion(broken, mask=mask), fusion(z, mask=mask))

    def test_class_of_no_teacher_is_impossible(self, name):
        z, mask = partial()
        z[..., 3], mask[..., 3] = -torch.inf, False
        fused = FUSIONS[name]()(z, mask=mask)
        assert (fused[:, 3] == -torch.inf).all() and fused[:, :3].isfinite().all()
        np.testing.assert_allclose(fused.exp().sum(-1), 1.0, atol=1e-6)

    def test_full_mask_is_no_mask(self, name):
        z = logits()
        full = torch.ones(K, N, C, dtype=torch.bool)
        np.testing.assert_allclose(FUSIONS[name]()(z, mask=full), FUSIONS[name]()(z), atol=2e-6)

    def test_disjoint_groups_share_by_weight(self, name):
        mask = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]]], dtype=torch.bool)
        z = torch.tensor([[[0.7, 0.3, 0.0, 0.0]], [[0.0, 0.0, 0.4, 0.6]]]).log()
        fused = FUSIONS[name](weights=(0.8, 0.2))(z, mask=mask).exp()
        assert fused.tolist() == [pytest.approx([0.56, 0.24, 0.08, 0.12], abs=1e-6)]

    def test_wrong_number_of_weights(self, name):
        with pytest.raises(ConfigurationError, match="2 weights for 3 teachers"):
            FUSIONS[name](weights=(1, 1))(logits())

    @pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0), ()])
    def test_impossible_weights(self, name, weights):
        with pytest.raises(ConfigurationError, match="must be finite, not negative, and not all zero"):
            FUSIONS[name](weights=weights)

    def test_frozen(self, name):
        with pytest.raises(AttributeError):
            FUSIONS[name]().weights = (1.0,)
        assert FUSIONS[name]((2, 2)) == FUSIONS[name]((0.5, 0.5))


def test_log_pool_refuses_impossible_temperatures():
    with pytest.raises(ConfigurationError, match="each must be finite and above 0"):
        LogPool(temperatures=(1.0, 0.0, 1.0))
    with pytest.raises(ConfigurationError, match="2 temperatures for 3 teachers"):
        LogPool(temperatures=(1.0, 1.0))(logits())


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
    for first in (0.5, 1e-2, 1e-4):
        for second in (0.5, 1e-2, 0.9999):
            p = torch.tensor([[[1 - first, first, 0.0]], [[0.0, second, 1 - second]]])
            odds = np.array([(1 - first) / first, 1.0, (1 - second) / second])
            for weights in ((0.5, 0.5), (0.99, 0.01)):
                fused = LinearPool(weights)(p.log(), mask=p > 0).exp()[0]
                np.testing.assert_allclose(fused, odds / odds.sum(), atol=1e-3)


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


def test_one_overconfident_teacher_takes_over_the_mean_of_logits_only():
    modest = torch.tensor([[0.0, 1.0]])
    loud = torch.tensor([[40.0, 0.0]])
    teachers = torch.stack([modest, modest, loud])
    assert LogPool()(teachers).exp()[0, 0] > 0.99
    assert LinearPool()(teachers).exp()[0, 0] < 0.55


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
