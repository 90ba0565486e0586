"""What a recipe means: each object is made once, when it is first asked for."""

from __future__ import annotations

import pytest

import hf_distill.recipe.setup as module
from hf_distill.fusion import AutoFusion, LinearPool
from hf_distill.recipe import Recipe, Setup
from hf_distill.recipe.sections import Losses


@pytest.fixture
def setup(tmp_path, checkpoints, rows) -> Setup:
    """Of a recipe whose rows are a file."""
    rows.to_json(tmp_path / "rows.jsonl")
    file = str(tmp_path / "rows.jsonl")
    return Setup(
        Recipe(
            data={"files": {"train": file, "validation": file}, "label_names": ["negative", "positive"]},
            teachers={"models": [checkpoints["bert"], checkpoints["roberta"]]},
            student={"model": checkpoints["student"]},
            fusion="auto",
            training={"output_dir": str(tmp_path / "out"), "use_cpu": True, "seed": 3},
        )
    )


def test_what_is_asked_for_twice_is_made_once(setup, monkeypatch):
    loaded, load = [], module.load_data
    monkeypatch.setattr(module, "load_data", lambda recipe: loaded.append(recipe) or load(recipe))
    assert setup.folder.name == "out" and loaded == []
    other = setup.varied(losses=Losses(task_weight=1.0, distill_weight=0.0))
    assert setup.rows is setup.rows and setup.arguments is setup.arguments and setup.fusion is setup.fusion
    assert len(loaded) == 1
    assert setup.varied(training={**setup.recipe.training, "seed": 4}).rows is setup.rows
    assert setup.arguments.seed == 3 and len(loaded) == 1
    assert other.arguments.distill_weight == 0 and setup.arguments.distill_weight == 0.5


def test_rows_that_are_given_are_not_loaded(setup, rows, monkeypatch):
    monkeypatch.setattr(module, "load_data", lambda recipe: pytest.fail("they are given"))
    given = Setup(setup.recipe, {"train": rows})
    assert given.varied(search=None).rows["train"] is rows and given.split is None
    assert given.label_names == ("negative", "positive")


def test_nothing_is_fitted_on_the_rows_of_the_report(setup):
    assert setup.split == "validation" and setup.fits and setup.fusion == AutoFusion()
    assert setup.target_fusion.fusion == LinearPool() and "validation rows" in setup.target_fusion.reason
    none = setup.recipe.evaluation.model_copy(update={"split": "none"})
    assert setup.varied(evaluation=none).target_fusion == AutoFusion()
    plain = setup.varied(fusion={"use": "linear_pool", "weights": [1, 3]})
    assert not plain.fits and plain.target_fusion is plain.fusion
