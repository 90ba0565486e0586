"""Numbers that are not finite never reach the student's weights, and nothing waits for the device to know that.

A micro-batch in which a teacher's outputs, the student's outputs or the loss are not finite has its loss made NaN, on the
device: so are then all gradients of its update, on every process that takes part, and the norm of the gradients, which
`Trainer` computes anyway, tells of all of it. What the norm tells masks the update (`found_inf`, as gradient scalers do)
and is read when the next update is due, or before anything is logged, evaluated or written. Where the optimizer takes no
mask, and where reading costs nothing, it is read before the update is made.

Shapes: K teachers that were heard, N prediction units, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..errors import DataError
from ..fusion.alignment import TeacherBatch
from ..fusion.alignment import labelled as with_label
from ..teachers.cache.reading import CachedTeacher
from ..teachers.teacher import TeacherSource
from .accounting import LossTerm


class Watched(NamedTuple):
    """What is kept of a micro-batch until it is known that all was finite; tensors of a few bytes per row.

    Attributes:
        example_ids: (B,) int64.
        input_ids: (B, L) the student's tokens, or None.
        speakers: The K teachers' numbers.
        teachers: (K, N) bool, True where a teacher's outputs are not finite.
        student: (N,) bool, True where the student's are not.
        terms: (N,) values of each term that has a weight, 0 where a unit does not count.
    """

    example_ids: Tensor
    input_ids: Tensor | None
    speakers: tuple[int, ...]
    teachers: Tensor | None
    student: Tensor
    terms: dict[str, Tensor]


class _Update(NamedTuple):
    step: int
    spoilt: Callable[[], bool]
    batches: list[Watched]


class Finding(NamedTuple):
    """What is not finite: the lower its order, the nearer to the cause."""

    order: int
    sentence: str


class FiniteUpdates:
    """Watches the numbers of a training: masks the updates that they would spoil, and says whose they were.

    Args:
        teachers: Those of the run.
        row: Says which row an example id is, in words; None where it cannot be found.
        text: The tokenizer's ``decode``.

    Attributes:
        updates: How many updates are settled.
        skipped: How many of them a gradient scaler skipped.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherSource],
        row: Callable[[int], str | None],
        text: Callable[..., str],
    ) -> None:
        self._teachers, self._row, self._text = teachers, row, text
        self.begin()
        self.begin_evaluation()

    def begin(self) -> None:
        """Forget what was watched: a training begins."""
        self.updates = self.skipped = 0
        self._batches: list[Watched] = []
        self._pending: _Update | None = None
        self._scaled = False

    def watch(
        self,
        loss: Tensor,
        terms: Mapping[str, LossTerm],
        logits: Tensor,
        teachers: TeacherBatch | None,
        inputs: Mapping[str, Any],
        training: bool,
    ) -> Tensor:
        """Look at a micro-batch, without waiting for it.

        Args:
            loss: Its loss.
            terms: What the loss consists of.
            logits: (N, C), the student's.
            teachers: What the teachers said; None where they were not asked.
            inputs: The batch.
            training: Whether an update comes of it.

        Returns:
            The loss, to the bit; in training NaN where anything is not finite, so that every gradient tells.
        """
        labelled = with_label(inputs["labels"])
        batch = Watched(
            inputs["example_id"],
            inputs.get("input_ids"),
            () if teachers is None else teachers.speakers,
            None if teachers is None else teachers.spoilt,
            ~logits.detach().isfinite().all(-1),
            {
                name: term.values.detach().expand(labelled.shape).masked_fill(~labelled, 0.0)
                if term.labelled
                else term.values.detach().expand(labelled.shape)
                for name, term in terms.items()
                if term.weight
            },
        )
        if not training:
            self._evaluated.append(batch._replace(input_ids=None, terms={}))
            return loss
        self._batches.append(batch)
        spoilt = batch.student.any() | ~loss.detach().isfinite()
        if batch.teachers is not None:
            spoilt = spoilt | batch.teachers.any()
        return loss * torch.where(spoilt, torch.nan, 1.0)  # times 1.0 changes no bit of the gradients

    def before_update(self, norm: Any, step: int, optimizer: Any, *, scaled: bool, model: nn.Module) -> None:
        """Mask the update that is due if it would be spoilt, or refuse it.

        Args:
            norm: Of the gradients, as `Trainer` computed it.
            step: The update's number, from 1.
            optimizer: Makes it.
            scaled: Whether a gradient scaler masks updates, by the same gradients.
            model: The student.

        Raises:
            DataError: The last update was spoilt, or this one where it cannot be masked.
        """
        self.settle(model)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        spoilt = ~torch.isfinite(norm if isinstance(norm, Tensor) else torch.tensor(norm or 0.0))
        self._pending = _Update(step, _sent(spoilt), self._batches)
        self._batches, self._scaled = [], scaled
        if scaled:
            return
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it
            optimizer = optimizer.optimizer
        if late(spoilt.device) and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = spoilt.float()
        else:
            self.settle(model)

    def settle(self, model: nn.Module) -> None:
        """Learn whether the last update was spoilt; waits for it alone, not for what was asked of the device since.

        Args:
            model: The student, whose weights may be the cause.

        Raises:
            DataError: It was; names teacher or term, rows and step.
        """
        update, self._pending = self._pending, None
        if update is None:
            return
        self.updates += 1
        if not update.spoilt():
            return
        # The norm is the same on all processes, so all come here: those that saw nothing themselves must say the same.
        own = self._find(update.batches, f"of step {update.step}", model)
        found = min(gather_object([own]), key=lambda finding: finding.order)
        if self._scaled and found.order > 0:
            # Too large a scale; the scaler has skipped the step and lowers it.
            self.skipped += 1
            return
        raise DataError(found.sentence + " That update was not made, and nothing of it is saved.")

    def end(self, model: nn.Module) -> None:
        """Settle the last update, and the training as a whole.

        Raises:
            DataError: As `settle`; a gradient scaler skipped every update.
        """
        self.settle(model)
        if self.updates and self.skipped == self.updates:
            raise DataError(
                f"All {self.updates} updates were skipped, since under fp16 none had finite gradients, so the student has "
                "learnt nothing: use bf16 or float32, or train for more steps, in which the scale can fall."
            )

    def refuse_answers(self, logits: Tensor, step: int) -> None:
        """Refuse a student that would be saved, and answers with what is not finite; every process calls it.

        Args:
            logits: (N, C), the student's, of rows it has just learnt from.
            step: After which update.

        Raises:
            DataError: It does.
        """
        if not all(gather_object([bool(logits.isfinite().all())])):
            raise DataError(
                f"The student's outputs are not finite after step {step}, of the rows that it has just learnt from, so it is "
                "not saved: lower learning_rate; checkpoints of before stay as they are."
            )

    def begin_evaluation(self) -> None:
        """Forget what an evaluation that broke off had watched."""
        self._evaluated = []

    def end_evaluation(self, what: str, model: nn.Module) -> None:
        """Refuse an evaluation in which outputs were not finite; every process calls it.

        Args:
            what: Which rows.
            model: The student.

        Raises:
            DataError: They were; names the rows.
        """
        batches, self._evaluated = self._evaluated, []
        found = min(
            gather_object([self._find(batches, f"of {what}", model)]), key=lambda finding: finding.order
        )
        if found.order < 3:
            raise DataError(found.sentence + " No figure is given.")

    def _find(self, batches: Sequence[Watched], where: str, model: nn.Module) -> Finding:
        """What is not finite in some micro-batches of this process."""
        for k, teacher in enumerate(self._teachers):
            flags = [
                None if b.teachers is None or k not in b.speakers else b.teachers[b.speakers.index(k)]
                for b in batches
            ]
            if rows := self._rows(batches, flags):
                way_out = (
                    f"they come from the cache: remove the folder {teacher.view.folder} to compute them again"
                    if isinstance(teacher, CachedTeacher)
                    else "mend or drop it, or give it a wider type (dtype: float32) if it overflows"
                )
                return Finding(
                    0,
                    f"Teacher {teacher.name!r} gives outputs that are not finite for {rows} {where}: {way_out}.",
                )
        if rows := self._rows(batches, [b.student for b in batches]):
            weight = first_not_finite(model)
            why = "though its weights are" if weight is None else f"and neither is its weight {weight!r}"
            way_out = "lower learning_rate, or set max_grad_norm"
            return Finding(1, f"The student's outputs are not finite for {rows} {where}, {why}: {way_out}.")
        for name in dict.fromkeys(name for b in batches for name in b.terms):
            if rows := self._rows(
                batches, [~b.terms[name].isfinite() if name in b.terms else None for b in batches]
            ):
                return Finding(
                    2,
                    f"The loss {name!r} is not finite for {rows} {where}, though all outputs are: lower "
                    "learning_rate, or choose another loss or temperature.",
                )
        return Finding(
            3,
            f"The gradient {where} is not finite, though outputs and losses are: lower learning_rate or the losses' weights.",
        )

    def _rows(self, batches: Sequence[Watched], flags: Sequence[Tensor | None]) -> str:
        """Rows in words, of which the first is named; empty where there is none."""
        count, first = 0, None
        for batch, flag in zip(batches, flags, strict=True):
            if flag is None or not flag.any():
                continue
            count += int(flag.sum())
            if first is None and len(flag) == len(batch.example_ids):
                at = int(flag.nonzero()[0])
                first = self._row(int(batch.example_ids[at]))
                if first is None and batch.input_ids is not None:
                    first = repr(self._text(batch.input_ids[at], skip_special_tokens=True)[:80])
        named = f" (e.g. {first})" if first else ""
        return f"{count} row(s){named}" if count else ""


