"""What is typed wrong: each command answers with one sentence and its exit code, soon, and leaves the disk as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import CliRunner

from hf_distill import Teacher
from hf_distill.cli import app
from hf_distill.errors import DataError
from hf_distill.recipe import Setup, load_recipe
from hf_distill.runs.train import train_recipe
from hf_distill.students.loading import student_config
from hf_distill.teachers import hub_ids

RECIPE = """
data: {{files: {{train: train.jsonl, test: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{bert}]}}
student: {{model: {student}}}
fusion: linear_pool
training: {{use_cpu: true, max_steps: 1, disable_tqdm: true, save_strategy: "no", report_to: none, output_dir: runs/done}}
evaluation: {{verdict: false, split: none}}
"""
WRONG = {
    "list.yaml": ("- data\n- teachers\n", "list.yaml: a recipe is a mapping with the sections task, "),
    "word.yaml": ("hello\n", "word.yaml: a recipe is a mapping with the sections task, "),
    "nothing.yaml": ("", "nothing.yaml: a recipe is a mapping with the sections task, "),
    "comment.yaml": ("# later\n", "comment.yaml: a recipe is a mapping with the sections task, "),
    "tabs.yaml": ("data:\n\tdataset: a/b\n", "tabs.yaml: this is not YAML: line 2, column 1: "),
    "colons.yaml": ("data: a: b\n", "colons.yaml: this is not YAML: line 1, column 8: mapping values"),
    "two.yaml": ("data: 1\n---\ndata: 2\n", "two.yaml: this is not YAML: line 2, column 1: expected a single"),
    "twice.yaml": ("student: {model: a/b}\nstudent: {model: a/c}\n", "twice.yaml: student: the key stands twice, in lines 1 and 2"),
    "empty.yaml": ("data:\nteachers:\nstudent:\n", "empty.yaml: teachers.models: is missing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoints, rows, held_out):
    """A finished run, and beside it what is taken for one by mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, given in (("train", rows), ("test", held_out)):
            given.cast_column("label", datasets.Value("int64")).to_json(f"{name}.jsonl")
        for name in ("bert", "student"):
            shutil.copytree(checkpoints[name], f"models/{name}")
        Path("good.yaml").write_text(RECIPE.format(bert="models/bert", student="models/student"))
        train_recipe(Setup(load_recipe("good.yaml")))
        for name, (text, _) in WRONG.items():
            Path(name).write_text(text)
        Path("bytes.yaml").write_bytes(b"\x00\xff\xfe")
        Path("gone.yaml").symlink_to("nowhere.yaml")
        Path("file").write_text("x")
        Path("rows.xlsx").write_text("x")
        Path("none.csv").write_text("")
        Path("zeros.csv").write_bytes(b"\x00\x01" * 40)
        Path("empty").mkdir()
        for name in ("cut", "headless"):
            shutil.copytree("runs/done", name)
        weights = Path("cut/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-9])
        Path("headless/config.json").unlink()
    return folder


@pytest.fixture
def refused(folder, monkeypatch):
    """Runs a command that is refused: nothing but a sentence is said, and nothing is written."""
    monkeypatch.chdir(folder)

    def refused(*words: str, code: int) -> str:
        before = state(folder)
        done = CliRunner().invoke(app, list(words))
        assert (done.exit_code, done.exception.__class__) == (code, SystemExit), done.output
        assert state(folder) == before
        said = done.stderr.rstrip("\r\n").rpartition("\r")[2]
        said = said.partition("it/s]\n")[2] or said  # behind the bar of weights that were loaded
        assert "Traceback" not in said and "not foreseen" not in said and "--debug" not in said
        return said

    return refused


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


OF_RUNS = [
    ("predict", "--text", "a"),
    ("predict", "--text", "a", "--onnx"),
    ("predict", "--text", "a", "--with-teachers"),
    ("export",),
    ("export", "--format", "int8"),
    ("card",),
    ("push", "me/small"),
    ("push", "--dry-run"),
    ("compare",),
    ("compare", "runs/done"),
]


@pytest.mark.parametrize("command", OF_RUNS, ids=" ".join)
@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("runs/dome", "There is no folder {here}/runs/dome (did you mean 'done'?): name the folder of a trained run"),
        ("elsewhere", "There is no folder {here}/elsewhere: name the folder of a trained run"),
        ("file", "{here}/file is a file, not a folder: name the folder of a trained run"),
        ("good.yaml", "{here}/good.yaml is a file, not a folder: name the folder of a trained run"),
    ],
)  # fmt: skip
def test_no_folder_of_a_run(refused, folder, command, run, said):
    words = (command[0], run, *command[1:])
    assert refused(*words, code=3).startswith(said.format(here=folder))


@pytest.mark.parametrize(
    ("command", "run"),
    [
        pytest.param(command, run, id=f"{' '.join(command)}-{run}")
        for command in OF_RUNS
        for run in ("empty", "headless", "cut")
        if run != "cut"
        or "--onnx" not in command  # what was exported is another file than the one that is cut
    ],
)
def test_no_whole_run(refused, command, run):
    said = refused(command[0], run, *command[1:], code=3)
    assert any(
        words in said
        for words in (
            "There is no trained student in",
            "There is no complete student in",
            "it is cut or damaged: copy or save it again",
            "which `hf-distill train` writes with evaluation.verdict=true",
        )
    )


