"""What one bad teacher does to an ensemble, by fusion rule: real teachers, real rows, nothing trained but the weak one.

    python recipes/train_teachers.py trec6
    python benchmarks/bad_teachers.py

To the three teachers of ../runs/teachers/trec6 one more is added at a time: (a) a random model whose logits are scaled
until it is sure of all it says, (b) a copy of the RoBERTa teacher with its classes permuted behind the names LABEL_i,
which a user named in the order of the data, (c) a small model trained on 400 rows. Every rule is fitted on the
validation rows and scored on the test rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_distill import FUSIONS, TASKS, LinearPool, LogPool, MultiTeacherCollator, Teacher, TeacherPool
from hf_distill.fusion import AutoFusion, HeldOut
from hf_distill.fusion.fitting import mean_nll
from hf_distill.markdown import markdown_table
from hf_distill.rows.columns import indexed
from hf_distill.rows.preparing import prepare_dataset
from hf_distill.teachers.held_out import collect

ROOT = Path(__file__).parents[1]


def split(folder: Path, name: str, labels: list[str]) -> datasets.Dataset:
    rows = datasets.load_dataset("json", data_files=str(folder / f"{name}.jsonl.gz"), split="train")
    return rows.cast_column("label", datasets.ClassLabel(names=labels))


def over_confident(like: Teacher) -> Teacher:
    """A model that knows nothing and is sure of it."""
    torch.manual_seed(0)
    model = type(like.model)(like.model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
        model.classifier.weight.mul_(30.0)
    return saved_and_loaded(model, like.view.tokenizer, "random")


def permuted(like: Teacher, labels: list[str]) -> Teacher:
    """A good teacher whose classes stand in another order than its user thinks."""
    model = copy.deepcopy(like.model)
    model.config.id2label = {i: f"LABEL_{i}" for i in range(len(labels))}
    model.config.label2id = {f"LABEL_{i}": i for i in range(len(labels))}
    return saved_and_loaded(model, like.view.tokenizer, "permuted", labels=labels)


def weak(like: Teacher, rows: datasets.Dataset, labels: list[str]) -> Teacher:
    """A one-layer model with other tokens, trained on 400 rows."""
    transformers.set_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=len(like.view.tokenizer), dim=64, hidden_dim=128, n_layers=1, n_heads=2, max_position_embeddings=64,
        pad_token_id=like.view.tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    model = transformers.DistilBertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    few = rows.shuffle(seed=0).select(range(400))
    for _ in range(12):
        for start in range(0, 400, 50):
            batch = few[start : start + 50]
            tokens = like.view.tokenizer(
                batch["text"], return_tensors="pt", padding=True, truncation=True, max_length=64,
                return_token_type_ids=False,
            )  # fmt: skip
            model(**tokens, labels=torch.tensor(batch["label"])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return saved_and_loaded(model, like.view.tokenizer, "weak")


def saved_and_loaded(model, tokenizer, name: str, **options) -> Teacher:
    folder = Path(tempfile.mkdtemp()) / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Teacher.from_pretrained(str(folder), name=name, **options)


def held_out(teachers: list[Teacher], rows: datasets.Dataset, labels: list[str]) -> HeldOut:
    pool = TeacherPool(teachers, labels)
    prepared = prepare_dataset(
        rows, text_columns=("text",), labels=TASKS["text-classification"].label_reader("label", labels), student_view=None,
        teacher_views=pool.views, what="rows",
    )  # fmt: skip
    loader = DataLoader(indexed(prepared), batch_size=64, collate_fn=MultiTeacherCollator(None, pool.views))
    return collect(loader, pool, Accelerator(cpu=True))


def scores(validation: HeldOut, test: HeldOut, names: list[str]) -> dict[str, tuple[float, float, str]]:
    """Accuracy in percent, NLL, and the weights, of every rule."""
    rules = {
        "mean of logits (log_pool, unfitted)": LogPool(),
        "mean of probabilities (linear_pool)": LinearPool(),
        "auto": AutoFusion().choose(validation, names).fusion,
    }
    for name, rule in FUSIONS.items():
        if hasattr(rule, "fit"):
            rules[f"{name}, fitted"] = rule.fit(validation.logits, validation.labels)
    rules |= {name: FUSIONS[name]() for name in ("entropy_weighted", "majority_vote")}
    found = {}
    for name, fusion in rules.items():
        log_probs = fusion(test.logits)
        accuracy = 100 * (log_probs.argmax(-1) == test.labels).double().mean().item()
        weights = getattr(fusion, "weights", None)
        found[name] = (
            accuracy,
            mean_nll(log_probs.double(), test.labels),
            "–" if weights is None else " ".join(f"{w:.2f}" for w in weights),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "trec6")
    parser.add_argument("--teachers", type=Path, default=ROOT / "runs" / "teachers" / "trec6")
    options = parser.parse_args()
    for folder in (options.data, options.teachers):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    transformers.logging.set_verbosity_error()
    labels = json.loads((options.data / "meta.json").read_text(encoding="utf-8"))["labels"]
    rows = {name: split(options.data, name, labels) for name in ("train", "validation", "test")}
    good = [Teacher.from_pretrained(str(path)) for path in sorted(options.teachers.iterdir())]
    by_name = {teacher.name: teacher for teacher in good}
    bad = [
        over_confident(by_name["bert"]),
        permuted(by_name["roberta"], labels),
        weak(by_name["roberta"], rows["train"], labels),
    ]
    everyone = [*good, *bad]
    validation, test = (held_out(everyone, rows[name], labels) for name in ("validation", "test"))
    print(f"Test accuracy of each teacher, {len(test.labels)} rows:")
    for teacher, logits in zip(everyone, test.logits, strict=True):
        print(f"  {teacher.name:<10}{100 * (logits.argmax(-1) == test.labels).double().mean().item():.1f}")
    for added in [None, *bad]:
        members = good if added is None else [*good, added]
        which = [everyone.index(teacher) for teacher in members]
        names = [teacher.name for teacher in members]
        parts = [HeldOut(part.logits[which], *part[1:]) for part in (validation, test)]
        print(f"\n{', '.join(names)}\n")
        table = [
            [rule, f"{accuracy:.1f}", f"{nll:.3f}", weights]
            for rule, (accuracy, nll, weights) in scores(*parts, names).items()
        ]
        print(markdown_table(["rule", "accuracy", "NLL", "weights"], table))


if __name__ == "__main__":
    main()
