"""local_trec6.yaml in Python, for those who prefer it: student and baseline on one of the data folders, and the report.

python recipes/train_teachers.py trec6
python recipes/distill.py trec6
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig, set_seed

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="a folder of --data, e.g. trec6")
parser.add_argument("--data", type=Path, default=Path("../shared/data"))
parser.add_argument("--teachers", type=Path, default=Path("runs/teachers"))
parser.add_argument("--output", type=Path, default=Path("runs"))
parser.add_argument("--epochs", type=float, default=12)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

folder, teachers = options.data / options.name, options.teachers / options.name
meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
rows = datasets.load_dataset(
    "json", data_files={split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation", "test")}
)
tokenizer = AutoTokenizer.from_pretrained(teachers / "bert")


def student() -> AutoModelForSequenceClassification:
    set_seed(options.seed)
    return AutoModelForSequenceClassification.from_config(
        DistilBertConfig(
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
            dim=128, hidden_dim=512, n_layers=2, n_heads=4, num_labels=len(meta["labels"]),
        )
    )  # fmt: skip


def train(name: str, *, teachers: list[str], **weights: float) -> MultiTeacherDistillationTrainer:
    trainer = MultiTeacherDistillationTrainer(
        model=student(),
        teachers=teachers,
        args=DistillationArguments(
            output_dir=str(options.output / f"{options.name}-{name}"), num_train_epochs=options.epochs, seed=options.seed,
            per_device_train_batch_size=32, learning_rate=5e-4, warmup_steps=0.1, eval_strategy="epoch", save_strategy="epoch",
            save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="eval_loss", **weights,
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        text_columns=meta["input_columns"],
        label_names=meta["labels"],
        cache_dir=options.output / "cache" if teachers else None,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return trainer


baseline = train("baseline", teachers=[], task_weight=1.0, distill_weight=0.0)
distilled = train(
    "student", teachers=[str(teachers / t) for t in ("bert", "roberta", "deberta")],
    temperature=3.0, task_weight=0.3, distill_weight=0.7,
)  # fmt: skip
print(distilled.evaluate_ensemble(rows["test"], baseline=baseline.model, dataset_name=f"{options.name} test"))
