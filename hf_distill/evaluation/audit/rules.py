"""The ensemble under fusion rules, each row scored by what was fitted on the other half of the rows.

Shapes: K teachers, N labelled rows, C classes, R resamples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ...errors import ConfigurationError, DataError
from ...fusion import Fusion, FusionChoice, FusionRule, HeldOut, LogPool, build_fusion, fit_temperature
from ...fusion.fitting import mean_nll
from ...tasks.row_scores import nll_rows
from ..metrics import brier_score, expected_calibration_error
from ..statistics import bootstrap_means, percentile_interval
from .numbers import BEST_TEACHER, Gains, RuleFigures

# From simple to involved: of rules that cannot be told apart by the rows, the first is advised.
RULES: dict[str, Any] = {
    "linear_pool": "linear_pool",
    "log_pool, fitted": {"use": "log_pool", "fit": True},
    "linear_pool, fitted": {"use": "linear_pool", "fit": True},
    "pool_then_temper, fitted": {"use": "pool_then_temper", "fit": True},
    "greedy_selection, fitted": {"use": "greedy_selection", "fit": True},
    "log_pool": "log_pool",
    "entropy_weighted": "entropy_weighted",
    "gate, fitted": {"use": "gate", "fit": True},
    "stacking, fitted": {"use": "stacking", "fit": True},
    "majority_vote": "majority_vote",
    "best_teacher, fitted": {"use": "best_teacher", "fit": True},
}

LEFT_OUT = {
    "confidence_weighted": "the weights need the row's label; rows without one get linear_pool",
    "likelihood_weighted": "the weights need the row's label; rows without one get linear_pool",
    "stochastic_teacher": "in evaluation it is linear_pool; it only saves teachers' time in training",
}

# What is compared with, and is no ensemble to learn from.
_YARDSTICKS = ("majority_vote", "best_teacher, fitted", BEST_TEACHER)


class Scores(NamedTuple):
    """How a system does on the rows.

    Attributes:
        log_probs: (N, C) float64.
        correct: (N,) 1.0 where the first answer is right.
        nll: (N,) −ln p(label), inf where the label was held impossible.
        means: (R, 2) mean ``correct`` and ``nll`` on resamples, the same for every system.
    """

    log_probs: np.ndarray
    correct: np.ndarray
    nll: np.ndarray
    means: np.ndarray

    def over(self, other: Scores, *, level: float = 0.95) -> Gains:
        """This minus the other, with intervals of the level."""
        # A column of resampled means of something infinite is NaN already; of its own difference no word is needed.
        with np.errstate(invalid="ignore"):
            values = (self.correct.mean() - other.correct.mean(), self.nll.mean() - other.nll.mean())
            spread = self.means - other.means
        return Gains(*(percentile_interval(v, r, level=level) for v, r in zip(values, spread.T, strict=True)))


@dataclass(frozen=True)
class CalibratedTeacher:
    """The single teacher that an ensemble has to beat: lowest NLL after its own fitted temperature.

    Calibrated, because a fitted fusion is: what one number does for one teacher is no merit of the others. A temperature
    that gains less than one nat over all rows is more likely noise (Akaike's criterion), and stays 1.
    """

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        """The teacher and its temperature, as a `LogPool`; of equal ones the first."""
        found: list[tuple[float, int, float]] = []
        for k, logits in enumerate(held_out.logits):
            mask = None if held_out.mask is None else held_out.mask[k]
            if not bool(torch.isfinite(logits if mask is None else logits[mask]).all()):
                continue
            fitted = fit_temperature(logits, held_out.labels, mask=mask)
            log_probs = {t: torch.log_softmax(logits.double() / t, -1) for t in (1.0, fitted)}
            nll = {t: mean_nll(own, held_out.labels) for t, own in log_probs.items()}
            temperature = fitted if (nll[1.0] - nll[fitted]) * len(held_out.labels) > 1 else 1.0
            found.append((nll[temperature], k, temperature))
        if not found:
            raise DataError("no teacher gives finite outputs")
        _, best, temperature = min(found)
        weights = tuple(float(k == best) for k in range(len(names)))
        return FusionChoice(
            LogPool(weights, (temperature,) * len(names)), f"{names[best]} alone, at its temperature"
        )

    def without_rows(self, why: str) -> FusionChoice:
        """It cannot do without."""
        raise ConfigurationError(f"The best teacher is chosen on held-out rows with labels, but {why}.")


def oracle(held: HeldOut) -> float:
    """Share of rows where some teacher's first answer is right: no choice between them does better."""
    return float((held.logits.argmax(-1) == held.labels).any(0).double().mean())


def subset(held: HeldOut, names: Sequence[str], keep: Sequence[str]) -> HeldOut:
    """The held-out rows of some of the teachers."""
    which = [names.index(name) for name in keep]
    return held._replace(logits=held.logits[which], mask=None if held.mask is None else held.mask[which])


def half(held: HeldOut) -> torch.Tensor:
    """(N,) bool: the rows of the first half, by their content, so that copies of a row never are on both sides."""
    return held.example_ids % 2 == 0


def fitted(rule: Fusion | FusionRule, held: HeldOut, names: Sequence[str]) -> Fusion:
    """The rule, fitted on the rows given where it is to be fitted."""
    return rule.choose(held, names).fusion if hasattr(rule, "choose") else rule


def out_of_fold(rule: Fusion | FusionRule, held: HeldOut, names: Sequence[str]) -> np.ndarray:
    """Log-probabilities (N, C), each row's from what was fitted on the other half; no label reaches the fusion.

    Raises:
        DataError: A half has no rows, or the rule cannot be fitted.
    """
    first = half(held)
    if bool(first.all()) or not bool(first.any()):
        raise DataError("all rows have the same text, so they make no two halves")
    log_probs = torch.empty(held.logits.shape[1:], dtype=torch.float64)
    for rest in (first, ~first):
        fusion = fitted(rule, _rows(held, ~rest), names)
        mask = None if held.mask is None else held.mask[:, rest]
        log_probs[rest] = fusion(held.logits[:, rest], temperature=1.0, mask=mask).double()
    return log_probs.numpy()


def _rows(held: HeldOut, which: torch.Tensor) -> HeldOut:
    mask = None if held.mask is None else held.mask[:, which]
    return HeldOut(held.logits[:, which], held.labels[which], mask, held.example_ids[which])


def score_rules(
    rules: Mapping[str, Fusion | FusionRule], held: HeldOut, names: Sequence[str], *, what: str
) -> tuple[dict[str, Scores], dict[str, str]]:
    """Every rule out of fold, on the same resamples.

    Args:
        rules: By name; `BEST_TEACHER` is added.
        held: Labelled rows.
        names: The teachers' names.
        what: Names the progress bar.

    Returns:
        The scores, and why a rule has none.
    """
    found, reasons = {}, {}
    for name, rule in tqdm(
        {**rules, BEST_TEACHER: CalibratedTeacher()}.items(), desc=what, leave=False, disable=None
    ):
        try:
            found[name] = out_of_fold(rule, held, names)
        except (
            ValueError,
            RuntimeError,
            ArithmeticError,
        ) as error:  # a user's own rule may raise what it likes
            reasons[name] = " ".join(str(error).split())
    return scored(found, held.labels.numpy()), reasons


def scored(systems: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, Scores]:
    """Scores of log-probabilities (N, C) by name, all resampled at once."""
    measures = {
        name: ((log_probs.argmax(1) == labels).astype(np.float64), nll_rows(log_probs, labels))
        for name, log_probs in systems.items()
    }
    if not measures:
        return {}
    means = bootstrap_means(np.stack([column for pair in measures.values() for column in pair], 1))
    return {
        name: Scores(systems[name], *pair, means[:, 2 * i : 2 * i + 2])
        for i, (name, pair) in enumerate(measures.items())
    }


def rule_figures(name: str, scores: Mapping[str, Scores], labels: np.ndarray) -> RuleFigures:
    """A rule's figures against the uniform `LinearPool` and the best teacher, which are among the scores."""
    own = scores[name]
    alone = Gains(
        percentile_interval(own.correct.mean(), own.means[:, 0]),
        percentile_interval(own.nll.mean(), own.means[:, 1]),
    )
    return RuleFigures(
        name,
        alone.accuracy,
        alone.nll,
        brier_score(own.log_probs, labels),
        expected_calibration_error(own.log_probs, labels),
        own.over(scores["linear_pool"]),
        own.over(scores[BEST_TEACHER]),
    )


def advised_rule(scores: Mapping[str, Scores]) -> str:
    """The simplest rule that is not worse beyond chance than the one of lowest NLL.

    Among rules that the rows cannot tell apart, fewer fitted numbers are less to go wrong. Like the one-standard-error
    rule of pruning (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3), on paired intervals.
    """
    eligible = {
        name: own for name, own in scores.items() if name not in _YARDSTICKS and np.isfinite(own.nll).all()
    }
    if not eligible:
        return "linear_pool"
    best = min(eligible.values(), key=lambda own: own.nll.mean())
    return next(name for name, own in eligible.items() if own.over(best).no_loss)


def leave_one_out(
    rules: Mapping[str, Fusion | FusionRule], held: HeldOut, names: Sequence[str]
) -> dict[str, dict[str, Scores]]:
    """The ensemble without each teacher.

    Args:
        rules: By name.
        held: Labelled rows of all teachers.
        names: The teachers' names.

    Returns:
        Scores by rule, by the teacher that is missing; a rule that cannot be fitted without it is left out.
    """
    scores: dict[str, dict[str, Scores]] = {}
    for without in tqdm(names, desc="Without one teacher", leave=False, disable=None):
        others = [name for name in names if name != without]
        found = {}
        for name, rule in rules.items():
            with contextlib.suppress(ValueError, RuntimeError, ArithmeticError):
                found[name] = out_of_fold(rule, subset(held, names, others), others)
        scores[without] = scored(found, held.labels.numpy())
    return scores


def built_rules(fusions: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Fusion | FusionRule]:
    """The rules to be scored, by the names that the report gives them.

    Args:
        fusions: None: `RULES`; a mapping from name to whatever `build_fusion` takes; or a sequence of it. The uniform
            ``linear_pool`` is always among them, first.

    Raises:
        ConfigurationError: Nobody knows one of them.
    """
    given = RULES if fusions is None else fusions
    if not isinstance(given, Mapping):
        given = {spec if isinstance(spec, str) else _called(spec): spec for spec in given}
    return {name: build_fusion(spec) for name, spec in {"linear_pool": "linear_pool", **given}.items()}


def _called(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return repr(spec)
    return f"{spec.get('use')}, fitted" if spec.get("fit") else str(spec.get("use"))
