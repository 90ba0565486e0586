"""Run by test_push.py in a process of its own, since the client reads the Hub's address when it is imported."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import hub_server

if __name__ == "__main__":
    import tempfile

    with hub_server.HubDouble() as double, tempfile.TemporaryDirectory() as home:
        hub_server.RUNNING.append(double)
        os.environ.update(
            HF_ENDPOINT=double.url,
            HF_HOME=home,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        import pytest

        sys.exit(pytest.main([__file__, "-q", "--no-header", "-p", "no:cacheprovider", *sys.argv[1:]]))

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from conftest import make_student
from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer, Teacher
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, PushError
from hf_distill.publishing.facts import Origin
from hf_distill.publishing.push import look_up_licences
from hf_distill.training.pushes import failed_pushes
from hf_distill.training.run_facts import run_facts
from hf_distill.verdict import VerdictReport

WRITE, READ, WRONG = ("hf_" + letter * 34 for letter in "wrx")
PUSHED = {
    *(
        "README.md",
        "config.json",
        "fusion.json",
        "model.safetensors",
        "recipe.yaml",
        "report.json",
        "report.md",
    ),
    *("tokenizer.json", "tokenizer_config.json"),
}
WITH_VERDICT = PUSHED | {"report.html"}
# Without learning curves: so short a run logs no step.
FIGURES = {f"figures/{name}.png" for name in ("quality_against_latency", "reliability", "gains_by_class")}


@pytest.fixture
def hub():
    (running,) = hub_server.RUNNING
    running.forget()
    running.writers[WRITE] = "me"
    running.readers[READ] = "you"
    return running


@pytest.fixture(autouse=True)
def _a_quick_client(monkeypatch, tmp_path):
    """No waiting between tries, and the token from the environment alone."""
    quick = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", quick)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_token_anywhere(hub, tmp_path, capfd, _a_quick_client):
    """Not in what was sent, not in a file, not in what was printed."""
    yield
    printed = capfd.readouterr()
    places = {"requests": bytes(hub.seen), "output": (printed.out + printed.err).encode()}
    places |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = [place for place, content in places.items() if re.search(rb"hf_[a-z]{34}", content)]
    assert not [place for place in found if not place.endswith("holds_a_token.yaml")]


DRAWN: dict[str, dict[str, bytes]] = {}


@pytest.fixture(autouse=True)
def _figures_are_drawn_once(monkeypatch):
    """Most pushes are of one and the same report."""
    draw = VerdictReport.files

    def files(report: VerdictReport) -> dict[str, bytes]:
        key = json.dumps(report.to_dict())
        if key not in DRAWN:
            DRAWN[key] = draw(report)
        return DRAWN[key]

    monkeypatch.setattr(VerdictReport, "files", files)


@pytest.fixture
def run(capfd):
    """Runs the command; what it prints is among what is searched for tokens."""

    def call(*arguments: object):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        print(done.output)
        return done

    return call


def write_recipe(folder: Path, checkpoints: dict[str, str], rows, held_out) -> Path:
    rows.to_json(folder / "train.jsonl")
    held_out.to_json(folder / "test.jsonl")
    (folder / "tiny.yaml").write_text(f"""
