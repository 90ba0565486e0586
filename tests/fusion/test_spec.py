"""From what a user writes of a fusion to the fusion: spellings, fits on held-out rows, and the default's choice."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion import (
    FUSIONS,
    AutoFusion,
    BestTeacher,
    FitFusion,
    FusionChoice,
    GreedySelection,
    HeldOut,
    LinearPool,
    LogPool,
    MajorityVote,
    Stacking,
    build_fusion,
    describe,
    memorised,
    summary,
)
from hf_distill.fusion.fitting import mean_nll

HERE = __name__
NAMES = ["sharp", "modest", "loud"]
C = 4


@dataclass(frozen=True)
class Trimmed:
    """A user's own rule with a fit of its own: the mean of probabilities without the largest and the smallest."""

    trim: int
    note: str = ""

    def __call__(self, teacher_logits, *, temperature=1.0, labels=None, mask=None):
        probs = torch.softmax(teacher_logits.float() / temperature, -1).sort(0).values
        return probs[self.trim : len(probs) - self.trim].mean(0).log().log_softmax(-1)

    @classmethod
    def fit(cls, logits, labels, *, mask=None, **options):
        most = options.get("most", 1)
        nll = [mean_nll(cls(trim)(logits, mask=mask), labels) for trim in range(most + 1)]
        return cls(int(np.argmin(nll)))


class Loose:
    """No dataclass: nothing says what it is made of."""

    def __call__(self, teacher_logits, *, temperature=1.0, labels=None, mask=None):
        return LinearPool()(teacher_logits, temperature=temperature, mask=mask)


NOT_A_FUSION = 3.14


