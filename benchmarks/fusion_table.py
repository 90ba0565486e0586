"""Every fusion rule on simulated teachers of known quality: fitted on one half of the rows, scored on the other.

All teachers observe the class in Gaussian noise, so that it is known what each should say:

- good: calibrated
- twin: the same observation with a little more noise, hence nearly the same answers
- different: knows less, but its errors are its own; calibrated
- sure: knows as much as good, from an observation of its own, with logits four times too large
- loud: knows nothing, and is very sure of it

`python benchmarks/fusion_table.py` prints the table of docs/fusions.md; tests/fusion/test_fusion_simulated.py holds its ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_distill.fusion import FUSIONS, AutoFusion, HeldOut, LogPool
from hf_distill.fusion.fitting import mean_nll

TEACHERS = ("good", "twin", "different", "sure", "loud")
SEEDS = tuple(range(10))
_ROWS, _CLASSES = 600, 5
_ALIKE = 0.97  # correlation of the observations of good and twin
# What each teacher's observation says of the class, and what its logits are multiplied by.
_SIGNAL = torch.tensor([2.0, 2.0, 1.2, 2.0, 0.0])
_LOUDNESS = torch.tensor([1.0, 1.0, 1.0, 4.0, 1.0])


class Score(NamedTuple):
    """A rule on rows it was not fitted on.

    Attributes:
        nll: Mean −ln p(label); a probability of 0 counts as 1e-12.
        accuracy: Share of rows.
    """

    nll: float
    accuracy: float


def simulate(seed: int) -> HeldOut:
    """Rows of one seed: logits (5, 600, 5) of `TEACHERS`, and their labels."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(_CLASSES, (_ROWS,), generator=draw)
    noise = torch.randn(len(TEACHERS), _ROWS, _CLASSES, generator=draw)
    noise[1] = _ALIKE * noise[0] + (1 - _ALIKE**2) ** 0.5 * noise[1]
    seen = _SIGNAL[:, None, None] * torch.nn.functional.one_hot(labels, _CLASSES) + noise
    # The logits of the posterior are signal · observation; a teacher without a signal makes some up.
    scale = torch.where(_SIGNAL > 0, _SIGNAL, 20.0) * _LOUDNESS
    ids = torch.randint(2**62, (_ROWS,), generator=draw)
    return HeldOut(scale[:, None, None] * seen, labels, None, ids)


def exact() -> LogPool:
    """What no rule can beat: the posterior given all observations, which is a log pool of the five."""
    shared = 1 / (1 + _ALIKE)  # good and twin say the same thing twice
    strengths = (shared, shared, 1.0, 1 / _LOUDNESS[3].item(), 0.0)
    return LogPool(strengths, (1 / sum(strengths),) * len(strengths))


def rules(fit: HeldOut) -> dict[str, object]:
    """Every rule of the table as it can be had, fitted where it has a fit, and `auto`."""
    made: dict[str, object] = {}
    for name, rule in FUSIONS.items():
        if name == "stochastic_teacher":
            made[name] = rule(weights=(1,) * len(fit.logits))
            continue
        if name in ("linear_pool", "log_pool"):
            made[f"{name}, uniform"] = rule()
        if hasattr(rule, "fit"):
            made[f"{name}, fitted"] = rule.fit(fit.logits, fit.labels)
        else:
            made[name] = rule()
    made["auto"] = AutoFusion().choose(fit, TEACHERS[: len(fit.logits)]).fusion
    return made


def scores(seed: int, teachers: Sequence[str] = TEACHERS) -> dict[str, Score]:
    """All rules on the second half of a seed's rows, fitted on the first."""
    chosen = [TEACHERS.index(name) for name in teachers]
    rows = simulate(seed)
    logits, half = rows.logits[chosen], _ROWS // 2
    fit = HeldOut(logits[:, :half], rows.labels[:half], None, rows.example_ids[:half])
    labels = rows.labels[half:]
    return {name: score(fusion(logits[:, half:]), labels) for name, fusion in rules(fit).items()}


def score(log_probs: Tensor, labels: Tensor) -> Score:
    right = (log_probs.argmax(-1) == labels).double().mean().item()
    return Score(mean_nll(log_probs.double(), labels), right)


def ranks(of_seeds: Sequence[dict[str, Score]]) -> dict[str, float]:
    """Mean rank by NLL over the seeds, 1 the best; equal ones share the mean of their places."""
    total = dict.fromkeys(of_seeds[0], 0.0)
    for of_rule in of_seeds:
        nll = torch.tensor([score.nll for score in of_rule.values()])
        below, equal = (nll < nll[:, None] - 1e-9).sum(1), ((nll - nll[:, None]).abs() <= 1e-9).sum(1)
        for name, rank in zip(of_rule, (below + (equal + 1) / 2).tolist(), strict=True):
            total[name] += rank / len(of_seeds)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    seeds = range(parser.parse_args().seeds)
    from hf_distill.markdown import markdown_table

    with_all = [scores(seed) for seed in seeds]
    without = [scores(seed, TEACHERS[:-1]) for seed in seeds]
    rank = ranks(with_all)
    lines = []
    for name in sorted(rank, key=rank.__getitem__):
        nll, accuracy, quiet = (
            sum(values) / len(seeds)
            for values in (
                [of_rule[name].nll for of_rule in with_all],
                [of_rule[name].accuracy for of_rule in with_all],
                [of_rule[name].nll for of_rule in without],
            )
        )
        lines.append([name, f"{rank[name]:.1f}", f"{nll:.3f}", f"{100 * accuracy:.1f}", f"{quiet:.3f}"])
    known = [exact()(rows.logits[:, _ROWS // 2 :]) for rows in map(simulate, seeds)]
    bound = [score(p, simulate(seed).labels[_ROWS // 2 :]) for seed, p in zip(seeds, known, strict=True)]
    nll, accuracy = (sum(values) / len(seeds) for values in zip(*bound, strict=True))
    lines.append(["(the exact posterior)", "–", f"{nll:.3f}", f"{100 * accuracy:.1f}", f"{nll:.3f}"])
    print(markdown_table(["rule", "mean rank", "NLL", "accuracy %", "NLL without loud"], lines))


if __name__ == "__main__":
    main()