data: {{files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
training: {{use_cpu: true, max_steps: 2, save_strategy: "no", disable_tqdm: true}}
evaluation: {{metrics: [accuracy, nll], verdict: false}}
""")
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, checkpoints, rows, held_out):
    return write_recipe(tmp_path_factory.mktemp("recipe"), checkpoints, rows, held_out)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = CliRunner().invoke(
        app, ["train", str(recipe), f"training.output_dir={folder}", "evaluation.verdict=true"]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    (folder / "optimizer.pt").write_bytes(b"not to be pushed")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"nor this")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "a run"))


def contents(folder: Path) -> dict[str, bytes]:
    """Of a run, but for what a push lays out to be looked at."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("publish/")}


def logits(where: str, **options) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    model = AutoModelForSequenceClassification.from_pretrained(where, **options)
    with torch.no_grad():
        return model(**tokenizer(["a good film", "an awful plot"], return_tensors="pt", padding=True)).logits


# ---- The command ----


def test_a_push_is_one_commit_of_what_is_listed_and_loads_back(hub, run, folder):
    done = run("push", folder, "me/small")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "The student is pushed to me/small: http://" in done.stdout
    assert set(hub.files("me/small")) == WITH_VERDICT | FIGURES | {".gitattributes"}
    assert not hub.repos["me/small"].private
    assert len(hub.repos["me/small"].branches["main"]) == 2  # the Hub's own, and ours
    assert torch.equal(logits("me/small"), logits(str(folder)))
    card = ModelCard.load("me/small")
    assert str(card).strip() == (folder / "README.md").read_text().strip()
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    report = json.loads((folder / "report.json").read_text())
    assert figures == report["systems"]["student"]["metrics"]
    assert f"> {report['verdict']}\n" in card.text


def test_no_text_of_a_row_is_pushed(hub, run, make, folder, held_out, tmp_path):
    before = contents(folder)
    texts = set(held_out["text"])
    assert sum(text.encode() in before["report.json"] for text in texts) >= 20
    assert run("push", folder, "me/small").exit_code == 0
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"README.md"}

    trainer = make(save_strategy="no", hub_model_id="me/trainer")
    shutil.copytree(folder / "figures", tmp_path / "out" / "figures")
    for name in ("report.json", "report.md", "report.html"):
        shutil.copy(folder / name, tmp_path / "out")
    trainer.push_to_hub()

    for repo in ("me/small", "me/trainer"):
        pushed = hub.files(repo)
        assert {"report.json", "report.md", "report.html"} | FIGURES < set(pushed)
        assert not [
            name for name, content in pushed.items() if any(text.encode() in content for text in texts)
        ]
        rows = json.loads(pushed["report.json"])["disagreements"]
        own = json.loads(before["report.json"])["disagreements"]
        assert rows == [{**row, "text": ""} for row in own]
        for page in ("report.md", "report.html"):
            assert b"Texts of rows are not published" in pushed[page]
            assert b"Texts of rows are not published" not in before[page]
    assert not any(text.encode() in bytes(hub.seen) for text in texts)


def test_the_figures_of_a_verdict_arrive_and_the_card_shows_them(hub, run, folder):
    shutil.rmtree(folder / "figures")  # as of a run that is older than its figures
    hub.add("me/small", {"figures/learning_curves.png": b"of an earlier run", "figures/mine.png": b"x"})
    assert run("push", folder, "me/small").exit_code == 0
    pushed = hub.files("me/small")
    assert {name for name in pushed if name.endswith(".png")} == FIGURES | {"figures/mine.png"}
    assert all(pushed[name].startswith(b"\x89PNG") for name in FIGURES)
    card = ModelCard.load("me/small").text
    shown = [
        "![quality against latency](figures/quality_against_latency.png)\n\nBars: 95 % interval",
        "![reliability](figures/reliability.png)\n\nBelow the diagonal",
        "![gains by class](figures/gains_by_class.png)\n\nColoured where",
        "More in [report.md](report.md) and [report.html](report.html).",
    ]
    assert [card.count(part) for part in shown] == [1, 1, 1, 1]
    assert sorted(map(card.index, shown)) == list(map(card.index, shown))
    report = pushed["report.md"].decode()
    assert set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", report)) == FIGURES


def test_a_second_push_sends_only_what_changed(hub, run, folder):
    run("push", folder, "me/small")
    commits = hub.repos["me/small"].branches["main"]
    assert run("push", folder, "me/small").exit_code == 0
    assert len(commits) == 2
    assert hub.requests.count("upload") == 1
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + "\n")
    assert run("push", folder, "me/small").exit_code == 0
    assert commits[-1].changed == ("tokenizer_config.json",)
    assert hub.requests.count("upload") == 1


