"""Advice in plain words, names for people, and how recipes differ."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_verdict import claim, judged, run  # noqa: F401 - the fixture of three seeds on 300 rows

from hf_distill.verdict.numbers import About
from hf_distill.verdict.recipes_apart import recipe_differences
from hf_distill.verdict.sentences import advice
from hf_distill.verdict.systems import CALIBRATED, LAST
from hf_distill.verdict.wording import metric_name, metric_value

pytestmark = pytest.mark.pictures

OTHERS = {"fine-tuned, last step": 0.901, "ensemble": 0.925}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            claim(0.011, 0.006, 0.016, latency=0.058),
            "Use the distilled student: it is right on 91.2 % of the rows, the same student without teachers on 90.1 %, its 3 "
            "teachers together on 92.5 %, and it is 17× faster than they are.",
        ),
        (
            claim(0.003, -0.009, 0.015),
            "Not shown to be worth it here: the distilled student is right on 91.2 % of the rows, the same student without "
            "teachers on 90.1 % (a gain below 2.4 points cannot be seen on 500 rows), its 3 teachers together on 92.5 %, and it "
            "is 4.8× faster than they are.",
        ),
        (
            claim(0.19, -0.2, 0.6, seeds=2)._replace(
                gain=claim(0.19, -0.2, 0.6).gain._replace(detectable=0.811)
            ),
            "Not shown to be worth it here: the distilled student is right on 91.2 % of the rows, the same student without "
            "teachers on 90.1 % (2 seeds on 500 rows are too few to see a gain), its 3 teachers together on 92.5 %, and it is "
            "4.8× faster than they are.",
        ),
        (
            claim(-0.011, -0.016, -0.006, latency=None, teachers=1),
            "Do not distil here: the student is right on 91.2 % of the rows, the same student without teachers on 90.1 %, its "
            "teacher on 92.5 %.",
        ),
        (
            claim(0.011, 0.006, 0.016, spread=None, seeds=1, p=0.012, latency=1.02),
            "This student is better than the same one trained without teachers: right on 91.2 % of the rows, the other on "
            "90.1 %, its 3 teachers together on 92.5 %, and it is as fast as they are. One training of each does not say "
            "whether the next would do so too.",
        ),
        (
            claim(0, 0, 0, gain=None, baseline=None, spread=None, latency=2.0),
            "Nothing says what distillation gained: the student is right on 91.2 % of the rows, its 3 teachers together on "
            "92.5 %, and it is 2.0× slower than they are, and none was trained without teachers.",
        ),
    ],
)
def test_the_advice_in_every_outcome(given, words):
    assert advice(given, OTHERS) == words


def test_one_unit_and_names_for_people_throughout(run):  # noqa: F811
    report = judged(run)
    document = report.document()
    for section in document.sections:
        cells = [*section.header, *(cell for row in section.rows for cell in row)]
        assert not {"kl_to_ensemble", "student+teachers", "nll", "ece", "f1", "teacher:big"} & set(cells), (
            section.title
        )
        assert not any("latency /" in cell for cell in cells)
    glance, systems = document.sections[:2]
    assert glance.header == ["system", "accuracy, %", "NLL, nats", "speed", "size"]
    assert glance.rows[0][0] == "distilled student" and glance.rows[0][3] == "4.0× faster"
    assert systems.rows[0][1] == glance.rows[0][1] and "divergence from the ensemble, nats" in systems.header
    assert metric_value("accuracy", 0.5) == "50.0" and metric_name("unknown_one") == "unknown one"


def test_a_glance_compares_with_the_probabilities_that_are_hardest_to_beat(run):  # noqa: F811
    """And not with those of a last step that is sure of everything."""

    def sharper(logs):
        return 9 * logs - np.logaddexp.reduce(9 * logs, axis=-1, keepdims=True)

    def sure(saved):
        rows, validation = saved.rows, saved.validation
        scaled = {
            part: own._replace(
                log_probs={
                    name: sharper(logs) if name == "last" else logs for name, logs in own.log_probs.items()
                }
            )
            for part, own in (("rows", rows), ("validation", validation))
            if own is not None
        }
        return dataclasses.replace(saved, **scaled)

    overfit = SimpleNamespace(**{**vars(run), "baselines": [sure(saved) for saved in run.baselines]})
    report = judged(overfit)
    systems = report.evaluation.systems
    nll = {
        name: systems[name].metrics["nll"] for name, role in report.roles.items() if role.kind == "baseline"
    }
    assert report.claim.baseline == LAST and nll[LAST] > 2 * min(nll.values())
    glance = report.document().sections[0]
    shown = {row[0]: row[1:3] for row in glance.rows if row[0].startswith("fine-tuned")}
    assert LAST not in shown and f"{LAST}, {CALIBRATED}" in shown
    assert f"{min(nll.values()):.3f}" in {value for _, value in shown.values()}
    accuracy = systems[LAST].metrics["accuracy"]
    assert shown[f"{LAST}, {CALIBRATED}"][0].startswith(f"{100 * accuracy:.1f}")


@pytest.mark.parametrize(
    ("task", "header", "outputs", "distance"),
    [
        ("regression", ["within the tolerance, %", "squared error, label units²"], "3 scores", "squared difference"),
        ("multi-label-classification", ["accuracy, %", "NLL, nats"], "3 labels", "summed over the labels"),
    ],
)  # fmt: skip
def test_a_glance_tells_what_the_family_measures(run, task, header, outputs, distance):  # noqa: F811
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (len(run.labels), 3)).astype(float)

    def with_labels(saved):
        noise = {name: truth + generator.normal(size=truth.shape) - 0.5 for name in saved.rows.log_probs}
        rows = saved.rows._replace(labels=truth, log_probs=noise)
        return dataclasses.replace(saved, rows=rows, validation=None)

    of_task = SimpleNamespace(
        students=[with_labels(saved) for saved in run.students],
        baselines=[with_labels(saved) for saved in run.baselines],
        teachers=with_labels(run.teachers),
        ids=run.ids,
    )
    report = judged(of_task, task=task, metrics=[])
    document = report.document()
    glance = document.sections[0]
    assert glance.header[1:3] == header and not any("–" in row[1:3] for row in glance.rows)
    student = report.evaluation.systems["student"].metrics
    right, score = ("within", "squared_error") if task == "regression" else ("accuracy", "nll")
    assert glance.rows[0][1].startswith(f"{100 * student[right]:.1f}")
    assert glance.rows[0][2] == f"{student[score]:.3f}"
    what = metric_name(right).partition(",")[0]
    assert report.sentences[0].startswith(f"distilled student: {what} ")
    assert document.pictures[0].alt.startswith(f"{what.capitalize()} against latency")
    assert document.pictures[0].table.header[2] == metric_name(right)
    assert outputs in document.head and outputs in dict(document.about)["Task"]
    assert distance in document.sections[-1].note


def test_the_page_says_what_was_run_and_a_published_one_names_no_path(run):  # noqa: F811
    about = About(
        "mine", "hf-distill train /home/me/mine/recipe.yaml", "2026-11-27", "train.jsonl", 12_000, 2_000,
        "DistilBertForSequenceClassification", "", 1_146_504, (("bert", "BertForSequenceClassification"), ("b", "")), "0.1.0",
    )  # fmt: skip
    report = dataclasses.replace(judged(run), about=about)
    said = dict(report.document().about)
    assert (
        said["Run"] == "mine"
        and said["Date"] == "2026-11-27"
        and said["Teachers"] == "bert (BertForSequenceClassification), b"
    )
    assert "12,000 rows to train on, 2,000 of them with a label; 300 to judge by (test)" in said["Data"]
    assert said["Student"].endswith("1,146,504 parameters, from scratch")
    page, text = report.document().html(), report.document().markdown()
    assert "<dt>Command</dt><dd><code>hf-distill train /home/me/mine/recipe.yaml</code>" in page.replace(
        "\u00a0", " "
    )
    assert "- Command: `hf-distill train /home/me/mine/recipe.yaml`" in text
    files = report.without_texts().files()
    assert not any(b"/home/me" in content for content in files.values())
    assert b"hf-distill train recipe.yaml" in files["report.md"]


def test_the_recipes_of_runs_are_compared_key_by_key(tmp_path):
    def recipe(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(text)
        return tmp_path / name

    a = recipe(
        "a",
        "losses: {temperature: 2}\ntraining: {output_dir: runs/a, seed: 0}\nteachers: {models: [{name: b, model: x}]}",
    )
    b = recipe(
        "b",
        "losses: {temperature: 4}\ntraining: {output_dir: runs/b, seed: 0, lr: 1e-4}\nteachers: {models: [{name: b, model: y}]}",
    )
    found = recipe_differences({"a": a, "b": b})
    assert [(own.key, own.values) for own in found] == [
        ("losses.temperature", {"a": "2", "b": "4"}),
        ("teachers.models.0.model", {"a": "x", "b": "y"}),
        ("training.lr", {"a": None, "b": "1e-4"}),
    ]
    broken = recipe("c", "losses: [")
    assert recipe_differences({"a": a, "c": broken}) is recipe_differences({"a": a, "none": tmp_path}) is None
    assert recipe_differences({"a": a, "again": a}) == ()
