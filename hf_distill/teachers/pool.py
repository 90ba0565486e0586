"""All teachers of a run over one batch: each on its own view, aligned by label names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from ..errors import ConfigurationError, DataError, LabelNameError
from ..fusion import Fusion, FusionChoice
from ..fusion.alignment import OutputMap, TeacherBatch, TeacherOutputs, align, not_finite, refuse_misspelt
from ..fusion.shares import constant
from ..rows.views import VIEWS, WORD_MASK, View
from ..tasks import build_task, family_of, match_outputs
from ..tasks.task import Task
from .precision import AUTO, autocast, refuse_other_precision, settled
from .states import Wanted
from .teacher import Teacher, TeacherSource


class TeacherPool:
    """All teachers of a run, over one batch: forward of each on its own view, aligned by label names.

    Args:
        teachers: The teachers; names must differ.
        student_labels: The student's C label names.
        fusion: The fusion their outputs go to; its weights, if it has any, say which teachers are heard at all. Of a choice also the
            conversions that were fitted with it.
        placement: Where live models wait: ``resident`` on the device; ``swap`` in CPU memory, one at a time on the
            device; ``auto`` chooses by an estimate of their bytes against what is free, and prints it.
        precision: Of live models' forwards: None: that of whoever asks (the trainer's, the accelerator's); ``bf16``,
            ``fp16``; or ``auto``: bf16 where the device has it, and prints which.
        task: The teachers', which says how their outputs are matched with the student's.

    Attributes:
        label_maps: How the outputs of each become the student's.
        converted_on: Example ids of the rows whose labels a conversion has seen, (n,) int64.

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
        fusion: Fusion | FusionChoice | None = None,
        *,
        placement: str = "resident",
        precision: str | None = None,
        task: str | Task = "text-classification",
    ) -> None:
        refuse_other_precision(precision, "Teacher precision")
        self.precision, self.family = precision, family_of(task)
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
        self.label_maps = [_matched(teacher, student_labels, build_task(task)) for teacher in self.teachers]
        try:
            refuse_misspelt(self.label_maps, [getattr(t, "said_labels", ()) for t in self.teachers])
        except LabelNameError as error:
            meant = [t for t in self.teachers if str(error).startswith(f"Teacher {t.name!r}:")]
            raise error.placed(getattr((meant or self.teachers)[0], "place", None)) from None
        self.converted_on = torch.empty(0, dtype=torch.int64)
        self.listen(fusion)
        self._device: torch.device | None = None
        self._unknown_to: dict[tuple[int, ...], tuple[bool, ...] | None] = {}
        self.views: dict[str, View] = {}
        self.view_of: dict[str, str] = {}
        first: dict[str, str] = {}
        for teacher in self.teachers:
            if teacher.view is not None:
                name = first.setdefault(teacher.view.key, teacher.name)
                self.view_of[teacher.name] = name
                shared = self.views.get(name)  # made once, and for each of its readers' needs
                self.views[name] = teacher.view if shared is None else shared.also_for(teacher.view)

    @property
    def conversions(self) -> tuple[OutputMap, ...]:
        """How the outputs of teachers of another kind become the student's, of each such teacher."""
        return tuple(own for own in self.label_maps if not own.named)

    def settle(self, conversions: Sequence[OutputMap]) -> None:
        """Convert outputs as was found out before.

        Args:
            conversions: Of some teachers, which they name.

        Raises:
            ConfigurationError: They are of other outputs than these teachers and the student have.
        """
        for found in conversions:
            for k, own in enumerate(self.label_maps):
                if own.teacher != found.teacher:
                    continue
                theirs, ours = ((m.named, m.teacher_labels, m.student_labels) for m in (found, own))
                if theirs != ours:
                    raise ConfigurationError(
                        f"Teacher {own.teacher!r}: the stored conversion is from {list(found.teacher_labels)} to "
                        f"{list(found.student_labels)}, but here it is from {list(own.teacher_labels)} to {list(own.student_labels)}: "
                        "train again with these."
                    )
                self.label_maps[k] = found

    def listen(self, fusion: Fusion | FusionChoice | None) -> None:
        """Find out which teachers a fusion hears, and how their outputs are converted, where that was fitted with it.

        Args:
            fusion: The fusion their outputs go to; None: all are heard.

        Raises:
            ConfigurationError: It has not one weight per teacher.
            DataError: Groups of teachers share no class, and no weights say how the groups compare.
        """
        if isinstance(fusion, FusionChoice):
            self.settle(fusion.conversions)
            fusion = fusion.fusion
        weights, names = getattr(fusion, "weights", None), [teacher.name for teacher in self.teachers]
        if weights is not None and len(weights) != len(names):
            raise ConfigurationError(
                f"The fusion has {len(weights)} weights for {len(names)} teachers ({', '.join(names)}): "
                "give one per teacher, in their order."
            )
        self._heard = [k for k in range(len(names)) if weights is None or weights[k] != 0]
        self._select = getattr(fusion, "select", None)
        if self._heard:
            self.family.refuse_gaps([self.label_maps[k] for k in self._heard], weights)

    @property
    def draws(self) -> bool:
        """Whether the fusion draws the teachers of each training batch."""
        return self._select is not None

    def __call__(
        self,
        inputs: Mapping[str, Tensor | Mapping[str, Mapping[str, Tensor]]],
        wanted: Sequence[Sequence[Wanted]] = (),
    ) -> TeacherBatch:
        """Run every teacher and align.

        Args:
            inputs: A batch of `MultiTeacherCollator`.
            wanted: For each teacher which of its states are wanted; empty: none of any.

        Returns:
            `TeacherBatch` with logits (K, N, C).
        """
        return self._aligned(range(len(self.teachers)), inputs, self._heard, wanted=wanted)

    def outputs(
        self, inputs: Mapping[str, Tensor | Mapping[str, Mapping[str, Tensor]]]
    ) -> list[TeacherOutputs]:
        """What every teacher says in its own outputs, before anything is aligned.

        Args:
            inputs: A batch of `MultiTeacherCollator`.
        """
        return [self._outputs(k, inputs, True, ()) for k in range(len(self.teachers))]

    def heard(
        self,
        inputs: Mapping[str, Tensor | Mapping[str, Mapping[str, Tensor]]],
        generator: torch.Generator | None,
        wanted: Sequence[Sequence[Wanted]] = (),
    ) -> TeacherBatch:
        """Run only the teachers that the fusion hears, as training needs them, and align.

        Args:
            inputs: A batch of `MultiTeacherCollator`.
            generator: For a fusion that draws.
            wanted: As above.

        Returns:
            `TeacherBatch` with logits (k, N, C) of the drawn teachers where the fusion draws; else (K, N, C), NaN where
            a teacher has no weight.
        """
        if self._select is not None:
            drawn = self._select(generator)
            return self._aligned(drawn, inputs, drawn, wanted=wanted)
        return self._aligned(range(len(self.teachers)), inputs, self._heard, run=self._heard, wanted=wanted)

    def _aligned(
        self,
        which: Sequence[int],
        inputs: Mapping[str, Any],
        heard: Sequence[int],
        run: Sequence[int] | None = None,
        wanted: Sequence[Sequence[Wanted]] = (),
    ) -> TeacherBatch:
        outputs = {
            k: self._outputs(k, inputs, run is None or k in run, wanted[k] if wanted else ()) for k in which
        }
        batch = align(list(outputs.values()), [self.label_maps[k] for k in which])
        spoilt = not_finite(batch.logits, batch.mask)
        if len(heard) < len(outputs):  # those without a weight may say what they like
            spoilt = torch.stack([spoilt[i] for i, k in enumerate(outputs) if k in heard])
        batch = batch._replace(speakers=tuple(k for k in outputs if k in heard), spoilt=spoilt)
        if wanted:
            states = tuple(
                outputs[k].hidden_states if k in outputs else {} for k in range(len(self.teachers))
            )
            batch = batch._replace(hidden_states=states)
        unknown = self._unknown(tuple(heard))
        return (
            batch
            if unknown is None
            else batch._replace(unknown=constant(unknown, batch.logits.device, torch.bool))
        )

    def _unknown(self, heard: tuple[int, ...]) -> tuple[bool, ...] | None:
        """For each class whether none of some teachers has it; None where each is known. Found once: batches ask."""
        if heard not in self._unknown_to:
            has = zip(*(self.label_maps[k].has for k in heard), strict=True)
            unknown = tuple(not any(each) for each in has)
            self._unknown_to[heard] = unknown if any(unknown) else None
        return self._unknown_to[heard]

    def _outputs(
        self, k: int, inputs: Mapping[str, Any], run: bool, wanted: Sequence[Wanted]
    ) -> TeacherOutputs:
        teacher = self.teachers[k]
        if not run:
            rows = inputs["example_id"]
            return TeacherOutputs(
                torch.full((len(rows), len(teacher.label_names)), torch.nan, device=rows.device)
            )
        view = inputs[VIEWS][self.view_of[teacher.name]] if teacher.view is not None else {}
        with self._at_work(teacher), self._in_precision(teacher):
            if wanted:
                return teacher.run(view, wanted, inputs[WORD_MASK].shape[1] if WORD_MASK in inputs else 0)
            return teacher(view, inputs["example_id"])

    def to(self, device: torch.device) -> TeacherPool:
        """Say where teachers that are models run; a call that changes nothing costs nothing."""
        if device != self._device:
            self._device = device
            live = [teacher for teacher in self.teachers if isinstance(teacher, Teacher)]
            if self.placement == "auto" and live:
                self.placement = _placement(sum(t.model.get_memory_footprint() for t in live), device)
            if self.precision == AUTO:
                self.precision = settled(AUTO, device)
                if live and PartialState().is_main_process:
                    chosen = self.precision or "the precision of the training"
                    print(f"Live teachers run in {chosen} on {device} (precision: auto).")
            for teacher in live:
                teacher.to(torch.device("cpu") if self.placement == "swap" else device)
        return self

    def _in_precision(self, teacher: TeacherSource) -> contextlib.AbstractContextManager[Any]:
        if self.precision in (None, AUTO) or not isinstance(teacher, Teacher):
            return contextlib.nullcontext()
        return autocast(self.precision, next(teacher.model.parameters()).device)

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
    if PartialState().is_main_process:
        print(
            f"Teachers take {needed / 1e9:.2f} GB of {free / 1e9:.2f} GB free on {device}: placement {chosen}."
        )
    return chosen


def _matched(teacher: TeacherSource, student_labels: Sequence[str], task: Task) -> OutputMap:
    """How a teacher's outputs become the student's; what is wrong is said as the teacher was named."""
    try:
        return match_outputs(
            teacher.label_names,
            student_labels,
            teacher.name,
            teacher_task=own if hasattr(own := getattr(teacher, "task", None), "family") else task,
            task=task,
            convert=getattr(teacher, "convert", None),
        )
    except LabelNameError as error:
        raise error.placed(getattr(teacher, "place", None)) from None
