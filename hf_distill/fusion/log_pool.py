"""The weighted mean of the teachers' logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from .fitting import held_out_rows, logit_scale, minimise
from .missing import Balance, least_squares_logits, negligible
from .shares import checked_temperatures, checked_weights, heard

# Weight of the prior (β_k · spread of k)² against all held-out rows together: it only matters where the rows are
# separable, and β would grow without end.
_PRIOR = 0.01


def pooled_logits(
    logits: Tensor, weights: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Log of the normalised weighted geometric mean.

    Args:
        logits: (K, N, C).
        weights: (K, 1), a sum of one over K, all above 0.
        temperature: T > 0, by which the mean of the logits is divided.
        mask: (K, N, C) bool, or None.

    Returns:
        (N, C) log-probabilities.
    """
    if mask is None:
        return F.log_softmax((weights[..., None] * logits).sum(0) / temperature, -1)
    consensus = least_squares_logits(logits, mask, weights) / temperature
    return Balance(mask, weights)(F.log_softmax(consensus.masked_fill(~mask.any(0), -torch.inf), -1))


@dataclass(frozen=True)
class LogPool:
    """The normalised weighted geometric mean: softmax(Σ (w_k / T_k) z_k / T).

    A weighted mean of logits. With nothing fitted, one over-confident teacher takes over; `fit` is the choice where
    labelled held-out rows exist. Where teachers lack classes, the logits s minimise
    Σ w_k Σ_{c∈L_k} (s_c − z_kc/T_k − b_k)² with a free offset b_k per teacher, since softmax leaves it undetermined.

    Args:
        weights: One share per teacher, in their order, normalised to sum one; None: equal shares.
        temperatures: T_k > 0, one per teacher, that calibrate it; None: all 1.

    Raises:
        ConfigurationError: Weights or temperatures out of range, or not one per teacher.

    Reference:
        Hinton: Products of Experts, ICANN 1999; Heskes: Selecting weighting factors in logarithmic opinion pools, 1998.

    Example:
        >>> teachers = torch.tensor([[[0.0, 2.0]], [[0.0, 4.0]]])
        >>> LogPool()(teachers).diff()
        tensor([[3.]])
    """

    weights: tuple[float, ...] | None = None
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        object.__setattr__(self, "temperatures", checked_temperatures(self.temperatures, "LogPool"))

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        shares, logits, mask = heard(self.weights, self.temperatures, teacher_logits, mask)
        return pooled_logits(logits, shares, temperature=temperature, mask=mask)

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> LogPool:
        """The coefficients β ≥ 0 that minimise the NLL of softmax(Σ β_k z_k) on held-out rows.

        Convex, K numbers, solved by L-BFGS-B; they absorb every temperature, and are kept as weights β / Σβ and the one
        temperature 1 / Σβ. A bad teacher gets 0. A prior worth a hundredth of a row keeps β finite where the rows are
        separable. Where teachers lack classes the consensus depends on the weights too: the problem is then smooth but
        no longer convex, and is solved from equal weights; a teacher that alone has a class, or alone connects groups of
        classes, keeps a weight above zero.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No labelled row, outputs that are not finite, or no teacher that predicts the labels at all.

        Example:
            >>> one = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
            >>> random = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
            >>> LogPool.fit(torch.stack([one, random]), torch.tensor([0, 0, 1, 1])).weights
            (1.0, 0.0)
        """
        rows, labels, mask = held_out_rows(logits, labels, mask, "LogPool")
        scale = logit_scale(rows, mask)
        heard_of = scale > 0  # constant logits say nothing, whatever their coefficient
        scale = torch.where(heard_of, scale, 1.0)
        prior = _PRIOR / len(labels)

        # In units of each teacher's spread, so that no scale of logits is harder to fit than another.
        def nll(strength: Tensor) -> Tensor:
            beta = strength / scale
            if mask is None:
                return (
                    F.cross_entropy(torch.einsum("k,knc->nc", beta, rows), labels)
                    + prior * strength.square().sum()
                )
            total = beta.sum()
            log_probs = pooled_logits(rows, (beta / total)[:, None], temperature=1 / total, mask=mask)
            return F.nll_loss(log_probs, labels) + prior * strength.square().sum()

        # Least squares needs every weight above 0 where classes are missing.
        least = 0.0 if mask is None else 1e-6
        bounds = [(least, None) if bool(of) else (least, least) for of in heard_of]
        found = minimise(nll, torch.where(heard_of, 1.0 / len(rows), least), bounds)
        if bool((found < 1e-5).all()):
            raise DataError(
                f"LogPool cannot be fitted: on the {len(labels)} held-out rows no teacher's logits predict the labels "
                "better than chance. Check how the labels are matched (hf-distill audit), or give the fusion."
            )
        beta = found.masked_fill(negligible(found, mask, 1e-5), 0.0) / scale
        total = beta.sum().item()
        return cls(tuple((beta / total).tolist()), (1 / total,) * len(rows))
