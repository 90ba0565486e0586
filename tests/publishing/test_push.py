"""Cards that nothing can break, the files that are pushed, and, in a process of its own, pushes to a double of the Hub."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer, ScheduleCallback
from hf_distill.errors import CorruptStateError, DataError
from hf_distill.evaluation.report_files import PICTURE_FILES
from hf_distill.markdown import code, escaped, plain
from hf_distill.publishing.card import Rows, model_card, origins
from hf_distill.publishing.facts import (
    Origin,
    RunFacts,
    confirm_report,
    load_facts,
    report_digest,
    save_facts,
)
from hf_distill.publishing.push import _edited, push_command, reason, without_tokens, write_card
from hf_distill.publishing.pushed_files import PUBLISH, STALE, documents_to_push, files_to_push, laid_out
from hf_distill.runs.attention import _SECTION
from hf_distill.teachers.hub_ids import data_commit, loaded_commit, only_commit
from hf_distill.training.pushes import create_card
from hf_distill.training.run_facts import method_name, references, run_facts

ROOT = Path(__file__).parents[2]
HEADINGS = ["small", "Use", "Results", "Distillation", "Training", "Licences", "Reproduce", "References"]
HOSTILE = [
    '"quoted": {a: [b, \'c',
    "two\nlines\n---\nlicense: mit\n---\n# Heading",
    "\r\n---\r\nx: y",
    "<script>alert(1)</script><img src=http://evil.example>",
    "<!-- hidden",
    "x | y || z \\| w",
    "`code` ``` fence\n```",
    "[a](http://evil.example) ![b](http://evil.example/x.png) [c]: http://evil.example",
    "**bold** *it* __b__ _it_ ~~no~~ $$x$$ \\(y\\)",
    "{{ 7*7 }} {% raw %} {# x #}",
    "🤗👩‍💻 é 中文",
    "ab\u202egnp.exe\u2066",
    "\x00\x1b[31mred\x07\x85\u2028\u2029",
    "lone \ud800 half",
    "www.evil.example a@evil.example https://evil.example",
    "# heading",
    "- item",
    "1. item",
    "> quotation",
    "===",
    "---",
    "&lt;b&gt; &amp;",
    "C:\\path\\",
    "null",
    "~",
    "2026-01-01",
    "1e5",
    "!!python/object/apply:os.system [x]",
    "",
    "  ",
]


def facts(**changes) -> RunFacts:
    made = RunFacts(
        task="text-classification",
        architecture="BertForSequenceClassification",
        parameters=12345,
        adapter=False,
        labels=("no", "yes"),
        base=Origin("base", "org/base", "b" * 40),
        teachers=(Origin("one", "org/one", "a" * 40, 99), Origin("two", None, None, 7, "mit")),
        fusion="linear_pool(weights=[0.25, 0.75])",
        reason="uniform linear_pool, because I say so",
        warnings=(),
        weights=(0.25, 0.75),
        losses=("0.5 × cross-entropy with the labels",),
        rows={"rows": 64, "labelled": 60},
        training={"seed": 3},
        versions={"torch": "2"},
        references=("Hinton: Distilling, 2015, arXiv:1503.02531.",),
    )
    return dataclasses.replace(made, **changes)


def report(**changes) -> dict:
    systems = {
        "student": {"metrics": {"accuracy": 0.5, "nll": 0.25}, "parameters": 12345},
        "ensemble": {"metrics": {"accuracy": 0.75}, "parameters": None},
    }
    return {"dataset": "test", "rows": 100, "systems": systems, "notes": [], **changes}


def parsed(text: str) -> dict:
    """What a reader of the Markdown gets: headings, links, pictures, cells of the tables, words; and nothing in HTML."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(ModelCard(text).text)
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    assert not [
        token for token in [*tokens, *inline] if token.type in ("html_block", "html_inline", "s_open")
    ]
    assert {token.type for token in inline} <= {
        *("text", "softbreak", "code_inline", "link_open", "link_close", "image", "text_special")
    }
    rows, cells = [], 0
    for token in tokens:
        cells += token.type in ("th_open", "td_open")
        if token.type == "tr_close":
            rows.append(cells)
            cells = 0
    return {
        "headings": [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"],
        "links": [token.attrs["href"] for token in inline if token.type == "link_open"],
        "pictures": [token.attrs["src"] for token in inline if token.type == "image"],
        "cells": rows,
        "words": "".join(
            {"softbreak": "\n", "text_special": token.content}.get(token.type, token.content)
            for token in inline
        ),
        "fences": [token.content for token in tokens if token.type == "fence"],
    }


# ---- The card ----


def test_a_card_says_what_ran():
    text = str(
        model_card(
            facts(),
            repo="me/small",
            report=report(verdict="It helped."),
            files=["README.md", "recipe.yaml", "report.md", "plots/a b.png", "figures/a_b.png"],
            captions={"figures/a_b.png": "Left | up <is> better.", "report.md": ""},
            rows=Rows("org/data", "big", "v1"),
            licences={"org/one": "apache-2.0", "org/base": "none stated"},
        )
    )
    data, seen = ModelCard(text).data, parsed(text)
    assert seen["headings"] == HEADINGS
    assert (data.base_model, data.base_model_relation, data.datasets) == (
        "org/base",
        "finetune",
        ["org/data"],
    )
    assert data.license is None and data.library_name == "transformers"
    assert data.tags == ["hf_distill", "knowledge-distillation", "generated_from_trainer", "teacher:org/one"]
    (accuracy, nll) = data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value, nll.metric_value) == ("accuracy", 0.5, 0.25)
    assert (accuracy.dataset_type, accuracy.dataset_config, accuracy.dataset_split) == (
        "org/data",
        "big",
        "test",
    )
    assert seen["links"].count("https://huggingface.co/org/one") == 1
    assert {"https://arxiv.org/abs/1503.02531", "recipe.yaml", "report.md"} < set(seen["links"])
    assert seen["pictures"] == ["plots/a%20b.png", "figures/a_b.png"]
    assert seen["words"].count("a b") == 2 and "a bLeft | up <is> better.More in report.md" in seen["words"]
    assert seen["cells"] == [4, 4, 4, 6, 6, 6]
    for words in ("It helped.", "64 rows, 60 of them with a label", "On test: 100 rows.", "because I say so"):
        assert words in seen["words"], words
    assert "The licences differ, so whoever uses the student has to see what they allow together" in text
    assert "No licence is stated by base." in text
    assert 'pipeline("text-classification", model="me/small")' in seen["fences"][0]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_from_outside_breaks_a_card(hostile):
    teachers = (
        Origin(hostile, None, hostile, 1, hostile),
        Origin("hub", "org/one", hostile, 1, None, hostile),
    )
    made = facts(
        task="text-classification", architecture=hostile, labels=(hostile, "b"), teachers=teachers,
        base=Origin(hostile, None, hostile, None, hostile), fusion=hostile, reason=hostile,
        warnings=(hostile,), losses=(hostile,), training={hostile or "x": hostile}, versions={"x": hostile},
        references=(hostile,), data_commit=hostile, card={"model_name": hostile, "tags": [hostile], "dataset": hostile},
    )  # fmt: skip
    found = report(
        dataset=hostile, notes=[hostile], verdict=hostile,
        systems={"student": {"metrics": {hostile: 0.5, "accuracy": 0.5}}, hostile or "y": {"metrics": {}}},
    )  # fmt: skip
    text = str(
        model_card(
            made,
            repo=hostile,
            report=found,
            files=["recipe.yaml", "report.md"],
            rows=Rows(None, hostile, hostile, (hostile or "f",)),
            licences={"org/one": hostile},
        )
    )
    text.encode()  # can be written
    seen = parsed(text)
    assert seen["headings"][1:] == HEADINGS[1:]
    model = ast.literal_eval(seen["fences"][0].partition("model=")[2].strip().removesuffix(")"))
    assert model == plain(hostile).replace("`", "'")
    assert all(link.startswith(("https://huggingface.co/", "recipe", "report")) for link in seen["links"])
    assert seen["pictures"] == []
    assert len(set(seen["cells"][:3])) == len(set(seen["cells"][3:])) == 1
    if plain(hostile):
        assert escaped_shows(hostile) and f"Warning: {plain(hostile)}" in seen["words"]
    front = text.removeprefix("---\n").partition("\n---\n")[0]
    data = yaml.safe_load(front)  # the plain YAML that anybody's parser reads
    assert data == ModelCard(text).data.to_dict()
    assert data["tags"][-1] == plain(hostile)
    assert data["distillation"]["teachers"][0]["name"] == plain(hostile)
    assert data["model-index"][0]["results"][0]["metrics"][0]["type"] == plain(hostile)
    assert "license" not in data or hostile in ("null",)


