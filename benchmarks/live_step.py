"""A live step costs its forwards: the student's step and every teacher's forward, and next to nothing besides.

An epoch of our trainer with three live teachers, each with a tokenizer of its own, default loader, against the student's
steps plus the forwards of each teacher over the same batches, tokenized and padded beforehand.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from measure import Claim, arguments, bound, idle, interleaved, show
from setting import (
    in_batches,
    make_rows,
    make_teachers,
    make_tokenizer,
    our_trainer,
    ready_batches,
    run_teacher,
    shapes,
    student_steps,
    teacher_batches,
)


def main() -> None:
    options = arguments(__doc__)
    shape = shapes(options.device)
    # Enough steps that what a training does once, before the first and after the last, is little of it.
    rows = make_rows(64 if options.quick else 768, shape)
    tokenizers = [make_tokenizer(seed) for seed in range(4)]
    teachers = make_teachers(3, shape.teacher, tokenizers[1:])
    with tempfile.TemporaryDirectory() as name:
        live = our_trainer(options, Path(name), rows, tokenizers[0], teachers)
        ready = ready_batches(tokenizers[0], rows, shape.batch, options.device)
        actions = {
            "live epoch": live.train,
            "student": functools.partial(student_steps, shape.student, ready, options.device),
        }
        for teacher in teachers:
            teacher.to(live.args.device)
            batches = teacher_batches(
                teacher, rows["text"], in_batches(range(len(rows)), shape.batch), options.device
            )
            actions[teacher.name] = functools.partial(run_teacher, teacher, batches, options.device)
        times = interleaved(actions, options)
        idling = idle(actions, options)
    parts = [name for name in actions if name != "live epoch"]
    claim = Claim.of(times, "live epoch", parts, bound(options, 1.02, 1.10))
    show("A live step against the sum of its parts", [claim, *idling], options, times=times)


if __name__ == "__main__":
    main()
