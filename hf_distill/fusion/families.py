"""Fusions of predictions that are not one class of several: labels that each hold or not, and numbers.

Shapes: K teachers, N rows, C labels (or D outputs of a regression).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError, DataError
from .fitting import minimise
from .missing import negligible
from .shares import checked_temperatures, checked_weights, constant, heard


def _per_label(shares: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean over the teachers that have the label, (N, C); NaN for a label that no teacher has."""
    if mask is None:
        return (shares[..., None] * values).sum(0)
    weights = shares[..., None] * mask
    return (weights * values.masked_fill(~mask, 0.0)).sum(0) / weights.sum(0)


def _label_pairs(
    logits: Tensor, labels: Tensor, mask: Tensor | None, what: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (K, n), labels (n,) and which teachers have the label (K, n), of all (row, label) pairs that are known."""
    logits, labels = logits.detach().to("cpu", torch.float64), labels.to("cpu", torch.float64)
    has = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask.cpu()
    counts = ((labels == 0) | (labels == 1)) & has.any(0)
    if not bool(counts.any()):
        raise DataError(
            f"{what} is fitted on held-out rows with labels 0 or 1, but none of the {labels.numel()} labels given is "
            "one that a teacher has."
        )
    logits, has = logits[:, counts], has[:, counts]
    if not bool(torch.isfinite(logits[has]).all()):
        raise DataError(f"{what} cannot be fitted: a teacher gives outputs that are not finite.")
    return logits.masked_fill(~has, 0.0), labels[counts], has


@dataclass(frozen=True)
class BernoulliLinearPool:
    """Multi-label: per label the mean of probabilities, Σ w_k σ(z_k / T), as a logit.

    A label that a teacher lacks is the others' alone; one that no teacher has is NaN, and no loss may count it.

    Args:
        weights: One share per teacher, in their order, normalised to sum one; None: equal shares.

    Raises:
        ConfigurationError: Weights out of range, or not one per teacher.

    Example:
        >>> teachers = torch.tensor([[[0.2]], [[0.8]]]).logit()
        >>> BernoulliLinearPool(weights=(3, 1))(teachers).sigmoid()
        tensor([[0.3500]])
    """

    family: ClassVar[str] = "bernoulli"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(K, N, C) → (N, C) logits, already divided by the temperature."""
        shares, logits, mask = heard(self.weights, None, teacher_logits, mask)
        # From both sides, since 1 − p is 0 long before p's own logarithm is.
        yes = _per_label(shares, (logits / temperature).sigmoid(), mask)
        no = _per_label(shares, (-logits / temperature).sigmoid(), mask)
        tiny = torch.finfo(yes.dtype).tiny
        return yes.clamp(min=tiny).log() - no.clamp(min=tiny).log()

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> BernoulliLinearPool:
        """The weights that maximise the likelihood of held-out labels; concave where all teachers have all labels.

        Args:
            logits: (K, N, C).
            labels: (N, C) 0 or 1; anything else is unknown.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No known label, or outputs that are not finite.
        """
        rows, labels, has = _label_pairs(logits, labels, mask, "BernoulliLinearPool")
        likelihood = torch.where(labels == 1, rows, -rows).sigmoid()

        def nll(log_weights: Tensor) -> Tensor:
            weights = log_weights.softmax(0)[:, None] * has
            return -((weights * likelihood).sum(0) / weights.sum(0)).clamp(min=1e-12).log().mean()

        known = None if mask is None else mask.cpu()
        found = minimise(nll, torch.zeros(len(rows)), [(-12.0, 12.0)] * len(rows)).softmax(0)
        return cls(tuple(found.masked_fill(negligible(found, known, 1e-6), 0.0).tolist()))


@dataclass(frozen=True)
class BernoulliLogPool:
    """Multi-label: per label the mean of logits, Σ (w_k / T_k) z_k / T.

    A label that a teacher lacks is the others' alone; one that no teacher has is NaN, and no loss may count it.

    Args:
        weights: One share per teacher, in their order, normalised to sum one; None: equal shares.
        temperatures: T_k > 0, one per teacher; None: all 1.

    Raises:
        ConfigurationError: Weights or temperatures out of range, or not one per teacher.

    Example:
        >>> BernoulliLogPool()(torch.tensor([[[1.0]], [[4.0]]]), temperature=2.0)
        tensor([[1.2500]])
    """

    family: ClassVar[str] = "bernoulli"
    weights: tuple[float, ...] | None = None
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        object.__setattr__(self, "temperatures", checked_temperatures(self.temperatures, "BernoulliLogPool"))

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(K, N, C) → (N, C) logits, already divided by the temperature."""
        shares, logits, mask = heard(self.weights, self.temperatures, teacher_logits, mask)
        return _per_label(shares, logits, mask) / temperature

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> BernoulliLogPool:
        """The coefficients β ≥ 0 that minimise the binary cross-entropy of Σ β_k z_k on held-out labels.

        Args:
            logits: (K, N, C).
            labels: (N, C) 0 or 1; anything else is unknown.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No known label, outputs that are not finite, or no teacher that predicts the labels at all.
        """
        rows, labels, has = _label_pairs(logits, labels, mask, "BernoulliLogPool")
        scale = (rows.square().sum(1) / has.sum(1).clamp(min=1)).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)

        def nll(strength: Tensor) -> Tensor:
            beta = (strength / scale)[:, None]
            loss = F.binary_cross_entropy_with_logits(
                (beta * rows).sum(0) * beta.sum() / (beta * has).sum(0).clamp(min=1e-12), labels
            )
            return loss + 0.01 / len(labels) * strength.square().sum()

        least = (
            0.0 if mask is None else 1e-6
        )  # of a label that only one teacher has, its weight does not matter
        found = minimise(nll, torch.full((len(rows),), 1 / len(rows)), [(least, None)] * len(rows))
        if bool((found < 1e-5).all()):
            raise DataError(
                f"BernoulliLogPool cannot be fitted: on the {len(labels)} held-out labels no teacher's logits predict "
                "them better than chance."
            )
        known = None if mask is None else mask.cpu()
        beta = found.masked_fill(negligible(found, known, 1e-5), 0.0) / scale
        total = beta.sum().item()
        return cls(tuple((beta / total).tolist()), (1 / total,) * len(rows))


@dataclass(frozen=True)
class GaussianPool:
    """Regression: the weighted mean of the teachers' numbers on the student's scale, Σ w_k (a_k f_k + b_k).

    Args:
        weights: One per teacher, in their order, a sum of one; negative ones are allowed, since teachers whose errors go
            together are best subtracted. None: equal weights.
        scales: (a_k, b_k) per teacher: its number f is a f + b on the student's scale; None: all speak on it.

    Raises:
        ConfigurationError: Weights not finite, with a sum of zero, or not one per teacher; scales that are no such pairs.

    Reference:
        Bates, Granger: The Combination of Forecasts, Operational Research Quarterly 20(4), 1969.

    Example:
        >>> GaussianPool(weights=(3, 1))(torch.tensor([[[1.0]], [[5.0]]]))
        tensor([[2.]])
    """

    family: ClassVar[str] = "gaussian"
    weights: tuple[float, ...] | None = None
    scales: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        if self.scales is not None:
            object.__setattr__(self, "scales", _checked_scales(self.scales))
        if self.weights is None:
            return
        values = tuple(float(w) for w in self.weights)
        total = math.fsum(values) if all(map(math.isfinite, values)) else 0.0
        if not values or abs(total) < 1e-9:
            raise ConfigurationError(
                f"GaussianPool weights are {list(self.weights)}, but they must be finite, with a sum other than zero."
            )
        if abs(total - 1) >= 1e-12:  # shares stay what they are, so that a fusion read again is equal
            values = tuple(w / total for w in values)
        object.__setattr__(self, "weights", values)

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(K, N, D) → (N, D) on the student's scale; a number has no temperature. Outputs that no teacher has are NaN."""
        count = len(teacher_logits)
        weights: Sequence[float] = self.weights or (1 / count,) * count
        if len(weights) != count:
            raise ConfigurationError(
                f"The fusion has {len(weights)} weights for {count} teachers: give one per teacher, in their order."
            )
        kept = [k for k, weight in enumerate(weights) if weight != 0]
        values = torch.stack([teacher_logits[k].float() for k in kept])
        if self.scales is not None:
            values = self._scaled(values, kept)
        shares = constant(tuple((weights[k],) for k in kept), values.device)
        return _per_label(shares, values, None if mask is None else torch.stack([mask[k] for k in kept]))

    def aligned(self, teacher_logits: Tensor) -> Tensor:
        """The teachers' numbers on the student's scale, (K, N, D).

        Example:
            >>> GaussianPool(scales=((2, 1), (1, 0)))(torch.tensor([[[1.0]], [[5.0]]]))
            tensor([[4.]])
            >>> GaussianPool(scales=((2, 1), (1, 0))).aligned(torch.tensor([[[1.0]], [[5.0]]])).flatten()
            tensor([3., 5.])
        """
        return (
            teacher_logits
            if self.scales is None
            else self._scaled(teacher_logits.float(), range(len(teacher_logits)))
        )

    def _scaled(self, values: Tensor, which: Sequence[int]) -> Tensor:
        if len(self.scales) <= max(which, default=0):
            raise ConfigurationError(
                f"The fusion has {len(self.scales)} scales for {max(which) + 1} teachers or more: give one (slope, offset) per "
                "teacher, in their order."
            )
        slope, offset = (
            constant(tuple(((self.scales[k][i],),) for k in which), values.device) for i in (0, 1)
        )
        return slope * values + offset

    @classmethod
    def fit(
        cls,
        predictions: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        method: str = "bates_granger",
        scale: bool = False,
    ) -> GaussianPool:
        """Weights from held-out errors.

        ``inverse_mse``: in proportion to 1 / MSE_k. ``bates_granger``: Σ⁻¹1 / (1ᵀΣ⁻¹1), Σ the second moments of the
        errors, which minimises the squared error of the pool on these rows. A ridge of 1e-6 of Σ's mean diagonal shares
        the weight among teachers that are equal.

        Args:
            predictions: (K, N, D) or (K, N).
            targets: (N, D) or (N,); NaN where unknown.
            mask: (K, N, D) bool; only rows that all teachers have count.
            method: "bates_granger" or "inverse_mse".
            scale: Whether each teacher is first brought to the targets' scale, by the line that fits them best: least squares.
                One that says the same of all rows keeps its own.

        Raises:
            DataError: No known target, or predictions that are not finite.
            ConfigurationError: Another method.

        Example:
            >>> predictions, targets = torch.tensor([[1.0, -1.0], [2.0, 2.0]]), torch.tensor([0.0, 0.0])
            >>> GaussianPool.fit(predictions, targets, method="inverse_mse").weights
            (0.8, 0.2)
        """
        if method not in ("bates_granger", "inverse_mse"):
            raise ConfigurationError(
                f"GaussianPool.fit: method is {method!r}, but bates_granger and inverse_mse are known."
            )
        counts = torch.isfinite(targets).cpu()
        counts = counts if mask is None else counts & mask.all(0).cpu()
        if not bool(counts.any()):
            raise DataError("GaussianPool is fitted on held-out rows, but none given has a known target.")
        known, truth = (
            predictions.detach().cpu().double()[:, counts],
            targets.cpu().double()[counts],
        )  # (K, n), (n,)
        if not bool(torch.isfinite(known).all()):
            raise DataError("GaussianPool cannot be fitted: a teacher gives predictions that are not finite.")
        scales = tuple(_line(own, truth) for own in known) if scale else None
        if scales is not None:
            known = torch.stack([a * own + b for own, (a, b) in zip(known, scales, strict=True)])
        errors = known - truth
        moments = errors @ errors.T / errors.shape[1]
        floor = max(moments.diagonal().mean().item(), 1e-30) * 1e-6
        if method == "inverse_mse":
            raw = 1 / moments.diagonal().clamp(min=floor)
        else:
            ridge = torch.eye(len(errors), dtype=torch.float64) * floor
            raw = torch.linalg.solve(moments + ridge, torch.ones(len(errors), dtype=torch.float64))
        return cls(tuple((raw / raw.sum()).tolist()), scales)


def _checked_scales(scales: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    pairs = tuple(tuple(float(value) for value in pair) for pair in scales)
    if not pairs or not all(
        len(pair) == 2 and all(map(math.isfinite, pair)) and pair[0] != 0 for pair in pairs
    ):
        raise ConfigurationError(
            f"GaussianPool scales are {[list(pair) for pair in scales]}, but each teacher has two finite numbers, [slope, offset], "
            "the slope not 0."
        )
    return pairs


def _line(values: Tensor, targets: Tensor) -> tuple[float, float]:
    """Slope and offset of the least-squares line from a teacher's numbers (n,) to the targets (n,)."""
    centred = values - values.mean()
    spread = centred.square().mean().item()
    if spread <= 1e-12 * max(1.0, values.square().mean().item()):
        return 1.0, 0.0
    slope = (centred * (targets - targets.mean())).mean().item() / spread
    if slope == 0.0:
        return 1.0, 0.0
    return slope, (targets.mean() - slope * values.mean()).item()