def held_out(seed: int = 0, count: int = 300, loudness: float = 8.0, mask: bool = False) -> HeldOut:
    """Teachers that know something, something less, and nothing, the last one loudly; ids as of rows of text."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(C, size=count)
    logits = draw.normal(size=(3, count, C))
    logits[:2] += np.array([2.0, 1.0])[:, None, None] * np.eye(C)[labels]
    logits[2] *= loudness
    z, known = torch.from_numpy(logits).float(), None
    if mask:
        known = torch.ones(z.shape, dtype=torch.bool)
        known[0, :, 3] = known[2, :, 0] = False
        z = z.masked_fill(~known, -torch.inf)
    ids = torch.from_numpy(draw.integers(2**62, size=count))
    return HeldOut(z, torch.from_numpy(labels), known, ids)


class TestBuildFusion:
    @pytest.mark.parametrize("spec", ["auto", {"use": "auto"}])
    def test_the_default(self, spec):
        assert build_fusion(spec) == AutoFusion()

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("linear_pool", LinearPool()),
            ("hf_distill.fusion:MajorityVote", MajorityVote()),
            (
                {"use": "log_pool", "weights": [1, 3], "temperatures": [1, 2]},
                LogPool((0.25, 0.75), (1.0, 2.0)),
            ),
            ({"use": "log_pool", "fit": False}, LogPool()),
            ({"use": "best_teacher", "index": 1, "count": 3}, BestTeacher(1, 3)),
            ({"use": f"{HERE}:Trimmed", "trim": 2}, Trimmed(2)),
            (MajorityVote(), MajorityVote()),
            ({"use": "linear_pool", "fit": True}, FitFusion(FUSIONS["linear_pool"])),
            ({"use": "greedy_selection", "size": 5}, FitFusion(GreedySelection, {"size": 5})),
            ({"use": "stacking", "fit": True, "strength": 0.1}, FitFusion(Stacking, {"strength": 0.1})),
            ({"use": f"{HERE}:Trimmed", "fit": True, "most": 1}, FitFusion(Trimmed, {"most": 1})),
            (f"{HERE}:Trimmed", FitFusion(Trimmed)),
            (AutoFusion(), AutoFusion()),
        ],
    )
    def test_spellings(self, spec, expected):
        assert build_fusion(spec) == expected

    @pytest.mark.parametrize("name", ["gate", "stacking", "greedy_selection", "best_teacher"])
    def test_what_means_nothing_unfitted_is_fitted(self, name):
        assert build_fusion(name) == build_fusion({"use": name, "fit": True}) == FitFusion(FUSIONS[name])
        with pytest.raises(ConfigurationError, match=f"fusion '{name}' with no options: .* missing"):
            build_fusion({"use": name, "fit": False})

    def test_objects_pass_through(self):
        loose, choice = Loose(), FusionChoice(LinearPool(), "as asked for")
        assert build_fusion(loose) is loose and build_fusion(choice) is choice

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("linear_pol", "there is no fusion named 'linear_pol'.*did you mean 'linear_pool'"),
            ({"use": "linear_pool", "wieghts": [1]}, "has no option 'wieghts'.*did you mean 'weights'"),
            ({"use": "linear_pool", "weights": [-1, 2]}, "must be finite, not negative"),
            ({"use": "linear_pool", "fit": "yes"}, "fit is true or false, found 'yes'"),
            ({"use": "linear_pool", "fit": None}, "fit is true or false, found None"),
            (
                {"use": "majority_vote", "fit": True},
                "has nothing to fit; those that have: bernoulli_linear_pool, .*best_teacher, gate,",
            ),
            (
                {"use": "log_pool", "fit": True, "weights": [1, 2]},
                "takes no option 'weights'; it takes: none",
            ),
            ({"use": "greedy_selection", "sze": 3}, "takes no option 'sze'; it takes: size"),
            ({"use": "stochastic_teacher"}, "missing 1 required positional argument: 'weights'"),
            ({"weights": [1, 2]}, "names it under the key 'use'"),
            (LogPool, "write LogPool\\(\\)"),
            (None, "a fusion is a name"),
            (f"{HERE}:NOT_A_FUSION", "A fusion is called with the teachers' logits, but 3.14 is a float"),
            (object(), "is called with the teachers' logits"),
        ],
    )
    def test_what_cannot_work(self, spec, message):
        with pytest.raises(ConfigurationError, match=message):
            build_fusion(spec)


class TestDescribe:
    def test_a_users_own(self):
        fusion = Trimmed(1, note="as in the paper")
        written = describe(fusion)
        assert written == {"use": f"{HERE}:Trimmed", "trim": 1, "note": "as in the paper"}
        assert build_fusion(json.loads(json.dumps(written))) == fusion

    def test_what_nothing_is_known_of(self):
        with pytest.raises(ConfigurationError, match="is no dataclass, so it cannot be written down"):
            describe(Loose())
        assert "Loose" in summary(Loose())

    def test_in_a_line(self):
        assert summary(LinearPool()) == "linear_pool()"
        assert summary(LogPool((1, 2, 3), (0.5, 0.5, 0.5))) == (
            "log_pool(weights=[0.167, 0.333, 0.5], temperatures=[0.5, 0.5, 0.5])"
        )
        rows = held_out(loudness=1.0)
        assert len(summary(Stacking.fit(rows.logits, rows.labels))) < 200
        assert summary(Trimmed(1)) == f"{HERE}:Trimmed(trim=1, note=)"


class TestFitFusion:
    def test_fits_on_all_labelled_rows(self):
        rows = held_out()
        rows.labels[:100] = -100
        choice = FitFusion(LogPool).choose(rows, NAMES)
        assert choice.fusion == LogPool.fit(rows.logits[:, 100:], rows.labels[100:])
        assert torch.equal(choice.fitted_on, rows.example_ids[100:])
        weights = ", ".join(f"{n} {w:.3f}" for n, w in zip(NAMES, choice.fusion.weights, strict=True))
        assert choice.reason == f"log_pool, fitted on 200 held-out rows as asked for (weights {weights})"
        assert choice.warnings == ()

    def test_options_reach_the_fit(self):
        rows = held_out()
        choice = build_fusion({"use": "greedy_selection", "size": 3}).choose(rows, NAMES)
        assert choice.fusion == GreedySelection.fit(rows.logits, rows.labels, 3)
        for spec in ({"use": "greedy_selection", "size": "many"}, {"use": "greedy_selection", "size": 2.5}):
            with pytest.raises(ConfigurationError, match="GreedySelection cannot be fitted with {'size': "):
                build_fusion(spec).choose(rows, NAMES)
        with pytest.raises(ConfigurationError, match="it counts picks"):
            build_fusion({"use": "greedy_selection", "size": 0}).choose(rows, NAMES)

    def test_a_users_own_fit(self):
        choice = build_fusion({"use": f"{HERE}:Trimmed", "fit": True, "most": 1}).choose(held_out(), NAMES)
        assert choice.fusion == Trimmed(1)  # without the loud one
        assert choice.reason == f"{HERE}:Trimmed, fitted on 300 held-out rows as asked for"

    def test_with_missing_classes(self):
        rows = held_out(mask=True)
        choice = FitFusion(LogPool).choose(rows, NAMES)
        assert choice.fusion == LogPool.fit(rows.logits, rows.labels, mask=rows.mask)

    def test_without_rows(self):
        with pytest.raises(
            ConfigurationError, match="LogPool is to be fitted on held-out rows .* but there are none"
        ):
            FitFusion(LogPool).without_rows("there are none")
        rows = held_out()
        with pytest.raises(DataError, match="none of the 300 rows given has one"):
            FitFusion(LogPool).choose(rows._replace(labels=torch.full_like(rows.labels, -100)), NAMES)


class TestAutoFusion:
    def compared(self, rows: HeldOut) -> tuple[dict[str, float], torch.Tensor]:
        """NLL of both candidates on the rows that did not fit, computed again; and which rows did."""
        fit = rows.example_ids % 3 != 0
        mask = (None, None) if rows.mask is None else (rows.mask[:, fit], rows.mask[:, ~fit])
        fitted = LogPool.fit(rows.logits[:, fit], rows.labels[fit], mask=mask[0])
        rest = rows.logits[:, ~fit], rows.labels[~fit]
        nll = {
            name: mean_nll(fusion(rest[0], mask=mask[1]).double(), rest[1])
            for name, fusion in (("log_pool", fitted), ("linear_pool", LinearPool()))
        }
        return nll, fit

    @pytest.mark.parametrize("mask", [False, True])
    def test_the_better_one(self, mask):
        rows = held_out(mask=mask)
        nll, fit = self.compared(rows)
        choice = AutoFusion().choose(rows, NAMES)
        assert isinstance(choice.fusion, LogPool) and nll["log_pool"] < nll["linear_pool"]
        assert choice.fusion.weights[2] < 0.02
        assert torch.equal(choice.fitted_on, rows.example_ids[fit])
        for part in (
            "log_pool, because it is better: ",
            f"NLL {nll['log_pool']:.4f} of a log_pool fitted on {int(fit.sum())} held-out rows, ",
            f"{nll['linear_pool']:.4f} of the uniform linear_pool, on {int((~fit).sum())} others",
            f"sharp {choice.fusion.weights[0]:.3f}, modest",
            f"temperature {choice.fusion.temperatures[0]:.3f}",
        ):
            assert part in choice.reason

    def test_the_uniform_pool_where_it_is_no_worse(self):
        """Calibrated teachers of equal standing, whose mean of probabilities is the truth."""
        draw = np.random.default_rng(1)
        z = torch.from_numpy(2 * draw.normal(size=(3, 90, C)))
        truth = LinearPool()(z).exp().numpy()
        labels = torch.tensor([draw.choice(C, p=p / p.sum()) for p in truth.astype(float)])
        rows = HeldOut(z.float(), labels, None, torch.arange(90))
        nll, _ = self.compared(rows)
        assert nll["log_pool"] >= nll["linear_pool"]
        choice = AutoFusion().choose(rows, NAMES)
        assert choice.fusion == LinearPool() and not len(choice.fitted_on)
        assert choice.reason.startswith("uniform linear_pool, because it is no worse: NLL ")

    def test_the_same_rows_in_any_order(self):
        rows = held_out()
        order = torch.from_numpy(np.random.default_rng(0).permutation(300))
        turned = HeldOut(rows.logits[:, order], rows.labels[order], None, rows.example_ids[order])
        first, second = (AutoFusion().choose(given, NAMES) for given in (rows, turned))
        np.testing.assert_allclose(first.fusion.weights, second.fusion.weights, atol=1e-6)
        assert set(first.fitted_on.tolist()) == set(second.fitted_on.tolist())

    def test_a_row_that_stands_twice_is_not_on_both_sides(self):
        rows = held_out()
        twice = HeldOut(
            torch.cat([rows.logits] * 2, 1), rows.labels.repeat(2), None, rows.example_ids.repeat(2)
        )
        fitted_on = AutoFusion().choose(twice, NAMES).fitted_on.tolist()
        assert all(fitted_on.count(i) == 2 for i in fitted_on)

    def test_labels_of_the_other_rows_are_not_seen(self):
        """What the fit gives does not depend on the rows that judge it, nor on rows without a label."""
        rows = held_out()
        first = AutoFusion().choose(rows, NAMES)
        _, fit = self.compared(rows)
        other = rows.labels.clone()
        other[torch.nonzero(~fit)[:5, 0]] = 0
        assert AutoFusion().choose(rows._replace(labels=other), NAMES).fusion == first.fusion
        unknown = rows.labels.clone()
        unknown[torch.nonzero(fit)[:50, 0]] = -100
        choice = AutoFusion().choose(rows._replace(labels=unknown), NAMES)
        assert not set(rows.example_ids[unknown < 0].tolist()) & set(choice.fitted_on.tolist())

    def test_too_few_or_no_labels(self):
        rows = held_out()
        for count in (0, 39):
            labels = rows.labels.clone()
            labels[count:] = -100
            choice = AutoFusion().choose(rows._replace(labels=labels), NAMES)
            assert choice.fusion == LinearPool() and not len(choice.fitted_on)
            assert choice.reason == f"uniform linear_pool, because only {count} held-out rows have labels"
        labels[:40] = rows.labels[:40]
        assert "because only" not in AutoFusion().choose(rows._replace(labels=labels), NAMES).reason
        choice = AutoFusion().without_rows("no evaluation rows were given")
        assert choice == FusionChoice(
            LinearPool(), "uniform linear_pool, because no evaluation rows were given"
        )

    def test_teachers_that_predict_nothing(self):
        rows = held_out()
        choice = AutoFusion().choose(
            rows._replace(logits=-rows.logits.abs() * torch.nn.functional.one_hot(rows.labels, C)), NAMES
        )
        assert choice.fusion == LinearPool()
        assert "because LogPool cannot be fitted" in choice.reason and not choice.reason.endswith(".")

    def test_all_rows_on_one_side(self):
        rows = held_out()
        choice = AutoFusion().choose(rows._replace(example_ids=3 * torch.arange(300) + 1), NAMES)
        assert choice.fusion == LinearPool() and "none of the 0 rows" in choice.reason

    def test_a_broken_teacher_stops_the_run(self):
        """The uniform pool could not bear it either."""
        rows = held_out()
        rows.logits[1, 3] = torch.nan
        with pytest.raises(
            DataError, match=r"teacher 1 \(counted from 0\) gives outputs that are not finite"
        ):
            AutoFusion().choose(rows, NAMES)

    def test_teachers_that_were_trained_on_the_rows(self):
        rows = held_out()
        rows.logits[1] = 5.0 * torch.nn.functional.one_hot(rows.labels, C)
        choice = AutoFusion().choose(rows, NAMES)
        (warning,) = choice.warnings
        assert warning.startswith(
            "Teacher 'modest' is right on 100.0% of the 300 held-out rows: it was probably"
        )
        assert FitFusion(LinearPool).choose(rows, NAMES).warnings == choice.warnings


def test_memorised_counts_labelled_rows():
    labels = torch.arange(1000) % C
    logits = torch.nn.functional.one_hot(labels, C)[None].repeat(2, 1, 1).float()
    logits[0, :5] = logits[0, :5].roll(1, -1)
    logits[1, :6] = logits[1, :6].roll(1, -1)
    rows = HeldOut(logits, labels, None, torch.arange(1000))
    assert list(memorised(rows, ["first", "second"])) == ["first"]
    unknown = labels.clone()
    unknown[:6] = -100
    assert len(memorised(rows._replace(labels=unknown), ["first", "second"])) == 2
