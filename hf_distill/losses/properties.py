"""What a loss says of itself, beside its definition; whoever runs it asks it, and knows no loss by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


class OneTarget(NamedTuple):
    """How several teachers become one target, so that the loss against it is the weighted mean of theirs.

    Attributes:
        of: What is averaged, ``of(states)`` of each teacher; None: the states.
        loss: ``loss(student, mean, mask)``, the weighted mean of the losses up to a constant; None: the loss itself.
    """

    of: Callable[[Tensor], Tensor] | None = None
    loss: Callable[..., Tensor] | None = None


class LossProperties(NamedTuple):
    """What a hidden loss compares.

    Attributes:
        compares: ``"states"``: position by position, (N,), a sum over rows; ``"rows"``: pooled states of a batch with each
            other, one number that is not additive over micro-batches; ``"relations"``: queries, keys and values of tokens
            that both sides share.
        one_target: Where one target can stand for all teachers; None: each has a term of its own.
    """

    compares: Literal["states", "rows", "relations"] = "states"
    one_target: OneTarget | None = None


def declare(**properties: Any) -> Callable[[Loss], Loss]:
    """Say of a loss what it compares; one that says nothing compares states.

    Args:
        properties: Of `LossProperties`.

    Example:
        >>> @declare(compares="rows")
        ... def spread(student, teacher):
        ...     return (student.std() - teacher.std()).square()
        >>> properties_of(spread).compares, properties_of(len).compares
        ('rows', 'states')
    """

    def declared(loss: Loss) -> Loss:
        loss.properties = LossProperties(**properties)  # type: ignore[attr-defined]
        return loss

    return declared


def properties_of(loss: Callable[..., Tensor]) -> LossProperties:
    """What a loss, or the loss inside a `functools.partial`, said of itself."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "properties", LossProperties())


class DistillationProperties(NamedTuple):
    """What a distillation loss compares, and what it needs for that.

    Attributes:
        family: How the predictions are distributed that it compares, as of tasks.
        needs_labels: Whether it is called with ``labels=`` too.
        additive: Whether it is a sum over units; else one number of the batch, which accumulation and processes change.
        fewest_classes: Below so many it says nothing.
    """

    family: str = "categorical"
    needs_labels: bool = False
    additive: bool = True
    fewest_classes: int = 2


def declare_distillation(**properties: Any) -> Callable[[Loss], Loss]:
    """Say of a distillation loss what it compares; one that says nothing compares distributions, unit by unit.

    Args:
        properties: Of `DistillationProperties`.

    Example:
        >>> @declare_distillation(needs_labels=True)
        ... def of_wrong_classes(student_logits, target_log_probs, *, temperature, labels): ...
        >>> distillation_properties(of_wrong_classes).needs_labels
        True
    """

    def declared(loss: Loss) -> Loss:
        loss.properties = DistillationProperties(**properties)  # type: ignore[attr-defined]
        return loss

    return declared


def distillation_properties(loss: Callable[..., Tensor]) -> DistillationProperties:
    """What a distillation loss, or the one inside a `functools.partial`, said of itself; standardised, it needs three classes.

    Example:
        >>> from hf_distill.losses import forward_kl
        >>> distillation_properties(functools.partial(forward_kl, standardize=True)).fewest_classes
        3
    """
    standardized = False
    while isinstance(loss, functools.partial):
        standardized = standardized or bool(loss.keywords.get("standardize"))
        loss = loss.func
    found = getattr(loss, "properties", None)
    found = found if isinstance(found, DistillationProperties) else DistillationProperties()
    return found._replace(fewest_classes=max(3, found.fewest_classes)) if standardized else found
