"""Run by test_distributed.py under a launcher: writes what each process saw into the folder given."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import datasets
import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from hf_distill import (
    CacheSettings,
    DistillationArguments,
    LinearPool,
    MultiTeacherDistillationTrainer,
    Teacher,
)
from hf_distill.errors import ConfigurationError
from hf_distill.fusion import StochasticTeacher
from hf_distill.teachers.cache.build import TeacherCache
from hf_distill.teachers.states import Wanted
from hf_distill.training.hidden import HiddenLoss, StudentWithProjections


class Gradients(TrainerCallback):
    """The gradients before the first update."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.seen:
            self.seen = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}


HIDDEN = [
    HiddenLoss(),
    HiddenLoss("hidden_cosine", units="mean"),
    HiddenLoss("minilm_relations", relation_heads=2, teachers=["bert"]),
]
POINTS, STEPS = (1, 3, 4, 6, 8, 11), 12


def resumable(folder: Path, output: str, checkpoints: dict[str, str]) -> MultiTeacherDistillationTrainer:
    """A run with dropout, accumulation, two teachers and projections, that saves every step."""
    rows = datasets.load_from_disk(str(folder / "rows"))
    args = DistillationArguments(
        output_dir=str(folder / output),
        use_cpu=True,
        disable_tqdm=True,
        save_steps=1,
        logging_steps=1,
        dataloader_pin_memory=False,
        max_steps=STEPS,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    return MultiTeacherDistillationTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(checkpoints["student"], dropout=0.2),
        teachers=[Teacher.from_pretrained(checkpoints[name]) for name in ("bert", "roberta")],
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(checkpoints["student"]),
        label_names=["negative", "positive"],
        fusion="linear_pool",
        hidden_losses=HIDDEN[:2],
    )


def resumed(folder: Path, checkpoints: dict[str, str]) -> dict[str, object]:
    """From which points a resumed run is the uninterrupted one to the bit, and what another world size is told."""
    gc.collect()
    gc.freeze()  # what is there now; every training collects garbage
    whole = resumable(folder, "whole", checkpoints)
    groups = torch.distributed.distributed_c10d._world.pg_map
    before = len(groups)
    whole.train()
    left = len(groups) - before
    if torch.distributed.get_rank() == 0:  # one checkpoint that nobody knows the run of
        (folder / "whole" / f"checkpoint-{POINTS[-1]}" / "run_state.json").unlink()
    again = resumable(folder, "again", checkpoints)
    equal = []
    for point in POINTS:
        again.train(
            resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{point}"),
            unverified=point == POINTS[-1],
        )
        curves = [
            [
                {k: v for k, v in log.items() if "loss" in k and k != "train_loss"}
                for log in run.state.log_history
            ]
            for run in (whole, again)
        ]
        weights = [run.model.state_dict() for run in (whole, again)]
        equal.append(
            curves[0] == curves[1]
            and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        )
    state = folder / "whole" / "checkpoint-4" / "run_state.json"
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        state.write_text(json.dumps({**json.loads(state.read_text()), "world_size": 4}))
    torch.distributed.barrier()
    try:
        again.train(resume_from_checkpoint=str(state.parent), unverified=True)
        refused = ""
    except ConfigurationError as error:
        refused = str(error)
    return {"equal": equal, "refused": refused, "groups_left": left}


def sharded(folder: Path, checkpoints: dict[str, str]) -> dict[str, object]:
    """Gradients of student and projections, sharded over the processes and whole."""
    wanted = (Wanted(1, "mean"), Wanted(1, "tokens"))
    found = []
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["student"])
    inputs = tokenizer(["a good film", "the plot was dull"], padding=True, return_tensors="pt")
    for shard in (False, True):
        student = AutoModelForSequenceClassification.from_pretrained(checkpoints["student"]).eval()
        model = StudentWithProjections(student, wanted, {"a": (wanted[0], 8), "b": (wanted[1], 4)})
        if shard:
            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
            for layer in student.distilbert.transformer.layer:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        outputs, states = model(**{key: inputs[key] for key in ("input_ids", "attention_mask")})
        (outputs.logits.sum() + states["a"].square().mean() + states["b"].square().mean()).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        found.append({n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()})
    whole, shards = found
    return {
        "names": sorted(name for name in shards if name.startswith("projections.")),
        "difference": max((whole[name] - shards[name]).abs().max().item() for name in whole),
    }


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
        results[f"hidden {batch}x{accumulation}"] = run(
            folder, checkpoints, batch, accumulation, hidden_losses=HIDDEN
        )
    if torch.distributed.is_initialized():
        for name, fusion in (
            ("drawn", StochasticTeacher((0.5, 0.25, 0.25))),
            ("unheard", LinearPool((0.5, 0.5, 0.0))),
        ):
            losses = [
                HiddenLoss(),
                HiddenLoss("hidden_cosine", projection="shared", teachers=["bert", "deberta"]),
            ]
            results[name] = run(folder, checkpoints, 2, 2, hidden_losses=losses, fusion=fusion)
        results["resumed"] = resumed(folder, checkpoints)
        results["sharded"] = sharded(folder, checkpoints)
    settings = CacheSettings(dtype="float32", shard_rows=4)
    options = {"cache_dir": folder / "cache", "cache_settings": settings}
    results["cached"] = run(
        folder, checkpoints, *json.loads((folder / "shapes.json").read_text())[0], **options
    )
    shares = TeacherCache([checkpoints["bert"], checkpoints["deberta"]], folder / "shares", settings)
    results["computed"] = shares.add(datasets.load_from_disk(str(folder / "rows")), ("text",))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        if rank == 0:
            next((folder / "shares").rglob("*.logits.npy")).write_bytes(b"half a shard")
        torch.distributed.barrier()
        again = TeacherCache([checkpoints["bert"], checkpoints["deberta"]], folder / "shares", settings)
        results["mended"] = again.add(datasets.load_from_disk(str(folder / "rows")), ("text",))
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