def test_what_a_repository_keeps_of_an_earlier_student_goes(hub, run, folder):
    hub.add(
        "me/small", {"adapter_config.json": b"{}", "report.html": b"old", "mine.txt": b"x", "vocab.txt": b"x"}
    )
    assert run("push", folder, "me/small").exit_code == 0
    assert set(hub.files("me/small")) == WITH_VERDICT | FIGURES | {"mine.txt", "vocab.txt"}


def test_private_branch_and_pull_request(hub, run, folder):
    assert run("push", folder, "me/hidden", "--private").exit_code == 0
    assert hub.repos["me/hidden"].private
    assert torch.equal(logits("me/hidden"), logits(str(folder)))
    assert run("push", folder, "me/hidden", "--revision", "second/try").exit_code == 0
    assert run("push", folder, "me/small", "--revision", "second/try").exit_code == 0
    assert set(hub.files("me/small")) == {".gitattributes"}
    assert set(hub.files("me/small", "second/try")) > PUSHED
    done = run("push", folder, "me/small", "--pull-request")
    assert done.exit_code == 0 and "/me/small/discussions/1" in done.stdout
    assert set(hub.files("me/small")) == {".gitattributes"}
    assert torch.equal(logits("me/small", revision="refs/pr/1"), logits(str(folder)))
    assert run("push", folder, "me/small", "--pull-request", "--revision", "x").exit_code == 2


def test_a_pull_request_needs_no_right_to_write(hub, run, folder, monkeypatch):
    hub.add("other/model", {"README.md": b"theirs"})
    monkeypatch.setenv("HF_TOKEN", READ)
    assert run("push", folder, "other/model", "--pull-request").exit_code == 0
    assert set(hub.files("other/model", "refs/pr/1")) | {"x"} > PUSHED
    assert hub.files("other/model") == {"README.md": b"theirs"}
    assert run("push", folder, "other/model").exit_code == 6


def test_a_public_repository_is_no_private_one(hub, run, folder):
    hub.add("me/small", {})
    done = run("push", folder, "me/small", "--private")
    assert done.exit_code == 6
    assert "me/small exists and is public, but the student is to be private" in done.stderr
    assert hub.files("me/small") == {}


FAULTS = [(kind, fault) for kind in (*hub_server.OF_A_PUSH, "branch") for fault in ("cut", 500)]
FAULTS += [("create", 401), ("auth", 403), ("commit", 403), ("commit", 409), ("preupload", 429)]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_failed_push_harms_nothing_and_its_command_finishes_it(hub, run, folder, kind, fault):
    options = ["--private", "--revision", "next"] if kind == "branch" else ["--private"]
    before = contents(folder)
    hub.faults[kind] = fault
    done = run("push", folder, "me/small", *options)
    assert (done.exit_code, kind in hub.requests) == (PushError.exit_code, True), (
        done.output,
        done.exception,
    )
    assert "Traceback" not in done.output
    assert done.stderr.startswith("The push to me/small failed: ")
    after = contents(folder)
    assert after.pop("README.md")
    assert after == before
    assert "me/small" not in hub.repos or len(hub.repos["me/small"].branches["main"]) == 1
    command = shlex.split(done.stderr.splitlines()[-1])
    assert command == ["hf-distill", "push", str(folder), "me/small", *options]
    hub.faults.clear()
    assert run(*command[1:]).exit_code == 0
    assert set(hub.files("me/small", options[-1] if kind == "branch" else "main")) > PUSHED
    # What had arrived before a commit that failed does not travel again.
    assert hub.requests.count("upload") == 1 or kind == "upload"


