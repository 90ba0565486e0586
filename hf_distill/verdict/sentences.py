"""The verdict in words: one sentence to quote, and what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..evaluation.formats import interval, minus, share, signed_points
from ..evaluation.statistics import Difference, Interval
from .numbers import Claim
from .systems import BEST, CALIBRATED, LAST, Measured


def headline(claim: Claim) -> str:
    """The sentence that a verdict is quoted with.

    Example:
        >>> gain = Difference("accuracy", "student", LAST, Interval(0.011, 0.006, 0.016), 0.007)
        >>> print(headline(Claim(0.912, 0.002, 1821, 5, LAST, gain, 0.986, 3, 0.21)))
        distilled student: accuracy 91.2 ± 0.2, +1.1 over fine-tuning (95 % interval +0.6 to +1.6), keeps 98.6 % of the ensemble at 0.21× its latency
    """
    accuracy = f"{100 * claim.accuracy:.1f}"
    accuracy += " (one seed)" if claim.spread is None else f" ± {100 * claim.spread:.1f}"
    parts = [f"distilled student: accuracy {accuracy}"]
    if claim.gain is not None:
        value = claim.gain.value
        word = "over" if value.value >= 0 else "against"
        parts[0] += f", {signed_points(value)[0]} {word} fine-tuning ({interval(value)})"
    if claim.outcome == "no difference":
        few = ", on too few of which the answers differ" if claim.gain.value.beyond_chance else ""
        parts[0] += f": no gain beyond chance on these {claim.rows:,} rows{few}; {detectable(claim.gain)}"
    elif claim.outcome == "loss":
        parts[0] += ": distillation did harm here"
    elif claim.outcome == "no baseline":
        parts[0] += f" on {claim.rows:,} rows, compared with no fine-tuning"
    if claim.keeps is not None:
        whom = "the ensemble" if claim.teachers > 1 else "its teacher"
        cost = "" if claim.latency is None else f" at {share(claim.latency)}× its latency"
        parts.append(f"keeps {100 * claim.keeps:.1f} % of {whom}{cost}")
    return ("; " if claim.outcome in ("no difference", "loss") else ", ").join(parts)


def remarks(
    claim: Claim, found: Mapping[str, Measured], differences: Sequence[Difference]
) -> tuple[str, ...]:
    """What must be said beside the headline: against which baseline, of probabilities, of seeds, of teachers.

    Args:
        claim: The claim.
        found: The systems by name.
        differences: What was compared.
    """
    sentences = []
    if claim.gain is not None:
        sentences.append(_baseline(claim, found))
        sentences.append(_mcnemar(claim.gain))
        sentences += _probabilities(found, differences)
    if claim.seeds == 1:
        sentences.append(
            "One seed: the interval is over rows only, and says nothing of other trainings, which differ by more than one "
            "expects; evaluation.seeds=5 repeats student and baseline."
        )
    elif claim.gain is not None and claim.seeds < 5:
        sentences.append(
            f"{claim.seeds} seeds say little of the spread between trainings, and the interval is as wide as that makes it; "
            "evaluation.seeds=5 narrows it, and keeps these."
        )
    accuracies = [(d, found[d.second]) for d in differences if d.measure == "accuracy"]
    for d, other in accuracies:
        if other.role.kind == "single":
            sentences.append(_alone(d, other))
    for d, other in accuracies:
        if other.role.kind == "teacher":
            what = "more" if d.better else "less" if d.worse else None
            points = f"{signed_points(d.value)[0]} points, {interval(d.value)}"
            sentences.append(
                f"The best single teacher, {other.role.of!r}, is right as often as far as these rows show ({points})."
                if what is None
                else f"The student is right {what} often than the best single teacher, {other.role.of!r} ({points})."
            )
    return tuple(sentences)


def _baseline(claim: Claim, found: Mapping[str, Measured]) -> str:
    assert claim.baseline is not None
    picked, other = claim.baseline, BEST if claim.baseline == LAST else LAST
    where = {LAST: "after the last step", BEST: "at the best validation step"}[picked]
    beside = {LAST: "after the last", BEST: "at the best validation step"}[other]
    also = f", {100 * found[other].mean('accuracy'):.1f} {beside}" if BEST in found else ""
    return (
        f"Fine-tuning is the same student from the same start, trained for as many steps on the labelled rows without "
        f"teachers: accuracy {100 * found[picked].mean('accuracy'):.1f} {where}{also}."
    )


def _alone(d: Difference, single: Measured) -> str:
    what = "better" if d.better else "worse" if d.worse else "neither better nor worse beyond chance"
    return (
        f"The same student of the best single teacher, {single.role.of!r}, alone: accuracy {100 * single.mean('accuracy'):.1f}; "
        f"with all teachers {signed_points(d.value)[0]} points ({interval(d.value)}), {what}."
    )


def _mcnemar(gain: Difference) -> str:
    values = ", ".join(f"{p:.2g}" for p in gain.mcnemar)
    which = "" if len(gain.mcnemar) == 1 else " (one per seed)"
    seen = f" {detectable(gain).capitalize()}." if gain.beyond_chance else ""
    return f"Exact McNemar test of the accuracies: p = {values}{which}.{seen}"


def _probabilities(found: Mapping[str, Measured], differences: Sequence[Difference]) -> list[str]:
    """Whether the student's probabilities are better than those that a temperature gives the baseline for nothing."""
    own = [d for d in differences if d.measure == "nll" and found[d.second].role.kind == "baseline"]
    if not own or not math.isfinite(own[0].value.value):
        return []
    raw = own[0]
    scaled = next((d for d in own if found[d.first].role.calibrated), None)
    role = found[raw.second].role
    least = f"{role.of} step" + f", {CALIBRATED}" * role.calibrated
    text = f"NLL {_nats(raw.value)} against the fine-tuned student of least NLL ({least})"
    if scaled is not None:
        text += f", {_nats(scaled.value)} where the distilled student is given a temperature too"
    best = scaled if scaled is not None and scaled.value.value < raw.value.value else raw
    if best.better:
        end = "its probabilities are better"
    elif best.worse:
        end = "its probabilities are worse"
    else:
        end = "its probabilities are no better beyond chance"
    return [f"{text}: {end}."]


def detectable(gain: Difference | None) -> str:
    """What could have been seen.

    Example:
        >>> detectable(Difference("accuracy", "student", LAST, Interval(0.003, -0.01, 0.02), 0.0241))
        'detectable from 2.4 points'
    """
    assert gain is not None
    return f"detectable from {100 * gain.detectable:.1f} points"


def p_values(d: Difference) -> str:
    """McNemar's p, or its range over the seeds: a cell of a table.

    Example:
        >>> p_values(Difference("accuracy", "a", "b", Interval(0.0, 0.0, 0.0), 0.1, (0.012, 0.5, 0.00034)))
        '0.00034 to 0.5'
    """
    low, high = (f"{end(d.mcnemar, default=math.nan):.2g}" for end in (min, max))
    return "–" if not d.mcnemar else low if low == high else f"{low} to {high}"


def _nats(value: Interval) -> str:
    if not math.isfinite(value.value):
        return "–"
    bounds = "" if not math.isfinite(value.low) else minus(f" ({value.low:+.3f} to {value.high:+.3f})")
    return minus(f"{value.value + 0.0:+.3f}") + bounds
