"""A linear pool whose weights a small model chooses for each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .fitting import held_out_rows, minimise
from .linear_pool import pooled
from .shares import constant

# Ridge on the coefficients, as a share of one nat per row and per unit squared.
_RIDGE = 1e-3


def _features(logits: Tensor, mask: Tensor | None) -> Tensor:
    """(K, N, C) → (K, N, 3): entropy and margin of each teacher's distribution, and its agreement with the others.

    Entropy over ln of the number of its classes and the gap between its two largest probabilities, both in [0, 1], and
    the share of the other teachers whose first answer is the same.
    """
    probs = F.softmax(logits, -1)
    classes = torch.full_like(probs[..., 0], probs.shape[-1]) if mask is None else mask.sum(-1)
    entropy = torch.special.entr(probs).sum(-1) / classes.clamp(min=2).log()
    two = probs.topk(2, dim=-1).values
    first = probs.argmax(-1)
    same = (first[:, None] == first[None]).to(probs.dtype).sum(1) - 1
    return torch.stack([entropy, two[..., 0] - two[..., 1], same / max(len(probs) - 1, 1)], -1)


@dataclass(frozen=True)
class Gate:
    """A linear pool with per-row weights softmax_k(a_k · f_k + b_k), f_k computed from the teachers' own logits.

    f_k are entropy, margin and agreement with the other teachers, so that a teacher is believed where it is reliable, in
    rows with and without a label alike. Fitted on held-out NLL, never on the distillation loss, which would pick the
    teacher nearest to the student. With one teacher it is that teacher.

    Args:
        coefficients: a_k, three numbers per teacher.
        intercepts: b_k, one per teacher.

    Raises:
        ConfigurationError: Not as many rows as teachers.

    Reference:
        Jacobs et al.: Adaptive Mixtures of Local Experts, Neural Computation 3(1), 1991.

    Example:
        >>> gate = Gate(coefficients=((0, 9, 0), (0, 9, 0)), intercepts=(0, 0))  # believes in margins
        >>> gate(torch.tensor([[[0.5, 0.5]], [[0.01, 0.99]]]).log()).exp()
        tensor([[0.0101, 0.9899]])
    """

    coefficients: tuple[tuple[float, float, float], ...]
    intercepts: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", tuple(tuple(map(float, row)) for row in self.coefficients))
        object.__setattr__(self, "intercepts", tuple(map(float, self.intercepts)))
        if len(self.coefficients) != len(self.intercepts) or any(len(row) != 3 for row in self.coefficients):
            raise ConfigurationError(
                f"Gate has {len(self.intercepts)} intercepts and rows of {[len(row) for row in self.coefficients]} "
                "coefficients: give one intercept and three coefficients per teacher."
            )

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if len(self.intercepts) != len(teacher_logits):
            raise ConfigurationError(
                f"Gate was fitted for {len(self.intercepts)} teachers, found {len(teacher_logits)}: fit it with the "
                "teachers of this run."
            )
        logits = teacher_logits.float()
        slopes = constant(self.coefficients, logits.device)[:, None]  # (K, 1, 3)
        scores = (_features(logits, mask) * slopes).sum(-1) + constant(self.intercepts, logits.device)[
            :, None
        ]
        return pooled(logits, scores.softmax(0), temperature=temperature, mask=mask)

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> Gate:
        """Minimise the pool's NLL on held-out rows, from equal weights, with a small ridge.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No labelled row, or outputs that are not finite.
        """
        rows, labels, mask = held_out_rows(logits, labels, mask, "Gate")
        features, picked = _features(rows, mask), labels[:, None]
        log_probs = F.log_softmax(rows, -1)
        of_label = log_probs.gather(-1, picked[None].expand(len(rows), -1, 1))[..., 0]  # (K, n)

        def nll(flat: Tensor) -> Tensor:
            table = flat.view(len(rows), 4)
            log_weights = ((features * table[:, None, :3]).sum(-1) + table[:, None, 3]).log_softmax(0)
            fused = (
                (log_weights + of_label).logsumexp(0)
                if mask is None
                else pooled(rows, log_weights.exp(), mask=mask).gather(-1, picked)
            )
            return -fused.mean() + _RIDGE * table.square().sum()

        table = minimise(nll, torch.zeros(4 * len(rows))).view(len(rows), 4)
        return cls(tuple(map(tuple, table[:, :3].tolist())), tuple(table[:, 3].tolist()))
