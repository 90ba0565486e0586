"""What every fusion of the table keeps to, whatever it computes: the invariants, over FUSIONS.

Each rule is tried in every way that it can be had: without parameters, with weights, and fitted on held-out rows.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json

import numpy as np
import pytest
import torch

from hf_distill.errors import ConfigurationError
from hf_distill.fusion import (
    FUSIONS,
    ConfidenceWeighted,
    EntropyWeighted,
    Gate,
    LikelihoodWeighted,
    Stacking,
    build_fusion,
    describe,
)
from hf_distill.fusion.shares import constant
from hf_distill.recipe import yaml12

K, N, C = 3, 12, 5
TEMPERATURES = (0.5, 1.0, 4.0)
VIEWS = ("all classes", "all known", "some missing", "one unknown", "one teacher", "one teacher, missing")


def teachers(view: str, seed: int, rows: int = N) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Logits (K, rows, C) of teachers that know something, labels (rows,), and the mask of a view."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(C - 1, (rows,), generator=draw)
    logits = 1.5 * torch.randn(K, rows, C, generator=draw)
    logits = logits + torch.tensor([2.0, 1.0, 0.5])[:, None, None] * torch.nn.functional.one_hot(labels, C)
    mask = torch.ones(K, rows, C, dtype=torch.bool)
    if view in ("some missing", "one unknown"):
        mask[0, :, 3] = mask[1, :, 1] = mask[1, :, 2] = mask[2, :, 0] = False
    if view == "one unknown":
        mask[..., C - 1] = False
    if view == "one teacher, missing":
        mask[..., 1] = False
    if view.startswith("one teacher"):
        logits, mask = logits[:1], mask[:1]
    logits = logits.masked_fill(~mask, -torch.inf)
    return logits, labels, None if view in ("all classes", "one teacher") else mask


def ways(rule: type) -> list[str]:
    """How instances of a rule are had."""
    required = [p.name for p in inspect.signature(rule).parameters.values() if p.default is p.empty]
    plain = [] if required else ["plain"]
    weighted = ["weighted"] if "weights" in inspect.signature(rule).parameters else []
    return [*plain, *weighted, *(["fitted"] if hasattr(rule, "fit") else [])]


CASES = [(name, way) for name, rule in FUSIONS.items() for way in ways(rule)]
every_fusion = pytest.mark.parametrize(("name", "way"), CASES)
every_view = pytest.mark.parametrize("view", VIEWS)


@functools.cache
def made(name: str, way: str, view: str):
    """An instance for the teachers of a view."""
    logits, labels, mask = teachers(view, seed=7, rows=60)
    if way == "fitted":
        return FUSIONS[name].fit(logits, labels, mask=mask)
    return FUSIONS[name](**({"weights": range(1, len(logits) + 1)} if way == "weighted" else {}))


def some_labels(labels: torch.Tensor) -> torch.Tensor:
    return labels.masked_fill(torch.arange(len(labels)) % 4 == 0, -100)


def test_every_rule_of_the_table_is_tried():
    assert {name for name, _ in CASES} == set(FUSIONS)
    assert ("stacking", "fitted") in CASES and ("stochastic_teacher", "weighted") in CASES


@every_fusion
@every_view
def test_log_probabilities_sum_to_one(name, way, view):
    """... in float32, at every temperature; and -inf says that nobody who is heard has the class, and nothing else."""
    fusion = made(name, way, view)
    z, labels, mask = teachers(view, seed=1)
    for temperature in TEMPERATURES:
        for given in (None, some_labels(labels)):
            fused = fusion(z, temperature=temperature, labels=given, mask=mask)
            assert fused.shape == (N, C) and fused.dtype == torch.float32
            np.testing.assert_allclose(fused.exp().sum(-1), 1.0, atol=2e-6)
            if name == "majority_vote":
                assert set(fused.flatten().tolist()) == {0.0, -np.inf}
                continue
            heard = torch.ones(len(z), N, 1, dtype=torch.bool)
            if getattr(fusion, "weights", None):
                heard = (torch.tensor(fusion.weights) > 0)[:, None, None]
            if (
                name in ("confidence_weighted", "likelihood_weighted")
                and given is not None
                and mask is not None
            ):
                knows = mask.gather(-1, given.clamp(min=0)[None, :, None].expand(len(z), -1, 1))
                heard = knows | (given < 0)[:, None] | ~knows.any(0)
            known = torch.ones(N, C, dtype=torch.bool) if mask is None else (mask & heard).any(0)
            assert torch.equal(fused != -torch.inf, known)


@every_fusion
@every_view
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, way, view, dtype):
    z, labels, mask = teachers(view, seed=1)
    for temperature in TEMPERATURES:
        options = {"temperature": temperature, "labels": labels, "mask": mask}
        fused = made(name, way, view)(z.to(dtype), **options)
        assert fused.dtype == torch.float32
        assert torch.equal(fused, made(name, way, view)(z.to(dtype).float(), **options))


@every_fusion
@every_view
def test_rows_are_independent(name, way, view):
    """A subset of the rows, in another order, gives that subset: a row's target does not hang on its batch."""
    z, labels, mask = teachers(view, seed=1)
    labels, chosen = some_labels(labels), torch.tensor([5, 0, 9])
    whole = made(name, way, view)(z, temperature=2.0, labels=labels, mask=mask)
    part = None if mask is None else mask[:, chosen]
    subset = made(name, way, view)(z[:, chosen], temperature=2.0, labels=labels[chosen], mask=part)
    np.testing.assert_allclose(subset.exp(), whole[chosen].exp(), atol=1e-6)


