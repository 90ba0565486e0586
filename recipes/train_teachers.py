"""Makes the three teachers of a recipe on local files: other architecture, tokenizer and label order each.

    python recipes/train_teachers.py trec6
    python recipes/train_teachers.py trec6 --encoder FOLDER_OR_ID

reads ../shared/data/trec6 (train.jsonl.gz, validation.jsonl.gz, and meta.json with label names and text columns) and
writes runs/teachers/trec6/{bert,roberta,deberta}. The teachers are small and trained from scratch with the stock
Trainer; with --encoder the first one fine-tunes that pretrained encoder instead.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_distill.evaluation.evaluating import compute_metrics_from
from hf_distill.runs.demo.small_models import fresh_classifier, small_teachers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="a folder of --data, e.g. trec6")
parser.add_argument("--data", type=Path, default=Path("../shared/data"))
parser.add_argument("--output", type=Path, default=Path("runs/teachers"))
parser.add_argument("--encoder", help="pretrained encoder that the first teacher fine-tunes")
parser.add_argument("--epochs", type=float, default=6)
parser.add_argument("--encoder-epochs", type=float, default=2)
parser.add_argument("--max-length", type=int, default=64)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

folder, output = options.data / options.name, options.output / options.name
meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
names, text_columns = meta["labels"], meta["input_columns"]
rows = datasets.load_dataset(
    "json", data_files={split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation")}
)
texts = [text for column in text_columns for text in rows["train"][column]]

for name, config, tokenizer in small_teachers(texts, vocabulary=8_000, max_length=options.max_length):
    labels = random.Random(f"{name} {options.seed}").sample(names, len(names))  # an order of its own
    if name == "bert" and options.encoder:
        tokenizer = AutoTokenizer.from_pretrained(options.encoder, model_max_length=options.max_length)
        model = AutoModelForSequenceClassification.from_pretrained(
            options.encoder,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        training = {
            "learning_rate": 1e-4,
            "num_train_epochs": options.encoder_epochs,
            "per_device_train_batch_size": 32,
        }
    else:
        model = fresh_classifier(config, tokenizer, labels, options.seed)
        training = {
            "learning_rate": 1.5e-3,
            "num_train_epochs": options.epochs,
            "per_device_train_batch_size": 64,
        }

    def prepare(batch, tokenizer=tokenizer, labels=labels):
        columns = [batch[column] for column in text_columns]
        return {
            **tokenizer(*columns, truncation=True),
            "labels": [labels.index(names[i]) for i in batch["label"]],
        }

    tokenized = rows.map(prepare, batched=True, remove_columns=rows["train"].column_names)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output / name), warmup_steps=0.1, seed=options.seed, save_strategy="no", report_to="none",
            per_device_eval_batch_size=128, dataloader_pin_memory=False, **training,
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics_from(["accuracy"]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    print(f"{name}: validation accuracy {trainer.evaluate()['eval_accuracy']:.4f}, saved in {output / name}")
