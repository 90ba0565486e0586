"""How much each row's distillation counts: weights in [0, 1] from what student and teachers say of the row.

Shapes: K teachers, N prediction units, C classes. Weights are (N,) float32, without a graph, computed from the
distributions at temperature 1 whatever the temperature of the distillation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion import teacher_disagreement


class RowWeight(Protocol):
    """Anything that weighs the rows of a batch; a plain function is enough."""

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Weigh a batch.

        Args:
            student_logits: (N, C), before any temperature; -inf for a class that cannot be learnt here.
            teacher_logits: (K, N, C) of the teachers that the fusion hears, before any temperature; -inf where one lacks
                the class.
            mask: (K, N, C) bool, True where the teacher has the class; None where all have all.

        Returns:
            (N,) float32 in [0, 1], which the rows' distillation losses are multiplied by.
        """
        ...


@torch.no_grad()
def student_entropy(student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """H(student) / ln C: rows count by how unsure the student still is of them.

    Args and returns as `RowWeight`. C is the number of classes that some teacher has; the student's belief in others is
    left aside. With one such class there is nothing to be unsure of: 0.

    Reference:
        Li et al.: Dynamic Knowledge Distillation for Pre-trained Language Models, EMNLP 2021, arXiv:2109.11295, which
        keeps the rows of highest entropy; here every row counts by it.

    Example:
        >>> teachers = torch.zeros(2, 2, 2)
        >>> student_entropy(torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), teachers)
        tensor([1.0000, 0.4690])
    """
    logits = student_logits.float()
    known = logits > -torch.inf
    if mask is not None:
        known &= mask.any(0)
    log_q = F.log_softmax(logits.masked_fill(~known, -torch.inf), -1)
    entropy = -(log_q.exp() * log_q.masked_fill(log_q == -torch.inf, 0.0)).sum(-1)
    return (entropy / known.sum(-1).clamp(min=2).float().log()).clamp(0.0, 1.0)


@torch.no_grad()
def teacher_agreement(
    student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """1 − JSD(p_1, …, p_K) / ln K: rows count by how much the teachers agree on them.

    Args and returns as `RowWeight`. The Jensen–Shannon divergence is `teacher_disagreement` with equal shares: at most
    ln K, and where teachers lack classes they disagree only on those that they have. 1 with a single teacher. All
    teachers that are given count alike, whatever their weights in the fusion.

    Reference:
        Lin: Divergence Measures Based on the Shannon Entropy, IEEE Transactions on Information Theory 37(1), 1991.

    Example:
        >>> one, other = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log()
        >>> teacher_agreement(one, torch.stack([one, other]))
        tensor([1., 0.])
    """
    teachers, rows, _ = teacher_logits.shape
    if teachers == 1:
        return torch.ones(rows, device=teacher_logits.device)
    return (1 - teacher_disagreement(teacher_logits, mask=mask) / math.log(teachers)).clamp(0.0, 1.0)


ROW_WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "student_entropy": student_entropy,
    "teacher_agreement": teacher_agreement,
}
