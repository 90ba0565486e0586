"""The audit: its figures against numpy, whom it names, what it advises, and the command that prints it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss
from typer.testing import CliRunner

from hf_distill import LinearPool, Teacher, cache_teacher_outputs
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.evaluation.audit import Gains, audit_held_out, audit_teachers
from hf_distill.evaluation.audit.advice import recipe_lines, verdict
from hf_distill.evaluation.audit.rules import RULES, CalibratedTeacher, out_of_fold
from hf_distill.evaluation.cost import Cost
from hf_distill.evaluation.statistics import Interval
from hf_distill.fusion import FUSIONS, FusionChoice, HeldOut, LogPool, build_fusion, describe
from hf_distill.fusion.alignment import LabelMap
from hf_distill.recipe.yaml12 import read

LABELS = ["ABBR", "DESC", "ENTY", "HUM"]
FEW = ["linear_pool", {"use": "log_pool", "fit": True}]


def drawn(signals, *, rows=400, classes=4, seed=0, labels=None):
    """Teachers whose logits are noise plus a signal at the label, one strength each; (K, N, C), labels, ids."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator) if labels is None else labels
    logits = torch.randn(len(signals), rows, classes, generator=generator)
    for k, signal in enumerate(signals):
        logits[k, torch.arange(rows), labels] += signal
    return HeldOut(logits, labels, None, torch.randint(2**62, (rows,), generator=generator))


def maps(*names, labels=LABELS):
    return [LabelMap.match(labels, labels, teacher=name) for name in names]


