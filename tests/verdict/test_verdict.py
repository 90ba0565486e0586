"""The verdict: its statistics against independent ones, its words in every outcome, its files, its page, its trainings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import f1_score
from transformers import AutoTokenizer
from typer.testing import CliRunner

from conftest import sentences as made_rows
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError, HfDistillError
from hf_distill.evaluation.cost import Timing, measure_costs
from hf_distill.evaluation.statistics import Difference, Interval, difference, holm
from hf_distill.rows.preparing import example_id
from hf_distill.runs.verdict.jobs import LOG_FILE, Job, Place, places, run_jobs, starting
from hf_distill.runs.verdict.tracking import BestWeights, StepFile
from hf_distill.training.progress import LossLines, LossTable, show_losses
from hf_distill.verdict import Answers, SavedRows, best_teacher, judge
from hf_distill.verdict.answers import finished_rows, in_order, load_rows
from hf_distill.verdict.judging import corrected
from hf_distill.verdict.numbers import Claim, Group
from hf_distill.verdict.sentences import headline

NAMES = ("cold", "mild", "warm")
HOSTILE = '</script><img src=x onerror=alert(1)> & "quoted" | `code` [a](http://evil.example) \x00\x1b[31m'


# ---- Words ----


def claim(value, low, high, few=False, p=None, **changes):
    gain = Difference(
        "accuracy",
        "student",
        "fine-tuned, last step",
        Interval(value, low, high),
        0.024,
        mcnemar=() if p is None else (p,),
        enough=not few,
    )
    given = {
        "accuracy": 0.912,
        "spread": 0.002,
        "rows": 500,
        "seeds": 5,
        "baseline": gain.second,
        "gain": gain,
    }
    return Claim(**{**given, "keeps": 0.986, "teachers": 3, "latency": 0.21, **changes})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            claim(0.011, 0.006, 0.016),
            "distilled student: accuracy 91.2 ± 0.2, +1.1 over fine-tuning (95 % interval +0.6 to +1.6), keeps 98.6 % of "
            "the ensemble, 4.8× faster",
        ),
        (
            claim(0.003, -0.009, 0.015),
            "distilled student: accuracy 91.2 ± 0.2, +0.3 over fine-tuning (95 % interval −0.9 to +1.5): no gain beyond "
            "chance on these 500 rows; detectable from 2.4 points; keeps 98.6 % of the ensemble, 4.8× faster",
        ),
        (
            claim(0.008, 0.002, 0.016, few=True),
            "distilled student: accuracy 91.2 ± 0.2, +0.8 over fine-tuning (95 % interval +0.2 to +1.6): no gain beyond "
            "chance on these 500 rows, on too few of which the answers differ; detectable from 2.4 points; keeps 98.6 % of "
            "the ensemble, 4.8× faster",
        ),
        (
            claim(-0.011, -0.016, -0.006, latency=None),
            "distilled student: accuracy 91.2 ± 0.2, −1.1 against fine-tuning (95 % interval −1.6 to −0.6): distillation "
            "did harm here; keeps 98.6 % of the ensemble",
        ),
        (
            claim(0.011, 0.006, 0.016, spread=None, seeds=1, p=0.012),
            "this student: accuracy 91.2 (one seed), +1.1 over this baseline (95 % interval +0.6 to +1.6): it is better "
            "(McNemar p = 0.012) on rows like these 500; one training says nothing of what distillation gains; keeps 98.6 % of "
            "the ensemble, 4.8× faster",
        ),
        (
            claim(-0.003, -0.015, 0.009, spread=None, seeds=1, p=0.7),
            "this student: accuracy 91.2 (one seed), −0.3 against this baseline (95 % interval −1.5 to +0.9): it is no different "
            "beyond chance (McNemar p = 0.7) on rows like these 500; one training says nothing of what distillation gains; keeps "
            "98.6 % of the ensemble, 4.8× faster",
        ),
        (
            claim(0, 0, 0, gain=None, baseline=None, spread=None, teachers=1),
            "distilled student: accuracy 91.2 (one seed) on 500 rows, compared with no fine-tuning, keeps 98.6 % of its teacher, "
            "4.8× faster",
        ),
    ],
)
def test_the_sentence_in_every_outcome(given, words):
    assert headline(given) == words


# ---- Rows ----


def answers(ids, labels, **systems):
    return Answers(
        np.array(ids), np.array(labels), {k: np.asarray(v, np.float32) for k, v in systems.items()}
    )


def test_rows_are_read_back_and_damage_is_said(tmp_path):
    logs = log_softmax([[1.0, 2, -np.inf], [0, 0, 3]], axis=1)
    saved = SavedRows(
        "baseline", 7, "test", NAMES, answers([5, -3], [1, -100], last=logs, best=logs), lengths=np.array([4, 9]),
        validation=answers([8], [0], last=logs[:1], best=logs[:1]), facts={"steps": 3}, key="k",
    )  # fmt: skip
    path = saved.save(tmp_path)
    again = load_rows(path)
    assert path.relative_to(tmp_path).as_posix() == "verdict/rows-baseline-7.npz"
    assert (again.part, again.seed, again.label_names, again.facts) == ("baseline", 7, NAMES, {"steps": 3})
    np.testing.assert_array_equal(again.rows.log_probs["best"], logs.astype(np.float32))
    np.testing.assert_array_equal(again.validation.labels, [0])
    assert finished_rows(tmp_path, "baseline", 7, "k") is not None
    assert finished_rows(tmp_path, "baseline", 7, "other") is None
    assert finished_rows(tmp_path, "baseline", 8, "k") is None
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptStateError, match="train that seed again"):
        load_rows(path)
    assert finished_rows(tmp_path, "baseline", 7, "k") is None


def test_rows_are_paired_by_what_is_in_them():
    """Another order, a row that stands twice, and classes in another order."""
    logs = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]])
    saved = SavedRows("student", 0, "test", NAMES, answers([4, 9, 4], [0, 2, -100], student=logs))
    found = in_order(saved, np.array([4, 4, 9]), ("warm", "cold", "mild"), "run")
    np.testing.assert_allclose(
        np.exp(found.log_probs["student"]), [[0.1, 0.7, 0.2], [0.2, 0.2, 0.6], [0.8, 0.1, 0.1]], atol=1e-6
    )
    assert found.labels.tolist() == [1, -100, 0]
    with pytest.raises(DataError, match="3 of its own, 3 here, 1 in common"):
        in_order(saved, np.array([4, 4, 8]), NAMES, "run")
    with pytest.raises(DataError, match="the same classes"):
        in_order(saved, np.array([4, 4, 9]), ("a", "b", "c"), "run")


# ---- The report ----


def drawn(generator, labels, quality, scale=2.0):
    """(N, C) log-probabilities that favour the label by ``quality``."""
    logits = generator.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), np.clip(labels, 0, None)] += quality
    return log_softmax(scale * logits, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def run():
    """Students and baselines of three seeds and two teachers on 300 rows, one of them without a label."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 300)
    labels[17] = -100
    held, ids, held_ids = generator.integers(0, 3, 120), np.arange(300) * 7 - 900, np.arange(120)
    facts = {"steps": 40, "seconds": 12.5, "best_step": 20, "log": [
        {"step": s, "loss": 1.0, "loss_task": 1 / s, "eval_nll": 1 / s, "eval_accuracy": 0.5} for s in (10, 20, 40)
    ]}  # fmt: skip

    def trained(part, seed, **quality):
        systems = {name: drawn(generator, labels, value) for name, value in quality.items()}
        checked = {name: drawn(generator, held, value) for name, value in quality.items()}
        return SavedRows(
            part, seed, "test", NAMES, Answers(ids, labels, systems), Answers(held_ids, held, checked),
            lengths=np.arange(300) % 11 + 3, facts=facts, key="k",
        )  # fmt: skip

    students = [trained("student", seed, student=1.6) for seed in (4, 5, 6)]
    baselines = [trained("baseline", seed, last=1.0, best=0.9) for seed in (4, 5, 6)]
    logs = {name: drawn(generator, labels, 2.2, 1.0) for name in ("teacher:big", f"teacher:{HOSTILE}")}
    logs["ensemble"] = np.log(np.mean([np.exp(v) for v in logs.values()], axis=0)).astype(np.float32)
    teachers = SavedRows("teachers", None, "test", NAMES, Answers(ids, labels, logs), key="k")
    return SimpleNamespace(students=students, baselines=baselines, teachers=teachers, labels=labels, ids=ids)


