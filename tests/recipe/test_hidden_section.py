"""Hidden losses in a recipe: how they are written, checked, run and written back, and what they mean for the cache."""

from __future__ import annotations

import pytest

from hf_distill import load_recipe
from hf_distill.errors import ConfigurationError
from hf_distill.recipe.setup import Setup
from hf_distill.training.hidden import HiddenLoss

BASE = """
data: {{files: {{train: train.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{bert}, {roberta}], cache_dir: cache}}
student: {{model: {student}}}
fusion: linear_pool
training: {{output_dir: out, max_steps: 1, use_cpu: true, save_strategy: "no"}}
losses:
  hidden:
"""


@pytest.fixture
def write(tmp_path, monkeypatch, checkpoints, rows):
    """Writes a recipe whose hidden losses are given as YAML lines."""
    monkeypatch.chdir(tmp_path)
    rows.to_json("train.jsonl")

    def make(*lines, cache=True):
        path = tmp_path / "recipe.yaml"
        text = BASE.format(**checkpoints)
        text = text if cache else text.replace(", cache_dir: cache", "")
        path.write_text(text + "".join(f"    - {line}\n" for line in lines))
        return path

    return make


def test_a_loss_is_a_name_or_a_mapping_and_comes_back_as_it_was(write):
    recipe = load_recipe(
        write("linear_cka", "{loss: hidden_mse, layers: [[1, 2]], units: mean, weight: 2, teachers: [bert]}"),
        ["losses.hidden.0.weight=0.5"],
    )
    expected = [
        HiddenLoss("linear_cka", weight=0.5),
        HiddenLoss("hidden_mse", layers=[(1, 2)], units="mean", weight=2.0, teachers=["bert"]),
    ]
    assert Setup(recipe).hidden_losses == expected
    trainer = Setup(recipe).trainer()
    assert trainer.hidden.losses == tuple(expected)
    assert Setup(load_recipe("out/recipe.yaml", [])).hidden_losses == expected


def test_all_that_is_wrong_is_said_at_once(write):
    lines = (
        "{loss: hidden_mes}", "{layers: unifrom}", "{loss: pkd, projection: shared}", "{units: token}", "{layer: last}",
        "{layers: [[1]]}", "{weight: 0}",
    )  # fmt: skip
    with pytest.raises(ConfigurationError) as error:
        load_recipe(write(*lines), [])
    for i in range(len(lines)):
        assert f"losses.hidden.{i}" in str(error.value), (i, str(error.value))


def test_the_cache_command_computes_what_the_training_needs(write, rows):
    recipe = load_recipe(write("{loss: hidden_mse, layers: [[1, 1]]}", "linear_cka"), [])
    cache = Setup(recipe, {"train": rows}).cache()
    assert cache.add(rows, ("text",)) == 2 * len(set(rows["text"][:]))
    assert [want.layer for want in cache.teachers[0].stored] == [1, 2]
    trainer = Setup(recipe).trainer()
    assert trainer._cache.add(rows, ("text",)) == 0
    assert [t.view.key for t in trainer.teachers] == [t.view.key for t in cache.teachers]
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss_linear_cka/roberta"] > 0
