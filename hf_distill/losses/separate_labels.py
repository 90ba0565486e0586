"""Labels that each hold or not, and numbers: what a student of them minimises.

Shapes: N prediction units, C labels or numbers. Every function returns (N,) in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .properties import declare_distillation


def _compared(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float32, 0 where the target is NaN (nobody knows it), and where it is known."""
    known = ~target.isnan()
    return student.float().masked_fill(~known, 0.0), target.float().masked_fill(~known, 0.0), known


@declare_distillation(family="bernoulli", fewest_classes=1)
def bernoulli_kl(student_logits: Tensor, target_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T² Σ_labels KL(target ‖ student at T) of Bernoullis: the divergence of multi-label distillation.

    Args:
        student_logits: (N, C) log-odds, before the temperature.
        target_logits: (N, C) log-odds, already at the temperature; NaN where no teacher has the label.
        temperature: T > 0, applied to the student here.

    Returns:
        (N,) nats times T², summed over the labels.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531, label by label.

    Example:
        >>> student, target = torch.tensor([[0.7]]).logit(), torch.tensor([[0.8]]).logit()
        >>> round(bernoulli_kl(student, target).item(), 6)
        0.025732
    """
    z, t, known = _compared(student_logits / temperature, target_logits)
    p = t.sigmoid()
    # Of probabilities 0 and 1 the logarithm of the other side is infinite, and counts for nothing.
    entropy = p * F.logsigmoid(t).clamp(min=-1e30) + (1 - p) * F.logsigmoid(-t).clamp(min=-1e30)
    cross = p * F.logsigmoid(z) + (1 - p) * F.logsigmoid(-z)
    return temperature**2 * (entropy - cross).masked_fill(~known, 0.0).sum(-1)


def binary_cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy with labels that each hold or not, summed over them: the task loss.

    Args:
        student_logits: (N, C) log-odds; of -inf and inf the loss is 0 or infinite.
        labels: (N, C) 0 or 1, or a probability; NaN where unknown.
        label_smoothing: Share of the target that is one half.
        class_weights: (C,) by which a label that holds counts, against one that does not; None: alike.

    Returns:
        (N,) nats; exactly 0 where no label is known.

    Example:
        >>> round(binary_cross_entropy(torch.tensor([[0.7]]).logit(), torch.tensor([[1.0]])).item(), 6)
        0.356675
    """
    z, y, known = _compared(student_logits, labels)
    y = (1 - label_smoothing) * y + label_smoothing / 2
    values = F.binary_cross_entropy_with_logits(z, y, pos_weight=class_weights, reduction="none")
    # There torch's own formula is ∞ − ∞.
    values = torch.where(z.isinf(), torch.where(y == (z > 0), 0.0, torch.inf), values)
    return values.masked_fill(~known, 0.0).sum(-1)


@declare_distillation(family="gaussian", fewest_classes=1)
def gaussian_mse(student_numbers: Tensor, target_numbers: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over the outputs of the squared difference: regression.

    Args:
        student_numbers: (N, C).
        target_numbers: (N, C); NaN where unknown.
        temperature: Means nothing for numbers.

    Returns:
        (N,) squared units of the label; exactly 0 where nothing is known.

    Example:
        >>> gaussian_mse(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 5.0]]))
        tensor([2.])
    """
    student, target, known = _compared(student_numbers, target_numbers)
    return (student - target).square().sum(-1) / known.sum(-1).clamp(min=1)


@declare_distillation(family="gaussian", fewest_classes=1)
def huber(
    student_numbers: Tensor, target_numbers: Tensor, *, temperature: float = 1.0, delta: float = 1.0
) -> Tensor:
    """Mean over the outputs of Huber's loss: ½ d² for |d| ≤ δ, δ (|d| − ½ δ) beyond: single large errors count less.

    Args:
        student_numbers: (N, C).
        target_numbers: (N, C); NaN where unknown.
        temperature: Means nothing for numbers.
        delta: δ > 0, in units of the label.

    Returns:
        (N,) squared units of the label.

    Raises:
        ValueError: δ is not above 0.

    Reference:
        Huber: Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35(1), 1964.

    Example:
        >>> huber(torch.tensor([[0.5, 3.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([1.3125])
    """
    if not delta > 0:
        raise ValueError(f"huber: delta is {delta}, but it must be above 0.")
    student, target, known = _compared(student_numbers, target_numbers)
    return F.huber_loss(student, target, reduction="none", delta=delta).sum(-1) / known.sum(-1).clamp(min=1)
