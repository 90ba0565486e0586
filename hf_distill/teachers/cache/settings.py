"""How a cache computes and stores what teachers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ...errors import ConfigurationError
from ..precision import AUTO, refuse_other_precision, settled
from ..states import Wanted

STORED_AS = {"float16": np.float16, "float32": np.float32}
"""The types of stored numbers."""


@dataclass(frozen=True)
class CacheSettings:
    """How outputs are computed and stored.

    Args:
        dtype: ``float16`` or ``float32``, of what is stored. float16 keeps logits to 2⁻¹¹ of their size, which changes
            a divergence, with its factor T², by at most (max|z| / 2048)² / 2 where student and target agree.
        precision: Autocast of the teachers' forward: None (their own type), ``bf16``, ``fp16``, or ``auto``: bf16 where the
            device has it, which is found out before the teachers' keys are made.
        shard_rows: Rows per shard: what a killed build loses at most, per process.
        token_budget: Tokens per forward, padding included; None: 1024 on a CPU, whose caches larger batches overflow, on a
            GPU what half of its free memory holds, at most 65,536.
        hidden_states: Layers, as indices into the model's ``hidden_states`` (0: embeddings, -1: the last layer), whose
            mean over a row's tokens is stored beside the logits; a trainer with hidden losses adds those it needs.
        first_states: Layers of which the state of the first token is stored.
        limit_bytes: What one build may add to the folder; it is estimated before the first row is computed. None: no
            limit.

    Raises:
        ConfigurationError: A value that is none of these.
    """

    dtype: str = "float16"
    precision: str | None = None
    shard_rows: int = 4096
    token_budget: int | None = None
    hidden_states: tuple[int, ...] = ()
    first_states: tuple[int, ...] = ()
    limit_bytes: int | None = 20 * 10**9

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_states", tuple(self.hidden_states))
        object.__setattr__(self, "first_states", tuple(self.first_states))
        if self.dtype not in STORED_AS:
            raise ConfigurationError(
                f"The cache's dtype is {self.dtype!r}: choose one of {', '.join(STORED_AS)}."
            )
        refuse_other_precision(self.precision, "The cache's precision")
        budget = {} if self.token_budget is None else {"token_budget": self.token_budget}
        for name, value in {"shard_rows": self.shard_rows, **budget}.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"The cache's {name} is {value!r}: it is a whole number from 1.")

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What is stored beside the logits, in its order."""
        return (
            *(Wanted(layer, "mean") for layer in self.hidden_states),
            *(Wanted(layer, "first") for layer in self.first_states),
        )

    def on(self, device: torch.device | None) -> CacheSettings:
        """These settings on a device, where nothing is left to it.

        Args:
            device: Where teachers run; None: the process's own.

        Example:
            >>> CacheSettings(precision="auto").on(torch.device("cpu")).precision is None
            True
        """
        if self.precision != AUTO:  # else this would not need to know a device
            return self
        return replace(self, precision=settled(self.precision, device or PartialState().device))

    def also(self, wanted: Sequence[Wanted]) -> CacheSettings:
        """These settings, and more that is stored.

        Example:
            >>> CacheSettings().also([Wanted(2, "mean")]).hidden_states
            (2,)
        """
        means, firsts = (
            tuple(dict.fromkeys([*own, *(want.layer for want in wanted if want.units == units)]))
            for own, units in ((self.hidden_states, "mean"), (self.first_states, "first"))
        )
        return replace(self, hidden_states=means, first_states=firsts)

    @property
    def key_facts(self) -> list[Any]:
        """What decides the stored numbers."""
        facts = [self.dtype, self.precision, self.hidden_states]
        return [*facts, self.first_states] if self.first_states else facts
