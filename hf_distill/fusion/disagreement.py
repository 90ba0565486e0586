"""How far the teachers are from their own mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_pool import pooled
from .shares import checked_weights, heard


def teacher_disagreement(
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """T² Σ w_k KL(p_k ‖ p̄): how far the teachers are from their own linear pool p̄.

    It is the constant by which Σ w_k KL(p_k‖q) exceeds KL(p̄‖q), whatever the student q: the part of a distillation
    loss that no student can learn. Weighted Jensen–Shannon divergence of the teachers, times T².

    Args:
        teacher_logits: (K, N, C).
        temperature: T > 0.
        weights: One share per teacher; None: equal shares.
        mask: (K, N, C) bool; None where all teachers have all classes.

    Returns:
        (N,) nats times T²; 0 where all agree.

    Example:
        >>> teacher_disagreement(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])).abs().max() < 1e-6
        tensor(True)
    """
    weights = checked_weights(weights)
    shares, logits, mask = heard(weights, None, teacher_logits, mask)
    fused = pooled(logits, shares, temperature=temperature, mask=mask)
    log_p = F.log_softmax(logits / temperature, -1)
    known = fused if mask is None else F.log_softmax(fused.masked_fill(~mask, -torch.inf), -1)
    log_q = known.expand_as(log_p)
    absent = log_p == -torch.inf
    gaps = log_p.exp() * (log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0))
    return temperature**2 * (shares * gaps.sum(-1)).sum(0)