@pytest.mark.parametrize(("token", "sentence"), [
    (WRONG, "the Hub does not accept the token (401): log in again with `hf auth login`"),
    (READ, "the token may not do this (403): it needs write access to the repository"),
    ("", "there is no token of the Hub; log in with `hf auth login`, or set HF_TOKEN."),
])  # fmt: skip
def test_a_token_that_will_not_do_is_said_before_training(
    hub, run, recipe, folder, monkeypatch, token, sentence
):
    monkeypatch.setenv("HF_TOKEN", token)
    done = run("train", recipe, "hub.push=true", "hub.repo=me/small", "training.output_dir=out")
    assert done.exit_code == 2, (done.output, done.exception)
    assert f"The student could not be pushed to me/small, so nothing was trained: {sentence}" in done.stderr
    assert not Path("out").exists()
    done = run("push", folder, "me/small")
    assert done.exit_code == 6 and sentence in done.stderr


def test_a_repository_that_will_not_do_is_said_before_training(hub, run, recipe, monkeypatch):
    hub.add("me/public", {})

    def refused(*overrides):
        done = run("train", recipe, "hub.push=true", "training.output_dir=out", *overrides)
        assert done.exit_code == 2 and not Path("out").exists(), (done.output, done.exception)
        return done.stderr

    assert "exists and is public" in refused("hub.repo=me/public", "hub.private=true")
    assert "(403)" in refused("hub.repo=other/model")
    assert "Repo id must" in refused("hub.repo='two words'")
    hub.faults["create"] = 503
    assert "an error of its own (503): try again later" in refused("hub.repo=me/small")
    hub.faults["create"] = "cut"
    assert "the connection to the Hub failed" in refused("hub.repo=me/small")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, which forbids all requests; unset it." in refused("hub.repo=me/small")


