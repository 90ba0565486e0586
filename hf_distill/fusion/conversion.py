"""From one kind of output to another: a teacher's score as classes of the student, a teacher's classes as a score.

A conversion stands where a `LabelMap` would: it is how one teacher is aligned, and fusions see only what came of it. Its numbers are
given, or fitted on held-out rows; the teacher's own outputs are what caches keep.

Shapes: N rows, n held-out rows, Ck outputs of a teacher, C classes of a student, D scores of a student.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError, DataError
from ..lookup import suggest
from .alignment import labelled
from .fitting import minimise
from .shares import constant

_MOST_SHOWN = 12


@dataclass(frozen=True)
class ScoreBins:
    """A score as one of C ordered classes: p(class ≤ j) = σ((edge_j − score) / spread), the proportional-odds model.

    A score in the middle of a wide bin is that class nearly for certain, one on an edge either of two. With two classes it is the
    logit (score − edge) / spread.

    Args:
        teacher: The teacher's name, for messages.
        teacher_labels: The name of its score.
        student_labels: The C label names of the student, in the order of its logits.
        order: The student's classes from the lowest score to the highest, by their numbers.
        edges: C − 1 increasing numbers on the teacher's scale; None: `fit` takes those below which as many of its scores are as
            labels are of the lower classes (equipercentile linking).
        spread: How far from an edge the odds change e-fold, in units of the score; None: `fit` takes that of the highest
            likelihood.
        rows: How many held-out rows told what was not given.
        fitted: Which of both they told.

    Reference:
        McCullagh: Regression Models for Ordinal Data, Journal of the Royal Statistical Society B 42(2), 1980.
        Kolen, Brennan: Test Equating, Scaling, and Linking, 2014, chapter 2.

    Example:
        >>> bins = ScoreBins("t", ("score",), ("low", "high"), (0, 1), (2.5,), 0.5)
        >>> bins.apply(torch.tensor([[2.5], [3.5]])).softmax(-1)
        tensor([[0.5000, 0.5000],
                [0.1192, 0.8808]])
    """

    use: ClassVar[str] = "score_bins"
    options: ClassVar[tuple[str, ...]] = ("edges", "spread", "order")
    needs: ClassVar[str] = "the edges and the spread by which its score becomes classes are fitted"
    way_out: ClassVar[str] = "convert: {edges: […], spread: …}"
    missing: ClassVar[tuple[str, ...]] = ()
    ignored: ClassVar[tuple[str, ...]] = ()
    is_identity: ClassVar[bool] = False
    named: ClassVar[bool] = False
    teacher: str
    teacher_labels: tuple[str, ...]
    student_labels: tuple[str, ...]
    order: tuple[int, ...]
    edges: tuple[float, ...] | None = None
    spread: float | None = None
    rows: int = 0
    fitted: tuple[str, ...] = ()

    @classmethod
    def planned(
        cls,
        teacher_labels: Sequence[str],
        student_labels: Sequence[str],
        teacher: str,
        options: Mapping[str, Any],
    ) -> ScoreBins:
        """How a teacher's score becomes the student's classes, as a user writes it.

        Args:
            teacher_labels: The names of its outputs.
            student_labels: The student's classes.
            teacher: The teacher's name, for messages.
            options: ``edges`` (numbers on the teacher's scale, or ``quantiles``), ``spread``, ``order`` (the classes from the lowest
                score to the highest; it may be left out where their names are numbers).

        Raises:
            ConfigurationError: Options that cannot be meant.
            DataError: Several scores, or classes without an order.

        Example:
            >>> ScoreBins.planned(["score"], ["10", "2"], "t", {"edges": [5]}).order
            (1, 0)
        """
        check_options(options, cls, teacher)
        theirs, ours = tuple(teacher_labels), tuple(student_labels)
        if len(theirs) != 1:
            raise DataError(
                f"Teacher {teacher!r}: it gives {len(theirs)} scores ({', '.join(_shown(theirs))}), and classes are bins of one: name a teacher "
                "of one score."
            )
        edges, spread = options.get("edges", "quantiles"), options.get("spread")
        if edges != "quantiles" and len(edges) != len(ours) - 1:
            raise ConfigurationError(
                f"Teacher {teacher!r}: convert gives {len(edges)} edge{'s' * (len(edges) != 1)} ({_numbers(edges)}), but the student's "
                f"{len(ours)} classes ({', '.join(_shown(ours))}) need {len(ours) - 1}, one between each two."
            )
        return cls(
            teacher, theirs, ours, _order(ours, teacher, options.get("order")),
            None if edges == "quantiles" else tuple(map(float, edges)), None if spread is None else float(spread),
        )  # fmt: skip

    @property
    def has(self) -> tuple[bool, ...]:
        """All of the student's classes."""
        return (True,) * len(self.student_labels)

    @property
    def settled(self) -> bool:
        """Whether edges and spread are known."""
        return self.edges is not None and self.spread is not None

    def apply(self, logits: Tensor) -> Tensor:
        """(N, 1) scores → (N, C) log-probabilities of the student's classes."""
        _refuse_unsettled(self)
        edges = constant(tuple(self.edges), logits.device)
        bins = _log_bins(logits[:, :1], edges.to(logits.dtype), self.spread)
        return bins.index_select(-1, constant(_inverse(self.order), logits.device, torch.int64))

    def fit(self, outputs: Tensor, labels: Tensor) -> ScoreBins:
        """The same with the edges and the spread that were not given.

        Args:
            outputs: (n, 1) the teacher's scores of held-out rows.
            labels: (n,) class ids, -100 where there is none.

        Raises:
            ConfigurationError: No labelled row.
            DataError: A class without rows, scores that are the same on both sides of an edge, or that are not finite.
        """
        if self.settled:
            return self
        values, truth = _labelled_rows(self, outputs, labels)
        scores, ranks = values[:, 0], constant(_inverse(self.order), torch.device("cpu"), torch.int64)[truth]
        edges = self._quantiles(scores, ranks) if self.edges is None else self.edges
        spread = _likeliest_spread(scores, ranks, edges) if self.spread is None else self.spread
        told = tuple(name for name in ("edges", "spread") if getattr(self, name) is None)
        return dataclasses.replace(self, edges=edges, spread=spread, rows=len(scores), fitted=told)

    def _quantiles(self, scores: Tensor, ranks: Tensor) -> tuple[float, ...]:
        ordered, counts = scores.sort().values, torch.bincount(ranks, minlength=len(self.order))
        if not bool((counts > 0).all()):
            name = self.student_labels[self.order[int((counts == 0).nonzero()[0])]]
            raise DataError(
                f"Teacher {self.teacher!r}: its edges are to be quantiles of its scores, but none of the {len(scores)} held-out rows is "
                f"of the class {name!r}, whose bin would be empty: give edges (convert: {{edges: […]}}), or rows of each class."
            )
        below = counts.cumsum(0)[:-1].tolist()
        edges = tuple(((ordered[i - 1] + ordered[i]) / 2).item() for i in below)
        if any(not a < b for a, b in zip(edges, edges[1:], strict=False)):
            raise DataError(
                f"Teacher {self.teacher!r}: the quantiles of its scores on {len(scores)} held-out rows are {_numbers(edges)}, which do not "
                "increase, since it gives many rows the same score: give edges (convert: {edges: […]}), or leave it out."
            )
        return edges

    def cell(self, output: int) -> str:
        """Which scores are this class."""
        if self.edges is None:
            return "score, by quantiles"
        place = self.order.index(output)
        lower = f"{self.edges[place - 1]:.4g} < " if place else ""
        upper = f" ≤ {self.edges[place]:.4g}" if place < len(self.edges) else ""
        return f"{lower}score{upper}"

    @property
    def sentence(self) -> str:
        """The rule."""
        classes = " < ".join(_shown([self.student_labels[i] for i in self.order]))
        told = dict.fromkeys(self.fitted, f"fitted on {self.rows} held-out rows")
        edges = "quantiles of held-out scores" if self.edges is None else _numbers(self.edges)
        spread = "to be fitted" if self.spread is None else f"{self.spread:.4g}"
        return (
            f"Teacher {self.teacher!r} gives a score, which is binned into the classes {classes}: p(class ≤ j) = σ((edge j − score) / "
            f"spread), edges {edges} ({self._origin(told, 'edges', 'quantiles, as many scores below each as labels')}), spread {spread} "
            f"({self._origin(told, 'spread', 'of the highest likelihood')})."
        )

    def _origin(self, told: Mapping[str, str], name: str, how: str) -> str:
        if name in told:
            return f"{how}, {told[name]}"
        return how if getattr(self, name) is None else "given"


