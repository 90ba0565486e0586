"""From K teachers to one target distribution: the only place where the temperature touches the teachers.

Shapes: K teachers, N prediction units, C classes. Teacher logits are -inf, and the mask False, where a teacher lacks
a class; such a teacher's probabilities are conditional on the classes it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ConfigurationError

# Enough for the masked linear pool at float32 accuracy, also where teachers hardly overlap (tests/test_fusion.py).
_NEWTON_ROUNDS = 20


class Fusion(Protocol):
    """Anything that makes one target distribution of the teachers' logits.

    A frozen dataclass whose parameters are fields is enough; see docs/extending.md.
    """

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Fuse a batch.

        Args:
            teacher_logits: (K, N, C), any floating type; -inf where a teacher lacks the class.
            temperature: T > 0, applied to every teacher.
            labels: (N,) int64, -100 where unknown; None in evaluation. Most fusions ignore it.
            mask: (K, N, C) bool, True where the teacher has the class; None where all have all.

        Returns:
            (N, C) float32 log-probabilities; -inf for a class that no teacher has.
        """
        ...


def _checked(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Weights as a tuple that sums to one."""
    if weights is None:
        return None
    values = tuple(float(w) for w in weights)
    if not values or not all(math.isfinite(w) and w >= 0 for w in values) or sum(values) == 0:
        raise ConfigurationError(
            f"Fusion weights are {list(weights)}, but they must be finite, not negative, and not all zero: "
            "give one share per teacher, in the teachers' order."
        )
    return tuple(w / sum(values) for w in values)


def _heard(
    weights: tuple[float, ...] | None, logits: Tensor, mask: Tensor | None
) -> tuple[list[float], Tensor, Tensor | None, list[int]]:
    """The teachers with a weight above zero: nothing of the others is touched, so no NaN of theirs gets through."""
    count = logits.shape[0]
    if weights is None:
        return [1 / count] * count, logits.float(), mask, list(range(count))
    if len(weights) != count:
        raise ConfigurationError(
            f"The fusion has {len(weights)} weights for {count} teachers: give one per teacher, in their order."
        )
    heard = [k for k, weight in enumerate(weights) if weight > 0]
    if len(heard) == count:
        return list(weights), logits.float(), mask, heard
    kept = torch.stack([logits[k] for k in heard]).float()
    return (
        [weights[k] for k in heard],
        kept,
        None if mask is None else torch.stack([mask[k] for k in heard]),
        heard,
    )


def _scaled(values: Tensor, factors: Sequence[float]) -> Tensor:
    """(K, ...) times one Python number per teacher, without a copy of the numbers to the accelerator."""
    return torch.stack([value * factor for value, factor in zip(values, factors, strict=True)])


def _groups(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which classes are connected through teachers that know several of them.

    Args:
        mask: (K, N, C) bool.

    Returns:
        The group of each class, (N, C), and of each teacher, (K, N): the least class of the group.
    """
    teachers, _, classes = mask.shape
    group = torch.arange(classes, device=mask.device).expand(mask.shape[1:])
    for _ in range(teachers):  # the least class travels over one teacher a round
        for known in mask:
            least = group.masked_fill(~known, classes).amin(-1, keepdim=True)
            group = torch.where(known, torch.minimum(group, least), group)
    return group, torch.stack([group.masked_fill(~known, classes - 1).amin(-1) for known in mask])


class _Balance:
    """Gives each group of connected classes the share of its teachers' weights; with one group it normalises."""

    def __init__(self, mask: Tensor, weights: Sequence[float]) -> None:
        self.group, of_teacher = _groups(mask)
        share = _scaled(torch.ones_like(of_teacher, dtype=torch.float32), weights)  # (K, N)
        empty = torch.zeros(mask.shape[1:], device=mask.device)
        self.share = empty.scatter_add(-1, of_teacher.T, share.T)  # (N, C), at the group's least class

    def __call__(self, probs: Tensor) -> Tensor:
        """(N, C), of any positive scale within a group → (N, C) that sums to one."""
        total = torch.zeros_like(probs).scatter_add(-1, self.group, probs)
        factor = self.share / total.clamp(min=torch.finfo(probs.dtype).tiny)
        return probs * factor.gather(-1, self.group)


@dataclass(frozen=True)
class LinearPool:
    """The weighted mean of the teachers' probabilities: Σ w_k softmax(z_k / T).

    The safe default without labels: a bad or over-confident teacher costs at most its weight. With full label sets
    one divergence to this pool has the gradient of the weighted sum of the divergences to each teacher. Where
    teachers lack classes it is the q that minimises Σ w_k KL(p_k ‖ q restricted to the classes of k).

    Args:
        weights: One share per teacher, in their order, normalised to sum one; None: equal shares.

    Raises:
        ConfigurationError: Weights negative, not finite, all zero, or not one per teacher.

    Reference:
        Genest, Zidek: Combining Probability Distributions, Statistical Science 1(1), 1986.

    Example:
        >>> teachers = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()
        >>> LinearPool(weights=(3, 1))(teachers).exp()
        tensor([[0.4000, 0.6000]])
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _checked(self.weights))

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        weights, logits, mask, _ = _heard(self.weights, teacher_logits, mask)
        log_probs = F.log_softmax(logits / temperature, -1)
        if mask is None:
            return torch.stack(
                [lp + math.log(w) for lp, w in zip(log_probs, weights, strict=True)]
            ).logsumexp(0)
        return _conditional_consensus(log_probs.exp(), mask, weights).log()


def _conditional_consensus(probs: Tensor, mask: Tensor, weights: Sequence[float]) -> Tensor:
    """The q (N, C) that minimises Σ_k w_k KL(p_k ‖ q restricted to L_k, renormalised).

    It has the form q_c ∝ Σ_{k∋c} w_k p_k(c) ÷ Σ_{k∋c} w_k e^{a_k}, where e^{-a_k} is the mass of q on L_k. The a_k
    minimise the convex function Σ_c (Σ_k w_k p_k(c)) ln Σ_{k∋c} w_k e^{a_k} − Σ_k w_k a_k of K numbers, so Newton
    steps of limited length find them in a few rounds where iterating the fixed point itself may take thousands.
    """
    has = mask.float()
    pooled = _scaled(probs, weights).sum(0)  # (N, C)
    tiny = torch.finfo(torch.float32).tiny
    _, of_teacher = _groups(mask)
    together = (of_teacher[:, None] == of_teacher[None]).permute(2, 0, 1).float()  # (N, K, K)
    offsets = torch.zeros(probs.shape[:2], device=probs.device)  # a, (K, N)
    shares = _scaled(torch.ones_like(offsets), weights)
    for _ in range(_NEWTON_ROUNDS):
        pull = has * (shares * offsets.exp())[..., None]
        part = pull / pull.sum(0).clamp(min=tiny)  # (K, N, C): whose the pooled mass of a class is
        taken = (pooled * part).sum(-1)  # (K, N)
        hessian = torch.diag_embed(taken.T) - torch.einsum("knc,jnc,nc->nkj", part, part, pooled)
        # A common offset per group is free: the group indicator settles it; the last term keeps rounding invertible.
        hessian = hessian + together * taken.amin(0)[:, None, None] + torch.diag_embed(1e-6 * taken.T)
        step = torch.linalg.solve(hessian, (taken - shares).T).T
        offsets = offsets - step * (2.0 / step.abs().amax(0).clamp(min=2.0))
    pull = has * (shares * offsets.exp())[..., None]
    return _Balance(mask, weights)(pooled / pull.sum(0).clamp(min=tiny))


@dataclass(frozen=True)
class LogPool:
    """The normalised weighted geometric mean: softmax(Σ (w_k / T_k) z_k / T).

    A weighted mean of logits. With nothing fitted, one over-confident teacher takes over, which is why it is not the
    default. Where teachers lack classes, the logits s minimise Σ w_k Σ_{c∈L_k} (s_c − z_kc/T_k − b_k)² with a free
    offset b_k per teacher, since softmax leaves it undetermined.

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
        object.__setattr__(self, "weights", _checked(self.weights))
        if self.temperatures is not None:
            temperatures = tuple(float(t) for t in self.temperatures)
            if not all(math.isfinite(t) and t > 0 for t in temperatures):
                raise ConfigurationError(
                    f"LogPool temperatures are {list(temperatures)}, but each must be finite and above 0."
                )
            object.__setattr__(self, "temperatures", temperatures)

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        count = teacher_logits.shape[0]
        if self.temperatures is not None and len(self.temperatures) != count:
            raise ConfigurationError(
                f"LogPool has {len(self.temperatures)} temperatures for {count} teachers: give one per teacher."
            )
        weights, logits, mask, heard = _heard(self.weights, teacher_logits, mask)
        if self.temperatures is not None:
            logits = _scaled(logits, [1 / self.temperatures[k] for k in heard])
        if mask is None:
            return F.log_softmax(_scaled(logits, weights).sum(0) / temperature, -1)
        consensus = _least_squares_logits(logits, mask, weights) / temperature
        known = mask.any(0)
        log_probs = F.log_softmax(consensus.masked_fill(~known, -torch.inf), -1)
        return _Balance(mask, weights)(log_probs.exp()).log()


def _least_squares_logits(logits: Tensor, mask: Tensor, weights: Sequence[float]) -> Tensor:
    """s (N, C) minimising Σ_k w_k Σ_{c∈L_k} (s_c − z_kc − b_k)² over s and the offsets b.

    For given offsets s_c is the weighted mean of z_kc + b_k over the teachers that know c; put in, the offsets solve
    the K normal equations A b = r with A = diag(w_k |L_k|) − G, G_kj = Σ_{c∈L_k∩L_j} w_k w_j / W_c. A leaves one
    offset per connected group of teachers free, which the added group indicator settles.
    """
    has = mask.float()
    share = _scaled(has, weights)  # (K, N, C)
    total = share.sum(0).clamp(min=torch.finfo(torch.float32).tiny)  # W_c, (N, C)
    z = logits.masked_fill(~mask, 0.0)
    mean = (share * z).sum(0) / total  # (N, C)
    gram = torch.einsum("knc,jnc,nc->nkj", share, share, 1 / total)
    normal = torch.diag_embed(share.sum(-1).T) - gram  # (N, K, K)
    residual = (share * (mean - z)).sum(-1).T  # (N, K)
    _, of_teacher = _groups(mask)
    together = (of_teacher[:, None] == of_teacher[None]).permute(2, 0, 1).float()
    offsets = torch.linalg.solve(normal + together, residual).T  # (K, N)
    return (share * (z + offsets[..., None])).sum(0) / total


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
    pool = LinearPool(None if weights is None else tuple(weights))
    pooled = pool(teacher_logits, temperature=temperature, mask=mask)
    shares, logits, mask, _ = _heard(pool.weights, teacher_logits, mask)
    log_p = F.log_softmax(logits / temperature, -1)
    if mask is None:
        log_q = pooled.expand_as(log_p)
    else:
        log_q = F.log_softmax(pooled.masked_fill(~mask, -torch.inf), -1)
    absent = log_p == -torch.inf
    gaps = log_p.exp() * (log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0))
    return temperature**2 * _scaled(gaps.sum(-1), shares).sum(0)


FUSIONS: dict[str, type] = {
    "linear_pool": LinearPool,
    "log_pool": LogPool,
}
