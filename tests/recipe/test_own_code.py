"""Code that a file names: imported where its user runs his own recipe, or says so; never by looking, never from what is stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hf_distill import LinearPool
from hf_distill.cli import app
from hf_distill.errors import CorruptStateError, UnsafeFileError
from hf_distill.fusion import FusionChoice
from hf_distill.recipe import Setup, load_recipe, look_at_recipe
from hf_distill.recipe.own_code import own_code
from hf_distill.runs.verdict.judgement import Verdict
from hf_distill.teachers.held_out import load_choice, save_choice

MODULE = """
from pathlib import Path
from hf_distill import LinearPool
Path("RAN").touch()

class Mean(LinearPool):
    pass

def loss(*args, **options):
    return None

def schedule(progress):
    return 0.5
"""

# Every place of a recipe that names code.
PLACES = [
    {"task": "strange:Own"},
    {"fusion": "strange:Mean"},
    {"fusion": {"use": "strange:Mean", "weights": [1, 1]}},
    {"fusion": {"use": "subprocess:Popen", "args": ["touch", "RAN"]}},
    {"fusion": {"use": "hf_distill.files:write_text", "path": "RAN", "text": ""}},
    {"losses": {"distill": "strange:loss"}},
    {"losses": {"row_weight": {"use": "strange:loss", "x": 1}}},
    {"losses": {"temperature": {"use": "strange:schedule"}}},
    {"losses": {"task_weight": {"use": "strange:schedule"}}},
    {"losses": {"distill_weight": {"use": "strange:schedule"}}},
    {"losses": {"label_share": {"use": "strange:schedule"}}},
    {"losses": {"hidden": ["hidden_mse", "strange:loss"]}},
    {"losses": {"hidden": [{"loss": "strange:loss", "weight": 2}]}},
    {"search": {"fusion": ["linear_pool", {"use": "strange:Mean"}]}},
    {"evaluation": {"metrics": ["accuracy", "strange:Mean"]}},
    {"evaluation": {"metrics": ["./strange.py"]}},
    {"student": {"config": {"model_type": "bert", "attn_implementation": "org/kernel"}, "tokenizer": "org/a"}},
    {"teachers": {"models": ["org/b", {"model": "org/a", "trust_remote_code": True}]}},
]  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("strange.py").write_text(MODULE)
    Path("d.jsonl").write_text('{"text": "a", "label": "x"}\n')
    yield lambda path="r.yaml", **sections: _written(path, sections)
    sys.modules.pop("strange", None)


def _written(path: str, sections) -> str:
    recipe = {
        "data": {"files": {"train": "d.jsonl"}, "label_names": ["x", "y"]},
        "teachers": {"models": ["org/a", "org/b"]},
        "student": {"model": "org/s"},
        "training": {"use_cpu": True},
    } | sections
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_looking_runs_nothing_and_lists_it(write, place):
    path = write(**place)
    looked = look_at_recipe(path)
    done = CliRunner().invoke(app, ["validate", path])
    assert done.exit_code == 0, done.output
    assert len(looked.unchecked) == 1
    for where, name in looked.unchecked:
        assert f"unchecked   {where}: {name} is not built in" in done.stdout
    assert not Path("RAN").exists() and "strange" not in sys.modules


def test_looking_runs_no_code_of_a_models_folder(write):
    """The labels are the student's own, whose config is code of its folder."""
    Path("small").mkdir()
    Path("small/config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}, "id2label": {"0": "x", "1": "y"}})
    )  # fmt: skip
    Path("small/code.py").write_text("open('RAN', 'w')\n")
    path = write(
        student={"model": "./small", "trust_remote_code": True}, data={"files": {"train": "d.jsonl"}}
    )
    done = CliRunner().invoke(app, ["validate", path])
    assert done.exit_code == 0, done.output
    assert "student.trust_remote_code: ./small is not built in" in done.stdout and not Path("RAN").exists()


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_stored_recipe_is_refused(write, place):
    path = write("run/recipe.yaml", **place)
    Path("run/fusion.json").write_text("{}")
    (_, name) = own_code(yaml.safe_load(Path(path).read_text()))[0]
    with pytest.raises(UnsafeFileError, match="nothing was imported") as refused:
        load_recipe(path)
    assert f"--trust {name}" in str(refused.value)
    for command in ("train", "cache", "evaluate", "audit", "search"):
        done = CliRunner().invoke(app, [command, path])
        assert done.exit_code == 4 and name in done.stderr
    assert not Path("RAN").exists() and "strange" not in sys.modules


