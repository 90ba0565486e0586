"""What a recipe would take: rows, labels, sizes, steps, bytes of the cache, and about how long, before anything is trained."""

from __future__ import annotations

import json
import math
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoConfig, TrainerCallback

from ..errors import LabelNameError
from ..evaluation.formats import duration
from ..evaluation.terminal import aligned
from ..processes import say
from ..recipe.setup import Setup
from ..recipe.student_section import label_names
from ..rows.preparing import distinct_rows
from ..tasks import known_family, match_outputs
from ..teachers.cache.settings import STORED_AS
from ..teachers.teacher import stated_labels
from .verdict.jobs import places
from .verdict.trainings import labelled_rows

# Of a text with spaces: what a word is on average in the pieces of subword tokenizers, and what padding adds to a batch.
_TOKENS_PER_WORD, _ENDS, _PADDING = 1.4, 2, 1.3
# How much of a matrix product's speed a small transformer reaches, and what a forward takes beside it, by experience.
_REACHED, _OVERHEAD = 0.4, 0.004
# A backward pass is two forward ones.
_TRAINED = 3
_TRIED_ROWS, _TRIED_STEPS = 64, 3
_WIDTHS, _USUAL_WIDTH = ("hidden_size", "dim", "d_model"), 768


@dataclass(frozen=True)
class Size:
    """A model by what its files say.

    Attributes:
        parameters: All of them.
        body: Those without embeddings, which is what a token has to pass.
    """

    parameters: int
    body: int


@dataclass(frozen=True)
class Outlook:
    """What a run would take; None, or nothing, where that cannot be known without loading.

    Attributes:
        rows: By split.
        labelled: By split.
        labels: Of the student.
        sizes: Of the student, under ``student``, and of the teachers by their names.
        steps: Optimizer steps of one training.
        per_epoch: Of them in an epoch; None for streams.
        trainings: How many the verdict needs in all, with the student's own; 1 where there is no verdict.
        cache_bytes: What the teachers' outputs take; None where no cache is asked for.
        seconds: Teachers, one training, and all others of the verdict.
        measured: Whether models were really run for that.
    """

    rows: Mapping[str, int] = field(default_factory=dict)
    labelled: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)
    steps: int = 0
    per_epoch: int | None = None
    trainings: int = 1
    cache_bytes: int | None = None
    seconds: tuple[float, float, float] | None = None
    measured: bool = False

    def __str__(self) -> str:
        """What is known, by a word for each, in lines that fit the terminal."""
        lines: dict[str, str] = {}
        if self.rows:
            lines["rows"] = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        if self.labelled:
            named = "" if self.labels is None else f" of {len(self.labels)} classes"
            lines["labelled"] = (
                ", ".join(f"{count:,} {split}" for split, count in self.labelled.items()) + named
            )
        if self.sizes:
            lines["sizes"] = ", ".join(
                f"{name} {size.parameters / 1e6:.1f} M" for name, size in self.sizes.items()
            )
        if self.steps:
            epoch = "" if self.per_epoch is None else f", {self.per_epoch:,} in an epoch"
            lines["steps"] = f"{self.steps:,}{epoch}"
        if self.cache_bytes is not None:
            lines["cache"] = f"about {_bytes(self.cache_bytes)} when it holds all rows"
        if self.seconds is not None:
            teachers, own, others = self.seconds
            how = "measured on a few rows" if self.measured else "a rough estimate"
            more = (
                f", {self.trainings - 1} more for the verdict {duration(others)}"
                if self.trainings > 1
                else ""
            )
            lines["time"] = (
                f"about {duration(sum(self.seconds))} ({how}): teachers {duration(teachers)}, the training "
                f"{duration(own)}{more}"
            )
        return aligned(lines)


