"""Losses between the shapes that the rows of a batch form in a student's space and in a teacher's.

Shapes: N rows, D and E hidden sizes of student and teacher. Both sides are pooled, (N, D) and (N, E): no projection is
needed, since only relations between rows are compared, and no common tokenizer. Every function returns a scalar in
float32.

None is additive: a row counts through all its pairs with the others, so accumulating two micro-batches of 16 is not a
batch of 32, and each process compares its own rows only. Keep the micro-batch large, and the same in runs that are
compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .properties import declare
from .representations import unit

_NUMBERS_AT_ONCE = 2**24


def _in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Casts both sides, and keeps autocast from casting their products back."""

    @functools.wraps(loss)
    def in_float32(student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            return loss(student.float(), teacher.float())

    return in_float32


@declare(compares="rows")
@_in_float32
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances between rows, each over the mean distance of its side, compared by smooth L1 (β = 1).

    The mean is taken over the N(N−1) entries off the diagonal, the loss over all N². Blind to rotation, shift and
    scale of either side. Equal rows have distance 0 without gradient. One row gives 0 with a graph, and so do two,
    unless they are equal on one side. Memory: N² numbers per side. Not additive over micro-batches.

    Args:
        student: (N, D), any floating type.
        teacher: (N, E).

    Returns:
        A scalar.

    Reference:
        Park et al.: Relational Knowledge Distillation, 2019, arXiv:1904.05068.

    Example:
        >>> rkd_distance(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]]))
        tensor(0.0139)
    """
    return F.smooth_l1_loss(
        _relative_distances(student), _relative_distances(teacher), reduction="sum"
    ) / max(1, len(student) ** 2)


def _relative_distances(rows: Tensor) -> Tensor:
    """(N, D) -> (N, N) distances over their off-diagonal mean."""
    # Not through the Gram matrix: its differences of squares lose what tells close rows apart.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / max(1, len(rows) * (len(rows) - 1))
    return distances / torch.where(mean > 0, mean, 1.0)


@declare(compares="rows")
@_in_float32
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosines of the angles that rows j and k form at row i, compared by smooth L1 (β = 1), mean over all N³.

    The cosine is that of (e_j − e_i, e_k − e_i), and 0 where one of the two is zero. Blind to rotation, shift and scale
    of either side. One row gives 0 with a graph, and so do two, unless they are equal on one side. Not additive over
    micro-batches.

    Time grows as N³·(D + E). Memory does not grow as N³: some rows i at a time are computed, and again in the backward
    pass, so that no tensor exceeds 2²⁴ numbers (64 MiB), or N·max(N, D, E) where that alone is more.

    Args:
        student: (N, D), any floating type.
        teacher: (N, E).

    Returns:
        A scalar.

    Reference:
        Park et al.: Relational Knowledge Distillation, 2019, arXiv:1904.05068.

    Example:
        >>> corner, line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
        >>> round(rkd_angle(corner, line).item(), 4)  # (2·1²/2 + 4·(1 − √½)²/2) / 27
        0.0434
    """
    count = len(student)
    total = student.new_zeros(())
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, count * max(count, student.shape[-1], teacher.shape[-1])))
    for start in range(0, max(1, count), at_once):
        # The teacher's side is bound, not passed: checkpoint would save it, and inference mode's tensors refuse that.
        piece = functools.partial(
            _angle_difference, teacher=teacher, start=start, stop=min(start + at_once, count)
        )
        total = total + checkpoint(piece, student, use_reentrant=False, preserve_rng_state=False)
    return total / max(1, count**3)


def _angle_difference(student: Tensor, *, teacher: Tensor, start: int, stop: int) -> Tensor:
    """The sum over the angles at rows start to stop."""
    return F.smooth_l1_loss(_cosines(student, start, stop), _cosines(teacher, start, stop), reduction="sum")


def _cosines(rows: Tensor, start: int, stop: int) -> Tensor:
    """(N, D) -> (stop − start, N, N) cosines at some rows."""
    directions = unit(rows[None, :, :] - rows[start:stop, None, :])
    return directions @ directions.mT


@declare(compares="rows")
@_in_float32
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_S − G_T‖²_F / N² of the Gram matrices of the rows, each line of them brought to length 1.

    Blind to rotation and scale of either side, not to a shift. Memory: N² numbers per side. Not additive over
    micro-batches.

    Args:
        student: (N, D), any floating type.
        teacher: (N, E).

    Returns:
        A scalar.

    Reference:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, 2019, arXiv:1907.09682.

    Example:
        >>> similarity_preserving(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [0.0]]))
        tensor(0.2500)
    """
    return (unit(student @ student.mT) - unit(teacher @ teacher.mT)).square().sum() / max(
        1, len(student) ** 2
    )


@declare(compares="rows")
@_in_float32
def linear_cka(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − CKA: ⟨K, L⟩ / (‖K‖‖L‖) with K and L the Gram matrices of the features centred over the rows.

    The same number as ‖X_Sᵀ X_T‖²_F / (‖X_Sᵀ X_S‖_F ‖X_Tᵀ X_T‖_F). Blind to rotation, shift and scale of either side.
    One row has nothing to compare: 0, with a graph; two always agree. Where all rows of a side are equal, CKA is 0.
    Memory: N² numbers per side. Not additive over micro-batches.

    Args:
        student: (N, D), any floating type.
        teacher: (N, E).

    Returns:
        A scalar in [0, 1].

    Reference:
        Kornblith et al.: Similarity of Neural Network Representations Revisited, 2019, arXiv:1905.00414.

    Example:
        >>> linear_cka(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
        tensor(1.)
    """
    return float(len(student) > 1) - (_centred_gram(student) * _centred_gram(teacher)).sum()


def _centred_gram(rows: Tensor) -> Tensor:
    """(N, D) -> (N·N,) of length 1."""
    # From the first row, then from the mean: equal rows are then exactly zero instead of rounding noise.
    rows = rows - rows[:1]
    rows = rows - rows.mean(0)
    return unit((rows @ rows.mT).flatten())
