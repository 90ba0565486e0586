"""Losses of labels and numbers, and those that ask more than probabilities: by hand, and against numpy."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from hf_distill.errors import ConfigurationError
from hf_distill.losses import (
    ALL_LOSSES,
    LOSSES,
    WeightedLosses,
    bernoulli_kl,
    binary_cross_entropy,
    build_distillation_loss,
    cross_entropy,
    dist,
    dkd,
    forward_kl,
    gaussian_mse,
    huber,
    reverse_kl,
    standardize_logits,
)
from hf_distill.losses.properties import declare_distillation, distillation_properties
from hf_distill.losses.several import call_loss, refuse_few_outputs

NAN = float("nan")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


# ---- Labels and numbers ----


def test_bernoulli_kl_is_the_kl_of_two_classes_per_label():
    student, target = draw(5, 3), draw(5, 3, seed=1)

    def two(z):
        return torch.stack([torch.zeros_like(z), z], -1)

    expected = sum(
        forward_kl(two(student[:, c]), torch.log_softmax(two(target[:, c]), -1), temperature=2.0)
        for c in range(3)
    )
    assert torch.allclose(bernoulli_kl(student, target, temperature=2.0), expected, atol=1e-5)


def test_a_label_that_nobody_knows_counts_nothing_and_certain_targets_are_finite():
    student = draw(2, 3).requires_grad_()
    target = torch.tensor([[1.0, NAN, -1.0], [math.inf, -math.inf, NAN]])
    for loss in (bernoulli_kl, gaussian_mse, huber):
        given = target if loss is bernoulli_kl else target.nan_to_num(NAN, 2.0, -2.0)
        (gradient,) = torch.autograd.grad(loss(student, given).sum(), student)
        assert gradient.isfinite().all() and gradient[0, 1] == gradient[1, 2] == 0 and gradient[0, 0] != 0
    certain = bernoulli_kl(torch.zeros(1, 2), torch.tensor([[math.inf, -math.inf]]))
    assert certain.item() == pytest.approx(2 * math.log(2))


def test_task_losses_of_labels_smoothed_weighted_and_unlabelled():
    logits, labels = draw(4, 2), torch.tensor([[1.0, 0.0], [0.3, 1.0], [NAN, NAN], [0.0, 0.0]])
    z, y = logits[:2].double().numpy(), labels[:2].double().numpy()
    y = 0.9 * y + 0.05
    log_yes, log_no = -np.log1p(np.exp(-z)), -np.log1p(np.exp(z))
    expected = -(np.array([2.0, 1.0]) * y * log_yes + (1 - y) * log_no).sum(1)
    found = binary_cross_entropy(logits, labels, label_smoothing=0.1, class_weights=torch.tensor([2.0, 1.0]))
    assert found[:2].numpy() == pytest.approx(expected, rel=1e-5) and found[2] == 0


def test_cross_entropy_with_distributions_and_weights():
    logits = draw(3, 3)
    soft = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [NAN] * 3])
    log_q = torch.log_softmax(logits, -1)
    found = cross_entropy(logits, soft)
    assert torch.allclose(found[:2], -(soft[:2] * log_q[:2]).sum(-1)) and found[2] == 0
    assert found[1] == cross_entropy(logits, torch.tensor([0, 1, 2]))[1]
    weighted = cross_entropy(logits, torch.tensor([0, 1, -100]), class_weights=torch.tensor([2.0, 0.5, 1.0]))
    plain = cross_entropy(logits, torch.tensor([0, 1, -100]))
    assert torch.allclose(weighted, plain * torch.tensor([2.0, 0.5, 1.0]))


def test_huber_by_hand():
    assert huber(torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1), delta=2.0).tolist() == [0.125, 4.0]
    with pytest.raises(ValueError, match="delta is 0"):
        huber(torch.zeros(1, 1), torch.zeros(1, 1), delta=0)


# ---- Structure ----


def test_dkd_against_numpy_and_with_equal_weights_of_its_parts_the_whole():
    student, teacher, labels = draw(6, 5), draw(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    target = torch.log_softmax(teacher / 4, -1)
    p, q = (
        np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        for x in (teacher.double().numpy() / 4, student.double().numpy() / 4)
    )
    expected = []
    for row, y in enumerate(labels.tolist()):
        others = [c for c in range(5) if c != y]
        two = [(a[row, y], a[row, others].sum()) for a in (p, q)]
        binary = sum(a * np.log(a / b) for a, b in zip(*two, strict=True))
        among = [a[row, others] / a[row, others].sum() for a in (p, q)]
        expected.append(16 * (binary + 8 * (among[0] * np.log(among[0] / among[1])).sum()))
    assert dkd(student, target, labels=labels, temperature=4.0).numpy() == pytest.approx(expected, rel=1e-4)
    unlabelled = dkd(student, target, labels=torch.full((6,), -100), temperature=4.0)
    assert torch.allclose(unlabelled, forward_kl(student, target, temperature=4.0))


def test_dist_against_numpy():
    student, teacher = draw(6, 4), draw(6, 4, seed=1)
    p, q = (torch.softmax(x / 2, -1).double().numpy() for x in (teacher, student))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    value = dist(student, torch.log_softmax(teacher / 2, -1), temperature=2.0, beta=2.0, gamma=0.5)
    assert value.ndim == 0 and value.item() == pytest.approx(
        4 * (2 * (1 - rows) + 0.5 * (1 - columns)), rel=1e-4
    )
    assert dist(student, torch.log_softmax(student, -1)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_standardised_divergences_see_neither_shift_nor_scale(name):
    student, teacher = draw(4, 5), draw(4, 5, seed=1)
    loss = functools.partial(LOSSES[name], temperature=2.0, standardize=True)
    value = loss(student, torch.log_softmax(teacher / 2, -1))
    assert torch.allclose(value, loss(3 * student + 1, torch.log_softmax(5 * teacher / 2, -1)), atol=1e-5)
    z = [(x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-7) for x in (student, teacher)]
    expected = LOSSES[name](z[0], torch.log_softmax(z[1] / 2, -1), temperature=2.0)
    assert torch.allclose(value, expected, atol=1e-5)
    # a class that nobody knows stays out
    unknown = torch.cat([student, torch.full((4, 1), -torch.inf)], -1)
    with_unknown = torch.cat([torch.log_softmax(teacher / 2, -1), torch.full((4, 1), -torch.inf)], -1)
    assert torch.allclose(loss(unknown, with_unknown), value, atol=1e-5)
    flat = torch.zeros(1, 3, requires_grad=True)
    loss(flat, torch.log_softmax(torch.tensor([[1.0, 0.0, 0.0]]), -1)).sum().backward()
    assert flat.grad.isfinite().all()


def test_two_classes_are_refused():
    student, target = draw(2, 2), torch.log_softmax(draw(2, 2, seed=1), -1)
    for loss in (
        functools.partial(dkd, labels=torch.tensor([0, 1])), dist, functools.partial(forward_kl, standardize=True),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="at least 3 classes"):
            loss(student, target)
        with pytest.raises(ConfigurationError, match="needs at least 3 classes"):
            refuse_few_outputs(loss, 2)
    with pytest.raises(ConfigurationError):
        refuse_few_outputs(WeightedLosses((forward_kl, dist), (1.0, 1.0)), 2)
    refuse_few_outputs(forward_kl, 2)
    with pytest.raises(ValueError):
        standardize_logits(student)


# ---- Several ----


def test_several_losses_with_weights():
    student, target, labels = (
        draw(3, 4),
        torch.log_softmax(draw(3, 4, seed=1), -1),
        torch.tensor([0, 1, -100]),
    )
    loss = build_distillation_loss(
        [{"use": "dkd", "beta": 2, "weight": 0.5}, {"use": "dist"}, "reverse_kl"], ALL_LOSSES
    )
    expected = (
        0.5 * dkd(student, target, labels=labels, temperature=2.0, beta=2)
        + dist(student, target, temperature=2.0)
        + reverse_kl(student, target, temperature=2.0)
    )
    assert torch.equal(call_loss(loss, student, target, 2.0, labels), expected)
    assert loss.properties == ("categorical", True, False, 3)
    for wrong in (
        [],
        [{"use": "dist", "weight": 0}],
        [{"use": "dist", "weight": True}],
        ["forward_kl", "huber"],
    ):
        with pytest.raises(ConfigurationError):
            build_distillation_loss(wrong, ALL_LOSSES)


def test_a_loss_says_what_it_is():
    @declare_distillation(family="gaussian", fewest_classes=1)
    def own(student, target, *, temperature):
        return (student - target).abs().sum(-1)

    assert distillation_properties(functools.partial(own)).family == "gaussian"
    assert distillation_properties(len) == ("categorical", False, True, 2)
    assert all(distillation_properties(loss).additive for name, loss in ALL_LOSSES.items() if name != "dist")
