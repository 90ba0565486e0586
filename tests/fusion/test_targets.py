"""Targets: which teachers run, what labels add, and what a batch without some classes teaches."""

from __future__ import annotations

import math

import pytest
import torch
from test_trainer import LABELS, make_trainer

from conftest import make_bert, make_roberta
from hf_distill import LinearPool, Teacher, TeacherPool
from hf_distill.fusion import BestTeacher, MajorityVote, StochasticTeacher
from hf_distill.fusion.alignment import TeacherBatch, TeacherOutputs
from hf_distill.fusion.targets import Draws, make_targets, mix_in_labels

P = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]])


class Counted:
    """A source that says the same of every row, and counts how often it was asked."""

    view = None

    def __init__(self, name, logits, labels=LABELS):
        self.name, self.logits, self.label_names, self.calls = name, torch.tensor(logits), tuple(labels), 0

    def __call__(self, view, example_id):
        self.calls += 1
        return TeacherOutputs(self.logits.expand(len(example_id), -1))


def test_label_share_by_hand():
    batch = TeacherBatch(P.log(), None)
    targets = make_targets(batch, LinearPool(), temperature=1.0, labels=torch.tensor([0]), label_share=0.25)
    # p = (0.3, 0.7); 0.25·(1, 0) + 0.75·p
    assert targets.log_probs.exp().tolist() == [pytest.approx([0.475, 0.525])]
    unlabelled = make_targets(
        batch, LinearPool(), temperature=1.0, labels=torch.tensor([-100]), label_share=0.25
    )
    assert unlabelled.log_probs.exp().tolist() == [pytest.approx([0.3, 0.7])]


def test_a_label_share_of_one_is_the_label():
    mixed = mix_in_labels(torch.tensor([[0.3, 0.7]]).log(), torch.tensor([0]), 1.0)
    assert mixed.tolist() == [[0.0, -math.inf]]


def test_no_label_reaches_the_target_of_an_evaluation():
    targets = make_targets(
        TeacherBatch(P.log(), None), LinearPool(), temperature=4.0, labels=None, label_share=1.0
    )
    assert targets.ensemble.exp().tolist() == [pytest.approx([0.3, 0.7])]  # at temperature 1
    assert targets.log_probs.exp()[0, 0] > 0.3  # at temperature 4: softer


def test_a_fixed_target_is_compared_at_temperature_one():
    targets = make_targets(
        TeacherBatch(P.log(), None), MajorityVote(), temperature=4.0, labels=torch.tensor([0])
    )
    assert targets.temperature == 1.0
    assert targets.log_probs.exp().tolist() == [[1.0, 0.0]]  # one vote each: the lowest class


def test_nothing_is_learnt_of_a_class_that_no_teacher_has_but_from_its_label():
    batch = TeacherBatch(
        torch.tensor([[[0.0, 0.0, -math.inf]]]),
        torch.tensor([[[True, True, False]]]),
        torch.tensor([False, False, True]),
    )
    labels = torch.tensor([2])
    assert make_targets(batch, LinearPool(), temperature=1.0, labels=labels).unknown.tolist() == [
        [False, False, True]
    ]
    annealed = make_targets(batch, LinearPool(), temperature=1.0, labels=labels, label_share=0.5)
    assert annealed.unknown.tolist() == [[False, False, False]]


def test_draws_depend_on_seed_step_and_process_alone():
    def numbers(draws, steps):
        return [torch.rand(1, generator=draws(step)).item() for step in steps]

    whole = numbers(Draws(0, 0), [0, 0, 1, 1, 2, 2])  # two micro-batches a step
    assert numbers(Draws(0, 0), [1, 1, 2, 2]) == whole[2:]  # resumed after the first step
    assert len(set(whole)) == 6
    assert numbers(Draws(1, 0), [0]) != whole[:1] != numbers(Draws(0, 1), [0])