def judged(run, **changes):
    teachers = [f"teacher:{name}" for name in ("big", HOSTILE)]
    costs = measure_costs(
        {
            "student": lambda: Timing((0.001, 0.002, 0.003), 900.0, 10, 40),
            **{name: lambda: Timing((0.004, 0.004, 0.010), 100.0, 100, 400) for name in teachers},
        },
        {"ensemble": teachers, "student+teachers": ["student", *teachers]},
        show=False,
    )
    options = {
        "task": "text-classification", "metrics": ["accuracy", "f1"], "costs": costs, "conditions": "On cpu.",
        "texts": {int(i): (f"row {i}", HOSTILE) for i in run.ids}, "notes": [HOSTILE],
    }  # fmt: skip
    return judge(run.students, run.baselines, run.teachers, **{**options, **changes})


@pytest.fixture(scope="module")
def report(run):
    return judged(run)


def test_figures_against_numpy(run, report):
    content = report.to_dict()
    known = run.labels >= 0
    truth, each = run.labels[known], []
    for saved in run.students:
        logs = saved.rows.log_probs["student"][known].astype(float)
        each.append(((logs.argmax(1) == truth).mean(), -logs[np.arange(len(truth)), truth].mean()))
    student = content["systems"]["student"]
    assert student["metrics"]["accuracy"] == pytest.approx(np.mean(each, axis=0)[0])
    assert student["metrics"]["nll"] == pytest.approx(np.mean(each, axis=0)[1])
    assert student["std"]["nll"] == pytest.approx(np.std(each, axis=0, ddof=1)[1])
    assert student["by_seed"]["5"]["accuracy"] == pytest.approx(each[1][0])
    # Calibrated: no answer changes, and no temperature on a grid fits the validation rows better.
    calibrated = content["systems"]["student, calibrated"]["metrics"]
    assert calibrated["accuracy"] == pytest.approx(student["metrics"]["accuracy"])
    held = run.students[1].validation
    grid = {t: _nll(held.log_probs["student"], held.labels, t) for t in np.linspace(0.5, 5, 451)}
    assert content["temperatures"]["student, calibrated"][1] == pytest.approx(
        min(grid, key=grid.get), abs=0.011
    )
    # The student with its teachers is the mean of three distributions, seed by seed.
    teachers = [v for name, v in run.teachers.rows.log_probs.items() if name.startswith("teacher:")]
    together = [
        np.mean([np.exp(v.astype(float)) for v in (saved.rows.log_probs["student"], *teachers)], axis=0)
        for saved in run.students
    ]
    right = np.mean([(p[known].argmax(1) == truth).mean() for p in together])
    assert content["systems"]["student+teachers"]["metrics"]["accuracy"] == pytest.approx(right)
    assert content["systems"]["ensemble"]["by_seed"] == {}
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def _nll(logs, labels, temperature):
    scaled = log_softmax(logs.astype(float) / temperature, axis=1)
    return -scaled[np.arange(len(labels)), labels].mean()