def test_a_recipe_pushes_after_the_report(hub, run, recipe):
    done = run(
        "train", recipe, "hub.push=true", "hub.repo=small", "hub.private=true", "training.output_dir=out"
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert hub.requests.index("create") < hub.requests.index("commit") == hub.requests.__len__() - 1
    assert set(hub.files("me/small")) == PUSHED | {".gitattributes"}
    assert hub.repos["me/small"].private
    assert b'model="me/small")' in hub.files("me/small")["README.md"]  # though the recipe says small
    assert torch.equal(logits("me/small"), logits("out"))


def test_a_failed_push_of_a_recipe_leaves_the_run_complete(hub, run, recipe):
    hub.faults["commit"] = "cut"
    done = run("train", recipe, "hub.push=true", "hub.repo=me/small", "training.output_dir=out")
    assert done.exit_code == 6, (done.output, done.exception)
    assert "\nstudent  " in done.stdout
    assert {path.name for path in Path("out").iterdir()} >= PUSHED
    hub.faults.clear()
    assert run(*shlex.split(done.stderr.splitlines()[-1])[1:]).exit_code == 0
    assert set(hub.files("me/small")) > PUSHED


def test_a_recipe_pushes_to_a_branch(hub, run, recipe):
    train = ("train", recipe, "hub.push=true", "hub.repo=me/small", "hub.revision=second/try")
    hub.faults["commit"] = 503
    done = run(*train, "training.output_dir=out")
    assert done.exit_code == 6, (done.output, done.exception)
    command = shlex.split(done.stderr.splitlines()[-1])
    assert command == ["hf-distill", "push", "out", "me/small", "--revision", "second/try"]
    hub.faults.clear()
    assert run(*train, "training.output_dir=out").exit_code == 0
    assert set(hub.files("me/small")) == {".gitattributes"}
    assert set(hub.files("me/small", "second/try")) == PUSHED | {".gitattributes"}
    done = run(*train, "hub.pull_request=true", "training.output_dir=other")
    assert done.exit_code == 2 and not Path("other").exists()
    assert "hub.pull_request: it is opened against main, but hub.revision is 'second/try'" in done.stderr


def test_a_recipe_opens_a_pull_request_where_its_token_may_only_read(hub, run, recipe, monkeypatch):
    hub.add("other/model", {"README.md": b"theirs"})
    monkeypatch.setenv("HF_TOKEN", READ)
    train = ("train", recipe, "hub.push=true", "hub.repo=other/model", "training.output_dir=out")
    assert run(*train).exit_code == 2 and not Path("out").exists()
    hub.faults["commit"] = 503
    done = run(*train, "hub.pull_request=true")
    assert done.exit_code == 6, (done.output, done.exception)
    assert done.stderr.endswith("    hf-distill push out other/model --pull-request\n")
    hub.faults.clear()
    done = run(*train, "hub.pull_request=true")
    assert done.exit_code == 0, (done.output, done.exception)
    assert re.search(
        r"The student is pushed to other/model: http\S+/other/model/discussions/1\n", done.stdout
    )
    assert hub.files("other/model") == {"README.md": b"theirs"}
    assert set(hub.files("other/model", "refs/pr/1")) == PUSHED


def test_a_card_names_the_commit_of_the_data_that_was_loaded(hub, run, recipe, monkeypatch):
    listed = "configs:\n- {config_name: default, data_files: [{split: train, path: a.jsonl}, {split: test, path: b.jsonl}]}"
    files = {"README.md": f"---\n{listed}\n---\n".encode()}
    files |= {
        name: (recipe.parent / f"{split}.jsonl").read_bytes()
        for name, split in (("a.jsonl", "train"), ("b.jsonl", "test"))
    }
    (first,) = hub.add("datasets/org/Some_Rows", files).branches["main"]
    data = "data={dataset: org/Some_Rows, label_names: [negative, positive]}"
    train = ("train", recipe, data, "--overwrite", "hub.push=true", "hub.repo=me/small")
    for more, said in (
        ([], ""),
        (["data.revision=main"], "revision `main`, "),
        ([f"data.revision={first.oid}"], None),
    ):
        done = run(*train, *more, "training.output_dir=out")
        assert done.exit_code == 0, (done.output, done.exception)
        card = ModelCard.load("me/small")
        named = f"{said}commit `{first.oid}`" if said is not None else f"revision `{first.oid}`"
        assert f"datasets/org/Some_Rows), {named}, 64 rows." in card.text
        assert {result.dataset_revision for result in card.data.eval_results} == {first.oid}
    # Offline, `datasets` takes what it loaded last, whichever revision is asked for: the commit tells.
    commits = hub.repos["datasets/org/Some_Rows"].branches["main"]
    commits.append(hub.commit(first.files, {"new.txt": b""}, "second"))
    assert run("train", recipe, data, "--overwrite", "training.output_dir=out").exit_code == 0
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    done = run("train", recipe, data, f"data.revision={first.oid}", "--overwrite", "training.output_dir=out")
    assert done.exit_code == 3
    assert f"on this machine are of {commits[-1].oid}: load them once with a connection" in done.stderr
    assert (
        run("train", recipe, data, "data.revision=v1", "--overwrite", "training.output_dir=out").exit_code
        == 0
    )
    assert (
        json.loads(Path("out/distillation.json").read_text())["data_commit"] == commits[-1].oid != first.oid
    )


def test_pushes_while_training_go_to_the_branch_of_the_recipe(hub, run, recipe):
    overrides = [
        "training.push_to_hub=true",
        "hub.repo=me/small",
        "hub.revision=next",
        "training.save_steps=2",
    ]
    overrides += [
        "training.save_strategy=steps",
        "training.hub_strategy=every_save",
        "training.output_dir=out",
    ]
    assert run("train", recipe, *overrides).exit_code == 0
    assert len(hub.repos["me/small"].branches["main"]) == 1
    messages = [commit.message for commit in hub.repos["me/small"].branches["next"]]
    assert messages == ["initial", "Training in progress, step 2", "Student, card and report"]


def test_a_file_with_a_token_is_not_published(hub, run, folder):
    (folder / "recipe.yaml").write_text(f"secret: {WRITE}\n")
    done = run("push", folder, "me/small")
    (folder / "recipe.yaml").rename(folder / "holds_a_token.yaml")
    assert done.exit_code == 6 and "recipe.yaml holds a token of the Hub" in done.stderr
    assert "This finishes the push" not in done.stderr
    assert done.stderr.endswith(
        f"Once the token is out of that file, this pushes it:\n    hf-distill push {shlex.quote(str(folder))} me/small\n"
    )
    assert "commit" not in hub.requests


def test_neither_is_one_of_a_checkpoint(hub, make, capfd):
    trainer = make(push_to_hub=True, hub_strategy="checkpoint", hub_always_push=True, max_steps=1)
    push = trainer._push_from_checkpoint

    def careless(checkpoint: str) -> None:
        Path(checkpoint, "notes.json").write_text(WRITE)
        push(checkpoint)

    trainer._push_from_checkpoint = careless
    trainer.train()
    Path(trainer.args.output_dir, "checkpoint-1", "notes.json").unlink()
    said = capfd.readouterr().out
    assert "Nothing was pushed to me/small: last-checkpoint/notes.json holds a token of the Hub" in said
    assert "commit" not in hub.requests


def test_an_edited_card_is_pushed_as_it_is(hub, run, folder):
    run("push", folder, "me/small")
    assert "was edited" not in run("push", folder, "me/other").stdout
    with (folder / "README.md").open("a") as card:
        card.write("My own words.\n")
    assert "was edited, so it stays as it is" in run("push", folder, "me/small").stdout
    assert hub.files("me/small")["README.md"].endswith(b"My own words.\n")
    (folder / "README.md").write_text("# Mine\n")
    (folder / "distillation.json").unlink()
    assert run("push", folder, "me/small").exit_code == 0
    assert hub.files("me/small")["README.md"] == b"# Mine\n"
    (folder / "README.md").unlink()
    assert run("push", folder, "me/small").exit_code == 3


def test_a_folder_without_a_student_is_refused(hub, run, folder):
    (folder / "model.safetensors").unlink()
    done = run("push", folder, "me/small")
    assert done.exit_code == 3
    assert "There is no complete student in" in done.stderr and "model.safetensors is missing" in done.stderr
    assert hub.requests == []


# ---- The trainer ----


@pytest.fixture
def make(tmp_path, teachers, bert_tokenizer, rows, hub):
    def build(teachers=teachers, model=None, **options):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "hub_model_id": "me/small"}
        return MultiTeacherDistillationTrainer(
            model=model or make_student(bert_tokenizer, ["negative", "positive"]),
            teachers=teachers,
            fusion="linear_pool",
            args=DistillationArguments(
                output_dir=str(tmp_path / "out"), use_cpu=True, disable_tqdm=True, **{**settings, **options}
            ),
            train_dataset=rows,
            processing_class=bert_tokenizer,
        )

    return build


