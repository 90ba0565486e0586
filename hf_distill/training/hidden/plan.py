"""What every hidden loss amounts to for every teacher and pair of layers, decided before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ...errors import ConfigurationError
from ...markdown import markdown_table
from ...rows.views import TokenView
from ...teachers.states import RELATIONS, Wanted, find_attention
from .hidden_loss import HiddenLoss
from .layer_map import LayerMap


class Body(NamedTuple):
    """What a plan has to know of a model.

    Attributes:
        name: Of the teacher, or "student".
        layers: How many it has.
        width: The size of its states.
        view: How it reads text; None where its states are stored.
        model: None where its states are stored.
        stored: Which states are stored; None where that is still to be decided, or the model runs.
        unfit: Why no states can be had of it, as the end of a sentence; empty where they can.
    """

    name: str
    layers: int
    width: int
    view: TokenView | None = None
    model: nn.Module | None = None
    stored: tuple[Wanted, ...] | None = None
    unfit: str = ""


class Link(NamedTuple):
    """One hidden loss between one layer of the student and one of a teacher.

    Attributes:
        loss: Index of the loss.
        pair: Index of the pair of layers.
        teacher: Index of the teacher.
        ours: The student's state.
        theirs: The teacher's.
        projection: Name of the projection that ``ours`` goes through; None: none.
        why: Why these units.
    """

    loss: int
    pair: int
    teacher: int
    ours: Wanted
    theirs: Wanted
    projection: str | None
    why: str


@dataclass(frozen=True, eq=False)
class HiddenPlan:
    """The hidden losses of a run, resolved.

    Args:
        losses: The losses.
        links: What they amount to.
        student: The student.
        teachers: The teachers, in the order of the run.
    """

    losses: tuple[HiddenLoss, ...]
    links: tuple[Link, ...]
    student: Body
    teachers: tuple[Body, ...]

    @classmethod
    def of(cls, losses: Sequence[HiddenLoss], student: Body, teachers: Sequence[Body]) -> HiddenPlan:
        """Resolve layers, units and projections.

        Args:
            losses: The losses.
            student: The student.
            teachers: All teachers of the run.

        Raises:
            ConfigurationError: A loss that a teacher cannot have, with the reason and what can be had.
        """
        links = [link for i, loss in enumerate(losses) for link in _links(i, loss, student, teachers)]
        return cls(tuple(losses), tuple(links), student, tuple(teachers))

    @functools.cached_property
    def wanted_of_student(self) -> tuple[Wanted, ...]:
        """The student's states that are needed, each once."""
        return tuple(dict.fromkeys(link.ours for link in self.links))

    @functools.cached_property
    def wanted_of_teachers(self) -> tuple[tuple[Wanted, ...], ...]:
        """For each teacher its states that are needed, each once."""
        return tuple(
            tuple(dict.fromkeys(link.theirs for link in self.links if link.teacher == k))
            for k in range(len(self.teachers))
        )

    @functools.cached_property
    def projections(self) -> dict[str, tuple[Wanted, int]]:
        """By name the student's state that goes in and the width that comes out."""
        return {
            link.projection: (link.ours, self.teachers[link.teacher].width)
            for link in self.links
            if link.projection is not None
        }

    def word_views(self, view_of: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the views whose words are matched with the student's.

        Args:
            view_of: The name of each teacher's view by its own.
        """
        by_words = [self.teachers[link.teacher].name for link in self.links if link.theirs.units == "words"]
        return tuple(dict.fromkeys(view_of[name] for name in by_words))

    def fused(self, index: int) -> bool:
        """Whether a loss has one target for all of its teachers."""
        return self.losses[index].projection == "shared" and len(self._teachers_of(index)) > 1

    def _teachers_of(self, index: int) -> list[int]:
        return list(dict.fromkeys(link.teacher for link in self.links if link.loss == index))

    def name(self, index: int) -> str:
        """What logs call a loss; a second one of the same kind is numbered."""
        names = [loss.name for loss in self.losses]
        same = names[: index + 1].count(names[index])
        return names[index] if same == 1 else f"{names[index]}-{same}"

    def shares(self, index: int, weights: Sequence[float] | None) -> dict[int, float]:
        """The share of each of a loss's teachers in it, a sum of one; teachers of weight 0 have none.

        Args:
            index: Of the loss.
            weights: The fusion's, one per teacher; None: equal ones.

        Raises:
            ConfigurationError: The fusion hears none of them.
        """
        own = self._teachers_of(index)
        given = {k: 1.0 if weights is None else float(weights[k]) for k in own}
        total = sum(weight for weight in given.values() if weight > 0)
        if total <= 0:
            names = ", ".join(repr(self.teachers[k].name) for k in own)
            raise ConfigurationError(
                f"{self.losses[index]}: the fusion gives its teachers ({names}) no weight, so they are not run: leave the "
                "loss out, or give the fusion weights."
            )
        return {k: weight / total for k, weight in given.items() if weight > 0}

    def table(self, weights: Sequence[float] | None) -> str:
        """What was chosen, as a Markdown table: a row per loss, teacher and pair of layers.

        Args:
            weights: The fusion's, one per teacher; None: equal ones.
        """
        rows = []
        for link in self.links:
            teacher, loss = self.teachers[link.teacher], self.losses[link.loss]
            share = self.shares(link.loss, weights).get(link.teacher, 0.0)
            projection = "–"
            if link.projection is not None:
                shared = "shared, " if loss.projection == "shared" else ""
                projection = f"{shared}{self.student.width} → {teacher.width}"
            pairs = len({other.pair for other in self.links if other[0] == link.loss})
            rows.append(
                [
                    self.name(link.loss),
                    f"{link.ours.layer} of {self.student.layers}",
                    teacher.name,
                    f"{link.theirs.layer} of {teacher.layers}",
                    "Q, K, V" if link.ours.units == RELATIONS else link.ours.units,
                    projection,
                    f"{loss.weight * share / pairs:.3g}",
                    link.why,
                ]
            )
        return markdown_table(
            ["loss", "student's layer", "teacher", "its layer", "units", "projection", "weight", "because"],
            rows,
        )


def _links(index: int, loss: HiddenLoss, student: Body, teachers: Sequence[Body]) -> list[Link]:
    """What one loss amounts to."""
    names = [teacher.name for teacher in teachers]
    chosen = list(range(len(names))) if loss.teachers is None else []
    for name in loss.teachers or ():
        if name not in names:
            raise ConfigurationError(
                f"{loss}: there is no teacher {name!r}; there are {', '.join(map(repr, names))}."
            )
        chosen.append(names.index(name))
    for body in (student, *(teachers[k] for k in chosen)):
        if body.unfit:
            raise ConfigurationError(
                f"{loss}: {body.name!r} {body.unfit}: name the teachers that it is for (teachers=), or leave it out."
            )
    if not chosen:
        raise ConfigurationError(f"{loss}: there are no teachers to learn from.")
    shared = loss.projection == "shared" and len(chosen) > 1
    units = {k: _units(loss, student, teachers[k]) for k in chosen}
    maps = {
        k: LayerMap.of(loss.layers, student.layers, teachers[k].layers, teacher=teachers[k].name).pairs
        for k in chosen
    }
    if shared:
        _refuse_unlike(loss, [teachers[k] for k in chosen], [maps[k] for k in chosen])
        units = _common(units)
    links = []
    for k in chosen:
        teacher = teachers[k]
        if not loss.projects and loss.properties.compares == "states":
            _refuse_other_width(loss, student, teacher)
        for pair, (ours, theirs) in enumerate(maps[k]):
            what, why = units[k]
            if loss.properties.compares == "relations":
                _refuse_undividable(loss, ours, student, theirs, teacher)
            projection = f"{index}-{'shared' if shared else k}-{pair}" if loss.projects else None
            taken = _stored_as(loss, teacher, Wanted(theirs, what))
            links.append(Link(index, pair, k, Wanted(ours, what), taken, projection, why))
    return links


def _units(loss: HiddenLoss, student: Body, teacher: Body) -> tuple[str, str]:
    """In which units a loss compares student and teacher, and why."""
    where = f"{loss}, teacher {teacher.name!r}"
    if teacher.view is None:
        if loss.properties.compares == "relations" or loss.units in ("tokens", "words"):
            asked = (
                "queries, keys and values"
                if loss.properties.compares == "relations"
                else f"states of {loss.units}"
            )
            raise ConfigurationError(
                f"{where}: its outputs are read from a cache, which keeps one state per row and no {asked}: run the "
                'teachers live (no cache_dir), or ask for units="mean" of another loss.'
            )
        return ("mean", "stored per row") if loss.units == "auto" else (loss.units, "as asked")
    assert student.view is not None
    same_tokens = teacher.view.tokens_key == student.view.tokens_key
    differs = _token_difference(student.view, teacher.view)
    if loss.properties.compares == "relations":
        if not same_tokens:
            raise ConfigurationError(
                f"{where}: {differs}, so its tokens have no relations that the student's could be compared with: name the "
                "teachers that share the student's tokens (teachers=), or choose another loss."
            )
        return RELATIONS, "same tokens"
    if loss.units == "tokens" and not same_tokens:
        raise ConfigurationError(
            f"{where}: {differs}, so the same position is another token; choose units words, mean or auto."
        )
    slow = [
        body.name for body in (student, teacher) if body.view is not None and not body.view.tokenizer.is_fast
    ]
    if loss.units == "words" and slow:
        raise ConfigurationError(
            f"{where}: words are matched by the characters that tokens stand for, which the slow tokenizer of "
            f"{' and '.join(map(repr, slow))} does not tell; choose units mean, or a fast tokenizer."
        )
    if loss.units != "auto":
        return loss.units, "as asked"
    if loss.properties.compares == "rows":
        return "mean", "it compares rows"
    if same_tokens:
        return "tokens", "same tokens"
    return ("mean", f"{differs}, slow tokenizer") if slow else ("words", differs)


def _token_difference(student: TokenView, teacher: TokenView) -> str:
    if student.rules == teacher.rules and student.max_length != teacher.max_length:
        return f"it reads {teacher.max_length} tokens, the student {student.max_length}"
    return "another tokenizer"


def _common(units: Mapping[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
    """Units that all teachers of one target have: the coarsest."""
    reasons, order = dict(units.values()), ("tokens", "words", "mean", "first")
    coarsest = max(reasons, key=order.index)
    shared = "one target for all: " if len(reasons) > 1 else ""
    return dict.fromkeys(units, (coarsest, f"{shared}{reasons[coarsest]}"))


def _refuse_unlike(loss: HiddenLoss, teachers: Sequence[Body], maps: Sequence[Any]) -> None:
    widths = {teacher.name: teacher.width for teacher in teachers}
    if len(set(widths.values())) > 1:
        raise ConfigurationError(
            f"{loss}: one target needs teachers of one width, but they have {widths}: choose projection='each'."
        )
    ours = {tuple(pair[0] for pair in pairs) for pairs in maps}
    if len(ours) > 1:
        raise ConfigurationError(
            f"{loss}: one target needs the same layers of the student for all teachers, found {sorted(ours)}: choose "
            "projection='each', or another layer map."
        )


def _refuse_other_width(loss: HiddenLoss, student: Body, teacher: Body) -> None:
    if student.width != teacher.width:
        raise ConfigurationError(
            f"{loss}: the student's states have {student.width} numbers, those of teacher {teacher.name!r} "
            f"{teacher.width}, so projection='none' cannot be: choose 'each'."
        )


def _refuse_undividable(loss: HiddenLoss, ours: int, student: Body, theirs: int, teacher: Body) -> None:
    """Find the attention of both layers, and refuse widths that the relation heads do not divide."""
    for body, layer in ((student, ours), (teacher, theirs)):
        assert body.model is not None
        parts = find_attention(body.model, layer)
        for part in parts:
            width = getattr(part, "out_features", None) or getattr(part, "nf", None)  # Conv1D of GPT-2 has nf
            width = width // 3 if width is not None and len(parts) == 1 else width
            if width is not None and width % loss.relation_heads:
                raise ConfigurationError(
                    f"{loss}: {loss.relation_heads} relation heads cannot share the width {width} of {body.name!r} "
                    "equally: set relation_heads to a number that divides the widths of student and teachers."
                )


def _stored_as(loss: HiddenLoss, teacher: Body, want: Wanted) -> Wanted:
    """The state as a cache calls it, which may count layers from the end."""
    if teacher.stored is None:
        return want
    for kept in (want, Wanted(want.layer - teacher.layers - 1, want.units)):
        if kept in teacher.stored:
            return kept
    raise ConfigurationError(
        f"{loss}: the cache of teacher {teacher.name!r} keeps no {want.units} of layer {want.layer}: build it with "
        f"hidden_states including {want.layer}, or let the trainer build it (cache_dir=)."
    )