def test_a_recipe_that_a_run_wrote_is_known_wherever_it_lies(write):
    path = write(fusion="strange:Mean")
    Path(path).write_text("# Written by hf_distill 0.1: what this run used\n" + Path(path).read_text())
    with pytest.raises(UnsafeFileError):
        load_recipe(path)
    assert load_recipe(path, trust=["strange:Mean"]).fusion == "strange:Mean"
    with pytest.raises(UnsafeFileError):
        load_recipe(path, ["losses.temperature=3"], trust=["strange"])
    assert load_recipe(path, ["fusion=linear_pool"]).fusion == "linear_pool"


def test_what_is_trusted_is_checked(write):
    path = write(fusion={"use": "strange:Mean", "weigths": [1, 1]})
    assert CliRunner().invoke(app, ["validate", path]).exit_code == 0
    done = CliRunner().invoke(app, ["validate", path, "--trust", "strange:Mean"])
    assert done.exit_code == 2 and "did you mean 'weights'" in done.stderr
    assert Path("RAN").exists()


def test_a_users_own_recipe_runs_what_it_names(write):
    setup = Setup(load_recipe(write(fusion="strange:Mean")), trust=frozenset({"strange:loss"}))
    assert type(setup.fusion).__name__ == "Mean"
    assert (
        setup.trusted
        == {"strange:Mean", "strange:loss"}
        == setup.varied(fusion="auto").trust | {"strange:Mean"}
    )


def test_the_processes_of_a_verdict_are_told_what_is_trusted(write):
    setup = Setup(load_recipe(write(fusion="strange:Mean")), trust=frozenset({"strange:loss"}))

    class Run:
        args = type("Args", (), {"n_gpu": 0})

    own = type("Rows", (), {"facts": {"steps": 4}})
    job = Verdict(setup, "key")._job(Run, own, "baseline", 42)
    assert job.arguments[-4:] == ("--trust", "strange:Mean", "--trust", "strange:loss")


@pytest.mark.parametrize(
    "fusion",
    [
        {"use": "subprocess:Popen", "args": ["touch", "RAN"]},
        "strange:Mean",
        {"use": "strange:Mean", "fit": True},
        {"use": "hf_distill.files:write_text", "path": "RAN", "text": ""},
        {"use": "hf_distill:lookup.importlib.import_module", "name": "strange"},
    ],
    ids=str,
)
def test_a_stored_fusion_names_built_ins(write, tmp_path, fusion):
    save_choice(FusionChoice(LinearPool(), ""), tmp_path, ["a"])
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fusion": fusion}))
    with pytest.raises(UnsafeFileError, match="nothing was imported"):
        load_choice(tmp_path)
    assert not Path("RAN").exists() and "strange" not in sys.modules


def test_a_stored_fusion_of_ones_own_is_read_where_it_is_trusted(write, tmp_path):
    save_choice(FusionChoice(LinearPool((1.0, 3.0)), "", (), torch.tensor([3])), tmp_path, ["a"])
    assert load_choice(tmp_path).fusion == LinearPool((1.0, 3.0))
    path = tmp_path / "fusion.json"
    path.write_text(path.read_text().replace('"linear_pool"', '"strange:Mean"'))
    assert type(load_choice(tmp_path, trust=["strange:Mean"]).fusion).__name__ == "Mean"


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", "{", "[" * 100_000, '{"fusion": 3}', '{"fusion": {"use": []}}']
)
def test_garbage_is_a_sentence(tmp_path, text):
    (tmp_path / "fusion.json").write_text(text)
    with pytest.raises(CorruptStateError, match="does not hold the fusion of a run"):
        load_choice(tmp_path)


def test_arguments_show_no_token(tmp_path):
    from hf_distill import DistillationArguments

    args = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, hub_token="hf_abcdefghijklmnop")
    assert "abcdefghij" not in repr(args) + str(args)


def test_importing_trust_needs_no_heavy_package():
    code = "import sys, hf_distill.lookup; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
