"""Divergences between a student's logits and a target distribution, per unit.

Shapes: N prediction units, C classes. Every function returns (N,) in float32. A divergence softened by a temperature T
carries the factor T², so that its gradient does not vanish as T grows (Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with hard labels: the task loss.

    Args:
        student_logits: (N, C).
        labels: (N,) int64 class ids; -100 where the unit has no label.
        label_smoothing: Share of the target spread evenly over all classes.

    Returns:
        (N,) nats; exactly 0 where there is no label.

    Example:
        >>> round(cross_entropy(torch.tensor([[0.3, 0.7]]).log(), torch.tensor([1])).item(), 6)
        0.356675
    """
    return F.cross_entropy(student_logits.float(), labels, reduction="none", label_smoothing=label_smoothing)


def kl_of_log_probs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) over the last dimension from log-probabilities, with 0·log 0 = 0."""
    # Both factors are replaced before they meet: -inf - -inf would be NaN, in the gradient too.
    absent = log_p == -torch.inf
    return (log_p.exp() * (log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0))).sum(-1)


def forward_kl(student_logits: Tensor, target_log_probs: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T² KL(target ‖ student at T): the divergence of classic distillation.

    Args:
        student_logits: (N, C), before the temperature.
        target_log_probs: (N, C), already at the temperature; -inf is a probability of 0.
        temperature: T > 0, applied to the student here.

    Returns:
        (N,) nats times T².

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.

    Example:
        >>> student, target = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> round(forward_kl(student, target).item(), 6)
        0.025732
    """
    return temperature**2 * kl_of_log_probs(
        target_log_probs.float(), F.log_softmax(student_logits.float() / temperature, -1)
    )


def reverse_kl(student_logits: Tensor, target_log_probs: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T² KL(student at T ‖ target): seeks the target's mode instead of covering it.

    Args and returns as `forward_kl`. Infinite where the student believes in a class of target probability 0.

    Reference:
        Gu et al.: MiniLLM, 2023, arXiv:2306.08543.

    Example:
        >>> student, target = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> round(reverse_kl(student, target).item(), 6)
        0.028168
    """
    return temperature**2 * kl_of_log_probs(
        F.log_softmax(student_logits.float() / temperature, -1), target_log_probs.float()
    )


def jsd(
    student_logits: Tensor, target_log_probs: Tensor, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Generalised Jensen–Shannon divergence: T² [β KL(p‖m) + (1−β) KL(q‖m)], m = βp + (1−β)q.

    Args:
        student_logits: (N, C), before the temperature; q is their softmax at T.
        target_log_probs: (N, C), already at the temperature; p.
        temperature: T > 0.
        beta: β in [0, 1]; by definition 0 is KL(p‖q) and 1 is KL(q‖p).

    Returns:
        (N,) nats times T².

    Raises:
        ValueError: β outside [0, 1].

    Reference:
        Agarwal et al.: On-Policy Distillation of Language Models, 2023, arXiv:2306.13649.

    Example:
        >>> student, target = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> round(jsd(student, target).item(), 6)
        0.006702
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"jsd: beta is {beta}, but a mixture weight must lie in [0, 1].")
    if beta == 0.0:
        return forward_kl(student_logits, target_log_probs, temperature=temperature)
    if beta == 1.0:
        return reverse_kl(student_logits, target_log_probs, temperature=temperature)
    log_p = target_log_probs.float()
    log_q = F.log_softmax(student_logits.float() / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    # log of a sum of probabilities, not logaddexp of their logs: that one's gradient is NaN where both are -inf.
    m = beta * p + (1 - beta) * q
    log_m = torch.where(m > 0, m, 1.0).log()
    return temperature**2 * (
        beta * kl_of_log_probs(log_p, log_m) + (1 - beta) * kl_of_log_probs(log_q, log_m)
    )
