"""What a student costs beside its teachers: parameters, bytes, and a forward measured in the same run.

Shapes: B rows of a batch, L tokens of a row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..markdown import markdown_table
from ..rows.views import named_inputs, position_limit
from ..teachers.teacher import Teacher, TeacherSource

# No further round begins after this: a large teacher on a slow machine must not hold up a training.
_SECONDS = 10.0


def describe_student(
    student: PreTrainedModel,
    teachers: Sequence[TeacherSource],
    *,
    batch_size: int = 8,
    length: int = 64,
    rounds: int = 5,
) -> str:
    """A Markdown table of parameters, bytes, and how much faster the student's forward is than each teacher's.

    Student and teacher take turns on batches of the same shape, on the student's device and in inference mode. The
    figures are medians over the rounds, for the speed-up of each round's ratio; they hold for this machine, now.

    Args:
        student: The student.
        teachers: The teachers; one whose model is not in memory, such as a cached one, is not measured.
        batch_size: B.
        length: L; less where a model has fewer positions. Models of images get images of their own size.
        rounds: How often each pair takes turns at most, after one round that warms up and does not count.

    Example:
        >>> print(describe_student(student, [teacher], batch_size=2, length=8, rounds=1))
        | model   | parameters | bytes  | forward | student is faster |
        |---------|------------|--------|---------|-------------------|
        | student | ...
        | bert    | ...
        <BLANKLINE>
        Forward of batches of 2 x 8 on cpu, ... thread(s), in inference mode: medians of 1 round(s) in turns.
    """
    device = next(student.parameters()).device
    live = [teacher.model for teacher in teachers if isinstance(teacher, Teacher)]
    limits = [limit for model in (student, *live) if (limit := position_limit(model)) is not None]
    length = min([length, *limits])
    rows, own, least = [], [], rounds
    for teacher in teachers:
        model = teacher.model if isinstance(teacher, Teacher) else None
        turns = [] if model is None else _take_turns(student, model, batch_size, length, rounds)
        parameters = getattr(teacher, "num_parameters", None)
        cells = [teacher.name, "–" if parameters is None else f"{parameters:,}", "–", "–", "–"]
        if model is not None:
            cells[2] = f"{_bytes(model):,}"
        if turns:
            own += [ours for ours, _ in turns]
            least = min(least, len(turns))
            cells[3] = _milliseconds([theirs for _, theirs in turns])
            cells[4] = f"{statistics.median(theirs / ours for ours, theirs in turns):.1f} x"
        rows.append(cells)
    first = ["student", f"{student.num_parameters():,}", f"{_bytes(student):,}", _milliseconds(own), ""]
    table = markdown_table(["model", "parameters", "bytes", "forward", "student is faster"], [first, *rows])
    if not own:
        return table
    where = f"cpu, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else _device_name(device)
    return (
        f"{table}\n\nForward of batches of {batch_size} x {length} on {where}, in inference mode: "
        f"medians of {least} round(s) in turns."
    )


def _take_turns(
    student: PreTrainedModel, teacher: PreTrainedModel, batch_size: int, length: int, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of the student's and of the teacher's forward, per round."""
    device, home = next(student.parameters()).device, next(teacher.parameters()).device
    training, begun, turns = student.training, time.perf_counter(), []
    student.eval()
    teacher.to(device)
    pair = [(model, _inputs(model, batch_size, length, device)) for model in (student, teacher)]
    try:
        for _ in range(rounds + 1):
            turns.append(tuple(_seconds(model, inputs, device) for model, inputs in pair))
            if len(turns) > 1 and time.perf_counter() - begun > _SECONDS:
                break
    finally:
        teacher.to(home)
        student.train(training)
    return turns[1:]


def _seconds(model: PreTrainedModel, inputs: Mapping[str, Tensor], device: torch.device) -> float:
    _finish(device)
    begun = time.perf_counter()
    with torch.inference_mode():
        model(**inputs)
    _finish(device)
    return time.perf_counter() - begun


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _inputs(model: PreTrainedModel, batch_size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of the model's kind: (B, L) tokens, or (B, channels, height, width) pixels."""
    config = model.config
    if "pixel_values" in named_inputs(model):
        sides = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        return {"pixel_values": torch.zeros(batch_size, config.num_channels, *sides, device=device)}
    # Any token will do that is no padding, which positions and heads skip.
    token = next(i for i in range(config.vocab_size) if i != config.pad_token_id)
    tokens = torch.full((batch_size, length), token, device=device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _bytes(model: PreTrainedModel) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} ms" if seconds else "–"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
