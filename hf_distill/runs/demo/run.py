"""The whole job offline on real text: three teachers, one student, one baseline, one table, in a few minutes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import (
    DataCollatorWithPadding,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from ...errors import ConfigurationError
from ...evaluation.evaluating import compute_metrics_from
from ...evaluation.results import EvaluationReport
from ...teachers.teacher import Teacher
from ...training.arguments import DistillationArguments
from ...training.progress import LossTable
from ...training.trainer import MultiTeacherDistillationTrainer
from .corpus import DemoCorpus, build_demo_corpus
from .small_models import fresh_classifier, small_teachers, wordpiece

# Docstrings' first paragraphs have 19 tokens on average; 40 cut 7 in 100.
_MAX_LENGTH = 40

_STUDENT_SIZE: dict[str, Any] = {
    "dim": 128,
    "n_layers": 1,
    "n_heads": 4,
    "hidden_dim": 128,
    "dropout": 0.2,
    "seq_classif_dropout": 0.2,
}
_TRAINING: dict[str, Any] = {
    "learning_rate": 1.5e-3,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    # Not grouped by length, which would save half of the padding: the Trainer then shows every few thousand rows in the
    # order of their length, and that costs these small models 0.05 to 0.1 in accuracy.
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    # Only an accelerator gains from it; on a CPU torch would warn.
    "dataloader_pin_memory": False,
}


def run_demo(
    output_dir: str | os.PathLike[str] = "hf-distill-demo",
    seed: int = 0,
    *,
    vocabulary: int = 8_000,
    teacher_epochs: float = 3,
    student_epochs: float = 4,
    corpus: DemoCorpus | None = None,
) -> EvaluationReport:
    """Make three teachers, distil them into a smaller student, and compare it with the same student without them.

    The setting is a usual one: the teachers were made elsewhere on more labelled rows than the user has, and differ in
    architecture, tokenizer and label order. Prints what it does, the table, and a verdict.

    Args:
        output_dir: Gets ``teachers/NAME``, ``student`` (with the report) and ``baseline``.
        seed: Of data, weights and training.
        vocabulary: Pieces per tokenizer, at most.
        teacher_epochs: Epochs over the teachers' rows.
        student_epochs: Epochs over the user's rows; the baseline gets as many steps.
        corpus: The rows; None: the installed libraries' docstrings.

    Returns:
        The `EvaluationReport` on the test rows.

    Raises:
        ConfigurationError: Started in several processes.
        DataError: Too little text is installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            f"the demo was started in {os.environ['WORLD_SIZE']} processes, but it trains in one: run `hf-distill demo`."
        )
    folder, began = Path(output_dir), time.perf_counter()

    if corpus is None:
        _say("Reading the docstrings of the installed libraries: which library does a text come from?")
        corpus = build_demo_corpus(seed=seed)
    _say(f"{_rows(corpus)}, {len(corpus.label_names)} classes: {', '.join(corpus.label_names)}", since=began)

    teachers = []
    for name, config, tokenizer in small_teachers(
        corpus.teacher["text"], vocabulary=vocabulary, max_length=_MAX_LENGTH
    ):
        _make_teacher(folder / "teachers" / name, config, tokenizer, corpus, seed=seed, epochs=teacher_epochs)
        teachers.append(Teacher.from_pretrained(str(folder / "teachers" / name)))

    # What a user would write, were the three folders above ids on the Hub.
    started = time.perf_counter()
    user_rows = concatenate_datasets([corpus.labelled, corpus.unlabelled])
    tokenizer = wordpiece(user_rows["text"], vocabulary, _MAX_LENGTH)
    trainer = MultiTeacherDistillationTrainer(
        model=_student(tokenizer, corpus.label_names, seed),
        teachers=teachers,
        args=DistillationArguments(
            output_dir=str(folder / "student"),
            temperature=2.0,
            task_weight=0.3,
            distill_weight=0.7,
            num_train_epochs=student_epochs,
            seed=seed,
            **_TRAINING,
        ),
        train_dataset=user_rows,
        processing_class=tokenizer,
    )
    _train(trainer, "student")
    trainer.save_model()
    _say(_trained("Student", trainer, user_rows, f"{len(corpus.labelled):,} of them labelled"), since=started)

    started = time.perf_counter()
    without_teachers = MultiTeacherDistillationTrainer(
        model=_student(tokenizer, corpus.label_names, seed),
        teachers=[],
        args=DistillationArguments(
            output_dir=str(folder / "baseline"),
            task_weight=1.0,
            distill_weight=0.0,
            max_steps=trainer.state.global_step,
            seed=seed,
            **_TRAINING,
        ),
        train_dataset=corpus.labelled,
        processing_class=tokenizer,
    )
    _train(without_teachers, "baseline")
    without_teachers.save_model()
    _say(
        _trained("Baseline", without_teachers, corpus.labelled, "the same student without teachers"),
        since=started,
    )

    report = trainer.evaluate_ensemble(
        corpus.test, baseline=without_teachers.model, dataset_name="docstrings nobody has seen"
    )
    print(f"\n{report}\n\n{verdict(report)}", flush=True)
    _say(f"The report is in {folder / 'student' / 'report.md'}", since=began)
    return report


