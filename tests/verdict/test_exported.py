"""The exported student in its run's verdict: its figures against numpy, exports one after another, and the whole command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from scipy.stats import ttest_rel
from transformers import pipeline
from typer.testing import CliRunner

from conftest import sentences as made_rows
from hf_distill.errors import DataError
from hf_distill.evaluation.cost import Cost, conditions, place, time_rows
from hf_distill.verdict import Answers, SavedRows, judge
from hf_distill.verdict.answers import load_rows
from hf_distill.verdict.exported import Judged, with_exported
from hf_distill.verdict.reading import load_report
from hf_distill.verdict.systems import Role

NAMES = ("cold", "mild", "warm")
COSTS = {
    "student": Cost(10, 17_300_000, 0.002, 0.003, 900.0),
    "ensemble": Cost(300, 1_200_000_000, 0.04, 0.05, 30.0),
}
LATER = {
    "student": Cost(10, 17_300_000, 0.004, 0.005, 800.0),
    "student, int8": Cost(10, 4_600_000, 0.001, 0.002, 1600.0),
    "student, onnx": Cost(10, 17_600_000, 0.003, 0.004, 1000.0),
}


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch):
    monkeypatch.setattr("hf_distill.verdict.exported.overload", lambda: "")


@pytest.fixture(scope="module")
def answered():
    """A student on 200 rows, one of them without a label, its ensemble, and what came of it in int8."""
    generator = np.random.default_rng(5)
    labels, ids = generator.integers(0, 3, 200), np.arange(200) * 7 - 900
    labels[17] = -100

    def logits(quality):
        drawn = generator.normal(size=(200, 3))
        drawn[np.arange(200), np.clip(labels, 0, None)] += quality
        return drawn

    own = logits(1.5)
    systems = {
        "student": own,
        "student, int8": own + generator.normal(size=own.shape) / 5,
        "student, onnx": own,
        "ensemble": logits(2.0),
        "teacher:big": logits(2.0),
    }
    return labels, ids, {name: log_softmax(v, axis=1).astype(np.float32) for name, v in systems.items()}


def judged(answered, *, seeds=1, left_out=(), where=None):
    labels, ids, logs = answered

    def saved(part, seed, *names):
        answers = Answers(ids, labels, {name: logs[name] for name in names})
        return SavedRows(part, seed, "test", NAMES, answers, answers, key="k")

    students = [saved("student", 4 + i, "student") for i in range(seeds)]
    teachers = saved("teachers", None, "ensemble", "teacher:big")
    cpu = torch.device("cpu")
    said, where = conditions(cpu, "test", 200), place(cpu) if where is None else where
    gone = np.array(left_out, np.int64)
    report = judge(
        students, [], teachers, task="text-classification", metrics=["f1"], costs=COSTS, conditions=said, place=where,
        left_out=gone,
    )  # fmt: skip
    return Judged(report, students[0], teachers, gone)


def added(found, answered, format="int8", *, names=NAMES, rounding=1e-5, turn=slice(None), **changes):
    labels, ids, logs = answered
    name = Role("exported", format).name
    columns = [NAMES.index(own) for own in names]
    place = np.array([names.index(own) for own in NAMES])
    kept = ~np.isin(ids, found.left_out)
    given = {
        "example_ids": ids[kept][turn],
        "labels": np.where(labels < 0, labels, place[np.clip(labels, 0, None)])[kept][turn],
        "log_probs": {key: logs[key][kept][turn][:, columns] for key in ("student", name)},
    }
    return with_exported(
        found,
        format,
        answers=Answers(**{**given, **changes}),
        label_names=names,
        metrics=["f1"],
        costs={key: LATER[key] for key in ("student", name)},
        rounding=rounding,
    )


def test_figures_against_numpy(answered):
    labels, _, logs = answered
    found = judged(answered)
    content, before = added(found, answered).to_dict(), found.report.to_dict()
    known = labels >= 0
    truth, own, int8 = labels[known], logs["student"], logs["student, int8"]
    right = {name: (logs[name][known].argmax(1) == truth).astype(float) for name in logs}
    nll = {name: -logs[name][known].astype(float)[np.arange(len(truth)), truth] for name in logs}
    metrics = content["systems"]["student, int8"]["metrics"]
    assert metrics.keys() == before["systems"]["student"]["metrics"].keys()
    assert metrics["accuracy"] == pytest.approx(right["student, int8"].mean())
    assert metrics["nll"] == pytest.approx(nll["student, int8"].mean())
    assert metrics["agreement"] == pytest.approx((int8.argmax(1) == logs["ensemble"].argmax(1)).mean())
    p = np.exp(logs["ensemble"].astype(float))
    assert metrics["kl_to_ensemble"] == pytest.approx((p * (np.log(p) - int8)).sum(1).mean(), rel=1e-5)
    assert content["systems"]["student, int8"]["by_seed"] == {"4": metrics}

    accuracy, other = (d for d in content["differences"] if d["first"] == "student, int8")
    assert (accuracy["measure"], other["measure"], other["second"]) == ("accuracy", "nll", "student")
    for made, values in ((accuracy, right), (other, nll)):
        pair = [values[name].astype(float) for name in ("student, int8", "student")]
        interval = ttest_rel(*pair).confidence_interval(0.95)
        expected = (pair[0].mean() - pair[1].mean(), interval.low, interval.high)
        assert list(made["value"].values()) == pytest.approx(list(expected), abs=1e-4)
    assert content["accuracy_intervals"]["student, int8"]["value"] == pytest.approx(metrics["accuracy"])

    same = 100 * (int8.argmax(1) == own.argmax(1)).mean()
    points = 100 * (right["student, int8"].mean() - right["student"].mean())
    assert content["exports"]["student, int8"]["sentence"] == (
        f"Exported as int8: accuracy {100 * metrics['accuracy']:.1f} ({points:+.1f} against the float student of seed 4), "
        f"{same:.1f} % same answers, 4.6 MB in place of 17.3, 4.0× faster."
    ).replace("(-", "(−")
    assert same < 100 and points != 0
    assert content["cost"]["systems"]["student, int8"]["p50"] == 0.001
    assert content["cost"]["systems"]["student"] == before["cost"]["systems"]["student"]
    assert (
        "in turns with the student itself, which then took 4.00 ms"
        in content["exports"]["student, int8"]["conditions"]
    )
    assert (
        content["notes"] == before["notes"] and not content["exports"]["student, int8"]["notes"]
    )  # on the same machine, and nobody else used it
    # The rest of the verdict is what it was.
    for key in ("verdict", "claim", "outcome", "per_class", "trainings", "reliability", "disagreements"):
        assert content[key] == before[key]
    assert {k: v for k, v in content["systems"].items() if k != "student, int8"} == before["systems"]


def test_exports_take_the_place_of_their_own_format_alone(answered, tmp_path):
    found = judged(answered)
    once = added(dataclasses.replace(found, report=added(found, answered)), answered, "onnx")
    once.save(tmp_path)
    again = added(dataclasses.replace(found, report=load_report(tmp_path)), answered, "onnx")
    assert again.to_dict() == once.to_dict()
    systems = list(once.evaluation.systems)
    assert systems[: systems.index("ensemble")] == [
        "student", "student, calibrated", "student, int8", "student, onnx",
    ]  # fmt: skip
    assert list(once.costs)[:3] == ["student", "student, int8", "student, onnx"]
    assert [text[:16] for text in once.document().sentences[-2:]] == ["Exported as int8", "Exported as onnx"]
    worse = log_softmax(-5 * answered[2]["student"], axis=1)
    logs = {"student": answered[2]["student"], "student, int8": worse}
    changed = added(dataclasses.replace(found, report=once), answered, log_probs=logs)
    conditions = [export.conditions for export in changed.exports.values()]
    for texts in (changed.document().sentences, conditions):
        assert sum("int8" in text for text in texts) == 1 and sum("onnx" in text for text in texts) == 1
    assert [d.first for d in changed.differences].count("student, int8") == 2
    assert changed.evaluation.systems["student, int8"].metrics["accuracy"] < 0.3
    quality = changed.pictures()[0].arguments[0]
    assert {point.name: (point.latency, point.kind) for point in quality if "," in point.name} == {
        "distilled student, int8": (1.0, "exported"),
        "distilled student, onnx": (3.0, "exported"),
    }


def test_rounding_is_no_difference(answered):
    labels, ids, logs = answered
    rounded = {"student": logs["student"], "student, onnx": logs["student"] - np.float32(1e-6)}
    report = added(judged(answered), answered, "onnx", log_probs=rounded)
    _, nll = (d for d in report.differences if d.first == "student, onnx")
    assert (nll.value, nll.worse) == ((0.0, 0.0, 0.0), False)


def test_rows_that_fitted_the_fusion_are_left_out(answered):
    labels, ids, logs = answered
    found = judged(answered, left_out=ids[:50])
    report = added(found, answered)
    right = logs["student, int8"][50:].argmax(1) == labels[50:]
    assert report.evaluation.systems["student, int8"].metrics["accuracy"] == pytest.approx(right.mean())
    agreement = report.evaluation.systems["student, int8"].metrics["agreement"]
    assert agreement == pytest.approx(
        (logs["student, int8"][50:].argmax(1) == logs["ensemble"][50:].argmax(1)).mean()
    )


def test_the_order_of_rows_and_classes_does_not_matter(answered):
    found = judged(answered)
    turned = added(found, answered, names=("warm", "cold", "mild"), turn=slice(None, None, -1))
    assert turned.to_dict() == added(found, answered).to_dict()


def test_with_several_seeds_it_is_compared_with_the_student_it_was_made_of(answered):
    report = added(judged(answered, seeds=2), answered)
    assert {d.second for d in report.differences if d.first == "student, int8"} == {"student, seed 4"}
    assert "float student of seed 4" in report.document().sentences[-1]


def test_other_rows_labels_or_students_are_refused(answered):
    labels, ids, logs = answered
    found = judged(answered)
    with pytest.raises(
        DataError, match="the export was evaluated on other rows: 200 of its own, 200 here, 0 in"
    ):
        added(found, answered, example_ids=ids + 1)
    with pytest.raises(DataError, match="1 of its 200 rows have other labels now"):
        added(found, answered, labels=np.where(np.arange(200) == 3, (labels + 1) % 3, labels))
    moved = {"student": logs["student, int8"], "student, int8": logs["student, int8"]}
    with pytest.raises(DataError, match=r"not the one that was judged: KL\(judged ‖ this one\) is 0\.0"):
        added(found, answered, log_probs=moved)
    assert added(found, answered, log_probs=moved, rounding=1.0)  # as 16 bits are forgiven more


def test_other_conditions_are_noted(answered, monkeypatch):
    monkeypatch.setattr("hf_distill.verdict.exported.overload", lambda: "load 9.0 on 2 cores")
    once = added(judged(answered, where="NVIDIA H200"), answered)
    assert [note.split(" on ")[0] for note in once.document().notes[-2:]] == [
        "student, int8: it was timed",
        "student, int8: the machine was busy with other work when it was timed (load 9.0",
    ]
    again = added(dataclasses.replace(judged(answered), report=once), answered)
    assert again.document().notes == once.document().notes


def test_forwards_are_timed_on_the_same_rows_in_turns():
    rows = [{"ids": torch.full((1, 2), i)} for i in range(40)]
    batches = [{"ids": torch.zeros(3, 2)}, {"ids": torch.zeros(1, 2)}]
    seen = []
    calls = {name: lambda inputs, name=name: seen.append((name, inputs)) for name in ("a", "b")}
    paces = time_rows(calls, rows, batches, seconds=0.5)
    assert len(paces["a"].singles) == len(paces["b"].singles) == 40
    single = [(name, int(inputs["ids"][0, 0])) for name, inputs in seen if len(inputs["ids"]) == 1 and inputs["ids"].dtype == torch.int64]  # fmt: skip
    for name in calls:
        assert [i for own, i in single if own == name][3:] == list(range(40))  # after three that warm up
    assert paces["a"].throughput > 0


# ---- The whole command ----


@pytest.fixture
def recipe(checkpoints, held_out, tmp_path, monkeypatch):
    """A recipe on tiny checkpoints that ends with a verdict, timed for moments."""
    import hf_distill.publishing.export as export
    from hf_distill.evaluation import cost
    from hf_distill.runs.verdict import jobs, judgement

    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(made_rows(32, seed=7)).to_json("train.jsonl")
    datasets.Dataset.from_list(made_rows(24, seed=8)).to_json("validation.jsonl")
    held_out.to_json("test.jsonl")
    Path("tiny.yaml").write_text(f"""
