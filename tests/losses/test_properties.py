"""A hidden loss says itself what it compares: the table's own, a user's, and a partial of either."""

from __future__ import annotations

import functools

import pytest
import torch

from hf_distill.errors import ConfigurationError
from hf_distill.losses import HIDDEN_LOSSES
from hf_distill.losses.properties import declare, properties_of
from hf_distill.training.hidden import HiddenLoss

ROWS = {"rkd_distance", "rkd_angle", "similarity_preserving", "linear_cka"}


def test_what_the_losses_of_the_table_say():
    compared = {name: properties_of(loss).compares for name, loss in HIDDEN_LOSSES.items()}
    assert {name for name, what in compared.items() if what == "rows"} == ROWS
    assert {name for name, what in compared.items() if what == "relations"} == {"minilm_relations"}
    exact = {name for name, loss in HIDDEN_LOSSES.items() if properties_of(loss).one_target is not None}
    assert exact == {"hidden_mse", "hidden_cosine"}


@pytest.mark.parametrize("name", sorted(HIDDEN_LOSSES.keys() - ROWS - {"minilm_relations"}))
def test_a_loss_against_one_target_is_the_mean_of_those_against_each(name):
    exact = properties_of(HIDDEN_LOSSES[name]).one_target
    if exact is None:
        return
    generator = torch.Generator().manual_seed(0)
    student, other, *teachers = torch.randn(5, 6, 8, generator=generator)
    mean = sum(exact.of(state) if exact.of else state for state in teachers) / 3
    loss = HIDDEN_LOSSES[name]
    fused = exact.loss or loss

    def constant(rows):
        return fused(rows, mean) - torch.stack([loss(rows, state) for state in teachers]).mean(0)

    torch.testing.assert_close(constant(student), constant(other))  # equal up to what no student changes


def test_a_users_own_loss_says_it_too():
    @declare(compares="rows")
    def spread(student, teacher):
        return (student.std() - teacher.std()).square()

    for loss in (spread, functools.partial(spread), functools.partial(HIDDEN_LOSSES["linear_cka"])):
        assert not HiddenLoss(loss).projects
        with pytest.raises(ConfigurationError, match="compares rows by one state each"):
            HiddenLoss(loss, units="tokens")
        with pytest.raises(ConfigurationError, match="exact for hidden_mse and hidden_cosine alone"):
            HiddenLoss(loss, projection="shared")
    assert HiddenLoss(lambda student, teacher, mask: student.sum(-1)).projects
