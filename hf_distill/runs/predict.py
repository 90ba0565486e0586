"""What `predict` does: a finished run's student asked about texts, as they come, with its probabilities."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigurationError, DataError
from ..evaluation.ensemble import Ensemble
from ..files import run_folder
from ..lookup import refuse_untrusted
from ..publishing.export import FILES, OnnxStudent
from ..recipe.checking import look_at_recipe
from ..recipe.setup import Setup
from ..recipe.tables import Columns, known_format, stream_files
from ..rows.content import Content
from ..rows.texts import TEXTS
from ..rows.views import named_inputs, text_batches
from ..tasks import build_task, family_of
from ..tasks.family import Family
from ..tasks.task import output_names
from ..teachers.checkpoints import load_processor, load_with_head
from ..teachers.fitting_parts import open_view
from ..teachers.held_out import load_choice
from .evaluate import refuse_untrained


class Prediction(NamedTuple):
    """What a student says of a row.

    Attributes:
        texts: Of the row, one or two: texts, or what an image was given by.
        probabilities: By label, in the order of the student's outputs; of scores the numbers themselves.
        teachers: The same of the ensemble, under ``ensemble``, and of each teacher; empty where they were not asked.
        keys: What the texts are called.
    """

    texts: tuple[str, ...]
    probabilities: dict[str, float]
    teachers: dict[str, dict[str, float]]
    keys: tuple[str, ...] = ("text", "text_pair")

    @property
    def label(self) -> str:
        """The most probable; of several scores the largest."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def to_json(self) -> str:
        """A line of JSON.

        Example:
            >>> Prediction(("a fine film",), {"good": 0.75, "bad": 0.25}, {}).to_json()
            '{"text": "a fine film", "label": "good", "score": 0.75, "probabilities": {"good": 0.75, "bad": 0.25}}'
        """
        said: dict[str, Any] = dict(zip(self.keys, self.texts, strict=False))
        said |= {
            "label": self.label,
            "score": self.probabilities[self.label],
            "probabilities": self.probabilities,
        }
        for name, own in self.teachers.items():
            best = max(own, key=own.__getitem__)
            said.setdefault("teachers", {})[name] = {"label": best, "score": own[best]}
        return json.dumps(said, ensure_ascii=False)


class Predictor:
    """A finished run's student, ready to be asked.

    Args:
        run: The folder of a run, or of any student of the task.
        format: ``onnx`` or ``int8`` for what `hf-distill export` wrote into the run; None: the student itself.
        with_teachers: Whether the run's teachers and their ensemble are asked too.
        trust: Paths ``pkg.mod:Name`` of your own that the run's stored files may name.

    Raises:
        DataError: There is no student, no export of that format, or its teachers are not there.
        UnsafeFileError: The run's recipe names code that nobody trusted, and that would be asked.
        CorruptStateError: The export cannot be read.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        format: str | None = None,
        with_teachers: bool = False,
        trust: Iterable[str] = (),
    ) -> None:
        self.folder = run_folder(run)
        refuse_untrained(self.folder, "config.json")
        setup = _setup(self.folder, frozenset(trust), with_teachers)
        if with_teachers and setup is None:
            raise ConfigurationError(
                f"{self.folder} has no recipe.yaml, so nothing says who its teachers are: leave --with-teachers out."
            )
        task = build_task("text-classification") if setup is None else setup.task
        self._family, self.content = family_of(task), task.content
        data = None if setup is None else setup.recipe.data
        self.columns = Columns(
            tuple(task.text_columns) if data is None else tuple(data.text_columns),
            "label" if data is None else data.label_column,
        )
        length = None if setup is None else setup.recipe.student.max_length
        self._ask, self.label_names = (
            _student(self.folder, task, length) if format is None else _exported(self.folder, format, task)
        )
        self._ensemble = (
            None if setup is None or not with_teachers else _ensemble(setup, self.folder, self.label_names)
        )

    def __call__(self, rows: Iterable[Sequence[Any]], *, batch_size: int = 32) -> Iterator[Prediction]:
        """Answer rows as they come, in their order; no more of them are held than a batch has.

        Args:
            rows: Of each its text, or its two; or its image, or the path of one.
            batch_size: Rows per forward.

        Raises:
            DataError: A row has another number of texts, or an answer that is not finite.
        """
        rows = iter(rows)
        while batch := [tuple(row) for row in itertools.islice(rows, batch_size)]:
            for row in batch:
                if len(row) != len(self.columns.texts):
                    raise DataError(
                        f"The student reads {' and '.join(self.columns.texts)}, and a row has {len(row)} text(s), "
                        f"{str(row[0])[:60]!r}: give it as an object with {' and '.join(map(repr, self.columns.texts))}."
                    )
            read = [self._read(row) for row in batch]
            told = [
                tuple(
                    value if isinstance(value, str) else text
                    for value, text in zip(row, self.content.told(own), strict=True)
                )
                for row, own in zip(batch, read, strict=True)
            ]
            probabilities = self._ask([list(column) for column in zip(*read, strict=True)], batch_size)
            for row, own in zip(told, probabilities, strict=True):
                if not bool(own.isfinite().all()):
                    raise DataError(f"The student's answer to {row[0][:80]!r} is not finite: train it again.")
            texts = [row[0] if len(row) == 1 else row for row in read]
            each = {} if self._ensemble is None else self._ensemble.of_each(texts)
            for i, row in enumerate(told):
                yield Prediction(
                    row,
                    self._named(probabilities[i]),
                    {name: self._named(_told(logs, self._family)[i]) for name, logs in each.items()},
                    self.content.keys,
                )

    def _read(self, row: Sequence[Any]) -> tuple[Any, ...]:
        try:
            return tuple(
                self.content.given(value) if isinstance(value, str) else self.content.read(value)
                for value in row
            )
        except ValueError as error:
            raise DataError(f"A row cannot be read: {error}.") from error

    def _named(self, probabilities: Tensor) -> dict[str, float]:
        return dict(zip(self.label_names, probabilities.tolist(), strict=True))


def file_rows(path: str, columns: Columns, content: Content = TEXTS) -> Iterator[tuple[Any, ...]]:
    """The content of a file of rows, as they are read.

    Args:
        path: csv, tsv, json, jsonl (each also .gz) or parquet.
        columns: Those that hold it.
        content: What it is.

    Raises:
        DataError: It is none of these, or a row lacks its text.
    """
    refuse_no_rows(path)
    rows = stream_files([path], columns, "given", content=content)
    for row in content.as_stored(rows, columns.texts):
        yield tuple(row[column] for column in columns.texts)


def refuse_no_rows(path: str) -> None:
    """Refuse what is no file of rows by its name, before a student is loaded for it.

    Args:
        path: As for `file_rows`.

    Raises:
        DataError: It is none.
    """
    if not Path(path).is_file():
        found = "is a folder" if Path(path).is_dir() else "is not there"
        raise DataError(f"--file: expected a file of rows, and {Path(path).absolute()} {found}.")
    known_format(path)


def line_rows(lines: Iterable[str], columns: Columns) -> Iterator[tuple[str, ...]]:
    """The texts of lines: each a text as it is, or an object of JSON with the columns.

    Args:
        lines: Of a stream.
        columns: Those that hold text.

    Raises:
        DataError: A line that begins as an object is none, or lacks its text.

    Example:
        >>> list(line_rows(["a fine film\\n", '{"text": "a dull plot"}', ""], Columns(("text",), "label")))
        [('a fine film',), ('a dull plot',)]
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if not text.lstrip().startswith("{"):
            yield (text,)
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(f"Line {number} begins as an object of JSON and is none: {error}.") from error
        missing = [name for name in columns.texts if not isinstance(row.get(name), str)]
        if missing:
            raise DataError(
                f"Line {number} has no text {missing[0]!r}, only {', '.join(map(repr, row))}: the student reads "
                f"{' and '.join(map(repr, columns.texts))}."
            )
        yield tuple(row[name] for name in columns.texts)


