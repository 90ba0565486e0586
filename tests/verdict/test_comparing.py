"""Finished runs compared: on which rows, which systems, at what cost, and what the files of it hold."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from click import unstyle
from test_verdict import (  # noqa: F401 - the fixture of three seeds and two teachers on 300 rows
    BROWSER,
    HOSTILE,
    NAMES,
    Page,
    _renamed,
    answers,
    drawn,
    judged,
    run,
)
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError
from hf_distill.evaluation.variances import half_width, variance_apart
from hf_distill.verdict import SavedRows, compare_runs
from hf_distill.verdict.answers import in_order
from hf_distill.verdict.reading import load_report
from hf_distill.verdict.wording import system_name

HOSTILE_NAME = '<img src=x onerror=alert(1)>|`b` "$x$'


def changed(saved, **changes):
    return SavedRows(**{**vars(saved), **changes})


def save(folder, own, *, fitted=None, report=False, **options):
    """A run's folder as `hf-distill train` leaves it; of its report what is read again, where one is asked for."""
    for saved in (*own.students, *own.baselines, own.teachers):
        saved.save(folder)
    if fitted is not None:
        (folder / "fusion.json").write_text(json.dumps({"fitted_on": [int(i) for i in fitted]}))
    if report:
        content = judged(own, left_out=fitted, **options).to_dict()
        (folder / "report.json").write_text(json.dumps(content))


def better(own, seed=5, quality=2.6):
    """The same run with other students."""
    generator = np.random.default_rng(seed)
    students = [
        changed(s, rows=s.rows._replace(log_probs={"student": drawn(generator, own.labels, quality)}))
        for s in own.students
    ]
    return SimpleNamespace(**{**vars(own), "students": students})