data:
  files: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  label_names: [negative, positive]
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
fusion: linear_pool
training: {{use_cpu: true, max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1e-2, save_strategy: no, seed: 3,
  disable_tqdm: true, output_dir: out}}
""")
    timed = cost.time_model
    monkeypatch.setattr(judgement, "time_model", lambda *a, **k: timed(*a, **{**k, "seconds": 0.02}))
    monkeypatch.setattr(export, "_SECONDS", 0.02)
    monkeypatch.setattr(judgement, "places", lambda device: [jobs.Place()])
    graphs: dict[str, Path] = {}

    def write_once(model, example, path, **options):
        """The exporter takes seconds, and int8 begins with the same graph."""
        weights = str(sum(p.detach().double().sum().item() for p in model.parameters()))
        if weights not in graphs:
            graphs[weights] = Path(
                shutil.copy(write(model, example, path, **options), tmp_path / f"{len(graphs)}.onnx")
            )
        return Path(shutil.copy(graphs[weights], path))

    write = export.write_onnx
    monkeypatch.setattr(export, "write_onnx", write_once)
    return "tiny.yaml"


def run(*arguments):
    from hf_distill.cli import app

    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output[-2000:], done.exception)
    return " ".join(done.stdout.split())


def test_two_exports_of_a_run_are_in_its_verdict(recipe):
    run("train", recipe)
    before = json.loads(Path("out/report.json").read_text())
    assert "has the exported student too, as 'student, onnx'" in run("export", "out")
    run("export", "out", "--format", "int8", "--output", "elsewhere")
    content = json.loads(Path("out/report.json").read_text())
    found = content["systems"]
    assert found.keys() - before["systems"].keys() == {"student, onnx", "student, int8"}
    assert found["student, onnx"]["metrics"] == pytest.approx(found["student"]["metrics"], abs=1e-5)
    zero = next(d for d in content["differences"] if d["first"] == "student, onnx")["value"]
    assert zero == {"value": 0.0, "low": 0.0, "high": 0.0}
    said = {name: export["sentence"] for name, export in content["exports"].items()}
    assert any(s.startswith("Exported as onnx: accuracy ") and "(+0.0 against" in s for s in said.values())
    # The two reports say the same of the same.
    for format, folder in (("onnx", "out/onnx"), ("int8", "elsewhere")):
        export = json.loads(Path(folder, "export.json").read_text())
        own, cost = export["systems"][format], content["cost"]["systems"][f"student, {format}"]
        for name in own["metrics"]:
            assert own["metrics"][name] == pytest.approx(
                found[f"student, {format}"]["metrics"][name], abs=1e-6
            )
        assert (own["bytes"], own["rows_per_second"]) == (cost["bytes"], pytest.approx(cost["throughput"]))
        assert own["p50_ms"] == pytest.approx(1000 * cost["p50"])
        assert export["agreement"] == pytest.approx(
            float(next(s for s in said.values() if format in s).split(" % same")[0].split(", ")[-1]) / 100,
            abs=6e-4,
        )
    assert content["cost"]["systems"]["student, onnx"]["parameters"] == found["student"]["parameters"]
    text, page = Path("out/report.md").read_text(), Path("out/report.html").read_text()
    for written in (text, page):
        assert (
            "distilled student, onnx" in written
            and "distilled student, int8" in written
            and "Exported as int8" in written
        )
    assert Path("out/figures/quality_against_latency.png").stat().st_size > 1000


@pytest.mark.slow
def test_rows_of_the_verdict_alone_are_exported_on(recipe, held_out, checkpoints):
    texts = [row["text"] for row in (*made_rows(24, seed=8), *held_out.select(range(6)))]
    # A fusion is fitted to teachers that know something: the labels are what one of them says.
    answers = pipeline("text-classification", checkpoints["bert"], device="cpu")(texts)
    labels = [["negative", "positive"].index(own["label"]) for own in answers]
    labelled = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    datasets.Dataset.from_list(labelled).to_json("validation.jsonl")
    run("train", recipe, "fusion={use: log_pool, fit: true}")
    assert json.loads(Path("out/report.json").read_text())["rows"] == 27
    run("export", "out")
    assert json.loads(Path("out/onnx/export.json").read_text())["rows"] == 27
    assert "student, onnx" in json.loads(Path("out/report.json").read_text())["systems"]


@pytest.mark.slow
def test_a_verdict_of_another_student_is_left_alone(recipe):
    run("train", recipe)
    before = Path("out/report.json").read_bytes()
    weights = load_file("out/model.safetensors")
    save_file({name: 3 * value for name, value in weights.items()}, "out/model.safetensors", {"format": "pt"})
    assert "was left alone: the student in the run's folder is not the one that was judged" in run(
        "export", "out"
    )
    # As an interrupted training of another recipe leaves it: its own answers beside the verdict of the one before.
    own = load_rows(Path("out/verdict/rows-student-3.npz"))
    logs = {name: values - 1 for name, values in own.rows.log_probs.items()}
    dataclasses.replace(own, rows=own.rows._replace(log_probs=logs)).save("out")
    assert "was left alone: it is of another training than the answers beside it" in run("export", "out")
    Path("out/verdict/rows-teachers.npz").rename("gone")
    assert "was left alone: verdict/rows-teachers.npz is missing" in run("export", "out")
    assert "Note: The run's verdict was left alone" in Path("out/onnx/export.md").read_text()
    assert Path("out/report.json").read_bytes() == before
    run("train", recipe, "evaluation.verdict=false", "training.output_dir=plain")
    assert "was left alone: the run has none." in run("export", "plain")
