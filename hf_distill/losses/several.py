"""Several distillation losses as one, and how any of them is called.

Shapes: N prediction units, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigurationError
from ..lookup import build
from .properties import DistillationProperties, distillation_properties


@dataclass(frozen=True)
class WeightedLosses:
    """Σ weight × loss: several distillation losses against one target.

    Args:
        losses: Distillation losses.
        weights: One above 0 for each.

    Raises:
        ConfigurationError: No loss, or not one such weight for each; losses of different families.

    Example:
        >>> import torch
        >>> from hf_distill.losses import forward_kl, jsd
        >>> both = WeightedLosses((forward_kl, jsd), (1.0, 0.5))
        >>> student, target = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> round(both(student, target, temperature=1.0).item(), 6)
        0.029083
    """

    losses: tuple[Callable[..., Tensor], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.losses or len(self.losses) != len(self.weights):
            raise ConfigurationError(
                f"There are {len(self.losses)} distillation losses and {len(self.weights)} weights: give each loss one."
            )
        if not all(isinstance(w, (int, float)) and not isinstance(w, bool) and w > 0 for w in self.weights):
            raise ConfigurationError(
                f"The weights of the distillation losses are {list(self.weights)}, but each must be a number above 0."
            )
        families = {distillation_properties(loss).family for loss in self.losses}
        if len(families) > 1:
            raise ConfigurationError(
                f"The distillation losses are for different kinds of predictions ({', '.join(sorted(families))}): a student has one."
            )

    @property
    def properties(self) -> DistillationProperties:
        """What all of them together need."""
        each = [distillation_properties(loss) for loss in self.losses]
        return DistillationProperties(
            each[0].family,
            any(own.needs_labels for own in each),
            all(own.additive for own in each),
            max(own.fewest_classes for own in each),
        )

    def __call__(
        self,
        student_logits: Tensor,
        target_log_probs: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Tensor:
        """(N,), or a scalar where none of them is per row."""
        total: Any = 0.0
        for loss, weight in zip(self.losses, self.weights, strict=True):
            total = total + weight * call_loss(loss, student_logits, target_log_probs, temperature, labels)
        return total


def call_loss(
    loss: Callable[..., Tensor],
    student_logits: Tensor,
    target: Tensor,
    temperature: float,
    labels: Tensor | None,
) -> Tensor:
    """What a distillation loss says; labels reach those that need them.

    Args:
        loss: The loss.
        student_logits: (N, C).
        target: (N, C), as the fusion makes it.
        temperature: T > 0.
        labels: (N,) or (N, C); None: there are none.
    """
    if distillation_properties(loss).needs_labels:
        return loss(student_logits, target, temperature=temperature, labels=labels)
    return loss(student_logits, target, temperature=temperature)


def build_distillation_loss(spec: Any, table: Mapping[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The distillation loss that a user writes.

    Args:
        spec: Whatever `build` takes, or a list of it, where each may be a mapping with a ``weight`` too.
        table: The built-in losses by name.

    Raises:
        ConfigurationError: Unknown names, options or weights that do not fit.

    Example:
        >>> from hf_distill.losses import LOSSES
        >>> build_distillation_loss([{"use": "forward_kl", "weight": 2}, "jsd"], LOSSES).weights
        (2.0, 1.0)
    """
    if not isinstance(spec, Sequence) or isinstance(spec, str):
        return build(spec, table, kind="distillation loss")
    losses, weights = [], []
    for entry in spec:
        options = dict(entry) if isinstance(entry, Mapping) else entry
        weight = options.pop("weight", 1.0) if isinstance(options, dict) else 1.0
        losses.append(build(options, table, kind="distillation loss"))
        weights.append(
            float(weight) if isinstance(weight, (int, float)) and not isinstance(weight, bool) else weight
        )
    return WeightedLosses(tuple(losses), tuple(weights))


def refuse_few_outputs(loss: Callable[..., Tensor], outputs: int) -> None:
    """Refuse a loss that says nothing of so few classes.

    Args:
        loss: The distillation loss.
        outputs: C.

    Raises:
        ConfigurationError: It needs more.
    """
    fewest = distillation_properties(loss).fewest_classes
    if outputs < fewest:
        inner = loss.func if isinstance(loss, functools.partial) else loss
        name = getattr(inner, "__name__", type(inner).__name__)
        raise ConfigurationError(
            f"The distillation loss {name} needs at least {fewest} classes, but there are {outputs}: with two it has no gradient, so "
            "the student would learn nothing from the teachers; take forward_kl without standardize."
        )