def shuffled(own, key="other"):
    """The same run, which read its rows in another order and has its classes in another."""
    turn = np.random.default_rng(0).permutation(len(own.ids))
    columns = [2, 0, 1]

    def read(saved):
        place = np.argsort(columns)
        of = lambda rows, turn: rows._replace(  # noqa: E731
            example_ids=rows.example_ids[turn],
            labels=np.where(rows.labels < 0, rows.labels, place[np.clip(rows.labels, 0, None)])[turn],
            log_probs={name: logs[turn][:, columns] for name, logs in rows.log_probs.items()},
        )
        validation = saved.validation and of(saved.validation, np.arange(len(saved.validation.labels)))
        names = tuple(NAMES[c] for c in columns)
        lengths = None if saved.lengths is None else saved.lengths[turn]
        return changed(
            saved, rows=of(saved.rows, turn), validation=validation, label_names=names, lengths=lengths, key=key
        )  # fmt: skip

    changes = {part: [read(s) for s in getattr(own, part)] for part in ("students", "baselines")}
    return SimpleNamespace(**{**vars(own), **changes, "teachers": read(own.teachers)})


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):  # noqa: F811
    """Two runs with one baseline and one ensemble; the second read its rows otherwise, and has a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    save(folder / "a", run)
    judged(run).save(folder / "a")
    save(folder / HOSTILE_NAME, shuffled(better(run)), report=True)
    return SimpleNamespace(a=folder / "a", b=folder / HOSTILE_NAME)


@pytest.fixture(scope="module")
def found(pair):
    return compare_runs([pair.a, pair.b])


def system(found, name, run=None):  # noqa: F811
    (one,) = (s for s in found.systems if s.system == name and (run is None or s.runs == (run,)))
    return one


# ---- Rows ----


def test_rows_that_stand_twice_are_paired_by_their_labels():
    """The same text with other labels, read in another order: no row has another label than it had."""
    logs = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]])
    saved = SavedRows("student", 0, "test", NAMES, answers([4, 9, 4], [0, 2, 1], student=logs))
    ids, labels, names = np.array([4, 4, 9]), np.array([2, 1, 0]), ("warm", "cold", "mild")
    again = in_order(saved, ids, names, "run", labels)
    assert again.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(again.log_probs["student"], logs[[2, 0, 1]][:, [2, 0, 1]], rtol=1e-6)
    assert in_order(saved, ids, names, "run").labels.tolist() == [1, 2, 0]  # by order of appearance


def test_conflicting_labels_of_one_text_are_no_other_data(run, tmp_path):  # noqa: F811
    ids = run.ids.copy()
    twice = [i for i in range(0, 300, 2) if run.labels[i] != run.labels[i + 1]]
    ids[[i + 1 for i in twice]] = ids[twice]
    of = lambda saved: changed(saved, rows=saved.rows._replace(example_ids=ids))  # noqa: E731
    own = SimpleNamespace(
        students=[of(s) for s in run.students], baselines=[of(s) for s in run.baselines], teachers=of(run.teachers),
        labels=run.labels, ids=ids,
    )  # fmt: skip
    save(tmp_path / "a", own)
    save(tmp_path / "b", shuffled(own))
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert [d.value.value for d in found.differences[:4]] == [0.0] * 4


def test_rows_that_fitted_any_fusion_are_left_out_for_all(run, tmp_path):  # noqa: F811
    fitted = {"a": run.ids[:40], "b": np.append(run.ids[30:60], 10**6)}
    for name, ids in fitted.items():
        save(tmp_path / name, run if name == "a" else shuffled(better(run)), fitted=ids, report=True)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    kept = np.arange(300) >= 60  # the row without a label is among the others
    assert (found.rows, found.left_out) == (240, 60)
    assert found.notes[0] == "60 of 300 rows fitted the fusion of one of the runs and are left out for all."
    right = [(s.rows.log_probs["student"].argmax(1) == run.labels)[kept].mean() for s in run.students]
    assert system(found, "student", "a").metrics["accuracy"] == pytest.approx(np.mean(right))
    assert all(own.costs for own in found.runs.values())  # the reports are of these answers, on fewer rows
    (tmp_path / "b" / "fusion.json").unlink()
    with pytest.raises(DataError, match="is on 270 of 300 rows, and fusion.json"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / "fusion.json").write_text("{}")
    with pytest.raises(CorruptStateError, match="which rows fitted the fusion"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / "fusion.json").write_text(json.dumps({"fitted_on": run.ids.tolist()}))
    with pytest.raises(DataError, match=r"None of the 0 rows that fitted no fusion \(300 did\) has a label"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_runs_that_cannot_be_compared(run, tmp_path):  # noqa: F811
    for saved in run.students:
        saved.save(tmp_path / "a")
    first = run.students[0]
    other = first.rows._replace(example_ids=first.rows.example_ids + 1)
    changed(first, rows=other).save(tmp_path / "c")
    changed(first, split="validation").save(tmp_path / "d")
    moved = np.where(first.rows.labels == 0, 1, first.rows.labels)
    changed(first, rows=first.rows._replace(labels=moved)).save(tmp_path / "e")
    (tmp_path / "empty").mkdir()
    for name, words in {"c": "evaluated on other rows: 300 of its own, 300 here, 0 in common", "d": "on its validation split",
                        "e": "had other labels", "none": "There is no folder", "empty": "has no verdict/rows-student"}.items():  # fmt: skip
        done = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / name)])
        assert done.exit_code == 3 and words in done.stderr
        assert done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    for given in ([tmp_path / "a"], [tmp_path / "a", tmp_path / "d" / ".." / "a"]):
        with pytest.raises(ConfigurationError):
            compare_runs(given)


# ---- Systems ----


def test_figures_of_every_system_against_numpy(run, found):  # noqa: F811
    known, truth = run.labels >= 0, run.labels[run.labels >= 0]
    ensemble = np.exp(run.teachers.rows.log_probs["ensemble"].astype(float))
    each = []
    for saved in run.students:
        logs = saved.rows.log_probs["student"].astype(float)
        kl = (ensemble * (np.log(ensemble) - logs)).sum(1)
        sure = -logs[known][np.arange(len(truth)), truth]
        brier = np.square(np.exp(logs[known]) - np.eye(3)[truth]).sum(1)
        same = logs.argmax(1) == ensemble.argmax(1)
        each.append(
            [(logs.argmax(1) == run.labels)[known].mean(), sure.mean(), brier.mean(), same.mean(), kl.mean()]
        )
    names = ["accuracy", "nll", "brier", "agreement", "kl_to_ensemble"]
    own = system(found, "student", "a")
    assert [own.metrics[name] for name in names] == pytest.approx(np.mean(each, 0), rel=1e-5)
    assert [own.spread[name] for name in names] == pytest.approx(np.std(each, 0, ddof=1), rel=1e-4)
    assert {"f1", "ece"} <= own.metrics.keys() and own.seeds == 3
    assert "agreement" not in system(found, "ensemble").metrics


def test_what_runs_have_in_common_stands_once(found, run):  # noqa: F811
    """Whatever the order of rows and classes; students are never one."""
    shown = [(s.system, len(s.runs)) for s in found.systems]
    assert shown[:2] == [("student", 1), ("student", 1)]
    assert {name for name, _ in shown[2:]} >= {"ensemble", "fine-tuned, last step"}
    assert all(runs == 2 for _, runs in shown[2:]) and len({name for name, _ in shown[2:]}) == len(shown) - 2
    teachers = {n: l.argmax(1) for n, l in run.teachers.rows.log_probs.items() if n.startswith("teacher:")}  # noqa: E741
    best = max(teachers, key=lambda name: (teachers[name] == run.labels).sum())
    assert shown[-1] == (best, 2)
    assert {d.first for d in found.differences} == {"a: student", f"{HOSTILE_NAME}: student"}
    assert {d.second for d in found.differences[4:]} <= {name for name, _ in shown[2:]}


def test_a_shared_baseline_has_no_agreement_with_two_ensembles(run, tmp_path):  # noqa: F811
    logs = {"ensemble": drawn(np.random.default_rng(8), run.labels, 2.0)}
    teachers = changed(run.teachers, rows=run.teachers.rows._replace(log_probs=logs))
    save(tmp_path / "a", run)
    save(tmp_path / "b", SimpleNamespace(**{**vars(run), "teachers": teachers}))
    save(tmp_path / "c", better(run))
    found = compare_runs([tmp_path / name for name in "abc"])
    assert [s.runs for s in found.systems if s.system == "ensemble"] == [("a", "c"), ("b",)]
    baselines = [s for s in found.systems if s.system.startswith("fine-tuned")]
    assert all(s.runs == ("a", "b", "c") and "agreement" not in s.metrics for s in baselines)
    assert "kl_to_ensemble" in system(found, "student", "b").metrics
    assert found.per_class == () and "beyond chance on these 299 rows: c; worse: none" in found.sentences[0]
    table = next(section for section in found.sections() if section.title == "Systems")
    assert table.rows[-1][:2] == [system_name(found.systems[-1].role), "a, c"]  # b has no single teachers
    assert [d.first for d in found.differences[:8:4]] == ["b: student", "c: student"]


def test_each_student_is_compared_with_its_own_baseline(run, found):  # noqa: F811
    known = run.labels >= 0
    right = [(s.rows.log_probs["student"].argmax(1) == run.labels)[known] for s in run.students]
    last, best = (
        [(s.rows.log_probs[kind].argmax(1) == run.labels)[known] for s in run.baselines]
        for kind in ("last", "best")
    )
    beaten = last if np.mean(last) >= np.mean(best) else best
    own = next(d for d in found.differences[4:] if d.measure == "accuracy" and d.first == "a: student")
    assert own.value.value == pytest.approx(np.mean(right) - np.mean(beaten))
    assert len(own.mcnemar) == 3  # paired seed by seed
    assert load_report(found.runs["a"].folder).claim.gain.value == pytest.approx(own.value)
    assert found.runs["a"].baseline == own.second
    # The probabilities of the baseline are given a temperature, which helps these.
    assert next(d for d in found.differences[4:] if d.measure == "nll").second.endswith(", calibrated")


def test_the_second_run_is_better(found, run):  # noqa: F811
    gain = found.differences[0]
    values = [system(found, "student", name).metrics["accuracy"] for name in found.runs]
    assert gain.value.value == pytest.approx(values[1] - values[0]) and gain.better
    assert found.sentences[0].startswith(
        f"The student of {HOSTILE_NAME} is better than that of a: accuracy +"
    )
    assert [group.rows for group in found.per_class] == np.bincount(run.labels[run.labels >= 0]).tolist()
    right = np.mean([(s.rows.log_probs["student"].argmax(1) == 2)[run.labels == 2] for s in run.students])
    assert found.per_class[2].accuracy["a"] == pytest.approx(right)
    assert found.per_class[2].gain.value == pytest.approx(found.per_class[2].accuracy[HOSTILE_NAME] - right)


def test_students_alone_are_compared_too(run, tmp_path):  # noqa: F811
    for saved in run.students:
        saved.save(tmp_path / "a")
    for saved in _renamed(run.baselines)[:1]:
        saved.save(tmp_path / "b")
    found = compare_runs([tmp_path / "b", tmp_path / "a"])
    known = run.labels >= 0
    right = [
        np.mean([(s.rows.log_probs[name].argmax(1) == run.labels)[known] for s in rows])
        for rows, name in ((run.baselines[:1], "last"), (run.students, "student"))
    ]
    (accuracy,) = (d for d in found.differences if d.measure == "accuracy")
    assert accuracy.value.value == pytest.approx(right[1] - right[0])
    # The one training is taken to vary as much as the three do, whose own variance is not all.
    each = [
        np.array([(s.rows.log_probs[name].argmax(1) == run.labels)[known] for s in rows], float)
        for rows, name in ((run.students, "student"), (run.baselines[:1], "last"))
    ]
    varies = variance_apart(*each)
    assert float(varies.seeds) == pytest.approx(each[0].mean(1).var(ddof=1) * (1 + 1 / 3))
    assert accuracy.value.high - accuracy.value.value == pytest.approx(float(half_width(varies)))
    assert found.rows == 299 and [len(own.seeds) for own in found.runs.values()] == [1, 3]
    again = compare_runs([tmp_path / "a", tmp_path / "b"])
    said = "The student of b is worse than that of a, if the trainings of b vary as much as those of a: "
    assert again.sentences[0].startswith(said if accuracy.better else "No difference beyond chance")
    assert "one seed" in again.sentences[-1]
    assert "In a there is no fine-tuned student to be compared with." in again.sentences
    assert "what its teachers answered is not there." in again.notes
    again.save(tmp_path / "out")
    assert not (tmp_path / "out" / "figures" / "compared_quality_against_latency.png").exists()


def test_rows_of_an_earlier_recipe_are_not_compared(run, tmp_path):  # noqa: F811
    for name in "ab":
        save(tmp_path / name, run)
    changed(run.students[0], seed=99, key="older").save(tmp_path / "a")  # written last, and of no verdict
    changed(run.baselines[0], seed=4, key="older").save(tmp_path / "b")
    changed(run.teachers, key="older").save(tmp_path / "b")
    found = compare_runs([tmp_path / "b", tmp_path / "a"])
    assert [own.seeds for own in found.runs.values()] == [(5, 6), (4, 5, 6)]
    assert found.notes[:2] == (
        "b: 1 seeds have no fine-tuned student yet and are left out.",
        "b: what its teachers answered is not there.",
    )
    assert {s.runs for s in found.systems if s.system == "ensemble"} == {("a",)}


def test_the_verdict_says_which_answers_are_the_runs_own(run, tmp_path):  # noqa: F811
    """Whatever was written last: its key, else that of the teachers' answers, else the only one that there is."""
    save(tmp_path / "b", run)
    save(tmp_path / "a", run, report=True)
    for seed in (98, 99):
        changed(run.students[0], seed=seed, key="other").save(tmp_path / "a")
    changed(run.teachers, key="other").save(tmp_path / "a")
    seeds = lambda: compare_runs([tmp_path / "a", tmp_path / "b"]).runs["a"].seeds  # noqa: E731
    assert seeds() == (4, 5, 6)
    (tmp_path / "a" / "report.json").unlink()
    assert seeds() == (98, 99)
    (tmp_path / "a" / "verdict" / "rows-teachers.npz").unlink()
    with pytest.raises(DataError, match="answers of students of 2 recipes, and no verdict that says which"):
        seeds()


