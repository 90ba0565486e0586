"""Distilling from a cache costs what fine-tuning costs.

An epoch of our trainer with three cached teachers against an epoch of `transformers.Trainer` with the same student on
the same rows, default loaders; the floor is the student's steps on ready batches.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from measure import Claim, arguments, bound, idle, interleaved, show
from setting import (
    TINY,
    make_rows,
    make_teachers,
    make_tokenizer,
    our_trainer,
    plain_trainer,
    ready_batches,
    shapes,
    student_steps,
)


def main() -> None:
    options = arguments(__doc__)
    rows = make_rows(320 if options.quick else 960, shapes(options.device))
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Stored logits have the same shape whatever the size of the model they came from.
        teachers = make_teachers(3, TINY, [tokenizer])
        plain = plain_trainer(options, folder, rows, tokenizer)
        cached = our_trainer(options, folder, rows, tokenizer, teachers, cache_dir=folder / "cache")
        shape = shapes(options.device)
        ready = ready_batches(tokenizer, rows, shape.batch, options.device)
        actions = {
            "cached epoch": cached.train,
            "plain epoch": plain.train,
            "student on ready batches": partial(student_steps, shape.student, ready, options.device),
        }
        times = interleaved(actions, options)
        claims = [
            Claim.of(times, "cached epoch", "plain epoch", bound(options, 1.0, 0.8)),
            Claim.of(times, "cached epoch", "student on ready batches"),
            *idle(actions, options),
        ]
        show("A cached epoch against a plain fine-tuning epoch", claims, options, times=times)


if __name__ == "__main__":
    main()
