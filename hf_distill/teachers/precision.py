"""In which type a teacher's forward computes."""

from __future__ import annotations

import torch

from ..errors import ConfigurationError

AUTOCAST = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions of the teachers' forward."""

AUTO = "auto"
"""bf16 where the device has it; what that means is settled before anything is computed or stored."""


def refuse_other_precision(precision: object, what: str) -> None:
    """Refuse what is no precision.

    Args:
        precision: What a user gave.
        what: Whose it is, for messages: "The cache's precision".

    Raises:
        ConfigurationError: It is none.
    """
    if precision not in (*AUTOCAST, AUTO):
        raise ConfigurationError(f"{what} is {precision!r}: choose None, 'bf16', 'fp16' or 'auto'.")


def settled(precision: str | None, device: torch.device) -> str | None:
    """A precision on a device, where nothing is left to it: of ``auto`` bf16, or None where a device has no such units.

    Processors take bf16 too, most of them more slowly than float32.

    Args:
        precision: As a user gave it.
        device: Where teachers run.

    Example:
        >>> settled("auto", torch.device("cpu")) is None, settled("fp16", torch.device("cpu"))
        (True, 'fp16')
    """
    if precision != AUTO:
        return precision
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_it else None


def autocast(precision: str | None, device: torch.device) -> torch.autocast:
    """The context of a forward in a precision; None: in the models' own type.

    Args:
        precision: Settled.
        device: Where it runs.
    """
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
