"""The whole job offline on real text: three teachers made, a recipe written, run and judged, in a few minutes."""

from __future__ import annotations

import json
import os
import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import (
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from ...errors import ConfigurationError
from ...evaluation.evaluating import compute_metrics_from
from ...evaluation.results import EvaluationReport
from ...files import refuse_file, write_text
from ...recipe import Setup, load_recipe
from ...training.progress import LossTable
from ...verdict import VerdictReport
from ..train import train_recipe
from .corpus import DemoCorpus, build_demo_corpus
from .small_models import fresh_classifier, small_teachers, wordpiece

# Docstrings' first paragraphs have 19 tokens on average; 40 cut 7 in 100.
_MAX_LENGTH = 40

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

_RECIPE = """\
# The demo of hf_distill: which library does a docstring come from?
# teachers  three small models that the demo made from {teacher:,} labelled rows, each with its own architecture, tokenizer
#           and label order
# student   a DistilBERT of one layer, from scratch
# data      docstrings of the installed libraries: {labelled:,} rows with a label, {unlabelled:,} without, {test:,} for the verdict
# run       hf-distill train {recipe}
data:
  files:
    train: {folder}/data/train.jsonl
    validation: {folder}/data/validation.jsonl
    test: {folder}/data/test.jsonl
  label_names: {labels}

teachers:
  models: [{folder}/teachers/bert, {folder}/teachers/roberta, {folder}/teachers/deberta]
  cache_dir: {folder}/cache  # each teacher reads each row once, whatever is trained later

student:
  config: {{model_type: distilbert, dim: 128, n_layers: 1, n_heads: 4, hidden_dim: 128, dropout: 0.2,
           seq_classif_dropout: 0.2, max_position_embeddings: {max_length}}}
  tokenizer: {folder}/tokenizer
  max_length: {max_length}

fusion: auto  # fitted on the validation rows, and used where it beats the plain mean of the teachers there

losses: {{temperature: 2, task_weight: 0.3, distill_weight: 0.7}}

training:
  output_dir: {folder}/student
  num_train_epochs: {epochs:g}
  learning_rate: 0.0015
  warmup_steps: 0.1
  per_device_train_batch_size: 64
  # The student without teachers is looked at as often, and judged at its best step too.
  eval_strategy: steps
  eval_steps: 94
  logging_steps: 47
  save_strategy: "no"
  report_to: none
  dataloader_pin_memory: false
  seed: {seed}

evaluation: {{split: test, batch_size: 128, seeds: {seeds}}}
"""


def run_demo(
    output_dir: str | os.PathLike[str] = "hf-distill-demo",
    seed: int = 0,
    *,
    vocabulary: int = 8_000,
    teacher_epochs: float = 3,
    student_epochs: float = 4,
    seeds: int = 1,
    corpus: DemoCorpus | None = None,
) -> VerdictReport | EvaluationReport | None:
    """Make three teachers, write a recipe that distils them into a smaller student, and run it, with its verdict.

    The setting is a usual one: the teachers were made elsewhere on more labelled rows than the user has, and differ in
    architecture, tokenizer and label order. What follows is what a user does: `hf-distill train recipe.yaml`.

    Args:
        output_dir: Gets ``data``, ``teachers/NAME``, ``tokenizer``, ``recipe.yaml``, ``cache`` and ``student``, the run.
        seed: Of data, weights and training.
        vocabulary: Pieces per tokenizer, at most.
        teacher_epochs: Epochs over the teachers' rows.
        student_epochs: Epochs over the user's rows; the student without teachers gets as many steps.
        seeds: Of the verdict.
        corpus: The rows; None: the installed libraries' docstrings.

    Returns:
        The verdict on the test rows.

    Raises:
        ConfigurationError: Started in several processes, or a file lies where its folder is to be.
        DataError: Too little text is installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            f"the demo was started in {os.environ['WORLD_SIZE']} processes, but it trains in one: run `hf-distill demo`."
        )
    refuse_file(output_dir, "--output")
    folder, began = Path(output_dir), time.perf_counter()

    if corpus is None:
        _say("Reading the docstrings of the installed libraries: which library does a text come from?")
        corpus = build_demo_corpus(seed=seed)
    _say(f"{_rows(corpus)}, {len(corpus.label_names)} classes: {', '.join(corpus.label_names)}", since=began)

    for name, config, tokenizer in small_teachers(
        corpus.teacher["text"], vocabulary=vocabulary, max_length=_MAX_LENGTH
    ):
        _make_teacher(folder / "teachers" / name, config, tokenizer, corpus, seed=seed, epochs=teacher_epochs)

    recipe = write_demo_recipe(
        folder, corpus, seed=seed, vocabulary=vocabulary, epochs=student_epochs, seeds=seeds
    )
    _say(f"\nThe rest is what you would do with checkpoints of your own:\n\n    hf-distill train {recipe}\n")
    report = train_recipe(Setup(load_recipe(recipe)))
    run, other = folder / "student", folder / "temperature-4"
    changed = ["losses.temperature=4", f"training.output_dir={other}"]
    _say(
        "\nNext: another temperature, with what the teachers said read from the cache, and both on one page:\n"
    )
    _say(f"    {shlex.join(['hf-distill', 'train', str(recipe), *changed])}")
    _say(
        f"    {shlex.join(['hf-distill', 'compare', str(run), str(other), '--output', str(folder / 'compared')])}\n"
    )
    _say(f"The page to look at is {run / 'report.html'}", since=began)
    return report


def write_demo_recipe(
    folder: Path, corpus: DemoCorpus, *, seed: int, vocabulary: int, epochs: float, seeds: int
) -> Path:
    """Write what a user has, apart from the teachers: rows as files, the student's tokenizer, and the recipe.

    Args:
        folder: Of the demo.
        corpus: The rows.
        seed: Of the training.
        vocabulary: Pieces of the student's tokenizer, at most.
        epochs: Over the user's rows.
        seeds: Of the verdict.

    Returns:
        The recipe's path.
    """
    rows = {
        "train": concatenate_datasets([corpus.labelled, corpus.unlabelled]),
        "validation": corpus.validation,
        "test": corpus.test,
    }
    for split, own in rows.items():
        names = [None if i is None else corpus.label_names[i] for i in own["label"]]
        lines = [
            json.dumps({"text": text, "label": name}, ensure_ascii=False)
            for text, name in zip(own["text"], names, strict=True)
        ]
        write_text(folder / "data" / f"{split}.jsonl", "\n".join(lines) + "\n")
    wordpiece(rows["train"]["text"], vocabulary, _MAX_LENGTH).save_pretrained(str(folder / "tokenizer"))
    recipe = folder / "recipe.yaml"
    text = _RECIPE.format(
        teacher=len(corpus.teacher),
        labelled=len(corpus.labelled),
        unlabelled=len(corpus.unlabelled),
        test=len(corpus.test),
        folder=folder.as_posix(),
        recipe=recipe.as_posix(),
        labels=json.dumps(corpus.label_names),
        max_length=_MAX_LENGTH,
        epochs=epochs,
        seed=seed,
        seeds=seeds,
    )
    write_text(recipe, text)
    return recipe


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
