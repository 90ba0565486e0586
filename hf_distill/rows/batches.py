"""Batches that are ready when they are asked for: collated, pinned and copied beside the step that goes on.

The order of rows, and every draw of a random number, stay with the thread that trains: there the sampler is asked, some
batches early, and a side thread is told what comes. So the same rows come in the same order, in each process and after a
resume, and what is skipped then is never collated.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import BatchSampler

from .ahead import SideThread
from .collator import MultiTeacherCollator
from .columns import Columns, IndexedRows
from .moving import Moved, Mover

_AHEAD = 2


class _Announced(list):
    """The numbers of a batch's rows; knows what is made of them, and which batch comes next."""

    made: Future[Moved] | None = None
    next: _Announced | None = None


class Announcing:
    """A batch sampler that says of each batch which ones come after it; in all else the sampler itself.

    Args:
        sampler: Gives the numbers of the rows, batch by batch.

    Example:
        >>> first, *_ = Announcing([[3, 1], [2, 0]])
        >>> first, first.next
        ([3, 1], [2, 0])
    """

    def __init__(self, sampler: Iterable[Sequence[int]]) -> None:
        self.inner = sampler

    def __iter__(self) -> Iterator[list[int]]:
        drawn = deque[_Announced]()
        for indices in self.inner:
            batch = _Announced(indices)
            if drawn:
                drawn[-1].next = batch
            drawn.append(batch)
            if len(drawn) > _AHEAD:
                yield drawn.popleft()
        while drawn:
            yield drawn.popleft()

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet: while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)


class RowsAhead(torch.utils.data.Dataset):
    """Rows whose loader, asked for the batch of an `Announcing` sampler, gets one that a side thread has made.

    Args:
        indexed: The rows.
        collator: Makes batches of them.
        mover: Brings batches to the device.
    """

    def __init__(self, indexed: IndexedRows, collator: MultiTeacherCollator, mover: Mover) -> None:
        self.rows, self._indexed, self._collator, self._mover = indexed.rows, indexed, collator, mover
        self._side = SideThread("makes batches")

    def __len__(self) -> int:
        return len(self._indexed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._indexed[index]

    def __getitems__(self, indices: Sequence[int]) -> Future[Moved] | Columns:
        """What the loader asks for: a batch that is being made, and from now on also those after it."""
        if not isinstance(indices, _Announced):
            return self._indexed.__getitems__(indices)
        batch: _Announced | None = indices
        for _ in range(_AHEAD + 1):
            if batch is None:
                break
            if batch.made is None:
                batch.made = self._side.submit(functools.partial(self._make, batch))
            batch = batch.next
        return indices.made

    def _make(self, indices: Sequence[int]) -> Moved:
        return self._mover.send(self._collator(self._indexed.__getitems__(indices)))

    def collate(self, made: Future[Moved] | Columns) -> dict[str, Any]:
        """What the loader does with it: wait for the batch, or raise what went wrong."""
        return self._mover.receive(made.result()) if isinstance(made, Future) else self._collator(made)


def ahead(loader: Any) -> Any:
    """A loader of the same batches in the same order that are made ahead; the loader itself where that cannot be exact.

    That is: where loader's workers make them already; streams, and a data collator of the user's own, which may draw
    random numbers; loaders of other kinds than one process's part of stored rows.

    Args:
        loader: Prepared by `accelerate`, whose rules for several processes, devices and the end of an epoch stay.
    """
    ours = (
        type(loader) is DataLoaderShard
        and not loader.num_workers
        and not loader.use_stateful_dataloader
        and isinstance(loader.dataset, IndexedRows)
        and isinstance(loader.collate_fn, MultiTeacherCollator)
        and loader.collate_fn.draws_nothing
        and loader.batch_sampler is not None
        and not isinstance(loader.sampler, BatchSampler)
    )
    if not ours:
        return loader
    mover = Mover(loader.device, pin=loader.pin_memory)
    rows = RowsAhead(loader.dataset, loader.collate_fn, mover)
    return DataLoaderShard(
        rows,
        device=loader.device,
        rng_types=loader.rng_types,
        synchronized_generator=loader.synchronized_generator,
        skip_batches=loader.skip_batches,
        iteration=loader.iteration,
        _drop_last=loader._drop_last,
        _non_blocking=loader._non_blocking,
        batch_sampler=Announcing(loader.batch_sampler),
        collate_fn=rows.collate,
        generator=loader.generator,
        pin_memory=loader.pin_memory and mover.device is None,
    )
