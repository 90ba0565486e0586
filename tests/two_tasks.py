"""Run by tests/tasks/test_two_processes.py under a launcher: one update of each task, and what an evaluation says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from digit_images import digit_rows
from several_labels import class_dataset, label_dataset, score_dataset

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
from hf_distill.teachers.teacher import TeacherSpec


def main(folder: Path, processes: int) -> None:
    """Train and evaluate, and write what came of it."""
    checkpoints = json.loads((folder / "checkpoints.json").read_text())
    found = {}
    for name, task, rows, column, metric in (
        ("labels", "multi-label-classification", label_dataset, "label", "label_nll"),
        # Ranks of answers that nearly tie are decided by rounding: errors are compared.
        ("scores", "regression", score_dataset, "score", "mse"),
        ("images", "image-classification", lambda count, seed: digit_rows(count, 24 * seed), "label", "nll"),
        ("cross", "text-classification", class_dataset, "label", "nll"),
    ):
        own = checkpoints[name]
        given = rows(16, 0).map(
            lambda row, i, column=column: {column: None if i in (1, 2, 7) else row[column]}, with_indices=True
        )
        trainer = MultiTeacherDistillationTrainer(
            model=own["student"],
            teachers=[
                TeacherSpec(path, task="regression" if (name, kind) == ("cross", "roberta") else task)
                for kind, path in own.items()
                if kind not in ("student", "scores")
            ],
            args=DistillationArguments(
                output_dir=str(folder / name), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", max_steps=2,
                per_device_train_batch_size=8 // processes, learning_rate=0.05, optim="sgd", max_grad_norm=0.0, logging_steps=1,
                train_sampling_strategy="sequential", dataloader_pin_memory=False,
            ),
            train_dataset=given,
            eval_dataset=rows(61, 1),
            task=task,
            label_column=column,
            augment={"crop": 2, "flip": True} if column == "label" and "vit" in own else None,
        )  # fmt: skip
        assert trainer.accelerator.num_processes == processes
        trainer.train()
        report = trainer.evaluate_ensemble(rows(21, 2), metrics=[metric])
        found[name] = {
            "weights": torch.cat([p.detach().flatten() for p in trainer.student.parameters()]).tolist(),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "eval": trainer.evaluate()["eval_loss"],
            "report": {name: system.metrics[metric] for name, system in report.systems.items()},
            "fusion": trainer.fusion_choice.reason,
            "conversions": [[*own.edges, own.spread] for own in trainer.fusion_choice.conversions],
            "thresholds": getattr(trainer.student.config, "thresholds", None),
        }
    rank = trainer.args.process_index
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
