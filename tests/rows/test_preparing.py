"""Raw rows in, prepared rows out: labels by name, tokens once, and clear words for what is neither."""

from __future__ import annotations

import datasets
import pytest

from conftest import make_student
from hf_distill.errors import DataError
from hf_distill.rows.collator import MultiTeacherCollator
from hf_distill.rows.preparing import (
    count_labelled,
    example_id,
    label_encoder,
    prepare_dataset,
    resolve_label_names,
)
from hf_distill.rows.views import TokenView, view_column

LABELS = ("negative", "positive")


def prepare(dataset, view, **options):
    return prepare_dataset(
        dataset,
        **{"text_columns": ("text",), "label_column": "label", "label_names": LABELS, "student_view": view, "teacher_views": {}, **options},
    )  # fmt: skip


@pytest.fixture
def view(bert_tokenizer):
    return TokenView(bert_tokenizer, 64)


def test_label_names_come_in_the_documented_order(rows, bert_tokenizer):
    named = make_student(bert_tokenizer, ["no", "yes"]).config
    generic = make_student(bert_tokenizer).config
    integers = rows.cast_column("label", datasets.Value("int64"))
    strings = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": ["yes", "no", None]})
    assert resolve_label_names(["x", "y"], rows, "label", named) == ("x", "y")
    assert resolve_label_names(None, rows, "label", named) == LABELS
    assert resolve_label_names(None, integers, "label", named) == ("no", "yes")
    assert resolve_label_names(None, strings, "label", generic) == ("no", "yes")
    for dataset in (integers, integers.remove_columns("label")):
        with pytest.raises(DataError, match="Nothing names the student's labels"):
            resolve_label_names(None, dataset, "label", generic)
    with pytest.raises(DataError, match="at least two are needed, all different"):
        resolve_label_names(["a", "a"], rows, "label", None)
    with pytest.raises(DataError, match="the single text 'abc'"):
        resolve_label_names("abc", rows, "label", None)


def test_class_label_ids_go_by_their_names():
    feature = datasets.ClassLabel(names=["Positive", "Negative"])
    assert label_encoder(feature, LABELS, "label")([0, 1, -1, -100, None], range(5)) == [
        1,
        0,
        -100,
        -100,
        -100,
    ]
    with pytest.raises(DataError, match=r"has the classes \['neutral'\]"):
        label_encoder(datasets.ClassLabel(names=["negative", "neutral", "positive"]), LABELS, "label")


def test_names_numbers_and_gaps():
    encode = label_encoder(datasets.Value("string"), LABELS, "label")
    assert encode(["positive", "negative", None, "Positive"], range(4)) == [1, 0, -100, 1]
    numbers = label_encoder(datasets.Value("float64"), LABELS, "label")
    assert numbers([1.0, 0, float("nan")], range(3)) == [1, 0, -100]  # a CSV column with gaps


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "found inf, expected"),
        ("postive", "Row 5, column 'label': 'postive' is none of .*did you mean 'positive'"),
        (2, "Row 5, column 'label': found 2, but the 2 labels"),
        (-1, "found -1, .*a row without a label has -100"),
        (True, "found True, expected a label's name or its number"),
        (0.5, "found 0.5, expected"),
        ([1], r"found \[1\], expected"),
    ],
)
def test_values_that_are_no_labels(value, message):
    with pytest.raises(DataError, match=message):
        label_encoder(None, LABELS, "label")([value], [5])


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
