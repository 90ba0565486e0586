"""Labels by name: where the names come from, how raw labels are read, and clear words for what is no label."""

from __future__ import annotations

import datasets
import pytest

from conftest import make_student
from hf_distill import TASKS
from hf_distill.errors import DataError
from hf_distill.tasks.text_classification import label_encoder

LABELS = ("negative", "positive")
TASK = TASKS["text-classification"]


def test_label_names_come_in_the_documented_order(rows, bert_tokenizer):
    named = make_student(bert_tokenizer, ["no", "yes"]).config
    generic = make_student(bert_tokenizer).config
    integers = rows.cast_column("label", datasets.Value("int64"))
    strings = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": ["yes", "no", None]})
    assert TASK.label_names(["x", "y"], rows, "label", named) == ("x", "y")
    assert TASK.label_names(None, rows, "label", named) == LABELS
    assert TASK.label_names(None, integers, "label", named) == ("no", "yes")
    assert TASK.label_names(None, strings, "label", generic) == ("no", "yes")
    for dataset in (integers, integers.remove_columns("label")):
        with pytest.raises(DataError, match="Nothing names the student's labels"):
            TASK.label_names(None, dataset, "label", generic)
    with pytest.raises(DataError, match="at least two are needed, all different"):
        TASK.label_names(["a", "a"], rows, "label", None)
    with pytest.raises(DataError, match="the single text 'abc'"):
        TASK.label_names("abc", rows, "label", None)


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
