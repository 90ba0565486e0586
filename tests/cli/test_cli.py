"""The command line: what it prints, where, with which exit code, and what lies in the folder afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitInfo
from typer.testing import CliRunner

import hf_distill
from hf_distill import MultiTeacherDistillationTrainer
from hf_distill.cli import app
from hf_distill.errors import PushError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(run, checkpoints, rows, held_out) -> str:
    """A recipe on tiny checkpoints and real files in the working directory."""
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")
    Path("tiny.yaml").write_text(f"""
data: {{files: {{train: train.jsonl, test: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
training:
  use_cpu: true
  max_steps: 4
  per_device_train_batch_size: 8
  learning_rate: 1e-3
  logging_steps: 1
  save_steps: 2
  disable_tqdm: true
evaluation: {{metrics: [accuracy, nll], verdict: false}}
""")
    return "tiny.yaml"


def test_help_and_version(run):
    shown = run("--help")
    assert shown.exit_code == 0
    for command in ("validate", "train", "evaluate", "demo"):
        assert command in shown.stdout
    assert run("--version").stdout == f"hf-distill {hf_distill.__version__}\n"
    assert "Usage" in run().output


def test_validate_prints_what_would_run(run, recipe, checkpoints):
    done = run("validate", recipe, "fusion={use: log_pool, weights: [1, 3]}", "teachers.models.1.name=second")
    assert done.exit_code == 0, done.output
    said = done.stdout.replace("\n" + " " * 12, " ")  # lines that were wrapped
    lines = {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in said.splitlines()}
    assert lines["data"] == "train.jsonl, test.jsonl"
    assert lines["columns"] == "text → label"
    assert lines["labels"] == "negative, positive"
    assert lines["teachers"] == f"{checkpoints['bert']} {checkpoints['roberta']} as second"
    assert lines["student"] == checkpoints["student"]
    assert lines["fusion"] == "log_pool(weights=[1, 3])"
    assert lines["losses"] == "0.5 x cross-entropy + 0.5 x forward_kl at temperature 2"
    assert "learning_rate=0.001" in lines["training"]
    assert lines["hub"] == "no push"
    assert done.stderr == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "push to me/mine"),
        (("hub.revision=v2",), "push to me/mine, branch v2"),
        (("hub.pull_request=true",), "push to me/mine, as a pull request"),
    ],
)
def test_validate_says_where_it_would_push(run, recipe, more, said):
    assert (
        f"hub         {said}\n" in run("validate", recipe, "hub.push=true", "hub.repo=me/mine", *more).stdout
    )


def test_validate_load_prints_how_labels_are_matched(run, recipe):
    done = run("validate", recipe, "--load")
    assert done.exit_code == 0, done.output
    assert "64 train, 33 test" in done.stdout
    assert "0 negative  0 'negative'  1 'NEGATIVE'" in done.stdout
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["validate", "train", "evaluate"])
def test_a_wrong_recipe_ends_with_2_and_all_its_lines(run, recipe, command):
    done = run(command, recipe, "losses.temperature=0", "training.learnin_rate=1e-4")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "command line: losses.temperature: expected a number above 0, found 0",
        "command line: training.learnin_rate: unknown key, found 0.0001 (did you mean 'learning_rate'?)",
    ]


def test_missing_data_ends_with_3(run, recipe, tmp_path):
    Path("train.jsonl").unlink()
    done = run("train", recipe)
    assert done.exit_code == 3
    assert done.stderr == f"tiny.yaml: data.files.train: there is no file {tmp_path}/train.jsonl\n"


def test_teachers_that_do_not_fit_end_with_3(run, recipe):
    done = run("train", recipe, "data.label_names=[cold, warm]")
    assert done.exit_code == 3
    assert "negative" in done.stderr
    assert "Traceback" not in done.output


def test_a_missing_recipe_ends_with_2(run):
    done = run("validate", "none.yaml")
    assert done.exit_code == 2
    assert done.stderr.startswith("none.yaml: the recipe cannot be read: no such file")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyError("a mistake of ours"), 1, "KeyError: 'a mistake of ours'. This was not foreseen; with --debug"),
        (OSError(28, "No space left on device", "/full/a"), 5, "/full/a cannot be written, since "),
        (ValueError("of a\n library"), 1, "ValueError: of a library. This was not foreseen"),
    ],
)  # fmt: skip
def test_an_error_of_others_is_a_line_and_with_debug_its_whole_traceback(
    run, recipe, monkeypatch, raised, code, said
):
    def broken(*arguments, **options):
        raise raised

    monkeypatch.setattr("hf_distill.recipe.look_at_recipe", broken)
    done = run("validate", recipe)
    assert done.exit_code == code
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1
    whole = run("validate", recipe, "--debug")
    assert whole.exit_code == code
    assert "Traceback (most recent call last)" in whole.stderr and "in broken" in whole.stderr


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_no_error_shows_a_token(run, recipe, monkeypatch, debug):
    token = "hf_" + "aB3" * 11 + "x"

    def broken(*arguments, **options):
        try:
            raise OSError(f"401 for url https://user:{token}@huggingface.co/me/x?token={token}")
        except OSError as error:
            raise RuntimeError(f"headers: {{'authorization': 'Bearer {token}'}}") from error

    monkeypatch.setattr("hf_distill.recipe.look_at_recipe", broken)
    done = run("validate", recipe, *debug)
    assert done.exit_code == 1 and "hf_…" in done.stderr and token not in done.output
    assert ("401 for url" in done.stderr) == bool(debug)  # the whole of it is there


@pytest.mark.parametrize("command", hf_distill.cli.COMMANDS)
def test_every_command_takes_debug(run, command):
    assert "--debug" in run(command.replace("_", "-"), "--help").stdout


def test_a_users_own_fusion_is_found_in_the_working_directory(run, recipe, monkeypatch):
    Path("my_own_fusion.py").write_text(
        "from dataclasses import dataclass\n"
        "from hf_distill import LinearPool\n\n"
        "@dataclass(frozen=True)\n"
        "class Trimmed(LinearPool):\n"
        "    trim: int = 0\n"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    done = run("validate", recipe, "fusion={use: 'my_own_fusion:Trimmed', trim: 1}")
    assert done.exit_code == 0, done.output
    assert "my_own_fusion:Trimmed(trim=1)" in done.stdout


def test_train_then_evaluate(run, recipe, bert_tokenizer):
    from transformers import pipeline

    done = run("train", recipe)
    assert done.exit_code == 0, (done.output, done.exception)
    folder = Path("runs/tiny")
    assert f"The report is in {folder / 'report.md'}" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert report["dataset"] == "test"
    assert report["rows"] == 33
    assert set(report["systems"]) == {
        "student",
        "ensemble",
        "student+teachers",
        "teacher:bert",
        "teacher:roberta",
    }
    assert set(report["systems"]["student"]["metrics"]) == {"accuracy", "nll"}
    assert "\nstudent  " in done.stdout
    for name in ("recipe.yaml", "model.safetensors", "tokenizer.json", "trainer_state.json", "report.md"):
        assert (folder / name).is_file(), name
    assert pipeline("text-classification", str(folder))("a good film")[0]["label"] in ("negative", "positive")

    # The same figures from the saved student, and from the recipe that the run wrote.
    again = run("evaluate", "runs/tiny/recipe.yaml")
    assert again.exit_code == 0, (again.output, again.exception)
    repeated = json.loads((folder / "report.json").read_text())
    assert repeated["systems"].keys() == report["systems"].keys()
    for name, system in report["systems"].items():
        assert repeated["systems"][name]["metrics"].keys() == system["metrics"].keys()
        for metric, value in system["metrics"].items():
            assert repeated["systems"][name]["metrics"][metric] == pytest.approx(value, abs=1e-6), (
                name,
                metric,
            )

    assert run("evaluate", recipe, "--split", "train").exit_code == 0
    on_train = json.loads((folder / "report.json").read_text())
    assert on_train["rows"] == 64
    assert any("trained on these rows" in note for note in on_train["notes"])


def test_evaluation_can_be_left_out_and_needs_a_student(run, recipe, tmp_path):
    assert run("evaluate", recipe).exit_code == 3
    assert f"There is no trained student in {tmp_path}/runs/tiny" in run("evaluate", recipe).stderr
    done = run("train", recipe, "evaluation.split=none", "training.max_steps=1")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "The student is saved in runs/tiny" in done.stdout
    assert not Path("runs/tiny/report.json").exists()
    assert run("evaluate", recipe, "evaluation.split=none").exit_code == 3
    assert (
        "command line: evaluation.split: expected one of" in run("evaluate", recipe, "--split", "dev").stderr
    )


def test_a_baseline_is_evaluated_too(run, recipe, checkpoints):
    done = run("train", recipe, "training.max_steps=1", f"evaluation.baseline={checkpoints['bert']}")
    assert done.exit_code == 0, (done.output, done.exception)
    systems = json.loads(Path("runs/tiny/report.json").read_text())["systems"]
    assert systems["baseline"]["metrics"] == systems["teacher:bert"]["metrics"]
    assert run("evaluate", recipe, f"evaluation.baseline={checkpoints['bert']}").exit_code == 0
    assert json.loads(Path("runs/tiny/report.json").read_text())["systems"].keys() == systems.keys()


def test_labels_in_another_order_are_refused_before_training(run, recipe, checkpoints):
    other = f"evaluation.baseline={checkpoints['roberta']}"  # answers positive first
    done = run("train", recipe, other)
    assert done.exit_code == 3
    assert "'POSITIVE', 'NEGATIVE'" in done.stderr
    assert not Path("runs/tiny/model.safetensors").exists()
    assert run("train", recipe, "training.max_steps=1", "evaluation.split=none").exit_code == 0
    assert run("evaluate", recipe, other).exit_code == 3
    assert run("evaluate", recipe, "data.label_names=[positive, negative]").exit_code == 3


def test_resume_continues(run, recipe):
    refused = run("train", recipe, "--resume")
    assert refused.exit_code == 2
    assert "there is no checkpoint in" in refused.stderr
    assert run("train", recipe, "evaluation.split=none").exit_code == 0
    whole = json.loads(Path("runs/tiny/trainer_state.json").read_text())["log_history"]
    for option in (["--resume"], ["--resume", "runs/tiny/checkpoint-2"], ["--resume=runs/tiny/checkpoint-2"]):
        if option == ["--resume"]:
            for file in Path("runs/tiny/checkpoint-4").iterdir():
                file.unlink()
            Path("runs/tiny/checkpoint-4").rmdir()
        # Other rows first: were the first steps taken again, their losses would differ.
        changed = ("train", *option, recipe, "evaluation.split=none", "training.data_seed=9")
        refused = run(*changed)
        assert (
            refused.exit_code == 2
            and "| seed.1 | " in refused.stderr
            and "--allow seed for" in refused.stderr
        )
        done = run(*changed, "--allow", "seed")
        assert done.exit_code == 0, (done.output, done.exception)
        resumed = json.loads(Path("runs/tiny/trainer_state.json").read_text())
        assert resumed["global_step"] == 4
        assert resumed["log_history"][:2] == whole[:2]
        assert resumed["log_history"][2:] != whole[2:]
    assert "is no checkpoint, it has no trainer_state.json" in run("train", recipe, "--resume", "runs").stderr
    # An override after the option is an override.
    refused = run("train", recipe, "--resume", "losses.temperature=0")
    assert refused.stderr == "command line: losses.temperature: expected a number above 0, found 0\n"


def test_a_signal_names_what_is_saved_and_the_command_that_goes_on(run, recipe, monkeypatch):
    def told(self, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **options)

    step = MultiTeacherDistillationTrainer.training_step
    monkeypatch.setattr(
        "sys.argv", ["hf-distill", "train", "tiny.yaml", "--resume", "runs", "evaluation.split=none"]
    )
    with monkeypatch.context() as patches:
        patches.setattr(MultiTeacherDistillationTrainer, "training_step", told)
        stopped = run("train", recipe, "evaluation.split=none")
    assert stopped.exit_code == 143, stopped.output
    saved = Path("runs/tiny/checkpoint-1")
    assert f"Stopped by SIGTERM after step 1 of 4: {saved} is saved. Go on with: " in stopped.stderr.replace(
        os.getcwd() + "/", ""
    )
    assert "hf-distill train tiny.yaml evaluation.split=none --resume\n" in stopped.stderr
    done = run("train", recipe, "evaluation.split=none", "--resume")
    assert done.exit_code == 0, done.output
    assert json.loads(Path("runs/tiny/trainer_state.json").read_text())["global_step"] == 4


def test_an_older_checkpoint_needs_its_name(run, recipe):
    assert run("train", recipe, "evaluation.split=none").exit_code == 0
    (Path("runs/tiny/checkpoint-2") / "checkpoint.json").unlink()
    refused = run("train", recipe, "evaluation.split=none", "--resume", "runs/tiny/checkpoint-2")
    assert refused.exit_code == 5 and "has no checkpoint.json" in refused.stderr
    assert run("train", recipe, "--resume", "--unverified").exit_code == 2
    named = ("--resume", "runs/tiny/checkpoint-2", "--unverified")
    assert run("train", recipe, "evaluation.split=none", *named).exit_code == 0


def test_a_push_that_cannot_be_is_said_before_training(run, recipe):
    done = run("train", recipe, "hub.push=true", "hub.repo=me/mine", "training.max_steps=1")
    assert done.exit_code == 2, (done.output, done.exception)
    assert "could not be pushed to me/mine, so nothing was trained: HF_HUB_OFFLINE is set" in done.stderr
    assert not Path("runs").exists()


def test_the_push_comes_last_so_that_the_report_is_pushed_too(run, recipe, monkeypatch):
    pushed = []

    def push(folder, repo, **options):
        pushed.append((repo, options["private"], sorted(os.listdir(folder))))
        if len(pushed) > 1:
            raise PushError("The push failed")
        return CommitInfo(commit_url="a/commit", commit_message="", commit_description="", oid="1")

    monkeypatch.setattr("hf_distill.runs.push.check_repository", lambda repo, **options: repo)
    monkeypatch.setattr("hf_distill.publishing.push.push_folder", push)
    more = ("hub.push=true", "hub.repo=me/mine", "hub.private=true", "training.max_steps=1")
    done = run("train", recipe, *more)
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stdout.endswith("The student is pushed to me/mine: a/commit\n")
    assert pushed[0][:2] == ("me/mine", True)
    assert {"README.md", "report.md", "report.json", "recipe.yaml", "model.safetensors"} <= set(pushed[0][2])
    done = run("train", recipe, *more, "training.seed=1", "--overwrite")
    assert done.exit_code == PushError.exit_code == 6 and "Traceback" not in done.output
    assert run("train", recipe, "training.max_steps=1", "--overwrite").exit_code == 0
    assert len(pushed) == 2


def test_demo_gets_its_folder(run, monkeypatch):
    import hf_distill.runs.demo.run

    asked = []
    monkeypatch.setattr(hf_distill.runs.demo.run, "run_demo", lambda output: asked.append(output))
    assert run("demo").exit_code == 0
    assert run("demo", "--output", "elsewhere").exit_code == 0
    assert asked == [Path("runs/demo"), Path("elsewhere")]


def launched(*arguments: str) -> tuple[int, str, str]:
    """`hf_distill …` in two processes; returns exit code, stdout and stderr."""
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # What each process says lies there, apart from the others.
    launcher += ["--log_dir", "said", "--tee", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, *launcher, "-m", "hf_distill", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            process.terminate()  # not kill: the launcher then ends its workers
            raise
    return process.returncode, output, errors


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_one_student(run, recipe):
    code, output, errors = launched("train", recipe, "training.per_device_train_batch_size=4")
    assert code == 0, errors[-3000:]
    assert output.count("The report is in runs/tiny/report.md") == 1
    # The head of the label plan, and the student's line of the table; the launcher says whose each line is.
    assert len(re.findall(r"^(?:\[default0\]:)?student  ", output, re.MULTILINE)) == 2
    together = json.loads(Path("runs/tiny/trainer_state.json").read_text())
    assert together["train_batch_size"] == 4
    assert json.loads(Path("runs/tiny/report.json").read_text())["rows"] == 33
    said = {path.stem: path.read_text() for path in Path("said").glob("*/*/1/*.log")}
    assert said["stdout"] == ""
    assert "it/s" not in said["stderr"]  # no bar of anybody's
    # Half the batch on each of two processes is the same training as all of it on one.
    assert run("train", recipe, "training.output_dir=alone").exit_code == 0
    alone = json.loads(Path("alone/trainer_state.json").read_text())
    for one, two in zip(alone["log_history"], together["log_history"], strict=True):
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_that_would_train_alone_are_refused(run, recipe):
    code, _, errors = launched("train", recipe, "training.use_cpu=false")
    assert code != 0
    assert errors.count("training.use_cpu: 2 processes were launched") == 1
    assert not Path("runs").exists()


def test_cache_is_built_once_listed_and_trained_from(run, recipe):
    """`cache` computes every output; a second call and the evaluation compute none; figures are those of live teachers."""
    there = ["teachers.cache_dir=cache", "teachers.cache_dtype=float32", "evaluation.seeds=1"]
    built = run("cache", recipe, *there)
    assert built.exit_code == 0, built.output
    assert "train: 64 rows; 128 outputs computed" in built.stdout
    again = run("cache", recipe, *there)
    assert "train: 64 rows; 0 outputs computed" in again.stdout and "test: 33 rows; 0 outputs" in again.stdout
    listed = run("cache", "--info", "cache")
    assert "bert (bert)" in listed.stdout and "float32" in listed.stdout and "0.0 h" in listed.stdout
    assert run("train", recipe, *there, "training.output_dir=cached").exit_code == 0
    assert run("train", recipe, "training.output_dir=live").exit_code == 0
    cached, live = (
        json.loads(Path(name, "report.json").read_text())["systems"] for name in ("cached", "live")
    )
    for name, system in live.items():
        assert cached[name]["metrics"] == pytest.approx(system["metrics"], rel=1e-4)
    assert run("evaluate", recipe, *there, "training.output_dir=cached").exit_code == 0


def test_a_signal_while_the_cache_is_built_keeps_what_was_finished(run, recipe, monkeypatch):
    from hf_distill.teachers.cache.store import Store

    write, shards = Store.write, []

    def told(self, *arguments):
        write(self, *arguments)
        shards.append(self.key)
        if len(shards) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Store, "write", told)
    monkeypatch.setattr("sys.argv", ["hf-distill", "cache", str(recipe), "teachers.cache_dir=cache"])
    stopped = run("cache", recipe, "teachers.cache_dir=cache")
    assert stopped.exit_code == 143 and len(stopped.stderr.strip().splitlines()[-1:]) == 1
    assert (
        "Stopped by SIGTERM: what was finished is kept, and the same command goes on from there"
        in stopped.stderr
    )
    assert f"hf-distill cache {recipe} teachers.cache_dir=cache" in stopped.stderr
    again = run("cache", recipe, "teachers.cache_dir=cache")
    assert again.exit_code == 0 and "train: 64 rows; 0 outputs computed" in again.stdout, again.output
    assert len(shards) == len(set(Path("cache").glob("*/*.ids.npy")))  # none was made twice


def test_cache_needs_a_recipe_or_a_folder(run, recipe):
    for arguments in (["cache"], ["cache", recipe, "--info", "x"], ["cache", recipe]):
        done = run(*arguments)
        assert done.exit_code == 2 and "cache" in done.stderr
    assert run("cache", "--info", "nothing").exit_code == 3
