"""What a user writes of a hidden loss."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import ConfigurationError
from ...lookup import build, suggest
from ...losses import HIDDEN_LOSSES
from ...losses.properties import LossProperties, properties_of
from ...teachers.states import UNITS
from .layer_map import LAYER_MAPS

PROJECTIONS = ("each", "shared", "none")


@dataclass(frozen=True)
class HiddenLoss:
    """A loss between layers of the student and layers of the teachers.

    It has one term per teacher, the mean over its pairs of layers, weighed by the fusion's fixed weights (equal ones where
    it has none) among the teachers that it is for.

    Args:
        loss: A name of `HIDDEN_LOSSES`, a path ``"pkg.mod:function"``, or ``f(student, teacher, mask) -> (N,)`` on states
            (N, L, D) with a mask (N, L), or on pooled ones (N, D) with None.
        layers: ``"last"``, ``"uniform"``, ``"skip"`` or pairs of a student's and a teacher's layer, see `LayerMap`.
        units: What a state stands for: ``"tokens"`` where student and teacher read the same tokens, ``"words"`` matched by
            the characters of the text, the ``"mean"`` of a row, its ``"first"`` token. ``"auto"`` is the first of tokens,
            words and mean that is possible; mean for losses that compare rows, and tokens for relations.
        weight: Of the loss, beside ``task_weight`` and ``distill_weight``.
        projection: ``"each"``: one learned linear map from the student's width per teacher and pair of layers;
            ``"shared"``: one per pair of layers, onto one target fused of all teachers (`hidden_mse` and `hidden_cosine`, of
            teachers of one width); ``"none"``: where the widths agree. Losses that compare relations need none.
        relation_heads: Into how many heads `minilm_relations` splits queries, keys and values.
        teachers: Names of the teachers that it is for; None: all.

    Raises:
        ConfigurationError: A value that is none of these, or that the loss cannot have.

    Reference:
        Jiao et al.: TinyBERT, 2019, arXiv:1909.10351 (states, projections); Sun et al.: Patient Knowledge Distillation, 2019,
        arXiv:1908.09355 (layer maps).

    Example:
        >>> HiddenLoss("hidden_mse", layers=[[1, 2]], units="mean").layers
        ((1, 2),)
    """

    loss: str | Callable[..., Tensor] = "hidden_mse"
    layers: str | Sequence[Sequence[int]] = "last"
    units: str = "auto"
    weight: float = 1.0
    projection: str = "each"
    relation_heads: int = 12
    teachers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str):
            object.__setattr__(
                self,
                "layers",
                tuple(tuple(pair) if isinstance(pair, (list, tuple)) else pair for pair in self.layers),
            )
        elif self.layers not in LAYER_MAPS:
            raise ConfigurationError(
                f"{self}: there is no layer map {self.layers!r}{suggest(self.layers, LAYER_MAPS)}; choose one of "
                f"{', '.join(LAYER_MAPS)}, or give pairs of layers."
            )
        if self.teachers is not None:
            names = (self.teachers,) if isinstance(self.teachers, str) else tuple(self.teachers)
            object.__setattr__(self, "teachers", names)
        for name, choices in (("units", ("auto", *UNITS)), ("projection", PROJECTIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigurationError(
                    f"{self}: {name} is {value!r}{suggest(value, choices)}; choose one of {', '.join(choices)}."
                )
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight) or self.weight <= 0:
            raise ConfigurationError(f"{self}: weight is {self.weight!r}, but it is a number above 0.")
        if type(self.relation_heads) is not int or self.relation_heads < 1:
            raise ConfigurationError(
                f"{self}: relation_heads is {self.relation_heads!r}, but it counts heads: from 1."
            )
        if not callable(self.function):
            raise ConfigurationError(f"{self}: {self.loss!r} is no function.")
        compares = self.properties.compares
        if compares == "rows" and self.units not in ("auto", "mean", "first"):
            raise ConfigurationError(
                f"{self}: it compares rows by one state each, so units is mean or first, found {self.units!r}."
            )
        if compares == "relations" and self.units not in ("auto", "tokens"):
            raise ConfigurationError(f"{self}: it compares tokens, so units is auto, found {self.units!r}.")
        if self.projection == "shared" and self.properties.one_target is None:
            exact = [
                name for name, known in HIDDEN_LOSSES.items() if properties_of(known).one_target is not None
            ]
            raise ConfigurationError(
                f"{self}: one target for all teachers is exact for {' and '.join(exact)} alone, so only they can "
                'have projection="shared"; choose "each".'
            )

    @functools.cached_property
    def function(self) -> Callable[..., Tensor]:
        """The loss itself."""
        return build(self.loss, HIDDEN_LOSSES, kind="hidden loss")

    @property
    def name(self) -> str:
        """What logs and messages call it."""
        known = (name for name, function in HIDDEN_LOSSES.items() if function is self.function)
        return next(known, getattr(self.function, "__name__", type(self.function).__name__))

    @property
    def properties(self) -> LossProperties:
        """What the loss says of itself."""
        return properties_of(self.function)

    @property
    def projects(self) -> bool:
        """Whether the student's states are brought into the teacher's space first."""
        return self.projection != "none" and self.properties.compares == "states"

    def __str__(self) -> str:
        return f"Hidden loss {self.name if callable(self.loss) else self.loss!r}"


def build_hidden_losses(given: Any) -> tuple[HiddenLoss, ...]:
    """Hidden losses as a user writes them: objects, names, or mappings of the fields of `HiddenLoss`.

    Raises:
        ConfigurationError: Something else, or fields that `HiddenLoss` has not.

    Example:
        >>> [loss.layers for loss in build_hidden_losses(["hidden_mse", {"loss": "linear_cka", "layers": "uniform"}])]
        ['last', 'uniform']
    """
    if isinstance(given, (str, Mapping, HiddenLoss)) or not isinstance(given, Sequence):
        raise ConfigurationError(f"hidden_losses takes a list, also for a single loss: found {given!r}.")
    losses = []
    fields = [field.name for field in dataclasses.fields(HiddenLoss)]
    for spec in given:
        if isinstance(spec, Mapping):
            for key in spec:
                if key not in fields:
                    raise ConfigurationError(
                        f"hidden_losses: a loss has no field {key!r}{suggest(key, fields)}; it has {', '.join(fields)}."
                    )
            losses.append(HiddenLoss(**spec))
        elif isinstance(spec, HiddenLoss):
            losses.append(spec)
        elif isinstance(spec, str) or inspect.isroutine(spec):
            losses.append(HiddenLoss(spec))
        else:
            raise ConfigurationError(
                f"hidden_losses holds {spec!r}: give HiddenLoss(…), a name or a mapping of its fields."
            )
    return tuple(losses)