@every_fusion
@every_view
def test_no_labels_are_no_labels(name, way, view):
    z, labels, mask = teachers(view, seed=1)
    without = made(name, way, view)(z, temperature=2.0, mask=mask)
    unknown = made(name, way, view)(z, temperature=2.0, mask=mask, labels=torch.full_like(labels, -100))
    assert torch.equal(without, unknown)


@every_fusion
@every_view
def test_a_shift_of_a_teachers_logits_changes_nothing(name, way, view):
    z, labels, mask = teachers(view, seed=1)
    shifted = z + torch.tensor([5.0, -3.0, 0.0])[: len(z), None, None]
    options = {"temperature": 2.0, "labels": some_labels(labels), "mask": mask}
    np.testing.assert_allclose(
        made(name, way, view)(shifted, **options).exp(), made(name, way, view)(z, **options).exp(), atol=2e-6
    )


@every_fusion
def test_a_full_mask_is_no_mask(name, way):
    z, labels, mask = teachers("all known", seed=1)
    for temperature in TEMPERATURES:
        options = {"temperature": temperature, "labels": labels}
        fusion = made(name, way, "all classes")
        np.testing.assert_allclose(
            fusion(z, mask=mask, **options).exp(), fusion(z, **options).exp(), atol=2e-6
        )
    if way == "fitted":
        assert made(name, way, "all known") == fusion


@every_fusion
@pytest.mark.parametrize("view", ["all classes", "some missing", "one unknown"])
def test_the_order_of_the_teachers_is_no_matter(name, way, view):
    """Where the weights go with them, or the fit is made again."""
    z, labels, mask = teachers(view, seed=1)
    order = [2, 0, 1]
    fusion = turned = made(name, way, view)
    if way == "weighted":
        turned = dataclasses.replace(fusion, weights=[fusion.weights[k] for k in order])
    elif way == "fitted":
        rows, answers, known = teachers(view, seed=7, rows=60)
        turned = FUSIONS[name].fit(rows[order], answers, mask=None if known is None else known[order])
    options = {"temperature": 2.0, "labels": some_labels(labels)}
    expected = fusion(z, mask=mask, **options).exp()
    found = turned(z[order], mask=None if mask is None else mask[order], **options).exp()
    # scikit-learn stops at a gradient of 1e-4
    np.testing.assert_allclose(found, expected, atol=2e-3 if name == "stacking" else 2e-5)


