"""Raw labels are read by name wherever there are names, and asked about where they may mean nothing."""

import json

import datasets
import numpy as np
import pytest

from conftest import make_student
from hf_distill import TASKS
from hf_distill.errors import DataError
from hf_distill.tasks.task import refuse_contradiction
from hf_distill.tasks.text_classification import label_encoder

TASK = TASKS["text-classification"]
N = ("negative", "positive")


def encode(names, *values):
    return label_encoder(None, names, "label")(values, range(len(values)))


def named(given, column=None):
    rows = None if column is None else datasets.Dataset.from_dict({"label": column})
    return TASK.label_names(given, rows, "label", None)


@pytest.mark.parametrize(
    "names", [("1", "2", "3"), ("3", "1", "2"), ("1.0", "2.0", "3.0"), ("-1", "0", "1"), ("1", "2", "other")]
)
def test_names_that_are_numbers_are_matched_by_name(names):
    for i, name in enumerate(names):
        values = [name] if name == "other" else [name, float(name), int(float(name)), f"{int(float(name))}.0"]
        assert encode(names, *values) == [i] * len(values)
    with pytest.raises(DataError, match="none of the student's labels"):
        encode(names, 5)
    assert encode(names, -100, "-100", None) == [-100] * 3


def test_numbers_of_other_names_are_ids_also_where_files_have_them_as_text():
    assert encode(N, 0, 1.0, "0", "1", "1.0", " 1 ") == [0, 1, 0, 1, 1, 1]
    for wrong in (2, "2", "01", "-2", "1e0", "0.5"):
        with pytest.raises(DataError, match="Row 0, column 'label'"):
            encode(N, wrong)


def test_truths_are_names_where_there_are_such_names():
    for names in (("False", "True"), ("true", "false")):
        assert encode(names, "True", "true", True) == [[n.lower() for n in names].index("true")] * 3
    with pytest.raises(DataError, match="found True"):
        encode(N, True)


@pytest.mark.parametrize("names", [("C++", "Java"), ("A+", "B"), ("-1", "0"), ("résumé", "letter")])
def test_a_label_that_is_nearly_one_is_none(names):
    other = {"C++": "C", "A+": "A-", "-1": "1", "résumé": "resume"}[names[0]]
    with pytest.raises(DataError, match="is none of the student's labels|have the numbers"):
        encode(names, other)


def test_blank_is_no_label_and_words_for_missing_are_asked_about():
    assert encode(N, "", " ", "\t", None, float("nan")) == [-100] * 5
    for word in ("nan", "NaN", "<NA>", "null", "None", "#N/A"):
        with pytest.raises(DataError, match="which programs write where a value is missing"):
            encode(N, word)
        assert encode((word, "x"), word) == [0]
        with pytest.raises(DataError, match="which programs write where a value is missing"):
            named(None, ["a", "b", word])
    assert named(None, ["b", "", "a", None, " "]) == ("a", "b")
    assert named(None, ["NA", "US"]) == ("NA", "US")


@pytest.mark.parametrize(
    "given",
    [["b", "a"], ("b", "a"), np.array(["b", "a"]), {"b": 0, "a": 1}, {"a": 1, "b": 0}, {0: "b", 1: "a"}, {1: "a", 0: "b"},
     json.loads('{"1": "a", "0": "b"}'), {"b": np.int64(0), "a": np.int64(1)}],
)  # fmt: skip
def test_names_in_order_or_by_their_ids(given):
    assert named(given) == ("b", "a")


@pytest.mark.parametrize(
    "given",
    [{"a", "b"}, frozenset("ab"), dict.fromkeys("ab"), dict.fromkeys("ab").keys(), {"a": 1, "b": 2}, {"a": 0, "b": 0},
     {0: "a", 2: "b"}, {"a": True, "b": False}, "ab", (x for x in "ab"), ["a", None], ["a", ["b"]], ["a", ""], ["a", " "],
     ["a", "a"], ["é", "e\u0301"], ["a"], []],
)  # fmt: skip
def test_names_without_order_or_sense_are_refused(given):
    with pytest.raises(DataError, match="label_names|label names"):
        named(given)


def test_names_of_a_column_that_cannot_be_meant():
    for column, words in (
        (["pos", "Pos ", "neg"], "which only case"),
        (["pos", "pos"], "All labels in column 'label' are 'pos'"),
        (["0", "1", "1"], "Nothing names"),
    ):
        with pytest.raises(DataError, match=words):
            named(None, column)
    assert named(["Pos ", "pos"]) == ("Pos ", "pos")
    assert named(None, ["007", "012"]) == ("007", "012")


def test_two_tables_of_labels_that_disagree(bert_tokenizer):
    config = make_student(bert_tokenizer).config
    config.id2label, config.label2id = {0: "a", 1: "b"}, {"a": 0, "b": 1}
    refuse_contradiction(config, "It", "labels=")
    config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    refuse_contradiction(config, "It", "labels=")
    config.label2id = {"a": 1, "b": 0}
    with pytest.raises(DataError, match="label2id gives 'a' the number 1, which id2label calls 'b'"):
        refuse_contradiction(config, "It", "labels=")