def escaped_shows(text: str) -> bool:
    """Whether an escaped text renders as itself, alone in a paragraph."""
    (inline,) = (token for token in MarkdownIt("commonmark").parse(escaped(text)) if token.type == "inline")
    return "".join(child.content for child in inline.children) == plain(text)


def test_usual_texts_stay_as_they_are():
    for text in ("log_pool, because it is better: NLL 0.5 (weights a 0.250)", "C++", "0.5 × forward_kl"):
        assert escaped(text) == text
    assert code("linear_pool(weights=[0.2])") == "`linear_pool(weights=[0.2])`"


def test_only_finite_figures_become_results_and_as_plain_numbers():
    metrics = {"a": math.nan, "b": math.inf, "c": None, "d": True, "e": "0.5", "f": 1, "g": 0.5}
    systems = {"student": {"metrics": metrics, "std": {"g": 0.1, "f": None}}}
    text = str(model_card(facts(), repo="x", report=report(systems=systems)))
    results = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    assert [(result["type"], result["value"]) for result in results] == [("f", 1.0), ("g", 0.5)]
    assert "0.5000 ± 0.1000" in text and "nan" not in text.lower() and "!!" not in text


def test_the_results_are_of_the_student_that_is_published():
    student = {
        "metrics": {"accuracy": 0.8},
        "std": {"accuracy": 0.1},
        "by_seed": {"4": {"accuracy": 0.7}, "5": {"accuracy": 0.9}},
    }
    text = str(model_card(facts(), repo="x", report=report(systems={"student": student}, seeds=[4, 5])))
    (result,) = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    assert result["value"] == 0.7 and "0.8000 ± 0.1000" in text
    assert "the student that is published is of seed 4: accuracy 0.7000." in text


