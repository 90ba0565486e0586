"""What each kind of knowledge adds, on real data with a pretrained encoder: labels, logits, hidden states; one teacher, three.

    python recipes/train_teachers.py trec6 --encoder FOLDER_OF_ALL_MINILM_L6_V2
    python benchmarks/knowledge_kinds.py --encoder FOLDER_OF_ALL_MINILM_L6_V2

The student has three of the encoder's six layers and a fresh head, and is trained on the same 1,600 labelled rows for the
same number of steps with the same settings in every system; nothing is selected on the test rows, and no checkpoint on any. Runs that are finished are
read back from --output, so the table can be made in several sittings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer, build_student
from hf_distill.evaluation.statistics import paired_bootstrap
from hf_distill.markdown import markdown_table

ROOT = Path(__file__).parents[1]
STRONGEST, ALL = ("bert",), ("bert", "roberta", "deberta")
# name: teachers, with hidden states
SYSTEMS = {
    "fine-tuned": ((), False),
    "+ logits, one teacher": (STRONGEST, False),
    "+ logits and hidden states, one teacher": (STRONGEST, True),
    "+ logits, three teachers": (ALL, False),
    "+ logits and hidden states, three teachers": (ALL, True),
}


def run(
    system: str, seed: int, rows: datasets.DatasetDict, labels: list[str], options: argparse.Namespace
) -> None:
    """Train one student and keep its log-probabilities on the test rows."""
    names, hidden = SYSTEMS[system]
    transformers.set_seed(seed)
    body = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.encoder,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    weights = {"task_weight": 0.3, "distill_weight": 0.7, "temperature": 3.0} if names else {}
    more = {}
    if hidden:
        from hf_distill.training.hidden import HiddenLoss

        options_of = {"weight": options.hidden_weight, "loss": "hidden_mse"}
        more["hidden_losses"] = [HiddenLoss(layers="uniform", teachers=STRONGEST, **options_of)]
        if others := [
            name for name in names if name not in STRONGEST
        ]:  # of one layer, fewer than the student's
            more["hidden_losses"].append(HiddenLoss(layers="last", teachers=others, **options_of))
    elif names:
        more["cache_dir"] = str(options.output / "cache")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        trainer = MultiTeacherDistillationTrainer(
            model=build_student(body, layers=3),
            args=DistillationArguments(
                output_dir=folder, seed=seed, num_train_epochs=options.epochs, learning_rate=1e-4, warmup_steps=0.1,
                per_device_train_batch_size=32, per_device_eval_batch_size=128, save_strategy="no", use_cpu=True,
                dataloader_pin_memory=False, disable_tqdm=True, logging_steps=1000,
                **(weights or {"task_weight": 1.0, "distill_weight": 0.0}),
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=transformers.AutoTokenizer.from_pretrained(options.encoder, model_max_length=64),
            teachers=[str(options.teachers / name) for name in names],
            **more,
        )  # fmt: skip
        trainer.train()
        found = trainer.predict(rows["test"])
    log_probs = torch.from_numpy(found.predictions).log_softmax(-1).numpy()
    np.savez(
        options.output / file_name(system, seed),
        log_probs=log_probs,
        labels=found.label_ids,
        seconds=time.perf_counter() - began,
    )


def file_name(system: str, seed: int) -> str:
    return f"{list(SYSTEMS).index(system)}-{seed}.npz"


def table(seeds: int, folder: Path) -> str:
    """Mean ± standard deviation over seeds, and the difference from fine-tuning with its 95 % interval over rows and seeds."""
    right, nll, lines = {}, {}, []
    for system in SYSTEMS:
        found = [np.load(folder / file_name(system, seed)) for seed in range(seeds)]
        right[system] = np.stack([run["log_probs"].argmax(-1) == run["labels"] for run in found])
        nll[system] = np.stack(
            [-run["log_probs"][np.arange(len(run["labels"])), run["labels"]] for run in found]
        )
    for system in SYSTEMS:
        cells = [system]
        for values, scale, digits in ((right, 100.0, 1), (nll, 1.0, 3)):
            own, base = values[system] * scale, values["fine-tuned"] * scale
            cells.append(f"{own.mean():.{digits}f} ± {own.mean(1).std(ddof=1):.{digits}f}")
            # Rows are resampled, each with all its seeds: what other questions would have said.
            gain = paired_bootstrap(own.mean(0), base.mean(0))
            cells.append(
                "–"
                if system == "fine-tuned"
                else f"{gain.value:+.{digits}f} ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})"
            )
        lines.append(cells)
    return markdown_table(["student", "accuracy %", "− fine-tuned", "NLL", "− fine-tuned"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", required=True, help="folder or id of the pretrained encoder")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "trec6")
    parser.add_argument("--teachers", type=Path, default=ROOT / "runs" / "teachers" / "trec6")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "knowledge-kinds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=1600, help="of the training rows, the same for all systems"
    )
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--hidden-weight", type=float, default=1.0)
    parser.add_argument(
        "--systems", type=int, nargs="*", help="numbers of the systems to train, all otherwise"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    labels = json.loads((options.data / "meta.json").read_text(encoding="utf-8"))["labels"]
    files = {name: str(options.data / f"{name}.jsonl.gz") for name in ("train", "validation", "test")}
    rows = datasets.load_dataset("json", data_files=files)
    rows = rows.cast_column("label", datasets.ClassLabel(names=labels)).select_columns(["text", "label"])
    rows["train"] = rows["train"].shuffle(seed=0).select(range(options.rows))
    chosen = [list(SYSTEMS)[i] for i in options.systems] if options.systems else list(SYSTEMS)
    for seed in range(options.seeds):
        for system in chosen:
            if not (options.output / file_name(system, seed)).is_file():
                run(system, seed, rows, labels, options)
                print(f"{system}, seed {seed}: done", flush=True)
    if all(
        (options.output / file_name(system, seed)).is_file()
        for system in SYSTEMS
        for seed in range(options.seeds)
    ):
        print(table(options.seeds, options.output))


if __name__ == "__main__":
    main()
