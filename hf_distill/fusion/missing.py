"""Pools of teachers that lack classes: what each says is conditional on the classes it has.

Shapes: K teachers, N prediction units, C classes; weights (K, 1) or (K, N), not negative, a sum of one over K.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Enough for the masked linear pool at float32 accuracy, also where teachers hardly overlap (tests/fusion/test_fusion.py).
_NEWTON_ROUNDS = 20


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


class Balance:
    """Gives each group of connected classes the share of its teachers' weights; with one group it normalises."""

    def __init__(self, mask: Tensor, weights: Tensor) -> None:
        self.group, of_teacher = _groups(mask)
        share = weights.expand(of_teacher.shape)  # (K, N)
        empty = torch.zeros(mask.shape[1:], device=mask.device, dtype=weights.dtype)
        share = empty.scatter_add(-1, of_teacher.T, share.T)  # (N, C), at the group's least class
        nobody = share == 0
        self.log_share = share.masked_fill(nobody, 1.0).log().masked_fill(nobody, -torch.inf)

    def __call__(self, log_probs: Tensor) -> Tensor:
        """(N, C) log-probabilities, each group of any scale → (N, C) whose exponentials sum to one.

        In logarithms throughout, so that a class that a teacher calls all but impossible does not become impossible.
        """
        numbers = torch.finfo(log_probs.dtype)
        top = torch.full_like(log_probs, -torch.inf)
        top = top.scatter_reduce(-1, self.group, log_probs.detach(), "amax").clamp(min=numbers.min)
        shifted = log_probs - top.gather(-1, self.group)
        total = torch.zeros_like(log_probs).scatter_add(-1, self.group, shifted.exp()).clamp(min=numbers.tiny)
        return shifted + (self.log_share - total.log()).gather(-1, self.group)