@every_fusion
def test_the_same_teacher_several_times_is_that_teacher(name, way):
    """Without a fit, where each copy is heard as the others are; what fits make of copies: test_fusion_fits.py."""
    if way == "fitted":
        return
    for view in ("one teacher", "one teacher, missing"):
        z, labels, mask = teachers(view, seed=1)
        several = made(name, way, "all classes")(
            z.expand(K, N, C),
            temperature=2.0,
            labels=labels,
            mask=None if mask is None else mask.expand(K, N, C),
        )
        one = made(name, way, view)(z, temperature=2.0, labels=labels, mask=mask)
        np.testing.assert_allclose(several.exp(), one.exp(), atol=1e-6)


@every_fusion
def test_one_teacher_is_itself(name, way):
    """The identity for pools with fixed or per-row weights, and for fits that only weigh; the others say what they do."""
    for view in ("one teacher", "one teacher, missing"):
        z, labels, mask = teachers(view, seed=1)
        fusion = made(name, way, view)
        if name == "majority_vote" or (
            name in ("log_pool", "pool_then_temper", "stacking") and way == "fitted"
        ):
            fused = fusion(z, mask=mask)
            if name != "stacking":  # a temperature keeps the order of classes
                assert torch.equal(fused.argmax(-1), z[0].argmax(-1))
            continue
        for temperature in TEMPERATURES:
            expected = torch.log_softmax(z[0] / temperature, -1)
            for given in (None, some_labels(labels)):
                fused = fusion(z, temperature=temperature, labels=given, mask=mask)
                np.testing.assert_allclose(fused, expected, atol=5e-6)


@every_fusion
def test_frozen(name, way):
    fusion = made(name, way, "all classes")
    fields = dataclasses.fields(fusion)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(fusion, fields[0].name if fields else "anything", 1)
    hash(fusion)


@every_fusion
@every_view
@pytest.mark.parametrize("through", ["json", "yaml"])
def test_written_and_read_it_is_the_same(name, way, view, through):
    """Equal, and bit for bit in what it gives: a student's target can be made again."""
    fusion = made(name, way, view)
    written = describe(fusion)
    if through == "json":
        content = json.loads(json.dumps(written))
    else:
        content, duplicates, problems = yaml12.read(yaml12.write(written))
        assert not duplicates and not problems
    assert content == written and content["use"] == name
    again = build_fusion(content)
    assert again == fusion and type(again) is type(fusion)
    z, labels, mask = teachers(view, seed=1)
    options = {"temperature": 2.0, "labels": some_labels(labels), "mask": mask}
    assert torch.equal(again(z, **options), fusion(z, **options))


WEIGHTED = [name for name, rule in FUSIONS.items() if "weights" in inspect.signature(rule).parameters]


