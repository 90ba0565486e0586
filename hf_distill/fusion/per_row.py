"""Linear pools whose weights differ from row to row.

Shapes: K teachers, N prediction units, C classes; weights (K, N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .linear_pool import pooled


@dataclass(frozen=True)
class EntropyWeighted:
    """Per row, w_k = (1 − H_k / ΣH) / (K − 1): teachers that are less sure count less.

    It can silence a teacher but not select one (no weight exceeds 1/(K − 1)), and rewards over-confidence. Where all
    entropies are 0 the weights are equal. A teacher's entropy is that over its own classes.

    Reference:
        Kwon et al.: Adaptive Knowledge Distillation Based on Entropy, ICASSP 2020.

    Example:
        >>> teachers = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).log()
        >>> EntropyWeighted()(teachers).exp()  # H = (ln 2, 0): all weight to the second
        tensor([[1., 0.]])
    """

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        log_probs = F.log_softmax(teacher_logits.float(), -1)
        entropy = torch.special.entr(log_probs.exp()).sum(-1)  # (K, N)
        total = entropy.sum(0)
        share = torch.where(total > 0, entropy / total, 1 / len(entropy))
        weights = (1 - share) / (len(entropy) - 1) if len(entropy) > 1 else torch.ones_like(share)
        return pooled(teacher_logits.float(), weights.clamp(min=0.0), temperature=temperature, mask=mask)


def _surprise(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """−ln p_k(y) at T = 1 (K, N), and which teachers know the label of a row that has one (K, N)."""
    known = (labels >= 0).expand(logits.shape[:2])
    picked = labels.clamp(min=0)[None, :, None].expand(len(logits), -1, 1)
    if mask is not None:
        known = known & mask.gather(-1, picked)[..., 0]
    return -F.log_softmax(logits, -1).gather(-1, picked)[..., 0], known


@dataclass(frozen=True)
class ConfidenceWeighted:
    """Per row, w_k = (1 − softmax_k(CE_k)) / (K − 1), CE_k = −ln p_k(y): teachers that contradict the label count less.

    Only teachers that know the label's class are weighed, by the same formula over their number. A row without a label,
    as all are in evaluation, or whose label no teacher knows, gets equal weights.

    Reference:
        Zhang et al.: Confidence-Aware Multi-Teacher Knowledge Distillation, 2022, arXiv:2201.00007.

    Example:
        >>> teachers = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
        >>> ConfidenceWeighted()(teachers, labels=torch.tensor([0])).exp()  # weights 2/3 and 1/3
        tensor([[0.6667, 0.3333]])
    """

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        logits = teacher_logits.float()
        weights = torch.full(logits.shape[:2], 1 / len(logits), device=logits.device)
        if labels is not None:
            surprise, known = _surprise(logits, labels, mask)
            count = known.sum(0)
            # Finite, so that a teacher that held the label impossible is silenced and not the cause of a NaN.
            surprise = surprise.clamp(max=1e4).masked_fill(~known, -torch.inf)
            blame = torch.where(count > 0, surprise, 0.0).softmax(0)
            weighed = torch.where(count > 1, (1 - blame) / (count - 1).clamp(min=1), 1.0) * known
            weights = torch.where(count > 0, weighed, weights)
        return pooled(logits, weights, temperature=temperature, mask=mask)


@dataclass(frozen=True)
class LikelihoodWeighted:
    """Per row, w = softmax_k(−CE_k / τ), CE_k = −ln p_k(y): with τ = 1 in proportion to what each gave the label.

    A teacher that lacks the label's class is not heard in that row. A row without a label, as all are in evaluation, or
    whose label no teacher knows, gets equal weights.

    Args:
        tau: τ > 0; small values select the teacher that knew the label best, large ones weigh all alike.

    Raises:
        ConfigurationError: τ not above 0.

    Example:
        >>> teachers = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
        >>> LikelihoodWeighted()(teachers, labels=torch.tensor([0])).exp()  # weights 2/3 and 1/3
        tensor([[0.6667, 0.3333]])
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ConfigurationError(
                f"LikelihoodWeighted's tau is {self.tau}, but it divides: it must be finite and above 0."
            )

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        logits = teacher_logits.float()
        weights = torch.full(logits.shape[:2], 1 / len(logits), device=logits.device)
        if labels is not None:
            surprise, known = _surprise(logits, labels, mask)
            scores = (-surprise.clamp(max=1e4) / self.tau).masked_fill(~known, -torch.inf)
            weights = torch.where(known.any(0), scores, 0.0).softmax(0)
        return pooled(logits, weights, temperature=temperature, mask=mask)
