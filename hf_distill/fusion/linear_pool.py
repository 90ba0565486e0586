"""The weighted mean of the teachers' probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .fitting import held_out_rows, label_probabilities, minimise
from .missing import conditional_consensus, negligible
from .shares import checked_weights, heard

# Past this many the weights no longer move in float32; each round is one product of (K, N).
_EM_ROUNDS = 2000
_LEAST = 1e-6


def pooled(
    logits: Tensor, weights: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Log of Σ w_k softmax(z_k / T), also with weights per row and with classes that are missing.

    Args:
        logits: (K, N, C); where a weight is 0 they may be anything.
        weights: (K, 1) or (K, N), a sum of one over K.
        temperature: T > 0.
        mask: (K, N, C) bool, or None.

    Returns:
        (N, C) log-probabilities.
    """
    log_probs = F.log_softmax(logits / temperature, -1)
    if mask is None:
        return torch.where(
            (weights == 0)[..., None], -torch.inf, log_probs + weights.log()[..., None]
        ).logsumexp(0)
    return conditional_consensus(log_probs, mask, weights)


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
        object.__setattr__(self, "weights", checked_weights(self.weights))

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        shares, logits, mask = heard(self.weights, None, teacher_logits, mask)
        return pooled(logits, shares, temperature=temperature, mask=mask)

    @classmethod
    def fit(
        cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None, method: str = "em"
    ) -> LinearPool:
        """The weights that maximise the mean of ln Σ w_k p_k(y) on held-out rows.

        Concave, solved by EM from equal weights: teachers that are equal keep equal weights. Where teachers lack
        classes the pool is no longer a sum, and its NLL is minimised by L-BFGS-B over the logarithms of the weights; a
        teacher that alone has a class, or alone connects groups of classes, keeps a weight above zero.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            mask: (K, N, C) bool, or None.
            method: "em", the only one.

        Raises:
            DataError: No labelled row, or outputs that are not finite.

        Example:
            >>> teachers = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]).log().expand(2, 6, 2)
            >>> LinearPool.fit(teachers, torch.tensor([0, 0, 0, 0, 0, 0])).weights
            (1.0, 0.0)
        """
        if method != "em":
            raise ConfigurationError(f"LinearPool.fit: method is {method!r}, but only 'em' is known.")
        rows, labels, mask = held_out_rows(logits, labels, mask, "LinearPool")
        if mask is None:
            return cls(em_weights(label_probabilities(rows, labels)))
        picked = labels[:, None]

        def nll(log_weights: Tensor) -> Tensor:
            return -pooled(rows, log_weights.softmax(0)[:, None], mask=mask).gather(-1, picked).mean()

        found = minimise(nll, torch.zeros(len(rows)), [(-12.0, 12.0)] * len(rows)).softmax(0)
        found = found.masked_fill(negligible(found, mask, _LEAST), 0.0)
        return cls(tuple((found / found.sum()).tolist()))


def em_weights(likelihoods: Tensor) -> tuple[float, ...]:
    """Mixture weights by EM.

    Args:
        likelihoods: (K, n) float64, p_k(y) of each row.

    Returns:
        K weights that sum to one; those below 1e-6 are 0.
    """
    # A row that all hold impossible says nothing about the weights.
    likelihoods = likelihoods[:, likelihoods.amax(0) > 0]
    weights = torch.full((len(likelihoods),), 1 / len(likelihoods), dtype=torch.float64)
    if not likelihoods.numel():
        return tuple(weights.tolist())
    likelihoods = likelihoods / likelihoods.amax(0)
    for _ in range(_EM_ROUNDS):
        before = weights
        joint = weights[:, None] * likelihoods
        weights = (joint / joint.sum(0)).mean(1)
        if (weights - before).abs().max() < 1e-12:
            break
    weights = weights.masked_fill(weights < _LEAST, 0.0)
    return tuple((weights / weights.sum()).tolist())
