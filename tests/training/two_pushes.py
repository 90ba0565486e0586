"""Run by test_pushes.py under a launcher: two processes push to the double of the Hub; the last push of a recipe fails."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import datasets
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError
from hf_distill.training.pushes import failed_pushes


class Late(MultiTeacherDistillationTrainer):
    """Whose second process is slow to put its part into a checkpoint."""

    def _save_rng_state(self, output_dir: str) -> None:
        time.sleep(self.args.process_index)
        super()._save_rng_state(output_dir)


def trainer(folder: Path, checkpoints: dict[str, str], **options: object) -> MultiTeacherDistillationTrainer:
    """A run that pushes each of its two checkpoints."""
    args = DistillationArguments(
        output_dir=str(folder / "api"), use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, max_steps=2,
        save_steps=1, push_to_hub=True, hub_model_id="me/api", hub_strategy="checkpoint", hub_always_push=True, **options,
    )  # fmt: skip
    return Late(
        model=AutoModelForSequenceClassification.from_pretrained(checkpoints["student"]),
        teachers=[checkpoints["bert"], checkpoints["roberta"]],
        fusion="linear_pool",
        args=args,
        train_dataset=datasets.load_from_disk(str(folder / "rows")),
        processing_class=AutoTokenizer.from_pretrained(checkpoints["student"]),
        label_names=["negative", "positive"],
    )


def refused(folder: Path, checkpoints: dict[str, str]) -> str:
    """What a process is told where the first has no valid token."""
    try:
        trainer(folder, checkpoints, hub_token="hf_" + "x" * 34)
    except ConfigurationError as error:
        return str(error)
    return ""


def answers(where: str) -> list[list[float]]:
    """Logits of a student, from a folder or the Hub."""
    tokens = AutoTokenizer.from_pretrained(where)(["a good film", "dull"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(where)(**tokens).logits.tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    os.environ["HF_TOKEN"] = os.environ[f"TOKEN_OF_{rank}"]  # so that the double knows who asks
    checkpoints = json.loads((folder / "checkpoints.json").read_text())
    found: dict[str, object] = {"refused": refused(folder, checkpoints)}
    run = trainer(folder, checkpoints)
    run.train()
    run.evaluate_ensemble(run.train_dataset, metrics=["accuracy", "nll"])
    found["commit"] = run.push_to_hub(tags=["mine"])
    found["failed"], found["pushes"] = failed_pushes(run), hasattr(run, "push_in_progress")
    train = ["train", str(folder / "tiny.yaml"), "hub.push=true"]
    done = CliRunner().invoke(
        app,
        [*train, "hub.repo=me/recipe", f"training.output_dir={folder / 'recipe'}", "evaluation.verdict=true"],
    )
    found |= {"code": done.exit_code, "output": done.output, "error": repr(done.exception)}
    if rank == 0:
        found["local"], found["loaded"] = (
            [answers(str(folder / name)) for name in ("api", "recipe")],
            [answers(name) for name in ("me/api", "me/recipe")],
        )
        found["card"] = ModelCard.load("me/api").text
    (folder / f"rank{rank}.json").write_text(json.dumps(found, default=str))
    torch.distributed.barrier()
    (folder / "fail").touch()
    app([*train, "hub.repo=me/failing", f"training.output_dir={folder / 'failing'}"])