def late(device: torch.device) -> bool:
    """Whether reading a number of this device means to wait, so that it is read later."""
    return device.type == "cuda"


def _sent(flag: Tensor) -> Callable[[], bool]:
    """A flag on its way to the CPU; the call that reads it waits for the flag alone, not for later work."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    host = torch.empty_like(flag, device="cpu", pin_memory=True)
    host.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> bool:
        arrived.synchronize()
        return bool(host)

    return read


def first_not_finite(model: nn.Module) -> str | None:
    """The first parameter that holds NaN or an infinity, or buffer that holds NaN; waits for the device once.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> layer.bias.data[0] = float("inf")
        >>> first_not_finite(layer)
        'bias'
    """
    bad = {
        name: ~values.detach().isfinite().all()
        for name, values in model.named_parameters()
        if values.is_floating_point() and not values.is_meta
    }
    # Masks of -inf may be buffers.
    bad |= {
        name: values.isnan().any()
        for name, values in model.named_buffers()
        if values.is_floating_point() and not values.is_meta
    }
    device = next((flag.device for flag in bad.values()), None)
    flags = torch.stack([flag.to(device) for flag in bad.values()]).tolist() if bad else []
    return next((name for name, flag in zip(bad, flags, strict=True) if flag), None)


def refuse_not_finite(model: nn.Module, when: str, way_out: str = "lower learning_rate") -> None:
    """Refuse a student whose weights are not finite.

    Args:
        model: The student.
        when: In words.
        way_out: What to do.

    Raises:
        DataError: They are not.
    """
    if weight := first_not_finite(model):
        raise DataError(
            f"The student's weight {weight!r} is not finite {when}, so it is neither trained nor saved: "
            f"{way_out}; checkpoints of before stay as they are."
        )
