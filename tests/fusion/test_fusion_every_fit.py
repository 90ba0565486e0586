"""What all fits on held-out rows keep to, over FUSIONS; each against an independent reference: test_fusion_fits.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_fusion_fits import C, missing, nll, rows, softmax

from hf_distill.errors import DataError
from hf_distill.fusion import (
    FUSIONS,
    BestTeacher,
    Gate,
    GreedySelection,
    LinearPool,
    LogPool,
    PoolThenTemper,
    Stacking,
)

K = 3
FITTED = {name: rule for name, rule in FUSIONS.items() if hasattr(rule, "fit")}
every_fit = pytest.mark.parametrize("name", FITTED)


@every_fit
@pytest.mark.parametrize("masked", [False, True])
class TestEveryFit:
    def given(self, masked, **options):
        logits, labels = rows(12, **options)
        return (*missing(logits), labels) if masked else (logits, None, labels)

    def test_twice_the_same_and_in_any_order_of_rows(self, name, masked):
        logits, mask, labels = self.given(masked)
        before = torch.random.get_rng_state()
        fusion = FITTED[name].fit(logits, labels, mask=mask)
        assert FITTED[name].fit(logits, labels, mask=mask) == fusion
        assert torch.equal(torch.random.get_rng_state(), before)
        order = torch.from_numpy(np.random.default_rng(0).permutation(200))
        turned = FITTED[name].fit(
            logits[:, order], labels[order], mask=None if mask is None else mask[:, order]
        )
        np.testing.assert_allclose(
            turned(logits, mask=mask).exp(), fusion(logits, mask=mask).exp(), atol=1e-6
        )

    def test_better_than_doing_nothing(self, name, masked):
        """On the rows of the fit: than the uniform linear pool, or for one teacher than the mean one."""
        logits, mask, labels = self.given(masked)
        fused = FITTED[name].fit(logits, labels, mask=mask)(logits, mask=mask).exp().numpy()
        bound = nll(LinearPool()(logits, mask=mask).exp().numpy(), labels)
        if name == "best_teacher":
            bound = np.mean([nll(np.maximum(softmax(z.numpy()), 1e-12), labels) for z in logits])
        assert nll(np.maximum(fused, 1e-12), labels) < bound

    def test_rows_without_a_usable_label_do_not_count(self, name, masked):
        """Unknown labels, and labels that no teacher has, whatever the teachers say there."""
        logits, mask, labels = self.given(masked)
        labels[100:] = -100
        expected = FITTED[name].fit(
            logits[:, :100], labels[:100], mask=None if mask is None else mask[:, :100]
        )
        worse = logits.clone()
        worse[:, 150:] = torch.nan
        assert FITTED[name].fit(worse, labels, mask=mask) == expected
        if masked:
            labels[100:] = 2
            mask[:, 100:, 2] = False
            assert FITTED[name].fit(logits, labels, mask=mask) == expected

    @pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
    def test_outputs_that_are_not_finite(self, name, masked, broken):
        logits, mask, labels = self.given(masked)
        logits[1, 17, 2] = broken
        with pytest.raises(
            DataError, match=r"teacher 1 \(counted from 0\) gives outputs that are not finite"
        ):
            FITTED[name].fit(logits, labels, mask=mask)

    def test_no_labels(self, name, masked):
        logits, mask, labels = self.given(masked)
        with pytest.raises(DataError, match="none of the 200 rows given has one that a teacher knows"):
            FITTED[name].fit(logits, torch.full_like(labels, -100), mask=mask)

    def test_separable_rows_stay_finite(self, name, masked):
        """All teachers are right on all rows, by a wide margin: nothing held out says how sure to be."""
        logits, mask, labels = self.given(masked, skill=(9.0, 9.0, 9.0), count=40)
        fusion = FITTED[name].fit(logits, labels, mask=mask)
        z, known, _ = self.given(masked)
        for temperature in (0.5, 1.0, 4.0):
            fused = fusion(z, temperature=temperature, mask=known)
            np.testing.assert_allclose(fused.exp().sum(-1), 1.0, atol=1e-6)
            assert not fused.isnan().any()
        for numbers in (getattr(fusion, "temperatures", None) or (1.0,), getattr(fusion, "weights", (1.0,))):
            assert np.isfinite(numbers).all()
        if name == "log_pool":
            assert fusion.temperatures[0] > 0.1

    def test_half_precision_and_a_class_that_nobody_has(self, name, masked):
        """Cached logits are float16; and the student may have classes that no teacher knows."""
        logits, mask, labels = self.given(masked)
        exact = FITTED[name].fit(logits, labels, mask=mask)
        rounded = FITTED[name].fit(logits.half(), labels, mask=mask)
        np.testing.assert_allclose(
            rounded(logits, mask=mask).exp(), exact(logits, mask=mask).exp(), atol=5e-3
        )
        wider = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
        known = torch.nn.functional.pad(
            torch.ones_like(logits, dtype=torch.bool) if mask is None else mask, (0, 1)
        )
        fused = FITTED[name].fit(wider, labels, mask=known)(wider, mask=known)
        np.testing.assert_allclose(fused[:, :C].exp(), exact(logits, mask=mask).exp(), atol=1e-4)
        assert (fused[:, C] == -torch.inf).all()


def test_equal_teachers_share():
    """Two copies and another: the copies weigh the same; where one is to be picked, it is the first."""
    logits, labels = rows(13)
    logits = logits[[0, 0, 1]]
    for rule in (LinearPool, LogPool, PoolThenTemper):
        weights = rule.fit(logits, labels).weights
        assert weights[0] == pytest.approx(weights[1], abs=1e-6) and weights[0] > 0.1
    gate = Gate.fit(logits, labels)
    np.testing.assert_allclose(gate.coefficients[0], gate.coefficients[1], atol=1e-4)
    coefficients = np.array(Stacking.fit(logits, labels).coefficients).reshape(C, K, C)
    np.testing.assert_allclose(coefficients[:, 0], coefficients[:, 1], atol=1e-4)
    logits[1] += 1e3 / 3  # the same to a softmax, but for its rounding
    for copies in (logits, logits[[1, 0, 2]]):
        assert GreedySelection.fit(copies, labels, size=5).weights[1] == 0.0
        assert BestTeacher.fit(copies, labels).index == 0


def test_a_bad_teacher_weighs_nothing():
    """Random and over-confident: exactly 0, so it is not even run in training."""
    logits, labels = rows(14, skill=(2.0, 2.0, 0.0), count=600)
    logits[2] = 8 * rows(15, skill=(0.0,), count=600)[0][0]
    for rule in (LinearPool, LogPool, GreedySelection):
        fusion = rule.fit(logits, labels)
        assert fusion.weights[2] == 0.0 and min(fusion.weights[:2]) > 0.1
        broken = logits.clone()
        broken[2] = torch.nan
        assert torch.equal(fusion(broken), fusion(logits))


def test_the_scale_of_a_teachers_logits_is_no_matter():
    logits, labels = rows(16)
    for rule in (LogPool, PoolThenTemper, Stacking):
        expected = rule.fit(logits, labels)(logits).exp()
        for factor in (0.05, 20.0):
            scaled = logits * torch.tensor([1.0, factor, 1.0])[:, None, None].double()
            np.testing.assert_allclose(rule.fit(scaled, labels)(scaled).exp(), expected, atol=1e-4)


def test_teachers_that_predict_nothing_are_refused():
    logits, labels = rows(17, skill=(-2.0, -1.0, -2.0))
    for teachers, mask in ((logits, None), missing(logits)):
        with pytest.raises(DataError, match="no teacher's logits predict the labels better than chance"):
            LogPool.fit(teachers, labels, mask=mask)
    with pytest.raises(DataError, match="better than chance"):
        LogPool.fit(torch.zeros(2, 200, C), labels)


@pytest.mark.parametrize("rule", [LinearPool, LogPool, PoolThenTemper])
def test_a_teacher_that_alone_has_a_class_keeps_a_weight(rule):
    """... though it is bad at all others: else rows of that class would become impossible."""
    logits, labels = rows(18, skill=(3.0, 2.5, 0.5))
    logits[2] = 3 * logits[2]
    mask = torch.ones(logits.shape, dtype=torch.bool)
    mask[:2, :, 3] = False
    logits = logits.masked_fill(~mask, -torch.inf)
    for answers in (labels, labels.masked_fill(labels == 3, -100)):
        fusion = rule.fit(logits, answers, mask=mask)
        fused = fusion(logits.float(), mask=mask)
        assert fusion.weights[2] > 0 and fused.isfinite().all()
        assert nll(fused.exp().numpy(), labels) < 3


def test_weights_that_connect_groups_stay():
    """The third teacher is bad, but it alone knows classes of both groups."""
    logits, labels = rows(19, skill=(3.0, 3.0, 0.2))
    mask = torch.ones(logits.shape, dtype=torch.bool)
    mask[0, :, 2:] = mask[1, :, :2] = False
    logits = logits.masked_fill(~mask, -torch.inf)
    for rule in (LinearPool, LogPool):
        assert rule.fit(logits, labels, mask=mask).weights[2] > 0
    mask[1, :, 1] = True  # now the first two share a class
    logits[1, :, 1] = rows(20)[0][0, :, 1]
    bad = logits.clone()
    bad[2] = -3 * torch.nn.functional.one_hot(labels, C)
    for rule in (LinearPool, LogPool):
        assert rule.fit(bad, labels, mask=mask).weights[2] == 0.0