@pytest.mark.parametrize(
    "odd", [None, {}, {"systems": []}, {"systems": {"student": 3}}, {"systems": {"student": {}}}]
)
def test_a_report_without_figures_gives_a_card_without(odd):
    card = model_card(facts(), repo="x", report=odd)
    assert card.data.eval_results is None and card.data.metrics is None


def test_relation_and_licence():
    scratch = model_card(
        facts(base=None, teachers=(Origin("t", "org/t"),), weights=()), repo="x", licences={"org/t": "mit"}
    )
    assert (scratch.data.base_model, scratch.data.get("base_model_relation")) == (None, None)
    assert scratch.data.license == "mit" and "trained from scratch" in scratch.text
    folder = model_card(
        facts(base=Origin("mine", None, None, None, "mit")), repo="x", licences={"org/one": "mit"}
    )
    assert folder.data.base_model is None and "initialised from a folder (mine)" in folder.text
    assert folder.data.license == "mit"
    odd = model_card(facts(base=None, teachers=(Origin("t", None, None, 1, "my own"),), weights=()), repo="x")
    assert odd.data.license is None and "t: my own" in odd.text
    assert model_card(facts(card={"license": "other"}), repo="x").data.license == "other"


def test_the_licence_of_what_an_adapter_is_for_counts():
    of_hub = Origin("lora", "org/lora", "a" * 40, 99, None, "org/large")
    stated = {"org/lora": "apache-2.0", "org/large": "llama3"}
    card = model_card(facts(base=None, teachers=(of_hub,), weights=()), repo="x", licences=stated)
    assert "The licences differ" in card.text and "lora: apache-2.0; org/large: llama3." in card.text
    assert card.data.license is None
    card = model_card(
        facts(base=None, teachers=(of_hub,), weights=()), repo="x", licences={"org/lora": "mit"}
    )
    assert "The licence could not be looked up of org/large." in card.text and card.data.license is None
    assert [teacher["name"] for teacher in card.data.distillation["teachers"]] == ["lora"]
    # Once, also where the student was made from it or another adapter is for it; and no name of a folder.
    others = (of_hub, dataclasses.replace(of_hub, name="two"), Origin("three", over="a folder"))
    made = facts(base=Origin("large", "org/large"), teachers=others, weights=())
    assert [origin.name for origin in origins(made)] == ["large", "lora", "two", "three"]
    assert [origin.source for origin in origins(facts(base=None, teachers=others))][3:] == ["org/large"]