@pytest.mark.parametrize(
    "command", ["validate", "train", "evaluate", "audit", "cache", "attention", "search"]
)
def test_no_recipe(refused, folder, command):
    for name, (_, said) in WRONG.items():
        assert refused(command, name, code=2).startswith(said)
    for name, said in (
        ("absent.yaml", "the recipe cannot be read: no such file or directory"),
        ("gone.yaml", "the recipe cannot be read: no such file or directory"),
        ("empty", "the recipe cannot be read: is a folder; name the YAML file in it"),
        ("runs/done", "the recipe cannot be read: is a folder; name the YAML file in it"),
        ("bytes.yaml", "this is not YAML: "),
        ("train.jsonl", "this is not YAML: line 2, column 1: "),
        ("file", "a recipe is a mapping with the sections task, "),
    ):
        assert refused(command, name, code=2).startswith(f"{name}: {said}")


IN_A_RECIPE = [
    (("teachers.models.0=./models/brt",), 3, "teachers.models.0.model: there is no folder {here}/models/brt (did you mean 'bert'?)"),
    (("teachers.models.0=file",), 3, "teachers.models.0.model: {here}/file is a file, not a folder"),
    (("teachers.models.0=empty",), 3, "teachers.models.0.model: there is no checkpoint in {here}/empty, it has no config.json"),
    (("student.model=models",), 3, "student.model: there is no checkpoint in {here}/models, it has no config.json; in it are: bert, student"),
    (("student.model=./x/y",), 3, "student.model: there is no folder {here}/x/y"),
    (("data.files.train=absent.jsonl",), 3, "data.files.train: there is no file {here}/absent.jsonl"),
    (("data.files.train=rows.xlsx",), 2, "data.files.train: the format is known by the suffix, of csv, tsv"),
    (("training.output_dir=file",), 2, "training.output_dir: {here}/file is a file, and a folder is to be there: name another"),
    (("training.output_dir=file/run",), 2, "training.output_dir: {here}/file is a file, and a folder is to be there"),
    (("nonsense",), 2, "nonsense: an override is written section.key=value"),
    (("a=b",), 2, "a: unknown key, found 'b' (known here: task, "),
]  # fmt: skip


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize(("overrides", "code", "said"), IN_A_RECIPE, ids=lambda value: str(value)[:40])
def test_what_a_recipe_names_is_not_there(refused, folder, command, overrides, code, said):
    found = refused(command, "good.yaml", *overrides, code=code)
    assert found.startswith(f"command line: {said.format(here=folder)}")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("init", "absent.jsonl", "--teacher", "models/bert", "--output", "n.yaml"), 3, "There is no file {here}/absent.jsonl."),
        (("init", "empty", "--teacher", "models/bert", "--output", "n.yaml"), 3, "There is no file of rows in that folder"),
        (("init", "rows.xlsx", "--teacher", "models/bert", "--output", "n.yaml"), 3, "rows.xlsx: the format is known by the suffix"),
        (("init", "none.csv", "--teacher", "models/bert", "--output", "n.yaml"), 3, "data.files: none.csv is empty"),
        (("init", "train.jsonl", "--teacher", "models/brt", "--output", "n.yaml"), 3, "models/brt: there is no folder {here}/models/brt (did you mean 'bert'?)"),
        (("init", "train.jsonl", "--teacher", "file", "--output", "n.yaml"), 3, "file: {here}/file is a file, not a folder"),
        (("init", "train.jsonl", "--teacher", "models/bert", "--student", "empty", "--output", "n.yaml"), 3, "empty: there is no checkpoint in {here}/empty"),
        (("init", "train.jsonl", "--output", "n.yaml"), 2, "No teacher is named: give one with --teacher"),
        (("init", "train.jsonl", "--teacher", "models/bert", "--output", "good.yaml"), 2, "good.yaml is there already"),
        (("init", "train.jsonl", "--teacher", "models/bert", "--output", "file/n.yaml"), 2, "--output: {here}/file is a file"),
        (("predict", "runs/done"), 2, "Say what is to be predicted"),
        (("predict", "runs/done", "--text", ""), 2, "--text: found an empty one"),
        (("predict", "runs/done", "--file", "absent.csv"), 3, "--file: expected a file of rows, and {here}/absent.csv is not there"),
        (("predict", "runs/done", "--file", "empty"), 3, "--file: expected a file of rows, and {here}/empty is a folder"),
        (("predict", "runs/done", "--file", "file"), 3, "file: the format is known by the suffix"),
        (("predict", "runs/done", "--file", "zeros.csv"), 3, "data.files: zeros.csv is not in UTF-8"),
        (("predict", "runs/done", "--text", "a", "--onnx"), 3, "There is no exported student in {here}/runs/done/onnx; make one: hf-distill export"),
        (("predict", "runs/done", "--text", "a", "--batch-size", "0"), 2, "Usage: hf-distill predict"),
        (("export", "runs/done", "--format", "tflite"), 2, "There is no export format 'tflite'; there are onnx, int8."),
        (("export", "runs/done", "--output", "file"), 2, "--output: {here}/file is a file"),
        (("push", "runs/done"), 2, "REPO, where runs/done is to be pushed, is missing"),
        (("push", "runs/done", "not a repo"), 2, "'not a repo' cannot be a repository on the Hub"),
        (("push", "runs/done", "a/b/c"), 2, "'a/b/c' cannot be a repository on the Hub"),
        (("card", "runs/done", "--repo", "x y"), 2, "'x y' cannot be a repository on the Hub"),
        (("compare", "runs/done", "--output", "file"), 2, "--output: {here}/file is a file"),
        (("cache", "--info", "absent"), 3, "There is no folder absent: name the cache_dir of a run or recipe."),
        (("cache", "--info", "empty"), 3, "There is no cache in {here}/empty: name the teachers.cache_dir of a recipe"),
        (("cache", "good.yaml"), 2, "teachers.cache_dir is missing"),
        (("cache",), 2, "Name either a recipe or, with --info, the folder of a cache."),
        (("evaluate", "good.yaml", "evaluation.split=test", "training.output_dir=empty"), 3, "There is no trained student in {here}/empty"),
        (("evaluate", "good.yaml", "--split", "dev"), 2, "command line: evaluation.split: expected one of train, validation"),
        (("audit", "good.yaml", "--split", "dev"), 3, "there is no dev split to audit; the data has only train, test"),
        (("audit", "good.yaml", "--output", "file"), 2, "--output: {here}/file is a file"),
        (("attention", "good.yaml", "--layers", "x"), 2, "--layers: expected numbers with commas"),
        (("attention", "good.yaml", "training.output_dir=empty"), 3, "There is no trained student in {here}/empty"),
        (("attention", "good.yaml", "--output", "file"), 2, "--output: {here}/file is a file"),
        (("search", "good.yaml", "--output", "file/x"), 2, "--output: {here}/file is a file"),
        (("demo", "--output", "file"), 2, "--output: {here}/file is a file"),
        (("train", "good.yaml", "--resume", "empty"), 2, "--resume (resume_from_checkpoint): {here}/empty is no checkpoint"),
        (("train", "good.yaml", "--resume", "absent"), 2, "--resume (resume_from_checkpoint): {here}/absent is no checkpoint"),
        (("trian", "good.yaml"), 2, "Usage: hf-distill [OPTIONS] COMMAND"),
        (("validate",), 2, "Usage: hf-distill validate"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_what_else_is_named_wrong(refused, folder, words, code, said):
    assert refused(*words, code=code).startswith(said.format(here=folder))


# ---- What lies on the Hub ----


@pytest.fixture
def asked(folder, monkeypatch):
    """Ids that the Hub was asked for, which answers as one says; whoever asks it otherwise fails."""
    monkeypatch.chdir(folder)
    names, answers = [], []

    def model_info(self, repo, **options):
        names.append(repo)
        raise answers[0]

    def nobody(*arguments, **options):
        raise AssertionError("the Hub was asked again")

    monkeypatch.setattr(hub_ids, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr("hf_distill.teachers.model_files.cached_file", nobody)
    return names, answers


def absent(repo: str) -> RepositoryNotFoundError:
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    Exception.__init__(error, f"404: {repo}")
    return error


def test_a_path_is_not_asked_of_the_hub(asked):
    for path in ("./models/brt", "../models/bert", "runs/none/deep", "/nowhere/at/all", "file"):
        with pytest.raises(DataError, match="there is no folder /|is a file, not a folder"):
            Teacher.from_pretrained(path)
    assert asked[0] == []


def test_what_may_be_a_folder_is_asked_for_once(asked):
    names, answers = asked
    answers[:] = [absent("models/brt")]
    with pytest.raises(
        DataError, match=r"Teacher 'brt': models/brt: there is no folder /.*did you mean 'bert'"
    ):
        Teacher.from_pretrained("models/brt")
    with pytest.raises(DataError, match="models/brt: there is no folder /"):
        student_config("models/brt")
    assert names == ["models/brt"] * 2


def test_a_hub_that_does_not_answer_is_not_waited_for(asked):
    names, answers = asked
    answers[:] = [ConnectionError("no route to host")]
    for name in ("models/brt", "org/none"):
        with pytest.raises(
            DataError, match=rf"there is no folder .*{name}.*does not answer \(no route to host"
        ):
            Teacher.from_pretrained(name)
    assert names == ["models/brt", "org/none"]


def test_validate_says_what_is_taken_for_an_id(folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["validate", "good.yaml", "teachers.models.0=models/brt"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert (
        f"CHECK teachers.models.0.model: there is no folder {folder}/models/brt (did you mean 'bert'?), so"
        in said
    )
    assert "CHECK" not in CliRunner().invoke(app, ["validate", "good.yaml"]).stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "/" not in line)
