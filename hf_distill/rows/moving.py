"""Batches on their way to an accelerator: pinned and copied beside the work that goes on there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Moved(NamedTuple):
    """A batch that is on its way.

    Attributes:
        batch: Mappings of tensors, which are on the device or will be.
        arrived: Set on the device once they are; None where they are already.
    """

    batch: dict[str, Any]
    arrived: Any = None


class Mover:
    """Copies batches to a CUDA device on a stream of its own, so that copies wait for no work and no work for them.

    Elsewhere a batch stays where it is, and who uses it moves it.

    Args:
        device: Where batches are used; None: they stay.
        pin: Whether they are brought into pinned memory first, from which alone a copy goes on beside other work.
    """

    def __init__(self, device: torch.device | None, *, pin: bool = True) -> None:
        self.device = device if device is not None and device.type == "cuda" else None
        self._pin, self._stream = pin, None

    def send(self, batch: dict[str, Any]) -> Moved:
        """Begin to copy; in whichever thread."""
        if self.device is None:
            return Moved(batch)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            there = _each(batch, self._copy)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Moved(there, arrived)

    def _copy(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self._pin else tensor).to(self.device, non_blocking=True)

    def receive(self, moved: Moved) -> dict[str, Any]:
        """The batch, for work on the current stream, which waits for the copy on the device and not here."""
        if moved.arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(moved.arrived)

            def used(tensor: Tensor) -> Tensor:
                tensor.record_stream(
                    stream
                )  # else its memory is free for the next copy as soon as nobody names it
                return tensor

            _each(moved.batch, used)
        return moved.batch


def _each(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    return {name: _each(part, change) for name, part in batch.items()} if isinstance(batch, dict) else batch
