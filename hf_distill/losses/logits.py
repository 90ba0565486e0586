"""Losses between logits, and how they take a fused target.

Shapes: N prediction units, C classes. Every function returns (N,) in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over classes of the squared difference of centred logits.

    Softmax ignores a shift, so both sides are centred first. Half of it is the limit of T²·KL for T → ∞.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C); classes at -inf (known to no teacher) are left out.

    Returns:
        (N,) squared logits.

    Reference:
        Ba, Caruana: Do Deep Nets Really Need to be Deep?, 2014, arXiv:1312.6184.

    Example:
        >>> logit_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([1.])
    """
    known = teacher_logits > -torch.inf
    count = known.sum(-1, keepdim=True).clamp(min=1)
    student, teacher = (z.float().masked_fill(~known, 0.0) for z in (student_logits, teacher_logits))
    difference = student - teacher
    centred = (difference - difference.sum(-1, keepdim=True) / count).masked_fill(~known, 0.0)
    return centred.square().sum(-1) / count.squeeze(-1)


def on_logits(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Give a loss between logits the signature of a distillation loss.

    The fused target is a distribution at temperature T; its logits are T times its log-probabilities, which is exact
    up to the shift that softmax ignores.

    Args:
        loss: ``loss(student_logits, teacher_logits) -> (N,)``.

    Returns:
        ``loss(student_logits, target_log_probs, *, temperature) -> (N,)``.

    Example:
        >>> loss = on_logits(logit_mse)
        >>> loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.5]]).log(), temperature=2.0)
        tensor([1.])
    """

    @functools.wraps(loss)
    def distillation_loss(
        student_logits: Tensor, target_log_probs: Tensor, *, temperature: float = 1.0
    ) -> Tensor:
        return loss(student_logits, temperature * target_log_probs.float())

    return distillation_loss