# ---- What a run was ----


def test_facts_come_back_as_they_were_and_damage_is_said(tmp_path):
    assert load_facts(tmp_path) is None
    made = facts(card={"tags": ["x"]}, older_report="f" * 64)
    save_facts(made, tmp_path)
    assert load_facts(tmp_path) == made
    (tmp_path / "distillation.json").write_text("{}")
    with pytest.raises(CorruptStateError, match="does not say how the student was made"):
        load_facts(tmp_path)


def test_facts_of_a_run(tmp_path, checkpoints, teachers, rows):
    trainer = MultiTeacherDistillationTrainer(
        model=checkpoints["student"],
        teachers=teachers,
        fusion={"use": "linear_pool", "weights": [1, 1, 2]},
        distillation_loss={"use": "jsd", "beta": 0.3},
        row_weight="student_entropy",
        callbacks=[ScheduleCallback(temperature={"use": "linear", "start": 4, "end": 1})],
        args=DistillationArguments(
            output_dir=str(tmp_path / "out"), use_cpu=True, max_steps=1, save_strategy="no"
        ),
        train_dataset=rows,
    )
    made = run_facts(trainer)
    assert made.base == Origin("student", None, None, None, "none stated")
    assert [teacher.name for teacher in made.teachers] == ["bert", "roberta", "deberta"]
    assert made.weights == (0.25, 0.25, 0.5)
    assert made.losses == (
        "0.5 × cross-entropy with the labels",
        "0.5 × jsd(beta=0.3) against the fused teachers at temperature Linear(start=4, end=1, begin=0.0, until=1.0), rows "
        "weighed by student_entropy",
    )
    assert made.rows == {"rows": 64, "labelled": 64}
    for what in (
        "1503.02531",
        "2306.13649",
        "2109.11295",
        "Genest",
    ):  # temperature, jsd, row weight, linear pool
        assert [reference for reference in made.references if what in reference], what
    create_card(trainer, tags="mine")
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        str(tmp_path) not in text and checkpoints["bert"] not in text
    )  # where files lay is nobody's concern
    assert "jsd(beta=0.3)" in text and "mine" in ModelCard(text).data.tags
    create_card(trainer)
    assert (tmp_path / "out" / "README.md").read_text() == text
    trainer.model.config._name_or_path = ""
    assert run_facts(trainer).base is None


def test_methods_of_ones_own_are_named_by_their_path():
    def mine(a):
        """Mine.

        Reference:
            Me: On mine, 2026,
            second line.
        """

    assert method_name(mine, {"x": mine}) == "x"
    assert method_name(mine, {}).endswith("mine") and ":" in method_name(mine, {})
    assert references([mine, mine, object()]) == ("Me: On mine, 2026, second line.",)


def test_a_report_of_an_earlier_training_is_not_this_one_s(tmp_path):
    save_facts(facts(), tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report()))
    write_card(tmp_path, repo="x")
    assert "## Results" in (tmp_path / "README.md").read_text()
    save_facts(facts(older_report=report_digest(tmp_path)), tmp_path)
    write_card(tmp_path, repo="x")
    assert "## Results" not in (tmp_path / "README.md").read_text()
    confirm_report(tmp_path)  # evaluated anew, with the same figures
    write_card(tmp_path, repo="x")
    assert "## Results" in (tmp_path / "README.md").read_text()
    save_facts(facts(older_report=report_digest(tmp_path)), tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report(rows=5)))  # evaluated anew
    write_card(tmp_path, repo="x")
    assert "On test: 5 rows." in (tmp_path / "README.md").read_text()
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(CorruptStateError, match="evaluate again, or remove it"):
        write_card(tmp_path, repo="x")


def test_the_commit_of_a_data_set_is_where_its_rows_are_kept(tmp_path):
    def kept(folder: str) -> datasets.Dataset:
        path = tmp_path / "org___rows" / "default" / "0.0.0" / folder
        datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(path))
        return datasets.Dataset.from_file(str(path / "data-00000-of-00001.arrow"))

    one, other, local = kept("a" * 40), kept("b" * 40), kept("0123456789abcdef")
    assert data_commit(one) == data_commit(one.select([0])) == "a" * 40
    assert data_commit(one.map(lambda row: {"n": 1})) == "a" * 40
    for rows in (datasets.concatenate_datasets([one, other]), local, one.to_iterable_dataset(), None):
        assert data_commit(rows) is None


