"""How often a verdict calls two systems different that are not, and finds a difference of the size that it calls detectable.

Rows share their difficulty between systems; a training has an effect of its own, on all its rows, and one on each. Everything
is drawn many times and judged by the arithmetic of `hf_distill.evaluation.variances`, as `difference` does it: the interval
leaves zero out, and six rows differ. Two systems of the same truth must be called different in about 5 of 100 comparisons. Then
one of them is given a true gain of the median of what such comparisons print as detectable: it must be found in about 80 of 100.
Of NLL the gain is a constant on each row; of accuracy and macro-F1 half of it is a shift of the one system's logits up and half
one of the other's down, where that can be: between 1.00 and 0.52 there are 0.48.

    python benchmarks/verdict_coverage.py                        # the table of docs/verdict.md, about ten minutes on one core
    python benchmarks/verdict_coverage.py --draws 200 --seeds 3
    python benchmarks/verdict_coverage.py --hardest --draws 500 --seeds 3 5 --rows 500 --effects 0.15 0.3
    python benchmarks/verdict_coverage.py --alone --seeds 2 3 5 10 --rows 500   # a run of one seed against one of several
    python benchmarks/verdict_coverage.py --groups --seeds 3 5 --rows 500       # any of several classes called different

Shapes: D draws, S seeds, N rows, C classes, G groups of rows.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from hf_distill.evaluation.statistics import LEAST_DIFFERENT, LEAST_ROWS, holm
from hf_distill.evaluation.variances import (
    ERROR,
    detectable,
    half_width,
    p_values,
    variance_apart,
    variance_of_mean,
)
from hf_distill.tasks.row_scores import f1_values

CLASSES = 3
# Of a row's margin in logits: its mean and spread over rows, and what a training adds on each row by itself.
MEAN, ROWS, OWN = 1.5, 2.0, 0.7
MEASURES = ("accuracy", "macro-F1", "NLL")
# Numbers in memory at a time.
_BLOCK = 1_000_000


class Found(NamedTuple):
    """What came of a cell.

    Attributes:
        called: Share of comparisons of equals that were called different.
        detectable: The median of what they said to be detectable.
        found: Share of comparisons that found a true gain of that size; None where nothing can gain as much.
    """

    called: float
    detectable: float
    found: float | None


def margins(
    generator: np.random.Generator, draws: int, seeds: int, rows: int, *effects: float
) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks of labels (D, N), another class of each row (D, N), and margins of two systems (D, S, N) each.

    Args:
        generator: Draws.
        draws: How many comparisons.
        seeds: S.
        rows: N.
        effects: Standard deviations between trainings, in logits; of both systems, or of each.
    """
    size = max(1, _BLOCK // (seeds * rows))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        hard = generator.normal(MEAN, ROWS, (count, 1, rows))
        labels = generator.integers(CLASSES, size=(count, rows))
        wrong = (labels + generator.integers(1, CLASSES, size=(count, rows))) % CLASSES
        systems = [
            hard
            + generator.normal(0, effect, (count, seeds, 1))
            + generator.normal(0, OWN, (count, seeds, rows))
            for effect in (effects * 2)[:2]
        ]
        yield labels, wrong, *systems


def gains(
    measure: str, labels: np.ndarray, wrong: np.ndarray, own: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """(D, S, N) what the first system is better by on each row."""
    if measure == "accuracy":
        return (own > 0) * 1.0 - (other > 0)
    if measure == "NLL":
        return np.logaddexp(0, -other) - np.logaddexp(0, -own)
    answers = [np.where(one > 0, labels[:, None], wrong[:, None]) for one in (own, other)]
    return np.stack(
        [
            f1_values(a, label, CLASSES) - f1_values(b, label, CLASSES)
            for label, a, b in zip(labels, *answers, strict=True)
        ]
    )


def beyond_chance(values: np.ndarray) -> np.ndarray:
    """(D,) 1 where the first system is called better, −1 where worse, as `difference` does it."""
    mean = values.mean((1, 2))
    apart = (values.mean(1) != 0).sum(1) >= LEAST_DIFFERENT
    return np.where(apart & (np.abs(mean) > half_width(variance_of_mean(values))), np.sign(mean), 0)


def alone(
    draws: int, seeds: int, rows: int, effect: float, own_effect: float
) -> dict[str, tuple[float, float]]:
    """Of equals, one trained once and the other several times: how often called different, by measure.

    Args:
        draws: How many comparisons.
        seeds: Of the other.
        rows: N.
        effect: Standard deviation between the other's trainings.
        own_effect: The same of the one.

    Returns:
        Where the one's trainings are taken to vary as the other's do, and where they are taken not to vary.
    """
    generator = np.random.default_rng([seeds, rows, round(100 * effect)])
    called: dict[str, list[tuple[float, float]]] = {measure: [] for measure in MEASURES}
    for labels, wrong, own, other in margins(generator, draws, seeds, rows, own_effect, effect):
        for measure in MEASURES:
            # What both answer differs by is the difference of what each differs from chance by.
            each = [gains(measure, labels, wrong, one, np.zeros_like(one)) for one in (own[:, :1], other)]
            mean = each[0].mean((1, 2)) - each[1].mean((1, 2))
            borrowed = variance_apart(*each)
            known = variance_of_mean(each[1])
            nothing = borrowed._replace(seeds=known.seeds, both=known.both)
            called[measure].append(
                np.stack([np.abs(mean) > half_width(varies) for varies in (borrowed, nothing)], 1)
            )
    return {measure: tuple(np.concatenate(found).mean(0)) for measure, found in called.items()}


def groups(draws: int, seeds: int, rows: int, effect: float, count: int) -> tuple[float, float]:
    """Of equals, how often any of several groups of rows, such as classes, is called different in accuracy.

    Args:
        draws: How many comparisons.
        seeds: S.
        rows: N.
        effect: Standard deviation between trainings.
        count: G, of as many rows each.

    Returns:
        Where the groups are corrected for their number (Holm), and where they are not.
    """
    generator = np.random.default_rng([seeds, rows, round(100 * effect)])
    called = []
    for labels, wrong, own, other in margins(generator, draws, seeds, rows, effect):
        values = gains("accuracy", labels, wrong, own, other)
        own_p = []
        for part in np.array_split(values, count, axis=-1):
            found = p_values(part.mean((1, 2)), variance_of_mean(part))
            own_p.append(np.where((part.mean(1) != 0).sum(1) >= LEAST_DIFFERENT, found, 1.0))
        for each in np.stack(own_p, 1):
            called.append((min(holm(each)) < ERROR, each.min() < ERROR))
    corrected, single = np.mean(called, 0)
    return float(corrected), float(single)


def shift(gain: float, effect: float) -> float:
    """The logits that raise accuracy by so much: of classes that are alike macro-F1 is the accuracy.

    Returns:
        Infinity where the accuracy would have to be more than one.

    Example:
        >>> round(shift(0.1, 0.3), 3), shift(0.3, 0.3)
        (0.0, inf)
    """
    wide = np.sqrt(ROWS**2 + OWN**2 + effect**2)
    if norm.cdf(MEAN / wide) + gain >= 1:
        return np.inf
    return float(wide * norm.ppf(norm.cdf(MEAN / wide) + gain) - MEAN)


def cell(draws: int, seeds: int, rows: int, effect: float) -> dict[str, Found]:
    """One cell of the table, by measure."""
    generator = np.random.default_rng([seeds, rows, round(100 * effect)])
    called: dict[str, list[np.ndarray]] = {measure: [] for measure in MEASURES}
    told: dict[str, list[np.ndarray]] = {measure: [] for measure in MEASURES}
    for labels, wrong, own, other in margins(generator, draws, seeds, rows, effect):
        for measure in MEASURES:
            values = gains(measure, labels, wrong, own, other)
            called[measure].append(beyond_chance(values) != 0)
            least = 0.0 if measure == "NLL" else LEAST_ROWS / rows
            told[measure].append(np.maximum(detectable(variance_of_mean(values)), least))
    size = {measure: float(np.median(np.concatenate(told[measure]))) for measure in MEASURES}
    moved = {
        measure: [shift(sign * size[measure] / 2, effect) for sign in (1, -1)]
        if measure != "NLL"
        else [0.0, 0.0]
        for measure in MEASURES
    }
    found: dict[str, list[np.ndarray]] = {measure: [] for measure in MEASURES}
    for labels, wrong, own, other in margins(generator, draws, seeds, rows, effect):
        for measure in MEASURES:
            up, down = moved[measure]
            if not np.isfinite(up):
                continue
            values = gains(measure, labels, wrong, own + up, other + down)
            values = values + (size[measure] if measure == "NLL" else 0.0)
            found[measure].append(beyond_chance(values) > 0)
    return {
        measure: Found(
            float(np.concatenate(called[measure]).mean()),
            size[measure],
            float(np.concatenate(found[measure]).mean()) if found[measure] else None,
        )
        for measure in MEASURES
    }


def hardest(draws: int, seeds: int, rows: int, effect: float) -> dict[str, tuple[float, float, float]]:
    """What it costs to be compared with the best of several baselines, where student and baselines are equals.

    Accuracy has two baselines (last and best step), NLL four (each calibrated too); half of a baseline's effects and of its
    deviations on each row are those of the other baselines.

    Returns:
        By measure: how often the student is called better, how often worse, and the mean of its gain.
    """
    generator = np.random.default_rng([seeds, rows, round(100 * effect)])
    outcomes: dict[str, list[np.ndarray]] = {"accuracy": [], "NLL": []}
    means: dict[str, list[np.ndarray]] = {"accuracy": [], "NLL": []}
    half = np.sqrt(0.5)
    for labels, wrong, own, other in margins(generator, draws, seeds, rows, effect):
        count = len(labels)
        for measure, several in (("accuracy", 2), ("NLL", 4)):
            # A training's mean and its deviations, both halved in variance and filled up by each baseline's own.
            hard = other.mean(1, keepdims=True)
            rivals = [
                hard
                + half * (other - hard)
                + half * generator.normal(0, effect, (count, seeds, 1))
                + half * generator.normal(0, OWN, (count, seeds, rows))
                for _ in range(several)
            ]
            values = np.stack([gains(measure, labels, wrong, own, rival) for rival in rivals])
            worst = values.mean((2, 3)).argmin(0)
            picked = values[worst, np.arange(count)]
            outcomes[measure].append(beyond_chance(picked))
            means[measure].append(picked.mean((1, 2)))
    return {
        measure: (
            float((np.concatenate(found) > 0).mean()),
            float((np.concatenate(found) < 0).mean()),
            float(np.concatenate(means[measure]).mean()),
        )
        for measure, found in outcomes.items()
    }


def said(found: Found) -> str:
    """A cell in words: called different, found, at which size."""
    at = f"{found.detectable:.3f}"
    power = "–" if found.found is None else f"{100 * found.found:.0f}"
    return f"{100 * found.called:.1f} · {power} at {at}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--effects", type=float, nargs="+", default=[0.0, 0.15, 0.3])
    parser.add_argument("--hardest", action="store_true", help="what the best of several baselines costs")
    parser.add_argument("--alone", action="store_true", help="one training against several")
    parser.add_argument("--groups", action="store_true", help="several classes at once")
    given, start = parser.parse_args(), time.perf_counter()
    if given.alone:
        print(
            f"| seeds | rows | seed effect, of the one | {' | '.join(MEASURES)} |\n|{'---|' * (3 + len(MEASURES))}"
        )
        for seeds, rows, effect in itertools.product(given.seeds, given.rows, given.effects):
            for own_effect in dict.fromkeys((effect, 2 * effect)):
                found = alone(given.draws, seeds, rows, effect, own_effect)
                cells = " | ".join(
                    f"{100 * with_it:.1f} · {100 * without:.1f}" for with_it, without in found.values()
                )
                print(f"| 1 and {seeds} | {rows:,} | {effect:g}, {own_effect:g} | {cells} |", flush=True)
        return
    if given.groups:
        print(
            "| seeds | rows | seed effect | classes | any called, corrected | not corrected |\n|---|---|---|---|---|---|"
        )
        for seeds, rows, effect, count in itertools.product(
            given.seeds, given.rows, given.effects, (2, 6, 20)
        ):
            shares = " | ".join(
                f"{100 * share:.1f}" for share in groups(given.draws, seeds, rows, effect, count)
            )
            print(f"| {seeds} | {rows:,} | {effect:g} | {count} | {shares} |", flush=True)
        return
    if given.hardest:
        print(
            "| seeds | rows | seed effect | measure | better | worse | mean gain |\n|---|---|---|---|---|---|---|"
        )
        for seeds, rows, effect in itertools.product(given.seeds, given.rows, given.effects):
            for measure, (better, worse, gain) in hardest(given.draws, seeds, rows, effect).items():
                shares = f"{100 * better:.1f} | {100 * worse:.1f}"
                print(f"| {seeds} | {rows:,} | {effect:g} | {measure} | {shares} | {gain:+.4f} |", flush=True)
        return
    print(f"| seeds | rows | seed effect | {' | '.join(MEASURES)} |\n|{'---|' * (3 + len(MEASURES))}")
    for seeds in given.seeds:
        for rows in given.rows:
            for effect in given.effects:
                found = cell(given.draws, seeds, rows, effect)
                cells = " | ".join(said(found[measure]) for measure in MEASURES)
                print(f"| {seeds} | {rows:,} | {effect:g} | {cells} |", flush=True)
    print(f"\n{given.draws:,} draws a cell, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
