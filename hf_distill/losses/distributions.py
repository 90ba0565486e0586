"""Divergences between a student's logits and a target distribution, per unit.

Shapes: N prediction units, C classes. Every function returns (N,) in float32. A divergence softened by a temperature T
carries the factor T², so that its gradient does not vanish as T grows (Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with hard labels: the task loss.

    Args:
        student_logits: (N, C).
        labels: (N,) int64 class ids, -100 where the unit has no label; or (N, C) probabilities, NaN where it has none.
        label_smoothing: Share of the target spread evenly over all classes.
        class_weights: (C,) by which each class of the target counts; None: all alike.

    Returns:
        (N,) nats; exactly 0 where there is no label.

    Example:
        >>> round(cross_entropy(torch.tensor([[0.3, 0.7]]).log(), torch.tensor([1])).item(), 6)
        0.356675
    """
    if labels.ndim > 1:
        known = ~labels.isnan().any(-1)
        target = labels.float().masked_fill(~known[:, None], 0.0)
        values = F.cross_entropy(
            student_logits.float(),
            target,
            weight=class_weights,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return values.masked_fill(~known, 0.0)
    return F.cross_entropy(
        student_logits.float(),
        labels,
        weight=class_weights,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def refuse_few_classes(logits: Tensor, what: str) -> None:
    """Refuse fewer than three classes.

    Args:
        logits: (N, C).
        what: Which loss it is.

    Raises:
        ValueError: There are two, for which the loss has no gradient.
    """
    if logits.shape[-1] < 3:
        raise ValueError(
            f"{what} needs at least 3 classes, but there are {logits.shape[-1]}: with two it has no gradient."
        )


def standardize_logits(logits: Tensor) -> Tensor:
    """(z − mean) / (std + 1e-7) over the classes of each unit: what is left is how classes compare, not how sure one is.

    Args:
        logits: (N, C), C ≥ 3; classes at -inf are left out and stay.

    Returns:
        (N, C) float32.

    Raises:
        ValueError: Fewer than three classes: two always come out as ±0.7071.

    Reference:
        Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv:2403.01427.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.0000,  0.0000,  1.0000]])
    """
    refuse_few_classes(logits, "standardize")
    z, known = logits.float(), logits > -torch.inf
    count = known.sum(-1, keepdim=True)
    kept = z.masked_fill(~known, 0.0)
    centred = (kept - kept.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(~known, 0.0)
    # A unit of one known class, or of equal logits, has no spread; its root would have no gradient.
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    deviation = variance.clamp(min=1e-14).sqrt()
    return (centred / (deviation + 1e-7)).masked_fill(~known, -torch.inf)


def _sides(
    student_logits: Tensor, target_log_probs: Tensor, temperature: float, standardize: bool
) -> tuple[Tensor, Tensor]:
    """log p of the target and log q of the student, at the temperature."""
    if not standardize:
        return target_log_probs.float(), F.log_softmax(student_logits.float() / temperature, -1)
    # T times the target's log-probabilities are its logits up to a shift, which standardising ignores.
    target = standardize_logits(temperature * target_log_probs.float()) / temperature
    return F.log_softmax(target, -1), F.log_softmax(standardize_logits(student_logits) / temperature, -1)


def kl_of_log_probs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) over the last dimension from log-probabilities, with 0·log 0 = 0."""
    # Both factors are replaced before they meet: -inf - -inf would be NaN, in the gradient too.
    absent = log_p == -torch.inf
    return (log_p.exp() * (log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0))).sum(-1)


def forward_kl(
    student_logits: Tensor, target_log_probs: Tensor, *, temperature: float = 1.0, standardize: bool = False
) -> Tensor:
    """T² KL(target ‖ student at T): the divergence of classic distillation.

    Args:
        student_logits: (N, C), before the temperature.
        target_log_probs: (N, C), already at the temperature; -inf is a probability of 0.
        temperature: T > 0, applied to the student here.
        standardize: Whether the logits of both sides are standardised first, see `standardize_logits`.

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
        *_sides(student_logits, target_log_probs, temperature, standardize)
    )


def reverse_kl(
    student_logits: Tensor, target_log_probs: Tensor, *, temperature: float = 1.0, standardize: bool = False
) -> Tensor:
    """T² KL(student at T ‖ target): seeks the target's mode instead of covering it.

    Args and returns as `forward_kl`. Infinite where the student believes in a class of target probability 0.

    Reference:
        Gu et al.: MiniLLM, 2023, arXiv:2306.08543.

    Example:
        >>> student, target = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> round(reverse_kl(student, target).item(), 6)
        0.028168
    """
    log_p, log_q = _sides(student_logits, target_log_probs, temperature, standardize)
    return temperature**2 * kl_of_log_probs(log_q, log_p)


def jsd(
    student_logits: Tensor,
    target_log_probs: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
    standardize: bool = False,
) -> Tensor:
    """Generalised Jensen–Shannon divergence: T² [β KL(p‖m) + (1−β) KL(q‖m)], m = βp + (1−β)q.

    Args:
        student_logits: (N, C), before the temperature; q is their softmax at T.
        target_log_probs: (N, C), already at the temperature; p.
        temperature: T > 0.
        beta: β in [0, 1]; by definition 0 is KL(p‖q) and 1 is KL(q‖p).
        standardize: As of `forward_kl`.

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
        return forward_kl(student_logits, target_log_probs, temperature=temperature, standardize=standardize)
    if beta == 1.0:
        return reverse_kl(student_logits, target_log_probs, temperature=temperature, standardize=standardize)
    log_p, log_q = _sides(student_logits, target_log_probs, temperature, standardize)
    p, q = log_p.exp(), log_q.exp()
    # log of a sum of probabilities, not logaddexp of their logs: that one's gradient is NaN where both are -inf.
    m = beta * p + (1 - beta) * q
    log_m = torch.where(m > 0, m, 1.0).log()
    return temperature**2 * (
        beta * kl_of_log_probs(log_p, log_m) + (1 - beta) * kl_of_log_probs(log_q, log_m)
    )