def conditional_consensus(log_probs: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """The q (N, C) that minimises Σ_k w_k KL(p_k ‖ q restricted to L_k, renormalised).

    It has the form q_c ∝ Σ_{k∋c} w_k p_k(c) ÷ Σ_{k∋c} w_k e^{a_k}, where e^{-a_k} is the mass of q on L_k. The a_k
    minimise the convex function Σ_c (Σ_k w_k p_k(c)) ln Σ_{k∋c} w_k e^{a_k} − Σ_k w_k a_k of K numbers, so Newton
    steps of limited length find them in a few rounds where iterating the fixed point itself may take thousands.

    Args:
        log_probs: (K, N, C), -inf where a teacher lacks the class.
        mask: (K, N, C) bool.
        weights: (K, 1) or (K, N); a teacher of weight 0 in a row is not heard there.

    Returns:
        ln q, differentiable in the weights.
    """
    shares = weights.expand(log_probs.shape[:2])  # (K, N)
    mask = mask & (shares > 0)[..., None]
    log_probs = log_probs.masked_fill(~mask, -torch.inf)
    mass = shares[..., None] * log_probs.exp()  # w_k p_k(c), (K, N, C)
    pooled = mass.sum(0)
    fixed = _anchors(mask, shares)
    pull = mask * shares[..., None]

    def newton_step(offsets: Tensor) -> Tensor:
        pulls = pull * offsets.exp()[..., None]
        part = pulls / pulls.sum(0).clamp(min=torch.finfo(pulls.dtype).tiny)  # whose the mass of a class is
        coupling = torch.einsum("knc,jnc,nc->nkj", part, part, pooled)
        step = _balance(coupling, torch.einsum("knc,jnc->nkj", part, mass), fixed)
        return step * (2.0 / step.abs().amax(0).clamp(min=2.0))

    offsets = torch.zeros_like(shares)  # a, (K, N)
    with torch.no_grad():
        for _ in range(_NEWTON_ROUNDS):
            step = newton_step(offsets)
            offsets = offsets - step
            # Steps shrink by squaring; to look at them, an accelerator would have to be waited for.
            if step.device.type == "cpu" and step.abs().max() < torch.finfo(step.dtype).eps ** 0.5:
                break
    # At the minimum the gradient of one more step is the gradient of the minimum: earlier ones need none.
    offsets = offsets - newton_step(offsets)
    unknown = ~mask.any(0)
    heard = mask | unknown  # the logarithm of nothing has no gradient: such classes are set aside
    log_shares = shares.masked_fill(shares == 0, 1.0).log()
    log_pooled = _log_sum(log_shares[..., None] + log_probs.masked_fill(unknown, 0.0), heard)
    log_pull = _log_sum((log_shares + offsets)[..., None].expand_as(log_probs), heard)
    return Balance(mask, weights)(log_pooled - log_pull)


def _log_sum(values: Tensor, counted: Tensor) -> Tensor:
    """ln Σ e^value over the teachers that count, (K, N, C) → (N, C)."""
    return values.masked_fill(~counted, -torch.inf).logsumexp(0)


def _anchors(mask: Tensor, shares: Tensor) -> Tensor:
    """One teacher of each group, the first of the largest share, (K, N) bool; and those that are not heard at all."""
    _, of_teacher = _groups(mask)
    number = torch.arange(len(shares), device=mask.device)
    larger = shares[None] > shares[:, None]
    earlier = (shares[None] == shares[:, None]) & (number[None] < number[:, None])[..., None]
    together = (of_teacher[None] == of_teacher[:, None]) & (shares > 0)[None]
    return ~(together & (larger | earlier)).any(1)


def _balance(coupling: Tensor, flow: Tensor, fixed: Tensor) -> Tensor:
    """x with Σ_j coupling_kj (x_k − x_j) = Σ_j (flow_kj − flow_jk) for each k, and 0 where it is fixed.

    Sums over pairs of teachers, and no differences of sums over all: a teacher's weight may be so small that it would be
    lost in the rounding of another's.

    Args:
        coupling: (N, K, K), symmetric, not negative; what is on the diagonal does not count.
        flow: (N, K, K); what is on the diagonal does not count.
        fixed: (K, N) bool.

    Returns:
        (K, N).
    """
    own = torch.eye(len(fixed), dtype=torch.bool, device=fixed.device)
    coupling, flow = coupling.masked_fill(own, 0.0), flow.masked_fill(own, 0.0)
    of_all = coupling.sum(-1)
    numbers = torch.finfo(coupling.dtype)
    # The two additions keep it solvable where the classes that connect teachers have no probability left.
    matrix = torch.diag_embed(of_all * (1 + 4 * numbers.eps) + numbers.tiny) - coupling
    rows = fixed.T
    matrix = matrix.masked_fill(rows[:, None] | rows[..., None], 0.0) + torch.diag_embed(
        rows.to(matrix.dtype)
    )
    right = (flow.sum(-1) - flow.sum(-2)).masked_fill(rows, 0.0)
    # Not `solve`: it asks an accelerator whether the matrix was singular, and waits for the answer.
    return torch.linalg.solve_ex(matrix, right).result.T


def negligible(weights: Tensor, mask: Tensor | None, least: float) -> Tensor:
    """Which teachers a pool can do without: of weight below ``least``, and nothing hangs on them alone.

    However small its weight, a teacher that alone has a class, or alone connects groups of teachers, decides how
    probable the one is against the other.

    Args:
        weights: (K,).
        mask: (K, N, C) bool, or None.
        least: The least weight that counts by itself.

    Returns:
        (K,) bool.
    """
    kept = torch.ones(len(weights), dtype=torch.bool)
    for k in weights.argsort(stable=True).tolist():
        if weights[k] >= least:
            break
        others = kept.clone()
        others[k] = False
        if mask is None or (bool(others.any()) and _leaves_all(mask[others], mask)):
            kept = others
    return ~kept


def _leaves_all(fewer: Tensor, mask: Tensor) -> bool:
    return torch.equal(fewer.any(0), mask.any(0)) and torch.equal(_groups(fewer)[0], _groups(mask)[0])


def least_squares_logits(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """s (N, C) minimising Σ_k w_k Σ_{c∈L_k} (s_c − z_kc − b_k)² over s and the offsets b.

    For given offsets s_c is the weighted mean of z_kc + b_k over the teachers that know c; put in, the offsets solve
    the K normal equations Σ_j G_kj (b_k − b_j) = Σ_{c∈L_k} w_k (mean_c − z_kc), G_kj = Σ_{c∈L_k∩L_j} w_k w_j / W_c.
    One offset per connected group of teachers is free.

    Args:
        logits: (K, N, C).
        mask: (K, N, C) bool.
        weights: (K, 1) or (K, N), all above 0.
    """
    share = mask * weights[..., None]  # (K, N, C)
    total = share.sum(0).masked_fill(~mask.any(0), 1.0)  # W_c, (N, C)
    part = share / total
    z = logits.masked_fill(~mask, 0.0)
    coupling = torch.einsum("knc,jnc->nkj", part, share)
    flow = torch.einsum("knc,jnc->nkj", part, share * z)
    offsets = _balance(coupling, flow, _anchors(mask, weights.expand(mask.shape[:2])))
    return (part * (z + offsets[..., None])).sum(0)
