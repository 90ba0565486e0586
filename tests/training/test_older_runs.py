"""Folders that were stored before the modules moved into rooms are read; their keys are today's."""

from __future__ import annotations

import json
import re
import shutil

import older_runs
import pytest
import tokenizers
import transformers

from hf_distill import TASKS, CacheSettings, LinearPool, Teacher
from hf_distill.errors import ConfigurationError, CorruptStateError
from hf_distill.fusion import describe
from hf_distill.publishing.facts import load_facts, save_facts
from hf_distill.rows import preparing
from hf_distill.rows.preparing import example_id, prepare_dataset
from hf_distill.rows.views import TokenView
from hf_distill.teachers.cache.build import TeacherCache
from hf_distill.teachers.cache.key import folder_identity, teacher_key
from hf_distill.teachers.cache.store import cache_info
from hf_distill.teachers.held_out import load_choice
from hf_distill.teachers.teacher import TeacherSpec
from hf_distill.training.commits import MANIFEST
from hf_distill.training.resuming import RUN_FILE, describe_run, load_run, resume, save_run

FOLDER = older_runs.FOLDER
OWN = ["older_runs:OwnFusion"]  # what a stored file may name beside built-ins
KEYS = json.loads((FOLDER / "keys.json").read_text(encoding="utf-8"))

as_then = pytest.mark.skipif(
    KEYS["versions"] != {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
    reason="the keys hold what configs and tokenizers of another version say",
)


@pytest.fixture
def make(tmp_path, bert_tokenizer, roberta_tokenizer):
    def trainer(name, **options):
        return older_runs.trainer(name, tmp_path, bert_tokenizer, roberta_tokenizer, **options)

    return trainer


@as_then
@pytest.mark.parametrize("name", older_runs.RUNS)
def test_a_run_is_known_again_and_named_by_the_tables(make, tmp_path, name):
    trainer = make(name)
    run = describe_run(trainer, trainer._asked_fusion)
    assert load_run(FOLDER / name / RUN_FILE) == run
    assert not re.search(r"hf_distill\.", json.dumps(run))
    save_run(run, tmp_path)
    assert json.loads((tmp_path / RUN_FILE).read_text())["format"] == 2
    assert load_run(tmp_path / RUN_FILE) == run
    kept = resume(run, FOLDER / name, trainer.fusion_choice, ())
    assert kept.fusion == load_choice(FOLDER / name, trust=OWN).fusion


@as_then
def test_a_checkpoint_of_then_is_gone_on_with(make, tmp_path):
    make("plain").train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    for file in (FOLDER / "plain").iterdir():
        shutil.copy(file, checkpoint)
    again = make("plain")
    (checkpoint / MANIFEST).unlink()  # there was none then
    with pytest.raises(CorruptStateError, match="has no checkpoint.json"):
        again.train(resume_from_checkpoint=str(checkpoint))
    again.train(resume_from_checkpoint=str(checkpoint), unverified=True)
    assert again.state.global_step == 2 and again.fusion == LinearPool((1, 3))
    with pytest.raises(ConfigurationError, match=r"losses.distill +\| forward_kl +\| jsd"):
        make("plain", distillation_loss="jsd").train(resume_from_checkpoint=str(checkpoint), unverified=True)


@as_then
def test_keys_of_teachers_and_rows_are_those_of_then(bert_tokenizer, roberta_tokenizer, monkeypatch):
    teachers = older_runs.teachers(bert_tokenizer, roberta_tokenizer)
    settings = {name: CacheSettings(**options) for name, options in KEYS["settings"].items()}
    for teacher in teachers:
        assert teacher.view.key == KEYS["view_key"][teacher.name]
        found = {name: teacher_key(teacher, own) for name, own in settings.items()}
        assert found == KEYS["teacher_key"][teacher.name]
    rows = older_runs.rows(0, 20)
    options = {
        "text_columns": ("text",),
        "labels": TASKS["text-classification"].label_reader("label", older_runs.LABELS),
        "student_view": TokenView(bert_tokenizer, 64),
        "teacher_views": {teacher.name: teacher.view for teacher in teachers},
        "what": "training set",
    }
    others = {
        "all": {},
        "student": {"teacher_views": {}},
        "teachers": {"student_view": None},
        "words": {"word_views": ("bert",)},
    }
    monkeypatch.setattr(
        preparing, "_FORMAT", 1
    )  # raised since, on purpose, when labels came to be read otherwise
    for name, other in others.items():
        rows._fingerprint = "0123456789abcdef"
        assert prepare_dataset(rows, **{**options, **other})._fingerprint == KEYS["prepared"][name], name
    halved = Teacher(teachers[0].model.bfloat16(), bert_tokenizer, name="b")
    assert teacher_key(halved, CacheSettings()) == KEYS["teacher_key of bfloat16"]


def test_ids_of_rows_are_those_of_then():
    for text, known in KEYS["example_id"].items():
        assert example_id(text.split("|")) == known


def test_an_identity_of_a_folder_is_that_of_then(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "notes.md").write_text("no part of it")
    found = folder_identity(TeacherSpec(str(tmp_path)), [1, "facts"])
    assert (found == KEYS["folder_identity"]) == (
        KEYS["versions"]["transformers"] == transformers.__version__
    )


@as_then
def test_a_cache_of_then_is_found_and_described(tmp_path, bert_tokenizer, roberta_tokenizer):
    shutil.copytree(FOLDER / "cache", tmp_path, dirs_exist_ok=True)
    assert {entry["teacher"] for entry in cache_info(tmp_path)} == {"bert", "roberta"}
    teachers = older_runs.teachers(bert_tokenizer, roberta_tokenizer)
    cache = TeacherCache(teachers[:1], tmp_path)
    assert cache.teachers[0].view.key == KEYS["teacher_key"]["bert"]["default"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (FOLDER / "cache").iterdir()}


@pytest.mark.parametrize("name", older_runs.RUNS)
def test_fusions_and_facts_of_then_are_read_and_stored_anew(tmp_path, name):
    choice = (
        load_choice(FOLDER / name, ["bert", "roberta"], trust=OWN)
        if (FOLDER / name / "fusion.json").exists()
        else None
    )
    if choice is not None:
        stored = json.loads((FOLDER / name / "fusion.json").read_text())
        assert describe(choice.fusion) == stored["fusion"]
        assert choice.fitted_on.tolist() == stored["fitted_on"]
    facts = load_facts(FOLDER / name)
    save_facts(facts, tmp_path)
    assert load_facts(tmp_path) == facts
    stored = json.loads((tmp_path / "distillation.json").read_text())
    assert stored.pop("format") == 1
    assert stored == json.loads((FOLDER / name / "distillation.json").read_text())


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (RUN_FILE, lambda folder: load_run(folder / RUN_FILE)),
        ("fusion.json", load_choice),
        ("distillation.json", load_facts),
    ],
)
def test_what_a_later_version_wrote_is_refused_in_one_sentence(tmp_path, file, read):
    folder = tmp_path / "of a later version"
    folder.mkdir()
    (folder / file).write_text('{"format": 99}')
    with pytest.raises(
        CorruptStateError, match=r"its format is 99, and this version of hf_distill reads"
    ) as refused:
        read(folder)
    assert refused.value.exit_code == 5 and str(refused.value).count(". ") == 0