def probabilities(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def spoilt():
    """Three good teachers, one that guesses and is sure of it, and one whose labels are permuted."""
    held = drawn([2.6, 2.3, 2.0, 0.0, 2.6])
    logits = held.logits.clone()
    logits[3] *= 25
    logits[4] = logits[4][:, [1, 2, 0, 3]]  # its output 0 means class 1, 1 means 2, 2 means 0
    return held._replace(logits=logits)


@pytest.fixture(scope="module")
def report(spoilt):
    entries = {name: f"org/{name}" for name in ("bert", "roberta", "deberta", "sure", "permuted")}
    return audit_held_out(spoilt, maps(*entries), entries=entries)


def test_the_figures_of_a_teacher_are_those_of_scikit_learn(spoilt, report):
    labels = spoilt.labels.numpy()
    for teacher, logits in zip(report.teachers, spoilt.logits.numpy(), strict=True):
        probs = probabilities(logits.astype(np.float64))
        answers = probs.argmax(1)
        assert teacher.accuracy == pytest.approx((answers == labels).mean())
        assert teacher.f1 == pytest.approx(f1_score(labels, answers, average="macro"))
        assert teacher.f1_by_class == pytest.approx(f1_score(labels, answers, average=None))
        assert teacher.brier == pytest.approx(np.square(probs - np.eye(4)[labels]).sum(1).mean())
        if teacher.name != "sure":  # scikit-learn clips
            assert teacher.nll == pytest.approx(log_loss(labels, probs))
    assert report.oracle == pytest.approx((spoilt.logits.argmax(-1) == spoilt.labels).any(0).double().mean())


def test_the_temperature_is_where_the_nll_is_least(spoilt, report):
    labels, logits = spoilt.labels.numpy(), spoilt.logits[0].double().numpy()
    tried = {t: log_loss(labels, probabilities(logits / t)) for t in np.arange(0.2, 3, 0.01)}
    assert report.teachers[0].temperature == pytest.approx(min(tried, key=tried.get), abs=0.02)


def test_pairs_are_counted_row_by_row(spoilt, report):
    answers, labels = spoilt.logits.argmax(-1).numpy(), spoilt.labels.numpy()
    assert len(report.pairs) == 10
    pair = next(pair for pair in report.pairs if (pair.first, pair.second) == ("bert", "deberta"))
    one, other = answers[0], answers[2]
    assert pair.agreement == pytest.approx((one == other).mean()) == 1 - pair.disagreement
    assert pair.both_wrong == pytest.approx(((one != labels) & (other != labels)).mean())
    assert pair.same_wrong == pytest.approx(((one != labels) & (one == other)).mean())


def test_bad_teachers_are_named_and_dropped(report):
    assert set(report.advice.dropped) == {"sure", "permuted"}
    assert report.advice.teachers == ("bert", "roberta", "deberta")
    text = "\n".join(report.warnings)
    assert "Teacher 'sure' answers no better than guessing would" in text
    assert "Teacher 'sure' is over-confident" in text
    assert 'in the order of its outputs, labels: ["DESC", "ENTY", "ABBR", "HUM"]' in text
    assert "'bert'" not in text and "'roberta'" not in text and "'deberta'" not in text


def test_the_labels_it_proposes_make_the_permuted_teacher_good(spoilt):
    logits = spoilt.logits[4:]
    label_map = LabelMap.match(["DESC", "ENTY", "ABBR", "HUM"], LABELS, teacher="permuted")
    mended = spoilt._replace(logits=logits[..., list(label_map.columns)])
    again = audit_held_out(mended, [label_map], rules=FEW)
    assert again.teachers[0].accuracy > 0.9
    assert not again.warnings


def test_a_fitted_fusion_shrugs_off_what_ruins_the_mean_of_logits(report):
    rules = {rule.name: rule for rule in report.rules}
    assert report.advice.fusion == "log_pool, fitted"
    # Within 0.3 points of the best rule without the bad teachers; the unfitted mean of logits is far from it.
    best = max(rule.accuracy.value for rule in report.advice.rules)
    assert rules["log_pool, fitted"].accuracy.value >= best - 0.003
    assert rules["log_pool"].accuracy.value < best - 0.3
    assert rules["log_pool"].over_linear_pool.worse and rules["log_pool, fitted"].over_linear_pool.better


def test_every_rule_is_there_or_has_a_reason(report):
    shown = {name.removesuffix(", fitted") for name in [rule.name for rule in report.rules]}
    assert shown | report.left_out.keys() == {*FUSIONS, "best teacher, calibrated"}
    assert "label" in report.left_out["confidence_weighted"]
    assert set(RULES) | {"best teacher, calibrated"} == {rule.name for rule in report.rules}


def test_linear_pool_is_scored_as_numpy_scores_it(spoilt, report):
    labels = spoilt.labels.numpy()
    pooled = probabilities(spoilt.logits.double().numpy()).mean(0)
    rule = next(rule for rule in report.rules if rule.name == "linear_pool")
    assert rule.accuracy.value == pytest.approx((pooled.argmax(1) == labels).mean())
    assert rule.nll.value == pytest.approx(log_loss(labels, pooled), abs=1e-5)
    assert rule.accuracy.low < rule.accuracy.value < rule.accuracy.high
    half = 1.96 * math.sqrt(rule.accuracy.value * (1 - rule.accuracy.value) / 400)
    assert (rule.accuracy.high - rule.accuracy.low) / 2 == pytest.approx(half, rel=0.1)


def test_leave_one_out_is_the_pool_of_the_others(spoilt, report):
    labels, rows = spoilt.labels.numpy(), np.arange(400)
    probs = probabilities(spoilt.logits.double().numpy())
    for k, entry in enumerate(report.leave_one_out):
        gains = entry.gains["linear_pool"]
        others = np.delete(probs, k, 0).mean(0)
        correct = (others.argmax(1) == labels).mean() - (probs.mean(0).argmax(1) == labels).mean()
        assert gains.accuracy.value == pytest.approx(correct)
        nll = -np.log(others[rows, labels]).mean() + np.log(probs.mean(0)[rows, labels]).mean()
        assert gains.nll.value == pytest.approx(nll, abs=1e-5)


def test_the_lines_to_paste_are_the_fusion_that_was_judged(spoilt, report):
    pasted, *problems = read(report.advice.lines)
    assert problems == [[], []]
    assert list(pasted["teachers"]["models"]) == ["org/bert", "org/roberta", "org/deberta"]
    fitted = LogPool.fit(spoilt.logits[:3], spoilt.labels)
    assert report.advice.settings == describe(fitted)
    fusion = build_fusion(dict(pasted["fusion"]))
    assert fusion.weights == pytest.approx(fitted.weights, abs=1e-5)
    assert fusion.temperatures == pytest.approx(fitted.temperatures, rel=1e-5)


def test_each_row_is_scored_by_what_never_saw_its_half():
    held = drawn([2.0, 2.0], rows=60)

    class Recorded:
        def choose(self, rows, names):
            seen = set(rows.example_ids.tolist())

            def fusion(logits, *, temperature=1.0, labels=None, mask=None):
                assert labels is None and temperature == 1.0
                scored = [
                    int(held.example_ids[int((held.logits[0] == z).all(-1).nonzero())]) for z in logits[0]
                ]
                assert not seen & set(scored) and len(seen) + len(scored) == 60
                return LinearPool()(logits)

            return FusionChoice(fusion, "")

    found = out_of_fold(Recorded(), held, ["a", "b"])
    np.testing.assert_allclose(found, LinearPool()(held.logits).double().numpy(), atol=1e-6)
    # Copies of a row share its id, and so its half.
    twice = HeldOut(*(torch.cat([part, part], i) for i, part in ((1, held.logits), (0, held.labels))), None,
                    torch.cat([held.example_ids, held.example_ids]))  # fmt: skip
    assert audit_held_out(twice, maps("a", "b"), rules=FEW).halves == tuple(
        2 * n for n in audit_held_out(held, maps("a", "b"), rules=FEW).halves
    )


def test_the_order_of_the_rows_is_nothing():
    held = drawn([2.0, 1.5], rows=400)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    other = HeldOut(held.logits[:, order], held.labels[order], None, held.example_ids[order])
    one, two = (audit_held_out(rows, maps("a", "b"), rules=FEW) for rows in (held, other))
    for first, second in zip(one.rules, two.rules, strict=True):
        assert first.nll.value == pytest.approx(second.nll.value, abs=1e-6)
        assert first.accuracy.value == second.accuracy.value
    assert one.advice.settings["weights"] == pytest.approx(two.advice.settings["weights"], abs=1e-4)


def test_the_best_teacher_is_calibrated_only_where_that_is_no_noise():
    held = drawn([3.0, 2.0, 1.0])
    hot = held._replace(logits=torch.stack([held.logits[0] * 9, *held.logits[1:]]))
    fusion = CalibratedTeacher().choose(hot, ["a", "b", "c"]).fusion
    assert fusion.weights == (1, 0, 0) and fusion.temperatures[0] > 1
    # Labels drawn from what the teacher says: it is calibrated as it is, and what a fit would find is noise.
    probs = held.logits[0].softmax(-1)
    labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    fusion = CalibratedTeacher().choose(held._replace(logits=held.logits[:1], labels=labels), ["a"]).fusion
    assert fusion.temperatures == (1.0,)


def test_several_that_are_no_better_than_one_are_said_to_be_so():
    held = drawn([3.0], rows=300)
    noise = 0.02 * torch.randn(2, 300, 4, generator=torch.Generator().manual_seed(1))
    alike = held._replace(logits=torch.cat([held.logits, held.logits + noise]))
    report = audit_held_out(alike, maps("a", "b", "c"), rules=FEW)
    assert any("no difference beyond chance on these 300 rows" in sentence for sentence in report.verdict)
    assert set(report.advice.optional) == {"a", "b", "c"}
    assert len(read_lines(report.advice.alternative)) == 1


def test_several_that_are_worse_than_one_are_not_advised():
    held = drawn([6.0, 0.7, 0.7, 0.7])
    report = audit_held_out(held, maps(*"abcd"), rules=["linear_pool"])
    # Under the uniform pool alone, those that pull the good one down go one by one.
    assert report.advice.teachers == ("a",)
    assert read_lines(report.advice.lines) == ["a"]
    assert sum(sentence.startswith("Drop ") for sentence in report.verdict) == 3


def read_lines(lines):
    return [line.strip("- ").strip('"') for line in lines.splitlines() if line.startswith("    - ")]


def test_a_teacher_that_a_fit_gives_no_weight_is_dropped():
    held = drawn([2.5, 2.0])
    noise = 4 * torch.randn(400, 4, generator=torch.Generator().manual_seed(2))
    echo = held._replace(logits=torch.cat([held.logits, held.logits[:1] + noise]))
    assert LogPool.fit(echo.logits, echo.labels).weights[2] == 0  # what it knows, the first knows better
    report = audit_held_out(echo, maps("a", "b", "echo"), rules=FEW)
    assert report.advice.dropped == {"echo": "log_pool, fitted gives it no weight"}
    assert len(report.advice.settings["weights"]) == 2


def test_gains_are_beyond_chance_or_they_are_none():
    up, none, down = Interval(0.1, 0.05, 0.2), Interval(0.1, -0.1, 0.2), Interval(-0.1, -0.2, -0.05)
    assert Gains(up, none).better and Gains(none, down).better and Gains(up, down).better
    assert Gains(down, none).worse and Gains(none, up).worse
    assert not Gains(up, up).better and not Gains(up, up).worse and not Gains(up, up).no_loss  # a trade
    assert Gains(none, none).unseen and Gains(none, none).no_loss
    # The same last digit on every row is beyond chance, and no difference.
    rounding = Interval(-1e-6, -2e-6, -1e-7)
    assert Gains(none, rounding).unseen and "*" not in str(Gains(none, rounding))
    assert not Gains(none, Interval(math.nan, math.nan, math.nan)).no_loss


def test_a_verdict_against_the_ensemble_names_the_one_to_use(report):
    worse = Gains(Interval(-0.02, -0.03, -0.01), Interval(0.1, 0.05, 0.2))
    figures = dataclasses.replace(report.advice.figures, over_best_teacher=worse)
    words = verdict(dataclasses.replace(report.advice, figures=figures, dropped={}), 400, {})
    assert len(words) == 1 and words[0].startswith(
        f"Use {report.advice.best_teacher!r} alone, several are not worth it here"
    )


def test_different_teachers_are_worth_it_together():
    report = audit_held_out(drawn([1.8, 1.8, 1.8], rows=600), maps("a", "b", "c"), rules=FEW)
    assert any(sentence.startswith("Several teachers are worth it") for sentence in report.verdict)
    assert report.advice.alternative == "" and not report.advice.optional and report.advice.mcnemar < 0.01


def test_one_teacher_is_a_short_report():
    report = audit_held_out(drawn([2.0]), maps("only"), rules=FEW)
    assert report.pairs == () and report.leave_one_out == ()
    assert report.verdict[0].startswith("Use 'only' alone")
    assert "agreement" not in str(report)


def test_a_teacher_that_lacks_a_class_is_judged_on_its_own():
    held = drawn([3.0, 3.0, 3.0])
    mask = torch.ones(3, 400, 4, dtype=torch.bool)
    mask[1, :, 3] = False
    masked = HeldOut(held.logits.masked_fill(~mask, -torch.inf), held.labels, mask, held.example_ids)
    lacking = [*maps("a"), LabelMap.match(LABELS[:3], LABELS, teacher="b"), *maps("c")]
    report = audit_held_out(masked, lacking, rules=FEW)
    known = (held.labels != 3).numpy()
    probs = probabilities(held.logits[1, :, :3].double().numpy())[known]
    assert report.teachers[1].nll == pytest.approx(log_loss(held.labels[known], probs))
    assert report.teachers[1].f1_by_class[3] == 0
    assert "Teacher 'b' lacks the classes HUM" in "\n".join(report.warnings)
    assert report.advice.teachers == ("a", "b", "c")


def test_outputs_that_are_not_finite_cost_the_teacher_alone():
    held = drawn([3.0, 3.0, 3.0])
    held.logits[1, 7] = torch.nan
    report = audit_held_out(held, maps("a", "b", "c"), rules=FEW)
    assert report.advice.dropped == {"b": "its outputs are not finite"}
    assert math.isnan(report.teachers[1].nll) and report.to_dict()["teachers"][1]["nll"] is None
    assert "not finite" in report.left_out["log_pool, fitted"]


def test_teachers_that_know_the_rows_by_heart_are_named():
    held = drawn([2.0, 60.0])
    report = audit_held_out(held, maps("a", "b"), rules=FEW)
    assert "probably trained on them" in report.warnings[0] and "'b'" in report.warnings[0]
    assert report.verdict[0].startswith("Audit on other rows")


def test_one_checkpoint_under_two_names_is_told():
    held = drawn([2.0, 2.0])
    report = audit_held_out(
        held._replace(logits=held.logits[[0, 1, 0]]), maps("a", "b", "again"), rules=["linear_pool"]
    )
    assert [text for text in report.warnings if "same answer" in text] == [report.warnings[-1]]
    assert "'a' and 'again'" in report.warnings[-1]


def test_guessing_is_no_matter_of_accuracy():
    labels = torch.tensor([0] * 370 + [1] * 10 + [2] * 10 + [3] * 10)
    held = drawn([3.0, 0.0], labels=labels)
    held.logits[1] = torch.tensor([5.0, 0, 0, 0])  # right on 92.5 % of the rows, and knows nothing
    report = audit_held_out(held, maps("a", "constant"), rules=FEW)
    assert "no better than guessing" in report.advice.dropped["constant"]


def test_rows_that_cannot_be_judged():
    held = drawn([2.0, 2.0])
    with pytest.raises(DataError, match="None of the 400 rows has a label"):
        audit_held_out(held._replace(labels=torch.full((400,), -100)), maps("a", "b"))
    some = held.labels.clone()
    some[:300] = -100
    report = audit_held_out(held._replace(labels=some), maps("a", "b"), rules=FEW)
    assert report.rows == 100 and sum(report.label_rows) == 100
    assert report.notes[0] == "300 of 400 rows have no label and are left out."
    assert "100 rows are few" in report.notes[1]
    report = audit_held_out(held._replace(example_ids=held.example_ids * 0), maps("a", "b"), rules=FEW)
    assert report.advice is None and report.rules == ()
    assert "all rows have the same text" in report.verdict[0]
    str(report)


def test_own_rules_are_scored_and_a_failing_one_is_shown():
    class Failing:
        def choose(self, rows, names):
            raise RuntimeError("no luck")

    rules = {"mine": LinearPool((1, 3)), "failing": Failing(), "auto": "auto"}
    report = audit_held_out(drawn([2.0, 2.0]), maps("a", "b"), rules=rules)
    assert [rule.name for rule in report.rules] == ["linear_pool", "mine", "auto", "best teacher, calibrated"]
    assert report.left_out["failing"] == "no luck"
    assert "Not scored: failing: no luck." in str(report)
    with pytest.raises(ConfigurationError, match="linear_pol"):
        audit_held_out(drawn([2.0, 2.0]), maps("a", "b"), rules=["linear_pol"])


def test_saved_files_hold_what_was_printed(report, tmp_path):
    path = report.save(tmp_path / "audit")
    names = {"agreement.png", "audit.json", "audit.md", "reliability.png", "rules.png"}
    assert {file.name for file in path.parent.iterdir()} == names
    text = path.read_text(encoding="utf-8")
    assert text.index("## Verdict") < text.index("## Teachers")
    for sentence in (*report.verdict, *report.warnings, *report.advice.lines.splitlines()):
        assert sentence in text and sentence in str(report)
    content = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["version"] == 1
    assert content["rules"][0]["accuracy"].keys() == {"value", "low", "high"}


def test_long_tables_are_short_in_a_terminal_and_whole_in_the_file(tmp_path):
    labels = [f"class {i}" for i in range(40)]
    held = drawn([4.0] * 7, rows=500, classes=40)
    names = ["a|b", "$x_1$", *"cdefg"]
    report = audit_held_out(held, maps(*names, labels=labels), rules=FEW)
    assert "The 15 weakest of 40 classes" in str(report) and "The 15 most alike of 21 pairs" in str(report)
    text = report.save(tmp_path).read_text(encoding="utf-8")
    assert all(f"| {label} " in text for label in labels)
    assert "a\\|b – $x_1$" in text


def test_lines_to_paste_survive_a_yaml_reader():
    entries = ["org/a", {"model": "./b c", "name": "no", "labels": ["1e-4", "true", "x: y", "Null"]}, "/x/ü"]
    settings = {"use": "gate", "coefficients": [[1e-9, -2.5, 3]], "flag": True}
    pasted, *_ = read(recipe_lines(entries, settings))
    assert pasted["teachers"]["models"][0] == "org/a" and pasted["teachers"]["models"][2] == "/x/ü"
    assert dict(pasted["teachers"]["models"][1]) == entries[1]
    assert pasted["fusion"]["coefficients"] == [[1e-9, -2.5, 3]] and pasted["fusion"]["flag"] is True


def test_audit_of_live_teachers(teachers, rows):
    report = audit_teachers(teachers, rows, fusions=FEW, batch_size=8)
    assert [teacher.name for teacher in report.teachers] == ["bert", "roberta", "deberta"]
    for teacher, figures in zip(teachers, report.teachers, strict=True):
        assert figures.cost.parameters == teacher.num_parameters
        assert figures.cost.bytes == 4 * teacher.num_parameters
        assert figures.cost.throughput > 0
    assert "| 0 negative | 0 'negative' | 1 'NEGATIVE' | 1 'Negative' |" in report.alignment
    assert report.rows == 64 and sum(report.halves) == 64
    assert "batches of 8" in report.conditions
    with pytest.raises(ConfigurationError, match="nothing to audit"):
        audit_teachers([], rows)


def test_placeholders_are_audited_in_order_and_said_to_be(checkpoints, bert_tokenizer, rows):
    teacher = Teacher.from_pretrained(checkpoints["bert"], labels=["LABEL_0", "LABEL_1"])
    report = audit_teachers([teacher], rows, fusions=FEW)
    named = audit_teachers([checkpoints["bert"]], rows, fusions=FEW)
    assert report.teachers[0].accuracy == named.teachers[0].accuracy
    assert "has placeholders for labels" in "\n".join(report.warnings)
    assert teacher.label_names == ("LABEL_0", "LABEL_1")
    if report.advice is not None:
        assert "labels: [negative, positive]" in report.advice.lines


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(run, checkpoints, rows, held_out):
    shutil.copytree(checkpoints["student"], "student")
    Path("student/model.safetensors").unlink()  # no audit loads the student
    rows.to_json("train.jsonl")
    rows.select(range(40)).to_json("validation.jsonl")
    held_out.to_json("test.jsonl")
    Path("tiny.yaml").write_text(f"""
data:
  files: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  label_names: [negative, positive]
teachers: {{models: [{checkpoints["bert"]}, {{model: {checkpoints["roberta"]}, name: second}}]}}
student: {{model: student}}
training: {{use_cpu: true, disable_tqdm: true}}
""")
    return "tiny.yaml"


def test_the_command_prints_and_writes_the_audit(run, recipe):
    done = run("audit", recipe)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "text-classification on validation: 40 labelled rows" in done.stdout
    assert done.stdout.rstrip().endswith("The audit is in runs/tiny/audit/audit.md, with figures beside it")
    live = json.loads(Path("runs/tiny/audit/audit.json").read_text())
    assert [teacher["name"] for teacher in live["teachers"]] == ["bert", "second"]
    assert live["teachers"][0]["cost"]["rows_per_second"] > 0
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["audit"]

    cached = run(
        "audit", recipe, "--output", "elsewhere", "teachers.cache_dir=cache", "teachers.cache_dtype=float32"
    )
    assert cached.exit_code == 0, (cached.output, cached.exception)
    read_back = json.loads(Path("elsewhere/audit.json").read_text())
    for one, two in zip(live["teachers"], read_back["teachers"], strict=True):
        assert two["nll"] == pytest.approx(one["nll"], rel=1e-4)
        # A cached teacher is loaded for a moment, to be timed.
        assert two["cost"]["parameters"] == one["cost"]["parameters"]
        assert two["cost"]["bytes"] == one["cost"]["bytes"]
        assert two["cost"]["rows_per_second"] > 0


@pytest.mark.slow
def test_the_command_keeps_off_the_rows_of_the_report(run, recipe):
    few = "fusion={use: linear_pool, weights: [1, 3]}"
    audited = {
        split: run("audit", recipe, few, "--split", split) for split in ("train", "validation", "test")
    }
    assert "These are training rows" in audited["train"].stdout
    assert "The final report is made on the test rows too" in audited["test"].stdout
    assert "## Notes" in audited["validation"].stdout and "final report" not in audited["validation"].stdout
    assert "the recipe's" in audited["validation"].stdout
    other = run("audit", recipe, "evaluation.split=validation")
    assert "text-classification on test: 33 labelled rows" in other.stdout
    refused = run("audit", recipe, "--split", "dev")
    assert refused.exit_code == 3 and "there is no dev split" in refused.stderr
    alone = run("audit", recipe, "data.files={train: train.jsonl}")
    assert alone.exit_code == 3 and "--split train" in alone.stderr
    assert run("audit", recipe, "losses.temperature=0").exit_code == 2


def test_cached_teachers_that_nobody_says_how_to_load_are_not_timed(teachers, rows, tmp_path):
    cached = cache_teacher_outputs(teachers[:1], rows, cache_dir=tmp_path / "cache")
    report = audit_teachers(cached, rows, fusions=FEW)
    assert report.teachers[0].cost == Cost(teachers[0].num_parameters)
    assert "have no MB and no rows/s" in report.conditions


def test_a_teacher_that_was_never_trained_is_not_sure_of_itself():
    """The temperature that calibrates answers that say nothing is endless too."""
    held = drawn([2.6, 0.0])
    logits = held.logits.clone()
    logits[1] *= 0.05
    text = "\n".join(
        audit_held_out(held._replace(logits=logits), maps("good", "untrained"), rules=FEW).warnings
    )
    assert "Teacher 'untrained' answers no better than guessing would" in text
    assert (
        "Teacher 'untrained' gives all classes nearly the same probability, so its head looks untrained"
        in text
    )
    assert "over-confident" not in text
