"""Hand-computed values, independent references in numpy, invariances, masks and corners of the gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hf_distill.errors import ConfigurationError
from hf_distill.losses import (
    HIDDEN_LOSSES,
    geometry,
    hidden_cosine,
    hidden_mse,
    linear_cka,
    minilm_relations,
    pkd,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

BY_POSITION = ["hidden_mse", "hidden_cosine", "pkd"]
GEOMETRIC = ["rkd_distance", "rkd_angle", "similarity_preserving", "linear_cka"]
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(name, seed=0):
    """Student, teacher and the rest of a call that every loss of the table accepts."""
    if name in BY_POSITION:
        return random(3, 4, 6, seed=seed), random(3, 4, 6, seed=seed + 1), {"mask": MASK}
    if name in GEOMETRIC:
        return random(5, 6, seed=seed), random(5, 4, seed=seed + 1), {}
    options = {"mask": MASK, "relation_heads": 2}
    return random(3, 3, 4, 6, seed=seed), random(3, 3, 4, 8, seed=seed + 1), options


# Independent references, loop by loop, float64.


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def smooth_l1(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def by_position(one):
    def loss(student, teacher, mask):
        return np.array(
            [
                np.mean([one(s, t) for s, t, m in zip(*row, strict=True) if m])
                for row in zip(student, teacher, mask, strict=True)
            ]
        )

    return loss


def reference_distance(student, teacher):
    def relative(rows):
        d = np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])
        return d / d[~np.eye(len(rows), dtype=bool)].mean()

    pairs = zip(relative(student).ravel(), relative(teacher).ravel(), strict=True)
    return np.mean([smooth_l1(a, b) for a, b in pairs])


def reference_angle(student, teacher):
    def angle(rows, i, j, k):
        return 0.0 if i in (j, k) else cosine(rows[j] - rows[i], rows[k] - rows[i])

    triples = itertools.product(range(len(student)), repeat=3)
    return np.mean([smooth_l1(angle(student, *t), angle(teacher, *t)) for t in triples])


def reference_similarity(student, teacher):
    def lines(rows):
        gram = rows @ rows.T
        return np.stack([line / np.linalg.norm(line) for line in gram])

    return np.linalg.norm(lines(student) - lines(teacher)) ** 2 / len(student) ** 2


def reference_cka(student, teacher):
    s, t = student - student.mean(0), teacher - teacher.mean(0)
    norm = np.linalg.norm
    return 1 - norm(s.T @ t) ** 2 / (norm(s.T @ s) * norm(t.T @ t))


def reference_relations(student, teacher, mask, relation_heads):
    def relation(tokens):
        scores = tokens @ tokens.T / np.sqrt(tokens.shape[1])
        e = np.exp(scores - scores.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    values = []
    for row in range(len(mask)):
        value = 0.0
        for s, t in zip(student, teacher, strict=True):
            heads = zip(
                np.split(s[row][mask[row]], relation_heads, axis=1),
                np.split(t[row][mask[row]], relation_heads, axis=1),
                strict=True,
            )
            for ours, theirs in heads:
                p, q = relation(theirs), relation(ours)
                value += (p * np.log(p / q)).sum() / (relation_heads * mask[row].sum())
        values.append(value)
    return np.array(values)


REFERENCES = {
    "hidden_mse": by_position(lambda s, t: np.mean((s - t) ** 2)),
    "hidden_cosine": by_position(lambda s, t: 1 - cosine(s, t)),
    "pkd": by_position(lambda s, t: np.sum((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2)),
    "rkd_distance": reference_distance,
    "rkd_angle": reference_angle,
    "similarity_preserving": reference_similarity,
    "linear_cka": reference_cka,
    "minilm_relations": reference_relations,
}


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
@pytest.mark.parametrize("seed", [0, 10])
def test_against_numpy(name, seed):
    student, teacher, options = arguments(name, seed)
    values = HIDDEN_LOSSES[name](student, teacher, **options)
    assert values.dtype == torch.float32
    assert values.shape == (() if name in GEOMETRIC else (3,))
    plain = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected = REFERENCES[name](student.double().numpy(), teacher.double().numpy(), **plain)
    np.testing.assert_allclose(values.numpy(), expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_zero_at_the_teacher_and_only_there_and_downhill_from_elsewhere(name):
    loss = HIDDEN_LOSSES[name]
    student, teacher, options = arguments(name)
    assert loss(teacher, teacher, **options).abs().max() < 1e-5
    student.requires_grad_()
    value = loss(student, teacher, **options).sum()
    assert value.item() > 0.01
    (gradient,) = torch.autograd.grad(value, student)
    nearer = loss(student - 1e-2 * gradient / gradient.norm(), teacher, **options).sum()
    assert nearer.item() < value.item()


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_float32_arithmetic_comes_out(name, dtype):
    student, teacher, options = arguments(name)
    student, teacher = student.to(dtype), teacher.to(dtype)
    values = HIDDEN_LOSSES[name](student, teacher, **options)
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values, HIDDEN_LOSSES[name](student.float(), teacher.float(), **options), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_autocast_changes_nothing(name):
    student, teacher, options = arguments(name)
    expected = HIDDEN_LOSSES[name](student, teacher, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(HIDDEN_LOSSES[name](student, teacher, **options), expected)


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_a_teacher_from_inference_mode_can_be_learnt_from(name):
    student, teacher, options = arguments(name)
    with torch.inference_mode():
        teacher = teacher + 0
    student.requires_grad_()
    HIDDEN_LOSSES[name](student, teacher, **options).sum().backward()
    assert student.grad.abs().sum() > 0


# Position by position


def test_hand_computed_by_position():
    student = torch.tensor([[[1.0, 3.0], [3.0, 4.0], [7.0, 7.0]]])
    teacher = torch.tensor([[[0.0, 1.0], [5.0, 0.0], [0.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    # (1 + 4)/2 and (4 + 16)/2; cosines 3/√10 and 3/5
    assert hidden_mse(student, teacher, mask).item() == pytest.approx((2.5 + 10) / 2)
    assert hidden_cosine(student, teacher, mask).item() == pytest.approx(
        1 - (3 / 10**0.5 + 0.6) / 2, rel=1e-5
    )
    assert pkd(student, teacher, mask).item() == pytest.approx(2 - 3 / 10**0.5 - 0.6, rel=1e-5)


@pytest.mark.parametrize("name", BY_POSITION)
def test_pooled_states_are_sequences_of_one(name):
    loss = HIDDEN_LOSSES[name]
    student, teacher = random(5, 6), random(5, 6, seed=1)
    one = loss(student[:, None], teacher[:, None], torch.ones(5, 1, dtype=torch.bool))
    torch.testing.assert_close(loss(student, teacher), one)
    torch.testing.assert_close(loss(student[:, None], teacher[:, None]), one)


@pytest.mark.parametrize("name", [*BY_POSITION, "minilm_relations"])
def test_padding_matters_neither_to_value_nor_gradient(name):
    """Other content, NaN, or more of it: a row counts alike however long its neighbours are."""
    loss = HIDDEN_LOSSES[name]
    student, teacher, options = arguments(name)
    student.requires_grad_()
    values = loss(student, teacher, **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    positions = options["mask"][..., None].expand(student.shape)
    assert gradient[~positions].abs().max() == 0 and gradient[positions].abs().sum() > 0
    for content in (1e4, torch.nan, torch.inf):
        noisy = [x.detach().masked_fill(~options["mask"][..., None], content) for x in (student, teacher)]
        noisy[0].requires_grad_()
        same = loss(*noisy, **options)
        assert torch.equal(same, values)
        assert torch.equal(torch.autograd.grad(same.sum(), noisy[0])[0], gradient)
    longer = [torch.cat([x, torch.full_like(x, torch.nan)], -2) for x in (student, teacher)]
    mask = torch.cat([options["mask"], torch.zeros_like(options["mask"])], -1)
    torch.testing.assert_close(loss(*longer, **{**options, "mask": mask}), values)
    integers = {**options, "mask": options["mask"].long()}  # as attention masks come
    assert torch.equal(loss(student, teacher, **integers), values)


@pytest.mark.parametrize("name", [*BY_POSITION, "minilm_relations"])
def test_rows_are_additive(name):
    loss = HIDDEN_LOSSES[name]
    student, teacher, options = arguments(name)
    rows_at = 0 if name in BY_POSITION else 1
    whole = loss(student, teacher, **options)
    for row in range(3):
        only = torch.tensor([row])
        alone = loss(
            student.index_select(rows_at, only),
            teacher.index_select(rows_at, only),
            **{**options, "mask": MASK[only]},
        )
        torch.testing.assert_close(alone, whole[only])


@pytest.mark.parametrize("name", [*BY_POSITION, "minilm_relations"])
def test_a_row_of_nothing_is_zero_with_a_graph(name):
    student, teacher, options = arguments(name)
    student.requires_grad_()
    values = HIDDEN_LOSSES[name](student, teacher, **{**options, "mask": torch.zeros_like(MASK)})
    assert values.tolist() == [0.0, 0.0, 0.0]
    values.sum().backward()
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("name", BY_POSITION)
def test_no_position_at_all(name):
    """Words that a batch does not have."""
    student = torch.zeros(2, 0, 6, requires_grad=True)
    values = HIDDEN_LOSSES[name](student, torch.zeros(2, 0, 6), torch.zeros(2, 0, dtype=torch.bool))
    assert values.tolist() == [0.0, 0.0] and values.requires_grad


@pytest.mark.parametrize("name", ["hidden_cosine", "pkd"])
def test_directions_ignore_length_and_a_zero_vector_can_learn(name):
    loss = HIDDEN_LOSSES[name]
    student, teacher = random(4, 6), random(4, 6, seed=1)
    torch.testing.assert_close(loss(1000 * student, 1e-3 * teacher), loss(student, teacher))
    torch.testing.assert_close(pkd(student, teacher), 2 * hidden_cosine(student, teacher))
    nothing = torch.zeros(1, 6, requires_grad=True)
    value = loss(nothing, teacher[:1])
    assert value.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(value.sum(), nothing)
    assert 0.5 < gradient.norm() < 3 and (gradient * teacher[:1]).sum() < 0
    zeros = torch.zeros(1, 6, requires_grad=True)
    loss(zeros, torch.zeros(1, 6)).sum().backward()
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("name", BY_POSITION)
def test_shapes_that_do_not_fit_are_refused_not_broadcast(name):
    loss = HIDDEN_LOSSES[name]
    with pytest.raises(ConfigurationError, match=rf"{name}: the student's states are \(3, 4, 6\).*project"):
        loss(random(3, 4, 6), random(3, 4, 1), MASK)
    with pytest.raises(ConfigurationError, match=r"align or pool"):
        loss(random(3, 4, 6), random(3, 5, 6))
    with pytest.raises(
        ConfigurationError, match=r"the mask is \(3, 4\), but the states \(3, 6\) need \(3,\)"
    ):
        loss(random(3, 6), random(3, 6), MASK)


# The shape of the batch


def rotation(size, seed=0):
    q, _ = torch.linalg.qr(random(size, size, seed=seed))
    return q


def test_hand_computed_geometry():
    line, bent = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    # Distances 1, 2, 1 over 4/3 and 1, 3, 2 over 2: (0.75, 1.5, 0.75) against (0.5, 1.5, 1), each pair twice
    assert rkd_distance(line, bent).item() == pytest.approx(2 * (0.25**2 + 0.25**2) / 2 / 9)
    # A right angle against a straight one at the corner (twice: j, k and k, j); 45° against 0° at the other two
    corner, straight = (
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.0], [1.0], [-1.0]]),
    )
    assert rkd_angle(corner, straight).item() == pytest.approx(
        (2 * 0.5 + 4 * (1 - 0.5**0.5) ** 2 / 2) / 27, rel=1e-5
    )
    # Beyond 1 the smooth L1 is linear: 0° against 180° at the middle, 2 − ½, and at an end 180° against 0°
    swapped = torch.tensor([[1.0], [0.0], [2.0]])
    assert rkd_angle(line, swapped).item() == pytest.approx((2 * 1.5 + 2 * 1.5) / 27, rel=1e-5)
    # Gram matrices of two rows: the identity, and all entries 1/√2 once its lines have length 1
    same = torch.tensor([[2.0], [2.0]])
    assert similarity_preserving(torch.eye(2), same).item() == pytest.approx(
        (2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4, rel=1e-5
    )
    # Centred: (−1, 0, 1) and (−4/3, −1/3, 5/3), CKA is the squared correlation 9/(2·42/9)
    assert linear_cka(line, bent).item() == pytest.approx(1 - 9 / (2 * 42 / 9), rel=1e-4)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_rotation_of_either_side_changes_nothing(name):
    loss = HIDDEN_LOSSES[name]
    student, teacher, _ = arguments(name)
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(student @ rotation(6), teacher), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(student, teacher @ rotation(4)), expected, rtol=1e-4, atol=1e-6)
    wider = torch.nn.functional.pad(student, (0, 3)) @ rotation(9)
    torch.testing.assert_close(loss(wider, student), torch.tensor(0.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_either_side_changes_nothing(name, scale):
    loss = HIDDEN_LOSSES[name]
    student, teacher, _ = arguments(name)
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(scale * student, teacher), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(student, scale * teacher), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "linear_cka"])
def test_a_shift_changes_nothing(name):
    student, teacher, _ = arguments(name)
    loss = HIDDEN_LOSSES[name]
    torch.testing.assert_close(loss(student + 3.0, teacher), loss(student, teacher), rtol=1e-4, atol=1e-6)


def test_similarity_preserving_sees_a_shift():
    student, teacher, _ = arguments("similarity_preserving")
    assert (
        similarity_preserving(student + 3.0, teacher) - similarity_preserving(student, teacher)
    ).abs() > 0.01


@pytest.mark.parametrize("name", GEOMETRIC)
def test_the_order_of_rows_changes_nothing(name):
    student, teacher, _ = arguments(name)
    order = torch.tensor([3, 0, 4, 1, 2])
    loss = HIDDEN_LOSSES[name]
    torch.testing.assert_close(
        loss(student[order], teacher[order]), loss(student, teacher), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometry_is_not_additive_over_micro_batches(name):
    """What the docstrings warn of."""
    loss = HIDDEN_LOSSES[name]
    student, teacher = random(8, 6), random(8, 4, seed=1)
    halves = (loss(student[:4], teacher[:4]) + loss(student[4:], teacher[4:])) / 2
    assert (halves - loss(student, teacher)).abs() > 1e-3


@pytest.mark.parametrize(
    ("name", "count"),
    # Two rows have no angle and one distance, but they have a similarity.
    [case for case in itertools.product(GEOMETRIC, range(3)) if case != ("similarity_preserving", 2)],
)
def test_too_few_rows_are_zero_with_a_graph(name, count):
    student = random(count, 6).requires_grad_()
    value = HIDDEN_LOSSES[name](student, random(count, 4, seed=1))
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    value.backward()
    assert student.grad.isfinite().all() and student.grad.abs().sum() < 1e-5


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[[0, 0, 1, 1, 2]],
        lambda rows: rows[[0] * 5],
        lambda rows: rows * 0,
        lambda rows: rows * torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]]),
    ],
    ids=["pairs", "all equal", "all zero", "two zero"],
)
def test_equal_and_zero_rows_have_finite_gradients(name, change):
    _, teacher, _ = arguments(name)
    rows = random(5, 6).requires_grad_()
    for other in (teacher, change(teacher)):
        value = HIDDEN_LOSSES[name](change(rows), other)
        (gradient,) = torch.autograd.grad(value, rows)
        assert value.isfinite() and gradient.isfinite().all() and gradient.norm() < 100


def test_rows_without_variance_have_no_alignment():
    constant = (100 * random(1, 6)).repeat(7, 1).requires_grad_()
    assert (constant - constant.mean(0)).abs().max() > 0
    value = linear_cka(constant, random(7, 4))
    assert value.item() == 1.0  # exactly: rounding of the mean must not pass for features
    value.backward()
    assert constant.grad.abs().max() == 0


def test_close_rows_keep_their_distances():
    """Rows that share nearly all of their length, as states of one layer do."""
    student, teacher = random(6, 8), random(6, 8, seed=1)
    common = 100 * random(1, 8, seed=2)
    for name in ("rkd_distance", "rkd_angle", "linear_cka"):
        exact = REFERENCES[name]((student.double() / 100 + common).float().double().numpy(), teacher.numpy())
        value = HIDDEN_LOSSES[name](student / 100 + common, teacher)
        assert value.item() == pytest.approx(exact, rel=5e-3)


def test_angles_in_pieces_are_the_angles_at_once(monkeypatch):
    student, teacher = random(7, 6).requires_grad_(), random(7, 4, seed=1)
    whole = rkd_angle(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    seen = []
    cosines = geometry._cosines
    monkeypatch.setattr(
        geometry,
        "_cosines",
        lambda rows, start, stop: seen.append(stop - start) or cosines(rows, start, stop),
    )
    monkeypatch.setattr(geometry, "_NUMBERS_AT_ONCE", 2 * 7 * 7)
    pieces = rkd_angle(student, teacher)
    assert seen == [2] * 6 + [1] * 2  # 2, 2, 2 and 1 rows, of student and teacher
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, student)[0], gradient)


# Relations between tokens


def test_relations_by_hand():
    student, teacher = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 2, 1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    q = np.e / (
        1 + np.e
    )  # token 0 sees itself with e, token 1 with 1; token 1 sees both alike, as in the teacher
    kl = 0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q))
    one = minilm_relations([student], [teacher], mask, relation_heads=1)
    assert one.item() == pytest.approx(kl / 2, rel=1e-5)
    # Q, K and V are summed, not averaged
    three = minilm_relations((student,) * 3, (teacher,) * 3, mask, relation_heads=1)
    assert three.item() == pytest.approx(3 * kl / 2, rel=1e-5)


def test_relations_take_other_widths_and_head_counts_and_a_rotation_within_heads():
    student, teacher, options = arguments("minilm_relations")
    value = minilm_relations(student, teacher, **options)
    # Widths 6 and 8 in two relation heads: the softmax scale is that of each side's own width
    turned = torch.cat([student[..., :3] @ rotation(3), student[..., 3:] @ rotation(3, seed=1)], -1)
    torch.testing.assert_close(minilm_relations(turned, teacher, **options), value)
    # Grouped queries: keys and values narrower than queries
    grouped = [student[0], student[1, ..., :4], student[2, ..., :4]]
    assert minilm_relations(grouped, teacher, **options).isfinite().all()


def test_one_token_has_one_relation():
    student, teacher, options = arguments("minilm_relations")
    only = torch.tensor([[True, False, False, False]] * 3)
    assert minilm_relations(student, teacher, only, relation_heads=2).abs().max() < 1e-6


def test_relations_survive_large_states():
    student, teacher, options = arguments("minilm_relations")
    student = (1000 * student).requires_grad_()
    values = minilm_relations(student, 1000 * teacher, **options)
    assert values.isfinite().all()
    values.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relation_heads": 4}, "4 relation heads cannot share the student's width of 6 equally"),
        ({"relation_heads": 0}, "0 relation heads cannot share"),
        ({"relation_heads": 3}, "3 relation heads cannot share the teacher's width of 8"),
        ({"mask": MASK[:, :3]}, "must share the student's tokenizer"),
        ({"teacher": random(3, 3, 5, 8)}, "must share the student's tokenizer"),
        ({"teacher": random(2, 3, 4, 8)}, "gives 3 of queries, keys and values, the teacher 2"),
    ],
)
def test_relations_that_cannot_be_compared_are_refused(change, message):
    student, teacher, options = arguments("minilm_relations")
    with pytest.raises(ConfigurationError, match=message):
        minilm_relations(**{"student": student, "teacher": teacher, **options, **change})