def test_the_trainer_pushes_the_same_and_its_card_keeps_what_was_said(hub, make):
    trainer = make(save_strategy="no", hub_token=WRITE, hub_private_repo=True)
    trainer.train()
    commit = trainer.push_to_hub(tags=["mine"], language="en")
    assert commit.startswith(f"{hub.url}/me/small/commit/")
    assert set(hub.files("me/small")) == (PUSHED | {".gitattributes"}) - {
        "recipe.yaml",
        "report.json",
        "report.md",
    }
    assert hub.repos["me/small"].private
    assert trainer.args.hub_token == WRITE
    first = hub.files("me/small")["README.md"]
    trainer.push_to_hub()  # Trainer's own would have forgotten the tags
    assert hub.files("me/small")["README.md"] == first
    assert {"mine", "hf_distill"} <= set(ModelCard(first.decode()).data.tags)
    trainer.evaluate_ensemble(trainer.train_dataset)
    trainer.push_to_hub(revision="evaluated", commit_message="With figures", blocking=False).result()
    assert {"report.json", "report.md"} < set(hub.files("me/small", "evaluated"))
    assert hub.repos["me/small"].branches["evaluated"][-1].message == "With figures"
    with pytest.raises(ConfigurationError, match="no option 'author'"):
        trainer.push_to_hub(author="me")


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_pushes_while_training(hub, make, tmp_path, strategy):
    trainer = make(
        push_to_hub=True, hub_strategy=strategy, hub_always_push=True, save_total_limit=1, hub_token=WRITE
    )
    trainer.train()
    assert failed_pushes(trainer) == []
    messages = [commit.message for commit in hub.repos["me/small"].branches["main"]]
    assert messages[1:] == [f"Training in progress, step {step}" for step in (1, 2, 3, 4)]
    pushed = set(hub.files("me/small"))
    student = {
        "README.md",
        "config.json",
        "fusion.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    where = {
        "every_save": set(),
        "checkpoint": {"last-checkpoint"},
        "all_checkpoints": {f"checkpoint-{i}" for i in (1, 2, 3, 4)},
    }
    assert {name for name in pushed if "/" not in name} == student | {".gitattributes"}
    assert {name.partition("/")[0] for name in pushed if "/" in name} == where[strategy]
    for place in where[strategy]:
        assert {
            f"{place}/{name}" for name in ("optimizer.pt", "trainer_state.json", "model.safetensors")
        } < pushed
    assert not [name for name in pushed if name.endswith("training_args.bin")]
    assert torch.equal(logits("me/small"), logits(str(tmp_path / "out" / "checkpoint-4")))
    assert not list((tmp_path / "out").glob(".push-*"))
    trainer.save_model()  # pushes, as Trainer's does
    assert hub.repos["me/small"].branches["main"][-1].message in (
        "Model save",
        "Training in progress, step 4",
    )


