"""The linear pool, softened after pooling instead of before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .fitting import held_out_rows
from .linear_pool import LinearPool, pooled
from .shares import checked_temperatures, checked_weights, heard
from .temperature import fit_temperature


@dataclass(frozen=True)
class PoolThenTemper:
    """(Σ w_k softmax(z_k / T_k))^{1/(τT)}, renormalised: the linear pool, tempered as a whole.

    At T = 1 and without temperatures of its own it is the linear pool. `fit` makes it the calibrated linear pool: each
    teacher's temperature, then the weights, then the pool's own temperature τ.

    Args:
        weights: One share per teacher, in their order, normalised to sum one; None: equal shares.
        temperatures: T_k > 0, one per teacher; None: all 1.
        pooled_temperature: τ > 0.

    Raises:
        ConfigurationError: Weights or temperatures out of range, or not one per teacher.

    Reference:
        Rahaman, Thiery: Uncertainty Quantification and Deep Ensembles, 2020, arXiv:2007.08792.

    Example:
        >>> teachers = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()
        >>> PoolThenTemper(weights=(3, 1))(teachers, temperature=0.5).exp()  # (0.4², 0.6²), renormalised
        tensor([[0.3077, 0.6923]])
    """

    weights: tuple[float, ...] | None = None
    temperatures: tuple[float, ...] | None = None
    pooled_temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        object.__setattr__(self, "temperatures", checked_temperatures(self.temperatures, "PoolThenTemper"))
        if not (math.isfinite(self.pooled_temperature) and self.pooled_temperature > 0):
            raise ConfigurationError(
                f"PoolThenTemper's pooled_temperature is {self.pooled_temperature}, but it must be finite and above 0."
            )

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        shares, logits, mask = heard(self.weights, self.temperatures, teacher_logits, mask)
        return F.log_softmax(pooled(logits, shares, mask=mask) / (self.pooled_temperature * temperature), -1)

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> PoolThenTemper:
        """Temperature of each teacher, then weights by EM, then the pool's temperature, on the same held-out rows.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No labelled row, or outputs that are not finite.
        """
        rows, labels, mask = held_out_rows(logits, labels, mask, "PoolThenTemper")
        temperatures = tuple(
            fit_temperature(z, labels, mask=None if mask is None else mask[k]) for k, z in enumerate(rows)
        )
        tempered = rows / torch.tensor(temperatures, dtype=rows.dtype)[:, None, None]
        weights = LinearPool.fit(tempered, labels, mask=mask).weights
        unscaled = cls(weights, temperatures)
        return cls(weights, temperatures, fit_temperature(unscaled(rows, mask=mask), labels))
