"""Makes teachers of any task out of one pretrained encoder: cut to so many of its layers, each with its own seed and order.

    python recipes/encoder_teachers.py goemotions --task multi-label-classification --encoder FOLDER --layers 4 3 2
    python recipes/encoder_teachers.py stsb --task regression --encoder FOLDER --scales 1 0.2 1
    python recipes/encoder_teachers.py stsb --task text-classification --encoder FOLDER --layers 4 --edges 0.5 1.5 2.5 3.5 4.5

reads ../shared/data/NAME (train.jsonl.gz, and meta.json with label names and columns) and writes
runs/teachers/NAME/layers-N. Each teacher has its own order of the labels; with --scales its numbers are the labels times that.
With --edges a column of scores becomes classes, 0 below the first edge, 1 from it on, ..., and the teachers are classes-C-layers-N.
"""

from __future__ import annotations

import argparse
import bisect
import json
import random
from pathlib import Path

import datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
from hf_distill.tasks import build_task

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="a folder of --data, e.g. goemotions")
parser.add_argument("--task", required=True)
parser.add_argument("--encoder", required=True, help="folder or id of the pretrained encoder")
parser.add_argument("--layers", type=int, nargs="+", default=[4, 3, 2], help="of each teacher")
parser.add_argument("--scales", type=float, nargs="+", help="of each teacher's numbers; default: 1")
parser.add_argument("--edges", type=float, nargs="+", help="between the classes that a score is made into")
parser.add_argument("--rows", type=int, help="so many of the training rows; default: all")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--max-length", type=int, default=64)
parser.add_argument("--data", type=Path, default=Path("../shared/data"))
parser.add_argument("--output", type=Path, default=Path("runs/teachers"))
options = parser.parse_args()

folder, task = options.data / options.name, build_task(options.task)
meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
column = next(name for name in ("labels", "score", "label") if name in meta["columns"])
rows = datasets.load_dataset("json", data_files=str(folder / "train.jsonl.gz"), split="train")
rows = rows.select(range(min(options.rows or len(rows), len(rows))))
names = [str(name) for name in meta.get("labels") or [column]]
prefix = ""
if options.edges:
    names = [str(i) for i in range(len(options.edges) + 1)]
    classes = [str(bisect.bisect_right(options.edges, score)) for score in rows[column]]
    rows = rows.remove_columns(column).add_column(column, classes)
    prefix = f"classes-{len(names)}-"

for seed, layers in enumerate(options.layers):
    scale = options.scales[seed] if options.scales else 1.0
    own = rows.map(lambda row, scale=scale: {column: row[column] * scale}) if scale != 1.0 else rows
    ordered = random.Random(seed).sample(names, len(names))  # an order of its own
    if len(names) > 1 and not options.edges:  # ids in the files are positions in the set's own order
        own = own.map(lambda row: {column: [names[i] for i in row[column]]}, remove_columns=[column])
    tokenizer = AutoTokenizer.from_pretrained(options.encoder, model_max_length=options.max_length)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.encoder, num_hidden_layers=layers, **task.head(ordered)
    )
    output = options.output / options.name / f"{prefix}layers-{layers}"
    trainer = MultiTeacherDistillationTrainer(
        model=model,
        teachers=[],
        task=task,
        args=DistillationArguments(
            output_dir=str(output), seed=seed, task_weight=1.0, distill_weight=0.0, learning_rate=1e-4, warmup_steps=0.1,
            num_train_epochs=options.epochs, per_device_train_batch_size=32, save_strategy="no", report_to="none",
            dataloader_pin_memory=False, logging_steps=20,
        ),
        train_dataset=own,
        processing_class=tokenizer,
        text_columns=meta["input_columns"],
        label_column=column,
        label_names=ordered,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    print(f"saved in {output}")