def _setup(folder: Path, trust: frozenset[str], with_teachers: bool) -> Setup | None:
    """What the run's recipe means; None where it has none. Nothing that it names is imported unless it is trusted."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return None
    looked = look_at_recipe(path, check_files=False, trust=trust)
    used = ("task", "register_models", "fusion", "teachers") if with_teachers else ("task", "register_models")
    refuse_untrusted([found for found in looked.unchecked if found[0].partition(".")[0] in used], (), path)
    return Setup(looked.recipe, trust=trust)


_Asked = Callable[[Sequence[Sequence[str]], int], Tensor]


def _told(said: Tensor, family: Family) -> Tensor:
    """(B, C) what users are told of what a model says: probabilities, or numbers."""
    return torch.from_numpy(family.probabilities(said.numpy())).float()


def _student(folder: Path, task: Any, max_length: int | None) -> tuple[_Asked, tuple[str, ...]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_with_head(str(folder), task, what="The student", require_head=True).eval().to(device)
    processor = load_processor(str(folder), task.content, what="The student")
    view = open_view(model, processor, max_length, what="The student", task=task)
    known = named_inputs(model)

    def ask(texts: Sequence[Sequence[str]], size: int) -> Tensor:
        with torch.inference_mode():
            logits = [
                model(
                    **{key: value.to(device) for key, value in batch.items() if key in known}
                ).logits.float()
                for batch in text_batches(view, texts, size)
            ]
        return _told(task.log_probs(torch.cat(logits)).cpu(), family_of(task))

    return ask, output_names(model.config)


def _exported(folder: Path, format: str, task: Any) -> tuple[_Asked, tuple[str, ...]]:
    if format not in FILES:
        raise ConfigurationError(f"There is no export format {format!r}; there are {', '.join(FILES)}.")
    student = OnnxStudent(folder / format, task=task)

    def ask(texts: Sequence[Sequence[str]], size: int) -> Tensor:
        logits = student(texts[0], texts[1] if len(texts) > 1 else None, batch_size=size)
        return _told(task.log_probs(torch.from_numpy(logits)), family_of(task))

    return ask, tuple(student.label_names)


def _ensemble(setup: Setup, folder: Path, label_names: Sequence[str]) -> Ensemble:
    recipe = setup.recipe
    teachers = [spec.load(recipe.task) for spec in setup.teachers]
    fusion = (
        load_choice(folder, [teacher.name for teacher in teachers], trust=setup.trust)
        if setup.fits
        else setup.fusion
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Ensemble(teachers, fusion, label_names, device=device, task=recipe.task)
