"""Losses that ask more of a target than its probabilities: which class is the label, or how rows of a batch compare.

Shapes: N prediction units, C ≥ 3 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion.alignment import UNLABELLED
from .distributions import forward_kl, kl_of_log_probs, refuse_few_classes
from .properties import declare_distillation


@declare_distillation(needs_labels=True, fewest_classes=3)
def dkd(
    student_logits: Tensor,
    target_log_probs: Tensor,
    *,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation: α T² KL of (label, rest) + β T² KL over the classes that are not the label.

    Args:
        student_logits: (N, C), before the temperature.
        target_log_probs: (N, C), already at the temperature; -inf is a probability of 0.
        labels: (N,) class ids; a unit without one (-100), whose classes cannot be told apart so, has its `forward_kl`.
        temperature: T > 0, applied to the student here.
        alpha: Weight of the label's part.
        beta: Weight of the others' part.

    Returns:
        (N,) nats times T².

    Raises:
        ValueError: Fewer than three classes: then the second part is empty.

    Reference:
        Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, arXiv:2203.08679.

    Example:
        >>> student, target = torch.tensor([[0.2, 0.3, 0.5]]).log(), torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> round(dkd(student, target, labels=torch.tensor([0]), temperature=1.0, beta=1.0).item(), 6)
        0.255413
    """
    refuse_few_classes(student_logits, "dkd")
    log_p, log_q = target_log_probs.float(), F.log_softmax(student_logits.float() / temperature, -1)
    of_label = F.one_hot(labels.clamp(min=0), student_logits.shape[-1]).bool()

    def parts(log: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 2) label and rest, (N, C) the others among themselves, -inf at the label."""
        others = log.masked_fill(of_label, -torch.inf)
        possible = (others > -torch.inf).any(-1, keepdim=True)
        rest = torch.logsumexp(others.masked_fill(~possible, 0.0), -1).masked_fill(
            ~possible[:, 0], -torch.inf
        )
        own = log.masked_fill(~of_label, 0.0).sum(-1)
        among = torch.where(possible, others - rest.masked_fill(~possible[:, 0], 0.0)[:, None], others)
        return torch.stack([own, rest], -1), among

    (p_two, p_others), (q_two, q_others) = parts(log_p), parts(log_q)
    value = temperature**2 * (
        alpha * kl_of_log_probs(p_two, q_two) + beta * kl_of_log_probs(p_others, q_others)
    )
    whole = forward_kl(student_logits, target_log_probs, temperature=temperature)
    return torch.where(labels == UNLABELLED, whole, value)


@declare_distillation(additive=False, fewest_classes=3)
def dist(
    student_logits: Tensor,
    target_log_probs: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T² [β (1 − mean Pearson over the rows) + γ (1 − mean Pearson over the classes)] of the probabilities.

    One number of the whole batch: what a row is worth depends on the rows beside it, so that accumulation and several
    processes change it. Where a batch has a single row, no class varies and the second part is γ.

    Args:
        student_logits: (N, C), before the temperature.
        target_log_probs: (N, C), already at the temperature; classes at -inf are left out.
        temperature: T > 0, applied to the student here.
        beta: Weight of the rows' part: what each row says of the classes.
        gamma: Weight of the classes' part: which rows a class is more likely for.

    Returns:
        A scalar.

    Raises:
        ValueError: Fewer than three classes: two probabilities always lie on a line.

    Reference:
        Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv:2205.10536.

    Example:
        >>> target = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]).log()
        >>> round(dist(target, target).item(), 5)
        0.0
    """
    refuse_few_classes(student_logits, "dist")
    q = F.softmax(student_logits.float() / temperature, -1)
    p = target_log_probs.float().exp()
    known = (target_log_probs > -torch.inf).any(0)
    q, p = q[:, known], p[:, known]
    return temperature**2 * (beta * (1 - _pearson(q, p).mean()) + gamma * (1 - _pearson(q.T, p.T).mean()))


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """(N,) correlation of rows (N, M)."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (first, second))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-8)
