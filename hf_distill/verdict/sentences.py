"""The verdict in words: one sentence to quote, and what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..evaluation.formats import MUTE, duration, faster, interval, minus, percent, signed_points
from ..evaluation.statistics import Difference, Interval
from .numbers import Claim, Training
from .systems import BEST, CALIBRATED, ENSEMBLE, LAST, STUDENT, Measured, of_kind
from .wording import SCORES, metric_name

_SHARES_OF = {"accuracy": "the accuracies"}


def advice(claim: Claim, accuracies: Mapping[str, float]) -> str:
    """What to do, in one sentence for whoever was not there; of one training each no more than what these models do.

    Args:
        claim: What the verdict says.
        accuracies: Of the systems by name.

    Example:
        >>> gain = Difference("accuracy", "student", LAST, Interval(0.011, 0.006, 0.016), 0.007)
        >>> claim = Claim(0.912, 0.002, 1821, 5, LAST, gain, 0.986, 3, 0.058)
        >>> print(advice(claim, {LAST: 0.901, ENSEMBLE: 0.925}))
        Use the distilled student: it is right on 91.2 % of the rows, the same student without teachers on 90.1 %, its 3 teachers together on 92.5 %, and it is 17× faster than they are.
    """
    own = f"right on {percent(claim.accuracy)} % of the rows"
    other = accuracies.get(
        claim.baseline or "", claim.accuracy - (claim.gain.value.value if claim.gain else 0)
    )
    plain = f"the same student without teachers on {percent(other)} %"
    teachers, cost = "", ""
    if (together := accuracies.get(ENSEMBLE)) is not None:
        whom = f"its {claim.teachers} teachers together" if claim.teachers > 1 else "its teacher"
        teachers = f", {whom} on {percent(together)} %"
    if claim.latency is not None:
        they = "they are" if claim.teachers > 1 else "it is"
        speed = faster(claim.latency)
        cost = f", and it is {speed} {'as' if speed == 'as fast' else 'than'} {they}"
    match claim.outcome:
        case "gain":
            return f"Use the distilled student: it is {own}, {plain}{teachers}{cost}."
        case "loss":
            return f"Do not distil here: the student is {own}, {plain}{teachers}{cost}."
        case "no difference":
            assert claim.gain is not None
            seen = (
                f"a gain below {percent(claim.gain.detectable)} points cannot be seen on {claim.rows:,} rows"
                if claim.gain.detectable < MUTE
                else f"{claim.seeds} seeds on {claim.rows:,} rows are too few to see a gain"
            )
            return f"Not shown to be worth it here: the distilled student is {own}, {plain} ({seen}){teachers}{cost}."
        case "one seed":
            assert claim.gain is not None
            what = "better" if claim.gain.better else "worse" if claim.gain.worse else "no better"
            return (
                f"This student is {what} than the same one trained without teachers: {own}, the other on {percent(other)} %"
                f"{teachers}{cost}. One training of each does not say whether the next would do so too."
            )
    return f"Nothing says what distillation gained: the student is {own}{teachers}{cost}, and none was trained without teachers."


def headline(claim: Claim) -> str:
    """The sentence that a verdict is quoted with.

    Example:
        >>> gain = Difference("accuracy", "student", LAST, Interval(0.011, 0.006, 0.016), 0.007)
        >>> print(headline(Claim(0.912, 0.002, 1821, 5, LAST, gain, 0.986, 3, 0.21)))
        distilled student: accuracy 91.2 ± 0.2, +1.1 over fine-tuning (95 % interval +0.6 to +1.6), keeps 98.6 % of the ensemble, 4.8× faster
    """
    accuracy = f"{100 * claim.accuracy:.1f}"
    accuracy += " (one seed)" if claim.spread is None else f" ± {100 * claim.spread:.1f}"
    whose = "this" if claim.outcome == "one seed" else "distilled"
    parts = [f"{whose} student: {_called(claim.measure)} {accuracy}"]
    if claim.gain is not None:
        value = claim.gain.value
        word = "over" if value.value >= 0 else "against"
        whom = "this baseline" if claim.outcome == "one seed" else "fine-tuning"
        parts[0] += f", {signed_points(value)[0]} {word} {whom} ({interval(value)})"
    if claim.outcome == "one seed":
        parts[0] += (
            f": {_these_two(claim)} on rows like these {claim.rows:,}; one training says nothing of what distillation gains"
        )
    elif claim.outcome == "no difference":
        few = ", on too few of which the answers differ" if claim.gain.value.beyond_chance else ""
        parts[0] += f": no gain beyond chance on these {claim.rows:,} rows{few}; {detectable(claim.gain)}"
    elif claim.outcome == "loss":
        parts[0] += ": distillation did harm here"
    elif claim.outcome == "no baseline":
        parts[0] += f" on {claim.rows:,} rows, compared with no fine-tuning"
    if claim.keeps is not None:
        whom = "the ensemble" if claim.teachers > 1 else "its teacher"
        cost = "" if claim.latency is None else f", {faster(claim.latency)}"
        parts.append(f"keeps {100 * claim.keeps:.1f} % of {whom}{cost}")
    return ("; " if claim.outcome in ("no difference", "loss", "one seed") else ", ").join(parts)


def _called(measure: str) -> str:
    """A measure in a sentence, without its unit.

    Example:
        >>> _called("accuracy"), _called("within")
        ('accuracy', 'within the tolerance')
    """
    return metric_name(measure).partition(",")[0]


def _these_two(claim: Claim) -> str:
    """Which of two models is right more often, as far as their rows show."""
    assert claim.gain is not None
    what = "better" if claim.gain.better else "worse" if claim.gain.worse else "no different beyond chance"
    p = "".join(f" (McNemar p = {value:.2g})" for value in claim.gain.mcnemar[:1])
    return f"it is {what}{p}"


def remarks(
    claim: Claim,
    found: Mapping[str, Measured],
    differences: Sequence[Difference],
    trainings: Sequence[Training] = (),
) -> tuple[str, ...]:
    """What must be said beside the headline: against which baseline, of probabilities, of seeds, of teachers.

    Args:
        claim: The claim.
        found: The systems by name.
        differences: What was compared.
        trainings: How they went.
    """
    sentences = []
    if claim.gain is not None:
        sentences += [
            _baseline(claim, found),
            _mcnemar(claim.gain),
            *_probabilities(found, differences),
        ]
    if claim.seeds == 1:
        sentences.append(
            "One seed: the intervals are over rows only, and say which of these very models is better, not whether distillation "
            f"is: trainings differ by more than one expects. {more_seeds(1, 3, trainings)}"
        )
    elif claim.gain is not None and claim.seeds < 5:
        more = more_seeds(claim.seeds, 5, trainings)
        sentences.append(
            f"{claim.seeds} seeds say little of the spread between trainings, and the interval is as wide as that makes it. {more}"
        )
    if found.keys() & {ENSEMBLE} or of_kind(found, "teacher"):
        sentences.append(
            "The teachers are the same in all of this: nothing is said of other teachers, or of these trained anew."
        )
    accuracies = [(d, found[d.second]) for d in differences if d.measure == claim.measure]
    sentences += [_alone(d, other) for d, other in accuracies if other.role.kind == "single"]
    for d, other in accuracies:
        if other.role.kind == "teacher":
            what = "more" if d.better else "less" if d.worse else None
            points = f"{signed_points(d.value)[0]} points, {interval(d.value)}"
            sentences.append(
                f"The best single teacher, {other.role.of!r}, is right as often as far as these rows show ({points})."
                if what is None
                else f"{'This' if claim.seeds == 1 else 'The'} student is right {what} often than the best single teacher, {other.role.of!r} ({points})."
            )
    return tuple(sentences)


def more_seeds(have: int, want: int, trainings: Sequence[Training]) -> str:
    """What more seeds would cost, going by what those took that are there.

    Args:
        have: How many seeds there are.
        want: How many there might be.
        trainings: How they went.

    Example:
        >>> more_seeds(1, 3, [Training("student", 0, 9, 60.0, None, ()), Training("baseline", 0, 9, 15.0, None, ())])
        'evaluation.seeds=3 keeps what is trained and adds 4 trainings, about 2:30 one after another.'
    """
    count = (want - have) * len(trainings) // have
    taken = [one.seconds for one in trainings if one.seconds is not None]
    time = sum(taken) / len(taken) * count if taken and len(taken) == len(trainings) else 0.0
    words = f" and adds {count} trainings" if count else ""
    about = f", about {duration(time)} one after another" if time else ""
    return f"evaluation.seeds={want} keeps what is trained{words}{about}."


def _baseline(claim: Claim, found: Mapping[str, Measured]) -> str:
    assert claim.baseline is not None
    picked, other = claim.baseline, BEST if claim.baseline == LAST else LAST
    where = {LAST: "after the last step", BEST: "at the best validation step"}[picked]
    beside = {LAST: "after the last", BEST: "at the best validation step"}[other]
    also = f", {100 * found[other].mean(claim.measure):.1f} {beside}" if BEST in found else ""
    return (
        f"Fine-tuning is the same student from the same start, trained for as many steps on the labelled rows without "
        f"teachers: {_called(claim.measure)} {100 * found[picked].mean(claim.measure):.1f} {where}{also}."
    )


def _alone(d: Difference, single: Measured) -> str:
    what = "better" if d.better else "worse" if d.worse else "neither better nor worse beyond chance"
    what += " (of these trainings)" if len(single.correct) == 1 else ""
    return (
        f"The same student of the best single teacher, {single.role.of!r}, alone: {_called(d.measure)} {100 * single.mean(d.measure):.1f}; "
        f"with all teachers {signed_points(d.value)[0]} points ({interval(d.value)}), {what}."
    )


def _mcnemar(gain: Difference) -> str:
    values = ", ".join(f"{p:.2g}" for p in gain.mcnemar)
    which = "" if len(gain.mcnemar) == 1 else " (one per seed)"
    seen = f" {detectable(gain).capitalize()}." if gain.beyond_chance else ""
    return f"Exact McNemar test of {_SHARES_OF.get(gain.measure, 'these shares')}: p = {values}{which}.{seen}"


def _probabilities(found: Mapping[str, Measured], differences: Sequence[Difference]) -> list[str]:
    """Whether the student's probabilities are better than those that a temperature gives the baseline for nothing."""
    score = found[STUDENT].score
    own = [d for d in differences if d.measure == score and found[d.second].role.kind == "baseline"]
    if not own or not math.isfinite(own[0].value.value):
        return []
    raw, role = own[0], found[own[0].second].role
    scaled = next((d for d in own if found[d.first].role.calibrated), None)
    least = f"{role.of} step" + f", {CALIBRATED}" * role.calibrated
    called, what_of = SCORES[score]
    text = f"{called} {_nats(raw.value)} against the fine-tuned student of least {called} ({least})"
    if scaled is not None:
        text += f", {_nats(scaled.value)} where the distilled student is given a temperature too"
    best = scaled if scaled is not None and scaled.value.value < raw.value.value else raw
    whose = "this student's" if len(found[best.first].correct) == 1 else "its"
    what = "better" if best.better else "worse" if best.worse else "no better beyond chance"
    end = f"{whose} {what_of} are {what}"
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