# ---- Costs ----


def test_costs_come_from_the_reports_of_these_answers(pair, found, run, tmp_path):  # noqa: F811
    costs = load_report(pair.a).costs
    assert found.runs["a"].costs["student"] == costs["student"] and found.runs["a"].conditions == "On cpu."
    section = next(s for s in found.sections() if s.title == "Cost")
    assert section.rows[0] == ["distilled student", "a", "10", "0.0", "2.00", "2.90", "900", "4.0× faster"]
    assert section.note.startswith("As each run measured them when it was judged. On cpu.")
    save(tmp_path / "b", better(run), report=True, conditions="On cuda.")
    (tmp_path / "c").mkdir()
    save(tmp_path / "c", better(run, seed=9))
    (tmp_path / "c" / "report.json").write_text((pair.a / "report.json").read_text())
    other = compare_runs([pair.a, tmp_path / "b", tmp_path / "c"])
    assert not any("took" in note for note in other.notes)
    assert "c: its report.json is of other answers: what its models cost is not known." in other.notes
    section = next(s for s in other.sections() if s.title == "Cost")
    assert {row[1] for row in section.rows} == {"a", "b"}
    assert "different conditions" in section.note and "b: On cuda. A" in section.note
    quality = other.pictures()[0]
    points = {point.name: point for point in quality.arguments[0]}
    assert points["a: student"].latency == points["fine-tuned"].latency == pytest.approx(2.0)
    assert "c: student" not in points and "not under the same conditions" in quality.caption


