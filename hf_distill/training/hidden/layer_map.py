"""Which layers of a student learn from which of a teacher.

Layers are numbered as in ``hidden_states``: 0 is what the embeddings give, i what layer i gives, so a model of L layers
has the numbers 0 to L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import ConfigurationError

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LayerMap:
    """Pairs of a student's and a teacher's layer.

    Args:
        pairs: ((student layer, teacher layer), …).

    Example:
        >>> LayerMap.of("uniform", 3, 12).pairs
        ((1, 4), (2, 8), (3, 12))
        >>> LayerMap.of("skip", 3, 12).pairs
        ((1, 4), (2, 8))
    """

    pairs: Pairs

    @classmethod
    def of(
        cls,
        spec: str | Sequence[Sequence[int]],
        student_layers: int,
        teacher_layers: int,
        *,
        teacher: str = "teacher",
    ) -> LayerMap:
        """The map that a name or explicit pairs stand for.

        Args:
            spec: A name of `LAYER_MAPS`, or pairs of layer numbers, 0 (embeddings) to the number of layers.

                - "last": the last layer from the last.
                - "uniform": student layer i of Ls from teacher layer i·Lt/Ls rounded, halves up; so evenly spaced, the
                  last from the last.
                - "skip": PKD-Skip, student layer i from teacher layer k·i with k = Lt/Ls rounded down, the student's
                  last layer left out, because the logits teach it: 2, 4, 6, 8, 10 of 12 for a student of 6, and 4, 8
                  for one of 3. The paper's divide; the rounding is ours.
            student_layers: Ls, the student's number of layers.
            teacher_layers: Lt, the teacher's.
            teacher: The teacher's name, for messages.

        Raises:
            ConfigurationError: No such name, no such layer, a pair that is none, or a map that two models of these
                depths do not have.

        Reference:
            Sun et al.: Patient Knowledge Distillation for BERT Model Compression, 2019, arXiv:1908.09355 (skip);
            Jiao et al.: TinyBERT, 2019, arXiv:1909.10351 (uniform).

        Example:
            >>> LayerMap.of([(0, 0), (2, 12)], 2, 12).teacher_layers
            (0, 12)
        """
        where = f"Layer map of {teacher!r}"
        if not isinstance(spec, str):
            return cls(_explicit(spec, student_layers, teacher_layers, where))
        if spec not in LAYER_MAPS:
            raise ConfigurationError(
                f"{where}: there is no map named {spec!r}; choose from {', '.join(map(repr, LAYER_MAPS))}, or give pairs of "
                "a student's and a teacher's layer, [[1, 2], [2, 4]]."
            )
        return cls(LAYER_MAPS[spec](student_layers, teacher_layers, where))

    @property
    def student_layers(self) -> tuple[int, ...]:
        """The student's layers that are needed, each once, in order."""
        return tuple(sorted({ours for ours, _ in self.pairs}))

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """The teacher's layers that are needed, each once, in order."""
        return tuple(sorted({theirs for _, theirs in self.pairs}))


def _last(student_layers: int, teacher_layers: int, where: str) -> Pairs:
    return ((student_layers, teacher_layers),)


def _uniform(student_layers: int, teacher_layers: int, where: str) -> Pairs:
    _refuse_deeper_student("uniform", student_layers, teacher_layers, where)
    # Whole numbers: round() would send half of the halves down.
    return tuple(
        (i, (2 * i * teacher_layers + student_layers) // (2 * student_layers))
        for i in range(1, student_layers + 1)
    )


def _skip(student_layers: int, teacher_layers: int, where: str) -> Pairs:
    _refuse_deeper_student("skip", student_layers, teacher_layers, where)
    if student_layers < 2:
        raise ConfigurationError(
            f"{where}: 'skip' leaves the student's last layer to the logits, and it has no other; choose 'last'."
        )
    every = teacher_layers // student_layers
    return tuple((i, every * i) for i in range(1, student_layers))


def _refuse_deeper_student(name: str, student_layers: int, teacher_layers: int, where: str) -> None:
    if student_layers > teacher_layers:
        raise ConfigurationError(
            f"{where}: {name!r} spreads the student's layers over the teacher's, but the student has {student_layers} and "
            f"the teacher only {teacher_layers}; choose 'last' or give pairs."
        )


def _explicit(spec: Sequence[Sequence[int]], student_layers: int, teacher_layers: int, where: str) -> Pairs:
    pairs: list[tuple[int, int]] = []
    for given in spec:
        pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
        if len(pair) != 2 or any(type(layer) is not int for layer in pair):
            raise ConfigurationError(
                f"{where}: {given!r} is no pair of a student's and a teacher's layer number, such as [1, 2]."
            )
        for layer, layers, whose in zip(
            pair, (student_layers, teacher_layers), ("student", "teacher"), strict=True
        ):
            if not 0 <= layer <= layers:
                raise ConfigurationError(
                    f"{where}: the pair {pair} asks for layer {layer} of the {whose}, but it has 0 (embeddings) to {layers}."
                )
        if pair in pairs:
            raise ConfigurationError(f"{where}: the pair {pair} stands twice; write it once.")
        pairs.append(pair)
    if not pairs:
        raise ConfigurationError(
            f"{where}: there is no pair; give at least one, or leave the hidden loss out."
        )
    return tuple(pairs)


LAYER_MAPS: dict[str, Callable[[int, int, str], Pairs]] = {"last": _last, "uniform": _uniform, "skip": _skip}
