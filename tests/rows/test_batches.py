"""Batches that come ahead are the loader's own: same rows, same order, same draws, in each process and after a resume."""

from __future__ import annotations

import threading
import time

import datasets
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from test_trainer import make_trainer
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from conftest import make_bert, make_roberta, make_student, sentences
from hf_distill import TASKS, Teacher
from hf_distill.rows.batches import RowsAhead, ahead
from hf_distill.rows.collator import MultiTeacherCollator
from hf_distill.rows.columns import Padding, indexed
from hf_distill.rows.preparing import prepare_dataset
from hf_distill.rows.views import VIEWS, TokenView
from hf_distill.training import student_trainer

LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def prepared(rows, bert_tokenizer, roberta_tokenizer):
    Accelerator(cpu=True)  # a loader asks it for the processes
    return prepare_dataset(
        rows.select(range(37)),
        text_columns=["text"],
        labels=TASKS["text-classification"].label_reader("label", LABELS),
        student_view=TokenView(bert_tokenizer, 32),
        teacher_views={"roberta": TokenView(roberta_tokenizer, 32)},
    )


@pytest.fixture
def collator(bert_tokenizer, roberta_tokenizer):
    return MultiTeacherCollator(Padding(bert_tokenizer), {"roberta": TokenView(roberta_tokenizer, 32)})


def loader_of(prepared, collator, *, processes=1, process=0, workers=0):
    torch.manual_seed(3)
    loader = DataLoader(
        indexed(prepared), batch_size=4, shuffle=True, collate_fn=collator, num_workers=workers
    )
    return prepare_data_loader(
        loader,
        torch.device("cpu"),
        num_processes=processes,
        process_index=process,
        put_on_device=True,
        use_seedable_sampler=True,
    )


def passed(loader, skip: int) -> list[tuple[dict, bool, int]]:
    """Two epochs as the trainer goes through them: the batches, whether each is the last, and the random state with it."""
    found = []
    for epoch in range(2):
        this = skip_first_batches(loader, skip) if epoch == 0 and skip else loader
        this.set_epoch(epoch)
        for batch in this:
            flat = {k: v for k, v in batch.items() if k != VIEWS} | batch[VIEWS]["roberta"]
            found.append((flat, this.end_of_dataloader, torch.initial_seed() + int(torch.rand(1) * 2**24)))
    return found


@pytest.mark.parametrize(("processes", "skip"), [(1, 0), (1, 3), (2, 0), (2, 2)])
def test_batches_order_ends_and_draws_are_the_loaders(prepared, collator, processes, skip):
    for process in range(processes):
        options = {"processes": processes, "process": process}
        expected = passed(loader_of(prepared, collator, **options), skip)
        loader = ahead(loader_of(prepared, collator, **options))
        assert isinstance(loader.dataset, RowsAhead)
        found = passed(loader, skip)
        assert len(found) == len(expected) == 2 * (10 if processes == 1 else 5) - skip
        for (batch, last, drawn), (own, own_last, own_drawn) in zip(found, expected, strict=True):
            assert batch.keys() == own.keys() and all(torch.equal(batch[key], own[key]) for key in own)
            assert (last, drawn) == (own_last, own_drawn)


def test_what_is_skipped_is_not_collated_and_the_rest_is_made_beside(prepared, collator, monkeypatch):
    made = []
    real = MultiTeacherCollator.__call__
    monkeypatch.setattr(
        MultiTeacherCollator,
        "__call__",
        lambda self, rows: made.append(threading.current_thread().name) or real(self, rows),
    )
    batches = iter(skip_first_batches(ahead(loader_of(prepared, collator)), 4))
    next(batches)
    end = time.monotonic() + 5
    while (
        len(made) < 4 and time.monotonic() < end
    ):  # accelerate asks for one batch more, and two come ahead of that
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == ["makes batches"] * 4
    assert len(list(batches)) == 5 and len(made) == 6


def test_an_error_comes_with_its_batch_and_no_thread_stays(prepared, collator, monkeypatch):
    made = []
    real = MultiTeacherCollator.__call__

    def fails(self, rows):
        made.append(1)
        if len(made) == 4:
            raise ValueError("the fourth")
        return real(self, rows)

    monkeypatch.setattr(MultiTeacherCollator, "__call__", fails)
    given = []
    with pytest.raises(ValueError, match="the fourth") as caught:
        given.extend(batch for batch in ahead(loader_of(prepared, collator)))
    assert caught.traceback  # which holds the loader: the thread ends all the same
    end = time.monotonic() + 5
    while any(t.name == "makes batches" for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name == "makes batches"]


def test_what_may_draw_stays_with_the_thread_that_trains(prepared, collator, bert_tokenizer):
    own = MultiTeacherCollator(DataCollatorWithPadding(bert_tokenizer), {})
    stream = DataLoader(prepared.to_iterable_dataset(), batch_size=4, collate_fn=collator)
    for loader in (
        loader_of(prepared, own),
        loader_of(prepared, collator, workers=1),
        prepare_data_loader(stream, torch.device("cpu"), put_on_device=True),
    ):
        assert ahead(loader) is loader


def test_training_with_batches_ahead_is_training_without_to_the_bit(
    tmp_path, bert_tokenizer, roberta_tokenizer, monkeypatch
):
    teachers = [
        Teacher(make_bert(bert_tokenizer, list(LABELS)), bert_tokenizer, name="bert"),
        Teacher(make_roberta(roberta_tokenizer, list(LABELS)), roberta_tokenizer, name="roberta"),
    ]
    rows = datasets.Dataset.from_list(sentences(21, seed=2))
    weights = []
    for wrapped in (ahead, lambda loader: loader):
        monkeypatch.setattr(student_trainer, "ahead", wrapped)
        trainer = make_trainer(
            tmp_path, teachers, bert_tokenizer, rows, student=make_student(bert_tokenizer, dropout=0.2),
            label_names=list(LABELS), max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.train()
        weights.append(trainer.student.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