def look_ahead(setup: Setup, *, load: bool = False) -> Outlook:
    """Find out what a recipe would take, of local files without loading any model.

    Args:
        setup: Of the recipe.
        load: Whether what lies on the Hub is asked for too.

    Raises:
        DataError: Rows, their labels, or teachers' labels do not fit.
    """
    recipe = setup.recipe
    known = setup.rows if load or recipe.data.files is not None else {}
    names = _labels(setup, load) if known else recipe.data.label_names
    column = recipe.data.label_column
    finite = {split: rows for split, rows in known.items() if isinstance(rows, datasets.Dataset)}
    labelled = {}
    if names is not None:
        for split, rows in finite.items():
            if column in rows.column_names:
                labelled[split] = len(labelled_rows(setup, rows, names))
    _refuse_other_labels(setup, names)
    sizes = {"student": _student_size(setup, names)} | {
        spec.called: _on_disk(spec.id_or_path) for spec in setup.teachers
    }
    sizes = {name: size for name, size in sizes.items() if size is not None}
    steps, per_epoch = _steps(setup, len(finite["train"]) if "train" in finite else None)
    trainings = _trainings(setup, known)
    return Outlook(
        {split: len(rows) for split, rows in finite.items()},
        labelled,
        names,
        sizes,
        steps,
        per_epoch,
        trainings,
        _cache_bytes(setup, finite, names),
        _estimate(setup, finite, sizes, steps, trainings),
    )


def _labels(setup: Setup, load: bool) -> tuple[str, ...] | None:
    """The student's labels, where nothing has to be fetched for them."""
    student = setup.recipe.student
    # The config of a model with code of its own is that code.
    local = student.model is None or (Path(student.model).is_dir() and not student.trust_remote_code)
    if setup.recipe.data.label_names:
        return setup.recipe.data.label_names
    if not load and (not local or student.from_teacher is not None):
        return None
    return label_names(setup.recipe, setup.rows["train"])


def _refuse_other_labels(setup: Setup, names: tuple[str, ...] | None) -> None:
    """Match the labels that teachers' folders name, as far as these say.

    Raises:
        DataError: They cannot be matched.
    """
    for spec in setup.teachers if names is not None else ():
        own = stated_labels(spec)
        if own is not None:
            try:
                task = setup.recipe.task if known_family(setup.recipe.task) else "text-classification"
                match_outputs(
                    own,
                    names,
                    spec.called,
                    teacher_task=spec.task or task,
                    task=task,
                    convert=spec.convert,
                )
            except LabelNameError as error:
                raise error.placed(spec.place) from None


def _on_disk(source: str) -> Size | None:
    """A checkpoint's size, by the headers of its safetensors files."""
    total = body = 0
    for file in Path(source).glob("*.safetensors") if Path(source).is_dir() else ():
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(min(length, 100_000_000)))
            counts = {
                name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            }
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None
        total += sum(counts.values())
        body += sum(count for name, count in counts.items() if "embed" not in name and "wte" not in name)
    return Size(total, body) if total else None


def _student_size(setup: Setup, names: tuple[str, ...] | None) -> Size | None:
    student, task = setup.recipe.student, setup.task
    if student.config is not None:
        head = {} if names is None else task.head(names)
        try:
            with torch.device("meta"):
                model = getattr(transformers, task.auto_class).from_config(
                    AutoConfig.for_model(**student.config, **head)
                )
        except Exception:  # whatever is wrong with it, making the student says so
            return None
        body = sum(
            p.numel() for name, p in model.named_parameters() if "embed" not in name and "wte" not in name
        )
        return Size(model.num_parameters(), body)
    specs = {spec.called: spec.id_or_path for spec in setup.teachers}
    source = student.model or specs.get(student.from_teacher or "", "")
    size = _on_disk(source)
    whole = student.from_teacher is None and student.layers is None and student.hidden_size is None
    if size is None or whole:
        return size
    total = _config_number(source, "num_hidden_layers", "n_layers", "num_layers")
    width = _config_number(source, *_WIDTHS)
    narrow = 1.0 if student.hidden_size is None else width and student.hidden_size / width
    if total is None or narrow is None:
        return None
    kept = student.layers if isinstance(student.layers, int) else len(student.layers or range(min(6, total)))
    body = round(size.body * min(kept / total, 1) * narrow**2)  # its matrices are narrower on both sides
    return Size(round((size.parameters - size.body) * narrow) + body, body)


