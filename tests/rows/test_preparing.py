"""Raw rows in, prepared rows out: tokens once, and clear words for what cannot be read."""

from __future__ import annotations

import datasets
import pytest

from hf_distill import TASKS
from hf_distill.errors import DataError
from hf_distill.rows.collator import MultiTeacherCollator
from hf_distill.rows.labels import count_labelled
from hf_distill.rows.preparing import example_id, prepare_dataset
from hf_distill.rows.views import TokenView, view_column

LABELS = ("negative", "positive")


def prepare(dataset, view, label_names=LABELS, **options):
    labels = TASKS["text-classification"].label_reader("label", label_names)
    return prepare_dataset(
        dataset,
        **{"text_columns": ("text",), "labels": labels, "student_view": view, "teacher_views": {}, **options},
    )  # fmt: skip


@pytest.fixture
def view(bert_tokenizer):
    return TokenView(bert_tokenizer, 64)


def test_prepared_rows_hold_every_view_and_nothing_else(rows, bert_tokenizer, roberta_tokenizer, view):
    other = TokenView(roberta_tokenizer, 12)
    prepared = prepare(rows, view, teacher_views={"roberta": other})
    assert set(prepared.column_names) == {
        "input_ids", "token_type_ids", "attention_mask", "labels", "example_id",
        "teacher_views/roberta/input_ids", "teacher_views/roberta/attention_mask",
    }  # fmt: skip
    for i in (0, 31):
        assert prepared[i]["input_ids"] == bert_tokenizer(rows[i]["text"])["input_ids"]
        cut = roberta_tokenizer(rows[i]["text"], truncation=True, max_length=12)["input_ids"]
        assert prepared[i][view_column("roberta", "input_ids")] == cut
        assert prepared[i]["labels"] == rows[i]["label"]
        assert prepared[i]["example_id"] == example_id([rows[i]["text"]])
    batch = MultiTeacherCollator(None, {"roberta": other})([prepared[i] for i in range(4)])
    assert batch["teacher_views"]["roberta"]["input_ids"].shape == (4, 12)


def test_collator_pads_each_view_with_its_own_padding(rows, bert_tokenizer, roberta_tokenizer, view):
    prepared = prepare(rows, view, teacher_views={"roberta": TokenView(roberta_tokenizer, 64)})
    batch = MultiTeacherCollator(bert_tokenizer.pad, {"roberta": TokenView(roberta_tokenizer, 64)})(
        [prepared[i] for i in range(8)]
    )
    theirs = batch["teacher_views"]["roberta"]
    assert (theirs["input_ids"][theirs["attention_mask"] == 0] == roberta_tokenizer.pad_token_id).all()
    assert theirs["input_ids"].shape[1] == max(
        len(prepared[i][view_column("roberta", "input_ids")]) for i in range(8)
    )


def test_same_rows_are_prepared_once_and_changed_settings_anew(tmp_path, rows, view, bert_tokenizer):
    rows.save_to_disk(tmp_path / "rows")
    stored = datasets.load_from_disk(tmp_path / "rows")
    first = prepare(stored, view)
    assert (
        first.cache_files
        and prepare(stored, TokenView(bert_tokenizer, 64))._fingerprint == first._fingerprint
    )
    for changed in (
        prepare(stored, TokenView(bert_tokenizer, 63)),
        prepare(stored, view, label_names=LABELS[::-1]),
        prepare(stored, view, teacher_views={"x": view}),
        prepare(stored.select(range(9)), view),
    ):
        assert changed._fingerprint != first._fingerprint


def test_content_decides_the_example(rows, view):
    ids = dict(zip(rows["text"][:], prepare(rows, view)["example_id"][:], strict=True))
    shuffled = prepare(rows.shuffle(seed=1).select(range(20)), view)
    for text, found in zip(rows.shuffle(seed=1)["text"][:20], shuffled["example_id"][:], strict=True):
        assert ids[text] == found
    assert len(set(ids.values())) == len(ids)
    assert example_id(["ab", "c"]) != example_id(["a", "bc"])


def test_pairs_streams_and_missing_label_columns(rows, view, bert_tokenizer):
    pairs = rows.rename_column("text", "a").add_column("b", rows["text"][:][::-1]).remove_columns("label")
    prepared = prepare(pairs, view, text_columns=("a", "b"))
    assert prepared[0]["input_ids"] == bert_tokenizer(pairs[0]["a"], pairs[0]["b"])["input_ids"]
    assert count_labelled(prepared) == 0 and count_labelled(prepare(rows, view)) == 64
    stream = prepare(rows.to_iterable_dataset(), view)
    assert next(iter(stream))["input_ids"] == prepare(rows, view)[0]["input_ids"]
    assert count_labelled(stream) is None and "example_id" in stream.column_names


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda rows: [{"text": "a"}], {}, "is a list, but teachers read text from named columns"),
        (lambda rows: rows, {"text_columns": ("txt",)}, r"columns \['text', 'label'\].*\['txt'\].*did you mean 'text'"),
        (lambda rows: rows, {"text_columns": ("text",) * 3}, "name the one or two columns"),
        (lambda rows: datasets.Dataset.from_dict({"text": ["a", None], "label": [0, 1]}), {}, "Row 1 of the dataset, column 'text': found None"),
        (lambda rows: rows.rename_column("text", "input_ids"), {}, "already tokenized"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read(rows, view, make, options, message):
    with pytest.raises(DataError, match=message):
        prepare(make(rows), view, **options)
