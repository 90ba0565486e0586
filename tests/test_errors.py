"""No message shows a token of the Hub, wherever somebody has written it."""

from __future__ import annotations

import json
import pickle

import pytest
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, PushError, hide_tokens

TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"
RECIPE = {
    "data": {"dataset": "org/data"},
    "teachers": {"models": ["org/a", "org/b"]},
    "student": {"model": "org/small"},
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"found {TOKEN!r}", "found 'hf_…'"),
        (f"https://user:{TOKEN}@huggingface.co/{TOKEN}/x", "https://user:hf_…@huggingface.co/hf_…/x"),
        ("hub.token=hf_1234aBcD.", "hub.token=hf_…."),
        ("hf_abcdefGh...wxyz, the token hf_Abcdefgh", "hf_…...wxyz, the token hf_…"),
        ("hf-distill push hf_experiments me/small", "hf-distill push hf_experiments me/small"),
        ("hf-distill push hf_run20240101 me/small", "hf-distill push hf_run20240101 me/small"),
        ("--resume: 'hf_sentimentclassifiersmall' is no", "--resume: 'hf_sentimentclassifiersmall' is no"),
        ("hf_distill", "hf_distill"),
        ("/data/hf_datasets2024/a.csv", "/data/hf_datasets2024/a.csv"),
        ("no folder runs/hf_checkpoints", "no folder runs/hf_checkpoints"),
        ("hf_experiments.yaml: data", "hf_experiments.yaml: data"),
        ("hf_checkpoints/a and hf_checkpoints_b", "hf_checkpoints/a and hf_checkpoints_b"),
    ],
)
def test_what_looks_like_a_token_is_hidden_and_paths_are_not(text, shown):
    assert hide_tokens(text) == shown
    assert str(pickle.loads(pickle.dumps(PushError(text)))) == shown


@pytest.mark.parametrize(
    "override",
    [
        f"hub.token={TOKEN}",
        f"hub.push={TOKEN}",
        f"hub.{TOKEN}=1",
        f"training.token={TOKEN}",
        f"training.hub_token={TOKEN}",
        f"training.push_to_hub={TOKEN}",
        f"training.push_to_hub_token={TOKEN}",
        f"training.optim={TOKEN}",
        f"training.logging_steps=[{TOKEN}]",
        f"training.learning_rate={{a: {{b: [{TOKEN}]}}}}",
        f"teachers.models.0.name=[{'x' * 30}{TOKEN}{'y' * 30}]",
        f"teachers.models.0.token={TOKEN}",
        f"teachers.models.{TOKEN}.name=1",
        f"losses.distill={TOKEN}",
        f"fusion={{use: linear_pool, {TOKEN}: 1}}",
        f"task={TOKEN}",
        f"data=!!float {TOKEN}",
        f"hub.repo={TOKEN}: {TOKEN}: x",
        f"data.files.train={TOKEN}",
        f"search.metric={TOKEN}",
        TOKEN,
    ],
)
def test_a_token_in_a_recipe_is_not_repeated(override, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(RECIPE))
    done = CliRunner().invoke(app, ["validate", str(path), override])
    assert done.exit_code == 2, done.output
    shown = done.stdout + done.stderr
    assert "hf_…" in shown or "hub_token" in override
    assert not any(part in shown for part in (TOKEN[3:12], TOKEN[12:22], TOKEN[-8:]))


def test_neither_is_one_that_stands_in_the_file_or_for_it(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({**RECIPE, "hub": {"token": TOKEN}, TOKEN: 1}))
    for recipe in (path, TOKEN):
        done = CliRunner().invoke(app, ["train", str(recipe)])
        assert done.exit_code == 2 and "hf_…" in done.stderr
        assert TOKEN[3:12] not in done.stdout + done.stderr


def test_an_error_keeps_its_class_and_its_message():
    error = ConfigurationError("one line\nanother")
    assert (str(error), error.exit_code, isinstance(error, ValueError)) == ("one line\nanother", 2, True)