def test_a_system_that_runs_timed_differently_is_told(run, pair, tmp_path):  # noqa: F811
    save(tmp_path / "b", better(run), report=True)
    content = json.loads((tmp_path / "b" / "report.json").read_text())
    content["cost"]["systems"]["ensemble"]["p50"] *= 3
    (tmp_path / "b" / "report.json").write_text(json.dumps(content))
    found = compare_runs([tmp_path / "b", pair.a])
    assert (
        "The same ensemble took 24 ms in b, 8 ms in a, so that latencies of different runs do not compare."
        in found.notes
    )
    (points,) = (p.arguments[0] for p in found.pictures() if p.title == "Quality against latency")
    assert [p.latency for p in points if p.name == "ensemble"] == [pytest.approx(8.0)]


def test_recipes_are_told_apart_and_learning_curves_are_in_one_picture(run, tmp_path):  # noqa: F811
    for name, own in (("a", run), ("b", better(run))):
        save(tmp_path / name, own, report=True)
        temperature = {"a": 2, "b": 4}[name]
        (tmp_path / name / "recipe.yaml").write_text(
            f"losses: {{temperature: {temperature}}}\nfusion: auto\n"
        )
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    table = next(section for section in found.sections() if section.title == "How the recipes differ")
    assert (table.header, table.rows) == (["key", "a", "b"], [["losses.temperature", "2", "4"]])
    picture = next(picture for picture in found.pictures() if picture.title == "Learning curves")
    curves = picture.arguments[0]
    assert [(curve.name, curve.dashed) for curve in curves] == [
        *[("a: distilled", False)] * 3, *[("b: distilled", False)] * 3,
        *[("a: fine-tuned", True)] * 3, *[("b: fine-tuned", True)] * 3,
    ]  # fmt: skip
    assert len({curve.colour for curve in curves}) == 2
    content = found.to_dict()
    assert content["recipes"] == [{"key": "losses.temperature", "values": {"a": "2", "b": "4"}}]
    assert "trainings" not in content["runs"]["a"]
    alike = dataclasses.replace(found, recipes=())
    assert next(s for s in alike.sections() if "recipes" in s.title).rows == [
        ["nothing but its folder", "–", "–"]
    ]
    assert not any("recipes" in s.title for s in dataclasses.replace(found, recipes=None).sections())