@dataclass(frozen=True)
class ClassMeans:
    """Classes as scores: Σ_c p_c m_c, what is expected where class c means the score m_c.

    Args:
        teacher: The teacher's name, for messages.
        teacher_labels: Its Ck label names, in the order of its logits.
        student_labels: The D names of the student's scores.
        means: For each of the Ck classes D numbers on the student's scale; None: `fit` takes the mean label of the held-out rows
            that the teacher answers with the class; of a class that it answers to none of them, the mean weighted by the probability
            that it gives the class.
        rows: How many held-out rows told the means; 0 where they were given.

    Example:
        >>> means = ClassMeans("t", ("bad", "good"), ("stars",), ((1.0,), (5.0,)))
        >>> means.apply(torch.zeros(1, 2))  # either class with 0.5
        tensor([[3.]])
    """

    use: ClassVar[str] = "class_means"
    options: ClassVar[tuple[str, ...]] = ("means",)
    needs: ClassVar[str] = "the score that each of its classes means is fitted"
    way_out: ClassVar[str] = "convert: {means: {class: score, …}}"
    missing: ClassVar[tuple[str, ...]] = ()
    ignored: ClassVar[tuple[str, ...]] = ()
    is_identity: ClassVar[bool] = False
    named: ClassVar[bool] = False
    teacher: str
    teacher_labels: tuple[str, ...]
    student_labels: tuple[str, ...]
    means: tuple[tuple[float, ...], ...] | None = None
    rows: int = 0

    @classmethod
    def planned(
        cls,
        teacher_labels: Sequence[str],
        student_labels: Sequence[str],
        teacher: str,
        options: Mapping[str, Any],
    ) -> ClassMeans:
        """How a teacher's classes become the student's scores, as a user writes it.

        Args:
            teacher_labels: The teacher's classes.
            student_labels: The names of the student's scores.
            teacher: The teacher's name, for messages.
            options: ``means``: a mapping from each of the teacher's classes to its score on the student's scale, or to a list of its
                scores.

        Raises:
            ConfigurationError: Options that cannot be meant.

        Example:
            >>> ClassMeans.planned(["bad", "good"], ["stars"], "t", {"means": {"good": 5, "bad": 1}}).means
            ((1.0,), (5.0,))
        """
        check_options(options, cls, teacher)
        theirs, ours, means = tuple(teacher_labels), tuple(student_labels), options.get("means")
        if means is None:
            return cls(teacher, theirs, ours)
        if set(means) != set(theirs):
            wrong = next((name for name in means if name not in theirs), None)
            found = (
                f"names {wrong!r}{suggest(wrong, theirs)}"
                if wrong is not None
                else f"lacks {next(n for n in theirs if n not in means)!r}"
            )
            raise ConfigurationError(
                f"Teacher {teacher!r}: convert.means {found}, but it must give each of the teacher's classes a score: {', '.join(_shown(theirs))}."
            )
        values = [
            tuple(map(float, v)) if isinstance(v, (list, tuple)) else (float(v),)
            for v in (means[n] for n in theirs)
        ]
        if any(len(own) != len(ours) for own in values):
            raise ConfigurationError(
                f"Teacher {teacher!r}: convert.means gives {len(values[0])} number(s) per class, but the student has {len(ours)} score(s), "
                f"{', '.join(_shown(ours))}."
            )
        return cls(teacher, theirs, ours, tuple(values))

    @property
    def has(self) -> tuple[bool, ...]:
        """All of the student's scores."""
        return (True,) * len(self.student_labels)

    @property
    def settled(self) -> bool:
        """Whether the means are known."""
        return self.means is not None

    def apply(self, logits: Tensor) -> Tensor:
        """(N, Ck) logits → (N, D) expected scores."""
        _refuse_unsettled(self)
        means = constant(tuple(self.means), logits.device)
        return logits.softmax(-1) @ means.to(logits.dtype)

    def fit(self, outputs: Tensor, labels: Tensor) -> ClassMeans:
        """The same with means, where they were not given.

        Args:
            outputs: (n, Ck) the teacher's logits of held-out rows.
            labels: (n, D) scores, NaN where there is none.

        Raises:
            ConfigurationError: No labelled row.
            DataError: Outputs that are not finite.
        """
        if self.settled:
            return self
        values, truth = _labelled_rows(self, outputs, labels)
        shares, answers = values.softmax(-1), F.one_hot(values.argmax(-1), values.shape[-1]).double()
        counted = torch.where(answers.sum(0) > 0, answers, shares)
        means = (counted.T @ truth.double()) / counted.sum(0)[:, None].clamp(min=1e-300)
        return dataclasses.replace(self, means=tuple(map(tuple, means.tolist())), rows=len(truth))

    def cell(self, output: int) -> str:
        """The expected score."""
        return "Σ p × mean"

    @property
    def sentence(self) -> str:
        """The rule."""
        if self.means is None:
            each, origin = "their held-out means", "to be fitted"
        else:
            values = [" and ".join(f"{value:.4g}" for value in own) for own in self.means]
            named = [f"{name} {value}" for name, value in zip(self.teacher_labels, values, strict=True)]
            each = ", ".join(_shown(named))
            origin = (
                f"means of the labels of {self.rows} held-out rows, by its answer" if self.rows else "given"
            )
        return f"Teacher {self.teacher!r} gives classes, whose expected score is Σ p × mean with the means {each} ({origin})."


