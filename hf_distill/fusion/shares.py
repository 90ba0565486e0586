"""Weights of teachers: checked, as tensors, and the teachers that they leave to be heard."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigurationError


def checked_weights(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Weights as a tuple that sums to one; None stays None.

    Raises:
        ConfigurationError: Negative, not finite, or all zero.
    """
    if weights is None:
        return None
    values = tuple(float(w) for w in weights)
    if not values or not all(math.isfinite(w) and w >= 0 for w in values) or sum(values) == 0:
        raise ConfigurationError(
            f"Fusion weights are {list(weights)}, but they must be finite, not negative, and not all zero: "
            "give one share per teacher, in the teachers' order."
        )
    # Shares stay what they are: written down and read again, a fusion must be equal to itself.
    total = math.fsum(values)
    return values if abs(total - 1) < 1e-12 else tuple(w / total for w in values)


def checked_temperatures(temperatures: Sequence[float] | None, what: str) -> tuple[float, ...] | None:
    """Temperatures as a tuple; None stays None.

    Raises:
        ConfigurationError: One is not finite or not above 0.
    """
    if temperatures is None:
        return None
    values = tuple(float(t) for t in temperatures)
    if not values or not all(math.isfinite(t) and t > 0 for t in values):
        raise ConfigurationError(
            f"{what} temperatures are {list(temperatures)}, but each must be finite and above 0."
        )
    return values


@functools.lru_cache(maxsize=256)
def constant(values: tuple[object, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers as a tensor, kept per device: a copy to the accelerator for every batch would be a synchronisation."""
    with torch.inference_mode(False):  # a tensor made in inference mode could never meet a gradient later
        return torch.tensor(values, device=device, dtype=dtype)


def heard(
    weights: tuple[float, ...] | None,
    temperatures: tuple[float, ...] | None,
    logits: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The teachers with a weight above zero: nothing of the others is touched, so no NaN of theirs gets through.

    Args:
        weights: One share per teacher; None: equal shares.
        temperatures: One per teacher, by which its logits are divided; None: all 1.
        logits: (K, N, C).
        mask: (K, N, C) bool, or None.

    Returns:
        Shares (k, 1), logits (k, N, C) in float32 or wider, mask (k, N, C) or None, of the k teachers that are heard.

    Raises:
        ConfigurationError: Not one weight or temperature per teacher.
    """
    count = logits.shape[0]
    for name, values in (("weights", weights), ("temperatures", temperatures)):
        if values is not None and len(values) != count:
            raise ConfigurationError(
                f"The fusion has {len(values)} {name} for {count} teachers: give one per teacher, in their order."
            )
    weights = (1 / count,) * count if weights is None else weights
    kept = [k for k, weight in enumerate(weights) if weight > 0]
    if len(kept) < count:
        logits = torch.stack([logits[k] for k in kept])
        mask = None if mask is None else torch.stack([mask[k] for k in kept])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    shares = constant(tuple((weights[k],) for k in kept), logits.device, logits.dtype)
    if temperatures is not None:
        logits = logits / constant(tuple(((temperatures[k],),) for k in kept), logits.device, logits.dtype)
    return shares, logits, mask
