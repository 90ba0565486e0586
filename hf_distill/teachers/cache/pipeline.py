"""From the texts of shards to their files: while one batch is on the device, what comes before and after it is done beside.

content -> what views keep of it, tokens (a thread, one shard ahead) -> batches in order of length (a thread, two ahead, copied to the device)
-> forward (who asks; nothing waits for the device) -> a whole shard -> its files (a thread)

Shapes: n rows of a shard, B rows of a batch, L tokens.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ...errors import DataError
from ...rows.ahead import SideThread, made_ahead
from ...rows.columns import Ragged
from ...rows.moving import Moved, Mover
from ..precision import autocast
from ..teacher import Teacher
from .settings import STORED_AS, CacheSettings
from .store import Store, shard_name
from .tokens import KeptTokens

_TOKENS_ON_CPU = 1024  # more overflow the processor's caches
_ELSEWHERE, _MOST = 8192, 65536


class Part(NamedTuple):
    """Rows that make a shard.

    Attributes:
        ids: (n,) int64.
        texts: Reads their content columns.
    """

    ids: np.ndarray
    texts: Callable[[], list[list[Any]]]


@dataclass(eq=False)
class _Shard:
    """A shard that is being computed, its lock held."""

    part: Part
    name: str
    held: contextlib.ExitStack
    tokens: dict[str, Ragged] = field(default_factory=dict)
    rows: list[np.ndarray] = field(default_factory=list)  # per forward, which of the shard
    outputs: list[dict[str, Tensor]] = field(default_factory=list)


class Built(NamedTuple):
    """What came of some parts.

    Attributes:
        computed: How many rows were computed here.
        postponed: The parts that another process is computing.
    """

    computed: int
    postponed: list[Part]


def compute_parts(
    parts: Iterable[Part],
    teacher: Teacher,
    settings: CacheSettings,
    store: Store,
    device: torch.device,
    *,
    tokens: KeptTokens | None,
    wait: bool,
    done: Callable[[int], Any],
) -> Built:
    """Run a teacher over the rows of shards and write them; shards that are there are passed over.

    Whatever ends it, shards that were computed whole are written, and no lock is held afterwards.

    Args:
        parts: The rows, shard by shard.
        teacher: On the device.
        settings: Of the cache.
        store: Where the shards go.
        device: Where the teacher runs.
        tokens: Those that another teacher may have left; None: nobody shares them.
        wait: Whether to wait for a shard that another process computes; only where no other shard is held meanwhile, or
            two processes might wait for each other, so with a single part.
        done: Is told how many rows more are there.

    Raises:
        DataError: A row cannot be read, or outputs are not finite.
        StoreError: A shard cannot be written.
    """
    budget = settings.token_budget or token_budget(teacher.model, device)
    postponed: list[Part] = []
    taken: dict[str, _Shard] = {}
    writer, writes = SideThread("writes shards"), deque[tuple[_Shard, Future[None]]]()
    mover, computed = Mover(device), 0

    def claimed() -> Iterator[Callable[[], _Shard]]:
        for part in parts:
            shard = _Shard(part, shard_name(part.ids), contextlib.ExitStack())
            taken[shard.name] = shard
            if shard.held.enter_context(store.lock(shard.name, wait=wait)) and not store.has(shard.name):
                yield functools.partial(_tokenized, shard, teacher, tokens)
                continue
            if store.has(shard.name):
                done(len(part.ids))
            else:
                postponed.append(part)
            taken.pop(shard.name).held.close()

    def batches() -> Iterator[Callable[[], tuple[_Shard, np.ndarray, bool, Moved]]]:
        with contextlib.closing(made_ahead(claimed(), 1, "tokenizes")) as shards:
            for shard in shards:
                sizes = teacher.view.sizes(shard.tokens, len(shard.part.ids))
                cut = list(by_length(sizes, budget))
                for number, rows in enumerate(cut, 1):
                    yield functools.partial(_collated, shard, rows, number == len(cut), teacher, mover)

    def settle(most: int) -> int:
        rows = 0
        while writes and (len(writes) > most or writes[0][1].done()):
            shard, write = writes.popleft()
            write.result()
            taken.pop(shard.name)
            done(len(shard.part.ids))
            rows += len(shard.part.ids)
        return rows

    try:
        with contextlib.closing(made_ahead(batches(), 2, "collates")) as made:
            for shard, rows, last, moved in made:
                shard.outputs.append(_forward(teacher, settings, mover.receive(moved), device))
                shard.rows.append(rows)
                if last:
                    write = functools.partial(_write, shard, teacher, settings, store)
                    writes.append((shard, writer.submit(write)))
                computed += settle(1)
        computed += settle(0)
    finally:
        writer.close(finish=True)  # shards that are whole are kept, whatever has happened
        for shard in taken.values():
            shard.held.close()
    return Built(computed, postponed)


def _tokenized(shard: _Shard, teacher: Teacher, kept: KeptTokens | None) -> _Shard:
    view, texts = teacher.view, shard.part.texts()
    found = kept.read(view.key, shard.name) if kept else None
    if found is None:
        found = {name: Ragged.of(values) for name, values in view.encode(texts).items()}
        if kept:
            kept.write(view.key, shard.name, found)
    else:  # of another teacher, whose model may take rows that this one's does not
        view.refuse_rows(texts, found)
    shard.tokens = found
    return shard


def _collated(
    shard: _Shard, rows: np.ndarray, last: bool, teacher: Teacher, mover: Mover
) -> tuple[_Shard, np.ndarray, bool, Moved]:
    encoded = {name: column.take(rows) for name, column in shard.tokens.items()}
    inputs = teacher.view.collate(encoded, torch.from_numpy(shard.part.ids[rows]))
    return shard, rows, last, mover.send(inputs)


def _forward(
    teacher: Teacher, settings: CacheSettings, inputs: dict[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """The outputs of a batch, where the teacher is: reading them would wait for it."""
    with autocast(settings.precision, device):
        outputs = teacher.run({name: values.to(device) for name, values in inputs.items()}, settings.wanted)
    found = {"logits": outputs.logits}
    if settings.wanted:
        found["hidden_states"] = torch.stack([outputs.hidden_states[want] for want in settings.wanted], 1)
    return found


def _write(shard: _Shard, teacher: Teacher, settings: CacheSettings, store: Store) -> None:
    """The fields (n, …) of a whole shard, brought to the processor in one piece, checked and written; its lock ends."""
    with shard.held:
        order, ids = np.concatenate(shard.rows), shard.part.ids
        fields: dict[str, np.ndarray] = {}
        for name in shard.outputs[0]:
            values = torch.cat([batch[name] for batch in shard.outputs]).float().cpu().numpy()
            fields[name] = np.empty(values.shape, dtype=STORED_AS[settings.dtype])
            with np.errstate(over="ignore"):  # too large for the type becomes infinite: refused below
                fields[name][order] = values
        shard.outputs.clear()
        finite = np.all([np.isfinite(f).reshape(len(ids), -1).all(1) for f in fields.values()], axis=0)
        if not finite.all():
            row = [column[int(np.flatnonzero(~finite)[0])] for column in shard.part.texts()]
            first = teacher.task.content.told(row)[0]
            raise DataError(
                f"Teacher {teacher.name!r} gives outputs that are not finite in {settings.dtype} for "
                f"{len(ids) - finite.sum()} row(s), e.g. {first[:80]!r}: they are not stored. Store float32 if they are "
                "large, lower the precision's autocast, or drop the teacher."
            )
        store.write(ids, fields)


def by_length(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Indices of rows, longest first, in batches whose padded size keeps within the budget.

    Args:
        lengths: (n,) tokens of each row.
        token_budget: Tokens per forward, padding included.

    Example:
        >>> [batch.tolist() for batch in by_length(np.array([2, 5, 3]), 6)]
        [[1], [2, 0]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, token_budget // max(int(lengths[order[start]]), 1))
        yield order[start : start + count]
        start += count


def token_budget(model: PreTrainedModel, device: torch.device) -> int:
    """Tokens per forward where nobody says: what half of the device's free memory holds, within limits.

    Args:
        model: Whose activations it has to hold.
        device: Where it runs.

    Example:
        >>> token_budget(bert, torch.device("cpu"))
        1024
    """
    if device.type == "cpu":
        return _TOKENS_ON_CPU
    if device.type != "cuda":
        return _ELSEWHERE
    free, _ = torch.cuda.mem_get_info(device)
    return budget_within(free // 2, model.config)


def budget_within(memory: int, config: PretrainedConfig) -> int:
    """Tokens whose activations fit, without a graph: one layer's at a time, in float32, attention scores included.

    At most 65,536: beyond that no device gets faster.

    Args:
        memory: In bytes.
        config: The model's.

    Example:
        >>> budget_within(10**9, bert.config), budget_within(10**6, bert.config)
        (65536, 411)
    """
    width = getattr(config, "hidden_size", None) or 1024
    inner = getattr(config, "intermediate_size", None) or 4 * width
    heads = getattr(config, "num_attention_heads", None) or 16
    longest = min(getattr(config, "max_position_embeddings", None) or 512, 512)
    of_a_token = 4 * (8 * width + 2 * inner + 2 * heads * longest)
    return int(max(1, min(_MOST, memory // of_a_token)))