def test_a_failed_push_while_training_is_said_at_its_end(hub, make, capfd):
    trainer = make(push_to_hub=True, hub_strategy="every_save", hub_always_push=True)
    hub.faults["commit"] = 500
    trainer.train()
    said = capfd.readouterr().out
    print(said)
    assert (
        "4 of 4 pushes during training failed. The last: The push to me/small failed: the Hub has an error"
        in said
    )
    assert len(failed_pushes(trainer)) == 4
    with pytest.raises(PushError, match="hf-distill push .*/out me/small"):
        trainer.save_model()
    hub.faults.clear()
    trainer.push_to_hub()
    assert "model.safetensors" in hub.files("me/small")


def test_a_recipe_that_pushes_while_training_ends_with_6_where_that_failed(hub, run, recipe, monkeypatch):
    monkeypatch.setattr(
        "hf_distill.training.trainer.MultiTeacherDistillationTrainer", MultiTeacherDistillationTrainer
    )
    overrides = ["training.push_to_hub=true", "hub.repo=me/small", "training.save_strategy=steps"]
    overrides += ["training.save_steps=2", "training.hub_strategy=every_save", "training.output_dir=out"]
    assert run("train", recipe, *overrides).exit_code == 0
    assert set(hub.files("me/small")) == PUSHED | {".gitattributes"}

    class Recovering(dict):
        """The first request fails for good: its tries are used up."""

        def get(self, kind, default=None):
            left[0] -= kind == "preupload"
            return 500 if kind == "preupload" and left[0] >= 0 else default

    left = [6]
    monkeypatch.setattr(hub, "faults", Recovering())
    done = run("train", recipe, *overrides, "training.seed=5", "--overwrite")
    assert done.exit_code == 6, (done.output, done.exception)
    assert "1 pushes during training failed, though the finished student is pushed now: http" in done.stderr
    assert "The push to me/small failed: the Hub has an error of its own (500)" in done.stderr
    assert torch.equal(logits("me/small"), logits("out"))


@pytest.mark.parametrize(("options", "sentence"), [
    ({"hub_token": WRONG}, r"\(401\)"),
    ({"hub_model_id": "other/model"}, r"\(403\)"),
])  # fmt: skip
def test_the_trainer_checks_before_training(hub, make, options, sentence):
    with pytest.raises(ConfigurationError, match=f"so nothing was trained: .*{sentence}"):
        make(push_to_hub=True, **options)


