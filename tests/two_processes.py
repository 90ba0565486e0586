"""Run by test_distributed.py under a launcher: writes what each process saw into the folder given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from hf_distill import CacheSettings, DistillationArguments, MultiTeacherDistillationTrainer, Teacher
from hf_distill.cache import TeacherCache


class Gradients(TrainerCallback):
    """The gradients before the first update."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.seen:
            self.seen = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}


def run(
    folder: Path, checkpoints: dict[str, str], batch: int, accumulation: int, **options: object
) -> dict[str, object]:
    rows = datasets.load_from_disk(str(folder / "rows"))
    args = DistillationArguments(
        output_dir=str(folder / "out"),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        dataloader_pin_memory=False,
        max_steps=2,
        max_grad_norm=0.0,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=accumulation,
    )
    gradients = Gradients()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["student"])
    trainer = MultiTeacherDistillationTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(checkpoints["student"]),
        teachers=[Teacher.from_pretrained(checkpoints[name]) for name in ("bert", "roberta", "deberta")],
        args=args,
        train_dataset=rows,
        eval_dataset=rows.select(range(13)),
        processing_class=tokenizer,
        label_names=["negative", "positive"],
        callbacks=[gradients],
        **options,
    )
    trainer.train()
    report = trainer.evaluate_ensemble(metrics=["accuracy", "nll", "agreement"])
    return {
        "world_size": trainer.args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "gradients": {name: gradient.tolist() for name, gradient in gradients.seen.items()},
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "evaluation": trainer.evaluate(),
        "report": report.to_dict(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    checkpoints = json.loads((folder / "checkpoints.json").read_text())
    results = {}
    for batch, accumulation in json.loads((folder / "shapes.json").read_text()):
        results[f"{batch}x{accumulation}"] = run(folder, checkpoints, batch, accumulation)
    settings = CacheSettings(dtype="float32", shard_rows=4)
    options = {"cache_dir": folder / "cache", "cache_settings": settings}
    results["cached"] = run(
        folder, checkpoints, *json.loads((folder / "shapes.json").read_text())[0], **options
    )
    shares = TeacherCache([checkpoints["bert"], checkpoints["deberta"]], folder / "shares", settings)
    results["computed"] = shares.add(datasets.load_from_disk(str(folder / "rows")), ("text",))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
