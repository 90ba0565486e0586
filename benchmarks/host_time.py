"""The host's own time: what a step and a build cost beside the device, with models of one layer and width 32.

Loaders: that of our trainer with three live views besides the student's, and with three cached ones, against that of
`transformers.Trainer` with the student's view alone; default loaders, one process. The loop: epochs with these loaders, whose
floor is the student's steps and the teachers' forwards on ready batches. The build with a forward that does nothing, whose
floor is the tokenizer alone. Processor time counts all threads, so work that is moved into one beside is not hidden.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import torch
from measure import Claim, arguments, idle, interleaved, show
from setting import (
    LABELS,
    TINY,
    host_shapes,
    in_batches,
    make_rows,
    make_teachers,
    make_tokenizer,
    our_trainer,
    plain_trainer,
    ready_batches,
    run_teacher,
    student_steps,
    teacher_batches,
)

from hf_distill import Teacher
from hf_distill.teachers.cache.build import cache_teacher_outputs


def main() -> None:
    options = arguments(__doc__)
    shape, device = host_shapes(options.device), options.device
    rows = make_rows(640 if options.quick else 3200, shape)
    tokenizer, *others = [make_tokenizer(seed) for seed in range(4)]
    teachers = make_teachers(3, TINY, others)
    for teacher in teachers:
        teacher.to(torch.device(device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = plain_trainer(options, folder, rows, tokenizer, student=TINY)
        live = our_trainer(options, folder, rows, tokenizer, teachers, student=TINY)
        cached = our_trainer(
            options, folder, rows, tokenizer, teachers, cache_dir=folder / "cache", student=TINY
        )
        loading = {
            f"loader, {what}": functools.partial(through, trainer.get_train_dataloader())
            for what, trainer in (("plain", plain), ("3 live views", live), ("3 cached views", cached))
        }
        ready = ready_batches(tokenizer, rows, shape.batch, device)
        epochs = {
            "epoch, plain": plain.train,
            "epoch, cached": cached.train,
            "epoch, live": live.train,
            "student on ready batches": functools.partial(student_steps, TINY, ready, device),
        }
        forwards = {}
        for teacher in teachers:
            batches = teacher_batches(
                teacher, rows["text"], in_batches(range(len(rows)), shape.batch), device
            )
            forwards[teacher.name] = functools.partial(run_teacher, teacher, batches, device)
        folders = (folder / str(i) for i in itertools.count())
        silent = without_forward(make_teachers(1, TINY, others)[0], device)
        building = {
            "build without the forward": lambda: cache_teacher_outputs(
                [silent], rows, cache_dir=next(folders), device=torch.device(device)
            ),
            "tokenizer alone": functools.partial(silent.view.encode, [rows["text"][:]]),
        }
        times = interleaved(loading, options) | interleaved(epochs | forwards, options)
        times |= interleaved(building, options)
        idling = idle(loading | epochs | building, options)
    claims = [
        Claim.of(times, "loader, 3 live views", "loader, plain", 0.25),
        Claim.of(times, "loader, 3 cached views", "loader, plain", 0.25),
        Claim.of(times, "epoch, cached", "epoch, plain"),
        Claim.of(times, "epoch, plain", "student on ready batches"),
        Claim.of(times, "epoch, cached", "student on ready batches"),
        Claim.of(times, "epoch, live", ["student on ready batches", *forwards]),
        Claim.of(times, "build without the forward", "tokenizer alone"),
        *idling,
    ]
    per_step = {name: [1e3 * taken.cpu / len(ready) for taken in values] for name, values in times.items()}
    show("The host's time per batch", claims, options, amounts=per_step, unit="ms of CPU")


def through(loader: Iterable) -> None:
    for _ in loader:
        pass


def without_forward(teacher: Teacher, device: str) -> Teacher:
    """A teacher that answers at once, and always the same."""
    teacher.to(torch.device(device))

    def answer(input_ids=None, attention_mask=None, token_type_ids=None, **options):
        return SimpleNamespace(logits=torch.zeros(len(input_ids), len(LABELS), device=input_ids.device))

    teacher.model.forward = answer
    return teacher


if __name__ == "__main__":
    main()