def verdict(report: EvaluationReport) -> str:
    """Say whether the student beats the baseline, in accuracy and in NLL, and no more than that.

    Args:
        report: A report with ``student`` and ``baseline``.

    Returns:
        One sentence.
    """
    student, baseline = report.systems["student"].metrics, report.systems["baseline"].metrics
    accuracy, nll = student["accuracy"] > baseline["accuracy"], student["nll"] < baseline["nll"]
    if accuracy and nll:
        claim = "The student beats the baseline in accuracy and in NLL"
    elif accuracy or nll:
        better, worse = ("accuracy", "NLL") if accuracy else ("NLL", "accuracy")
        claim = f"The student beats the baseline in {better}, but not in {worse}"
    else:
        claim = "The student does not beat the baseline, neither in accuracy nor in NLL"
    return (
        f"{claim}: accuracy {student['accuracy']:.3f} against {baseline['accuracy']:.3f}, "
        f"NLL {student['nll']:.3f} against {baseline['nll']:.3f}."
    )


class _Bar(LossTable):
    """The Trainer's progress bar with a name, and without the log lines between: the demo says what matters."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Silent: the lines of figures would break the bar."""


def _make_teacher(
    folder: Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    corpus: DemoCorpus,
    *,
    seed: int,
    epochs: float,
) -> None:
    """Train an ordinary classifier with the stock Trainer, and save it as anybody would."""
    started, name = time.perf_counter(), folder.name
    # Whoever made this teacher had an order of labels of their own.
    labels = random.Random(f"{name} {seed}").sample(corpus.label_names, len(corpus.label_names))
    model = fresh_classifier(config, tokenizer, labels, seed)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), num_train_epochs=epochs, seed=seed, **_TRAINING),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=_tokenized(corpus.teacher, tokenizer, corpus.label_names, labels),
        eval_dataset=_tokenized(corpus.validation, tokenizer, corpus.label_names, labels),
        processing_class=tokenizer,
        compute_metrics=compute_metrics_from(["accuracy"]),
    )
    _train(trainer, f"teacher {name}")
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    kind = f"{type(model).__name__}, {type(tokenizer.backend_tokenizer.model).__name__}"
    _say(
        _trained(f"Teacher {name}", trainer, corpus.teacher, kind) + f", validation accuracy {accuracy:.3f}",
        since=started,
    )


def _tokenized(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str], labels: Sequence[str]
) -> Dataset:
    """Rows for the stock Trainer, labels renumbered to a teacher's own order."""
    number = [labels.index(name) for name in label_names]

    def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**tokenizer(batch["text"], truncation=True), "labels": [number[i] for i in batch["label"]]}

    return rows.map(prepare, batched=True, remove_columns=rows.column_names, desc="Tokenizing")


def _student(tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str], seed: int) -> PreTrainedModel:
    """A DistilBERT from scratch; the same weights whenever it is made with the same seed."""
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=_MAX_LENGTH,
        **_STUDENT_SIZE,
    )
    return fresh_classifier(config, tokenizer, label_names, seed)


def _train(trainer: Trainer, name: str) -> None:
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Bar(name))
    trainer.train()


def _trained(who: str, trainer: Trainer, rows: Dataset, remark: str) -> str:
    return (
        f"{who} ({remark}): {trainer.model.num_parameters() / 1e6:.2f} M parameters, "
        f"{len(rows):,} rows, {trainer.state.global_step:,} steps"
    )


def _rows(corpus: DemoCorpus) -> str:
    return (
        f"{len(corpus.teacher):,} labelled rows made the teachers; the user has {len(corpus.labelled):,} labelled and "
        f"{len(corpus.unlabelled):,} unlabelled ones; {len(corpus.test):,} are for the test"
    )


def _say(text: str, *, since: float | None = None) -> None:
    print(text if since is None else f"{text} [{time.perf_counter() - since:.0f} s]", flush=True)
