"""Pruning and a short distillation after it: how small can the student of a recipe get, and at which price?

    python recipes/prune.py recipes/local_trec6.yaml --sparsity 0.5
    python recipes/prune.py recipes/local_trec6.yaml --heads 0.5 --epochs 2 training.learning_rate=2e-4

Takes the student of the recipe's output folder, or trains it there first, sets to zero the smallest weights (--sparsity)
or the least important attention heads (--heads), and lets it learn on from the same teachers, zeros staying zero. Learning
longer changes a student too, so the unpruned one learns on for as long, from the same start: what pruning costs is the
difference between these two. The pruned student and report.md, with all of them in one table, lie in runs/NAME-pruned, or
under --output, the other one in its folder `unpruned`; neither is pushed to the Hub. Overrides are those of hf-distill train
and count for all trainings; --epochs for the later two.

Han et al.: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, arXiv:1506.02626.
Michel et al.: Are Sixteen Heads Really Better than One?, NeurIPS 2019, arXiv:1905.10650.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

from hf_distill import MultiTeacherDistillationTrainer
from hf_distill.recipe import Setup, load_recipe
from hf_distill.students.pruning import head_masks, magnitude_masks
from hf_distill.training.pruned import KeepPruned, Stage, head_importance, pruning_report

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recipe", type=Path)
parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="as for hf-distill train")
how = parser.add_mutually_exclusive_group(required=True)
how.add_argument("--sparsity", type=float, help="share of the weights of linear layers")
how.add_argument("--heads", type=float, help="share of the attention heads")
parser.add_argument("--epochs", type=float, default=3, help="of the distillation after pruning")
parser.add_argument("--output", type=Path)
options = parser.parse_intermixed_args()

given = load_recipe(options.recipe, options.overrides)
dense = Path(given.training["output_dir"])
root = options.output or Path(f"runs/{options.recipe.stem}-pruned")
setup = Setup(given)
rows, split = setup.rows, setup.split
if split is None:
    parser.error("evaluation.split is none, so there are no rows to compare on")
if not (dense / "config.json").is_file():
    first = setup.trainer()
    first.train()
    first.save_model()


def learning_on(folder: Path) -> MultiTeacherDistillationTrainer:
    """What distils the trained student again, into another folder."""
    changes = {
        "student": {"model": str(dense), "max_length": given.student.max_length},
        "training.output_dir": str(folder),
        "training.num_train_epochs": options.epochs,
        "training.push_to_hub": False,
    }
    overrides = [*options.overrides, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
    return Setup(load_recipe(options.recipe, overrides, check_files=False), rows).trainer()


def evaluated(trainer: MultiTeacherDistillationTrainer) -> Stage:
    """The student as it is now."""
    metrics = given.evaluation.metrics
    report = trainer.evaluate_ensemble(rows[split], metrics=metrics, dataset_name=split)
    return Stage(copy.deepcopy(trainer.student), report)


trainer = learning_on(root)
stages = {"unpruned": evaluated(trainer)}
if options.heads is not None:
    masks = head_masks(trainer.student, options.heads, head_importance(trainer))
else:
    masks = magnitude_masks(trainer.student, options.sparsity)
trainer.add_callback(KeepPruned(trainer.student, masks))
stages["pruned"] = evaluated(trainer)
trainer.train()
trainer.save_model()
stages["distilled again"] = evaluated(trainer)

control = learning_on(root / "unpruned")
control.train()
control.save_model()
stages["unpruned, distilled as long"] = evaluated(control)

if trainer.is_world_process_zero():
    note = (
        f"The last two students have learnt {options.epochs:g} epoch(s) longer than the first: what pruning costs is the "
        "difference between these two, what learning longer brings that between the last and the first."
    )
    text = pruning_report(stages, [note])
    (root / "report.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
