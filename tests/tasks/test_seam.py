"""No module outside tasks/ asks which task or which family it is: found in the source, not in what runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hf_distill import TASKS
from hf_distill.tasks import FAMILIES, family_of, fits, known_family
from hf_distill.tasks.family import Family

PACKAGE = Path(__file__).parents[2] / "hf_distill"
NAMES = {*TASKS, *FAMILIES}


def branches(source: str) -> list[int]:
    """Lines where a name of a task or family is compared with, matched, or looked up in a table."""
    found = []
    for node in ast.walk(ast.parse(source)):
        asked: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            asked = [node]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Subscript):
            asked = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = (
                [one for one in node.args[:1] if isinstance(one, ast.Constant)]
                if node.func.attr in ("startswith", "endswith", "get", "__eq__")
                else []
            )
        elif isinstance(node, ast.Dict):  # a table by task is a branch too, written sideways
            asked = [key for key in node.keys if key is not None]
        inside = [part for one in asked for part in ast.walk(one)]
        named = any(isinstance(part, ast.Constant) and part.value in NAMES for part in inside)
        kept = isinstance(node, ast.Compare) and any(
            isinstance(part, ast.Attribute)
            and (
                part.attr == "family"
                or ast.unparse(part) in ("task.name", "self.task.name", "family.name", "self.family.name")
            )
            for part in inside
        )
        if (named or kept) and "init_lora_weights" not in ast.unparse(node):  # a word of peft's own
            found.append(node.lineno)
    return sorted(set(found))


@pytest.mark.parametrize(
    "source",
    [
        'if task == "regression": pass',
        "x = 1 if task.name != other else 2",
        'y = task.family in ("bernoulli",)',
        'match family.name:\n    case "gaussian": pass',
        'z = {"regression": 1, "text-classification": 2}[name]',
        'w = name.startswith("multi-label-classification")',
    ],
)
def test_a_branch_is_seen(source):
    assert branches(source)


def test_nobody_outside_asks_which_task_it_is():
    asked = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE)
        if where.parts[0] != "tasks" and (lines := branches(file.read_text(encoding="utf-8"))):
            asked[str(where)] = lines
    assert not asked


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_says_all_that_is_asked_of_one(name):
    from hf_distill.evaluation.metrics import METRICS
    from hf_distill.fusion import ALL_FUSIONS
    from hf_distill.losses import ALL_LOSSES
    from hf_distill.losses.properties import distillation_properties

    task, family = TASKS[name], family_of(name)
    assert task.name == name and known_family(name) is family
    assert distillation_properties(ALL_LOSSES[task.loss]).family == family.name
    assert getattr(ALL_FUSIONS[task.fusion], "family", "categorical") == family.name
    for metric in (*task.metrics, *family.always, *family.compared, family.searched):
        assert metric in METRICS and fits(METRICS[metric], family), metric
    assert family.chosen_by[0] in (*task.metrics, *family.always)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_has_every_method_of_the_seam(family):
    promised = {n for n in vars(Family) if not n.startswith("_")} | set(Family.__annotations__)
    assert promised <= set(dir(family))