def test_the_claim_is_made_against_the_better_baseline(run, report):
    content, known = report.to_dict(), run.labels >= 0
    right = {
        kind: np.array(
            [(b.rows.log_probs[kind].argmax(1) == run.labels)[known] for b in run.baselines], float
        )
        for kind in ("last", "best")
    }
    better = max(right, key=lambda kind: right[kind].mean())
    assert content["claim"]["baseline"] == f"fine-tuned, {better} step"
    own = np.array(
        [(s.rows.log_probs["student"].argmax(1) == run.labels)[known] for s in run.students], float
    )
    gain = content["claim"]["gain"]
    assert gain["value"]["value"] == pytest.approx((own - right[better]).mean())
    assert gain["mcnemar"] == pytest.approx(
        [
            binomtest(int((a > b).sum()), int((a != b).sum())).pvalue
            for a, b in zip(own, right[better], strict=True)
        ]
    )
    assert content["outcome"] == "gain" and content["verdict"].startswith("distilled student: accuracy ")
    # Of the NLL the better baseline is a calibrated one, since these students are over-confident.
    nll = next(d for d in content["differences"] if d["measure"] == "nll")
    assert nll["second"].endswith(", calibrated")
    assert content["claim"]["latency"] == pytest.approx(0.002 / 0.008)


def test_the_worse_student_is_called_so(run):
    found = judged(
        SimpleNamespace(**{**vars(run), "students": _renamed(run.baselines), "baselines": _swapped(run)})
    )
    assert found.claim.outcome == "loss" and "did harm" in found.sentences[0]
    same = judged(SimpleNamespace(**{**vars(run), "students": _renamed(run.baselines)}))
    assert (
        same.claim.outcome == "no difference"
        and "no gain beyond chance on these 299 rows" in same.sentences[0]
    )
    none = judged(SimpleNamespace(**{**vars(run), "baselines": []}))
    assert none.claim.outcome == "no baseline" and none.claim.gain is None
    assert not any(name.startswith("fine-tuned") for name in none.evaluation.systems)


def _renamed(baselines):
    return [
        SavedRows(**{**vars(b), "part": "student", "rows": b.rows._replace(log_probs={"student": b.rows.log_probs["last"]}),
                     "validation": b.validation._replace(log_probs={"student": b.validation.log_probs["last"]})})
        for b in baselines
    ]  # fmt: skip


def _swapped(run):
    return [
        SavedRows(**{**vars(s), "rows": s.rows._replace(log_probs={"last": s.rows.log_probs["student"]}),
                     "validation": s.validation._replace(log_probs={"last": s.validation.log_probs["student"]})})
        for s in run.students
    ]  # fmt: skip


def test_a_best_step_that_is_the_last_is_no_other_baseline(run):
    same = [
        SavedRows(**{**vars(b), "rows": b.rows._replace(log_probs=dict.fromkeys(("last", "best"), b.rows.log_probs["last"]))})
        for b in run.baselines
    ]  # fmt: skip
    found = judged(SimpleNamespace(**{**vars(run), "baselines": same}))
    assert {n for n in found.evaluation.systems if n.startswith("fine")} == {
        "fine-tuned, last step", "fine-tuned, last step, calibrated",
    }  # fmt: skip


def test_rows_in_another_order_change_nothing(run, report):
    def turned(saved):
        turn = lambda a: a._replace(  # noqa: E731
            example_ids=a.example_ids[::-1], labels=a.labels[::-1], log_probs={k: v[::-1] for k, v in a.log_probs.items()}
        )  # fmt: skip
        return SavedRows(**{**vars(saved), "rows": turn(saved.rows)})

    found = judged(SimpleNamespace(**{**vars(run), "baselines": [turned(b) for b in run.baselines],
                                      "teachers": turned(run.teachers)}))  # fmt: skip
    assert found.to_dict() == report.to_dict()


def test_left_out_rows_and_a_busy_machine(run):
    found = judged(run, left_out=run.ids[:50], busy="Too busy.")
    assert found.evaluation.rows == 250 == found.claim.rows  # the row without a label is among the first
    assert found.claim.latency is None and "latency" not in found.sentences[0]
    assert "Too busy." in found.evaluation.notes
    with pytest.raises(DataError, match="None of the 0 test rows has a label"):
        judged(run, left_out=run.ids)


