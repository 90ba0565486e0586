"""Losses between a student's states and a teacher's, position by position.

Shapes: N rows, L positions (tokens, or words of `hf_distill.rows.words`), D hidden size, the same on both sides: a
projection, where one is needed, comes before. States are (N, L, D) with a mask (N, L), True where a position counts, or
pooled (N, D) without one. Every function returns (N,) in float32: the mean over the positions that count, and 0 with a
graph where none does. What stands at positions that do not count, NaN included, reaches neither value nor gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .properties import OneTarget, declare

_NO_DIRECTION = 1e-12


def unit(vectors: Tensor) -> Tensor:
    """Vectors divided by their lengths, over the last dimension.

    A vector without a direction stays as it is, so that its gradient has the size of the others' instead of being NaN
    or 10¹²: a projection that starts at zero can leave it.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > _NO_DIRECTION, length, 1.0)


@declare(one_target=OneTarget())
def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the D dimensions of the squared difference.

    Args:
        student: (N, L, D) or (N, D), any floating type.
        teacher: As the student's.
        mask: (N, L) bool; None: every position counts.

    Returns:
        (N,) squared activations.

    Raises:
        ConfigurationError: Shapes that do not fit.

    Reference:
        Romero et al.: FitNets, 2014, arXiv:1412.6550; Jiao et al.: TinyBERT, 2019, arXiv:1909.10351.

    Example:
        >>> hidden_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([2.5000])
    """
    student, teacher = _states("hidden_mse", student, teacher, mask)
    return _mean_over_positions((student - teacher).square().mean(-1), mask)


def mean_unit_cosine(student: Tensor, mean_units: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 − unit(student) · Σ w_k unit(teacher_k): the weighted mean of several teachers' `hidden_cosine`, computed once.

    Args:
        student: As for `hidden_cosine`.
        mean_units: As the student's: the weighted mean of the teachers' unit vectors, itself no unit vector.
        mask: As for `hidden_cosine`.

    Example:
        >>> teachers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mean_unit_cosine(torch.tensor([[3.0, 4.0]]), teachers.mean(0, keepdim=True))
        tensor([0.3000])
    """
    student, mean_units = _states("hidden_cosine", student, mean_units, mask)
    return _mean_over_positions(1.0 - (unit(student) * mean_units).sum(-1), mask)


@declare(one_target=OneTarget(unit, mean_unit_cosine))
def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 − cosine of the two states: blind to their lengths. A zero vector has cosine 0 with everything.

    Args, returns and errors as `hidden_mse`; values lie in [0, 2].

    Reference:
        Sanh et al.: DistilBERT, 2019, arXiv:1910.01108.

    Example:
        >>> hidden_cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.4000])
    """
    student, teacher = _states("hidden_cosine", student, teacher, mask)
    return _mean_over_positions(1.0 - (unit(student) * unit(teacher)).sum(-1), mask)


def pkd(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared distance of the two unit vectors, which is 2·(1 − cosine) where neither is zero.

    The paper compares the first token's states at several layers. Its own code divides by D besides.

    Args, returns and errors as `hidden_mse`; values lie in [0, 4].

    Reference:
        Sun et al.: Patient Knowledge Distillation for BERT Model Compression, 2019, arXiv:1908.09355.

    Example:
        >>> pkd(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.8000])
    """
    student, teacher = _states("pkd", student, teacher, mask)
    return _mean_over_positions((unit(student) - unit(teacher)).square().sum(-1), mask)


def _states(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both sides in float32, with zeros where nothing counts."""
    if student.shape != teacher.shape:
        raise ConfigurationError(
            f"{name}: the student's states are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; they must "
            "agree: project the student's to the teacher's hidden size, and align or pool what was tokenized differently."
        )
    if mask is None:
        return student.float(), teacher.float()
    if mask.shape != student.shape[:-1]:
        raise ConfigurationError(
            f"{name}: the mask is {tuple(mask.shape)}, but the states {tuple(student.shape)} need "
            f"{tuple(student.shape[:-1])}."
        )
    # Before any arithmetic: a NaN multiplied by the mask's 0 afterwards would stay NaN, in the gradient too.
    absent = ~mask.bool()[..., None]
    return student.float().masked_fill(absent, 0.0), teacher.float().masked_fill(absent, 0.0)


def _mean_over_positions(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, L) or (N,) -> (N,)."""
    if values.dim() == 1:
        return values if mask is None else values.masked_fill(~mask.bool(), 0.0)
    if mask is None:
        return values.mean(-1)
    mask = mask.bool()
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
