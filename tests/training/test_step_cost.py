"""What a step does besides its forwards: nothing that waits, copies what it has, or grows with the rows in Python."""

from __future__ import annotations

import gc
import sys
from collections import Counter

import datasets
import pytest
from test_trainer import make_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import make_bert, make_roberta, make_student, sentences
from hf_distill import Teacher

LABELS = ["negative", "positive"]
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
COPIES = {"_to_copy", "clone", "copy_", "contiguous"}


class Outside(TorchDispatchMode):
    """Counts what is asked of the device outside of the models' own forwards."""

    def __init__(self, models) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._inside = 0
        self.hooks = []
        for model in models:
            for register, step in ((model.register_forward_pre_hook, 1), (model.register_forward_hook, -1)):
                self.hooks.append(
                    register(lambda *_, step=step: setattr(self, "_inside", self._inside + step))
                )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self._inside:
            name = func.__name__.partition(".")[0]
            self.counts[name] += 1
            if name in WAITS:
                pytest.fail(f"{name} waits for the device")
            if name in COPIES and args[0].dim() > 1:  # logits and masks; counts are numbers
                self.counts["copies"] += 1
        return func(*args, **(kwargs or {}))


def a_step(trainer, rows) -> tuple[Counter, int]:
    """The operations of one loss outside of the forwards, and how many Python functions it calls."""
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(inputs))  # what is found once is found
    outside = Outside([trainer.student, *(t.model for t in trainer.teachers if hasattr(t, "model"))])
    with outside:
        trainer.compute_loss(trainer.model, dict(inputs))
    for hook in outside.hooks:
        hook.remove()
    calls = []
    gc.collect()
    gc.disable()  # what others do when it collects (hypothesis measures it) is no part of a step
    sys.setprofile(lambda frame, event, arg: calls.append(1) if event == "call" else None)
    try:
        trainer.compute_loss(trainer.model, dict(inputs))
    finally:
        sys.setprofile(None)
        gc.enable()
    return outside.counts, len(calls)


@pytest.mark.parametrize("cached", [False, True])
def test_a_step_waits_for_nothing_copies_nothing_and_does_not_loop_over_rows(
    tmp_path, bert_tokenizer, roberta_tokenizer, cached
):
    own = [*LABELS, "neutral"]
    teachers = [
        Teacher(make_bert(bert_tokenizer, own), bert_tokenizer, name="bert"),
        Teacher(make_roberta(roberta_tokenizer, own[::-1]), roberta_tokenizer, name="roberta"),
    ]
    trainer = make_trainer(
        tmp_path, teachers, bert_tokenizer, datasets.Dataset.from_list(sentences(48, seed=1)),
        student=make_student(bert_tokenizer, own), label_names=own, cache_dir=tmp_path / "cache" if cached else None, fusion="linear_pool",
    )  # fmt: skip
    (few, few_calls), (many, many_calls) = a_step(trainer, 6), a_step(trainer, 48)
    assert few == many and few_calls == many_calls
    # Of each live teacher its logits, which come from the inference mode; of each cached one, which are stored in float16.
    assert few["copies"] == len(teachers)


def test_a_step_unwraps_no_model_that_is_not_wrapped(tmp_path, bert_tokenizer, monkeypatch):
    teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
    rows = datasets.Dataset.from_list(sentences(8, seed=1))
    trainer = make_trainer(
        tmp_path, [teacher], bert_tokenizer, rows, label_names=LABELS, hidden_losses=["hidden_mse"]
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.compute_loss(trainer.model, dict(inputs))  # what is found once is found
    # accelerate looks for packages on the disk each time.
    monkeypatch.setattr(
        trainer.accelerator, "unwrap_model", lambda model: pytest.fail("a step has no time for it")
    )
    trainer.compute_loss(trainer.model, dict(inputs))
