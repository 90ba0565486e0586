"""From the states of a batch to terms of the loss.

Shapes: N rows, L tokens, W words, D hidden size of a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...fusion import Fusion
from ...fusion.alignment import TeacherBatch
from ...rows.views import WORD_MASK
from ...teachers.states import RELATIONS, Wanted, token_mask
from ..accounting import LossTerm
from .plan import HiddenPlan, Link


def hidden_terms(
    plan: HiddenPlan,
    student: Mapping[Any, Any],
    batch: TeacherBatch,
    inputs: Mapping[str, Any],
    fusion: Fusion,
    training: bool,
) -> dict[str, LossTerm]:
    """The terms of all hidden losses: one per loss and teacher, or one per loss where its teachers share a target.

    Args:
        plan: What is compared with what.
        student: Its states, by `Wanted` and by the projections' names.
        batch: The teachers' states; empty where one was not run.
        inputs: The batch.
        fusion: Its fixed weights weigh the teachers; equal ones where it has none.
        training: Whether a fusion that draws teachers drew those of this batch: that is then all that weighs them.

    Returns:
        Terms by name, as ``hidden_mse/bert``; the same names in the same order on all processes, whoever was drawn.
    """
    weights, drawn = getattr(fusion, "weights", None), training and hasattr(fusion, "select")
    terms: dict[str, LossTerm] = {}
    teachers = batch.hidden_states
    nothing = torch.zeros(len(inputs["labels"]), device=inputs["labels"].device)
    for index, loss in enumerate(plan.losses):
        links = [link for link in plan.links if link.loss == index]
        own: dict[str, LossTerm] = {}
        shares = plan.shares(index, weights)
        if drawn and weights is not None:
            shares = {k: share / float(weights[k]) for k, share in shares.items()}
        here = [k for k in shares if teachers[k]]
        if plan.fused(index):
            values, total = nothing, sum(shares[k] for k in here)
            if here:
                targets = {k: shares[k] / total for k in here}
                values = _mean(
                    [_one_target(plan, pair, targets, student, teachers, inputs) for pair in _pairs(links)]
                )
            strength = total if drawn else 1.0
            own[f"{plan.name(index)}/fused"] = LossTerm(values, loss.weight * (strength or 1.0))
        else:
            for k, share in shares.items():
                mine = [link for link in links if link.teacher == k and k in here]
                found = [_value(plan, link, student, teachers, inputs) for link in mine] or [nothing]
                own[f"{plan.name(index)}/{plan.teachers[k].name}"] = LossTerm(
                    _mean(found), loss.weight * share
                )
        if idle := _idle(plan, index, here):
            # DDP waits for a gradient of whatever the forward returned: projections without a target get one of zero.
            zero = sum(torch.nan_to_num(student[name]).sum() * 0.0 for name in idle)
            first = next(iter(own))
            own[first] = own[first]._replace(values=own[first].values + zero)
        terms |= own
    return terms


def _idle(plan: HiddenPlan, index: int, here: Sequence[int]) -> list[str]:
    """The projections of a loss that nothing is compared with in this batch."""
    links = [link for link in plan.links if link.loss == index and link.projection is not None]
    return (
        []
        if plan.fused(index) and here
        else list(dict.fromkeys(link.projection for link in links if link.teacher not in here))
    )


def _pairs(links: Sequence[Link]) -> list[list[Link]]:
    """The links of each pair of layers, one per teacher."""
    return [
        [link for link in links if link.pair == pair] for pair in dict.fromkeys(link.pair for link in links)
    ]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _value(
    plan: HiddenPlan,
    link: Link,
    student: Mapping[Any, Any],
    teachers: Sequence[Mapping[Wanted, Any]],
    inputs: Mapping[str, Any],
) -> Tensor:
    """(N,) or a scalar: one loss between one layer of the student and one of a teacher."""
    loss, theirs = plan.losses[link.loss], teachers[link.teacher][link.theirs]
    ours = student[link.ours if link.projection is None else link.projection]
    if link.ours.units == RELATIONS:
        theirs = [_fitted(part, own, plan) for part, own in zip(theirs, ours, strict=True)]
        return loss.function(ours, theirs, token_mask(inputs), relation_heads=loss.relation_heads)
    if loss.properties.compares == "rows":
        return loss.function(ours, theirs)
    return loss.function(ours, _fitted(theirs, ours, plan), _mask(link.ours.units, inputs))


def _one_target(
    plan: HiddenPlan,
    links: Sequence[Link],
    shares: Mapping[int, float],
    student: Mapping[Any, Any],
    teachers: Sequence[Mapping[Wanted, Any]],
    inputs: Mapping[str, Any],
) -> Tensor:
    """(N,): one layer of the student and the weighted mean of the teachers' states; see docs/hidden_states.md."""
    loss, first = plan.losses[links[0].loss], links[0]
    ours, mask = student[first.projection], _mask(first.ours.units, inputs)
    exact, target = loss.properties.one_target, 0.0
    assert exact is not None
    for link in links:
        if link.teacher in shares:
            state = _fitted(teachers[link.teacher][link.theirs], ours, plan).float()
            target = target + shares[link.teacher] * (exact.of(state) if exact.of else state)
    return (exact.loss or loss.function)(ours, target, mask)


def _mask(units: str, inputs: Mapping[str, Any]) -> Tensor | None:
    """(N, L) or (N, W) bool, what counts; None where a row has one state."""
    if units == "tokens":
        return token_mask(inputs)
    return inputs[WORD_MASK] if units == "words" else None


def _fitted(theirs: Tensor, ours: Tensor, plan: HiddenPlan) -> Tensor:
    """The teacher's states of tokens, padded as far as the student's batch is: collators may pad to other lengths."""
    if theirs.dim() < 3 or theirs.shape[1] == ours.shape[1]:
        return theirs
    assert plan.student.view is not None
    left = plan.student.view.tokenizer.padding_side == "left"
    length = ours.shape[1]
    if theirs.shape[1] > length:
        return theirs[:, -length:] if left else theirs[:, :length]
    missing = length - theirs.shape[1]
    return torch.nn.functional.pad(theirs, (0, 0, missing, 0) if left else (0, 0, 0, missing))
