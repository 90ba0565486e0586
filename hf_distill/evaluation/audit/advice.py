"""From the figures to what to do: which teachers, which fusion, and whether several are worth it over one."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigurationError
from ...fusion import Fusion, FusionRule, HeldOut, describe
from ...tasks.row_scores import reliability_bins
from ..formats import percent
from ..statistics import mcnemar_exact
from .numbers import BEST_TEACHER, Advice
from .rules import (
    CalibratedTeacher,
    Scores,
    advised_rule,
    fitted,
    leave_one_out,
    oracle,
    rule_figures,
    score_rules,
    subset,
)

# Longer settings are no lines to paste: the recipe then asks for the same fit.
_LONGEST = 600
# Teachers that one sentence of the verdict lists with their figures.
_MOST = 4
# What YAML of any version reads as text without quotes; it is JSON otherwise, which YAML reads too.
_BARE = re.compile(r"(\.{0,2}/|[A-Za-z_])[\w./-]*", re.ASCII)
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def advise(
    held: HeldOut,
    names: Sequence[str],
    rules: Mapping[str, Fusion | FusionRule],
    broken: Mapping[str, str],
    entries: Mapping[str, Any],
    known: Mapping[str, Scores],
) -> Advice | None:
    """Leave out what is broken, then one by one what does harm; then the simplest rule that is not worse than the best.

    Args:
        held: Labelled rows of all teachers.
        names: The teachers' names.
        rules: By name, the simplest first.
        broken: Why a teacher should not be used as it is.
        entries: What a recipe writes of each teacher.
        known: Scores of all teachers under the rules.

    Returns:
        None where no teacher is left.
    """
    kept, dropped = [name for name in names if name not in broken], dict(broken)
    if not kept:
        return None
    while True:
        rows = subset(held, names, kept)
        scores = known if len(kept) == len(names) else score_rules(rules, rows, kept, what="Kept teachers")[0]
        if BEST_TEACHER not in scores:
            return None
        rule = advised_rule(scores)
        without: dict[str, Scores] = {}
        if len(kept) > 1:
            each = leave_one_out({rule: rules[rule]}, rows, kept)
            without = {name: own[rule] for name, own in each.items() if rule in own}
        # As many chances to look harmful as there are teachers: each gets its share of the five in a hundred (Bonferroni).
        level = 1 - 0.05 / len(kept)
        harmful = [name for name, own in without.items() if own.over(scores[rule], level=level).better]
        fusion = fitted(rules[rule], rows, kept)
        shares = getattr(fusion, "weights", None) if hasattr(rules[rule], "choose") else None
        unheard = [name for name, share in zip(kept, shares or (), strict=False) if share == 0]
        if unheard and not harmful:
            dropped |= dict.fromkeys(unheard, f"{rule} gives it no weight")
            kept = [name for name in kept if name not in unheard]
            continue
        if not harmful:
            break
        worst = min(harmful, key=lambda name: without[name].nll.mean())
        dropped[worst] = f"without it {rule} of the others gains: {without[worst].over(scores[rule])}"
        kept.remove(worst)
    gains = {name: own.over(scores[rule]) for name, own in without.items()}
    labels = held.labels.numpy()
    ensemble, best = scores[rule], scores[BEST_TEACHER]
    write = functools.partial(_lines, entries)
    choice = CalibratedTeacher().choose(rows, kept).fusion
    top = choice.weights.index(1.0)
    temperature = choice.temperatures[top]
    single = (
        {"use": "linear_pool"} if temperature == 1 else {"use": "log_pool", "temperatures": [temperature]}
    )
    alone = write([kept[top]], single)
    settings = _described(fusion)
    over_best = ensemble.over(best)
    several = len(kept) > 1 and not over_best.worse
    return Advice(
        teachers=tuple(kept),
        dropped=dropped,
        optional={name: own for name, own in gains.items() if own.no_loss},
        fusion=rule,
        fitted=hasattr(rules[rule], "choose"),
        settings=settings,
        figures=rule_figures(rule, scores, labels),
        rules=tuple(rule_figures(name, scores, labels) for name in scores) if dropped else (),
        reliability=tuple(reliability_bins(ensemble.log_probs, labels)),
        oracle=oracle(rows),
        best_teacher=kept[top],
        mcnemar=mcnemar_exact(ensemble.correct > 0, best.correct > 0),
        lines=write(kept, settings) if several or len(kept) == 1 else alone,
        alternative=alone if several and not over_best.better else "",
    )


def _lines(entries: Mapping[str, Any], kept: Sequence[str], settings: Mapping[str, Any]) -> str:
    lines = recipe_lines([entries[name] for name in kept], settings)
    if len(lines.splitlines()[-1]) > _LONGEST:
        lines = recipe_lines([entries[name] for name in kept], {"use": settings["use"], "fit": True})
    return lines


def _described(fusion: Fusion) -> dict[str, Any]:
    try:
        return describe(fusion)
    except ConfigurationError:  # no dataclass: a recipe can only name its class
        return {"use": f"{type(fusion).__module__}:{type(fusion).__qualname__}"}


def verdict(advice: Advice | None, rows: int, parameters: Mapping[str, int | None]) -> list[str]:
    """The advice in words, with the differences it rests on.

    Args:
        advice: Of `advise`.
        rows: N.
        parameters: Of each teacher, where known.
    """
    if advice is None:
        return [
            "No teacher is usable as it is on these rows: see the warnings. Check first whether the labels are matched "
            "as they should be, and whether these rows are of the teachers' task."
        ]
    sentences = [f"Drop {name!r}: {reason}." for name, reason in advice.dropped.items()]
    own, over_best, best = advice.figures, advice.figures.over_best_teacher, advice.best_teacher
    if len(advice.teachers) == 1:
        line = f"Use {best!r} alone: there is no other teacher to fuse it with"
        if own.over_linear_pool.better:
            line += f". Its temperature is worth fitting: {own.over_linear_pool}"
        return [*sentences, f"{line}."]
    measured = (
        f"the ensemble minus the best single teacher, {best!r}, calibrated: {over_best} (exact McNemar test of the "
        f"accuracies: p = {advice.mcnemar:.2g})"
    )
    if over_best.worse:
        return [*sentences, f"Use {best!r} alone, several are not worth it here: {measured}."]
    sentences.append(f"Keep {_listed(advice.teachers)}.")
    if advice.fusion == "linear_pool":
        sentences.append(
            f"Fuse with linear_pool, uniform: no rule beats it beyond chance on these {rows:,} rows."
        )
    else:
        text = f"Fuse with {advice.fusion}: against the uniform linear_pool {own.over_linear_pool}."
        lines = f" The lines below hold it, fitted on all {rows:,} rows." if advice.fitted else ""
        sentences.append(text + lines)
    if over_best.better:
        sentences.append(f"Several teachers are worth it: {measured}.")
    elif over_best.unseen:
        sentences.append(
            f"Several teachers or one: no difference beyond chance on these {rows:,} rows; {measured}. {best!r} alone is "
            f"enough as far as they show, with {_share(best, advice.teachers, parameters)}."
        )
    else:
        sentences.append(f"Several teachers gain in one measure and lose in the other: {measured}.")
    if advice.optional:
        missed = [f"without {name!r}: {gains}" for name, gains in advice.optional.items()]
        more = f"; and {len(missed) - _MOST} others, see the table" if len(missed) > _MOST else ""
        sentences.append(
            f"What the ensemble would not miss as far as these rows show: {'; '.join(missed[:_MOST])}{more}. Leave out one, "
            "and audit again."
        )
    resolution = (over_best.accuracy.high - over_best.accuracy.low) / 2
    sentences.append(
        f"The ensemble is right on {percent(own.accuracy.value)} % of the rows, at least one of these teachers on {percent(advice.oracle)} %. "
        f"Differences in accuracy below about {100 * resolution:.1f} points cannot be told from chance here."
    )
    return sentences


def _share(best: str, kept: Sequence[str], parameters: Mapping[str, int | None]) -> str:
    """What one teacher costs of all."""
    sizes = [parameters.get(name) for name in kept]
    return (
        f"one forward per row in place of {len(kept)}"
        if None in sizes
        else f"{percent(parameters[best] / sum(sizes))} % of their parameters"
    )


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def recipe_lines(entries: Sequence[Any], fusion: Mapping[str, Any]) -> str:
    """Teachers and fusion as a recipe writes them.

    Args:
        entries: A teacher's folder or id, or a mapping with ``model``.
        fusion: ``{"use": name, **options}``.

    Example:
        >>> print(recipe_lines(["org/bert", {"model": "org/b", "name": "yes"}], {"use": "log_pool", "weights": [0.4, 0.6]}))
        teachers:
          models:
            - org/bert
            - {model: org/b, name: "yes"}
        fusion: {use: log_pool, weights: [0.4, 0.6]}
    """
    rule = fusion["use"] if set(fusion) == {"use"} else fusion
    return "\n".join(
        [
            "teachers:",
            "  models:",
            *(f"    - {_flow(entry)}" for entry in entries),
            f"fusion: {_flow(rule)}",
        ]
    )


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}" if "e" not in f"{value:.6g}" else f"{value:.10f}".rstrip("0")
    bare = isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _NO_TEXT
    return value if bare else json.dumps(value, ensure_ascii=False)