def test_classes_and_lengths_add_up(run, report):
    content, known = report.to_dict(), run.labels >= 0
    assert [g["rows"] for g in content["per_class"]] == np.bincount(run.labels[known]).tolist()
    assert sum(g["rows"] for g in content["per_length"]) == 299
    own = np.array([s.rows.log_probs["student"].argmax(1) for s in run.students])
    for c, group in enumerate(content["per_class"]):
        assert group["accuracy"]["student"] == pytest.approx((own[:, run.labels == c] == c).mean())
        hits = ((own == c) & (run.labels == c)).sum(1)
        f1 = np.mean(2 * hits / ((own[:, known] == c).sum(1) + (run.labels == c).sum()))
        assert group["f1"]["student"] == pytest.approx(f1)
    low, high = re.fullmatch(r"(\d+) to (\d+)", content["per_length"][0]["name"]).groups()
    lengths = run.students[0].lengths[known]
    assert content["per_length"][0]["rows"] == ((lengths >= int(low)) & (lengths <= int(high))).sum()


def test_macro_f1_is_compared_with_the_baseline_of_most(run, report):
    known = run.labels >= 0
    truth = run.labels[known]

    def f1(saved, system):
        return f1_score(truth, saved.rows.log_probs[system].argmax(1)[known], average="macro")

    own = [f1(saved, "student") for saved in run.students]
    other = {kind: [f1(b, kind) for b in run.baselines] for kind in ("last", "best")}
    best = max(other, key=lambda kind: np.mean(other[kind]))
    (found,) = (d for d in report.differences if d.measure == "f1")
    assert (found.first, found.second) == ("student", f"fine-tuned, {best} step")
    assert found.value.value == pytest.approx(np.mean(own) - np.mean(other[best]))
    assert found.value.low < found.value.value < found.value.high and found.mcnemar == ()
    # Three classes of as many rows: F1 varies nearly as accuracy does.
    right = report.claim.gain.value
    assert found.value.high - found.value.low == pytest.approx(right.high - right.low, rel=0.2)
    (table,) = (section for section in report.sections() if section.title == "Differences")
    (row,) = (row for row in table.rows if row[0] == "macro F1, points")
    assert row[1:3] == ["distilled student", found.second] and row[-1] == "better"


def test_gains_of_classes_are_corrected_for_their_number(run, report):
    """Holm over the classes; of those too small to tell anything, none is counted."""
    known, right = run.labels >= 0, {}
    for part, saved, kind in (
        ("a", run.students, "student"),
        ("b", run.baselines, report.claim.baseline[12:16]),
    ):
        right[part] = np.array(
            [(s.rows.log_probs[kind].argmax(1) == run.labels)[known] for s in saved], float
        )
    truth = run.labels[known]
    each = [
        difference("accuracy", ("a", "b"), right["a"][:, truth == c], right["b"][:, truth == c])
        for c in range(3)
    ]
    assert [g.p for g in report.per_class] == pytest.approx(holm([d.p for d in each]))
    assert [g.beyond_chance for g in report.per_class] == [p < 0.05 for p in holm([d.p for d in each])]
    assert [g.gain for g in report.per_class] == [d.value for d in each]
    one = Group("a", 40, {}, Interval(0.2, 0.1, 0.3), {}, True, 0.03)
    small = one._replace(rows=5, beyond_chance=False, p=1.0)
    assert [g.beyond_chance for g in corrected([one, small, small])] == [True, False, False]
    assert [g.p for g in corrected([one, one, small])] == [0.06, 0.06, 1.0]
    assert not any(g.beyond_chance for g in corrected([one, one]))
    table = next(section for section in report.sections() if section.title == "By class")
    assert "p" in table.header and "Holm" in table.note


def test_the_rows_of_most_disagreement(run, report):
    rows = report.disagreements
    assert len(rows) == 20 and [r.kl for r in rows] == sorted((r.kl for r in rows), reverse=True)
    p = np.exp(run.teachers.rows.log_probs["ensemble"].astype(float))
    q = run.students[0].rows.log_probs["student"].astype(float)
    kl = (p * (np.log(p) - q)).sum(1)
    assert rows[0].kl == pytest.approx(kl.max(), rel=1e-4)
    assert rows[0].text.startswith(f"row {run.ids[kl.argmax()]} / </script>") and len(rows[0].text) <= 240
    assert "\x1b" not in rows[0].text


# ---- Files ----


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    report.save(folder)
    return folder


def test_report_json_keeps_what_readers_know(folder):
    content = json.loads((folder / "report.json").read_text())
    assert content["version"] == 2
    assert {"task", "dataset", "rows", "systems", "labels", "fusion", "notes"} <= content.keys()
    assert {"metrics", "parameters"} <= content["systems"]["student"].keys()
    assert content["systems"]["student"]["parameters"] == 10
    assert {"verdict", "cost", "per_class", "per_length", "differences", "trainings"} <= content.keys()


def test_report_md_is_inert(folder):
    text = (folder / "report.md").read_text()
    assert text.startswith("# Verdict\n\n**Use the distilled student: it is right on ")
    assert "\n\ndistilled student: accuracy" in text
    assert not re.search(r"<img|</script|(?<!\\)\]\(http|[\x00-\x08\x1b]", text)
    for title in (
        "At a glance",
        "Systems",
        "Differences",
        "Cost",
        "Trainings",
        "By class",
        "By length",
        "Where student",
    ):
        assert f"\n## {title}" in text
    widths = {
        line.count(" | ") for line in text.split("## Where student")[1].splitlines() if line.startswith("| ")
    }
    assert len(widths) == 1  # a bar in a text makes no new column


