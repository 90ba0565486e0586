"""From each teacher's own label space to the student's, by the names of the labels.

Shapes: K teachers, N prediction units, C classes of the student, Ck classes of teacher k.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import DataError, LabelNameError
from ..markdown import markdown_table
from .shares import constant

UNLABELLED = -100
"""The label id of a unit without a label, as everywhere in `torch` and `transformers`."""


def labelled(labels: Any) -> Any:
    """Which units have a label: not -100; where a label is several numbers, one of them is there.

    Args:
        labels: A tensor or an array: (N,) class ids, -100 where a unit has none; or (N, C) numbers, NaN where it has none.

    Returns:
        (N,) bool, of the same kind.

    Example:
        >>> labelled(torch.tensor([1, -100])), labelled(torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]]))
        (tensor([ True, False]), tensor([ True, False]))
    """
    return labels != UNLABELLED if labels.ndim == 1 else (labels == labels).any(-1)


class TeacherOutputs(NamedTuple):
    """What one teacher says of a batch, in its own label space.

    Attributes:
        logits: (N, Ck) raw logits, any floating type.
        hidden_states: What was asked for below the logits, by `Wanted`; empty where nothing was.
    """

    logits: Tensor
    hidden_states: Mapping[Any, Any] = MappingProxyType({})


class TeacherBatch(NamedTuple):
    """What all teachers say of a batch, in the student's label space.

    Attributes:
        logits: (K, N, C) float32; -inf where a teacher lacks the class.
        mask: (K, N, C) bool, True where the teacher has the class; None where every teacher has all.
        unknown: (C,) bool, True where no teacher that is heard has the class; None where each is known.
        hidden_states: One mapping per teacher of the run, by what was asked for; empty where a teacher was not run.
        speakers: The numbers of the k teachers of the run that are heard.
        spoilt: (k, N) bool, True where one of these says something that is not finite; None where nobody looked.
    """

    logits: Tensor
    mask: Tensor | None
    unknown: Tensor | None = None
    hidden_states: tuple[Mapping[Any, Any], ...] = ()
    speakers: tuple[int, ...] = ()
    spoilt: Tensor | None = None


_GENERIC = re.compile(r"label[\W_]*\d+", re.IGNORECASE)


def is_generic(label: str) -> bool:
    """Whether a label is the placeholder that `transformers` writes where nobody named the classes.

    Example:
        >>> is_generic("LABEL_0"), is_generic("label of 1949")
        (True, False)
    """
    return _GENERIC.fullmatch(label) is not None


_PUNCTUATION = frozenset("-\u2010\u2011_/.,:;!'’\"()")


def _composed(label: str) -> str:
    """One form for what looks the same: é is one character or two, by whoever wrote it."""
    return unicodedata.normalize("NFC", label)


@functools.cache
def _normalised(label: str) -> str:
    """Case, spaces and the punctuation of words ignored; whatever may be all that tells two labels apart is kept.

    That is: signs and symbols (+ # < > * % …), combining marks, a hyphen or underscore that stands not between letters
    (A-, -1), and what stands beside a digit (1.5, 1_0).
    """
    text = _composed(_composed(label.strip()).casefold())
    kept = []
    for i, character in enumerate(text):
        before, after = text[:i].rstrip()[-1:], text[i + 1 :].lstrip()[:1]
        kinds = [unicodedata.category(neighbour)[0] if neighbour else "" for neighbour in (before, after)]
        if character.isspace():
            ignored = kinds != ["N", "N"]
        elif character == "_":
            ignored = "" not in kinds and kinds != ["N", "N"] and set(kinds) <= {"L", "M", "N"}
        elif character in "-\u2010\u2011":
            ignored = "" not in kinds and set(kinds) <= {"L", "M"}
        else:
            ignored = character in _PUNCTUATION and "N" not in kinds
        if not ignored:
            kept.append(character)
    return "".join(kept) or label


def find_label(name: str, labels: Sequence[str]) -> int | None:
    """Where a name stands among labels: exactly, else ignoring case, spaces and hyphens in words if only one is alike.

    Example:
        >>> find_label("Positive", ["negative", "positive"])
        1
        >>> find_label("C", ["C++", "Java"]) is None
        True
    """
    for same in (str, _composed, _normalised):
        alike = [i for i, label in enumerate(labels) if same(label) == same(name)]
        if alike:
            return alike[0] if len(alike) == 1 or same is not _normalised else None
    return None


def unclear_names(names: Sequence[str]) -> str:
    """What is wrong with names of labels, as half a sentence; "" where they are all there and tell apart.

    Example:
        >>> unclear_names(["a", ""]), unclear_names(["a", "b", "a"]), unclear_names(["a", "A"])
        ('one of them is empty', "'a' stands more than once", '')
    """
    if any(not name.strip() for name in names):
        return "one of them is empty"
    composed = [_composed(name) for name in names]
    twice = next((name for name in composed if composed.count(name) > 1), None)
    return "" if twice is None else f"{twice!r} stands more than once"


def alike_names(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that only case, spaces or punctuation tells apart, if there are two.

    Example:
        >>> alike_names(["negative", "positive", "Positive "])
        ('positive', 'Positive ')
    """
    first: dict[str, str] = {}
    for name in names:
        if first.setdefault(_normalised(name), name) != name:
            return first[_normalised(name)], name
    return None


def nearly(name: str, label: str) -> bool:
    """Whether one name is probably a misspelling or an abbreviation of the other; numbers and signs are none.

    Example:
        >>> nearly("DSEC", "DESC"), nearly("NUM", "NUMBER"), nearly("HUM", "NUM"), nearly("class 1", "class 2")
        (True, True, False, False)
    """
    one, other = sorted((_normalised(name), _normalised(label)), key=len)
    kept = [[c for c in text if unicodedata.category(c)[0] not in "LM"] for text in (one, other)]
    if one == other or len(one) < 3 or kept[0] != kept[1]:
        return one == other
    if other.startswith(one):
        return True
    distance = _distance(one, other)
    swapped = sorted(one) == sorted(other) and distance == 1
    # Two letters more are often a prefix that makes the contrary of a word (relevant, irrelevant).
    two = len(one) >= 8 and len(other) - len(one) <= 1 and distance == 2
    return swapped or (len(one) >= 4 and distance == 1) or two


def _distance(one: str, other: str) -> int:
    """Letters left out, added, changed, or swapped with their neighbour."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


class OutputMap(Protocol):
    """How one teacher's outputs become the student's: chosen by the names of labels, or converted from another kind of output.

    Attributes:
        teacher: The teacher's name.
        teacher_labels: The names of its outputs, in their order.
        student_labels: The student's C.
        missing: The student's outputs that the teacher says nothing about.
        ignored: The teacher's outputs that nobody uses.
        has: Of which of the C outputs it says something.
        named: Whether names alone decide what an output means, which may be wrong.
        settled: Whether it can be applied; else `fit` makes one that can.
        sentence: The rule, where it is more than a table shows.
    """

    teacher: str
    teacher_labels: tuple[str, ...]
    student_labels: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    has: tuple[bool, ...]
    named: bool
    settled: bool
    sentence: str

    def apply(self, logits: Tensor) -> Tensor:
        """(N, Ck) the teacher's outputs → (N, C); anything where it says nothing."""

    def fit(self, outputs: Tensor, labels: Tensor) -> OutputMap:
        """The same with what has to be known, from held-out outputs (n, Ck) and labels."""

    def cell(self, output: int) -> str:
        """Where one of the C outputs comes from, for a table."""


@dataclass(frozen=True)
class LabelMap:
    """Where each of the student's classes stands among a teacher's.

    Args:
        teacher: The teacher's name, for messages.
        teacher_labels: The teacher's Ck label names, in the order of its logits.
        student_labels: The student's C label names, in the order of its logits.
        columns: For each of the C classes the teacher's column, or None where it lacks the class.

    Example:
        >>> LabelMap.match(["POSITIVE", "NEGATIVE"], ["negative", "positive"], teacher="bert").columns
        (1, 0)
    """

    teacher: str
    teacher_labels: tuple[str, ...]
    student_labels: tuple[str, ...]
    columns: tuple[int | None, ...]

    named: ClassVar[bool] = True
    settled: ClassVar[bool] = True
    sentence: ClassVar[str] = ""

    @classmethod
    def match(
        cls, teacher_labels: Sequence[str], student_labels: Sequence[str], *, teacher: str, least: int = 2
    ) -> LabelMap:
        """Match labels by name: exactly where possible, else ignoring case, spaces and hyphens in words.

        Args:
            teacher_labels: The teacher's label names, in the order of its logits.
            student_labels: The student's label names, in the order of its logits.
            teacher: The teacher's name, for messages.
            least: How many it must share: two make a distribution, one is enough where each label is answered alone.

        Raises:
            DataError: The teacher's names are placeholders (``LABEL_0``), two names cannot be told
                apart, or too few are shared. The message holds the mapping to paste.
        """
        theirs, ours = tuple(teacher_labels), tuple(student_labels)
        who = f"Teacher {teacher!r}: "
        if unclear := unclear_names(theirs):
            raise LabelNameError.of(
                f"{who}its labels are {_listed(theirs)}, but {unclear}: name them with ", {}, "."
            )
        if any(is_generic(label) for label in theirs):
            raise LabelNameError.of(
                f"{who}its labels {_listed(theirs)} are placeholders, so nothing says which of the student's labels "
                f"{_listed(ours)} they are. ",
                *_which_is_which(theirs, ours),
            )
        composed = {_composed(label) for label in ours}
        columns: list[int | None] = []
        for label in ours:
            found = [i for i, name in enumerate(theirs) if _composed(name) == _composed(label)]
            found = found or [
                i
                for i, name in enumerate(theirs)
                if _normalised(name) == _normalised(label) and _composed(name) not in composed
            ]
            if len(found) > 1:
                clash = ", ".join(repr(theirs[i]) for i in found)
                raise LabelNameError.of(
                    f"{who}its labels {clash} all match the student's {label!r}. ",
                    *_one_each(theirs, ours),
                )
            columns.append(found[0] if found else None)
        taken = [column for column in columns if column is not None]
        for column in set(taken):
            if taken.count(column) > 1:
                clash = ", ".join(repr(ours[i]) for i, c in enumerate(columns) if c == column)
                raise LabelNameError.of(
                    f"{who}its label {theirs[column]!r} matches the student's {clash} alike. ",
                    *_one_each(theirs, ours),
                )
        if len(taken) < least:
            needed = (
                "at least two are needed for a distribution" if least > 1 else "so it has nothing to teach"
            )
            raise LabelNameError.of(
                f"{who}its labels {_listed(theirs)} share {len(taken) or 'no'} name{'' if len(taken) == 1 else 's'} with "
                f"the student's {_listed(ours)}; {needed}. ",
                *_other_task_or_names(theirs, ours),
            )
        return cls(teacher, theirs, ours, tuple(columns))

    # Asked in every batch, and loops over the classes: found once.
    @functools.cached_property
    def missing(self) -> tuple[str, ...]:
        """The student's labels that the teacher lacks: it says nothing about them."""
        return tuple(
            label for label, column in zip(self.student_labels, self.columns, strict=True) if column is None
        )

    @functools.cached_property
    def ignored(self) -> tuple[str, ...]:
        """The teacher's labels that the student lacks: its probabilities are conditional on the others."""
        return tuple(label for i, label in enumerate(self.teacher_labels) if i not in self.columns)

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether the teacher's logits are in the student's order already."""
        return self.columns == tuple(range(len(self.teacher_labels)))

    @functools.cached_property
    def present(self) -> tuple[int, ...]:
        """The teacher's columns in the student's order; some column where it lacks the class."""
        return tuple(0 if column is None else column for column in self.columns)

    @functools.cached_property
    def has(self) -> tuple[bool, ...]:
        """Which of the student's classes the teacher has."""
        return tuple(column is not None for column in self.columns)

    def apply(self, logits: Tensor) -> Tensor:
        """(N, Ck) → (N, C), some column where the teacher lacks the class."""
        assert logits.shape[-1] == len(self.teacher_labels), (logits.shape, self)
        if self.is_identity:
            return logits
        return logits.index_select(-1, constant(self.present, logits.device, torch.int64))

    def fit(self, outputs: Tensor, labels: Tensor) -> LabelMap:
        """Itself: names need no rows."""
        return self

    def cell(self, output: int) -> str:
        """The teacher's column and its name; a dash where it lacks the class."""
        column = self.columns[output]
        return "–" if column is None else f"{column} {self.teacher_labels[column]!r}"


def _listed(labels: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(repr(label) for label in labels[:most])
    return f"[{shown}{f', … {len(labels) - most} more' if len(labels) > most else ''}]"


def _which_is_which(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str | dict[str, str], ...]:
    """How to say which label is which: with the mapping to paste where there are as many, since the order may be the same."""
    if len(theirs) != len(ours):
        return (
            f"It has {len(theirs)} outputs for {len(ours)} labels, so it may be a checkpoint of another task: name one that "
            "was fine-tuned for yours, or fill in which is which: ",
            dict.fromkeys(theirs, "?"),
            ".",
        )
    return (
        "Say which is which; if the order is the same, that is ",
        dict(zip(theirs, ours, strict=True)),
        ", else correct the right-hand side.",
    )


def _one_each(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str | dict[str, str], ...]:
    """How to tell names apart that match alike: each label of the student's goes to the first of them."""
    said: dict[str, str] = {}
    for name in theirs:
        same = [
            label for label in ours if _normalised(label) == _normalised(name) and label not in said.values()
        ]
        said[name] = same[0] if same else name
    return ("Say which is which, as ", said, ", and correct the right-hand side.")


def _other_task_or_names(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str | dict[str, str], ...]:
    """What to do about labels that are not the student's: a mapping to paste only where the names themselves give one."""
    near = {name: [label for label in ours if nearly(name, label)] for name in theirs}
    found = {name: labels[0] for name, labels in near.items() if len(labels) == 1}
    if len(found) >= 2 and len(set(found.values())) == len(found):
        return ("If they are the same by other names, say ", found, ".")
    return (
        "It looks like a checkpoint of another task: name one that was fine-tuned for yours; only if its labels do mean the "
        "same, fill in ",
        dict.fromkeys(theirs[:12], "?"),
        ".",
    )


def scales_of(fusion: Any) -> Sequence[Sequence[float]] | None:
    """(slope, offset) of each teacher, of a fusion that brings numbers to one scale, which says `aligned`; None of others."""
    return getattr(fusion, "scales", None) if hasattr(fusion, "aligned") else None


def scales_in_words(names: Sequence[str], scales: Sequence[Sequence[float]]) -> str:
    """The line by which each teacher's numbers come to the student's scale.

    Args:
        names: The teachers'.
        scales: (slope, offset) of each.

    Example:
        >>> scales_in_words(["a", "b"], [(2, 1), (0.5, -3)])
        'a × 2 + 1; b × 0.5 − 3'
    """
    return "; ".join(
        f"{name} × {a:.3g} {'+' if b >= 0 else '−'} {abs(b):.3g}"
        for name, (a, b) in zip(names, scales, strict=True)
    )


def plan_table(maps: Sequence[OutputMap], scales: Sequence[Sequence[float]] | None = None) -> str:
    """The alignment as a Markdown table: a row per output of the student, a column per teacher; below it the rules of conversions.

    Args:
        maps: Of the teachers.
        scales: (slope, offset) by which the numbers of each come to the student's scale; None: they are there.

    Example:
        >>> print(plan_table([LabelMap.match(["POS", "NEG"], ["neg", "pos"], teacher="bert")]))
        | student | bert    |
        |---------|---------|
        | 0 neg   | 1 'NEG' |
        | 1 pos   | 0 'POS' |
    """
    rows = [[f"{i} {label}", *(m.cell(i) for m in maps)] for i, label in enumerate(maps[0].student_labels)]
    if any(m.ignored for m in maps):
        rows.append(["(ignored)"] + [", ".join(m.ignored) or "–" for m in maps])
    table = markdown_table(["student", *(m.teacher for m in maps)], rows)
    rules = [f"- {m.sentence}" for m in maps if m.sentence]
    if scales is not None:
        rules.append(f"- On the student's scale: {scales_in_words([m.teacher for m in maps], scales)}.")
    return "\n".join([table, "", *rules]) if rules else table


def refuse_misspelt(maps: Sequence[OutputMap], said: Sequence[Collection[str]]) -> None:
    """Refuse teachers that seem to lack a class of the student's only because they call it otherwise.

    Args:
        maps: One label map per teacher.
        said: For each teacher the labels of which the user says that they are meant as they are.

    Raises:
        DataError: A teacher that lacks a class has nearly its name; or no teacher has a class, and all have one that nobody
            uses.
    """
    unused = [[name for name in m.ignored if name not in own] for m, own in zip(maps, said, strict=True)]
    for label_map, names in zip(maps, unused, strict=True):
        for label in label_map.missing:
            for name in names:
                if nearly(name, label):
                    raise LabelNameError.of(
                        f"Teacher {label_map.teacher!r}: it lacks the student's {label!r}, but has {name!r}, which the student "
                        f"lacks: did you mean {label!r}? Then say ",
                        {name: label},
                        "; if it is another class, ",
                        {name: name},
                        ".",
                    )
    if not maps or not all(unused):
        return
    unknown = [label for label in maps[0].student_labels if all(label in m.missing for m in maps)]
    # A teacher of many more classes than are asked for may well lack one besides; one that has as many has another name.
    shared = [name for name in unused[0] if all(find_label(name, names) is not None for names in unused)]
    if unknown and 0 < len(shared) <= len(unknown):
        raise LabelNameError.of(
            f"No teacher knows the student's {unknown[0]!r}, but {'each' if len(maps) > 1 else repr(maps[0].teacher)} has "
            f"{shared[0]!r}, which the student lacks: did you mean {unknown[0]!r}? Then say ",
            {shared[0]: unknown[0]},
            " of each teacher, or correct label_names; if it is another class, ",
            {shared[0]: shared[0]},
            ".",
        )


def check_coverage(maps: Sequence[OutputMap], weights: Sequence[float] | None) -> None:
    """Refuse teachers whose label sets leave the balance between groups of classes undetermined.

    Teachers that know {a, b} and teachers that know {c, d} say nothing about how a compares with c.
    Only weights given by the user can: a group then gets the share of its teachers' weights.

    Args:
        maps: One label map per teacher.
        weights: The fusion's weights, or None where the user gave none.

    Raises:
        DataError: The groups are not connected by a shared class, and no weights were given.
    """
    groups: list[tuple[set[int], list[str]]] = []
    for label_map in maps:
        classes = {i for i, has in enumerate(label_map.has) if has}
        names = [label_map.teacher]
        for group in [g for g in groups if g[0] & classes]:
            groups.remove(group)
            classes |= group[0]
            names = group[1] + names
        groups.append((classes, names))
    if len(groups) > 1 and weights is None:
        described = "; ".join(
            f"{', '.join(names)} know only {_listed([maps[0].student_labels[i] for i in sorted(classes)])}"
            for classes, names in groups
        )
        raise DataError(
            f"The teachers' label sets fall into {len(groups)} groups without a shared class ({described}), so nothing "
            "says how probable one group is against another. Give the fusion weights, one per teacher: each group "
            "then gets its teachers' share."
        )


def align(outputs: Sequence[TeacherOutputs], maps: Sequence[OutputMap]) -> TeacherBatch:
    """Bring every teacher's logits into the student's label space.

    Args:
        outputs: One `TeacherOutputs` per teacher, logits (N, Ck).
        maps: One `OutputMap` per teacher, in the same order.

    Returns:
        `TeacherBatch` with logits (K, N, C) in float32 and the mask of known classes.

    Example:
        >>> label_map = LabelMap.match(["b", "a"], ["a", "b", "c"], teacher="t")
        >>> align([TeacherOutputs(torch.tensor([[2.0, 1.0]]))], [label_map]).logits
        tensor([[[1., 2., -inf]]])
    """
    aligned = []
    for output, label_map in zip(outputs, maps, strict=True):
        aligned.append(label_map.apply(output.logits.float()))
    stacked = torch.stack(aligned)
    if not any(label_map.missing for label_map in maps):
        return TeacherBatch(stacked, None)
    known = constant(tuple(m.has for m in maps), stacked.device, torch.bool)[:, None, :]
    return TeacherBatch(stacked.masked_fill(~known, -torch.inf), known.expand_as(stacked))


def not_finite(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Where teachers say something that is not finite of a class that they have.

    Args:
        logits: (K, N, C).
        mask: (K, N, C) bool, True where a teacher has the class; None where every teacher has all.

    Returns:
        (K, N) bool.

    Example:
        >>> not_finite(torch.tensor([[[0.0, -torch.inf]]]), torch.tensor([[[True, False]]]))
        tensor([[False]])
    """
    spoilt = ~logits.isfinite()
    return (spoilt if mask is None else spoilt & mask).any(-1)