@pytest.mark.parametrize("name", WEIGHTED)
class TestWeights:
    @pytest.mark.parametrize("view", ["all classes", "some missing"])
    @pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 1e30])
    def test_a_teacher_of_weight_zero_is_not_heard(self, name, view, broken):
        fusion = FUSIONS[name](weights=(0.25, 0.0, 0.75))
        z, labels, mask = teachers(view, seed=1)
        worse = z.clone()
        worse[1] = broken
        for temperature in TEMPERATURES:
            options = {"temperature": temperature, "labels": labels, "mask": mask}
            fused = fusion(z, **options)
            assert torch.equal(fusion(worse, **options), fused) and not fused.isnan().any()

    def test_disjoint_groups_share_by_weight(self, name):
        mask = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]]], dtype=torch.bool)
        z = torch.tensor([[[0.7, 0.3, 0.0, 0.0]], [[0.0, 0.0, 0.4, 0.6]]]).log()
        fused = FUSIONS[name](weights=(0.8, 0.2))(z, mask=mask).exp()
        assert fused.tolist() == [pytest.approx([0.56, 0.24, 0.08, 0.12], abs=1e-6)]

    @pytest.mark.parametrize("little", [1e-3, 1e-6, 1e-12])
    def test_a_small_weight_is_not_lost_in_the_rounding_of_a_large_one(self, name, little):
        """The second teacher alone has class 4 and alone connects 0, 1 with 2, 3: its weight is no matter for that."""
        mask = torch.tensor([[[1, 1, 0, 0, 0]], [[1, 1, 1, 1, 1]], [[0, 0, 1, 1, 0]]], dtype=torch.bool)
        z = torch.tensor([[[0.1, 0.9, 0, 0, 0]], [[0.3, 0.1, 0.2, 0.2, 0.2]], [[0, 0, 0.6, 0.4, 0]]]).log()
        fusion = FUSIONS[name](weights=(1.0, little, 1.0))
        fused = fusion(z, mask=mask)
        np.testing.assert_allclose(fused.exp(), fusion(z.double(), mask=mask).exp(), atol=1e-6)
        if name != "log_pool":  # the second's masses, within them the first's and the third's distribution
            assert fused.exp().tolist() == [pytest.approx([0.04, 0.36, 0.24, 0.16, 0.2], abs=2e-3)]
        # Two that agree in all they share, and one that nobody listens to but where it is alone, about class 4.
        mask = torch.tensor([[[1, 1, 1, 1, 0]], [[1, 1, 1, 1, 0]], [[1, 1, 0, 0, 1]]], dtype=torch.bool)
        z = torch.tensor(
            [[[0.1, 0.2, 0.3, 0.4, 0]], [[0.1, 0.2, 0.3, 0.4, 0]], [[0.05, 0.1, 0, 0, 0.85]]]
        ).log()
        fused = FUSIONS[name](weights=(1.0, 0.7, little))(z, mask=mask)
        expected = np.array([0.1, 0.2, 0.3, 0.4, 1.7]) / 2.7
        np.testing.assert_allclose(fused.exp(), [expected], atol=1e-6)

    def test_wrong_number_of_weights(self, name):
        with pytest.raises(ConfigurationError, match="2 weights for 3 teachers"):
            FUSIONS[name](weights=(1, 1))(teachers("all classes", seed=1)[0])

    @pytest.mark.parametrize(
        "weights", [(-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), ()]
    )
    def test_impossible_weights(self, name, weights):
        with pytest.raises(ConfigurationError, match="must be finite, not negative, and not all zero"):
            FUSIONS[name](weights=weights)

    def test_weights_are_shares(self, name):
        assert FUSIONS[name](weights=[2, 6]) == FUSIONS[name](weights=(0.25, 0.75))
        for raw in np.random.default_rng(0).random((200, 5)).tolist():
            once = FUSIONS[name](weights=raw)
            assert once.weights == pytest.approx([w / sum(raw) for w in raw])
            assert FUSIONS[name](weights=once.weights) == once  # so that one that is written can be read


def test_weights_of_zero_in_a_row():
    """Per-row weights: whose weight is zero in a row is not heard there, and in the others it is."""
    one_hot, unsure = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 0.3]])
    for other in (unsure, 5 * unsure):  # entropies (0, H): all weight to the first, whatever the second says
        assert EntropyWeighted()(torch.stack([one_hot, other])).exp().tolist() == [[1.0, 0.0]]
    z, labels, mask = teachers("some missing", seed=1)
    labels[:] = 1  # the second teacher lacks it
    labels[0] = 4  # all know it
    worse = z.clone()
    worse[1, 1:] = torch.nan
    for fusion in (ConfidenceWeighted(), LikelihoodWeighted(tau=0.1)):
        assert torch.equal(fusion(worse, labels=labels, mask=mask), fusion(z, labels=labels, mask=mask))
        worse_in_first = z.clone()
        worse_in_first[1, 0] = torch.tensor([9.0, -torch.inf, -torch.inf, 0.0, 0.0])
        changed = fusion(worse_in_first, labels=labels, mask=mask) != fusion(z, labels=labels, mask=mask)
        assert changed[0].any() and not changed[1:].any()
    # A teacher that held the label impossible: −ln 0 is no NaN, and its other classes are not heard either.
    z = torch.stack([torch.tensor([[-torch.inf, 5.0, 1.0]]), torch.tensor([[0.6, 0.3, 0.1]]).log()])
    for fusion in (ConfidenceWeighted(), LikelihoodWeighted()):
        fused = fusion(z, labels=torch.tensor([0]))
        assert fused.exp().tolist() == [pytest.approx([0.6, 0.3, 0.1], abs=1e-6)]
    shut = Gate(((0, 0, 0), (0, 0, 0)), (0, -300))
    assert shut(z).exp()[0, 0] == 0  # all weight to the first