class Page(HTMLParser):
    """What a page consists of."""

    VOID = {"meta", "path", "use", "br", "img", "link"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.references, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "data", "action", "srcset")
        ]
        assert not any(name.startswith("on") for name, _ in attributes), attributes

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_nothing_else(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.references and all(reference.startswith("#") for reference in page.references)
    # Names of XML's namespaces are no addresses that anything is fetched from.
    rest = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", text)
    assert not re.findall(r"(?:https?:)?//(?!evil\.example)[a-z]", rest)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]+)", rest))
    assert "@import" not in text
    assert page.tags.count("svg") == 8
    shown = "".join(page.texts).replace("\u00a0", " ")
    assert '</script><img src=x onerror=alert(1)> & "quoted"' in shown
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text
    # No colour of a figure is left that does not follow the page.
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", text)


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no headless browser (chromium, google-chrome) is installed")
def test_the_page_renders(folder, tmp_path):
    """A browser draws it without a complaint, and what it draws is not blank."""
    from PIL import Image

    picture = tmp_path / "page.png"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,2400",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}",
         (folder / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert picture.is_file(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr  # what the page's own policy refuses, or the browser cannot read
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    for part in np.array_split(pixels, 6):
        assert part.std() > 5, "an empty stretch"


# ---- While it trains ----


def test_jobs_run_side_by_side_and_failures_are_told(tmp_path):
    def job(name, code):
        return Job(name, (code,), tmp_path / name, 10)

    program = (sys.executable, "-c", "import sys; exec(sys.argv[1])")
    show = "import os; print('threads', os.environ['OMP_NUM_THREADS'], os.environ.get('RANK'))"
    run_jobs([job(n, show) for n in "abc"], [Place(threads=2)] * 2, program=program, show=False)
    logs = [(tmp_path / n / LOG_FILE).read_text() for n in "abc"]
    assert logs == [f"threads {n} None\n" for n in (2, 1, 1)]  # the odd one first, with both cores
    bad = [job("fine", show), job("bad", "print('what went wrong'); sys.exit(3)")]
    with pytest.raises(HfDistillError, match=r"(?s)bad ended with exit code 3.*what went wrong") as raised:
        run_jobs(bad, [Place(threads=1)] * 2, program=program, show=False)
    assert raised.value.exit_code == 3
    slow = job("slow", "import time; time.sleep(60)")
    with pytest.raises(HfDistillError):
        run_jobs([slow, bad[1]], [Place(threads=1)] * 2, program=program, show=False)


def test_places_divide_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert places("cpu", {}) == [Place(threads=8)] * 8
    assert places("cpu", {"OMP_NUM_THREADS": "3"}) == [Place(threads=3)] * 8
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for seen, names in (({"CUDA_VISIBLE_DEVICES": "4,6"}, "46"), ({}, "01")):
        assert places("cuda", seen) == [Place({"CUDA_VISIBLE_DEVICES": name}) for name in names]


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("jobs", range(1, 12))
def test_no_core_idles_while_trainings_of_one_length_run(jobs, cores):
    waiting = jobs
    while waiting:
        taken = starting(waiting, cores, cores)
        assert sum(taken) == cores and min(taken) >= 1 and max(taken) - min(taken) <= 1
        waiting -= len(taken)
    assert waiting == 0


def test_the_best_weights_are_the_earliest_of_equals():
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    best = BestWeights("nll", greater_is_better=False)
    for step, value in ((1, 0.9), (2, 0.5), (3, 0.5), (4, 0.8)):
        model.weight.data.fill_(step)
        best.on_evaluate(None, SimpleNamespace(global_step=step), None, {"eval_nll": value}, model)
    assert (best.step, best.seen, best.weights["weight"].item()) == (2, 4, 2.0)
    best = BestWeights("unknown", greater_is_better=True)  # then the evaluation loss counts
    for step, value in ((1, 0.9), (2, 0.5)):
        best.on_evaluate(None, SimpleNamespace(global_step=step), None, {"eval_loss": value}, model)
    assert best.step == 2


def test_losses_are_shown_by_the_first_process_alone(capsys, tmp_path):
    state = SimpleNamespace(is_world_process_zero=True, global_step=5, max_steps=10)
    lines = LossLines("student")
    lines.on_train_begin(None, SimpleNamespace(global_step=0), None)
    logs = {"loss": 1.25, "loss_task": 0.5, "learning_rate": 1e-5, "epoch": 0.5, "total_flos": 3e9}
    lines.on_log(None, state, None, logs)
    lines.on_log(None, state, None, {"eval_loss": 2.0, "eval_runtime": 3.0, "eval_rows_per_second": 9.0})
    lines.on_log(None, state, None, {"train_runtime": 9.0})
    lines.on_log(None, SimpleNamespace(**{**vars(state), "is_world_process_zero": False}), None, logs)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "student; step 5 of 10; loss 1.2500, loss_task 0.5000, learning_rate 1.0e-05; 0:00 left"
    )
    assert second == "student; step 5 of 10; validation; loss 2.0000"
    table = LossTable()
    heads = sum(len(table.lines(i, {"loss": 1.0, "epoch": 0.1})) - 1 for i in range(60))
    assert heads == 3  # a header every 25 lines
    assert table.lines(7, {"loss": 1.0, "distill_weight": 0.2, "epoch": 0.1})[0].endswith("distill_weight")
    now = iter([0.0, 0.0, 0.1, 0.1, 9.0, 9.0])
    file = StepFile(tmp_path / "steps", clock=lambda: next(now))
    for step in (1, 2, 3):
        file.on_step_end(None, SimpleNamespace(is_world_process_zero=True, global_step=step), None)
        if step == 2:
            assert (tmp_path / "steps").read_text() == "1\n"


# ---- The whole command ----


@pytest.fixture
def recipe(checkpoints, rows, held_out, tmp_path, monkeypatch):
    """A recipe on tiny checkpoints; half of the training rows have no label."""
    monkeypatch.chdir(tmp_path)
    half = [{**row, "label": row["label"] if i % 2 else None} for i, row in enumerate(made_rows(48, seed=7))]
    datasets.Dataset.from_list(half).to_json("train.jsonl")
    datasets.Dataset.from_list(made_rows(20, seed=8)).to_json("validation.jsonl")
    held_out.to_json("test.jsonl")
    Path("tiny.yaml").write_text(f"""
data:
  files: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  label_names: [negative, positive]
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
fusion: linear_pool
training:
  use_cpu: true
  max_steps: 6
  per_device_train_batch_size: 8
  learning_rate: 1e-2
  logging_steps: 2
  save_strategy: no
  eval_strategy: steps
  eval_steps: 2
  seed: 3
  disable_tqdm: true
  output_dir: out
evaluation: {{seeds: 2}}
""")
    from hf_distill.evaluation import cost
    from hf_distill.runs.verdict import judgement

    timed = cost.time_model
    monkeypatch.setattr(judgement, "time_model", lambda *a, **k: timed(*a, **{**k, "seconds": 0.02}))
    monkeypatch.setattr(
        judgement, "places", lambda device: [Place()]
    )  # in this process: an import of torch costs seconds
    return "tiny.yaml"


def train(*arguments):
    from hf_distill.cli import app

    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 0, (done.output[-2000:], done.exception)
    return done.stdout


def test_two_seeds_from_end_to_end_and_again(recipe, monkeypatch):
    from hf_distill.cli import app
    from hf_distill.runs.verdict import judgement as recipe_side

    printed = train(recipe)
    assert "Verdict: training 3 of 3: baseline, seed 4" in printed
    assert printed.rstrip().endswith("The report is in out: report.html, report.md and report.json")
    content = json.loads(Path("out/report.json").read_text())
    assert content["seeds"] == [3, 4] and content["dataset"] == "test" and content["rows"] == 33
    steps = {(t["part"], t["seed"]): t["steps"] for t in content["trainings"]}
    assert steps == {("student", 3): 6, ("student", 4): 6, ("baseline", 3): 6, ("baseline", 4): 6}
    assert {
        "student",
        "fine-tuned, last step",
        "ensemble",
        "student+teachers",
        "teacher:bert",
        "teacher:roberta",
    } <= set(content["systems"])
    assert content["cost"]["systems"]["ensemble"]["p50"] > 0
    for name in ("seed-3/baseline", "seed-4/student", "seed-4/baseline"):
        assert Path("out", name, "model.safetensors").is_file()
        assert not list(Path("out", name).glob("checkpoint-*"))
    # The baseline saw the labelled rows alone: another student than the one that learnt from teachers too.
    last = [load_rows(Path("out/verdict/rows-baseline-3.npz")).rows.log_probs["last"]]
    assert not np.allclose(last, load_rows(Path("out/verdict/rows-student-3.npz")).rows.log_probs["student"])

    # The figures of the student that lies there, from the command that evaluates it; the verdict stays.
    evaluated = CliRunner().invoke(app, ["evaluate", "out/recipe.yaml"])
    assert evaluated.exit_code == 0, evaluated.output
    alone = json.loads(Path("out/evaluation/report.json").read_text())["systems"]
    assert alone["student"]["metrics"]["nll"] == pytest.approx(
        content["systems"]["student"]["by_seed"]["3"]["nll"], abs=1e-5
    )
    assert alone["ensemble"]["metrics"]["nll"] == pytest.approx(
        content["systems"]["ensemble"]["metrics"]["nll"], abs=1e-5
    )
    assert json.loads(Path("out/report.json").read_text()) == content

    # Again: nothing is trained; one part lost: that part alone, with the same answers.
    before = load_rows(Path("out/verdict/rows-baseline-4.npz")).rows.log_probs["last"]
    trained, original = [], recipe_side.train_part
    monkeypatch.setattr(recipe_side, "train_part", lambda *a: trained.append((a[1], a[2])) or original(*a))
    printed = train(recipe)
    assert "is of this recipe, and is not trained again" in printed and trained == []
    assert json.loads(Path("out/report.json").read_text())["systems"] == content["systems"]
    Path("out/verdict/rows-baseline-4.npz").unlink()
    printed = train(recipe)
    assert trained == [("baseline", 4)]
    after = load_rows(Path("out/verdict/rows-baseline-4.npz")).rows.log_probs["last"]
    np.testing.assert_array_equal(before, after)

    # The same part by the command that the processes of a verdict run, with the same answers once more.
    key = load_rows(Path("out/verdict/rows-baseline-4.npz")).key
    Path("out/verdict/rows-baseline-4.npz").unlink()
    done = CliRunner().invoke(app, ["train-part", "out/recipe.yaml", "baseline", "4", key])
    assert done.exit_code == 0, (done.output, done.exception)
    again = load_rows(Path("out/verdict/rows-baseline-4.npz"))
    np.testing.assert_array_equal(before, again.rows.log_probs["last"])
    assert again.key == key and "log" in again.facts


@pytest.mark.slow
def test_another_recipe_is_another_training_and_the_same_one_is_none(recipe, monkeypatch):
    from hf_distill.runs.verdict import judgement as recipe_side

    train(recipe)
    trained, original = [], recipe_side.train_part
    monkeypatch.setattr(recipe_side, "train_part", lambda *a: trained.append((a[1], a[2])) or original(*a))
    # Even if only the steps differ at which the best could be chosen.
    printed = train(recipe, "training.eval_steps=3", "--overwrite")
    assert trained == [("baseline", 3), ("student", 4), ("baseline", 4)]
    assert "is not trained again" not in printed
    del trained[:]
    train(recipe, "training.eval_steps=3", "training.hub_private_repo=true", "training.logging_steps=1")
    assert trained == []

    # A student that another training left in the folder is not the one that the rows are of.
    train(
        recipe, "losses.temperature=7", "training.eval_steps=3", "evaluation={verdict: false}", "--overwrite"
    )
    printed = train(recipe, "training.eval_steps=3", "--overwrite")
    assert "is not trained again" not in printed.partition("Finished before")[0]


def test_one_seed_then_two_and_what_has_no_verdict(recipe, monkeypatch):
    seen = Path("out/report.html")
    train(recipe, "evaluation.seeds=1", "training.output_dir=none", "evaluation.verdict=false")
    assert json.loads(Path("none/report.json").read_text()).keys() == {
        "task", "dataset", "rows", "systems", "labels", "fusion", "notes",
    }  # fmt: skip
    # Selected by the rows of the report, so no baseline chooses a step by them, and no temperature is fitted on them.
    printed = train(recipe, "evaluation.seeds=1", "evaluation.split=validation")
    content = json.loads(Path("out/report.json").read_text())
    assert seen.is_file() and content["outcome"] == "one seed"
    assert content["verdict"].startswith("this student: accuracy ") and "this baseline" in content["verdict"]
    assert max(map(len, printed.rpartition("\nVerdict: ")[2].splitlines())) <= 80
    printed = " ".join(printed.split())
    assert "Verdict: This student is " in printed and "One training of each does not say" in printed
    assert "One seed: the intervals are over rows only" in printed
    assert "evaluation.seeds=3 keeps what is trained and adds 4 trainings, about 0:" in printed
    assert "The teachers are the same in all of this" in printed and "2 classes, 1 seed (3)" in printed
    assert not any("calibrated" in name or "best" in name for name in content["systems"])
    # More seeds later: what is there is kept, and the report says which it has.
    from hf_distill.runs.verdict import judgement

    trained, original = [], judgement.train_part
    monkeypatch.setattr(judgement, "train_part", lambda *a: trained.append((a[1], a[2])) or original(*a))
    before = load_rows(Path("out/verdict/rows-student-3.npz")).rows.log_probs["student"]
    printed = train(recipe, "evaluation.seeds=2", "evaluation.split=validation")
    assert "is of this recipe, and is not trained again" in printed
    assert trained == [("student", 4), ("baseline", 4)] and "2 seeds (3, 4)" in printed
    grown = json.loads(Path("out/report.json").read_text())
    assert grown["seeds"] == [3, 4] and grown["outcome"] != "one seed"
    assert grown["systems"]["student"]["by_seed"]["3"] == content["systems"]["student"]["by_seed"]["3"]
    after = load_rows(Path("out/verdict/rows-student-3.npz")).rows.log_probs["student"]
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_the_student_of_the_best_single_teacher(recipe, checkpoints):
    printed = train(recipe, "evaluation={seeds: 1, single_teacher: true}")
    content = json.loads(Path("out/report.json").read_text())
    teachers = {name: own for name, own in content["systems"].items() if name.startswith("teacher:")}
    best = max(teachers, key=lambda name: teachers[name]["metrics"]["accuracy"]).removeprefix("teacher:")
    name = f"student of {best}"
    assert {name, f"{name}, calibrated"} <= set(content["systems"])
    assert [t["part"] for t in content["trainings"]] == ["student", "baseline", "single"]
    compared = [d for d in content["differences"] if d["second"] == name]
    assert [d["measure"] for d in compared] == ["accuracy", "nll"]
    assert f"The same student of the best single teacher, '{best}', alone: accuracy" in printed
    assert content["systems"][name]["parameters"] == content["systems"]["student"]["parameters"]
    # One that the other teacher has no part in: what a recipe that does not name it comes to.
    alone = load_rows(Path("out/verdict/rows-single-3.npz"))
    assert alone.facts["teacher"] == best
    train(
        recipe,
        f"teachers.models=[{checkpoints[best]}]",
        "training.output_dir=alone",
        "evaluation.seeds=1",
    )
    other = load_rows(Path("alone/verdict/rows-student-3.npz"))
    np.testing.assert_allclose(alone.rows.log_probs["student"], other.rows.log_probs["student"], atol=1e-6)
    both = load_rows(Path("out/verdict/rows-student-3.npz"))
    assert not np.allclose(alone.rows.log_probs["student"], both.rows.log_probs["student"], atol=1e-4)


def test_a_single_teacher_has_all_classes():
    ids, labels = np.arange(2), np.array([0, 1])
    with np.errstate(divide="ignore"):
        lacking = np.log(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    whole = np.log(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    assert best_teacher(answers(ids, labels, **{"teacher:a": lacking, "teacher:b": whole})) == "b"
    assert best_teacher(answers(ids, labels, **{"teacher:a": lacking, "ensemble": whole})) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["evaluation.verdict=false"], "evaluation.single_teacher: it is for the verdict"),
        (["teachers.models=[org/a]"], "evaluation.single_teacher: there is one teacher"),
    ],
)
def test_a_single_teacher_is_one_of_several(recipe, changes, words):
    from hf_distill.recipe import load_recipe

    with pytest.raises(ConfigurationError, match=words):
        load_recipe(recipe, ["evaluation.seeds=1", "evaluation.single_teacher=true", *changes])