def test_a_card_names_the_commit_of_its_data():
    def said(revision: str | None, commit: str | None) -> tuple[str, str | None]:
        rows = Rows("org/data", None, revision)
        card = model_card(facts(data_commit=commit), repo="x", report=report(), rows=rows)
        line = next(line for line in card.text.splitlines() if line.startswith("Training data"))
        return line.partition("), ")[2], card.data.eval_results[0].dataset_revision

    count = "64 rows, 60 of them with a label."
    assert said(None, "c" * 40) == (f"commit `{'c' * 40}`, {count}", "c" * 40)
    assert said("v1", "c" * 40) == (f"revision `v1`, commit `{'c' * 40}`, {count}", "c" * 40)
    assert said("c" * 40, "c" * 40) == (f"revision `{'c' * 40}`, {count}", "c" * 40)
    assert said("v1", None) == (f"revision `v1`, {count}", "v1")
    local = model_card(facts(data_commit="c" * 40), repo="x", report=report(), rows=Rows(files=("a.csv",)))
    assert "c" * 40 not in str(local)


def test_commits_are_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert only_commit("org/x") is None and loaded_commit("org/x", None) is None
    folder = tmp_path / "models--org--x"
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        if commit[0] == "a":
            assert only_commit("org/x") == commit
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    assert loaded_commit("org/x", None) == "b" * 40
    assert loaded_commit("org/x", "a" * 40) == "a" * 40
    assert loaded_commit("org/x", "v2") is None and loaded_commit(str(tmp_path), None) is None
    assert only_commit("org/x") is None  # two of them: nobody knows which


# ---- The files ----


