"""A finished student for onnxruntime, in float32 or int8, compared row by row with the student it was made of.

Shapes: B rows of a batch, L tokens, N rows, C classes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction, PreTrainedModel

from ..errors import ConfigurationError, CorruptStateError, DataError, in_a_line
from ..evaluation.cost import time_rows, timed_rows, weight_bytes
from ..evaluation.evaluating import compute_metrics_from
from ..evaluation.formats import as_json
from ..files import write_json, write_text
from ..fusion.alignment import labelled as with_label
from ..lookup import suggest
from ..markdown import markdown_table
from ..rows.collator import MultiTeacherCollator
from ..rows.columns import indexed
from ..rows.preparing import prepare_dataset
from ..rows.views import View, named_inputs, text_batches
from ..tasks import build_task, family_of
from ..tasks.task import Task, output_names
from ..teachers.checkpoints import load_processor, load_with_head
from ..teachers.fitting_parts import open_view
from .onnx import open_session, quantize, refuse_missing, run_session, write_onnx

FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx"}
"""The formats, and what the model's file is called in each."""

EXPORT_FILE = "export.json"
"""Where an exported student says what it is."""

TOLERANCE = 1e-3
"""Most by which a float32 logit may differ from the student's: KL(student‖exported) stays below half its square, 5e-7."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_BATCH, _SECONDS = 32, 5.0
_RANDOM_ROWS = 64
# Enough to tell a wrong graph from a right one before it is quantised; the file that is kept is compared on all rows.
_CHECKED_ROWS = 256


@dataclass(frozen=True)
class Served:
    """One row of the report: a student as it would be served.

    Attributes:
        metrics: Values by metric name; empty where there were no labelled rows.
        bytes: Of the student's weights, and of the exported one's files.
        p50_ms, p95_ms: Latency of one row, in milliseconds.
        rows_per_second: Throughput of full batches.
    """

    metrics: Mapping[str, float]
    bytes: int
    p50_ms: float
    p95_ms: float
    rows_per_second: float


class Answered(NamedTuple):
    """What student and exported student say of the rows they were compared on.

    Attributes:
        example_ids: (N,) int64, a hash of each row's text columns.
        labels: (N,) int64, -100 where a row has none.
        logits: (N, C) float32 by system.
    """

    example_ids: np.ndarray
    labels: np.ndarray
    logits: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ExportReport:
    """What `export_student` wrote and found; ``str()`` is a table.

    Attributes:
        format: A key of `FILES`.
        file: Of the model, in the folder of the export.
        inputs: What the model's inputs are called.
        max_length: Longest input in tokens; None: any.
        labels: The label names, in the order of the logits.
        systems: ``student`` (float32 in PyTorch) and the exported one.
        dataset: What the rows are called.
        rows: On how many the two were compared.
        max_difference: The largest difference of two logits.
        agreement: Share of rows to which both give the same label.
        measured: Where and how times were taken.
        versions: Of the packages that wrote it.
        notes: What a reader must know to trust the figures.
        answers: Row by row; in no file.
    """

    format: str
    file: str
    inputs: tuple[str, ...]
    max_length: int | None
    labels: tuple[str, ...]
    systems: Mapping[str, Served]
    dataset: str
    rows: int
    max_difference: float
    agreement: float
    measured: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    answers: Answered | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in export.json; a value that is not finite is None."""
        return as_json(
            {
                "version": 1,
                **{own.name: getattr(self, own.name) for own in fields(self) if own.name != "answers"},
            }
        )

    def table(self) -> str:
        """Student and exported student as a Markdown table."""
        metrics = list(next(iter(self.systems.values())).metrics)
        rows = [
            [
                name,
                *(f"{system.metrics[metric]:.4f}" for metric in metrics),
                f"{system.bytes:,}",
                f"{system.p50_ms:.2f} ms",
                f"{system.p95_ms:.2f} ms",
                f"{system.rows_per_second:,.0f}",
            ]
            for name, system in self.systems.items()
        ]
        return markdown_table(["system", *metrics, "bytes", "p50", "p95", "rows / s"], rows)

    def __str__(self) -> str:
        same = (
            f"{self.agreement:.2%} of {self.rows} rows ({self.dataset}) get the same label from both; "
            f"logits differ by {self.max_difference:.2g} at most."
        )
        return "\n".join(
            [self.table(), "", same, "", f"{self.measured}.", *(f"\nNote: {note}" for note in self.notes)]
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write export.json and export.md, and return the path of the latter."""
        path = Path(folder, EXPORT_FILE)
        write_json(path, self.to_dict(), indent=2)
        write_text(path.with_suffix(".md"), f"# The exported student\n\n{self}\n")
        return path.with_suffix(".md")


def export_student(
    folder: str | os.PathLike[str],
    *,
    format: str = "onnx",
    output: str | os.PathLike[str] | None = None,
    rows: Any = None,
    text_columns: Sequence[str] | None = None,
    label_column: str = "label",
    max_length: int | None = None,
    metrics: Sequence[Any] | None = None,
    batch_size: int = 32,
    task: str | Task = "text-classification",
    dataset_name: str = "the rows given",
    notes: Sequence[str] = (),
) -> ExportReport:
    """Write a student for onnxruntime, with its tokenizer, and compare it with the student itself.

    Nothing is left in ``output`` where the exported student answers otherwise.

    Args:
        folder: Of the student, in safetensors.
        format: ``onnx``, float32; or ``int8``, weights in 7 bits and a sign per channel, activations quantised as they
            come, batch by batch.
        output: Where to write; None: a folder of the format's name in the student's.
        rows: Raw rows to compare and evaluate on; None: random tokens, and no metrics.
        text_columns, label_column: As for the trainer.
        max_length: Longest input in tokens; None: what tokenizer and positions allow.
        metrics: As for `evaluate_ensemble`; those that compare with an ensemble are left out.
        batch_size: Rows per forward of the comparison.
        task: A name of `TASKS`, or a `Task`.
        dataset_name: What the report calls the rows.
        notes: Sentences to add to the report.

    Raises:
        ConfigurationError: No such format; packages that are not installed; a model that cannot be exported, or whose
            export answers otherwise.
        DataError, UnsafeFileError: No student, or not in safetensors.
    """
    if format not in FILES:
        raise ConfigurationError(
            f"There is no export format {format!r}{suggest(format, FILES)}; there are {', '.join(FILES)}."
        )
    refuse_missing(_PACKAGES)
    task = build_task(task)
    # float32 whatever it was stored as, since that is what the comparison is with.
    model = load_with_head(
        os.fspath(folder), task, what="The student", require_head=True, dtype="float32"
    ).eval()
    processor = load_processor(os.fspath(folder), task.content, what="The student")
    view = open_view(model, processor, max_length, what="The student", task=task)
    labels = output_names(model.config)
    columns = task.text_columns if text_columns is None else text_columns
    if rows is None:
        prepared, dataset_name = (
            _random_rows(view, model, family_of(task).unlabelled(len(labels))),
            "random tokens" if task.content.of_tokens else "random rows",
        )
    else:
        prepared = prepare_dataset(
            rows,
            text_columns=columns,
            labels=task.label_reader(label_column, labels),
            student_view=view,
            teacher_views={},
            content=task.content,
            what=dataset_name,
        )
    collator = MultiTeacherCollator(view, {})
    batches = list(DataLoader(indexed(prepared), batch_size=batch_size, collate_fn=collator))
    inputs = [name for name in batches[0] if name in named_inputs(model) - {"labels"}]
    output = Path(folder, format) if output is None else Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as unfinished:
        example = {name: batches[0][name] for name in inputs}
        made = write_onnx(model, example, Path(unfinished, FILES["onnx"]), open_sizes=view.open_sizes)
        checked = batches if format == "onnx" else batches[: -(-_CHECKED_ROWS // batch_size)]
        bar = tqdm(batches, desc="The student", leave=False)
        reference = np.concatenate([_forward(model, batch, inputs) for batch in bar])
        logits = _session_logits(made, checked, inputs)
        difference = np.abs(logits - reference[: len(logits)]).max()
        if not difference <= TOLERANCE:
            raise ConfigurationError(
                f"The exported student's logits differ from the student's by up to {difference:.3g}, more than the "
                f"{TOLERANCE:g} that rounding explains, so nothing was kept: torch {torch.__version__} does not export "
                f"{type(model).__name__} faithfully; try another version."
            )
        if format == "int8":
            made = quantize(made, Path(unfinished, FILES["int8"]))
            logits = _session_logits(made, batches, inputs)
        ids, truth = (
            torch.cat([batch[key] for batch in batches]).numpy() for key in ("example_id", "labels")
        )
        answers = Answered(ids, truth, {"student": reference, format: logits})
        values = _metrics(metrics or task.metrics, answers, task)
        _, first = np.unique(ids, return_index=True)
        chosen = set(timed_rows(np.sort(first).tolist()))
        timed = [row for i, row in enumerate(prepared) if i in chosen]
        calls = {
            "student": functools.partial(_forward, model, inputs=inputs),
            format: functools.partial(run_session, open_session(made), inputs=inputs),
        }
        times = _times(calls, timed, collator, inputs)
        sizes = {"student": weight_bytes(model), format: sum(f.stat().st_size for f in made.parent.iterdir())}
        report = ExportReport(
            format=format,
            file=made.name,
            inputs=tuple(inputs),
            max_length=view.max_length,
            labels=labels,
            systems={name: Served(values[name], sizes[name], *times[name]) for name in sizes},
            dataset=dataset_name,
            rows=len(logits),
            max_difference=float(np.abs(logits - reference).max()),
            agreement=_agreement(logits, reference, task),
            measured=(
                f"Latency of single rows, medians and 95th percentiles, and throughput of batches of {_BATCH}, over "
                f"{len(timed)} of these rows, student and exported student in turns, on cpu ({platform.machine()}, "
                f"{torch.get_num_threads()} thread(s)), tokenization not counted"
            ),
            versions={name: importlib.metadata.version(name) for name in ("torch", *_PACKAGES)},
            notes=tuple(notes),
            answers=answers,
        )
        if processor is not None:
            processor.save_pretrained(unfinished)
        model.config.save_pretrained(unfinished)
        report.save(unfinished)
        output.mkdir(exist_ok=True)
        for file in Path(unfinished).iterdir():
            file.replace(output / file.name)
    return report


class OnnxStudent:
    """An exported student: texts or images in, logits out, by onnxruntime alone.

    Args:
        folder: What `export_student` wrote.
        threads: Of onnxruntime; None: as many as PyTorch has.
        task: What it was trained for, which says what rows hold.

    Raises:
        CorruptStateError: What describes it cannot be read.
        DataError: There is no exported student.
        ConfigurationError: onnxruntime is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int | None = None,
        task: str | Task = "text-classification",
    ) -> None:
        refuse_missing(("onnxruntime",))
        path = Path(folder, EXPORT_FILE)
        if not path.is_file():
            raise DataError(
                f"There is no exported student in {Path(folder).absolute()}; make one: hf-distill export RUN, or "
                "hf-distill export RUN --format int8."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            file, self.inputs = Path(folder, Path(content["file"]).name), tuple(content["inputs"])
            self.label_names, max_length = tuple(content["labels"]), content["max_length"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptStateError(
                f"{path} does not describe an exported student ({in_a_line(error, 200)}): export it again, "
                "hf-distill export RUN --format onnx."
            ) from error
        self._content = build_task(task).content
        processor = load_processor(os.fspath(folder), self._content, what="The exported student")
        self.view = self._content.plain_view(processor, max_length)
        self._session = open_session(file, threads)

    def __call__(
        self, texts: Sequence[Any], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> np.ndarray:
        """Logits of texts, or of pairs of texts; or of images.

        Args:
            texts: N texts, the first of a pair where there are two; or N images.
            pairs: N second texts.
            batch_size: Rows per run.

        Returns:
            (N, C) float32, in the order of ``label_names``.
        """
        columns = [list(map(self._content.read, column)) for column in (texts, pairs) if column is not None]
        batches = text_batches(self.view, columns, batch_size)
        found = [run_session(self._session, batch, self.inputs) for batch in batches]
        return np.concatenate([np.empty((0, len(self.label_names)), np.float32), *found])


def _random_rows(view: View, model: PreTrainedModel, unlabelled: Any) -> list[dict[str, Any]]:
    """Prepared rows without labels, the same whenever they are drawn."""
    encoded = view.drawn(_RANDOM_ROWS, model)
    return [
        {**{name: values[i] for name, values in encoded.items()}, "labels": unlabelled, "example_id": i}
        for i in range(_RANDOM_ROWS)
    ]


def _forward(model: PreTrainedModel, batch: Mapping[str, Tensor], inputs: Sequence[str]) -> np.ndarray:
    """Logits (B, C) float32."""
    with torch.inference_mode():
        return model(**{name: batch[name] for name in inputs}).logits.numpy()


def _session_logits(file: Path, batches: Sequence[Mapping[str, Tensor]], inputs: Sequence[str]) -> np.ndarray:
    session, bar = open_session(file), tqdm(batches, desc=file.name, leave=False)
    return np.concatenate([run_session(session, batch, inputs) for batch in bar])


def _agreement(logits: np.ndarray, reference: np.ndarray, task: Task) -> float:
    """Share of rows to which both give the same answer; numbers, within the tolerance of logits."""
    answers = [
        family_of(task).predictions(task.log_probs(torch.from_numpy(own)).numpy())
        for own in (logits, reference)
    ]
    same = np.abs(answers[0] - answers[1]) <= TOLERANCE
    return float((same if same.ndim == 1 else same.all(1)).mean())


def _metrics(metrics: Sequence[Any], answers: Answered, task: Task) -> dict[str, dict[str, float]]:
    """Values of each system on the labelled rows; none where there are no labels."""
    if not with_label(answers.labels).any():
        return {name: {} for name in answers.logits}
    compute = compute_metrics_from(metrics, task)
    return {name: compute(EvalPrediction(own, answers.labels)) for name, own in answers.logits.items()}


def _times(
    calls: Mapping[str, Callable[[Mapping[str, Tensor]], Any]],
    rows: Sequence[Mapping[str, Any]],
    collator: MultiTeacherCollator,
    inputs: Sequence[str],
) -> dict[str, tuple[float, float, float]]:
    """p50 and p95 of single rows in milliseconds, and rows per second in batches, by system."""

    def batches(size: int) -> list[dict[str, Tensor]]:
        made = (collator(rows[i : i + size]) for i in range(0, len(rows), size))
        return [{name: batch[name] for name in inputs} for batch in made]

    paces = time_rows(calls, batches(1), batches(_BATCH), seconds=_SECONDS, show=True)
    return {
        name: (*(1000 * np.quantile(pace.singles, [0.5, 0.95])).tolist(), pace.throughput)
        for name, pace in paces.items()
    }
