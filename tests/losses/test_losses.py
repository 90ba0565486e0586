"""Hand-computed values, limits, and an independent reference in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_distill.losses import (
    LOSSES,
    cross_entropy,
    forward_kl,
    jsd,
    logit_mse,
    on_logits,
    reduce_loss,
    reverse_kl,
)

STUDENT = torch.tensor([[0.3, 0.7]]).log()
TARGET = torch.tensor([[0.2, 0.8]]).log()


def test_worked_example():
    assert cross_entropy(STUDENT, torch.tensor([1])).item() == pytest.approx(0.356675, abs=1e-6)
    assert forward_kl(STUDENT, TARGET).item() == pytest.approx(0.025732, abs=1e-6)
    assert reverse_kl(STUDENT, TARGET).item() == pytest.approx(0.028168, abs=1e-6)
    # m = (0.25, 0.75): (KL(p‖m) + KL(q‖m)) / 2 = (0.007002 + 0.006402) / 2
    assert jsd(STUDENT, TARGET).item() == pytest.approx(0.006702, abs=1e-6)
    # centred logits of (1, 3) and (0, 4) are (-1, 1) and (-2, 2)
    assert logit_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])).item() == 1.0


def reference(name, s, z, t):
    """float64 numpy, written from the definitions, at temperature t on both sides."""
    s, z = s.double().numpy() / t, z.double().numpy() / t
    q = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    m = (p + q) / 2

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    if name == "logit_mse":
        s, z = s * t, z * t
        return ((s - s.mean(-1, keepdims=True) - z + z.mean(-1, keepdims=True)) ** 2).mean(-1)
    return t**2 * {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[name]


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_against_numpy(name, temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator) * 3 for _ in range(2))
    target = torch.log_softmax(teacher / temperature, -1)
    values = LOSSES[name](student, target, temperature=temperature)
    assert values.shape == (6,) and values.dtype == torch.float32
    np.testing.assert_allclose(
        values.numpy(), reference(name, student, teacher, temperature), rtol=2e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_invariants(name):
    """Zero at the target and only there, blind to a shift of the logits, float32 whatever comes in."""
    loss = LOSSES[name]
    student = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    own = torch.log_softmax(student.detach() / 2.0, -1)
    assert loss(student, own, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
    other = torch.log_softmax(torch.tensor([[0.0, 1.0, 0.0]]), -1)
    value = loss(student, other, temperature=2.0)
    assert value.item() > 0.01
    assert loss(student + 7.0, other, temperature=2.0).item() == pytest.approx(value.item(), rel=1e-5)
    assert loss(student.half(), other.half(), temperature=2.0).dtype == torch.float32
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.sum().abs() < 1e-6  # softmax and centring ignore a shift


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_class_nobody_knows_is_left_out_with_its_gradient(name):
    known = torch.tensor([[1.0, -1.0, 3.0]], requires_grad=True)
    target = torch.log_softmax(torch.tensor([[0.5, 0.0]]), -1)
    with_unknown = torch.cat([target, torch.tensor([[-torch.inf]])], -1)
    masked = known.index_fill(-1, torch.tensor([2]), -torch.inf)
    value = LOSSES[name](masked, with_unknown, temperature=2.0)
    assert value.item() == pytest.approx(LOSSES[name](known[:, :2], target, temperature=2.0).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), known)
    assert gradient[0, 2] == 0 and gradient.isfinite().all() and gradient[0, 0] != 0


def test_probability_zero_in_the_target():
    """0·log 0 = 0 forwards; a student that believes in the impossible is infinitely far backwards."""
    target = torch.tensor([[0.0, -torch.inf]])
    student = torch.tensor([[0.5, 0.5]], requires_grad=True)
    value = forward_kl(student, target)
    assert value.item() == pytest.approx(np.log(2), rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.tolist() == [[pytest.approx(-0.5), pytest.approx(0.5)]]
    assert reverse_kl(student, target).item() == torch.inf
    assert jsd(student, target).item() == pytest.approx(
        0.5 * np.log(4 / 3) + 0.5 * (0.5 * np.log(2 / 3) + 0.5 * np.log(2)), rel=1e-5
    )


def test_jsd_ends_are_the_two_divergences():
    options = {"temperature": 2.0}
    assert torch.equal(jsd(STUDENT, TARGET, beta=0.0, **options), forward_kl(STUDENT, TARGET, **options))
    assert torch.equal(jsd(STUDENT, TARGET, beta=1.0, **options), reverse_kl(STUDENT, TARGET, **options))
    with pytest.raises(ValueError, match=r"beta is 1.5"):
        jsd(STUDENT, TARGET, beta=1.5)


def test_half_of_logit_mse_is_the_limit_of_the_softened_divergence():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, 6, generator=generator).double() for _ in range(2))
    t = 300.0
    # float32 inside: at T = 300 the divergence is a difference of numbers near log C, hence the tolerance
    softened = forward_kl(student, torch.log_softmax(teacher / t, -1), temperature=t)
    np.testing.assert_allclose(softened, logit_mse(student, teacher) / 2, rtol=0.05)


def test_on_logits_hands_over_temperature_times_log_probs():
    seen = {}

    def loss(student_logits, teacher_logits):
        seen["teacher"] = teacher_logits
        return student_logits.sum(-1)

    on_logits(loss)(STUDENT, TARGET, temperature=3.0)
    assert torch.equal(seen["teacher"], 3.0 * TARGET)


def test_cross_entropy_without_label_is_zero_without_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    values = cross_entropy(logits, torch.tensor([-100, 2]))
    assert values.tolist() == [0.0, pytest.approx(np.log(3))]
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient[0].abs().sum() == 0


def test_reduce_loss():
    values = torch.tensor([1.0, 3.0, torch.nan], requires_grad=True)
    mask = torch.tensor([True, True, False])
    assert reduce_loss(values, mask=mask).item() == 2.0
    assert reduce_loss(values, mask=mask, num_items=8).item() == 0.5
    assert reduce_loss(torch.tensor([1.0, 3.0])).item() == 2.0
    empty = reduce_loss(values, mask=torch.zeros(3, dtype=torch.bool))
    assert empty.item() == 0.0
    empty.backward()  # it keeps its graph: under DDP every process must take part in the backward pass
    assert values.grad.tolist() == [0.0, 0.0, 0.0]
