"""Fusions that choose among the teachers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .fitting import held_out_rows, label_probabilities, mean_nll
from .linear_pool import LinearPool, pooled
from .shares import checked_weights, constant, heard


@dataclass(frozen=True)
class GreedySelection:
    """The linear pool of teachers picked one by one, with replacement: weights are counts / size.

    With one teacher it is that teacher.

    Args:
        weights: One share per teacher, normalised to sum one; `fit` finds them.

    Raises:
        ConfigurationError: Weights out of range, or not one per teacher.

    Reference:
        Caruana et al.: Ensemble Selection from Libraries of Models, ICML 2004.

    Example:
        >>> GreedySelection(weights=(2, 0, 1)).weights == (2 / 3, 0, 1 / 3)
        True
    """

    weights: tuple[float, ...]

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
        return LinearPool(self.weights)(teacher_logits, temperature=temperature, mask=mask)

    @classmethod
    def fit(
        cls, logits: Tensor, labels: Tensor, size: int = 20, *, mask: Tensor | None = None
    ) -> GreedySelection:
        """Pick ``size`` times the teacher that lowers the pool's held-out NLL most; of equal ones the first.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            size: How many picks.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No labelled row, or outputs that are not finite.
            ConfigurationError: size below 1.

        Example:
            >>> teachers = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]).log().expand(2, 6, 2)
            >>> GreedySelection.fit(teachers, torch.tensor([0, 0, 0, 0, 0, 0]), size=4).weights
            (1.0, 0.0)
        """
        if size < 1:
            raise ConfigurationError(f"GreedySelection's size is {size}, but it counts picks: from 1.")
        rows, labels, mask = held_out_rows(logits, labels, mask, "GreedySelection")
        likelihoods = label_probabilities(rows, labels)
        counts = torch.zeros(len(rows), dtype=rows.dtype)

        def nll(k: int) -> float:
            tried = counts.clone()
            tried[k] += 1
            tried = tried / tried.sum()
            if mask is None:
                return -(tried @ likelihoods).clamp(min=1e-12).log().mean().item()
            return mean_nll(LinearPool(tuple(tried.tolist()))(rows, mask=mask), labels)

        for _ in range(size):
            losses = [nll(k) for k in range(len(rows))]
            # The 1e-12 keeps rounding from preferring one of two equal teachers.
            counts[next(k for k, loss in enumerate(losses) if loss <= min(losses) + 1e-12)] += 1
        return cls(tuple((counts / size).tolist()))


@dataclass(frozen=True)
class BestTeacher:
    """One teacher alone: what an ensemble has to beat.

    Args:
        index: Which, counted from 0.
        count: Of how many.

    Raises:
        ConfigurationError: index not below count.

    Example:
        >>> BestTeacher(index=1, count=3).weights
        (0.0, 1.0, 0.0)
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigurationError(
                f"BestTeacher's index is {self.index}, but there are {self.count} teachers, counted from 0."
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """All to the one."""
        return tuple(float(k == self.index) for k in range(self.count))

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        _, logits, mask = heard(self.weights, None, teacher_logits, mask)
        logits = logits[0] if mask is None else logits[0].masked_fill(~mask[0], -torch.inf)
        return F.log_softmax(logits / temperature, -1)

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> BestTeacher:
        """The teacher of the lowest held-out NLL; of equal ones the first.

        A label that a teacher lacks counts as a probability of 1e-12, so that the best is one that knows them all.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            mask: (K, N, C) bool, or None.

        Raises:
            DataError: No labelled row, or outputs that are not finite.
        """
        rows, labels, _ = held_out_rows(logits, labels, mask, "BestTeacher")
        losses = [mean_nll(F.log_softmax(z, -1), labels) for z in rows]
        return cls(next(k for k, loss in enumerate(losses) if loss <= min(losses) + 1e-12), len(rows))


@dataclass(frozen=True)
class StochasticTeacher:
    """One teacher per training batch, drawn by weight: unbiased for the linear pool at one teacher's cost.

    The teachers that are not drawn do not run, which saves time where they are live; the draw depends on the trainer's
    seed, the step and the rows alone, so a resumed run draws the same. Called with all teachers, as in evaluation, it is
    the linear pool. Where the drawn teacher lacks classes, nothing is learnt about these from that batch.

    Args:
        weights: One share per teacher, in their order, normalised to sum one.

    Raises:
        ConfigurationError: Weights out of range, or not one per teacher.

    Reference:
        Fukuda et al.: Efficient Knowledge Distillation from an Ensemble of Teachers, Interspeech 2017.

    Example:
        >>> StochasticTeacher(weights=(0, 1)).select(torch.Generator())
        [1]
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))

    def select(self, generator: torch.Generator) -> list[int]:
        """Draw the teacher of a batch.

        Args:
            generator: On the CPU.

        Returns:
            One index.
        """
        return [int(torch.multinomial(constant(self.weights, torch.device("cpu")), 1, generator=generator))]

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        drawn = len(teacher_logits) == 1
        shares, logits, mask = heard(None if drawn else self.weights, None, teacher_logits, mask)
        return pooled(logits, shares, temperature=temperature, mask=mask)


@dataclass(frozen=True)
class MajorityVote:
    """The class that most teachers put first, with probability one; of equal ones the lowest.

    A baseline that throws away all that teachers say beyond their first answer. It is a fixed target: the temperature
    does not touch it, and the student is compared with it at temperature 1. With one teacher it is its first answer.

    Example:
        >>> teachers = torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]], [[9.0, 0.0]]])
        >>> MajorityVote()(teachers).exp()
        tensor([[0., 1.]])
    """

    target_temperature = 1.0

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        logits = teacher_logits.float()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        classes = logits.shape[-1]
        # argmax does not promise the first of equal values: the first True among them is asked for.
        first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)  # (K, N)
        votes = F.one_hot(first, classes).sum(0)  # (N, C)
        winner = (votes == votes.amax(-1, keepdim=True)).int().argmax(-1)
        return F.one_hot(winner, classes).float().log()