def test_teachers_of_weight_zero_are_not_run_in_training():
    sources = [Counted("a", [0.0, 1.0]), Counted("b", [2.0, 0.0]), Counted("c", [math.nan, 0.0])]
    pool = TeacherPool(sources, LABELS, LinearPool(weights=(1, 1, 0)))
    inputs = {"teacher_views": {}, "example_id": torch.arange(4)}
    batch = pool.heard(inputs, None)
    assert [source.calls for source in sources] == [1, 1, 0]
    assert batch.logits[2].isnan().all()
    assert LinearPool(weights=(1, 1, 0))(batch.logits).isfinite().all()
    pool(inputs)  # a report is about every teacher
    assert [source.calls for source in sources] == [2, 2, 1]


def test_a_drawn_teacher_is_the_only_one_that_runs():
    sources = [Counted("a", [0.0, 1.0]), Counted("b", [2.0, 0.0])]
    pool = TeacherPool(sources, LABELS, StochasticTeacher(weights=(0, 1)))
    assert pool.draws
    batch = pool.heard({"teacher_views": {}, "example_id": torch.arange(4)}, torch.Generator())
    assert [source.calls for source in sources] == [0, 1]
    assert batch.logits.shape == (1, 4, 2)


def test_classes_that_only_a_silent_teacher_has_are_unknown():
    sources = [Counted("a", [0.0, 1.0], ["x", "y"]), Counted("b", [2.0, 0.0, 1.0], ["x", "y", "z"])]
    inputs = {"teacher_views": {}, "example_id": torch.arange(2)}
    pool = TeacherPool(sources, ["x", "y", "z"], BestTeacher(0, 2))
    assert pool(inputs).unknown.tolist() == [False, False, True]
    pool.listen(BestTeacher(1, 2))
    assert pool(inputs).unknown is None


def test_one_drawn_teacher_per_batch_trains_and_the_same_seed_draws_the_same(
    tmp_path, rows, bert_tokenizer, roberta_tokenizer
):
    def losses(name, seed):
        teachers = [
            Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert"),
            Teacher(make_roberta(roberta_tokenizer, LABELS), roberta_tokenizer, name="roberta"),
        ]
        trainer = make_trainer(
            tmp_path / name, teachers, bert_tokenizer, rows, fusion=StochasticTeacher(weights=(1, 1)),
            max_steps=6, seed=seed, gradient_accumulation_steps=2, per_device_train_batch_size=4,
        )  # fmt: skip
        trainer.train()
        return [entry["loss_distill"] for entry in trainer.state.log_history if "loss_distill" in entry]

    assert losses("one", 0) == losses("two", 0)


def test_an_evaluation_logs_the_ensembles_own_loss(tmp_path, rows, held_out, bert_tokenizer):
    teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
    trainer = make_trainer(
        tmp_path, [teacher], bert_tokenizer, rows, eval_dataset=held_out, fusion=LinearPool()
    )
    found = trainer.evaluate()
    report = trainer.evaluate_ensemble(metrics=["nll"])
    assert found["eval_loss_ensemble"] == pytest.approx(report.systems["ensemble"].metrics["nll"], abs=1e-6)


@pytest.mark.parametrize(
    "row_weight", ["student_entropy", lambda s, t, *, mask=None: torch.full((len(s),), 0.25)]
)
def test_row_weights_multiply_the_distillation_term_alone(tmp_path, rows, bert_tokenizer, row_weight):
    def first_log(name, **options):
        teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
        trainer = make_trainer(tmp_path / name, [teacher], bert_tokenizer, rows, max_steps=1, **options)
        trainer.train()
        return trainer.state.log_history[0]

    plain, weighed = first_log("plain"), first_log("weighed", row_weight=row_weight)
    assert weighed["loss_task"] == plain["loss_task"]
    if callable(row_weight):
        assert weighed["loss_distill"] == pytest.approx(0.25 * plain["loss_distill"], rel=1e-5)
    else:
        assert 0 < weighed["loss_distill"] < plain["loss_distill"]
