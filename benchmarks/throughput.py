"""Collation and tokenization keep ahead of the training: rows per second of each.

Collation of batches of 32 read from prepared rows: the student's columns by `DataCollatorWithPadding` alone, by our
collator with three live views, and with three cached ones. Tokenization: of the student's view by the tokenizer alone,
by `prepare_dataset`, and by `prepare_dataset` with three more tokenizers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial

import datasets
from measure import Claim, arguments, interleaved, show
from setting import LABELS, TINY, host_shapes, in_batches, make_rows, make_teachers, make_tokenizer
from transformers import DataCollatorWithPadding

from hf_distill import TASKS, MultiTeacherCollator
from hf_distill.rows.columns import IndexedRows, Padding
from hf_distill.rows.preparing import prepare_dataset
from hf_distill.rows.views import TokenView, View
from hf_distill.teachers.cache.build import cache_teacher_outputs


def main() -> None:
    options = arguments(__doc__)
    rows = make_rows(640 if options.quick else 6400, host_shapes(options.device))
    size = host_shapes(options.device).batch
    tokenizer, *others = [make_tokenizer(seed) for seed in range(4)]
    view = TokenView(tokenizer, 512)
    live = {f"teacher-{k}": TokenView(other, 512) for k, other in enumerate(others)}
    pad, ours = DataCollatorWithPadding(tokenizer), Padding(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        teachers = cache_teacher_outputs(
            make_teachers(3, TINY, others), rows, cache_dir=folder, shard_rows=2048
        )
        cached = {teacher.name: teacher.view for teacher in teachers}
        own = prepare(rows, view, {})
        collating = interleaved(
            {
                "collate, no views, plain": partial(collate, own.remove_columns("example_id"), pad, size),
                "collate, no views": partial(collate, IndexedRows(own), MultiTeacherCollator(ours, {}), size),
                "collate, 3 live views": partial(
                    collate, IndexedRows(prepare(rows, view, live)), MultiTeacherCollator(ours, live), size
                ),
                "collate, 3 cached views": partial(
                    collate, IndexedRows(own), MultiTeacherCollator(ours, cached), size
                ),
            },
            options,
        )
    tokenizing = interleaved(
        {
            "tokenize, plain": partial(view.encode, [list(rows["text"])]),
            "tokenize, no views": partial(prepare, rows, view, {}),
            "tokenize, 3 live views": partial(prepare, rows, view, live),
        },
        options,
    )
    rates = {
        name: [len(rows) / taken.wall for taken in values]
        for name, values in (collating | tokenizing).items()
    }
    claims = [
        Claim.of(collating, name, "collate, no views, plain", 0.25)
        for name in collating
        if "plain" not in name
    ] + [Claim.of(tokenizing, name, "tokenize, plain") for name in tokenizing if "plain" not in name]
    show("Collation and tokenization", claims, options, amounts=rates, unit="rows/s")


def prepare(rows: datasets.Dataset, view: View, teacher_views: Mapping[str, View]) -> datasets.Dataset:
    return prepare_dataset(
        rows,
        text_columns=["text"],
        labels=TASKS["text-classification"].label_reader("label", LABELS),
        student_view=view,
        teacher_views=teacher_views,
    )


def collate(rows: datasets.Dataset | IndexedRows, collator: Callable, size: int) -> None:
    for batch in in_batches(range(len(rows)), size):
        collator(rows.__getitems__(batch))  # as a DataLoader reads


if __name__ == "__main__":
    main()
