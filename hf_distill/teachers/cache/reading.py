"""A teacher whose outputs were computed before: read back by the rows' content, where the batch is collated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigurationError
from ...fusion.alignment import TeacherOutputs
from ...rows.columns import Columns
from ...rows.views import View
from ...tasks.task import Task
from ..states import Wanted
from .store import RowReader, Store


@dataclass(eq=False)
class CachedView(View):
    """A view whose tensors are a teacher's stored outputs, read by the rows' ids where the batch is collated.

    Args:
        folder: Of the teacher's store.
        key: The teacher's `teacher_key`.
        what: The teacher, for messages.
    """

    folder: Path
    key: str
    what: str
    _reader: RowReader | None = None

    def encode(self, texts: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Nothing: stored outputs need no inputs."""
        return {}

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """The stored outputs of B rows: ``logits`` (B, Ck), and what else was stored, in the storage type.

        Raises:
            CorruptStateError: A row was never computed.
        """
        return {
            name: torch.from_numpy(values) for name, values in self.reader.read(example_ids.numpy()).items()
        }

    def augmented(self, augment: Any) -> View:
        """Refused.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"{self.what}: its outputs are read from a cache, which has those of the rows as they are, but with augment each epoch "
            "sees other ones: let teachers run live (no cache_dir), or leave augment out."
        )

    def refuse_unknown(self, example_ids: np.ndarray) -> None:
        """Refuse rows (N,) that were never computed before anything is trained on them."""
        missing = self.reader.missing(example_ids)
        if len(missing):
            self.reader.read(missing)

    @property
    def reader(self) -> RowReader:
        """The rows, opened and checked when first asked for."""
        if self._reader is None:
            self.open()
        return self._reader

    def open(self, reader: RowReader | None = None) -> None:
        """Read from what is there now: rows may have been added, also by other processes and trainers."""
        self._reader = reader or RowReader(Store(self.folder, self.key).shards(), self.what)

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker maps the files itself; pickled, the maps would be copied whole.
        return {**self.__dict__, "_reader": None}


@dataclass(eq=False)
class CachedTeacher:
    """A teacher whose outputs were computed before: a `TeacherSource` like the live one.

    Attributes:
        name: As the live teacher's.
        label_names: The labels of the logits.
        view: Reads the outputs.
        num_parameters: Of the model that made them.
        source: Where it was loaded from.
        revision: The commit, if it came from the Hub.
        stored: What is stored below the logits, in its order.
        layers: How many layers the model has; None where the cache was built before they were noted.
        width: The size of its states.
        said_labels: As the live teacher's.
        place: Where a recipe names it, for messages.
        task: What it answers; None: what the student learns.
        convert: As the live teacher's.
    """

    name: str
    label_names: tuple[str, ...]
    view: CachedView
    num_parameters: int
    source: str
    revision: str | None
    stored: tuple[Wanted, ...] = ()
    layers: int | None = None
    width: int | None = None
    said_labels: frozenset[str] = frozenset()
    place: str | None = None
    task: Task | None = None
    convert: Mapping[str, Any] | None = None

    def __call__(self, view: Mapping[str, Tensor], example_id: Tensor) -> TeacherOutputs:
        """The stored outputs; see `TeacherSource`."""
        return self.run(view, self.stored)

    def run(
        self, view: Mapping[str, Tensor], wanted: Sequence[Wanted] = (), words: int = 0
    ) -> TeacherOutputs:
        """The stored outputs; see `Teacher.run`."""
        return TeacherOutputs(
            view["logits"], {want: view["hidden_states"][:, self.stored.index(want)] for want in wanted}
        )
