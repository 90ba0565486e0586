"""Flat columns are padded to the very tensors that tokenizers make of lists."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_distill.rows import columns
from hf_distill.rows.collator import MultiTeacherCollator
from hf_distill.rows.columns import IndexedRows, Padding, Ragged, as_rows, columns_of, student_padding
from hf_distill.rows.views import TokenView, view_column

TEXTS = {
    "singles": (["a good film", "the plot was very dull and the actor is quite poor", "", "fine"],),
    "pairs": (["a good film", "", "dull", "the"], ["the plot", "a scene and a script", "", "was it fine"]),
    "one": (["superb"],),
    "all alike": (["good film", "dull plot"],),
}


@pytest.fixture(params=["bert_tokenizer", "roberta_tokenizer", "unigram_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and torch.equal(found[name], values), name


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_the_tokenizers_byte_for_byte(tokenizer, texts, side, multiple, masked, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    encoded = dict(tokenizer(*texts, return_special_tokens_mask=True, return_attention_mask=masked))
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    expected = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)([dict(row) for row in rows])
    padding = Padding(tokenizer, multiple)
    same(padding.collate(columns_of(rows), torch.zeros(len(rows))), expected)
    stored = IndexedRows(datasets.Dataset.from_list(rows)).__getitems__(list(range(len(rows))))
    same(padding.collate(columns_of(stored), torch.zeros(len(rows))), expected)
    assert as_rows(columns_of(stored)) == rows


def test_rows_without_any_token_are_padded_to_nothing():
    assert Ragged.of([[], []]).padded(1).shape == (2, 0)


def test_a_tokenizer_that_pads_in_a_way_of_its_own_is_asked(bert_tokenizer, monkeypatch):
    def pad(self, encoded, *arguments, **options):
        return super(type(bert_tokenizer), self)._pad(encoded, *arguments, **options) | {"own": 1}

    monkeypatch.setattr(type(bert_tokenizer), "_pad", pad, raising=False)
    encoded = {key: Ragged.of(values) for key, values in bert_tokenizer(["a film", "fine"]).items()}
    assert Padding(bert_tokenizer).collate(encoded, torch.zeros(2))["own"].tolist() == [1, 1]


def test_a_table_in_any_order_is_the_rows_of_that_order(rows, bert_tokenizer, roberta_tokenizer):
    views = {"roberta": TokenView(roberta_tokenizer, 64)}
    columns = {"example_id": list(range(64)), "labels": rows["label"][:]}
    columns |= dict(bert_tokenizer(rows["text"][:]))
    columns |= {view_column("roberta", k): v for k, v in views["roberta"].encode([rows["text"][:]]).items()}
    prepared = datasets.concatenate_datasets(
        [datasets.Dataset.from_dict({k: v[i : i + 7] for k, v in columns.items()}) for i in range(0, 64, 7)]
    ).shuffle(seed=3)
    order = np.random.default_rng(1).permutation(64)[:20].tolist()
    collator = MultiTeacherCollator(Padding(bert_tokenizer), views)
    whole = collator(IndexedRows(prepared).__getitems__(order))
    listed = MultiTeacherCollator(DataCollatorWithPadding(bert_tokenizer), views)(
        [prepared[i] for i in order]
    )
    same(whole.pop("teacher_views")["roberta"], listed.pop("teacher_views")["roberta"])
    same(whole, listed)


def test_a_stored_part_is_looked_through_once(monkeypatch):
    # In the second part alone the views' rows happen to be of the same lengths.
    parts = [{"input_ids": [[1], [2, 3]], "other": [[4, 5], [6]]}, {"input_ids": [[7, 8]], "other": [[9, 9]]}]
    rows = datasets.concatenate_datasets([datasets.Dataset.from_dict(part) for part in parts])
    made, indexed = [], IndexedRows(rows)
    of = columns._Part.of
    monkeypatch.setattr(
        columns._Part, "of", lambda *given, **options: made.append(1) or of(*given, **options)
    )
    for _ in range(3):
        assert as_rows(indexed.__getitems__([2, 0, 1, 2])) == [rows[i] for i in (2, 0, 1, 2)]
    assert len(made) == 4  # each part, and once more its columns apart


def test_only_a_collator_that_is_known_is_replaced(bert_tokenizer):
    class Own(DataCollatorWithPadding):
        pass

    assert (
        student_padding(
            DataCollatorWithPadding(bert_tokenizer, pad_to_multiple_of=8), None
        ).pad_to_multiple_of
        == 8
    )
    for kept in (
        Own(bert_tokenizer),
        DataCollatorWithPadding(bert_tokenizer, padding="max_length", max_length=9),
    ):
        assert student_padding(kept, bert_tokenizer) is kept
