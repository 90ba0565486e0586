"""Building the cache costs its forwards in order of length, and three quarters of those in random order, or less.

`cache_teacher_outputs` (tokenizing, hashing of weights and rows, forwards by length, checksums, fsync) against the floor, the
same teacher over batches in order of length that are ready on the device, and against random order, tokenized and padded
batch by batch; on the lengths of real data. Teachers are run one after the other, so one of them tells the ratio for any
number.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path

import datasets
import torch
from measure import Claim, Times, arguments, bound, idle, interleaved, show
from setting import (
    DATA,
    budgeted,
    in_batches,
    make_teachers,
    make_tokenizer,
    real_rows,
    run_teacher,
    shapes,
    teacher_batches,
)

from hf_distill import Teacher
from hf_distill.teachers.cache.build import cache_teacher_outputs

SETS = ("sst2", "ag_news_7600", "banking77")


def main() -> None:
    options = arguments(__doc__)
    times: Times = {}
    claims = []
    for name in SETS:
        rows = real_rows(name, 160 if options.quick else max(1920, shapes(options.device).fewest))
        if rows is None:
            print(f"SKIPPED: {DATA / name} is not here, and the claim is about the lengths of real rows.")
            continue
        tokenizer = make_tokenizer(texts=rows["text"])
        (teacher,) = make_teachers(1, shapes(options.device).teacher, [tokenizer])
        teacher.to(torch.device(options.device))
        with tempfile.TemporaryDirectory() as folder:
            fresh = (Path(folder) / str(i) for i in itertools.count())
            texts, device = rows["text"][:], options.device
            ready = teacher_batches(teacher, texts, budgeted(teacher, texts, device), device)
            building = f"{name} cache build"
            actions = {
                building: functools.partial(build, teacher, rows, fresh, device),
                f"{name} ready, by length": functools.partial(run_teacher, teacher, ready, device),
                f"{name} random order": functools.partial(in_order, teacher, rows, device),
            }
            own = interleaved(actions, options)
            claims += idle(actions, options)
        times |= own
        claims.append(Claim.of(own, building, f"{name} ready, by length", bound(options, 1.05, 1.15)))
        claims.append(Claim.of(own, building, f"{name} random order", 0.75))
    if claims:
        show("Building the cache against its forwards", claims, options, times=times)


def build(teacher: Teacher, rows: datasets.Dataset, folders: itertools.count, device: str) -> None:
    cache_teacher_outputs(
        [teacher],
        rows,
        cache_dir=next(folders),
        precision="bf16" if device == "cuda" else None,
        device=torch.device(device),
    )


def in_order(teacher: Teacher, rows: datasets.Dataset, device: str) -> None:
    tokenizer = teacher.view.tokenizer
    for batch in in_batches(
        range(len(rows)), shapes(device).batch
    ):  # the rows were shuffled when they were read
        tokens = tokenizer(rows[batch]["text"], truncation=True, padding=True, return_tensors="pt")
        run_teacher(teacher, [{key: value.to(device) for key, value in tokens.items()}], device)


if __name__ == "__main__":
    main()