# ---- Files ----


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    page = found.save(folder)
    assert page == folder / "comparison.html"
    return folder


def test_comparison_json_keeps_what_readers_know(folder, found):
    content = json.loads((folder / "comparison.json").read_text())
    assert content["version"] == 2
    assert content.keys() == {
        "version", "split", "rows", "left_out", "labels", "runs", "systems", "differences", "per_class", "notes", "verdict",
        "sentences", "recipes",
    }  # fmt: skip
    assert content["runs"]["a"].keys() == {"folder", "seeds", "baseline", "costs", "conditions"}
    assert content["systems"][0]["metrics"] == pytest.approx(found.systems[0].metrics)
    assert content["verdict"] == found.sentences[0] and content["differences"][0]["beyond_chance"] is True


def test_comparison_md_is_inert(folder):
    text = (folder / "comparison.md").read_text()
    assert not re.search(r"<img|</script|(?<!\\)\]\(http|[\x00-\x08\x1b]", text)
    for title in ("Systems", "Quality against latency", "Gains by class", "Differences", "Cost", "By class"):
        assert f"\n## {title}" in text
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(folder, found):
    text = (folder / "comparison.html").read_text()
    page = Page(text)
    assert page.open == [] and page.tags.count("svg") == 2 * len(found.pictures()) > 0
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert HOSTILE_NAME in "".join(page.texts) and " ".join(HOSTILE.split("\x00")[0].split()) in "".join(
        page.texts
    )
    assert "default-src 'none'" in text
    assert "<summary>" not in text.partition("<figure>")[0]  # the first table is never folded away


