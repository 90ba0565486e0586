"""The audit of numbers: lines, errors that go together, rules out of fold, and what is advised."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import pearsonr, spearmanr

from hf_distill import TASKS
from hf_distill.errors import DataError
from hf_distill.evaluation.audit import audit_scores
from hf_distill.evaluation.audit.of_scores import BEST_TEACHER, PLAIN
from hf_distill.fusion import GaussianPool, HeldOut, build_fusion
from hf_distill.fusion.alignment import LabelMap

TASK = TASKS["regression"]


def held_of(*teachers, truth):
    logits = torch.from_numpy(np.stack(teachers)).float()[..., None]
    return HeldOut(logits, torch.from_numpy(truth).float()[:, None], None, torch.arange(len(truth)))


def audited(held, **options):
    names = ["abcdef"[k] for k in range(len(held.logits))]
    return audit_scores(held, [LabelMap(name, ("s",), ("s",), (0,)) for name in names], TASK, **options)


@pytest.fixture(scope="module")
def found():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=600) * 1.5 + 3
    near, other, noise = (
        truth + 0.5 * draw.normal(size=600),
        truth + 0.6 * draw.normal(size=600),
        draw.normal(size=600),
    )
    return (
        truth,
        [near, 10 * other + 5, -near - 1, noise],
        audited(held_of(near, 10 * other + 5, noise, truth=truth)),
    )


def test_a_teacher_alone(found):
    truth, (near, scaled, _, _), report = found
    a, b, c = report.teachers
    assert a.metrics["pearson"] == pytest.approx(pearsonr(near, truth)[0], abs=1e-5)
    assert a.metrics["spearman"] == pytest.approx(spearmanr(near, truth)[0], abs=1e-5)
    assert a.metrics["mse"] == pytest.approx(((near - truth) ** 2).mean(), rel=1e-4)
    assert a.within == pytest.approx((np.abs(near - truth) <= 0.5).mean(), abs=2e-3)
    assert b.line == (pytest.approx(np.polyfit(scaled, truth, 1), rel=1e-3))
    halves = np.arange(600) % 2 == 0
    errors = np.empty(600)
    for own in (halves, ~halves):  # each half by the line of the other
        slope, offset = np.polyfit(scaled[~own], truth[~own], 1)
        errors[own] = (slope * scaled[own] + offset - truth[own]) ** 2
    assert b.on_line == pytest.approx(errors.mean(), rel=1e-3)


def test_what_is_suspicious_is_said(found):
    truth, (near, scaled, turned, noise), report = found
    assert report.dropped == {"c": "its numbers tell nothing of the labels"}
    assert any("'b' speaks on another scale" in text for text in report.warnings)
    other = audited(held_of(near, turned, near, np.full(600, np.nan), truth=truth))
    said = " ".join(other.warnings)
    assert "'b' says more where the labels say less" in said and "'a' and 'c' give the same numbers" in said
    assert other.dropped["d"] == "its outputs are not finite" and "'d'" not in other.lines
    alone = audited(held_of(noise, truth=truth))
    assert alone.lines == "" and "No teacher is usable" in alone.verdict[0]


def test_rules_are_compared_out_of_fold_and_the_lines_can_be_pasted(found):
    truth, (near, scaled, _, noise), report = found
    by_name = {rule.name: rule for rule in report.rules}
    assert {PLAIN, BEST_TEACHER} < by_name.keys()
    plain = np.square(np.mean([near, scaled, noise], 0) - truth)
    assert by_name[PLAIN].squared_error.value == pytest.approx(plain.mean(), rel=1e-4)
    assert by_name["gaussian_pool, inverse_mse on lines"].over_mean.beyond_chance
    assert report.fusion != PLAIN and "Several teachers are worth it" in report.verdict[-1]
    pasted = yaml.safe_load(report.lines)
    fusion = build_fusion(pasted["fusion"])
    assert pasted["teachers"]["models"] == ["a", "b"] and isinstance(fusion, GaussianPool)
    kept = held_of(near, scaled, truth=truth)
    assert (fusion(kept.logits) - kept.labels).square().mean().item() < report.teachers[0].on_line
    assert report.without["a"].value > 0 and report.without["b"].value > 0
    pair = next(p for p in report.pairs if (p.first, p.second) == ("a", "b"))
    assert abs(pair.errors) < 0.3 and pair.numbers > 0.8


def test_one_teacher_is_used_alone():
    draw = np.random.default_rng(1)
    truth = draw.normal(size=400)
    report = audited(held_of(truth + 0.1 * draw.normal(size=400), truth=truth))
    assert report.verdict[-1].startswith("Use 'a' alone") and report.pairs == () and report.without == {}


def test_the_report_is_text_and_numbers(found, tmp_path):
    report = found[2]
    assert "Verdict" in str(report) and "MSE on it" in str(report) and "1 score, 3 teachers" in str(report)
    report.save(tmp_path)
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert saved["version"] == 1 and saved["teachers"][0]["cost"] == {
        "parameters": None,
        "bytes": None,
        "rows_per_second": None,
    }
    assert "```yaml" in (tmp_path / "audit.md").read_text()


def test_rows_without_labels_are_left_out_and_none_is_refused():
    truth = np.arange(60.0)
    truth[:10] = np.nan
    report = audited(held_of(np.arange(60.0) + 1, truth=truth))
    assert report.rows == 50 and any("10 of 60 rows have no label" in note for note in report.notes)
    with pytest.raises(DataError, match="None of the 60 rows has a label"):
        audited(held_of(np.arange(60.0), truth=np.full(60, np.nan)))