def _steps(setup: Setup, rows: int | None) -> tuple[int, int | None]:
    """Optimizer steps as Trainer counts them, and those of an epoch; 0 where the rows are not known."""
    args = setup.arguments
    per_epoch = None
    if rows is not None:
        batches = math.ceil(rows / (args.train_batch_size * args.world_size))
        per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    if args.max_steps > 0:
        return args.max_steps, per_epoch
    return (0 if per_epoch is None else math.ceil(args.num_train_epochs * per_epoch)), per_epoch


def _trainings(setup: Setup, known: Mapping[str, Any]) -> int:
    own = setup.recipe.evaluation
    judged = own.verdict and (not known or setup.split not in (None, "train"))
    return own.seeds * (2 + own.single_teacher) if judged and own.split not in ("none", "train") else 1


def _cache_bytes(
    setup: Setup, rows: Mapping[str, datasets.Dataset], names: tuple[str, ...] | None
) -> int | None:
    given = setup.recipe.teachers
    if given.cache_dir is None or not rows:
        return None
    columns = setup.recipe.data.text_columns
    count = len(
        np.unique(
            np.concatenate([distinct_rows(part, columns, setup.task.content).ids for part in rows.values()])
        )
    )
    number = STORED_AS[given.cache_dtype]().itemsize
    total = 0
    for spec in setup.teachers:
        classes = len(stated_labels(spec) or names or ("", ""))
        states = len(setup.hidden_losses) * (_config_number(spec.id_or_path, *_WIDTHS) or _USUAL_WIDTH)
        total += count * (8 + number * (classes + states))
    return total


def _config_number(source: str, *keys: str) -> int | None:
    """The first of some numbers that a folder's config has."""
    try:
        config = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
        return next((int(config[key]) for key in keys if config.get(key)), None)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _tokens(setup: Setup, rows: datasets.Dataset, most: int | None) -> float:
    """Of a row in a batch, padding included, by the words of some."""
    if not setup.task.content.of_tokens:
        return 1.0
    some = rows.select(np.linspace(0, len(rows) - 1, min(len(rows), 200)).astype(int)).with_format(None)
    words = [
        sum(len(str(row[column] or "").split()) for column in setup.recipe.data.text_columns) for row in some
    ]
    return min(np.mean(words) * _TOKENS_PER_WORD * _PADDING + _ENDS, most or 512)


def _estimate(
    setup: Setup, rows: Mapping[str, datasets.Dataset], sizes: Mapping[str, Size], steps: int, trainings: int
) -> tuple[float, float, float] | None:
    """Seconds by what the models have to compute and what this machine's matrix products reach."""
    if "train" not in rows or "student" not in sizes or not steps:
        return None
    args = setup.arguments
    speed = _flops(args.device) * _REACHED
    tokens = _tokens(setup, rows["train"], setup.recipe.student.max_length)
    batch = args.train_batch_size * args.gradient_accumulation_steps
    evaluations = _evaluations(setup, steps) * len(rows.get("validation", ()))
    seen = steps * batch * _TRAINED + evaluations
    calls = seen / args.train_batch_size
    own = 2 * sizes["student"].body * tokens * seen / speed + calls * _OVERHEAD
    asked = sum(map(len, rows.values())) if setup.recipe.teachers.cache_dir else steps * batch + evaluations
    teachers = 0.0
    for spec in setup.teachers:
        if spec.called in sizes:
            teachers += 2 * sizes[spec.called].body * tokens * asked / speed
            teachers += asked / args.train_batch_size * _OVERHEAD
    heard = 0.0 if setup.recipe.teachers.cache_dir else teachers  # live teachers answer every student anew
    return teachers, own, _others(setup, own, heard, trainings)


def _others(setup: Setup, own: float, heard: float, trainings: int) -> float:
    """Seconds of the verdict's other trainings, of which as many run at a time as there are places."""
    others = trainings - 1
    if others < 1:
        return 0.0
    taught = others - setup.recipe.evaluation.seeds
    at_once = max(1, min(len(places(setup.arguments.device.type)), others))
    return (others * own + max(taught, 0) * heard) / at_once


