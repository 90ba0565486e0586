"""Building the cache costs three quarters of the same forwards in random order, or less.

`cache_teacher_outputs` (tokenizing, hashing of weights and rows, forwards by length, checksums, fsync) against the
same teacher over the same rows in random order, tokenized and padded per batch of 32, on the lengths of real data.
Teachers are run one after the other, so one of them tells the ratio for any number.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path

import datasets
import torch
from measure import Claim, Times, arguments, interleaved, show
from setting import DATA, in_batches, make_teachers, make_tokenizer, real_rows, run_teacher, shapes

from hf_distill import Teacher
from hf_distill.teachers.cache.build import cache_teacher_outputs

SETS = ("sst2", "ag_news_7600", "banking77")


def main() -> None:
    options = arguments(__doc__)
    times: Times = {}
    claims = []
    for name in SETS:
        rows = real_rows(name, 160 if options.quick else 960)
        if rows is None:
            print(f"SKIPPED: {DATA / name} is not here, and the claim is about the lengths of real rows.")
            continue
        tokenizer = make_tokenizer(texts=rows["text"])
        (teacher,) = make_teachers(1, shapes(options.device).teacher, [tokenizer])
        teacher.to(torch.device(options.device))
        with tempfile.TemporaryDirectory() as folder:
            fresh = (Path(folder) / str(i) for i in itertools.count())
            own = interleaved(
                {
                    f"{name} cache build": functools.partial(build, teacher, rows, fresh, options.device),
                    f"{name} random order": functools.partial(in_order, teacher, rows, options.device),
                },
                options,
            )
        times |= own
        claims.append(Claim.of(own, *own, 0.75))
    if claims:
        show("Building the cache against random order", claims, options, times=times)


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
    for batch in in_batches(range(len(rows))):  # the rows were shuffled when they were read
        tokens = tokenizer(rows[batch]["text"], truncation=True, padding=True, return_tensors="pt")
        run_teacher(teacher, [{key: value.to(device) for key, value in tokens.items()}], device)


if __name__ == "__main__":
    main()