@pytest.mark.parametrize("classes", [(0, 1, 2, 3, 4), (0, 1, 3)])
def test_a_teacher_without_coefficients_is_not_heard_by_stacking(classes):
    """... nor in the classes that the fit saw no row of, where the teachers' linear pool speaks."""
    draw = np.random.default_rng(0)
    coefficients = draw.normal(size=(len(classes), K, C))
    coefficients[:, 1] = 0.0
    fusion = Stacking(
        tuple(map(tuple, coefficients.reshape(len(classes), -1))), (0.1,) * len(classes), classes
    )
    for view in ("all classes", "some missing", "one unknown"):
        z, _, mask = teachers(view, seed=1)
        worse = z.clone()
        worse[1] = torch.nan
        fused = fusion(z, mask=mask)
        assert torch.equal(fusion(worse, mask=mask), fused) and not fused.isnan().any()
        if mask is not None:
            assert (fused.exp()[~mask.any(0)] == 0).all()


def test_temperatures_must_be_possible():
    for rule in (FUSIONS["log_pool"], FUSIONS["pool_then_temper"]):
        with pytest.raises(ConfigurationError, match="each must be finite and above 0"):
            rule(temperatures=(1.0, 0.0, 1.0))
        with pytest.raises(ConfigurationError, match="2 temperatures for 3 teachers"):
            rule(temperatures=(1.0, 1.0))(teachers("all classes", seed=1)[0])
    with pytest.raises(ConfigurationError, match="pooled_temperature is 0"):
        FUSIONS["pool_then_temper"](pooled_temperature=0.0)
    with pytest.raises(ConfigurationError, match="tau is -1"):
        LikelihoodWeighted(tau=-1.0)


def test_fitted_for_other_teachers():
    z, _, _ = teachers("all classes", seed=1)
    for name, message in (
        ("gate", "Gate was fitted for 3 teachers, found 2"),
        ("stacking", "Stacking was fitted on 15 logits per row, but 2 teachers over 5 classes give 10"),
        ("best_teacher", "3 weights for 2 teachers"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            made(name, "fitted", "all classes")(z[:2])
    with pytest.raises(ConfigurationError, match="index is 3, but there are 3 teachers"):
        FUSIONS["best_teacher"](index=3, count=3)
    with pytest.raises(ConfigurationError, match="one intercept and three coefficients per teacher"):
        Gate(((0, 1),), (0,))
    with pytest.raises(ConfigurationError, match="there must be as many of each, at least two"):
        Stacking(((0.0, 1.0),), (0.0,), (0,))


@pytest.mark.parametrize("rule", ["linear_pool", "log_pool", "pool_then_temper"])
def test_constants_survive_inference_mode(rule):
    """Weights are kept as tensors: made in evaluation, they must serve a gradient later."""
    fusion = FUSIONS[rule](weights=(0.123, 0.877))
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    constant.cache_clear()
    with torch.inference_mode():
        fusion(z)
    z.requires_grad_()
    fusion(z)[:, 0].sum().backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0
