"""The one reduction.

Shapes: N prediction units.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reduce_loss(
    values: Tensor, *, mask: Tensor | None = None, num_items: Tensor | float | None = None
) -> Tensor:
    """The one reduction of the package: the sum over the units that count, divided by how many count.

    Args:
        values: (N,) per-unit losses.
        mask: (N,) bool, True where a unit counts; None where all do.
        num_items: The divisor, where it is more than this batch's count: that of a whole optimizer step, over its
            micro-batches and processes. None: this batch's own.

    Returns:
        A scalar that keeps its graph, and is 0, also where no unit counts.

    Example:
        >>> reduce_loss(torch.tensor([1.0, 3.0, 9.0]), mask=torch.tensor([True, True, False]))
        tensor(2.)
    """
    if mask is not None:
        values = values.masked_fill(~mask, 0.0)
    if num_items is None:
        num_items = values.numel() if mask is None else mask.sum()
    return values.sum() / torch.as_tensor(num_items, dtype=values.dtype, device=values.device).clamp(min=1)
