"""Born-again distillation: the students of one generation are the teachers of the next.

    python recipes/born_again.py recipes/local_trec6.yaml --generations 3
    python recipes/born_again.py recipes/local_trec6.yaml --generations 2 --students 3 training.num_train_epochs=4

The first generation learns from the teachers of the recipe. Each student lies in a folder of its own,
runs/NAME-born-again/generation-2/student-1 (or under training.output_dir), with its report. With several students a
generation, their seeds differ, and the next one learns from their linear pool.

Furlanello et al.: Born-Again Neural Networks, ICML 2018, arXiv:1805.04770.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_distill.recipe import Recipe, Setup, load_recipe

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recipe", type=Path)
parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="as for hf-distill train")
parser.add_argument("--generations", type=int, default=3)
parser.add_argument("--students", type=int, default=1, help="of each generation")
options = parser.parse_intermixed_args()

given = load_recipe(options.recipe, options.overrides)
named = any(override.startswith("training.output_dir=") for override in options.overrides)
root = Path(given.training["output_dir"] if named else f"runs/{options.recipe.stem}-born-again")


def recipe_of(generation: int, student: int) -> Recipe:
    changes = {
        "training.output_dir": str(root / f"generation-{generation}" / f"student-{student}"),
        "training.seed": given.training.get("seed", 42) + student - 1,
    }
    if generation > 1:
        parents = [
            root / f"generation-{generation - 1}" / f"student-{i + 1}" for i in range(options.students)
        ]
        length = given.student.max_length
        changes["teachers.models"] = [{"model": str(parent), "max_length": length} for parent in parents]
        changes["fusion"] = "linear_pool"
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load_recipe(options.recipe, [*options.overrides, *overrides], check_files=False)


students = [(g + 1, s + 1) for g in range(options.generations) for s in range(options.students)]
recipes = {place: recipe_of(*place) for place in students}  # all are checked before the first is trained
first = Setup(given)
split = first.split
for (generation, student), recipe in recipes.items():
    setup = Setup(recipe, first.rows)
    trainer = setup.trainer()
    baseline = setup.baseline(trainer.student_labels)
    trainer.train()
    trainer.save_model()
    if split is not None:
        report = trainer.evaluate_ensemble(
            first.rows[split], baseline=baseline, metrics=recipe.evaluation.metrics, dataset_name=split
        )
        if trainer.is_world_process_zero():
            print(f"\nGeneration {generation}, student {student}\n\n{report}\n")
