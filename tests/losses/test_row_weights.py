"""Row weights: values by hand and by numpy and scipy, their range, missing classes, and no graph."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch

from conftest import make_student
from hf_distill import DistillationArguments, LinearPool, MultiTeacherDistillationTrainer
from hf_distill.losses.row_weights import ROW_WEIGHTS, student_entropy, teacher_agreement

every_weight = pytest.mark.parametrize("weight", ROW_WEIGHTS.values(), ids=list(ROW_WEIGHTS))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_table_names_the_functions():
    assert {name: function.__name__ for name, function in ROW_WEIGHTS.items()} == {
        "student_entropy": "student_entropy",
        "teacher_agreement": "teacher_agreement",
    }


def test_entropy_by_hand():
    student = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [1, 0, 0, 0]]).log()
    student = student.clamp(min=-200)  # a logit of -inf would be a class that cannot be learnt
    assert student_entropy(student, torch.zeros(2, 3, 4)).tolist() == pytest.approx([1, 0.5, 0])


def test_entropy_by_scipy():
    student = logits(40, 7)
    expected = [
        scipy.stats.entropy(scipy.special.softmax(row)) / math.log(7) for row in student.double().numpy()
    ]
    assert student_entropy(student, torch.zeros(1, 40, 7)).numpy() == pytest.approx(expected, abs=1e-6)


def test_entropy_counts_the_classes_that_some_teacher_has():
    student = torch.tensor([[0.0, 0.0, 5.0]])
    mask = torch.tensor([[[True, False, False]], [[False, True, False]]])
    assert student_entropy(student, torch.zeros(2, 1, 3), mask=mask).item() == pytest.approx(1)
    # The trainer says the same by a logit of -inf.
    assert student_entropy(
        torch.tensor([[0.0, 0.0, -torch.inf]]), torch.zeros(2, 1, 3)
    ).item() == pytest.approx(1)
    one = mask & torch.tensor([True, False, False])
    assert student_entropy(student, torch.zeros(2, 1, 3), mask=one).item() == 0


def test_entropy_ignores_the_teachers():
    student = logits(5, 3)
    broken = torch.full((2, 5, 3), torch.nan)
    assert student_entropy(student, broken).equal(student_entropy(student, logits(2, 5, 3, seed=1)))


def test_agreement_by_hand():
    """(0.5, 0.5) with (1, 0): m = (0.75, 0.25), JSD = ln 4/3 · 3/4 + … = 0.215762 nats of at most ln 2."""
    teachers = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).log()
    jsd = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) + 0.5 * math.log(1 / 0.75)
    assert jsd == pytest.approx(0.215762, abs=1e-6)
    assert teacher_agreement(torch.zeros(1, 2), teachers).item() == pytest.approx(
        1 - jsd / math.log(2), abs=1e-6
    )


def test_agreement_of_two_by_scipy():
    teachers = logits(2, 30, 5)
    p = scipy.special.softmax(teachers.double().numpy(), axis=-1)
    expected = [1 - scipy.spatial.distance.jensenshannon(a, b, base=2) ** 2 for a, b in zip(*p, strict=True)]
    assert teacher_agreement(torch.zeros(30, 5), teachers).numpy() == pytest.approx(expected, abs=1e-6)


def test_agreement_of_four_by_numpy():
    teachers = logits(4, 30, 6, seed=1)
    p = scipy.special.softmax(teachers.double().numpy(), axis=-1)

    def entropy(q):
        return -np.sum(q * np.log(q), axis=-1)

    expected = 1 - (entropy(p.mean(0)) - entropy(p).mean(0)) / np.log(4)
    assert teacher_agreement(torch.zeros(30, 6), teachers).numpy() == pytest.approx(expected, abs=1e-6)


def test_agreement_at_its_ends():
    same = logits(1, 6, 4).expand(3, 6, 4)
    assert teacher_agreement(torch.zeros(6, 4), same).tolist() == pytest.approx([1] * 6)
    apart = torch.full((3, 1, 3), -200.0)
    apart[[0, 1, 2], 0, [0, 1, 2]] = 0.0
    assert teacher_agreement(torch.zeros(1, 3), apart).item() == pytest.approx(0, abs=1e-6)
    assert teacher_agreement(torch.zeros(6, 4), logits(1, 6, 4)).tolist() == [1] * 6


def test_agreement_where_teachers_lack_classes():
    """Conditional on the classes that both have they agree, so they agree."""
    absent = -torch.inf
    teachers = torch.tensor([[[0.5, 0.5, 0.0]], [[0.2, 0.2, 0.6]]]).log()
    mask = teachers > absent
    assert teacher_agreement(torch.zeros(1, 3), teachers, mask=mask).item() == pytest.approx(1, abs=1e-5)
    other = torch.tensor([[[0.9, 0.1, 0.0]], [[0.2, 0.2, 0.6]]]).log()
    assert teacher_agreement(torch.zeros(1, 3), other, mask=mask).item() < 0.95
    full = logits(3, 8, 4)
    plain = teacher_agreement(torch.zeros(8, 4), full)
    masked = teacher_agreement(torch.zeros(8, 4), full, mask=torch.ones(3, 8, 4, dtype=torch.bool))
    assert masked.tolist() == pytest.approx(plain.tolist(), abs=1e-5)


def test_agreement_falls_as_teachers_part():
    first = torch.tensor([[[2.0, 0.0, -1.0]]])
    gaps = [0, 0.5, 1, 2, 4, 8]
    values = [
        teacher_agreement(
            torch.zeros(1, 3), torch.cat([first, first + torch.tensor([-gap, gap, 0.0])])
        ).item()
        for gap in gaps
    ]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(gaps)


def test_entropy_falls_as_the_student_grows_surer():
    direction = torch.tensor([[2.0, 0.0, -1.0]])
    values = [student_entropy(scale * direction, torch.zeros(1, 1, 3)).item() for scale in (0, 0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(1)


@every_weight
@pytest.mark.parametrize("teachers", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_shares_in_float32_without_a_graph(weight, teachers, dtype):
    for scale in (0.0, 1.0, 30.0):
        student = logits(9, 4, scale=scale).to(dtype).requires_grad_()
        values = weight(student, logits(teachers, 9, 4, seed=2, scale=scale).to(dtype))
        assert values.shape == (9,) and values.dtype == torch.float32 and not values.requires_grad
        assert values.min() >= 0 and values.max() <= 1


@every_weight
def test_no_rows_no_weights(weight):
    assert weight(torch.zeros(0, 3), torch.zeros(2, 0, 3)).shape == (0,)


@every_weight
def test_classes_and_teachers_have_no_order(weight):
    student, teachers = logits(9, 4), logits(3, 9, 4, seed=5)
    order = [2, 0, 3, 1]
    turned = weight(student[:, order], teachers[[2, 0, 1]][..., order])
    assert turned.tolist() == pytest.approx(weight(student, teachers).tolist(), abs=1e-6)


@every_weight
def test_in_training_only_teachers_that_are_heard_have_a_say(
    tmp_path, teachers, bert_tokenizer, rows, held_out, weight
):
    """One of weight 0 is not even run; training and evaluation lose nothing by it, and agree on the weights."""

    def losses(teachers, weights):
        trainer = MultiTeacherDistillationTrainer(
            model=make_student(bert_tokenizer),
            teachers=teachers,
            args=DistillationArguments(
                str(tmp_path), use_cpu=True, max_steps=2, logging_steps=1, save_strategy="no", report_to="none",
                disable_tqdm=True, eval_strategy="steps", eval_steps=1,
            ),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=bert_tokenizer,
            fusion=LinearPool(weights),
            row_weight=weight,
        )  # fmt: skip
        trainer.train()
        history = trainer.state.log_history
        return [log[key] for log in history for key in ("loss_distill", "eval_loss_distill") if key in log]

    bert, roberta, deberta = teachers
    found = losses([bert, roberta, deberta], (1, 0, 1))
    assert len(found) == 4 and found == pytest.approx(losses([bert, deberta], (1, 1)), rel=1e-5)
