"""Distillation in two stages: teachers → assistant of a size between → student.

    python recipes/teaching_assistant.py recipes/local_trec6.yaml --assistant student.config.n_layers=4 student.config.dim=256
    python recipes/teaching_assistant.py recipes/local_trec6.yaml --assistant student.config.n_layers=4 --with-teachers

The assistant is the recipe's student but for the values after --assistant; it learns from the teachers of the recipe.
The student then learns from the assistant alone, or with --with-teachers from all of them. They lie with their reports
in runs/NAME-assisted (or under training.output_dir), in the folders assistant and student.

Mirzadeh et al.: Improved Knowledge Distillation via Teacher Assistant, AAAI 2020, arXiv:1902.03393.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_distill.recipe import Recipe, Setup, load_recipe

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recipe", type=Path)
parser.add_argument(
    "overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="of both, as for hf-distill train"
)
parser.add_argument(
    "--assistant",
    nargs="+",
    required=True,
    metavar="SECTION.KEY=VALUE",
    help="how it differs from the student",
)
parser.add_argument("--with-teachers", action="store_true", help="the student learns from the teachers too")
options = parser.parse_intermixed_args()

given = load_recipe(options.recipe, options.overrides)
named = any(override.startswith("training.output_dir=") for override in options.overrides)
root = Path(given.training["output_dir"] if named else f"runs/{options.recipe.stem}-assisted")


def recipe_of(name: str, changes: list[str]) -> Recipe:
    overrides = [*options.overrides, *changes, f"training.output_dir={json.dumps(str(root / name))}"]
    return load_recipe(options.recipe, overrides, check_files=False)


assistant = recipe_of("assistant", options.assistant)
heard = [{"model": str(root / "assistant"), "max_length": assistant.student.max_length}]
if options.with_teachers:
    heard = [*(teacher.model_dump(exclude_none=True) for teacher in given.teachers.models), *heard]
changes = [f"teachers.models={json.dumps(heard)}", *([] if options.with_teachers else ["fusion=linear_pool"])]
recipes = {
    "assistant": assistant,
    "student": recipe_of("student", changes),
}  # both checked before any training
first = Setup(given)
split = first.split
for name, recipe in recipes.items():
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
            print(f"\nThe {name}\n\n{report}\n")