def test_a_student_with_an_adapter_is_pushed_without_its_base(hub, make, checkpoints, tmp_path):
    peft = pytest.importorskip("peft")
    files = {path.name: path.read_bytes() for path in Path(checkpoints["student"]).iterdir()}
    hub.add("org/base", files)
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    base = AutoModelForSequenceClassification.from_pretrained("org/base", **labels)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_lin", "v_lin"])
    trainer = make(model=peft.get_peft_model(base, config), save_strategy="no")
    trainer.train()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"of an earlier run in the same folder")
    trainer.push_to_hub()
    pushed = set(hub.files("me/small"))
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < pushed
    assert not pushed & {"model.safetensors", "config.json"}
    card = ModelCard.load("me/small")
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "adapter")
    assert card.data.library_name == "peft"
    with torch.no_grad():
        inputs = trainer.processing_class(["a good film"], return_tensors="pt")
        expected = trainer.student.eval()(**inputs).logits
        loaded = AutoModelForSequenceClassification.from_pretrained("me/small", **labels)
        assert torch.allclose(loaded(**inputs).logits, expected)


# ---- The card ----


def test_licences_and_commits_come_from_the_hub(hub, make, checkpoints, monkeypatch):
    for name, licence in (("bert", "apache-2.0"), ("roberta", "cc-by-nc-4.0"), ("deberta", None)):
        files = {path.name: path.read_bytes() for path in Path(checkpoints[name]).iterdir()}
        front = f"license: {licence}\n" if licence else ""
        hub.add(f"org/{name}", {**files, "README.md": f"---\n{front}tags: [x]\n---\n".encode()})
    of_hub = [Teacher.from_pretrained(f"org/{name}") for name in ("bert", "roberta", "deberta")]
    trainer = make(of_hub, AutoModelForSequenceClassification.from_pretrained("org/bert"))
    trainer.create_model_card()
    card = ModelCard.load(Path(trainer.args.output_dir, "README.md"))
    head = hub.repos["org/bert"].head("main").oid
    assert card.data.base_model == "org/bert" and card.data.base_model_relation == "finetune"
    assert card.data.license is None
    taught = card.data.distillation["teachers"]
    assert taught[0] == {"name": "bert", "model": "org/bert", "revision": head, "license": "apache-2.0"}
    assert [teacher["license"] for teacher in taught] == ["apache-2.0", "cc-by-nc-4.0", "none stated"]
    assert "The licences differ" in card.text and "bert: apache-2.0; roberta: cc-by-nc-4.0" in card.text
    assert "No licence is stated by deberta." in card.text
    assert re.search(rf"\[org/bert\]\(https://huggingface.co/org/bert\) +\| `{head}`", card.text)
    assert (
        f"The student was initialised from [org/bert](https://huggingface.co/org/bert), commit `{head}`."
        in card.text
    )
    again = str(card)
    trainer.create_model_card()
    assert str(ModelCard.load(Path(trainer.args.output_dir, "README.md"))) == again
    hub.faults["info"] = "cut"
    trainer.create_model_card(license="mit")
    card = ModelCard.load(Path(trainer.args.output_dir, "README.md"))
    assert "The licence could not be looked up of bert, roberta, deberta." in card.text
    assert card.data.license == "mit"


def test_the_licence_of_what_an_adapter_is_for_is_looked_up_too(hub, make):
    for name, licence in (("lora", "apache-2.0"), ("large", "llama3")):
        hub.add(f"org/{name}", {"README.md": f"---\nlicense: {licence}\n---\n".encode()})
    taught = (Origin("lora", "org/lora", over="org/large"),)
    made = dataclasses.replace(run_facts(make()), base=None, teachers=taught)
    assert look_up_licences(made) == {"org/lora": "apache-2.0", "org/large": "llama3"}