@pytest.fixture
def run(tmp_path, checkpoints):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in Path(checkpoints["student"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_only_listed_files_are_pushed(run, tmp_path):
    others = [
        "training_args.bin",
        "optimizer.pt",
        "trainer_state.json",
        "_projections.safetensors",
        "rng_state.pth",
    ]
    others += [
        "distillation.json",
        ".env",
        "notes.txt",
        "run_state.json",
        "pytorch_model.bin",
        "run.py",
        "secret.png",
    ]
    for name in [*others, "report.html", "fusion.json", "recipe.yaml", "shown.png"]:
        (run / name).write_text("x")
    (run / "report.json").write_text(json.dumps(report()))
    (tmp_path / "outside.png").write_text("x")
    for name in ("plots/roc.png", "checkpoint-3/model.safetensors", "checkpoint-3/a.png", "cache/logits.npy"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    (run / "report.md").write_text(
        "![a](shown.png) ![b](<plots/roc.png>) ![c](../outside.png) ![d](http://x/y.png) ![e](missing.png)\n"
        f"![f]({tmp_path}/outside.png) ![g](checkpoint-3/a.png) [no picture](secret.png)"
    )
    student = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    # A picture that somebody put into report.md is no field of the report: nobody knows what it shows.
    documents = {"report.json", "report.md", "fusion.json", "recipe.yaml"}
    files = files_to_push(run)
    assert set(files) == student | documents
    assert set(documents_to_push(run)) == documents
    assert set(files_to_push(run, reports=False)) == student | {"fusion.json", "recipe.yaml"}
    assert b"shown.png" not in files["report.md"] and b"| student  | 0.5000" in files["report.md"]


def test_what_is_for_people_is_laid_out_to_be_looked_at(run):
    for name in ("fusion.json", "recipe.yaml", "README.md"):
        (run / name).write_text(name)
    (run / "report.json").write_text(json.dumps({**report(), "disagreements": [{"text": "a private row"}]}))
    old = run / PUBLISH / "figures" / "old.png"
    old.parent.mkdir(parents=True)
    old.write_text("of an earlier report")
    files = files_to_push(run)
    places = laid_out(run, files)
    assert set(places) == set(files) and not old.parent.exists()
    people = {"README.md", "fusion.json", "recipe.yaml", "report.json", "report.md"}
    shown = {
        path.relative_to(run / PUBLISH).as_posix() for path in (run / PUBLISH).rglob("*") if path.is_file()
    }
    assert shown == people == {name for name, path in places.items() if path.is_relative_to(run / PUBLISH)}
    assert places["model.safetensors"] == run / "model.safetensors"
    assert not any(b"a private row" in path.read_bytes() for path in places.values())
    assert "a private row" in (run / "report.json").read_text()
    before = (run / PUBLISH / "README.md").stat().st_mtime_ns
    laid_out(run, files)
    assert (run / PUBLISH / "README.md").stat().st_mtime_ns == before


def test_a_dry_run_lists_what_would_leave_and_asks_nobody(run, monkeypatch):
    from typer.testing import CliRunner

    from hf_distill.cli import app

    monkeypatch.setattr("hf_distill.publishing.push._api", lambda token: pytest.fail("it asked the Hub"))
    save_facts(facts(), run)
    (run / "report.json").write_text(json.dumps(report()))
    (run / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["push", str(run), "--dry-run"])
    assert done.exit_code == 0, (done.output, done.exception)
    for name in ("README.md", "model.safetensors", "config.json", "report.md"):
        assert re.search(rf"^{re.escape(name)} +[\d,]+", done.stdout, flags=re.MULTILINE), name
    assert "notes.txt" not in done.stdout and "Nothing was pushed" in done.stdout
    # A path is not broken, so that it can be copied.
    assert max(len(line) for line in done.stdout.splitlines() if str(run) not in line) <= 80
    assert (run / PUBLISH / "README.md").read_bytes() == (run / "README.md").read_bytes()
    missing = CliRunner().invoke(app, ["push", str(run)])
    assert (
        missing.exit_code == 2 and "name user/name, or list what would leave with --dry-run" in missing.stderr
    )
    (run / "recipe.yaml").write_text("token: hf_" + "aB" * 17)
    held = CliRunner().invoke(app, ["push", str(run), "--dry-run"])
    assert held.exit_code == 6 and "recipe.yaml holds a token" in held.stderr


def test_the_card_command_writes_the_card_and_shows_it(run):
    from typer.testing import CliRunner

    from hf_distill.cli import app

    save_facts(facts(), run)
    (run / "report.json").write_text(json.dumps(report()))
    done = CliRunner().invoke(app, ["card", str(run), "--repo", "me/small"])
    assert done.exit_code == 0, (done.output, done.exception)
    text = (run / "README.md").read_text()
    assert text in done.stdout and 'model="me/small"' in text and "## Results" in text
    (run / "README.md").write_text(text + "\nMy own words.\n")
    again = CliRunner().invoke(app, ["card", str(run)])
    assert "was edited, so it stays as it is" in again.stdout and "My own words." in again.stdout


def test_a_card_of_ours_is_known_by_a_field_of_its_metadata(tmp_path):
    save_facts(facts(), tmp_path)
    text = write_card(tmp_path, repo="x").read_text()
    card = ModelCard(text)
    assert len(card.data["hf_distill_card"]) == 32 and "<!--" not in text
    assert not _edited(text) and not _edited(str(card)) and not _edited(text.replace("\n", "\r\n"))
    # However its metadata are written: order and quotation are no words of somebody's.
    lines = text.split("---\n")[1].splitlines()
    language = [line for line in lines if line.startswith("library_name")]
    moved = "\n".join([*language, *(line for line in lines if line not in language)])
    assert not _edited(text.replace("\n".join(lines), moved))
    assert _edited(text + "mine") and _edited(
        text.replace("library_name: transformers", "library_name: mine")
    )
    assert _edited(re.sub(r"hf_distill_card: .*\n", "", text)) and _edited("# Mine\n")
    assert _edited("---\nbroken: [\n---\n# x") and _edited(
        text.replace(card.data["hf_distill_card"], "0" * 32)
    )
    assert (
        write_card(tmp_path, repo="y", keep_edits=True)
        and 'model="y"' in (tmp_path / "README.md").read_text()
    )


def test_a_report_that_nobody_can_read_stays_here(run):
    def reports() -> set[str]:
        return set(files_to_push(run)) - student

    student = set(files_to_push(run))
    for name in ("report.html", "report.md"):
        (run / name).write_text("# Verdict\n\na row")
    assert reports() == set()  # nothing says what they are
    (run / "report.json").write_text(json.dumps(report()))
    assert reports() == {"report.json", "report.md"}  # of an evaluation, unlike the two beside it
    assert b"a row" not in files_to_push(run)["report.md"]
    for damaged in ("{", json.dumps({"version": 1, **report()}), json.dumps({"version": 2})):
        (run / "report.json").write_text(damaged)
        for listed in (files_to_push, documents_to_push):
            with pytest.raises(CorruptStateError, match="evaluate again, or remove it"):
                listed(run)


def test_pictures_of_a_row_stay_here(run):
    (run / "report.json").write_text(json.dumps(report()))
    for name in ("attention.png", "similarity.png", "roc.png"):
        (run / name).write_bytes(b"x")
    section = f"{_SECTION}\n\nWhat.\n\n![a](attention.png)\n\n![b](similarity.png)\n"
    (run / "report.md").write_text(f"# Evaluation\n\nbest\n\n{section}\n## Later\n\n![c](roc.png)\n")
    files = files_to_push(run)
    assert files["report.md"].startswith(b"# Evaluation\n") and b"png" not in files["report.md"]
    assert not {name for name in files if name.endswith(".png")}
    assert list(documents_to_push(run)) == ["report.json", "report.md"]


def test_a_repository_keeps_no_figure_of_an_earlier_verdict():
    assert {name for name in STALE if name.endswith(".png")} == set(PICTURE_FILES)


def test_shards_go_with_their_index_and_an_incomplete_student_is_refused(run):
    whole = run / "model.safetensors"
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "../x",
        }
    }
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    (run / "model-00001-of-00002.safetensors").write_text("x")
    assert "model.safetensors" in files_to_push(run)  # what loads first; the shards are of an earlier student
    assert "model.safetensors.index.json" not in files_to_push(run)
    whole.rename(run / "model-00002-of-00002.safetensors")
    assert {name for name in files_to_push(run) if "safetensors" in name} == {
        *(
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        )
    }
    (run / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(
        DataError, match=r"no complete student in .*model-00001-of-00002.safetensors is missing"
    ):
        files_to_push(run)


def test_code_that_the_config_names_goes_with_it(run):
    config = json.loads((run / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "other/repo--configuration_x.X"}
    (run / "config.json").write_text(json.dumps(config))
    (run / "modeling_mine.py").write_text("from .layers import a\n")
    (run / "layers.py").write_text("a = 1\n")
    (run / "unrelated.py").write_text("")
    assert {name for name in files_to_push(run) if name.endswith(".py")} == {"modeling_mine.py", "layers.py"}


# ---- Words for what failed ----


def test_reasons_have_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret of another form")
    error = ValueError("Illegal header value b'Bearer secret of another form' hf_abcDEFgh12345678")
    assert reason(error) == "Illegal header value b'Bearer hf_…' hf_…"
    assert reason(error, "header") == "Illegal hf_… value b'Bearer hf_…' hf_…"
    assert reason(OSError("no\nroute")) == "the connection to the Hub failed: no route"
    command = push_command("a b", "me/x", private=True, revision="r", pull_request=True)
    assert command == "hf-distill push 'a b' me/x --private --revision r --pull-request"


def test_an_error_that_shows_a_token_anywhere_is_not_raised_from(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret of another form")

    def raised(*texts: str) -> Exception:
        """An error behind which the others stand, the first one by `from`, the others by themselves."""
        try:
            if len(texts) > 1:
                try:
                    raise raised(*texts[1:])
                except Exception as behind:
                    if len(texts) == 2:
                        raise ValueError(texts[0]) from behind
                    raise ValueError(texts[0])  # noqa: B904 - by itself
            raise OSError(texts[0])
        except Exception as error:
            return error

    harmless = raised("one", "two " * 200, "three")
    assert without_tokens(harmless) is harmless
    for secret in ("secret of another form", "hf_abcDEFgh12345678"):
        for texts in ([secret], ["one", secret], ["one", "two", secret], ["one", secret, "three"]):
            assert without_tokens(raised(*texts)) is None
    assert without_tokens(harmless, "three") is None


@pytest.mark.slow
def test_pushes_to_a_double_of_the_hub():
    """The cases of hub_cases.py; alone and with its own options: python tests/hub_cases.py -k card."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hub_cases.py"), "-p", "no:warnings"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