def _evaluations(setup: Setup, steps: int) -> float:
    args = setup.arguments
    if args.eval_strategy == "epoch":
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else 1
    if args.eval_strategy != "steps":
        return 0
    # As Trainer takes it: below 1 it is a share of the steps.
    return steps / max(args.eval_steps if args.eval_steps >= 1 else steps * args.eval_steps, 1)


def _flops(device: torch.device) -> float:
    """Of a matrix product as transformers have them, on this machine, now."""
    one, other = torch.rand(512, 512, device=device), torch.rand(512, 512, device=device)
    best, begun = math.inf, time.perf_counter()
    while time.perf_counter() - begun < 0.1:
        start = time.perf_counter()
        product = one @ other
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


# ---- A dry run ----


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin."""
        self._begun = _now(args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End."""
        self.seconds.append(_now(args.device) - self._begun)


def try_out(setup: Setup) -> Outlook:
    """Load all that a recipe names, train a few steps on a few of its rows, evaluate, and say what a run would take.

    Nothing is written where the run would write: teachers run live on these rows, whatever the cache.

    Args:
        setup: Of the recipe.

    Raises:
        HfDistillError: Whatever would stop the run.
    """
    ahead = look_ahead(setup, load=True)
    few = {
        split: rows.take(_TRIED_ROWS)
        if isinstance(rows, datasets.IterableDataset)
        else rows.select(range(min(len(rows), _TRIED_ROWS)))
        for split, rows in setup.rows.items()
    }
    recipe, clock = setup.recipe, _Clock()
    with tempfile.TemporaryDirectory() as folder:
        training = {
            **recipe.training, "output_dir": folder, "max_steps": _TRIED_STEPS, "save_strategy": "no",
            "load_best_model_at_end": False, "report_to": "none", "push_to_hub": False, "disable_tqdm": True,
        }  # fmt: skip
        for key in ("run_name", "early_stopping_patience", "early_stopping_threshold"):
            training.pop(key, None)
        tried = Setup(
            recipe.model_copy(
                update={
                    "training": training,
                    "teachers": recipe.teachers.model_copy(update={"cache_dir": None}),
                    # Too few rows to fit on.
                    **({"fusion": setup.task.fusion} if setup.fits else {}),
                }
            ),
            few,
            setup.trust,
        )
        trainer = tried.trainer(callbacks=[clock])
        trainer.train()
        device = trainer.args.device
        begun = _now(device)
        if "validation" in few:
            trainer.evaluate()
        evaluated = _now(device) - begun
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        begun = _now(device)
        if trainer.teachers:
            trainer.model.eval()
            trainer.teacher_targets(batch)
        heard = _now(device) - begun
        labels = tuple(trainer.student_labels)
        sizes = {"student": Size(trainer.student.num_parameters(), 0)}
        sizes |= {
            teacher.name: Size(teacher.num_parameters, 0)
            for teacher in trainer.teachers
            if hasattr(teacher, "num_parameters")
        }
    turns = setup.arguments.gradient_accumulation_steps
    step = min(clock.seconds)
    alone = max(step - turns * heard, step * 0.1)
    per_row = heard / setup.arguments.train_batch_size
    validation = ahead.rows.get("validation", 0) * _evaluations(setup, ahead.steps)
    own = ahead.steps * alone + evaluated / max(len(few.get("validation", ())), 1) * validation
    cached = setup.recipe.teachers.cache_dir is not None
    asked = sum(ahead.rows.values()) if cached else ahead.steps * turns * setup.arguments.train_batch_size
    teachers = per_row * asked
    seconds = (teachers, own, _others(setup, own, 0.0 if cached else teachers, ahead.trainings))
    return replace(ahead, labels=labels, sizes=sizes, seconds=seconds if ahead.steps else None, measured=True)


def announce(outlook: Outlook, command: str) -> None:
    """Print what a run would take, and that nothing was found.

    Args:
        outlook: Of a recipe.
        command: What runs it.
    """
    said = "Nothing is wrong with it, as far as this shows. It runs by:"
    say("\n".join([*str(outlook).splitlines(), "", said, f"    {command}"]))