def test_both_are_chosen_by_the_rows_of_the_report_or_neither(recipe):
    train(
        recipe,
        "evaluation={seeds: 1, split: validation}",
        "training.load_best_model_at_end=true",
        "training.save_strategy=steps",
        "training.save_steps=2",
    )
    baseline = load_rows(Path("out/verdict/rows-baseline-3.npz"))
    assert set(baseline.rows.log_probs) == {"last", "best"} and baseline.validation is None


def test_lengths_follow_the_rows(recipe, checkpoints):
    train(recipe, "evaluation={seeds: 1}", "training.train_sampling_strategy=group_by_length")
    saved = load_rows(Path("out/verdict/rows-student-3.npz"))
    texts = datasets.Dataset.from_json("test.jsonl")["text"]
    found = dict(zip(saved.rows.example_ids.tolist(), saved.lengths.tolist(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["student"])
    assert found == {example_id((text,)): len(tokenizer(text)["input_ids"]) for text in texts}


def test_a_wrong_label_is_said_before_the_training(recipe):
    from hf_distill.cli import app

    rows = [{"text": "a film", "label": "positive"}, {"text": "a plot", "label": "neutral"}]
    datasets.Dataset.from_list(rows).to_json("test.jsonl")
    done = CliRunner().invoke(app, ["train", recipe])
    assert done.exit_code == 3 and "neutral" in done.output and not Path("out/model.safetensors").exists()


def test_a_teacher_that_is_gone_costs_a_note(recipe, checkpoints, tmp_path, monkeypatch):
    shutil.copytree(checkpoints["roberta"], "gone")
    from hf_distill.runs.verdict import judgement as recipe_side

    answered = recipe_side.answers_of_all
    monkeypatch.setattr(
        recipe_side, "answers_of_all", lambda *a, **k: (answered(*a, **k), shutil.rmtree("gone"))[0]
    )
    train(
        recipe,
        "evaluation={seeds: 1}",
        f"teachers={{models: [{checkpoints['bert']}, ./gone], cache_dir: cache}}",
    )
    content = json.loads(Path("out/report.json").read_text())
    assert set(content["cost"]["systems"]) == {"student", "teacher:bert"}
    assert any("Teacher 'gone' could not be timed on this machine" in note for note in content["notes"])
    assert content["systems"]["ensemble"]["metrics"]["accuracy"] > 0 and content["claim"]["latency"] is None


def test_a_stream_from_elsewhere_makes_other_trainings(recipe):
    from hf_distill.recipe import Setup, load_recipe
    from hf_distill.runs.verdict.judgement import open_verdict

    shutil.copy("train.jsonl", "other.jsonl")

    def key(file):
        changes = ["data.streaming=true", f"data.files.train={file}"]
        setup = Setup(load_recipe(recipe, changes))
        return open_verdict(setup, setup.trainer()).key

    assert key("train.jsonl") == key("train.jsonl") != key("other.jsonl")


def test_no_labels_no_baseline(recipe, monkeypatch):
    from hf_distill.recipe import Setup, load_recipe
    from hf_distill.runs.verdict.trainings import has_labels, labelled_rows

    setup = Setup(load_recipe(recipe))
    raw = setup.rows["train"]
    assert len(labelled_rows(setup, raw, ["negative", "positive"])) == 24
    blank = datasets.Dataset.from_list([{"text": "a film", "label": None}] * 3)
    assert has_labels(setup, raw, ["negative", "positive"])
    assert not has_labels(setup, blank, ["negative", "positive"])
    assert not has_labels(setup, blank.remove_columns("label"), ["negative", "positive"])
    datasets.Dataset.from_list([{"text": row["text"], "label": -100} for row in raw]).to_json("train.jsonl")
    train(recipe, "losses={task_weight: 0, distill_weight: 1}", "evaluation.seeds=1")
    content = json.loads(Path("out/report.json").read_text())
    assert content["outcome"] == "no baseline" and any(
        "no fine-tuned baseline" in note for note in content["notes"]
    )


def test_a_terminal_gets_the_table(monkeypatch):
    from transformers import PrinterCallback, ProgressCallback

    removed, added = [], []
    trainer = SimpleNamespace(
        args=SimpleNamespace(disable_tqdm=False), remove_callback=removed.append, add_callback=added.append
    )
    for terminal, kind in ((True, LossTable), (False, LossLines)):
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal, raising=False)
        show_losses(trainer, "student")
        assert isinstance(added[-1], kind)
    assert set(removed) == {PrinterCallback, ProgressCallback}