@pytest.mark.skipif(BROWSER is None, reason="no headless browser (chromium, google-chrome) is installed")
def test_the_page_renders(folder, tmp_path):
    from PIL import Image

    picture = tmp_path / "page.png"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,2000",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}",
         (folder / "comparison.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert picture.is_file(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    for part in np.array_split(pixels, 5):
        assert part.std() > 5, "an empty stretch"


# ---- The command ----


@pytest.mark.pictures
def test_one_run_shows_its_own_verdict_again(pair, tmp_path):
    done = CliRunner().invoke(app, ["compare", str(pair.a), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert (
        unstyle(str(load_report(pair.a))) in done.stdout
        and f"It is {tmp_path / 'out' / 'report.html'}" in done.stdout
    )
    for name in ("report.json", "report.md", "report.html", "figures/reliability.png"):
        assert (tmp_path / "out" / name).read_bytes() == (pair.a / name).read_bytes()
    done = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert (
        done.exit_code == 3 and "has no verdict" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    )


def test_two_runs_from_the_command_line(pair, found, tmp_path):
    done = CliRunner().invoke(app, ["compare", str(pair.a), str(pair.b), "--output", str(tmp_path)])
    assert done.exit_code == 0 and str(found) in done.stdout
    assert {path.name for path in tmp_path.glob("comparison.*")} == {
        "comparison.json", "comparison.md", "comparison.html",
    }  # fmt: skip
