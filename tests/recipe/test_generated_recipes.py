"""Recipes that are generated: one loads, or every fault of it is a line with its path; nothing is made before that."""

import copy
import json

import pytest
from generators import cases
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.errors import ConfigurationError
from hf_distill.recipe import load_recipe
from hf_distill.recipe.training_section import training_keys

GOOD = {
    "task": "text-classification",
    "data": {"dataset": "org/data"},
    "teachers": {"models": ["org/a", {"model": "org/b", "name": "b"}]},
    "student": {"config": {"model_type": "distilbert", "n_layers": 2, "dim": 24, "n_heads": 2}, "tokenizer": "org/a"},
    "fusion": {"use": "linear_pool", "weights": [1, 2]},
    "losses": {"temperature": 2, "distill_weight": 0.5, "hidden": ["hidden_mse"]},
    "training": {"output_dir": "out", "seed": 3, "max_steps": 5, "use_cpu": True},
    "evaluation": {"metrics": ["accuracy"], "seeds": 2},
    "search": {"temperature": [1, 4]},
}  # fmt: skip

numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([10**11, 10**30, -(10**30), 2**31, 2**63]), st.floats()
)
anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), numbers, st.text(max_size=5), st.sampled_from(["auto", "no", "1e-3"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abuse_:", max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(content, path=()):
    """Every key of a recipe and every item of its lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()  # fmt: skip
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(content, path, value):
    made = copy.deepcopy(content)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def refusal(folder, content):
    """What loading a recipe says; None where it loads. Anything but our own error is a fault of ours."""
    file = folder / "r.yaml"
    file.write_text(json.dumps(content))  # JSON is YAML, NaN and Infinity excepted, which are words then
    try:
        load_recipe(file)
    except ConfigurationError as error:
        return str(error)
    return None


def test_the_recipe_that_is_changed_is_right(tmp_path):
    assert refusal(tmp_path, GOOD) is None


@cases(120)
@given(path=st.sampled_from(list(places(GOOD))), value=anything)
def test_one_thing_changed_to_anything(tmp_path_factory, path, value):
    folder = tmp_path_factory.getbasetemp()
    said = refusal(folder, changed(GOOD, path, value))
    for line in (said or "").splitlines():
        assert line.startswith(("r.yaml", str(folder))) or "." in line.partition(":")[0] or ":" in line, said
    if said is not None:
        assert path[0] in said, (path, value, said)


@cases(120)
@given(key=st.sampled_from(sorted(training_keys())), value=anything)
def test_any_argument_of_a_training_is_anything(tmp_path_factory, key, value):
    if key == "output_dir":
        return
    refusal(tmp_path_factory.getbasetemp(), changed(GOOD, ("training", key), value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.seed", 10**30, "training.seed: expected a number of at most 4294967295, found 1000000"),
        ("training.seed", -1, "training.seed: expected a number of at least 0, found -1"),
        ("training.data_seed", 10**30, "training.data_seed: expected a number of at most 4294967295"),
        ("training.max_steps", 10**30, "training.max_steps: expected a number of at most 2147483647"),
        ("training.num_train_epochs", 1e300, "training.num_train_epochs: expected a number of at most 2147483647"),
        ("training.per_device_train_batch_size", 10**30, "training.per_device_train_batch_size: expected a number of at"),
        ("training.gradient_accumulation_steps", 0, "training.gradient_accumulation_steps: expected a number of at least 1"),
        ("training.save_steps", 10**30, "training.save_steps: expected a number of at most 2147483647"),
        ("student.config.n_layers", 0, "student.config.n_layers: expected a whole number from 1, found 0"),
        ("student.config.dim", 10**11, "student.config.dim: expected at most 100,000,000, found 100000000000"),
        ("student.config.dim", -24, "student.config.dim: expected a whole number from 1, found -24"),
        ("student.config.vocab_size", 10**30, "student.config.vocab_size: expected at most 100,000,000"),
        ("student.config.n_heads", 0, "student.config.n_heads: expected a whole number from 1, found 0"),
        ("evaluation.seeds", 10**30, "evaluation.seeds: expected"),
        ("evaluation.batch_size", 10**30, "evaluation.batch_size: expected"),
        ("student.max_length", 10**30, "student.max_length: expected"),
        ("losses.temperature", 10**400, "losses.temperature: expected"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_a_line_before_anything_begins(tmp_path, path, value, said, monkeypatch):
    """The data, teachers and tokenizer named do not exist: nothing was looked for."""
    monkeypatch.chdir(tmp_path)
    content = GOOD
    content = changed(content, path.split("."), value)
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(content))
    for command in ("validate", "train"):
        done = CliRunner().invoke(app, [command, str(file)])
        assert done.exit_code == 2, (command, done.output)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and said in lines[0], (command, done.output)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_the_seed_of_a_last_training_is_a_seed_too(tmp_path):
    """A verdict counts up from the first."""
    said = refusal(
        tmp_path, changed(changed(GOOD, ("training", "seed"), 2**32 - 1), ("evaluation", "seeds"), 2)
    )
    assert said is not None and "seed" in said
