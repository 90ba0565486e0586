"""All teachers of a run over one batch: each on its own view, aligned by label names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .alignment import LabelMap, TeacherBatch, align, check_coverage
from .errors import ConfigurationError, DataError
from .fusion import Fusion
from .teachers import Teacher, TeacherSource
from .views import VIEWS, View


class TeacherPool:
    """All teachers of a run, over one batch: forward of each on its own view, aligned by label names.

    Args:
        teachers: The teachers; names must differ.
        student_labels: The student's C label names.
        fusion: The fusion their outputs go to; its weights, if it has any, say which teachers are heard at all.
        placement: Where live models wait: ``resident`` on the device; ``swap`` in CPU memory, one at a time on the
            device; ``auto`` chooses by an estimate of their bytes against what is free, and prints it.

    Raises:
        DataError: Labels that cannot be matched, or names used twice.
        ConfigurationError: The fusion has not one weight per teacher.

    Example:
        >>> pool = TeacherPool([teacher], ("positive", "negative"))
        >>> pool.label_maps[0].columns
        (1, 0)
    """

    def __init__(
        self,
        teachers: Sequence[TeacherSource],
        student_labels: Sequence[str],
        fusion: Fusion | None = None,
        *,
        placement: str = "resident",
    ) -> None:
        if placement not in ("resident", "swap", "auto"):
            raise ConfigurationError(f"Teacher placement is {placement!r}: choose resident, swap or auto.")
        self.placement = placement
        self.teachers = list(teachers)
        names = [teacher.name for teacher in self.teachers]
        for name in names:
            if names.count(name) > 1:
                raise DataError(
                    f"{names.count(name)} teachers are called {name!r}; reports could not tell them apart: give each "
                    f'its own name, e.g. Teacher.from_pretrained(…, name="{name}-2").'
                )
        self.label_maps = [
            LabelMap.match(t.label_names, student_labels, teacher=t.name) for t in self.teachers
        ]
        weights = getattr(fusion, "weights", None)
        if weights is not None and len(weights) != len(names):
            raise ConfigurationError(
                f"The fusion has {len(weights)} weights for {len(names)} teachers ({', '.join(names)}): "
                "give one per teacher, in their order."
            )
        heard = [m for k, m in enumerate(self.label_maps) if weights is None or weights[k] > 0]
        if heard:
            check_coverage(heard, weights)
        # (C,) True where a teacher that is heard knows the class; of other classes nothing can be learnt here.
        self.covered = tuple(any(m.columns[c] is not None for m in heard) for c in range(len(student_labels)))
        self._device: torch.device | None = None
        self.views: dict[str, View] = {}
        self._view_of: dict[str, str] = {}
        first: dict[str, str] = {}
        for teacher in self.teachers:
            if teacher.view is not None:
                name = first.setdefault(teacher.view.key, teacher.name)
                self._view_of[teacher.name] = name
                self.views.setdefault(name, teacher.view)

    def __call__(self, inputs: Mapping[str, Tensor | Mapping[str, Mapping[str, Tensor]]]) -> TeacherBatch:
        """Run every teacher and align.

        Args:
            inputs: A batch of `MultiTeacherCollator`.

        Returns:
            `TeacherBatch` with logits (K, N, C).
        """
        views = inputs[VIEWS]
        outputs = []
        for teacher in self.teachers:
            view = views[self._view_of[teacher.name]] if teacher.view is not None else {}
            with self._at_work(teacher):
                outputs.append(teacher(view, inputs["example_id"]))
        return align(outputs, self.label_maps)

    def to(self, device: torch.device) -> TeacherPool:
        """Say where teachers that are models run; a call that changes nothing costs nothing."""
        if device != self._device:
            self._device = device
            live = [teacher for teacher in self.teachers if isinstance(teacher, Teacher)]
            if self.placement == "auto" and live:
                self.placement = _placement(sum(t.model.get_memory_footprint() for t in live), device)
            for teacher in live:
                teacher.to(torch.device("cpu") if self.placement == "swap" else device)
        return self

    @contextlib.contextmanager
    def _at_work(self, teacher: TeacherSource) -> Iterator[None]:
        if self.placement != "swap" or not isinstance(teacher, Teacher) or self._device is None:
            yield
            return
        teacher.to(self._device)
        try:
            yield
        finally:
            teacher.to(torch.device("cpu"))


def _placement(needed: int, device: torch.device) -> str:
    """Resident while the teachers leave half of the free device memory to the student and its activations."""
    if device.type != "cuda":
        return "resident"  # they would wait in the same memory
    free, _ = torch.cuda.mem_get_info(device)
    chosen = "resident" if needed <= free / 2 else "swap"
    print(f"Teachers take {needed / 1e9:.2f} GB of {free / 1e9:.2f} GB free on {device}: placement {chosen}.")
    return chosen