CONVERSIONS: dict[str, type[ScoreBins] | type[ClassMeans]] = {
    "score_bins": ScoreBins,
    "class_means": ClassMeans,
}
"""The conversions by the name that stored files give them."""


def without_rows(conversion: ScoreBins | ClassMeans, why: str) -> ConfigurationError:
    """What is wrong where a conversion is to be fitted and there are no held-out rows.

    Args:
        conversion: Of a teacher.
        why: Why there are none, as the end of a sentence.
    """
    return ConfigurationError(
        f"Teacher {conversion.teacher!r}: {conversion.needs} on labelled held-out rows, but {why}: give some, or {conversion.way_out}."
    )


def _refuse_unsettled(conversion: ScoreBins | ClassMeans) -> None:
    if not conversion.settled:
        raise DataError(
            f"Teacher {conversion.teacher!r}: {conversion.needs}, and nothing has fitted that yet: give {conversion.way_out}, or the fusion "
            "of the training (trainer.fusion_choice, or hf_distill.teachers.held_out.load_choice(folder of the run))."
        )


def _labelled_rows(
    conversion: ScoreBins | ClassMeans, outputs: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs and labels of the labelled rows, on the CPU, outputs in float64."""
    known = labelled(labels.cpu())
    values, truth = outputs.detach().cpu().double()[known], labels.cpu()[known]
    if not len(truth):
        raise without_rows(conversion, f"none of the {len(labels)} rows given has a label")
    if not bool(values.isfinite().all()):
        raise DataError(
            f"Teacher {conversion.teacher!r}: {conversion.needs} on held-out rows, but its outputs are not finite there: drop it, or find out "
            "why."
        )
    return values, truth


def stored(conversion: ScoreBins | ClassMeans) -> dict[str, Any]:
    """A conversion as a file keeps it; `restored` makes an equal one of it."""
    return {"use": conversion.use, **dataclasses.asdict(conversion)}


def restored(content: Mapping[str, Any]) -> ScoreBins | ClassMeans:
    """A conversion out of a file.

    Args:
        content: Of `stored`.

    Raises:
        KeyError, TypeError: It is none.

    Example:
        >>> means = ClassMeans("t", ("bad", "good"), ("stars",), ((1.0,), (5.0,)), 9)
        >>> restored(stored(means)) == means
        True
    """
    fields = {key: _tuples(value) for key, value in content.items() if key != "use"}
    return CONVERSIONS[content["use"]](**fields)


def check_options(options: Mapping[str, Any], rule: type, teacher: str) -> None:
    """Refuse what cannot be meant of a conversion, whatever the labels are.

    Args:
        options: As for `score_bins` or `class_means`.
        rule: `ScoreBins` or `ClassMeans`.
        teacher: Whose, for messages.

    Raises:
        ConfigurationError: It is so.

    Example:
        >>> check_options({"edges": [1, 2], "spread": 0.5}, ScoreBins, "t")
    """
    known = rule.options
    who = f"Teacher {teacher!r}: convert"
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"{who} is {options!r}, expected a mapping with {' or '.join(known)}.")
    for key in options:
        if key not in known:
            raise ConfigurationError(
                f"{who} has no option {key!r} here{suggest(key, known)}; there is {', '.join(known)}."
            )
    edges, spread, means = options.get("edges", "quantiles"), options.get("spread"), options.get("means")
    if edges != "quantiles":
        if not isinstance(edges, (list, tuple)) or not edges or not all(map(_is_number, edges)):
            raise ConfigurationError(
                f"{who}.edges is {edges!r}, expected quantiles, or numbers on the teacher's scale."
            )
        if any(not a < b for a, b in zip(edges, edges[1:], strict=False)):
            raise ConfigurationError(
                f"{who}.edges are {_numbers(edges)}, but each must be above the one before it."
            )
    if spread is not None and not (_is_number(spread) and spread > 0):
        raise ConfigurationError(
            f"{who}.spread is {spread!r}, expected a number above 0, in units of the teacher's score."
        )
    if means is not None and not (
        isinstance(means, Mapping)
        and all(
            _is_number(v) or (isinstance(v, (list, tuple)) and v and all(map(_is_number, v)))
            for v in means.values()
        )
    ):
        raise ConfigurationError(
            f"{who}.means is {means!r}, expected a mapping from each class to its score."
        )


def _order(labels: tuple[str, ...], teacher: str, given: Any) -> tuple[int, ...]:
    if given is not None:
        if not isinstance(given, (list, tuple)) or sorted(map(str, given)) != sorted(labels):
            raise ConfigurationError(
                f"Teacher {teacher!r}: convert.order is {given!r}, expected each of the student's classes once, from the lowest score to "
                f"the highest: {', '.join(_shown(labels))}."
            )
        return tuple(labels.index(str(name)) for name in given)
    try:
        numbers = [float(name) for name in labels]
    except ValueError:
        numbers = []
    if len(set(numbers)) < len(labels) or not all(map(math.isfinite, numbers)):
        raise DataError(
            f"Teacher {teacher!r}: it gives a score, but nothing says which of the student's classes ({', '.join(_shown(labels))}) are low "
            f"and which are high: give their order, convert: {{order: [lowest, …, highest]}}."
        )
    return tuple(sorted(range(len(labels)), key=numbers.__getitem__))


def _log_bins(scores: Tensor, edges: Tensor, spread: Any) -> Tensor:
    """(N, 1) scores, C − 1 edges → (N, C) log-probabilities of the bins from the lowest to the highest.

    ln(σ(u) − σ(l)) = ln σ(u) + ln σ(−l) + ln(1 − e^(l − u)), of which no part cancels, however far a score is from a bin.
    """
    u = (edges - scores) / spread
    none = torch.zeros_like(scores)
    between = torch.log(-torch.expm1(-(edges[1:] - edges[:-1]) / spread)).expand(len(scores), -1)
    return (
        torch.cat([F.logsigmoid(u), none], -1)
        + torch.cat([none, F.logsigmoid(-u)], -1)
        + torch.cat([none, between, none], -1)
    )


def _likeliest_spread(scores: Tensor, ranks: Tensor, edges: Sequence[float]) -> float:
    """argmax_spread of Σ ln p(class), within a thousandth and a thousand times the scores' own spread."""
    at = torch.tensor(edges, dtype=scores.dtype)
    scale = max((scores - scores.mean()).square().mean().sqrt().item(), 1e-12)

    def nll(log_spread: Tensor) -> Tensor:
        rows = _log_bins(scores[:, None], at, scale * log_spread.exp())
        return -rows.gather(-1, ranks[:, None]).mean()

    return scale * math.exp(minimise(nll, torch.tensor([-1.0]), [(-6.9, 6.9)]).item())


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    """At which place of an order each number stands."""
    return tuple(order.index(i) for i in range(len(order)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(_shown([f"{value:.4g}" for value in values]))


def _shown(names: Sequence[str]) -> list[str]:
    return [*names[:_MOST_SHOWN], *(["…"] if len(names) > _MOST_SHOWN else [])]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
