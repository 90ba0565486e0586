"""The ensemble as a thing of its own: texts or images in, labels out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from ..errors import ConfigurationError, DataError
from ..fusion import Fusion, FusionChoice
from ..fusion.alignment import TeacherBatch
from ..fusion.targets import of_ensemble
from ..rows.collator import MultiTeacherCollator
from ..rows.columns import Ragged
from ..rows.preparing import encode_views
from ..tasks import build_task, family_of, refuse_other_family
from ..tasks.task import Task
from ..teachers.held_out import finished_fusion
from ..teachers.pool import TeacherPool
from ..teachers.teacher import TeacherSource, load_teacher


class Ensemble:
    """The teachers and their fusion as one classifier: callable on texts like a pipeline.

    It also goes into ``evaluate.evaluator("text-classification").compute(model_or_pipeline=ensemble, …)``.

    Args:
        teachers: As for the trainer.
        fusion: As for the trainer, but fitted; applied at temperature 1. None: the task's.
        label_names: The labels to answer with; None: the first teacher's.
        batch_size: Texts per forward.
        device: Where to run.
        task: The teachers', by name or as an object.

    Raises:
        ConfigurationError, DataError: As for the trainer.

    Example:
        >>> ensemble = Ensemble([teacher])
        >>> ensemble("a fine film")[0]["label"] in teacher.label_names
        True
    """

    def __init__(
        self,
        teachers: Sequence[str | TeacherSource],
        fusion: str | Mapping[str, Any] | Fusion | FusionChoice | None = None,
        label_names: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        task: str | Task = "text-classification",
    ) -> None:
        if not teachers:
            raise ConfigurationError("An ensemble needs at least one teacher.")
        task = build_task(task)
        self.task = task.pipeline  # as pipelines have it
        members = [load_teacher(teacher, task) for teacher in teachers]
        choice = finished_fusion(task.fusion if fusion is None else fusion, "Ensemble")
        self.fusion: Fusion = choice.fusion
        self.family, self._said, self._content = family_of(task), task.log_probs, task.content
        refuse_other_family(task, fusion=self.fusion)
        self.label_names = tuple(label_names or members[0].label_names)
        self.device = torch.device(device)
        self.pool = TeacherPool(members, self.label_names, choice, task=task).to(self.device)
        self.batch_size = batch_size
        self._collate = MultiTeacherCollator(None, self.pool.views)
        _let_evaluator_take_callables()

    def __call__(self, texts: Any, *, top_k: int | None = 1, **ignored: Any) -> list[Any]:
        """Classify like the task's pipeline.

        Args:
            texts: A text, a ``{"text", "text_pair"}`` dict, a pair, or a list of any of them; or an image, or a list of them.
            top_k: How many labels per text; None: all. With 1 each answer is a dict, else a list of dicts.
            ignored: Options of pipelines that mean nothing here (inputs are always cut at the teachers' own lengths).

        Returns:
            One ``{"label": name, "score": probability}`` per text, or lists of them.
        """
        one = isinstance(texts, (str, bytes, Mapping, tuple)) or not hasattr(texts, "__len__")
        said = self.log_probs([texts] if one else texts)
        probs = torch.from_numpy(self.family.probabilities(said.numpy())).float()
        answers = []
        for row in probs:
            scores, classes = row.sort(descending=True)
            ranked = [
                {"label": self.label_names[c], "score": score}
                for score, c in zip(scores.tolist(), classes.tolist(), strict=True)
            ]
            answers.append(ranked[0] if top_k == 1 else ranked[:top_k])
        return answers

    def log_probs(self, texts: Sequence[Any]) -> Tensor:
        """Fused log-probabilities.

        Args:
            texts: Texts, ``{"text", "text_pair"}`` dicts, or pairs.

        Returns:
            (N, C) float32 on the CPU, classes in the order of ``label_names``.

        Raises:
            DataError: Texts and pairs together, or a teacher's outputs are not finite.
        """
        fused = [torch.empty(0, len(self.label_names))]
        return torch.cat([*fused, *(own for own, _ in self._batches(texts))])

    def of_each(self, texts: Sequence[Any]) -> dict[str, Tensor]:
        """Log-probabilities of the ensemble, under ``ensemble``, and of every teacher by its name, in one pass.

        Args:
            texts: As for `log_probs`.

        Returns:
            (N, C) float32 on the CPU each; -inf for the classes that a teacher lacks.

        Raises:
            DataError: As for `log_probs`.

        Example:
            >>> sorted(Ensemble([teacher]).of_each(["a fine film"]))
            ['bert', 'ensemble']
        """
        found = list(self._batches(texts))
        none = torch.empty(0, len(self.label_names))
        each = {"ensemble": torch.cat([none, *(fused for fused, _ in found)])}
        aligned = getattr(self.fusion, "aligned", lambda logits: logits)
        for k, teacher in enumerate(self.pool.teachers):
            each[teacher.name] = torch.cat([none, *(self._said(aligned(own)[k]) for _, own in found)])
        return each

    def _batches(self, texts: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch the fused log-probabilities (B, C), and the teachers' logits (K, B, C), on the CPU."""
        for start in range(0, len(texts), self.batch_size):
            some = [texts[i] for i in range(start, min(start + self.batch_size, len(texts)))]
            rows = [self._columns(text) for text in some]
            if len({len(row) for row in rows}) > 1:
                raise DataError("The ensemble was given texts and pairs together: pass them in two calls.")
            encoded = encode_views([list(column) for column in zip(*rows, strict=True)], self.pool.views)
            ids = np.array([self._content.example_id(row) for row in rows], np.int64)
            inputs = self._collate(
                {"example_id": ids, **{key: Ragged.of(values) for key, values in encoded.items()}}
            )
            with torch.no_grad():
                batch = self.pool(_moved(inputs, self.device))
                self._refuse_spoilt(batch, rows)
                yield of_ensemble(self.fusion, batch).cpu(), batch.logits.cpu()

    def _columns(self, text: Any) -> tuple[Any, ...]:
        """The content columns of a row, however pipelines of the task are given it."""
        if isinstance(text, Mapping) and "text" in text:
            text = (text["text"], text["text_pair"]) if text.get("text_pair") is not None else (text["text"],)
        columns = tuple(text) if isinstance(text, (tuple, list)) and len(self._content.keys) > 1 else (text,)
        pairs = f"a {self._content.name}, a pair, or a dict of {' and '.join(self._content.keys)}"
        expected = pairs if len(self._content.keys) > 1 else self._content.name
        try:
            read = tuple(map(self._content.read, columns))
        except ValueError as error:
            raise DataError(f"The ensemble was given {text!r}; expected {expected}.") from error
        if not read:
            raise DataError(f"The ensemble was given {text!r}; expected {expected}.")
        return read

    def _refuse_spoilt(self, batch: TeacherBatch, rows: Sequence[tuple[Any, ...]]) -> None:
        found = batch.spoilt.nonzero().tolist()
        if found:
            teacher = self.pool.teachers[batch.speakers[found[0][0]]]
            text = self._content.told(rows[found[0][1]])[0]
            raise DataError(
                f"Teacher {teacher.name!r} gives outputs that are not finite for {text[:80]!r}, so the ensemble has no "
                "answer: mend or drop it, or give it a wider type (dtype: float32) if it overflows."
            )


def _moved(inputs: Any, device: torch.device) -> Any:
    return (
        {key: _moved(value, device) for key, value in inputs.items()}
        if isinstance(inputs, Mapping)
        else inputs.to(device)
    )


def _let_evaluator_take_callables() -> None:
    # evaluate 0.4.6 asks whether a pipeline is a transformers.TFPreTrainedModel, a class that transformers 5 no longer
    # has (AttributeError). To be removed once `evaluate.evaluator.base` no longer names it:
    # https://github.com/huggingface/evaluate
    if not hasattr(transformers, "TFPreTrainedModel"):
        transformers.TFPreTrainedModel = type("TFPreTrainedModel", (), {})
